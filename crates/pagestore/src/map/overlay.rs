//! Several runs laid over each other: what is visible, in order.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use neon_snapshot_format::SnapshotPath;

use crate::error::{Error, ErrorKind, Result};
use crate::map::block::{Block, NO_FRAME};
use crate::map::cursor::{Ahead, Cursor, READ_AHEAD, Whole};
use crate::map::index::BlockRef;
use crate::map::machine::FrameId;
use crate::map::map_frame::digests_at;
use crate::map::run::IndexRef;
use crate::map::{Extent, FileState, FrameRef, KEEP_ALL, MapFrame, PageDigest, RunRef, Step};

/// What comes next in the merge of some runs.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A file, with the state that the runs give it together.
    File(SnapshotPath, FileState),
    /// Pages of it.
    Pages(Extent, Digests),
    /// Only with [`Overlay::reusing`]: what the oldest run says there is untouched, by a block or a whole index.
    /// The file that it begins in may have begun before; that it ends in may go on.
    Block(BlockRef),
    /// See [`Block`](Self::Block).
    Index(IndexRef),
    /// Only after those: more of the file that they ended in, and its limit.
    Rest(SnapshotPath, u32),
}

/// The digests of an extent's pages; none for zeros, or when they are not read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Digests {
    bytes: Bytes,
    first: u32,
    count: u32,
}

impl Digests {
    pub(crate) fn get(&self) -> Result<&[PageDigest]> {
        digests_at(&self.bytes, self.first, self.count)
    }
}

/// Which pieces of the oldest run are told as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reuse {
    /// Record blocks of at least so many plain bytes, or of at least `pages` pages.
    pub(crate) block: u32,
    pub(crate) pages: u32,
    /// Index frames of at least so many plain bytes.
    pub(crate) index: u32,
    /// Whether no run is older, so that limits mean nothing.
    pub(crate) bottom: bool,
}

/// A merge of runs, newest first.
#[derive(Debug)]
pub(crate) struct Overlay {
    layers: Vec<Layer>,
    /// The file that pages are told of.
    path: Option<SnapshotPath>,
    /// Pages of it before this one have been told.
    page: u32,
    /// Its limit in all layers together.
    limit: u32,
    with_digests: bool,
    /// Of which size its pages are, where that matters.
    page_size: Option<u32>,
    reuse: Option<Reuse>,
    partial: Partial,
}

/// Whether a file may begin where only a later part of it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Partial {
    Never,
    /// In the oldest run.
    Oldest,
    /// In all runs. States are then not those of all runs together; limits are.
    All,
}

#[derive(Debug)]
struct Layer {
    cursor: Cursor,
    /// Pages of the current file in this layer are seen below it.
    clip: u32,
    /// The limit that this layer has for the current file.
    limit: u32,
}

impl Layer {
    fn is_in(&self, path: &SnapshotPath) -> bool {
        self.cursor.key().is_some_and(|(at, _)| at == path)
    }
}

/// What a newer state and an older one are together.
pub(crate) fn combine(
    path: &SnapshotPath,
    newer: FileState,
    older: &FileState,
) -> Result<FileState> {
    Ok(match (newer, older) {
        (FileState::Removed, _) => FileState::Removed,
        (FileState::Same, FileState::Removed) => {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                path.to_string(),
                "the map has pages of a file that was removed",
            ));
        }
        (FileState::Same, older) => older.clone(),
        (FileState::Present { attributes, limit }, older) => FileState::Present {
            attributes,
            limit: limit.min(limit_of(older)),
        },
    })
}

/// How many pages of older runs a state leaves visible.
pub(crate) fn limit_of(state: &FileState) -> u32 {
    match state {
        FileState::Same => KEEP_ALL,
        FileState::Present { limit, .. } => *limit,
        FileState::Removed => 0,
    }
}

impl Overlay {
    pub(crate) fn new(runs: &[RunRef], with_digests: bool) -> Self {
        let layer = |run: &RunRef| Layer {
            cursor: Cursor::new(Arc::new(run.clone()), with_digests, READ_AHEAD),
            clip: KEEP_ALL,
            limit: KEEP_ALL,
        };
        Self {
            layers: runs.iter().map(layer).collect(),
            path: None,
            page: 0,
            limit: KEEP_ALL,
            with_digests,
            page_size: None,
            reuse: None,
            partial: Partial::Never,
        }
    }

    /// Refuses pages of another size: who counts in bytes what the map counts in pages would miss some.
    pub(crate) fn of_pages(mut self, page_size: u32) -> Self {
        self.page_size = Some(page_size);
        self
    }

    /// Passes these index frames and record blocks of the oldest run. A file of which only later parts remain
    /// there is told as [`Event::Rest`] when no newer run has its beginning.
    pub(crate) fn without(mut self, frames: &Arc<HashSet<FrameId>>) -> Self {
        if let Some(layer) = self.layers.last_mut() {
            layer.cursor.skip(Arc::clone(frames));
        }
        self.partial = Partial::Oldest;
        self
    }

    /// Passes these index frames and record blocks of all runs, to tell only pages, those which are visible below
    /// what remains. Keeps the blocks that are passed.
    pub(crate) fn judging(mut self, skipped: &Arc<HashSet<FrameId>>) -> Self {
        for layer in &mut self.layers {
            layer.cursor.skip(Arc::clone(skipped));
            layer.cursor.keep_passed();
        }
        self.partial = Partial::All;
        self
    }

    /// The record blocks that were passed.
    pub(crate) fn take_passed(&mut self) -> Vec<(FrameId, Arc<Block>)> {
        let layers = self.layers.iter_mut();
        layers
            .flat_map(|layer| layer.cursor.take_passed())
            .collect()
    }

    /// From now on tells pieces of the oldest run that nothing newer touches as a whole.
    pub(crate) fn reusing(&mut self, reuse: Reuse) {
        self.reuse = Some(reuse);
        self.partial = Partial::Oldest;
    }

    pub(crate) fn feed(&mut self, frame: &FrameRef, content: &MapFrame) {
        for layer in &mut self.layers {
            layer.cursor.feed(frame, content);
        }
    }

    /// Moves forward to the first file that is not before this path.
    pub(crate) fn seek(&mut self, path: &SnapshotPath) {
        self.path = None;
        for layer in &mut self.layers {
            layer.cursor.seek(path, 0);
        }
    }

    /// The next file, or pages of the present one.
    pub(crate) fn next(&mut self) -> Result<Step<Option<Event>>> {
        loop {
            if let Some(event) = self.next_untouched() {
                return Ok(Step::Ready(Some(event)));
            }
            let mut needed = Vec::new();
            if let Some(path) = self.path.take() {
                let known = self.load_pages(&path, &mut needed)?;
                let known = known && needed.is_empty();
                let event = match known {
                    true => self.next_pages(&path)?,
                    false => None,
                };
                if !known || event.is_some() {
                    self.path = Some(path);
                }
                if !needed.is_empty() {
                    return Ok(Step::Need(needed));
                }
                if event.is_some() {
                    return Ok(Step::Ready(event));
                }
                if !known {
                    continue;
                }
            }
            let keys = self.layers.iter().filter_map(|layer| layer.cursor.key());
            let Some(first) = keys.map(|(path, _)| path).min().cloned() else {
                return Ok(Step::Ready(None));
            };
            let known = self.load_file(&first, &mut needed)?;
            if !needed.is_empty() {
                return Ok(Step::Need(needed));
            }
            if known {
                return Ok(Step::Ready(Some(self.enter(first)?)));
            }
        }
    }

    /// Loads the next item of every layer that stands before a file; tells whether they all still do.
    fn load_file(&mut self, path: &SnapshotPath, needed: &mut Vec<FrameRef>) -> Result<bool> {
        let (reuse, last) = (self.reuse.is_some(), self.layers.len());
        for (number, layer) in (1..).zip(&mut self.layers) {
            if !layer.is_in(path) {
                continue;
            }
            if reuse && number == last && layer.cursor.needs_index() {
                // With the index perhaps a block is found that need not be read.
                layer.cursor.load_index(needed)?;
                return Ok(false);
            }
            if layer.cursor.load(needed)? && !layer.is_in(path) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Loads the next pages of a file in every layer; tells whether that is done.
    fn load_pages(&mut self, path: &SnapshotPath, needed: &mut Vec<FrameRef>) -> Result<bool> {
        let (reuse, last) = (self.reuse.is_some(), self.layers.len());
        for (number, layer) in (1..).zip(&mut self.layers) {
            while let Some((_, page)) = layer.cursor.key().filter(|(at, _)| *at == path) {
                if page >= layer.clip {
                    layer.cursor.seek(path, u32::MAX);
                }
                if !layer.cursor.is_loaded() {
                    layer.cursor.seek(path, self.page);
                    if reuse && number == last && layer.cursor.needs_index() {
                        layer.cursor.load_index(needed)?;
                        return Ok(false);
                    }
                }
                if !layer.cursor.load(needed)? {
                    break;
                }
                if layer.is_in(path) && layer.cursor.part_ahead().is_some() {
                    // A later part of the file.
                    layer.cursor.enter();
                    layer.cursor.pass(self.page);
                } else if layer.cursor.key().is_none_or(|(_, page)| page < layer.clip) {
                    break;
                }
            }
        }
        Ok(true)
    }

    /// Reads the states of a file in all layers that have it.
    fn enter(&mut self, path: SnapshotPath) -> Result<Event> {
        let (partial, last) = (self.partial, self.layers.len());
        let mut folded: Option<FileState> = None;
        let mut limit = KEEP_ALL;
        for (number, layer) in (1..).zip(&mut self.layers) {
            layer.clip = limit;
            let part = layer.cursor.part_ahead();
            let Some(part) = part.filter(|part| part.path == path) else {
                continue;
            };
            layer.limit = part.limit;
            limit = limit.min(part.limit);
            match (&part.state, folded.take()) {
                (Some(state), Some(newer)) if partial != Partial::All => {
                    folded = Some(combine(&path, newer, state)?);
                }
                (Some(_), Some(newer)) => folded = Some(newer),
                (Some(state), None) => folded = Some(state.clone()),
                (None, newer)
                    if partial == Partial::All || partial == Partial::Oldest && number == last =>
                {
                    folded = newer;
                }
                (None, _) => {
                    return Err(Error::malformed(
                        path.to_string(),
                        "a run has pages of the file without its beginning",
                    ));
                }
            }
            layer.cursor.enter();
        }
        self.page = 0;
        self.limit = limit;
        self.path = Some(path.clone());
        Ok(match folded {
            Some(state) => Event::File(path, state),
            None => Event::Rest(path, limit),
        })
    }

    /// The next visible pages of the present file.
    fn next_pages(&mut self, path: &SnapshotPath) -> Result<Option<Event>> {
        // The layer, its first page, and the page before which a newer layer takes over.
        let mut next: Option<(usize, u32, u32)> = None;
        for (number, layer) in self.layers.iter().enumerate() {
            let Some(at) = layer.cursor.extent().filter(|_| layer.is_in(path)) else {
                continue;
            };
            let page = at.extent.page;
            let end = at.extent.end().min(layer.clip);
            match next {
                _ if page >= end => {}
                Some((_, first, _)) if first <= page => {}
                Some((_, first, _)) => next = Some((number, page, end.min(first))),
                None => next = Some((number, page, end)),
            }
        }
        let Some((number, page, end)) = next else {
            return Ok(None);
        };
        let layer = self.layers.get(number);
        let Some(at) = layer.and_then(|layer| layer.cursor.extent()) else {
            return Ok(None);
        };
        if self
            .page_size
            .is_some_and(|size| size != at.block.page_size)
        {
            return Err(Error::malformed(
                path.to_string(),
                "the map has pages of another size than the snapshot",
            ));
        }
        let mut extent = at.extent;
        extent.count = end - page;
        let digests = if extent.frame == NO_FRAME || !self.with_digests {
            Digests::default()
        } else {
            Digests {
                bytes: at.digests.clone(),
                first: extent.digest,
                count: extent.count,
            }
        };
        let event = Event::Pages(at.block.unpack(&extent), digests);
        for layer in &mut self.layers {
            if layer.is_in(path) {
                layer.cursor.pass(end);
            }
        }
        self.page = end;
        Ok(Some(event))
    }

    /// A piece of the oldest run that no newer run says anything about.
    fn next_untouched(&mut self) -> Option<Event> {
        let reuse = self.reuse?;
        let (oldest, newer) = self.layers.split_last()?;
        let Ahead { what, next } = oldest.cursor.ahead()?;
        let large = match what {
            Whole::Index(index) => index.frame.plain_length >= reuse.index,
            Whole::Block(block) => {
                block.record.plain_length >= reuse.block || block.pages >= reuse.pages
            }
        };
        let next = next.map(|key| (&key.path, key.page));
        let before_next = |layer: &Layer| match (layer.cursor.key(), next) {
            (Some(key), Some(next)) => key < next,
            (key, _) => key.is_some(),
        };
        if !large || newer.iter().any(before_next) {
            return None;
        }
        let first = what.first();
        if self.path.as_ref() == Some(&first.path) {
            // The file began before: what newer runs say about it as a whole must change nothing here.
            let end = match next {
                Some((path, page)) if *path == first.path => page,
                _ => u32::MAX,
            };
            // The limit stands in every part of a file; that of a part of the bottom means nothing.
            let same_limit = reuse.bottom || self.limit == oldest.limit;
            if self.page > first.page || oldest.clip < end || !same_limit {
                return None;
            }
        } else {
            self.path = None;
        }
        let event = match what {
            Whole::Index(index) => Event::Index(index.clone()),
            Whole::Block(block) => Event::Block(block.clone()),
        };
        self.layers.last_mut()?.cursor.pass_ahead();
        Some(event)
    }
}
