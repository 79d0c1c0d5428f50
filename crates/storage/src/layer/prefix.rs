//! A storage below a prefix of another: keys get shorter on the way out and longer on the way in.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};

use crate::body::Body;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::storage::Storage;

/// Everything below one prefix.
#[derive(Debug, Clone)]
pub struct Prefix {
    inner: Arc<dyn Storage>,
    prefix: Key,
}

impl Prefix {
    /// The objects of `inner` whose keys begin with `prefix` and a slash.
    pub fn new(inner: Arc<dyn Storage>, prefix: Key) -> Self {
        Self { inner, prefix }
    }

    fn outer(&self, operation: Operation, key: &Key) -> Result<Key> {
        self.prefix.join(key.as_str()).map_err(|error| {
            Error::new(ErrorKind::Invalid, operation)
                .subject(key.as_str())
                .because(error)
        })
    }
}

/// The key as the caller of the layer knows it; `None` for what is not below the prefix.
fn inner_key(prefix: &Key, key: &Key) -> Option<Key> {
    let rest = key
        .as_str()
        .strip_prefix(prefix.as_str())?
        .strip_prefix('/')?;
    Key::new(rest).ok()
}

fn rename(prefix: &Key, mut meta: ObjectMeta) -> ObjectMeta {
    if let Some(key) = inner_key(prefix, &meta.key) {
        meta.key = key;
    }
    meta
}

/// An error names the key as its caller knows it.
fn rename_error(prefix: &Key, error: Error) -> Error {
    let short = error
        .key()
        .and_then(|key| key.strip_prefix(prefix.as_str())?.strip_prefix('/'))
        .map(str::to_owned);
    match short {
        Some(short) => error.subject(short),
        None => error,
    }
}

#[async_trait]
impl Storage for Prefix {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn probe(&self) -> Result<Capabilities> {
        self.inner.probe().await
    }

    fn location(&self) -> String {
        // Options come after the path of a locator.
        let inner = self.inner.location();
        let (path, options) = match inner.split_once('?') {
            Some((path, options)) => (path, format!("?{options}")),
            None => (inner.as_str(), String::new()),
        };
        format!("{}/{}{options}", path.trim_end_matches('/'), self.prefix)
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectMeta> {
        let outer = self.outer(Operation::Put, key)?;
        match self.inner.put(&outer, body, options).await {
            Ok(meta) => Ok(rename(&self.prefix, meta)),
            Err(error) => Err(rename_error(&self.prefix, error)),
        }
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let outer = self.outer(Operation::Get, key)?;
        let prefix = self.prefix.clone();
        let got = self.inner.get(&outer, options).await;
        let mut got = got.map_err(|error| rename_error(&prefix, error))?;
        got.meta = rename(&prefix, got.meta);
        got.body = got
            .body
            .map_err(move |error| rename_error(&prefix, error))
            .boxed();
        Ok(got)
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        let outer = self.outer(Operation::Get, key)?;
        let got = self.inner.get_ranges(&outer, ranges, options).await;
        got.map_err(|error| rename_error(&self.prefix, error))
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        let outer = self.outer(Operation::Head, key)?;
        match self.inner.head(&outer).await {
            Ok(head) => Ok(Head {
                meta: rename(&self.prefix, head.meta),
                clock: head.clock,
            }),
            Err(error) => Err(rename_error(&self.prefix, error)),
        }
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let outer = ListOptions {
            prefix: format!("{}/{}", self.prefix, options.prefix),
            after: options
                .after
                .map(|after| format!("{}/{after}", self.prefix)),
        };
        let prefix = self.prefix.clone();
        self.inner
            .list(outer)
            .map(move |object| match object {
                Ok(meta) => Ok(rename(&prefix, meta)),
                Err(error) => Err(rename_error(&prefix, error)),
            })
            .boxed()
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let (this, prefix) = (self.clone(), self.prefix.clone());
        let outer = keys
            .map(move |key| key.and_then(|key| this.outer(Operation::Delete, &key)))
            .boxed();
        self.inner
            .delete_many(outer)
            .map(move |key| match key {
                Ok(key) => Ok(inner_key(&prefix, &key).unwrap_or(key)),
                Err(error) => Err(rename_error(&prefix, error)),
            })
            .boxed()
    }
}
