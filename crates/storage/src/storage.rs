//! The seam between programs and places: a small trait that backends and layers implement.
//!
//! There are no default methods. A layer that forgot to pass one on would change behaviour in
//! silence; here it doesn't compile. Comfort lives in [`crate::StorageExt`].

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::body::Body;
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};

/// A place for immutable objects under keys. A contract with *implementors*; the suite in
/// `contract` (feature `testing`) states it as code.
///
/// Every future and stream may be dropped at any point. What was put then either exists whole or
/// not at all; remains that no listing shows (a temporary file, an unfinished upload) are removed
/// or expire as each backend documents.
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// What it is known to do. Sends nothing, so what only the storage itself can tell is not
    /// claimed before it was asked: see [`Self::probe`].
    fn capabilities(&self) -> Capabilities;

    /// The same after asking the storage for what its kind alone doesn't tell, such as whether an
    /// S3-compatible enforces conditional writes. Asked once and remembered; may write and delete
    /// a few tiny objects, unless the storage can't write.
    ///
    /// Dropped: what it wrote is deleted all the same, as long as the runtime lives.
    async fn probe(&self) -> Result<Capabilities>;

    /// Where it is, for people: a locator without secrets.
    fn location(&self) -> String;

    /// Stores an object; when it returns, the object is as durable as the capabilities say.
    ///
    /// The body may be of unknown length and is never held whole. If it fails, or its length is
    /// not the stated one, nothing is stored. Returns the facts of the object.
    ///
    /// Dropped: the object exists whole or not at all.
    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectMeta>;

    /// Opens an object for reading. The body belongs to one version of it, whatever happens to
    /// the key meanwhile, or ends with an error.
    ///
    /// Dropped, also with the body half read: nothing remains.
    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult>;

    /// Reads several ranges, all of one version, each wholly inside the object. The answers come
    /// in the order of the ranges. `options.range` must be absent.
    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>>;

    /// An object's size, version and time, with the storage's own clock beside it.
    async fn head(&self, key: &Key) -> Result<Head>;

    /// Objects in the byte order of their keys, in bounded memory. An object that exists during
    /// the whole listing is listed once; one that comes or goes meanwhile may be.
    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>>;

    /// Deletes objects as their keys arrive, many in one request where the storage can. Each key
    /// comes back once, in any order, as deleted or as an error that names it; an object that is
    /// not there is deleted. An error from `keys` is passed on and ends nothing.
    ///
    /// Dropped: keys not yet given back may be deleted or not.
    fn delete_many(&self, keys: BoxStream<'static, Result<Key>>)
    -> BoxStream<'static, Result<Key>>;
}
