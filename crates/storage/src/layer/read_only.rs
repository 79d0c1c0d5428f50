//! A storage that refuses to change.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use crate::body::Body;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::storage::Storage;

/// Passes reads on and refuses everything else as unsupported.
#[derive(Debug, Clone)]
pub struct ReadOnly {
    inner: Arc<dyn Storage>,
}

impl ReadOnly {
    /// Protects a storage from whoever gets this one.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner }
    }
}

/// The refusal, also of backends that can't write by nature.
pub(crate) fn refusal(operation: Operation, key: &str) -> Error {
    Error::new(ErrorKind::Unsupported, operation)
        .subject(key)
        .detail("the storage is read-only")
}

/// A refusal for every key that is asked for.
pub(crate) fn refuse_all(keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
    keys.map(|key| key.and_then(|key| Err(refusal(Operation::Delete, key.as_str()))))
        .boxed()
}

#[async_trait]
impl Storage for ReadOnly {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities().read_only()
    }

    async fn probe(&self) -> Result<Capabilities> {
        Ok(self.capabilities())
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    async fn put(&self, key: &Key, _: Body, _: PutOptions) -> Result<ObjectMeta> {
        Err(refusal(Operation::Put, key.as_str()))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        self.inner.get(key, options).await
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(key, ranges, options).await
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
        refuse_all(keys)
    }
}
