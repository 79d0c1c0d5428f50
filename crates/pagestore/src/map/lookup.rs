//! One page, or one file, of a view.

use crate::error::Result;
use crate::map::block::{Block, Part};
use crate::map::cursor::check_block;
use crate::map::machine::{Inbox, Machine};
use crate::map::map_frame::digests_at;
use crate::map::overlay::combine;
use crate::map::walk::attributes;
use crate::map::{
    At, Attributes, FileState, FrameRef, MapFrame, PageKey, PagePlace, RunRef, Step, View,
};
use neon_snapshot_format::SnapshotPath;

/// Finds one page: reads at most an index frame and a record block (and its digests) of each run.
#[derive(Debug)]
pub struct Lookup<'a> {
    runs: &'a [RunRef],
    key: PageKey,
    with_digest: bool,
    /// Runs before this one do not say where the page is.
    at: usize,
    inbox: Inbox,
}

/// A part of a block about a file, once found in a run.
fn find<T>(
    run: &RunRef,
    key: &PageKey,
    inbox: &mut Inbox,
    needed: &mut Vec<FrameRef>,
    with_digests: bool,
    then: impl FnOnce(&Block, &Part, Option<&MapFrame>) -> Result<T>,
) -> Result<Option<T>> {
    let Some(wanted) = run.find(key) else {
        return Ok(None);
    };
    inbox.want(&wanted.frame, needed);
    let Some(index) = inbox.get(&wanted.frame) else {
        return Ok(None);
    };
    let index = index.index()?;
    let Some(entry) = index.find(key) else {
        return Ok(None);
    };
    inbox.want(&entry.record, needed);
    let digests = entry.digests.filter(|_| with_digests);
    if let Some(digests) = &digests {
        inbox.want(digests, needed);
    }
    let Some(block) = inbox.get(&entry.record) else {
        return Ok(None);
    };
    let block = block.block()?;
    check_block(&block, entry)?;
    let digests = match &digests {
        None => None,
        Some(frame) => match inbox.get(frame) {
            Some(digests) => Some(digests),
            None => return Ok(None),
        },
    };
    let part = block.part(&key.path);
    part.map(|part| then(&block, part, digests)).transpose()
}

impl<'a> Lookup<'a> {
    /// Of one page of a file.
    #[must_use]
    pub fn new(view: &'a View, key: PageKey, with_digest: bool) -> Self {
        Self {
            runs: &view.runs,
            key,
            with_digest,
            at: 0,
            inbox: Inbox::default(),
        }
    }
}

enum Found {
    Place(PagePlace),
    Below(u32),
}

/// What [`Lookup`] does. `at` is 0 for another page, and its own afterwards.
pub(crate) fn find_page(
    runs: &[RunRef],
    key: &PageKey,
    with_digest: bool,
    at: &mut usize,
    inbox: &mut Inbox,
) -> Result<Step<PagePlace>> {
    for (number, run) in runs.iter().enumerate().skip(*at) {
        let mut needed = Vec::new();
        let page = key.page;
        *at = number;
        let found = find(
            run,
            key,
            inbox,
            &mut needed,
            with_digest,
            |block, part, digests| {
                let extents = block.extents_of(part);
                let at = extents.partition_point(|extent| extent.end() <= page);
                let Some(extent) = extents.get(at).filter(|extent| extent.page <= page) else {
                    return Ok(Found::Below(part.limit));
                };
                let within = page - extent.page;
                Ok(Found::Place(match block.unpack(extent).at {
                    At::Zeros => PagePlace::Zeros,
                    At::Frame { frame, offset } => PagePlace::Frame {
                        frame,
                        offset: offset + within * block.page_size,
                        digest: match digests {
                            Some(digests) => {
                                let bytes = digests.digests(block.pages)?;
                                let digest = digests_at(&bytes, extent.digest + within, 1)?;
                                digest.first().copied()
                            }
                            None => None,
                        },
                    },
                }))
            },
        )?;
        if !needed.is_empty() {
            return Ok(Step::Need(needed));
        }
        match found {
            Some(Found::Place(place)) => return Ok(Step::Ready(place)),
            Some(Found::Below(limit)) if page >= limit => break,
            _ => {}
        }
    }
    Ok(Step::Ready(PagePlace::NotThere))
}

impl Machine for Lookup<'_> {
    type Output = PagePlace;

    fn step(&mut self) -> Result<Step<PagePlace>> {
        let (at, inbox) = (&mut self.at, &mut self.inbox);
        find_page(self.runs, &self.key, self.with_digest, at, inbox)
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.inbox.feed(frame, &content);
    }
}

/// Finds the attributes of one file.
#[derive(Debug)]
pub struct Stat<'a> {
    runs: &'a [RunRef],
    path: SnapshotPath,
    inbox: Inbox,
}

impl<'a> Stat<'a> {
    /// Of the file, directory or tablespace of this path.
    #[must_use]
    pub fn new(view: &'a View, path: SnapshotPath) -> Self {
        Self {
            runs: &view.runs,
            path,
            inbox: Inbox::default(),
        }
    }
}

/// What [`Stat`] does.
pub(crate) fn find_attributes(
    runs: &[RunRef],
    path: &SnapshotPath,
    inbox: &mut Inbox,
) -> Result<Step<Option<Attributes>>> {
    let key = PageKey::of(path.clone());
    let mut state: Option<FileState> = None;
    for run in runs {
        let mut needed = Vec::new();
        let found = find(run, &key, inbox, &mut needed, false, |_, part, _| {
            Ok(part.state.clone())
        })?;
        if !needed.is_empty() {
            return Ok(Step::Need(needed));
        }
        if let Some(found) = found.flatten() {
            state = Some(match state {
                Some(newer) => combine(path, newer, &found)?,
                None => found,
            });
        }
        if state
            .as_ref()
            .is_some_and(|state| !matches!(state, FileState::Same))
        {
            break;
        }
    }
    let state = state.map_or(Ok(None), |state| attributes(path, state))?;
    Ok(Step::Ready(state))
}

impl Machine for Stat<'_> {
    type Output = Option<Attributes>;

    fn step(&mut self) -> Result<Step<Self::Output>> {
        find_attributes(self.runs, &self.path, &mut self.inbox)
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.inbox.feed(frame, &content);
    }
}
