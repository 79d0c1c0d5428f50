//! Where synchronous code waits for asynchronous code: the only place of this crate that blocks on a runtime.
//!
//! Writers and restores run in threads of their own, because they read files, compress and sum; storages are
//! asynchronous. A thread that holds a [`Bridge`] waits for a future there. It must not be a thread that
//! the runtime polls futures on: use `tokio::task::spawn_blocking` or a thread of the standard library.
//!
//! Each such thread is taken while it waits, and what it waits for (storages of local files, decoding) needs further blocking
//! threads of the same runtime. When writers, restores and the like have taken all of them (`max_blocking_threads`), they wait for
//! ever: leave some free, or use threads of the standard library that have entered the runtime.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// A runtime, as threads outside of it use it.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    handle: Handle,
}

impl Bridge {
    /// The runtime this is called in, or in whose `spawn_blocking` this is called. Which of the two cannot be told: a
    /// [`wait`](Self::wait) on a thread that polls futures panics.
    pub(crate) fn current() -> Result<Self> {
        let handle = Handle::try_current().map_err(|error| {
            Error::new(
                ErrorKind::Invalid,
                "asynchronous runtime",
                "not called in one",
            )
            .caused_by(error)
        })?;
        Ok(Self { handle })
    }

    /// Waits for a future.
    pub(crate) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }

    /// Starts a task.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.handle.spawn(future)
    }
}

/// Runs blocking work beside the runtime. Dropped, the work still runs to its end.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::new(ErrorKind::Io, what, "a thread failed").caused_by(error)),
    }
}
