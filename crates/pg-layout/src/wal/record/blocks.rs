//! The blocks a record refers to, with their images and data.

use std::fmt;

use super::items::{HIGHEST_BLOCK_ID, Items};
use crate::cursor::Cursor;
use crate::relation::{BlockNumber, Fork, RelFileLocator};

/// A block a record refers to.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockRef<'a> {
    /// The number the record gives it; its meaning is the resource manager's.
    pub id: u8,
    /// The relation.
    pub relation: RelFileLocator,
    /// The fork.
    pub fork: Fork,
    /// The block within the fork.
    pub block: BlockNumber,
    /// Whether replay builds the page anew without reading it.
    pub will_init: bool,
    /// A copy of the page.
    pub image: Option<BlockImage<'a>>,
    /// What the resource manager logged for the block.
    pub data: &'a [u8],
}

/// A copy of a page inside a record, without the zeros between its line pointers and its tuples.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockImage<'a> {
    /// The stored bytes: the page without its hole, perhaps compressed.
    pub bytes: &'a [u8],
    /// Where in the page the hole begins.
    pub hole_offset: u16,
    /// Bytes of the hole; zero when there is none.
    pub hole_len: u16,
    /// How the bytes are compressed.
    pub compression: Option<Compression>,
    /// Whether replay restores the page from it. An image that only serves
    /// `wal_consistency_checking` does not.
    pub restores: bool,
}

impl fmt::Debug for BlockRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockRef")
            .field("id", &self.id)
            .field("relation", &self.relation)
            .field("fork", &self.fork)
            .field("block", &self.block)
            .field("will_init", &self.will_init)
            .field("image", &self.image)
            .field("data_len", &self.data.len())
            .finish()
    }
}

impl fmt::Debug for BlockImage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockImage")
            .field("len", &self.bytes.len())
            .field("hole_offset", &self.hole_offset)
            .field("hole_len", &self.hole_len)
            .field("compression", &self.compression)
            .field("restores", &self.restores)
            .finish()
    }
}

/// How a block image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// PostgreSQL's own LZ.
    Pglz,
    /// LZ4 block format (15 and later).
    Lz4,
    /// Zstandard (15 and later).
    Zstd,
}

/// The blocks of one record.
#[derive(Debug, Clone)]
pub struct Blocks<'a> {
    left: u8,
    items: Items<'a>,
    payload: Cursor<'a>,
}

impl<'a> Blocks<'a> {
    pub(super) const fn new(left: u8, items: Items<'a>, payload: Cursor<'a>) -> Self {
        Self {
            left,
            items,
            payload,
        }
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = BlockRef<'a>;

    // The record was decoded once in full, so no step here fails.
    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while self.left > 0 {
            let id = self.items.at.u8().ok()?;
            if id > HIGHEST_BLOCK_ID {
                self.items.other(id).ok()?;
                continue;
            }
            let header = self.items.block(id).ok()?;
            self.left -= 1;
            let will_init = header.will_init();
            let image = match header.image {
                None => None,
                Some(image) => Some(BlockImage {
                    bytes: self.payload.take(image.len.into()).ok()?,
                    hole_offset: image.hole_offset,
                    hole_len: image.hole_len,
                    compression: image.compression,
                    restores: image.restores,
                }),
            };
            return Some(BlockRef {
                id: header.id,
                relation: header.relation,
                fork: header.fork,
                block: header.block,
                will_init,
                image,
                data: self.payload.take(header.data_len.into()).ok()?,
            });
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left.into(), Some(self.left.into()))
    }
}

impl ExactSizeIterator for Blocks<'_> {}
