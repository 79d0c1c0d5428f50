//! A storage whose clock is set by hand.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use neon_storage::{
    Body, Capabilities, GetOptions, GetResult, Head, Key, ListOptions, Memory, ObjectMeta,
    PutOptions, Result, Storage, StorageExt,
};

/// Objects in memory, stored at the times that [`advance`](Self::advance) makes.
#[derive(Debug, Clone)]
pub(crate) struct Clocked {
    inner: Memory,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    now: SystemTime,
    stored: HashMap<Key, SystemTime>,
}

impl Clocked {
    pub(crate) fn new() -> Self {
        let state = State {
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            stored: HashMap::new(),
        };
        Self {
            inner: Memory::new(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.state.lock().unwrap().now += by;
    }

    /// Another one with the same objects, at the same time.
    pub(crate) async fn duplicate(&self) -> Self {
        let copy = Self::new();
        for object in self.inner.list_all("").await.unwrap() {
            let bytes = self.inner.read(&object.key).await.unwrap();
            copy.inner.create(&object.key, bytes).await.unwrap();
        }
        {
            let (from, mut to) = (self.state.lock().unwrap(), copy.state.lock().unwrap());
            (to.now, to.stored) = (from.now, from.stored.clone());
        }
        copy
    }

    fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        if let Some(stored) = self.state.lock().unwrap().stored.get(&meta.key) {
            meta.modified = *stored;
        }
        meta
    }
}

// Written out, so that the tests need no macro crate.
impl Storage for Clocked {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn put<'a, 'b, 'c>(
        &'a self,
        key: &'b Key,
        body: Body,
        options: PutOptions,
    ) -> BoxFuture<'c, Result<ObjectMeta>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let meta = self.inner.put(key, body, options).await?;
            {
                let mut state = self.state.lock().unwrap();
                let now = state.now;
                state.stored.insert(key.clone(), now);
            }
            Ok(self.dated(meta))
        })
    }

    fn get<'a, 'b, 'c>(
        &'a self,
        key: &'b Key,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let mut got = self.inner.get(key, options).await?;
            got.meta = self.dated(got.meta);
            Ok(got)
        })
    }

    fn get_ranges<'a, 'b, 'd, 'c>(
        &'a self,
        key: &'b Key,
        ranges: &'d [Range<u64>],
        options: GetOptions,
    ) -> BoxFuture<'c, Result<Vec<Bytes>>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.inner.get_ranges(key, ranges, options)
    }

    fn head<'a, 'b, 'c>(&'a self, key: &'b Key) -> BoxFuture<'c, Result<Head>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let head = self.inner.head(key).await?;
            let now = self.state.lock().unwrap().now;
            Ok(Head::new(self.dated(head.meta), Some(now)))
        })
    }

    fn probe<'a, 'c>(&'a self) -> BoxFuture<'c, Result<Capabilities>>
    where
        'a: 'c,
    {
        self.inner.probe()
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        self.inner
            .list(options)
            .map(move |meta| Ok(this.dated(meta?)))
            .boxed()
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        self.inner.delete_many(keys)
    }
}
