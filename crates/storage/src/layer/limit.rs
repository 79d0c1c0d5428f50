//! At most so many requests at once.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::body::Body;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::storage::Storage;

/// Limits the requests in flight. Clones share the limit.
///
/// A get counts until its body is read to the end or dropped, so a task that holds as many bodies
/// as there are places waits for itself. Listings and deletes count while they fetch their next
/// answers, not between.
#[derive(Debug, Clone)]
pub struct Limit {
    inner: Arc<dyn Storage>,
    places: Arc<Semaphore>,
}

impl Limit {
    /// At most `places` requests at once; at least one.
    pub fn new(inner: Arc<dyn Storage>, places: usize) -> Self {
        let places = places.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            inner,
            places: Arc::new(Semaphore::new(places)),
        }
    }

    async fn enter(&self, operation: Operation) -> Result<OwnedSemaphorePermit> {
        enter(&self.places, operation).await
    }

    fn each<T: Send + 'static>(
        &self,
        operation: Operation,
        answers: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let places = Arc::clone(&self.places);
        stream::unfold(answers, move |mut answers| {
            let places = Arc::clone(&places);
            async move {
                let answer = match enter(&places, operation).await {
                    Ok(_place) => answers.next().await?,
                    Err(error) => Err(error),
                };
                Some((answer, answers))
            }
        })
        .boxed()
    }
}

async fn enter(places: &Arc<Semaphore>, operation: Operation) -> Result<OwnedSemaphorePermit> {
    // The semaphore is never closed; should it be, nobody hangs.
    Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(|error| Error::new(ErrorKind::Unavailable, operation).because(error))
}

#[async_trait]
impl Storage for Limit {
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
        let _place = self.enter(Operation::Put).await?;
        self.inner.put(key, body, options).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let place = self.enter(Operation::Get).await?;
        let mut got = self.inner.get(key, options).await?;
        got.body = stream::unfold(Some((got.body, place)), |state| async move {
            let (mut body, place) = state?;
            let chunk = body.next().await?;
            Some((chunk, Some((body, place))))
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
        let _place = self.enter(Operation::Get).await?;
        self.inner.get_ranges(key, ranges, options).await
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        let _place = self.enter(Operation::Head).await?;
        self.inner.head(key).await
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.each(Operation::List, self.inner.list(options))
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        // The keys may come from a listing through this very layer, so no place is held while
        // they are awaited: they are gathered first, then deleted under one place.
        let this = self.clone();
        keys.ready_chunks(1000)
            .then(move |batch| {
                let this = this.clone();
                async move {
                    let answers = match this.enter(Operation::Delete).await {
                        Ok(_place) => {
                            this.inner
                                .delete_many(stream::iter(batch).boxed())
                                .collect()
                                .await
                        }
                        Err(error) => vec![Err(error)],
                    };
                    stream::iter(answers)
                }
            })
            .flatten()
            .boxed()
    }
}
