//! At most so many bytes per second, each way.
//!
//! Each direction keeps the moment at which all bytes so far would have passed at the allowed
//! rate. A chunk moves that moment on and then waits for it, so errors don't add up however large
//! or small the chunks are, and however many transfers share the limit.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use tokio::time::Instant;

use crate::body::{Body, ByteStream};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::storage::Storage;

/// Larger chunks are cut, so that the flow is even.
const CHUNK: usize = 64 * 1024;

/// Limits bytes per second. Clones share the limit.
#[derive(Debug, Clone)]
pub struct RateLimit {
    inner: Arc<dyn Storage>,
    up: Option<Arc<Lane>>,
    down: Option<Arc<Lane>>,
}

/// One direction.
struct Lane {
    per_second: u64,
    passed: Mutex<Option<Instant>>,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes/s", self.per_second)
    }
}

impl Lane {
    async fn pass(&self, bytes: usize) {
        let nanos = (bytes as u128).saturating_mul(1_000_000_000) / u128::from(self.per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let until = {
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // Time in which nothing passed is not saved up.
            let from = passed.map_or(now, |at| at.max(now));
            let until = from.checked_add(cost).unwrap_or(from);
            *passed = Some(until);
            until
        };
        tokio::time::sleep_until(until).await;
    }
}

impl RateLimit {
    /// Limits puts to `up` and reads to `down` bytes per second; `None` or zero is no limit.
    pub fn new(inner: Arc<dyn Storage>, up: Option<u64>, down: Option<u64>) -> Self {
        let lane = |limit: Option<u64>| {
            limit.filter(|limit| *limit > 0).map(|per_second| {
                Arc::new(Lane {
                    per_second,
                    passed: Mutex::new(None),
                })
            })
        };
        Self {
            inner,
            up: lane(up),
            down: lane(down),
        }
    }
}

/// Passes chunks on as the limit allows, cut to even pieces.
fn throttled<E: Send + 'static>(
    chunks: BoxStream<'static, Result<Bytes, E>>,
    lane: Arc<Lane>,
) -> BoxStream<'static, Result<Bytes, E>> {
    chunks
        .map_ok(|mut rest| {
            stream::iter(std::iter::from_fn(move || {
                (!rest.is_empty()).then(|| Ok(rest.split_to(CHUNK.min(rest.len()))))
            }))
        })
        .try_flatten()
        .and_then(move |piece: Bytes| {
            let lane = Arc::clone(&lane);
            async move {
                lane.pass(piece.len()).await;
                Ok(piece)
            }
        })
        .boxed()
}

#[async_trait]
impl Storage for RateLimit {
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
        let body = match self.up.clone() {
            Some(up) => {
                body.map_stream(move |chunks: ByteStream| throttled(chunks, Arc::clone(&up)))
            }
            None => body,
        };
        self.inner.put(key, body, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let mut got = self.inner.get(key, options).await?;
        if let Some(down) = self.down.clone() {
            got.body = throttled(got.body, down);
        }
        Ok(got)
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        let got = self.inner.get_ranges(key, ranges, options).await?;
        if let Some(down) = &self.down {
            down.pass(got.iter().map(Bytes::len).sum()).await;
        }
        Ok(got)
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        self.inner.head(key).await
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(options)
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        self.inner.delete_many(keys)
    }
}
