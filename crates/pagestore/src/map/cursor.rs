//! A position in one run.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use neon_snapshot_format::SnapshotPath;

use crate::error::Result;
use crate::map::block::{Block, PackedExtent, Part};
use crate::map::index::{BlockRef, Index};
use crate::map::machine::{FrameId, Inbox, malformed};
use crate::map::run::IndexRef;
use crate::map::{FrameRef, MapFrame, PageKey, RunRef};

/// Blocks that are asked for together by who reads a run from end to end.
pub(crate) const READ_AHEAD: usize = 8;

/// A position in one run: before an item, which is the state of a file or an extent of it.
#[derive(Debug)]
pub(crate) struct Cursor {
    run: Arc<RunRef>,
    with_digests: bool,
    /// How many blocks after the next one are asked for with it.
    read_ahead: usize,
    /// Index frames and record blocks that are passed as if they were not there.
    skipped: Option<Arc<HashSet<FrameId>>>,
    /// Blocks that were read and passed, where that is asked for.
    passed_blocks: Option<Vec<(FrameId, Arc<Block>)>>,
    inbox: Inbox,
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
    id: FrameId,
    block: Arc<Block>,
    digests: Bytes,
}

/// What a cursor stands before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead<'a> {
    pub(crate) what: Whole<'a>,
    /// The first key after it.
    pub(crate) next: Option<&'a PageKey>,
}

/// A piece of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whole<'a> {
    Index(&'a IndexRef),
    Block(&'a BlockRef),
}

impl Whole<'_> {
    pub(crate) fn first(&self) -> &PageKey {
        match self {
            Self::Index(index) => &index.first,
            Self::Block(block) => &block.first,
        }
    }
}

/// An extent at a cursor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) block: &'a Block,
    pub(crate) digests: &'a Bytes,
    pub(crate) extent: PackedExtent,
}

impl Cursor {
    pub(crate) fn new(run: Arc<RunRef>, with_digests: bool, read_ahead: usize) -> Self {
        Self {
            run,
            with_digests,
            read_ahead,
            skipped: None,
            passed_blocks: None,
            inbox: Inbox::default(),
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

    /// Passes these frames from now on.
    pub(crate) fn skip(&mut self, frames: Arc<HashSet<FrameId>>) {
        self.skipped = Some(frames);
    }

    /// Keeps the blocks that are passed, until they are taken.
    pub(crate) fn keep_passed(&mut self) {
        self.passed_blocks = Some(Vec::new());
    }

    pub(crate) fn take_passed(&mut self) -> Vec<(FrameId, Arc<Block>)> {
        self.passed_blocks
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn is_skipped(&self, frame: &FrameRef) -> bool {
        let skipped = self.skipped.as_ref();
        skipped.is_some_and(|skipped| skipped.contains(&frame.id()))
    }

    pub(crate) fn feed(&mut self, frame: &FrameRef, content: &MapFrame) {
        self.inbox.feed(frame, content);
    }

    /// What could be passed as a whole: the cursor stands before it and has loaded nothing of it.
    pub(crate) fn ahead(&self) -> Option<Ahead<'_>> {
        if self.block.is_some() || self.floor.is_some() {
            return None;
        }
        let next_index = self.run.indexes.get(self.index_at + 1);
        let next_index = next_index.map(|index| &index.first);
        let Some(index) = &self.index else {
            return Some(Ahead {
                what: Whole::Index(self.run.indexes.get(self.index_at)?),
                next: next_index,
            });
        };
        let next = index.blocks.get(self.block_at + 1);
        Some(Ahead {
            what: Whole::Block(index.blocks.get(self.block_at)?),
            next: next.map(|block| &block.first).or(next_index),
        })
    }

    /// Passes what [`ahead`](Self::ahead) told.
    pub(crate) fn pass_ahead(&mut self) {
        if self.index.is_some() {
            self.next_block();
        } else {
            self.index_at += 1;
        }
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

    /// Whether it does not know yet which blocks there are.
    pub(crate) fn needs_index(&self) -> bool {
        self.index.is_none() && self.index_at < self.run.indexes.len()
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
        if let (Some(loaded), Some(passed)) = (self.block.take(), &mut self.passed_blocks) {
            passed.push((loaded.id, loaded.block));
        }
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

    /// Makes the blocks ahead known: asks for the index, or tells that it is there (`true`).
    pub(crate) fn load_index(&mut self, needed: &mut Vec<FrameRef>) -> Result<bool> {
        if self.index.is_some() {
            return Ok(true);
        }
        let Some(wanted) = self.run.indexes.get(self.index_at) else {
            return Ok(true);
        };
        self.inbox.keep_only(std::slice::from_ref(&wanted.frame));
        self.inbox.want(&wanted.frame, needed);
        let Some(frame) = self.inbox.take(&wanted.frame) else {
            return Ok(false);
        };
        let index = frame.index()?;
        let first = index.blocks.first().map(|block| &block.first);
        if first != Some(&wanted.first) {
            return Err(malformed("an index begins elsewhere than its run says"));
        }
        self.index = Some(index);
        self.block_at = 0;
        if let Some((path, page)) = self.floor.clone() {
            self.seek_in_index(&path, page);
        }
        Ok(true)
    }

    /// Makes the next item known: asks for its frames, or tells that it is (`true`), also at the end of the run.
    pub(crate) fn load(&mut self, needed: &mut Vec<FrameRef>) -> Result<bool> {
        loop {
            if self.block.is_some() || self.key().is_none() {
                return Ok(true);
            }
            if self.index.is_none() {
                let index = self.run.indexes.get(self.index_at);
                if index.is_some_and(|index| self.is_skipped(&index.frame)) {
                    self.index_at += 1;
                    continue;
                }
            }
            if !self.load_index(needed)? {
                return Ok(false);
            }
            let Some(index) = self.index.clone() else {
                return Ok(true);
            };
            let Some(wanted) = index.blocks.get(self.block_at) else {
                return Err(malformed("an index has too few blocks"));
            };
            if self.is_skipped(&wanted.record) {
                self.next_block();
                continue;
            }
            let digests = wanted.digests.as_ref().filter(|_| self.with_digests);
            let ready = self.inbox.get(&wanted.record).is_some()
                && digests.is_none_or(|frame| self.inbox.get(frame).is_some());
            if !ready {
                self.want_blocks(&index, needed);
                return Ok(false);
            }
            let Some(record) = self.inbox.take(&wanted.record) else {
                return Ok(false);
            };
            let digests = match digests.and_then(|frame| self.inbox.take(frame)) {
                Some(digests) => digests.digests(wanted.pages)?,
                None => Bytes::new(),
            };
            let block = record.block()?;
            check_block(&block, wanted)?;
            self.block = Some(Loaded {
                id: wanted.record.id(),
                block,
                digests,
            });
            if let Some((path, page)) = self.floor.take() {
                self.seek_in_block(&path, page);
            }
        }
    }

    fn want_blocks(&mut self, index: &Index, needed: &mut Vec<FrameRef>) {
        let ahead = index
            .blocks
            .iter()
            .skip(self.block_at)
            .filter(|block| !self.is_skipped(&block.record))
            .take(1 + self.read_ahead);
        let digests = |block: &BlockRef| block.digests.filter(|_| self.with_digests);
        let wanted: Vec<FrameRef> = ahead
            .flat_map(|block| std::iter::once(block.record).chain(digests(block)))
            .collect();
        self.inbox.keep_only(&wanted);
        for frame in &wanted {
            self.inbox.want(frame, needed);
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
