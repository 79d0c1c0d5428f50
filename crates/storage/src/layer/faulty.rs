//! Storages that misbehave on purpose (feature `testing`): for tests of what callers make of it.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};

use crate::body::Body;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::storage::Storage;

/// What happens to a call instead of, before or after what should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It fails with this kind and does nothing.
    Fail(ErrorKind),
    /// It fails with this kind after it did everything: the answer is lost.
    LoseAnswer(ErrorKind),
    /// It takes so much longer.
    Delay(Duration),
    /// It never ends.
    Hang,
    /// A read ends in the middle and says nothing; the storage announces the whole.
    Truncate,
    /// A read ends in the middle with this kind of error.
    Break(ErrorKind),
    /// A listing leaves out the last object it should show.
    Stale,
}

/// Asks a plan at every call what should go wrong with it.
#[derive(Clone)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    calls: Arc<AtomicU64>,
    plan: Plan,
}

type Plan = Arc<dyn Fn(u64, Operation, Option<&Key>) -> Option<Fault> + Send + Sync>;

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Faulty {
    /// Faults by plan: it is given the number of the call from zero, its verb and its key.
    pub fn planned(
        inner: Arc<dyn Storage>,
        plan: impl Fn(u64, Operation, Option<&Key>) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner,
            calls: Arc::new(AtomicU64::new(0)),
            plan: Arc::new(plan),
        }
    }

    /// The n-th call from zero, of whatever verb, has this fault.
    pub fn nth(inner: Arc<dyn Storage>, n: u64, fault: Fault) -> Self {
        Self::planned(inner, move |call, _, _| (call == n).then_some(fault))
    }

    /// Every call takes so much longer.
    pub fn slow(inner: Arc<dyn Storage>, delay: Duration) -> Self {
        Self::planned(inner, move |_, _, _| Some(Fault::Delay(delay)))
    }

    /// Every call of one verb hangs.
    pub fn hanging(inner: Arc<dyn Storage>, verb: Operation) -> Self {
        Self::planned(inner, move |_, operation, _| {
            (operation == verb).then_some(Fault::Hang)
        })
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn fault(&self, operation: Operation, key: Option<&Key>) -> Option<Fault> {
        (self.plan)(self.calls.fetch_add(1, Ordering::SeqCst), operation, key)
    }

    async fn around<T>(
        &self,
        operation: Operation,
        key: &Key,
        call: impl Future<Output = Result<T>>,
    ) -> (Option<Fault>, Result<T>) {
        let fault = self.fault(operation, Some(key));
        let result = match fault {
            Some(Fault::Fail(kind)) => Err(injected(kind, operation, key)),
            Some(Fault::LoseAnswer(kind)) => match call.await {
                Ok(_) => Err(injected(kind, operation, key)),
                failed => failed,
            },
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                call.await
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Truncate | Fault::Break(_) | Fault::Stale) | None => call.await,
        };
        (fault, result)
    }
}

fn injected(kind: ErrorKind, operation: Operation, key: &Key) -> Error {
    Error::new(kind, operation)
        .subject(key.as_str())
        .detail("injected")
}

#[async_trait]
impl Storage for Faulty {
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
        self.around(Operation::Put, key, self.inner.put(key, body, options))
            .await
            .1
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let (fault, got) = self
            .around(Operation::Get, key, self.inner.get(key, options))
            .await;
        let mut got = got?;
        let half = got.range.end.saturating_sub(got.range.start) / 2;
        let ending = match fault {
            Some(Fault::Truncate) => None,
            Some(Fault::Break(kind)) => Some(injected(kind, Operation::Get, key)),
            _ => return Ok(got),
        };
        let whole = got.body;
        got.body = stream::unfold((whole, half), |(mut whole, left)| async move {
            if left == 0 {
                return None;
            }
            let chunk = whole.next().await?.map(|mut chunk| {
                chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                chunk
            });
            let left = left.saturating_sub(chunk.as_ref().map_or(0, Bytes::len) as u64);
            Some((chunk, (whole, left)))
        })
        .chain(stream::iter(ending.map(Err)))
        .boxed();
        // A backend built as it should be reports the missing bytes; this one may not.
        Ok(GetResult::new(got.meta, got.range, got.body))
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        let call = self.inner.get_ranges(key, ranges, options);
        self.around(Operation::Get, key, call).await.1
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        self.around(Operation::Head, key, self.inner.head(key))
            .await
            .1
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = self.inner.list(options);
        let broken = |kind| Error::new(kind, Operation::List).detail("injected");
        match self.fault(Operation::List, None) {
            None | Some(Fault::Truncate) => listing,
            Some(Fault::Fail(kind)) => stream::iter([Err(broken(kind))]).boxed(),
            Some(Fault::Break(kind) | Fault::LoseAnswer(kind)) => {
                // After the first few, so that a listing has something to go on from.
                listing
                    .take(3)
                    .chain(stream::iter([Err(broken(kind))]))
                    .boxed()
            }
            Some(Fault::Hang) => stream::pending().boxed(),
            Some(Fault::Delay(delay)) => stream::once(tokio::time::sleep(delay))
                .flat_map(|()| stream::empty())
                .chain(listing)
                .boxed(),
            Some(Fault::Stale) => stream::unfold((listing, None), |(mut listing, held)| async {
                let held = match held {
                    None => listing.try_next().await.transpose()?,
                    Some(held) => held,
                };
                let next = listing.try_next().await.transpose()?;
                Some((held, (listing, Some(next))))
            })
            .boxed(),
        }
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let failed = |kind: ErrorKind| {
            move |key: Result<Key>| key.and_then(|key| Err(injected(kind, Operation::Delete, &key)))
        };
        match self.fault(Operation::Delete, None) {
            Some(Fault::Fail(kind)) => keys.map(failed(kind)).boxed(),
            Some(Fault::LoseAnswer(kind) | Fault::Break(kind)) => {
                self.inner.delete_many(keys).map(failed(kind)).boxed()
            }
            Some(Fault::Hang) => stream::pending().boxed(),
            Some(Fault::Delay(delay)) => stream::once(tokio::time::sleep(delay))
                .flat_map(|()| stream::empty())
                .chain(self.inner.delete_many(keys))
                .boxed(),
            Some(Fault::Truncate | Fault::Stale) | None => self.inner.delete_many(keys),
        }
    }
}
