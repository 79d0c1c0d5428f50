//! SIGINT and SIGTERM.
//!
//! The first asks the library to stop, which it does at the next step, taking back what it began. The second, or ten
//! seconds without an end, drops what runs, as does the first while somebody is asked something: by contract the next
//! command settles what that leaves.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::asking;
use crate::failure::{Failure, INTERRUPTED, Outcome, TERMINATED};
use crate::progress::Progress;

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs this until it ends or signals end it.
pub(crate) async fn until_stopped<T>(
    cancel: &AtomicBool,
    progress: &Progress,
    work: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    let listen = |kind| signal(kind).map_err(|error| Failure::io("signals", &error));
    let mut interrupts = listen(SignalKind::interrupt())?;
    let mut terminations = listen(SignalKind::terminate())?;
    let mut work = std::pin::pin!(work);
    let code = tokio::select! {
        outcome = &mut work => return outcome,
        _ = interrupts.recv() => INTERRUPTED,
        _ = terminations.recv() => TERMINATED,
    };
    cancel.store(true, Ordering::SeqCst);
    if asking::is_asked() {
        return Err(Failure::stopped(code));
    }
    progress.plan("Stopping. Once more to stop at once.");
    tokio::select! {
        outcome = &mut work => match outcome {
            // It was done before it could be stopped.
            Ok(done) => Ok(done),
            // It only showed what goes on elsewhere.
            Err(Failure::Silent { .. }) => Err(Failure::Silent { exit: code }),
            Err(_) => Err(Failure::stopped(code)),
        },
        _ = interrupts.recv() => Err(Failure::stopped(code)),
        _ = terminations.recv() => Err(Failure::stopped(code)),
        () = tokio::time::sleep(PATIENCE) => Err(Failure::stopped(code)),
    }
}
