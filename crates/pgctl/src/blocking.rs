//! The same without a runtime: every call holds up its thread until it is done.
//!
//! Can be used from any thread, also from one that a tokio runtime runs on (which it then holds up).

use std::future::Future;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use crate::create::CreateOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::installation::Installation;
use crate::start::{StartOptions, Started};
use crate::status::Status;
use crate::stop::{StopMode, StopOptions, Stopped};

/// Runs a future to its end on this thread. What it made that waits for the network, a connection above
/// all, can be used only within it.
///
/// # Errors
/// [`Io`](ErrorKind::Io) when the system gives no event queue.
pub fn wait<T: Send>(future: impl Future<Output = T> + Send) -> Result<T> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Io, "a runtime", "cannot be made").with_source(error)
            })?;
        Ok(runtime.block_on(future))
    };
    if tokio::runtime::Handle::try_current().is_err() {
        return run();
    }
    // A runtime refuses to wait inside of another one; a thread of its own is not inside.
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// [`Instance`](crate::Instance) without futures. All that does not wait is reached through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance(crate::Instance);

impl Deref for Instance {
    type Target = crate::Instance;

    fn deref(&self) -> &crate::Instance {
        &self.0
    }
}

impl From<crate::Instance> for Instance {
    fn from(instance: crate::Instance) -> Self {
        Self(instance)
    }
}

impl Instance {
    /// As [`crate::Instance::create`].
    ///
    /// # Errors
    /// As there.
    pub fn create(
        installation: &Installation,
        dir: impl AsRef<Path>,
        options: &CreateOptions,
    ) -> Result<Self> {
        wait(crate::Instance::create(installation, dir.as_ref(), options))?.map(Self)
    }

    /// As [`crate::Instance::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(installation: &Installation, dir: impl AsRef<Path>) -> Result<Self> {
        crate::Instance::open(installation, dir).map(Self)
    }

    /// As [`crate::Instance::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start(&self, options: &StartOptions) -> Result<Started> {
        wait(self.0.start(options))?
    }

    /// As [`crate::Instance::start_scoped`].
    ///
    /// # Errors
    /// As there.
    pub fn start_scoped(&self, options: &StartOptions) -> Result<ScopedServer> {
        wait(self.0.start_scoped(options))?.map(ScopedServer)
    }

    /// As [`crate::Instance::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self, options: &StopOptions) -> Result<Stopped> {
        wait(self.0.stop(options))?
    }

    /// As [`crate::Instance::restart`].
    ///
    /// # Errors
    /// As there.
    pub fn restart(&self, stop: &StopOptions, start: &StartOptions) -> Result<Started> {
        wait(self.0.restart(stop, start))?
    }

    /// As [`crate::Instance::promote`].
    ///
    /// # Errors
    /// As there.
    pub fn promote(&self, deadline: Duration) -> Result<()> {
        wait(self.0.promote(deadline))?
    }

    /// As [`crate::Instance::status`].
    ///
    /// # Errors
    /// As there.
    pub fn status(&self) -> Result<Status> {
        wait(self.0.status())?
    }
}

/// [`ScopedServer`](crate::ScopedServer) without futures.
#[derive(Debug)]
pub struct ScopedServer(crate::ScopedServer);

impl Deref for ScopedServer {
    type Target = crate::ScopedServer;

    fn deref(&self) -> &crate::ScopedServer {
        &self.0
    }
}

impl ScopedServer {
    /// As [`crate::ScopedServer::temporary`].
    ///
    /// # Errors
    /// As there.
    pub fn temporary(
        installation: &Installation,
        parent: impl AsRef<Path>,
        create: &CreateOptions,
        start: &StartOptions,
    ) -> Result<Self> {
        let parent = parent.as_ref();
        wait(crate::ScopedServer::temporary(
            installation,
            parent,
            create,
            start,
        ))?
        .map(Self)
    }

    /// As [`crate::ScopedServer::restart`].
    ///
    /// # Errors
    /// As there.
    pub fn restart(&mut self, mode: StopMode) -> Result<()> {
        wait(self.0.restart(mode))?
    }

    /// As [`crate::ScopedServer::stop`].
    pub fn stop(self, mode: StopMode) {
        self.0.stop(mode);
    }
}
