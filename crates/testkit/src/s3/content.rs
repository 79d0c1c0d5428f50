//! The bytes of an object, in memory or spooled to disk.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use s3s::crypto::{Checksum, Md5};

/// More than this goes to disk.
const IN_MEMORY: usize = 1024 * 1024;
/// How much is read back at a time.
const CHUNK: u64 = 256 * 1024;

/// Bytes as they were uploaded.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Memory(Bytes),
    Spooled(Arc<File>, u64),
    Parts(Vec<Self>),
}

impl Content {
    /// Takes a body in; returns it with its MD5 digest.
    pub(super) async fn receive<E: std::error::Error + Send + Sync + 'static>(
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> io::Result<(Self, [u8; 16])> {
        let (mut memory, mut digest) = (BytesMut::new(), Md5::new());
        let mut spool: Option<(File, u64)> = None;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(io::Error::other)?;
            digest.update(&chunk);
            match &mut spool {
                Some((file, length)) => {
                    file.write_all(&chunk)?;
                    *length += chunk.len() as u64;
                }
                None => memory.extend_from_slice(&chunk),
            }
            if spool.is_none() && memory.len() > IN_MEMORY {
                let mut file = tempfile::tempfile()?;
                file.write_all(&memory)?;
                spool = Some((file, memory.len() as u64));
                memory = BytesMut::new();
            }
        }
        let content = match spool {
            Some((file, length)) => Self::Spooled(Arc::new(file), length),
            None => Self::Memory(memory.freeze()),
        };
        Ok((content, digest.finalize()))
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spooled(_, length) => *length,
            Self::Parts(parts) => parts.iter().map(Self::len).sum(),
        }
    }

    /// The bytes of a range, read as they are asked for.
    pub(super) fn chunks(
        &self,
        range: Range<u64>,
    ) -> Box<dyn Iterator<Item = io::Result<Bytes>> + Send + Sync> {
        match self {
            Self::Memory(bytes) => {
                let range =
                    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                Box::new(std::iter::once(Ok(bytes.slice(range))))
            }
            Self::Spooled(file, _) => {
                let (file, mut at, end) = (Arc::clone(file), range.start, range.end);
                Box::new(std::iter::from_fn(move || {
                    let length = CHUNK.min(end - at);
                    if length == 0 {
                        return None;
                    }
                    let mut chunk = BytesMut::zeroed(usize::try_from(length).unwrap());
                    let read = file.read_exact_at(&mut chunk, at);
                    at += length;
                    Some(read.map(|()| chunk.freeze()))
                }))
            }
            Self::Parts(parts) => {
                let mut begin = 0;
                let mut pieces = Vec::new();
                for part in parts {
                    let end = begin + part.len();
                    let (from, to) = (range.start.max(begin), range.end.min(end));
                    if from < to {
                        pieces.push((part.clone(), from - begin..to - begin));
                    }
                    begin = end;
                }
                Box::new(
                    pieces
                        .into_iter()
                        .flat_map(|(part, range)| part.chunks(range)),
                )
            }
        }
    }
}

/// A digest as it stands in an entity tag.
pub(super) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A digest as it stands in `Content-MD5`.
pub(super) fn base64(digest: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in digest.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = usize::try_from(bits >> (18 - 6 * place) & 63).unwrap();
            let pad = place > chunk.len();
            text.push(if pad {
                '='
            } else {
                char::from(ALPHABET[index])
            });
        }
    }
    text
}
