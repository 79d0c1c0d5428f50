//! The attempts at one operation: pauses between them, and the deadline over all of them.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::time::Instant;

use super::retry::RetryPolicy;
use crate::body::Body;
use crate::error::{Error, ErrorKind, Operation, Result, Retry};

/// A put that sends fewer bytes per second than this counts as hanging.
const SLOWEST: u64 = 128 * 1024;
/// What a backend is thought to hold at most of a stream that it took and has not sent.
const HELD: u64 = 512 * 1024 * 1024;

/// How far the body of a put was taken.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<Taken>>);

#[derive(Debug, Clone, Copy)]
struct Taken {
    at: Instant,
    bytes: u64,
    /// The producer has been asked and owes the next chunk.
    owed: bool,
}

impl Progress {
    pub(super) fn begin() -> Self {
        Self(Arc::new(Mutex::new(Taken {
            at: Instant::now(),
            bytes: 0,
            owed: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn taken(&self, bytes: usize) {
        let mut taken = self.lock();
        taken.at = Instant::now();
        taken.bytes = taken.bytes.saturating_add(bytes as u64);
        taken.owed = false;
    }
}

/// The same body, noting what is taken of it.
pub(super) fn watched(body: Body, progress: Progress) -> Body {
    body.map_stream(move |mut chunks| {
        let progress = progress.clone();
        stream::poll_fn(move |context| {
            let polled = chunks.poll_next_unpin(context);
            match &polled {
                Poll::Pending => progress.lock().owed = true,
                Poll::Ready(Some(Ok(chunk))) => {
                    let room = HELD.saturating_sub(progress.lock().bytes);
                    progress.taken(chunk.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
                }
                Poll::Ready(_) => progress.taken(0),
            }
            polled
        })
        .boxed()
    })
}

/// The attempts of one operation.
pub(super) struct Attempts<'a> {
    policy: &'a RetryPolicy,
    deadline: Instant,
    pause: Duration,
    made: u32,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(policy: &'a RetryPolicy) -> Self {
        Self {
            policy,
            deadline: far(policy.deadline),
            pause: policy.first_pause,
            made: 0,
        }
    }

    /// Runs one attempt under the deadline.
    pub(super) async fn attempt<T>(
        &mut self,
        operation: Operation,
        subject: &str,
        attempt: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.made = self.made.saturating_add(1);
        match tokio::time::timeout_at(self.deadline, attempt).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(ErrorKind::Unavailable, operation)
                .subject(subject)
                .detail(format!("no answer within {:?}", self.policy.deadline))),
        }
    }

    /// Runs one attempt at a put: the deadline runs only while nothing moves.
    pub(super) async fn moving<T>(
        &mut self,
        subject: &str,
        progress: &Progress,
        attempt: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.made = self.made.saturating_add(1);
        let began = Instant::now();
        let patience = self.deadline.saturating_duration_since(began);
        tokio::pin!(attempt);
        loop {
            let seen = *progress.lock();
            let held = Duration::from_secs(seen.bytes / SLOWEST);
            let from = if seen.owed { Instant::now() } else { seen.at };
            let until = later(from, patience.saturating_add(held));
            let result = tokio::select! {
                biased;
                result = &mut attempt => result,
                () = tokio::time::sleep_until(until) => {
                    let now = *progress.lock();
                    if now.owed || now.at != seen.at {
                        continue;
                    }
                    Err(Error::new(ErrorKind::Unavailable, Operation::Put)
                        .subject(subject)
                        .detail(format!("nothing moved for {:?}", self.policy.deadline)))
                }
            };
            // The time in which it moved is given back.
            let moved = progress.lock().at.saturating_duration_since(began);
            self.deadline = later(self.deadline, moved);
            return result;
        }
    }

    /// Pauses before the next attempt, or gives the error back if there will be none.
    pub(super) async fn pause(&mut self, error: Error) -> Result<()> {
        let at_least = match error.retry_hint() {
            Retry::Never => return Err(error),
            Retry::MayHelp => Duration::ZERO,
            Retry::After(pause) => pause,
        };
        let drawn = self.pause.mul_f64(fastrand::f64()).max(at_least);
        self.pause = self.pause.saturating_mul(2).min(self.policy.longest_pause);
        let wake = far(drawn);
        if wake >= self.deadline {
            return Err(error);
        }
        tracing::debug!(
            attempts = self.made,
            pause_ms = drawn.as_millis(),
            kind = ?error.kind(),
            operation = %error.operation(),
            "trying again"
        );
        tokio::time::sleep_until(wake).await;
        Ok(())
    }
}

/// A moment from now, however large the distance is.
fn far(distance: Duration) -> Instant {
    later(Instant::now(), distance)
}

fn later(from: Instant, distance: Duration) -> Instant {
    from.checked_add(distance.min(Duration::from_secs(1 << 30)))
        .unwrap_or(from)
}
