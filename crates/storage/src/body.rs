//! What is put: bytes in memory, a stream of unknown length, or a stream that can be made again.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

/// A stream of chunks. Its error is the producer's own.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// The content of an object to be put.
///
/// Only bytes and replayable bodies can be sent again after a failure, so layers that retry
/// help with those, and pass a plain stream through once.
pub struct Body {
    source: Source,
    length: Option<u64>,
}

enum Source {
    Bytes(Bytes),
    Stream(ByteStream),
    Replay(Arc<dyn Fn() -> ByteStream + Send + Sync>),
}

impl Body {
    /// Content that is in memory already.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            length: u64::try_from(bytes.len()).ok(),
            source: Source::Bytes(bytes),
        }
    }

    /// Content that comes once. Backends never hold it whole.
    pub fn stream(chunks: impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self {
            source: Source::Stream(chunks.boxed()),
            length: None,
        }
    }

    /// Content that can be produced again from its beginning, the same bytes each time.
    pub fn replayable(make: impl Fn() -> ByteStream + Send + Sync + 'static) -> Self {
        Self {
            source: Source::Replay(Arc::new(make)),
            length: None,
        }
    }

    /// States the length in bytes. A body that turns out shorter or longer is not stored.
    #[must_use]
    pub fn with_length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    /// The length, where it is known before the last byte.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The bytes, if they are in memory.
    pub fn as_bytes(&self) -> Option<&Bytes> {
        match &self.source {
            Source::Bytes(bytes) => Some(bytes),
            Source::Stream(_) | Source::Replay(_) => None,
        }
    }

    /// A second body with the same content, unless it is a stream that comes once.
    pub fn try_clone(&self) -> Option<Self> {
        let source = match &self.source {
            Source::Bytes(bytes) => Source::Bytes(bytes.clone()),
            Source::Replay(make) => Source::Replay(Arc::clone(make)),
            Source::Stream(_) => return None,
        };
        Some(Self {
            source,
            length: self.length,
        })
    }

    /// The content as chunks, checked against the stated length.
    pub fn into_stream(self) -> ByteStream {
        let chunks = match self.source {
            Source::Bytes(bytes) => return stream::iter([Ok(bytes)]).boxed(),
            Source::Stream(chunks) => chunks,
            Source::Replay(make) => make(),
        };
        match self.length {
            None => chunks,
            Some(length) => measured(chunks, length),
        }
    }

    /// Wraps each chunk as it passes, keeping length and replayability.
    #[must_use]
    pub(crate) fn map_stream(
        self,
        wrap: impl Fn(ByteStream) -> ByteStream + Send + Sync + 'static,
    ) -> Self {
        let length = self.length;
        let source = match self.source {
            Source::Stream(chunks) => Source::Stream(wrap(chunks)),
            Source::Bytes(bytes) => Source::Replay(Arc::new(move || {
                wrap(stream::iter([Ok(bytes.clone())]).boxed())
            })),
            Source::Replay(make) => Source::Replay(Arc::new(move || wrap(make()))),
        };
        Self { source, length }
    }
}

/// Ends with an error unless exactly `length` bytes pass.
fn measured(chunks: ByteStream, length: u64) -> ByteStream {
    stream::unfold(Some((chunks, 0u64)), move |state| async move {
        let (mut chunks, seen) = state?;
        match chunks.next().await {
            Some(Ok(chunk)) => {
                let seen = seen.saturating_add(chunk.len() as u64);
                if seen > length {
                    let error = io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("the body is longer than the stated {length} bytes"),
                    );
                    return Some((Err(error), None));
                }
                Some((Ok(chunk), Some((chunks, seen))))
            }
            Some(Err(error)) => Some((Err(error), None)),
            None if seen == length => None,
            None => {
                let error = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the body ended after {seen} of the stated {length} bytes"),
                );
                Some((Err(error), None))
            }
        }
    })
    .boxed()
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Source::Bytes(_) => "bytes",
            Source::Stream(_) => "stream",
            Source::Replay(_) => "replayable",
        };
        f.debug_struct("Body")
            .field("source", &source)
            .field("length", &self.length)
            .finish()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::bytes(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::bytes(bytes)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::bytes(Bytes::from_static(text.as_bytes()))
    }
}
