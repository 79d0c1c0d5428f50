//! What a storage says about an object.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;

/// A token that names one state of one object; equal tokens mean equal content.
///
/// Opaque: an ETag on S3 and HTTP, inode with size and time on a file system, a counter in
/// memory. Tokens of different storages don't compare.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(Box<str>);

impl Version {
    /// Wraps a backend's token.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into().into_boxed_str())
    }

    /// The token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Key, size, version and time of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectMeta {
    /// Its name.
    pub key: Key,
    /// Its whole size in bytes, also when only a range was asked for.
    pub size: u64,
    /// Its version, where the backend has versions that are safe to compare.
    pub version: Option<Version>,
    /// When it was stored, by the storage's clock.
    pub modified: SystemTime,
}

impl ObjectMeta {
    /// For implementors of [`crate::Storage`].
    pub fn new(key: Key, size: u64, version: Option<Version>, modified: SystemTime) -> Self {
        Self {
            key,
            size,
            version,
            modified,
        }
    }
}

/// An object's facts together with the storage's own idea of now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Head {
    /// The facts.
    pub meta: ObjectMeta,
    /// What the storage's clock showed when it answered; `None` where it has none to show.
    pub clock: Option<SystemTime>,
}

impl Head {
    /// For implementors of [`crate::Storage`].
    pub fn new(meta: ObjectMeta, clock: Option<SystemTime>) -> Self {
        Self { meta, clock }
    }

    /// How old the object is by the storage's clock; zero if it claims to be from the future.
    pub fn age(&self) -> Option<Duration> {
        self.clock
            .map(|now| now.duration_since(self.meta.modified).unwrap_or_default())
    }
}

/// An object that is being read.
#[non_exhaustive]
pub struct GetResult {
    /// The object's facts; `size` is that of the whole object.
    pub meta: ObjectMeta,
    /// Which bytes the body holds.
    pub range: Range<u64>,
    /// The bytes. Ends with an error if fewer arrive than `range` promises.
    pub body: BoxStream<'static, Result<Bytes>>,
}

impl fmt::Debug for GetResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetResult")
            .field("meta", &self.meta)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl GetResult {
    /// For implementors of [`crate::Storage`]: checks the body against the range, so that a
    /// connection that ends early is an error and never a short object.
    pub fn new(
        meta: ObjectMeta,
        range: Range<u64>,
        body: BoxStream<'static, Result<Bytes>>,
    ) -> Self {
        let body = exact(
            body,
            range.end.saturating_sub(range.start),
            meta.key.clone(),
        );
        Self { meta, range, body }
    }

    /// Reads the body to its end into memory.
    pub async fn bytes(mut self) -> Result<Bytes> {
        let length =
            usize::try_from(self.range.end.saturating_sub(self.range.start)).map_err(|_| {
                Error::new(ErrorKind::Invalid, Operation::Get)
                    .subject(self.meta.key.as_str())
                    .detail("larger than this machine's memory can address")
            })?;
        let Some(first) = self.body.next().await.transpose()? else {
            return Ok(Bytes::new());
        };
        if first.len() == length {
            return match self.body.next().await {
                None => Ok(first),
                Some(more) => more.map(|_| first),
            };
        }
        let mut all = BytesMut::with_capacity(length);
        all.extend_from_slice(&first);
        while let Some(chunk) = self.body.next().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(all.freeze())
    }
}

fn exact(
    body: BoxStream<'static, Result<Bytes>>,
    length: u64,
    key: Key,
) -> BoxStream<'static, Result<Bytes>> {
    futures_util::stream::unfold(Some((body, length, key)), |state| async move {
        let (mut body, left, key) = state?;
        let corrupt = |detail: String| {
            Error::new(ErrorKind::Corrupt, Operation::Get)
                .subject(key.as_str())
                .detail(detail)
                .retry(crate::error::Retry::MayHelp)
        };
        match body.next().await {
            Some(Ok(chunk)) => match left.checked_sub(chunk.len() as u64) {
                Some(left) => Some((Ok(chunk), Some((body, left, key)))),
                None => Some((
                    Err(corrupt("more bytes arrived than announced".into())),
                    None,
                )),
            },
            Some(Err(error)) => Some((Err(error), None)),
            None if left == 0 => None,
            None => Some((
                Err(corrupt(format!("{left} bytes are missing at the end"))),
                None,
            )),
        }
    })
    .boxed()
}
