//! Which frames views use: the mark of a garbage collection.
//!
//! Views of one repository share most of their blocks. A block is complete once all cells of its pages are known to be
//! live; it is not read again. To judge what is visible of another, all blocks of newer runs that reach
//! over its keys are laid over it, complete or not; nothing else is read.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::error::Result;
use crate::map::index::Index;
use crate::map::key_ranges::KeyRanges;
use crate::map::machine::{FrameId, Inbox, Machine};
use crate::map::overlay::{Event, Overlay};
use crate::map::{FrameRef, LiveFrames, MapFrame, Step, View};

/// Marks what views use of frames: the cells that visible pages touch, and the whole of those that the maps are made of.
///
/// Views are added at any time; what one of them made known is not looked at again for the others. Adding the
/// oldest first is fastest.
#[derive(Debug, Default)]
pub struct Mark {
    live: LiveFrames,
    views: VecDeque<View>,
    /// Record blocks of which all pages are live, and indexes of which all blocks are such.
    complete: HashSet<FrameId>,
    /// Indexes whose blocks are marked as frames.
    indexed: HashSet<FrameId>,
    planning: Option<Planning>,
    marking: Option<Marking>,
}

/// Finds out what must be read of a view, run by run, the oldest first.
#[derive(Debug)]
struct Planning {
    view: View,
    /// Runs that are still to be looked at.
    runs: usize,
    /// Keys of blocks of the runs looked at of which it is not known what is visible.
    open: KeyRanges,
    plan: Plan,
    inbox: Inbox,
}

#[derive(Debug, Default)]
struct Plan {
    /// Blocks and indexes that need not be read.
    skipped: HashSet<FrameId>,
    indexes: Vec<(FrameId, Arc<Index>)>,
}

#[derive(Debug)]
struct Marking {
    page_size: u32,
    overlay: Overlay,
    indexes: Vec<(FrameId, Arc<Index>)>,
}

impl Mark {
    /// With nothing marked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a view to mark.
    pub fn add(&mut self, view: View) {
        self.views.push_back(view);
    }

    /// What has been marked. Complete once [`step`](Machine::step) is ready.
    #[must_use]
    pub fn live(&self) -> &LiveFrames {
        &self.live
    }

    /// What has been marked.
    #[must_use]
    pub fn into_live(self) -> LiveFrames {
        self.live
    }

    /// Plans the next run of the view; tells what is needed for that.
    fn plan_run(&mut self, planning: &mut Planning) -> Result<Vec<FrameRef>> {
        let Some(run) = planning.view.runs.get(planning.runs - 1) else {
            return Ok(Vec::new());
        };
        let ends = run.indexes.iter().skip(1).map(|index| &index.first);
        let ends = ends.map(Some).chain(std::iter::once(None));
        let mut needed = Vec::new();
        let mut wanted = Vec::new();
        for (index, end) in run.indexes.iter().zip(ends) {
            self.live.insert(&index.frame);
            let id = index.frame.id();
            if self.complete.contains(&id) && !planning.open.overlap(&index.first, end) {
                planning.plan.skipped.insert(id);
                continue;
            }
            planning.inbox.want(&index.frame, &mut needed);
            wanted.push((index.frame, end));
        }
        if !needed.is_empty() {
            return Ok(needed);
        }
        let mut open = KeyRanges::default();
        for (frame, end) in wanted {
            let Some(content) = planning.inbox.take(&frame) else {
                continue;
            };
            let index = content.index()?;
            let new = self.indexed.insert(frame.id());
            let ends = index.blocks.iter().skip(1).map(|block| Some(&block.first));
            for (block, end) in index.blocks.iter().zip(ends.chain(std::iter::once(end))) {
                if new {
                    self.live.insert(&block.record);
                    block.digests.iter().for_each(|frame| {
                        self.live.insert(frame);
                    });
                }
                let id = block.record.id();
                if !self.complete.contains(&id) {
                    open.push(&block.first, end);
                } else if !planning.open.overlap(&block.first, end) {
                    planning.plan.skipped.insert(id);
                }
            }
            planning.plan.indexes.push((frame.id(), index));
        }
        planning.open.extend(open);
        planning.runs -= 1;
        Ok(Vec::new())
    }

    /// Marks what is visible; tells what is needed for that.
    fn mark(&mut self, marking: &mut Marking) -> Result<Vec<FrameRef>> {
        loop {
            let event = match marking.overlay.next()? {
                Step::Need(frames) => return Ok(frames),
                Step::Ready(event) => event,
            };
            if let Some(Event::Pages(extent, _)) = &event
                && let Some((frame, cells)) = extent.cells(marking.page_size)
            {
                self.live.insert_cells(frame, cells);
            }
            for (id, block) in marking.overlay.take_passed() {
                // Every page in it, not only every frame: what is hidden here may be all that another view shows of one.
                let mut extents = block.extents.iter();
                let all = extents.all(|extent| {
                    let extent = block.unpack(extent);
                    extent
                        .cells(block.page_size)
                        .is_none_or(|(frame, cells)| self.live.cells(frame.id()).contains(cells))
                });
                if all {
                    self.complete.insert(id);
                }
            }
            if event.is_none() {
                break;
            }
        }
        for (id, index) in marking.indexes.drain(..) {
            let mut blocks = index.blocks.iter();
            if blocks.all(|block| self.complete.contains(&block.record.id())) {
                self.complete.insert(id);
            }
        }
        Ok(Vec::new())
    }
}

impl Planning {
    fn new(view: View) -> Self {
        Self {
            runs: view.runs.len(),
            view,
            open: KeyRanges::default(),
            plan: Plan::default(),
            inbox: Inbox::default(),
        }
    }

    fn finish(self) -> Marking {
        Marking {
            page_size: self.view.page_size,
            overlay: Overlay::new(&self.view.runs, false)
                .of_pages(self.view.page_size)
                .judging(&Arc::new(self.plan.skipped)),
            indexes: self.plan.indexes,
        }
    }
}

impl Machine for Mark {
    /// All views that were added are marked.
    type Output = ();

    fn step(&mut self) -> Result<Step<()>> {
        loop {
            if let Some(mut marking) = self.marking.take() {
                let needed = self.mark(&mut marking)?;
                if !needed.is_empty() {
                    self.marking = Some(marking);
                    return Ok(Step::Need(needed));
                }
            }
            if let Some(mut planning) = self.planning.take() {
                while planning.runs > 0 {
                    let needed = self.plan_run(&mut planning)?;
                    if !needed.is_empty() {
                        self.planning = Some(planning);
                        return Ok(Step::Need(needed));
                    }
                }
                self.marking = Some(planning.finish());
                continue;
            }
            match self.views.pop_front() {
                Some(view) => self.planning = Some(Planning::new(view)),
                None => return Ok(Step::Ready(())),
            }
        }
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        if let Some(planning) = &mut self.planning {
            planning.inbox.feed(frame, &content);
        }
        if let Some(marking) = &mut self.marking {
            marking.overlay.feed(frame, &content);
        }
    }
}
