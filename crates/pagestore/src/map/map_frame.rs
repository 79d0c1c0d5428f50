//! A decoded frame of a map.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::map::PageDigest;
use crate::map::block::{BLOCK_MAGIC, Block, MAX_PAGES, decode_block};
use crate::map::index::{INDEX_MAGIC, Index, decode_index};
use crate::map::machine::malformed;

const DIGESTS_MAGIC: &[u8; 4] = b"NMD1";

/// A decoded frame of a map: a record block, an index frame or a digest frame. Cheap to clone; worth
/// keeping, for decoding costs more than looking something up.
#[derive(Debug, Clone)]
pub struct MapFrame(Content);

#[derive(Debug, Clone)]
enum Content {
    Block(Arc<Block>),
    Index(Arc<Index>),
    Digests(Bytes),
}

impl MapFrame {
    /// Decodes the plain bytes of a frame.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) for bytes that no [`RunWriter`](crate::map::RunWriter) makes.
    pub fn decode(bytes: &Bytes) -> Result<Self> {
        let (magic, rest) = bytes
            .split_first_chunk::<4>()
            .ok_or_else(|| malformed("is cut off"))?;
        let content = match magic {
            BLOCK_MAGIC => Content::Block(Arc::new(decode_block(rest)?)),
            INDEX_MAGIC => Content::Index(Arc::new(decode_index(rest)?)),
            DIGESTS_MAGIC => {
                if rest.len() % 16 != 0 || rest.len() / 16 > MAX_PAGES as usize {
                    return Err(malformed("is not made of digests"));
                }
                Content::Digests(bytes.slice(4..))
            }
            _ => return Err(malformed("is not a frame of a page map")),
        };
        Ok(Self(content))
    }

    /// Bytes of memory that it takes, about.
    #[must_use]
    pub fn memory(&self) -> usize {
        match &self.0 {
            Content::Block(block) => block.memory(),
            Content::Index(index) => index.memory(),
            Content::Digests(bytes) => bytes.len() + size_of::<Bytes>(),
        }
    }

    pub(crate) fn block(&self) -> Result<Arc<Block>> {
        match &self.0 {
            Content::Block(block) => Ok(Arc::clone(block)),
            _ => Err(malformed("something else stands where a record block must")),
        }
    }

    pub(crate) fn index(&self) -> Result<Arc<Index>> {
        match &self.0 {
            Content::Index(index) => Ok(Arc::clone(index)),
            _ => Err(malformed("something else stands where an index must")),
        }
    }

    pub(crate) fn digests(&self, pages: u32) -> Result<Bytes> {
        match &self.0 {
            Content::Digests(bytes) if bytes.len() == pages as usize * 16 => Ok(bytes.clone()),
            _ => Err(malformed("something else stands where digests must")),
        }
    }
}

/// The plain bytes of a digest frame.
pub(crate) fn encode_digests(digests: &[PageDigest]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + digests.len() * 16);
    out.extend_from_slice(DIGESTS_MAGIC);
    out.extend(digests.iter().flatten());
    out
}

/// Some of the digests of a digest frame.
pub(crate) fn digests_at(bytes: &Bytes, first: u32, count: u32) -> Result<&[PageDigest]> {
    let (digests, _) = bytes.as_chunks::<16>();
    digests
        .get(first as usize..)
        .and_then(|rest| rest.get(..count as usize))
        .ok_or_else(|| malformed("has too few digests"))
}
