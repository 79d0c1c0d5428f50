//! Which frames views use: the mark of a garbage collection.

use std::collections::VecDeque;

use crate::error::Result;
use crate::map::machine::{Inbox, Machine};
use crate::map::overlay::{Event, Overlay};
use crate::map::{At, FrameRef, LiveFrames, MapFrame, Step, View};

/// Marks the frames that views use: those with a visible page, and those that the maps are made of.
///
/// Views are added at any time; what one of them made known is not looked at again for the others. Adding the
/// oldest first is fastest.
#[derive(Debug, Default)]
pub struct Mark {
    live: LiveFrames,
    views: VecDeque<View>,
    indexes: VecDeque<FrameRef>,
    overlay: Option<Overlay>,
    inbox: Inbox,
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
}

impl Machine for Mark {
    /// All views that were added are marked.
    type Output = ();

    fn step(&mut self) -> Result<Step<()>> {
        loop {
            while let Some(frame) = self.indexes.front().copied() {
                let mut needed = Vec::new();
                self.inbox.want(&frame, &mut needed);
                let Some(index) = self.inbox.take(&frame) else {
                    return Ok(Step::Need(needed));
                };
                for block in &index.index()?.blocks {
                    self.live.insert(&block.record);
                    block.digests.iter().for_each(|frame| {
                        self.live.insert(frame);
                    });
                }
                self.live.insert(&frame);
                self.indexes.pop_front();
            }
            if let Some(overlay) = &mut self.overlay {
                match overlay.next()? {
                    Step::Need(frames) => return Ok(Step::Need(frames)),
                    Step::Ready(None) => self.overlay = None,
                    Step::Ready(Some(Event::Pages(extent, _))) => {
                        if let At::Frame { frame, .. } = &extent.at {
                            self.live.insert(frame);
                        }
                    }
                    Step::Ready(Some(Event::File(..))) => {}
                }
                continue;
            }
            let Some(view) = self.views.pop_front() else {
                return Ok(Step::Ready(()));
            };
            let frames = view.runs.iter().flat_map(|run| run.index_frames());
            self.indexes.extend(frames.map(|(_, frame)| *frame));
            self.overlay = Some(Overlay::new(&view.runs, false));
        }
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.inbox.feed(frame, content.clone());
        if let Some(overlay) = &mut self.overlay {
            overlay.feed(frame, content);
        }
    }
}
