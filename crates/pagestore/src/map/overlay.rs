//! Several runs laid over each other: what is visible, in order.

use std::sync::Arc;

use bytes::Bytes;
use neon_snapshot_format::SnapshotPath;

use crate::error::{Error, ErrorKind, Result};
use crate::map::cursor::Cursor;
use crate::map::machine::Inbox;
use crate::map::map_frame::digests_at;
use crate::map::{Extent, FileState, FrameRef, KEEP_ALL, MapFrame, PageDigest, RunRef, Step};

/// What comes next in the merge of some runs.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A file, with the state that the runs give it together.
    File(SnapshotPath, FileState),
    /// Pages of it.
    Pages(Extent, Digests),
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

/// A merge of runs, newest first.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(crate) inbox: Inbox,
    layers: Vec<Layer>,
    path: Option<SnapshotPath>,
    /// Pages of that file before this one have been told.
    page: u32,
    with_digests: bool,
}

#[derive(Debug)]
struct Layer {
    cursor: Cursor,
    /// Pages of the current file in this layer are seen below it.
    clip: u32,
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
                "pages of a file that is removed",
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
            cursor: Cursor::new(Arc::new(run.clone()), with_digests),
            clip: KEEP_ALL,
        };
        Self {
            inbox: Inbox::default(),
            layers: runs.iter().map(layer).collect(),
            path: None,
            page: 0,
            with_digests,
        }
    }

    pub(crate) fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.inbox.feed(frame, content);
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
            let mut needed = Vec::new();
            if let Some(path) = &self.path {
                // Every layer that may have a page of this file must know it.
                for layer in &mut self.layers {
                    let inside = |cursor: &Cursor| cursor.key().is_some_and(|(at, _)| at == path);
                    while inside(&layer.cursor) {
                        if !layer.cursor.is_loaded() {
                            layer.cursor.seek(path, self.page);
                        }
                        if !layer.cursor.load(&mut self.inbox, &mut needed)? {
                            break;
                        }
                        if !inside(&layer.cursor) || layer.cursor.part_ahead().is_none() {
                            break;
                        }
                        // A later part of the file: what it repeats is known.
                        layer.cursor.enter();
                        layer.cursor.pass(self.page);
                    }
                }
                if !needed.is_empty() {
                    return Ok(Step::Need(needed));
                }
                if let Some(event) = self.next_pages()? {
                    return Ok(Step::Ready(Some(event)));
                }
                self.path = None;
            }
            let Some(first) = self
                .layers
                .iter()
                .filter_map(|layer| layer.cursor.key())
                .map(|(path, _)| path)
                .min()
                .cloned()
            else {
                return Ok(Step::Ready(None));
            };
            let mut moved = false;
            for layer in &mut self.layers {
                let cursor = &mut layer.cursor;
                if cursor.key().is_some_and(|(path, _)| *path == first) {
                    moved |= cursor.load(&mut self.inbox, &mut needed)?
                        && cursor.key().is_none_or(|(path, _)| *path != first);
                }
            }
            if !needed.is_empty() {
                return Ok(Step::Need(needed));
            }
            if moved {
                continue;
            }
            let state = self.enter(&first)?;
            self.path = Some(first.clone());
            self.page = 0;
            return Ok(Step::Ready(Some(Event::File(first, state))));
        }
    }

    /// Reads the states of a file in all layers that have it.
    fn enter(&mut self, path: &SnapshotPath) -> Result<FileState> {
        let mut folded: Option<FileState> = None;
        for layer in &mut self.layers {
            layer.clip = folded.as_ref().map_or(KEEP_ALL, limit_of);
            let Some(part) = layer.cursor.part_ahead().filter(|part| part.path == *path) else {
                continue;
            };
            let Some(state) = &part.state else {
                return Err(Error::malformed(
                    path.to_string(),
                    "a run has pages of the file without its beginning",
                ));
            };
            folded = Some(match folded {
                Some(newer) => combine(path, newer, state)?,
                None => state.clone(),
            });
            layer.cursor.enter();
        }
        folded.ok_or_else(|| Error::malformed(path.to_string(), "no run has the file"))
    }

    /// The next visible pages of the present file.
    fn next_pages(&mut self) -> Result<Option<Event>> {
        let Some(path) = &self.path else {
            return Ok(None);
        };
        let mut winner: Option<(usize, u32, u32)> = None;
        for (number, layer) in self.layers.iter_mut().enumerate() {
            let hidden = |(at, page): (&SnapshotPath, u32)| at == path && page >= layer.clip;
            if layer.cursor.key().is_some_and(hidden) {
                layer.cursor.seek(path, u32::MAX);
            }
            let Some((at, page)) = layer.cursor.key() else {
                continue;
            };
            if at != path || layer.cursor.part_ahead().is_some() || !layer.cursor.is_loaded() {
                continue;
            }
            let Some(here) = layer.cursor.extent() else {
                continue;
            };
            let end = here.extent.end().min(layer.clip);
            winner = match winner {
                None => Some((number, page, end)),
                Some((_, first, _)) if page < first => Some((number, page, end.min(first))),
                newer => newer,
            };
        }
        let Some((number, page, end)) = winner else {
            return Ok(None);
        };
        let event = self
            .layers
            .get(number)
            .and_then(|layer| layer.cursor.extent())
            .map(|at| {
                let mut extent = at.extent;
                extent.count = end - page;
                let zeros = extent.frame == crate::map::block::NO_FRAME;
                let digests = if zeros || !self.with_digests {
                    Digests::default()
                } else {
                    Digests {
                        bytes: at.digests.clone(),
                        first: extent.digest,
                        count: extent.count,
                    }
                };
                Event::Pages(at.block.unpack(&extent), digests)
            });
        for layer in &mut self.layers {
            let here = layer.cursor.is_loaded() && layer.cursor.part_ahead().is_none();
            if here && layer.cursor.key().is_some_and(|(at, _)| at == path) {
                layer.cursor.pass(end);
            }
        }
        self.page = end;
        Ok(event)
    }
}
