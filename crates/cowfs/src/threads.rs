//! Work that several threads take piece by piece.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Does every piece, in this thread and `threads - 1` others. The first error of any thread ends all.
pub(crate) fn each<W: Sync>(
    work: &[W],
    threads: usize,
    body: impl Fn(&W) -> Result<()> + Sync,
) -> Result<()> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = || {
        while !stop.load(Ordering::Relaxed)
            && let Some(piece) = work.get(next.fetch_add(1, Ordering::Relaxed))
        {
            body(piece).inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(work.len()).max(1))
            .map(|_| scope.spawn(run))
            .collect();
        let mut outcome = run();
        for other in others {
            let panicked = || Error::new(ErrorKind::Io, "a cloning thread", "panicked");
            outcome = outcome.and(other.join().unwrap_or_else(|_| Err(panicked())));
        }
        outcome
    })
}
