//! Work that holds a thread: done beside the runtime, told to stop when somebody wants that or nobody waits any more.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::neon::Neon;
use crate::record::Lock;

/// How often progress is told, and whether to stop is asked.
const TICK: Duration = Duration::from_millis(250);

/// Runs `work` in a thread that may wait, and calls `tick` now and then meanwhile. What is given to `work` is set when it
/// shall stop.
///
/// Dropped: the work is told to stop and does so soon, by itself. Until then it holds `lock`, so that whoever comes next
/// works after it.
pub(crate) async fn run<T: Send + 'static>(
    neon: &Neon,
    subject: &str,
    lock: PathBuf,
    mut tick: impl FnMut(),
    work: impl FnOnce(Arc<AtomicBool>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stop = StopOnDrop(Arc::default());
    let told = Arc::clone(&stop.0);
    let mut task = tokio::task::spawn_blocking(move || {
        let _lock = Lock::wait(&lock)?;
        work(told)
    });
    loop {
        match tokio::time::timeout(TICK, &mut task).await {
            Ok(done) => {
                return done.map_err(|error| {
                    Error::new(ErrorKind::Failed, subject, "broke off").caused_by(error)
                })?;
            }
            Err(_) => {
                if neon.go_on().is_err() {
                    stop.0.store(true, Ordering::Relaxed);
                }
                tick();
            }
        }
    }
}

/// Runs in a thread that may wait.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(
            Error::new(ErrorKind::Failed, "a thread", "did not come to its end").caused_by(error),
        ),
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
