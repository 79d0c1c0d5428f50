//! Comfort for callers, the same over every storage.

use std::future::Future;
use std::ops::Range;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};

use crate::body::Body;
use crate::error::{ErrorKind, Result};
use crate::key::Key;
use crate::object::{Head, ObjectMeta, Version};
use crate::options::{GetOptions, GetRange, ListOptions, PutOptions};
use crate::storage::Storage;

/// Shorthands over [`Storage`]. A contract with *users*: implemented once, for every storage.
pub trait StorageExt: Storage {
    /// Puts an object that must not exist yet.
    fn create(
        &self,
        key: &Key,
        body: impl Into<Body> + Send,
    ) -> impl Future<Output = Result<ObjectMeta>> + Send {
        let body = body.into();
        async move { self.put(key, body, PutOptions::create()).await }
    }

    /// Puts an object whatever is there.
    fn overwrite(
        &self,
        key: &Key,
        body: impl Into<Body> + Send,
    ) -> impl Future<Output = Result<ObjectMeta>> + Send {
        let body = body.into();
        async move { self.put(key, body, PutOptions::overwrite()).await }
    }

    /// Puts an object over a known version of itself.
    fn replace(
        &self,
        key: &Key,
        version: &Version,
        body: impl Into<Body> + Send,
    ) -> impl Future<Output = Result<ObjectMeta>> + Send {
        let (body, options) = (body.into(), PutOptions::if_version(version.clone()));
        async move { self.put(key, body, options).await }
    }

    /// Reads a whole object into memory.
    fn read(&self, key: &Key) -> impl Future<Output = Result<Bytes>> + Send {
        async move { self.get(key, GetOptions::new()).await?.bytes().await }
    }

    /// Reads one range into memory; an end beyond the object is moved to its end.
    fn read_range(
        &self,
        key: &Key,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Bytes>> + Send {
        let options = GetOptions::new().range(GetRange::Bounded(range));
        async move { self.get(key, options).await?.bytes().await }
    }

    /// The facts, or `None` if there is no such object. Every other failure stays one.
    fn head_opt(&self, key: &Key) -> impl Future<Output = Result<Option<Head>>> + Send {
        async move {
            match self.head(key).await {
                Ok(head) => Ok(Some(head)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        }
    }

    /// Whether there is such an object.
    fn exists(&self, key: &Key) -> impl Future<Output = Result<bool>> + Send {
        async move { Ok(self.head_opt(key).await?.is_some()) }
    }

    /// Deletes one object; one that is not there is deleted.
    fn delete(&self, key: &Key) -> impl Future<Output = Result<()>> + Send {
        let keys = futures_util::stream::iter([Ok(key.clone())]).boxed();
        async move {
            self.delete_many(keys)
                .try_for_each(|_| async { Ok(()) })
                .await
        }
    }

    /// Collects a whole listing. For listings known to be short.
    fn list_all(&self, prefix: &str) -> impl Future<Output = Result<Vec<ObjectMeta>>> + Send {
        let objects = self.list(ListOptions::prefix(prefix));
        async move { objects.try_collect().await }
    }

    /// Deletes everything below a prefix as it is listed, in bounded memory; returns how many.
    fn delete_prefix(&self, prefix: &str) -> impl Future<Output = Result<u64>> + Send {
        let keys = self
            .list(ListOptions::prefix(prefix))
            .map_ok(|object| object.key)
            .boxed();
        async move {
            self.delete_many(keys)
                .try_fold(0u64, |count, _| async move { Ok(count.saturating_add(1)) })
                .await
        }
    }
}

impl<S: Storage + ?Sized> StorageExt for S {}
