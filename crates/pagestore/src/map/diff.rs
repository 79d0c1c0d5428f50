//! What differs between two views.
//!
//! Runs that both have are not looked at, and of the newest others that may share blocks (the last ones before
//! those) only blocks that just one of the two has. All keys that could differ are in what remains; what it does
//! not say about a page comes from the shared rest and is the same in both.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use neon_snapshot_format::SnapshotPath;

use crate::error::Result;
use crate::map::block::pages_of;
use crate::map::differing::{Compared, Known, Piece, compare};
use crate::map::lookup::{find_attributes, find_page};
use crate::map::machine::{FrameId, Inbox, Machine};
use crate::map::overlay::{Event, Overlay};
use crate::map::run::IndexRef;
use crate::map::walk::attributes;
use crate::map::{
    Attributes, FileKind, FileState, FrameRef, MapFrame, PageDigest, PageKey, PagePlace, RunRef,
    Step, View,
};

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDiff {
    /// Its path.
    pub path: SnapshotPath,
    /// What it was; nothing for one that was added.
    pub before: Option<Attributes>,
    /// What it is; nothing for one that was removed.
    pub after: Option<Attributes>,
    /// Pages that differ, or that only one of the two has; sorted, not touching each other.
    pub pages: Vec<Range<u32>>,
}

/// Compares two views by their maps alone.
///
/// Pages are the same when they lie at the same place of the same frame, or are both zero, or, if digests
/// are compared, have the same digest. Reads what only one of the views has, the attributes of files in that, and,
/// if digests are compared, what the other view says about their pages.
#[derive(Debug)]
pub struct Diff {
    views: [View; 2],
    with_digests: bool,
    sharing: Sharing,
    sides: Option<[Side; 2]>,
    file: Option<Comparing>,
}

/// Finds out which blocks two runs share.
#[derive(Debug)]
struct Sharing {
    /// How many runs at the end are the same.
    tail: usize,
    /// Index frames that both runs have.
    shared: HashSet<FrameId>,
    /// Index frames that only one has, of each.
    left: [Vec<FrameRef>; 2],
    blocks: [HashSet<FrameId>; 2],
    inbox: Inbox,
}

impl Sharing {
    fn new([one, other]: [&[RunRef]; 2]) -> Self {
        let pairs = one.iter().rev().zip(other.iter().rev());
        let tail = pairs.take_while(|(one, other)| one == other).count();
        let indexes = |runs: &[RunRef]| -> Vec<IndexRef> {
            let last = runs.iter().rev().nth(tail);
            last.map(|run| run.indexes.clone()).unwrap_or_default()
        };
        let ids = |indexes: &[IndexRef]| -> HashSet<FrameId> {
            indexes.iter().map(|index| index.frame.id()).collect()
        };
        let (one, other) = (indexes(one), indexes(other));
        let shared: HashSet<FrameId> = ids(&one).intersection(&ids(&other)).copied().collect();
        let left = |indexes: &[IndexRef]| {
            let frames = indexes.iter().map(|index| index.frame);
            frames
                .filter(|frame| !shared.contains(&frame.id()))
                .collect()
        };
        Self {
            tail,
            left: [left(&one), left(&other)],
            shared,
            blocks: Default::default(),
            inbox: Inbox::default(),
        }
    }

    /// What must be read for it; nothing once it is known.
    fn step(&mut self) -> Result<Vec<FrameRef>> {
        let mut needed = Vec::new();
        if self.left.iter().any(Vec::is_empty) {
            // Then nothing more is shared.
            return Ok(needed);
        }
        for (left, blocks) in self.left.iter_mut().zip(&mut self.blocks) {
            let mut missing = Vec::new();
            for frame in left.drain(..) {
                self.inbox.want(&frame, &mut needed);
                let Some(index) = self.inbox.take(&frame) else {
                    missing.push(frame);
                    continue;
                };
                blocks.extend(index.index()?.blocks.iter().map(|block| block.record.id()));
            }
            *left = missing;
        }
        let [one, other] = &self.blocks;
        if needed.is_empty() {
            self.shared.extend(one.intersection(other).copied());
        }
        Ok(needed)
    }
}

/// What one view has and the other has not.
#[derive(Debug)]
struct Side {
    overlay: Overlay,
    with_digests: bool,
    gathering: Option<Part>,
    /// The next file; nothing inside after the last.
    next: Option<Option<Part>>,
}

/// What is known of a file without what is shared.
#[derive(Debug)]
struct Part {
    path: SnapshotPath,
    /// Nothing when the rest has it.
    state: Option<FileState>,
    pieces: Vec<Piece>,
    digests: Vec<PageDigest>,
}

impl Side {
    fn new(view: &View, tail: usize, shared: &Arc<HashSet<FrameId>>, with_digests: bool) -> Self {
        let count = view.runs.len().saturating_sub(tail);
        let runs = view.runs.get(..count).unwrap_or_default();
        Self {
            overlay: Overlay::new(runs, with_digests).without(shared),
            with_digests,
            gathering: None,
            next: None,
        }
    }

    /// Gathers the next file; tells what is needed for that.
    fn fill(&mut self) -> Result<Vec<FrameRef>> {
        while self.next.is_none() {
            let (path, state) = match self.overlay.next()? {
                Step::Need(frames) => return Ok(frames),
                Step::Ready(Some(Event::Pages(extent, digests))) => {
                    let Some(part) = &mut self.gathering else {
                        continue;
                    };
                    let first = part.digests.len();
                    if self.with_digests {
                        part.digests.extend_from_slice(digests.get()?);
                    }
                    part.pieces.push(Piece {
                        extent,
                        digest: first,
                    });
                    continue;
                }
                Step::Ready(Some(Event::File(path, state))) => (path, Some(state)),
                Step::Ready(Some(Event::Rest(path, _))) => (path, None),
                Step::Ready(Some(Event::Block(_) | Event::Index(_))) => continue,
                Step::Ready(None) => {
                    self.next = Some(self.gathering.take());
                    break;
                }
            };
            let part = Part {
                path,
                // Only pages: the rest knows the file.
                state: state.filter(|state| !matches!(state, FileState::Same)),
                pieces: Vec::new(),
                digests: Vec::new(),
            };
            if let Some(gathered) = self.gathering.replace(part) {
                self.next = Some(Some(gathered));
            }
        }
        Ok(Vec::new())
    }

    fn path(&self) -> Option<&SnapshotPath> {
        self.next.as_ref()?.as_ref().map(|part| &part.path)
    }

    fn take_if(&mut self, wanted: bool) -> Option<Part> {
        match self.next.take() {
            Some(part) if wanted => part,
            next => {
                self.next = next;
                None
            }
        }
    }
}

/// A file that is compared.
#[derive(Debug)]
struct Comparing {
    path: SnapshotPath,
    parts: [Part; 2],
    /// Nothing until it is known.
    attributes: [Option<Option<Attributes>>; 2],
    with_digests: bool,
    compared: Option<Compared>,
    /// Where the lookup of an open page is.
    at_run: usize,
    inbox: Inbox,
}

impl Comparing {
    fn new(path: SnapshotPath, parts: [Option<Part>; 2], with_digests: bool) -> Result<Self> {
        let parts = parts.map(|part| {
            part.unwrap_or_else(|| Part {
                path: path.clone(),
                state: None,
                pieces: Vec::new(),
                digests: Vec::new(),
            })
        });
        let known = |part: &Part| {
            let state = part.state.clone();
            state.map(|state| attributes(&path, state)).transpose()
        };
        let attributes = [known(&parts[0])?, known(&parts[1])?];
        Ok(Self {
            path,
            parts,
            attributes,
            with_digests,
            compared: None,
            at_run: 0,
            inbox: Inbox::default(),
        })
    }

    fn step(&mut self, views: &[View; 2]) -> Result<Step<Option<FileDiff>>> {
        if let Step::Need(frames) = self.find_attributes(views)? {
            return Ok(Step::Need(frames));
        }
        let page_size = views[1].page_size;
        let [before, after] = self
            .attributes
            .each_ref()
            .map(|known| known.clone().flatten());
        let [one, other] = &mut self.parts;
        let compared = self.compared.get_or_insert_with(|| {
            let known = |part: &mut Part, attributes: &Option<Attributes>| Known {
                count: page_count(attributes.as_ref(), page_size),
                pieces: std::mem::take(&mut part.pieces),
                digests: std::mem::take(&mut part.digests),
            };
            let sides = [known(one, &before), known(other, &after)];
            compare(&sides, page_size, self.with_digests)
        });
        while let Some(open) = compared.open.last().copied() {
            let [one, other] = views;
            let runs = if open.in_second {
                &other.runs
            } else {
                &one.runs
            };
            let key = PageKey {
                path: self.path.clone(),
                page: open.page,
            };
            let (at, inbox) = (&mut self.at_run, &mut self.inbox);
            let found = match find_page(runs, &key, self.with_digests, at, inbox)? {
                Step::Need(frames) => return Ok(Step::Need(frames)),
                Step::Ready(found) => found,
            };
            let same = match (found, open.known) {
                (PagePlace::Zeros, None) => true,
                (PagePlace::Frame { digest, .. }, Some(known)) => digest == Some(known),
                _ => false,
            };
            if !same {
                compared.pages.push(open.page..open.page + 1);
            }
            compared.open.pop();
            self.at_run = 0;
            self.inbox.forget_if_over(MOST_FRAMES);
        }
        let pages = joined(std::mem::take(&mut compared.pages));
        let differs = before != after || !pages.is_empty();
        Ok(Step::Ready(differs.then(|| FileDiff {
            path: self.path.clone(),
            before,
            after,
            pages,
        })))
    }

    fn find_attributes(&mut self, views: &[View; 2]) -> Result<Step<()>> {
        // When neither says anything, both come from what is shared: looking once is enough.
        let shared = self.attributes.iter().all(Option::is_none);
        for (known, view) in self.attributes.iter_mut().zip(views) {
            if known.is_some() {
                continue;
            }
            match find_attributes(&view.runs, &self.path, &mut self.inbox)? {
                Step::Need(frames) => return Ok(Step::Need(frames)),
                Step::Ready(found) => *known = Some(found),
            }
            self.inbox = Inbox::default();
            if shared {
                break;
            }
        }
        if let [Some(one), other @ None] = &mut self.attributes {
            *other = Some(one.clone());
        }
        Ok(Step::Ready(()))
    }
}

/// Frames kept while the pages of one file are looked up.
const MOST_FRAMES: usize = 32;

fn page_count(attributes: Option<&Attributes>, page_size: u32) -> u32 {
    match attributes.map(|attributes| &attributes.kind) {
        Some(FileKind::File { size }) => pages_of(*size, page_size),
        _ => 0,
    }
}

/// Sorted ranges, those that touch made one.
fn joined(mut pages: Vec<Range<u32>>) -> Vec<Range<u32>> {
    pages.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u32>> = Vec::new();
    for range in pages {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

impl Diff {
    /// Compares `before` with `after`.
    #[must_use]
    pub fn new(before: &View, after: &View, with_digests: bool) -> Self {
        Self {
            sharing: Sharing::new([&before.runs, &after.runs]),
            views: [before.clone(), after.clone()],
            with_digests,
            sides: None,
            file: None,
        }
    }
}

impl Machine for Diff {
    type Output = Option<FileDiff>;

    fn step(&mut self) -> Result<Step<Self::Output>> {
        loop {
            if let Some(file) = &mut self.file {
                match file.step(&self.views)? {
                    Step::Need(frames) => return Ok(Step::Need(frames)),
                    Step::Ready(None) => self.file = None,
                    Step::Ready(found) => {
                        self.file = None;
                        return Ok(Step::Ready(found));
                    }
                }
                continue;
            }
            let Some([before, after]) = &mut self.sides else {
                let needed = self.sharing.step()?;
                if !needed.is_empty() {
                    return Ok(Step::Need(needed));
                }
                let shared = Arc::new(std::mem::take(&mut self.sharing.shared));
                let side = |view| Side::new(view, self.sharing.tail, &shared, self.with_digests);
                self.sides = Some(self.views.each_ref().map(side));
                continue;
            };
            let mut needed = before.fill()?;
            needed.extend(after.fill()?);
            if !needed.is_empty() {
                return Ok(Step::Need(needed));
            }
            let (left, right) = match (before.path(), after.path()) {
                (None, None) => return Ok(Step::Ready(None)),
                (Some(left), Some(right)) => (left <= right, right <= left),
                (left, right) => (left.is_some(), right.is_some()),
            };
            let parts = [before.take_if(left), after.take_if(right)];
            let path = parts.iter().flatten().next().map(|part| part.path.clone());
            let Some(path) = path else {
                return Ok(Step::Ready(None));
            };
            self.file = Some(Comparing::new(path, parts, self.with_digests)?);
        }
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.sharing.inbox.feed(frame, &content);
        for side in self.sides.iter_mut().flatten() {
            side.overlay.feed(frame, &content);
        }
        if let Some(file) = &mut self.file {
            file.inbox.feed(frame, &content);
        }
    }
}
