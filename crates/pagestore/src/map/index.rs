//! Index frames: where the record blocks of a run are, and with which file and page each begins.

use crate::error::Result;
use crate::map::frame_table::{FrameTableBuilder, get_frame_table};
use crate::map::machine::malformed;
use crate::map::wire::{get_count, get_number, get_path, get_varint, put_path, put_varint};
use crate::map::{FrameRef, PageKey};

pub(crate) const INDEX_MAGIC: &[u8; 4] = b"NMI1";

/// A record block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockRef {
    /// The key of its first part. Page 0 where that part has the state of its file.
    pub(crate) first: PageKey,
    pub(crate) record: FrameRef,
    /// Nothing when no page of it has a digest.
    pub(crate) digests: Option<FrameRef>,
    /// Files that it has a part of.
    pub(crate) parts: u32,
    /// Pages that are not zero.
    pub(crate) pages: u32,
}

impl BlockRef {
    /// Stored bytes of its frames.
    pub(crate) fn bytes(&self) -> u64 {
        let digests = self.digests.map_or(0, |frame| frame.stored_length);
        u64::from(self.record.stored_length) + u64::from(digests)
    }
}

/// A decoded index frame: sorted, not empty.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) blocks: Vec<BlockRef>,
}

impl Index {
    /// The block that would hold a key; none when the key stands before the first.
    pub(crate) fn find(&self, key: &PageKey) -> Option<&BlockRef> {
        let after = self.blocks.partition_point(|block| block.first <= *key);
        self.blocks.get(after.checked_sub(1)?)
    }

    pub(crate) fn memory(&self) -> usize {
        let paths: usize = self
            .blocks
            .iter()
            .map(|block| block.first.path.as_bytes().len())
            .sum();
        size_of::<Self>() + paths + self.blocks.capacity() * size_of::<BlockRef>()
    }
}

/// Writes one index frame.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    frames: FrameTableBuilder,
    entries: Vec<u8>,
    blocks: Vec<BlockRef>,
}

impl IndexBuilder {
    pub(crate) fn blocks(&self) -> &[BlockRef] {
        &self.blocks
    }

    pub(crate) fn size(&self) -> usize {
        20 + self.frames.size() + self.entries.len()
    }

    /// Bytes once a block is added, or a little more.
    pub(crate) fn size_with(&self, block: &BlockRef) -> usize {
        self.size() + block.first.path.as_bytes().len() + 256
    }

    pub(crate) fn push(&mut self, block: BlockRef) {
        let before = self.blocks.last().map(|block| block.first.path.as_bytes());
        let out = &mut self.entries;
        put_path(out, before.unwrap_or_default(), block.first.path.as_bytes());
        put_varint(out, block.first.page.into());
        put_varint(out, block.parts.into());
        put_varint(out, block.pages.into());
        self.frames.push(&block.record);
        if let Some(digests) = &block.digests {
            self.frames.push(digests);
        }
        self.blocks.push(block);
    }

    pub(crate) fn finish(self) -> (Vec<u8>, Vec<BlockRef>) {
        let mut out = Vec::with_capacity(self.size());
        out.extend_from_slice(INDEX_MAGIC);
        self.frames.put(&mut out);
        put_varint(&mut out, self.blocks.len() as u64);
        out.extend_from_slice(&self.entries);
        (out, self.blocks)
    }
}

/// Reads an index frame; its magic has been read.
pub(crate) fn decode_index(mut from: &[u8]) -> Result<Index> {
    let from = &mut from;
    let mut frames = get_frame_table(from)?.into_iter();
    let count = get_count(from, 5)?;
    let mut blocks: Vec<BlockRef> = Vec::with_capacity(count);
    for _ in 0..count {
        let before = blocks.last().map(|block| block.first.path.as_bytes());
        let path = get_path(from, before.unwrap_or_default())?;
        let first = PageKey {
            path,
            page: get_number(from)?,
        };
        if blocks.last().is_some_and(|block| block.first >= first) {
            return Err(malformed("its blocks are not in order"));
        }
        let parts = get_number(from)?;
        let pages = u32::try_from(get_varint(from)?)
            .ok()
            .filter(|pages| *pages <= super::block::MAX_PAGES)
            .ok_or_else(|| malformed("a block of too many pages"))?;
        let missing = || malformed("has blocks without frames");
        let record = frames.next().ok_or_else(missing)?;
        let digests = if pages > 0 {
            Some(frames.next().ok_or_else(missing)?)
        } else {
            None
        };
        blocks.push(BlockRef {
            first,
            record,
            digests,
            parts,
            pages,
        });
    }
    if blocks.is_empty() || frames.next().is_some() || !from.is_empty() {
        return Err(malformed("holds something else than blocks"));
    }
    Ok(Index { blocks })
}
