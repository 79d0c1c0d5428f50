//! A position in one run.

use std::sync::Arc;

use bytes::Bytes;
use neon_snapshot_format::SnapshotPath;

use crate::error::Result;
use crate::map::block::{Block, PackedExtent, Part};
use crate::map::index::{BlockRef, Index};
use crate::map::machine::{Inbox, malformed};
use crate::map::{FrameRef, RunRef};

/// A position in one run: before an item, which is the state of a file or an extent of it.
#[derive(Debug)]
pub(crate) struct Cursor {
    run: Arc<RunRef>,
    with_digests: bool,
    index_at: usize,
    index: Option<Arc<Index>>,
    block_at: usize,
    block: Option<Loaded>,
    part_at: usize,
    /// Whether the state (or limit) of the part has been passed.
    in_part: bool,
    extent_at: usize,
    /// Items before this one are not wanted; kept until the block that may hold them is loaded.
    floor: Option<(SnapshotPath, u32)>,
    /// Pages of the current extent before this one have been passed.
    passed: u32,
}

#[derive(Debug)]
struct Loaded {
    block: Arc<Block>,
    digests: Bytes,
}

/// An extent at a cursor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) block: &'a Block,
    pub(crate) digests: &'a Bytes,
    pub(crate) extent: PackedExtent,
}

impl Cursor {
    pub(crate) fn new(run: Arc<RunRef>, with_digests: bool) -> Self {
        Self {
            run,
            with_digests,
            index_at: 0,
            index: None,
            block_at: 0,
            block: None,
            part_at: 0,
            in_part: false,
            extent_at: 0,
            floor: None,
            passed: 0,
        }
    }

    pub(crate) fn run(&self) -> &RunRef {
        &self.run
    }

    /// The key of the next item; before its block is loaded, one that is not greater.
    pub(crate) fn key(&self) -> Option<(&SnapshotPath, u32)> {
        if let Some((_, part)) = self.part() {
            if let (true, Some(at)) = (self.in_part, self.extent()) {
                return Some((&part.path, at.extent.page));
            }
            let page = match (&part.state, self.extent()) {
                (None, Some(at)) => at.extent.page,
                _ => 0,
            };
            return Some((&part.path, page));
        }
        let first = match &self.index {
            Some(index) => &index.blocks.get(self.block_at)?.first,
            None => &self.run.indexes.get(self.index_at)?.first,
        };
        let first = (&first.path, first.page);
        match &self.floor {
            Some((path, page)) if (path, *page) > first => Some((path, *page)),
            _ => Some(first),
        }
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.block.is_some()
    }

    fn part(&self) -> Option<(&Loaded, &Part)> {
        let loaded = self.block.as_ref()?;
        Some((loaded, loaded.block.parts.get(self.part_at)?))
    }

    /// The part whose state comes next.
    pub(crate) fn part_ahead(&self) -> Option<&Part> {
        let (_, part) = self.part()?;
        (!self.in_part).then_some(part)
    }

    /// The extent that comes next in the part.
    pub(crate) fn extent(&self) -> Option<At<'_>> {
        let (loaded, part) = self.part()?;
        let mut extent = *loaded.block.extents_of(part).get(self.extent_at)?;
        let passed = self.passed.saturating_sub(extent.page);
        extent.page += passed;
        extent.count -= passed;
        if extent.frame != crate::map::block::NO_FRAME {
            extent.offset += passed * loaded.block.page_size;
            extent.digest += passed;
        }
        Some(At {
            block: &loaded.block,
            digests: &loaded.digests,
            extent,
        })
    }

    /// Passes the state of the part.
    pub(crate) fn enter(&mut self) {
        self.in_part = true;
        self.settle();
    }

    /// Passes the pages before this one of the file that the cursor is in.
    pub(crate) fn pass(&mut self, page: u32) {
        self.passed = self.passed.max(page);
        while let Some((loaded, part)) = self.part() {
            match loaded.block.extents_of(part).get(self.extent_at) {
                Some(extent) if extent.end() <= page => self.extent_at += 1,
                _ => break,
            }
        }
        self.settle();
    }

    /// Moves on to the next part or block where the present one has no more items.
    fn settle(&mut self) {
        if !self.in_part || self.extent().is_some() {
            return;
        }
        self.next_part();
    }

    fn next_part(&mut self) {
        self.part_at += 1;
        self.in_part = false;
        self.extent_at = 0;
        self.passed = 0;
        if self.part().is_none() {
            self.next_block();
        }
    }

    fn next_block(&mut self) {
        self.block = None;
        self.part_at = 0;
        self.in_part = false;
        self.extent_at = 0;
        self.passed = 0;
        self.block_at += 1;
        let more = |index: &Arc<Index>| self.block_at < index.blocks.len();
        if !self.index.as_ref().is_some_and(more) {
            self.index = None;
            self.block_at = 0;
            self.index_at += 1;
        }
    }

    /// Moves forward to the first item that is not before a key. An extent that reaches over it is cut.
    pub(crate) fn seek(&mut self, path: &SnapshotPath, page: u32) {
        if self.key().is_none_or(|key| key >= (path, page)) {
            return;
        }
        if self.block.is_some() {
            self.seek_in_block(path, page);
            if self.block.is_some() {
                return;
            }
        }
        if self.index.is_none() {
            let indexes = &self.run.indexes;
            let after = indexes
                .partition_point(|index| (&index.first.path, index.first.page) <= (path, page));
            self.index_at = self.index_at.max(after.saturating_sub(1));
        }
        self.seek_in_index(path, page);
        self.floor = Some((path.clone(), page));
    }

    fn seek_in_index(&mut self, path: &SnapshotPath, page: u32) {
        if let Some(index) = &self.index {
            let key = |block: &BlockRef| (&block.first.path, block.first.page) <= (path, page);
            let after = index.blocks.partition_point(key);
            self.block_at = self.block_at.max(after.saturating_sub(1));
        }
    }

    fn seek_in_block(&mut self, path: &SnapshotPath, page: u32) {
        while let Some((_, part)) = self.part() {
            let order = part.path.cmp(path);
            if order.is_gt() || order.is_eq() && page == 0 {
                return;
            }
            if order.is_eq() {
                self.in_part = true;
                self.pass(page);
                return;
            }
            self.next_part();
            if !self.is_loaded() {
                return;
            }
        }
    }

    /// Makes the next item known: asks for its frames, or tells that it is (`true`), also at the end of the run.
    pub(crate) fn load(&mut self, inbox: &mut Inbox, needed: &mut Vec<FrameRef>) -> Result<bool> {
        loop {
            if self.block.is_some() {
                return Ok(true);
            }
            let Some(index) = &self.index else {
                let Some(wanted) = self.run.indexes.get(self.index_at) else {
                    return Ok(true);
                };
                inbox.want(&wanted.frame, needed);
                let Some(frame) = inbox.take(&wanted.frame) else {
                    return Ok(false);
                };
                let index = frame.index()?;
                if index
                    .blocks
                    .first()
                    .is_none_or(|block| block.first != wanted.first)
                {
                    return Err(malformed("an index begins elsewhere than its run says"));
                }
                self.index = Some(index);
                self.block_at = 0;
                if let Some((path, page)) = self.floor.clone() {
                    self.seek_in_index(&path, page);
                }
                continue;
            };
            let Some(wanted) = index.blocks.get(self.block_at) else {
                return Err(malformed("an index has too few blocks"));
            };
            inbox.want(&wanted.record, needed);
            let digests = wanted.digests.as_ref().filter(|_| self.with_digests);
            if let Some(digests) = digests {
                inbox.want(digests, needed);
            }
            let ready = inbox.get(&wanted.record).is_some()
                && digests.is_none_or(|frame| inbox.get(frame).is_some());
            if !ready {
                return Ok(false);
            }
            let Some(record) = inbox.take(&wanted.record) else {
                return Ok(false);
            };
            let digests = match digests.and_then(|frame| inbox.take(frame)) {
                Some(digests) => digests.digests(wanted.pages)?,
                None => Bytes::new(),
            };
            let block = record.block()?;
            check_block(&block, wanted)?;
            self.block = Some(Loaded { block, digests });
            if let Some((path, page)) = self.floor.take() {
                self.seek_in_block(&path, page);
            }
        }
    }
}

/// Whether a block is the one that the index means.
pub(crate) fn check_block(block: &Block, wanted: &BlockRef) -> Result<()> {
    let first = block.parts.first().map(|part| {
        let page = match (&part.state, block.extents_of(part).first()) {
            (None, Some(extent)) => extent.page,
            _ => 0,
        };
        (&part.path, page)
    });
    if first == Some((&wanted.first.path, wanted.first.page)) && block.pages == wanted.pages {
        return Ok(());
    }
    Err(malformed(
        "a record block is not the one that its index means",
    ))
}
