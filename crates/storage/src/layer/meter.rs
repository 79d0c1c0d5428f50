//! Tells a callback what every operation cost.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};

use crate::body::Body;
use crate::capabilities::Capabilities;
use crate::error::{ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::storage::Storage;

/// One operation that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Which verb.
    pub operation: Operation,
    /// Bytes of bodies sent.
    pub sent: u64,
    /// Bytes of bodies received.
    pub received: u64,
    /// Objects listed or deleted; one for the other verbs.
    pub objects: u64,
    /// From the call to its last byte or answer.
    pub elapsed: Duration,
    /// What it came to.
    pub outcome: EventOutcome,
}

/// How a metered operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventOutcome {
    /// It did what was asked.
    Done,
    /// It failed.
    Failed(ErrorKind),
    /// Its caller went away before the end.
    Dropped,
}

/// Calls back once per operation, when it has ended, failed or been dropped.
///
/// The callback runs on the task of the operation and must not block.
#[derive(Clone)]
pub struct Meter {
    inner: Arc<dyn Storage>,
    callback: Callback,
}

type Callback = Arc<dyn Fn(&Event) + Send + Sync>;

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Meter {
    /// Meters a storage.
    pub fn new(inner: Arc<dyn Storage>, callback: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self {
            inner,
            callback: Arc::new(callback),
        }
    }

    fn begin(&self, operation: Operation) -> Reading {
        Reading {
            callback: Arc::clone(&self.callback),
            began: Instant::now(),
            sent: Arc::new(AtomicU64::new(0)),
            event: Event {
                operation,
                sent: 0,
                received: 0,
                objects: 0,
                elapsed: Duration::ZERO,
                outcome: EventOutcome::Dropped,
            },
        }
    }
}

/// An operation under way; reports when it goes.
struct Reading {
    callback: Callback,
    began: Instant,
    sent: Arc<AtomicU64>,
    event: Event,
}

impl Reading {
    fn end<T>(&mut self, result: &Result<T>) {
        self.event.outcome = match result {
            Ok(_) => EventOutcome::Done,
            Err(error) => EventOutcome::Failed(error.kind()),
        };
        if result.is_ok() {
            self.event.objects = self.event.objects.saturating_add(1);
        }
    }

    fn received(&mut self, bytes: usize) {
        self.event.received = self.event.received.saturating_add(bytes as u64);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.event.sent = self.sent.load(Ordering::Relaxed);
        self.event.elapsed = self.began.elapsed();
        (self.callback)(&self.event);
    }
}

/// Counts the answers of a stream; its end is the end of the operation.
fn counted<T: Send + 'static>(
    reading: Reading,
    answers: BoxStream<'static, Result<T>>,
) -> BoxStream<'static, Result<T>> {
    futures_util::stream::unfold((reading, answers, None), |state| async move {
        let (mut reading, mut answers, mut failed) = state;
        match answers.next().await {
            Some(Ok(answer)) => {
                reading.event.objects = reading.event.objects.saturating_add(1);
                Some((Ok(answer), (reading, answers, failed)))
            }
            Some(Err(error)) => {
                failed = Some(error.kind());
                // What fails last and is then dropped has failed.
                reading.event.outcome = EventOutcome::Failed(error.kind());
                Some((Err(error), (reading, answers, failed)))
            }
            None => {
                reading.event.outcome = failed.map_or(EventOutcome::Done, EventOutcome::Failed);
                None
            }
        }
    })
    .boxed()
}

#[async_trait]
impl Storage for Meter {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn probe(&self) -> Result<Capabilities> {
        self.inner.probe().await
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectMeta> {
        let mut reading = self.begin(Operation::Put);
        let body = if body.as_bytes().is_some() {
            reading
                .sent
                .store(body.length().unwrap_or_default(), Ordering::Relaxed);
            body
        } else {
            let sent = Arc::clone(&reading.sent);
            body.map_stream(move |chunks| {
                let sent = Arc::clone(&sent);
                chunks
                    .inspect_ok(move |chunk| {
                        sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    })
                    .boxed()
            })
        };
        let result = self.inner.put(key, body, options).await;
        reading.end(&result);
        result
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let mut reading = self.begin(Operation::Get);
        let result = self.inner.get(key, options).await;
        let mut got = match result {
            Ok(got) => got,
            failed => {
                reading.end(&failed);
                return failed;
            }
        };
        let left = got.range.end.saturating_sub(got.range.start);
        if left == 0 {
            reading.end(&Ok(()));
        }
        let state = (reading, got.body, left);
        got.body =
            futures_util::stream::unfold(state, |(mut reading, mut body, left)| async move {
                let chunk = body.next().await?;
                let mut left = left;
                match &chunk {
                    Ok(bytes) => {
                        reading.received(bytes.len());
                        left = left.saturating_sub(bytes.len() as u64);
                        if left == 0 {
                            reading.end(&Ok(()));
                        }
                    }
                    Err(error) => reading.event.outcome = EventOutcome::Failed(error.kind()),
                }
                Some((chunk, (reading, body, left)))
            })
            .boxed();
        Ok(got)
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        let mut reading = self.begin(Operation::Get);
        let result = self.inner.get_ranges(key, ranges, options).await;
        if let Ok(answers) = &result {
            answers
                .iter()
                .for_each(|bytes| reading.received(bytes.len()));
        }
        reading.end(&result);
        result
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        let mut reading = self.begin(Operation::Head);
        let result = self.inner.head(key).await;
        reading.end(&result);
        result
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        counted(self.begin(Operation::List), self.inner.list(options))
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        counted(self.begin(Operation::Delete), self.inner.delete_many(keys))
    }
}
