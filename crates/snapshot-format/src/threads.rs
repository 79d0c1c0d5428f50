//! Work that several threads take piece by piece, in order.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Pieces of work, each given out once. The first error of any thread ends all.
#[derive(Debug)]
pub(crate) struct Queue<W> {
    work: Vec<W>,
    next: AtomicUsize,
    stop: AtomicBool,
}

impl<W: Sync> Queue<W> {
    pub(crate) fn new(work: Vec<W>) -> Self {
        Self {
            work,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        }
    }

    /// The next piece, until there is none or a thread has failed.
    pub(crate) fn next(&self) -> Option<&W> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.work.get(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs `body`, which takes pieces, in this thread and `threads - 1` others; returns what each made.
    pub(crate) fn run<T: Send>(
        &self,
        threads: usize,
        body: impl Fn() -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let made = Mutex::new(Vec::new());
        let run = || {
            let outcome = body();
            if outcome.is_err() {
                self.stop.store(true, Ordering::Relaxed);
            }
            let outcome = outcome?;
            made.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(outcome);
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(run)).collect();
            let mut outcome = run();
            for other in others {
                let other = other.join().unwrap_or_else(|_| {
                    Err(Error::new(
                        ErrorKind::Inconsistent,
                        "a copying thread",
                        "panicked",
                    ))
                });
                outcome = outcome.and(other);
            }
            outcome
        })?;
        Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}
