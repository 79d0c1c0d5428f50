//! Pages that share a frame with others: those of small files, and those that changed here and there.

use neon_snapshot_format::pack::FRAME_SIZE;

use crate::error::Result;
use crate::map::{At, Extent, FrameRef, PageDigest};
use crate::write::packs::Packs;
use crate::write::part::Part;

/// Parts that wait for one frame at most.
const MAX_PARTS: usize = 4096;

/// Where pages are, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Known(At),
    /// Where the parent has them.
    Parent,
    /// In the frame that is being filled, from this byte on.
    Filling(u32),
}

/// Neighbouring pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) page: u32,
    pub(crate) count: u32,
    pub(crate) place: Place,
}

/// A part of a file on its way to the list.
#[derive(Debug, Default)]
pub(crate) struct OpenPart {
    pub(crate) path: Vec<u8>,
    pub(crate) first: u32,
    pub(crate) runs: Vec<Run>,
    pub(crate) digests: Vec<PageDigest>,
}

impl OpenPart {
    /// Appends pages, to the last run if they continue it.
    pub(crate) fn push(&mut self, run: Run, page_size: u32) {
        if let Some(last) = self.runs.last_mut()
            && last.page.checked_add(last.count) == Some(run.page)
        {
            let length = u64::from(last.count) * u64::from(page_size);
            let follows = |from: u32, to: u32| u64::from(from) + length == u64::from(to);
            let joined = match (&last.place, &run.place) {
                (Place::Known(At::Zeros), Place::Known(At::Zeros))
                | (Place::Parent, Place::Parent) => true,
                (Place::Filling(from), Place::Filling(to)) => follows(*from, *to),
                (
                    Place::Known(At::Frame { frame, offset }),
                    Place::Known(At::Frame {
                        frame: next,
                        offset: to,
                    }),
                ) => frame == next && follows(*offset, *to),
                _ => false,
            };
            if joined {
                last.count += run.count;
                return;
            }
        }
        self.runs.push(run);
    }

    fn settle(&mut self, frame: FrameRef) {
        for run in &mut self.runs {
            if let Place::Filling(offset) = run.place {
                run.place = Place::Known(At::Frame { frame, offset });
            }
        }
    }

    fn is_settled(&self) -> bool {
        !self
            .runs
            .iter()
            .any(|run| matches!(run.place, Place::Filling(_)))
    }

    /// What is to be listed, once every place is known.
    pub(crate) fn part(&self) -> Part {
        let mut part = Part {
            digests: self.digests.clone(),
            ..Part::default()
        };
        for run in &self.runs {
            match run.place {
                Place::Known(at) => part.extents.push(Extent {
                    page: run.page,
                    count: run.count,
                    at,
                }),
                Place::Parent => part.same.push(run.page..run.page.saturating_add(run.count)),
                Place::Filling(_) => {}
            }
        }
        part
    }
}

/// A frame that is being filled, and the parts that wait for it.
#[derive(Debug, Default)]
pub(crate) struct Bundle {
    bytes: Vec<u8>,
    waiting: Vec<OpenPart>,
}

impl Bundle {
    /// Whether so many more bytes fit.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.bytes.len() + bytes <= FRAME_SIZE && self.waiting.len() < MAX_PARTS
    }

    /// Adds the bytes of pages; the place is known when the frame is written.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Place {
        let offset = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(bytes);
        Place::Filling(offset)
    }

    /// Takes a part that is complete; gives it back if it waits for nothing.
    pub(crate) fn wait(&mut self, part: OpenPart) -> Option<OpenPart> {
        if part.is_settled() {
            return Some(part);
        }
        self.waiting.push(part);
        None
    }

    /// Writes the frame. `current` is a part that is not complete yet. Returns the parts that waited.
    pub(crate) fn write(
        &mut self,
        packs: &mut Packs,
        current: Option<&mut OpenPart>,
    ) -> Result<Vec<OpenPart>> {
        if self.bytes.is_empty() {
            return Ok(Vec::new());
        }
        let frame = packs.append(&self.bytes)?;
        self.bytes.clear();
        let mut settled = std::mem::take(&mut self.waiting);
        settled
            .iter_mut()
            .chain(current)
            .for_each(|part| part.settle(frame));
        Ok(settled)
    }
}
