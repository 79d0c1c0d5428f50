//! Newer and older runs into one.

use std::fmt;

use crate::error::Result;
use crate::map::machine::Machine;
use crate::map::overlay::{Event, Overlay};
use crate::map::run_writer::Limits;
use crate::map::walk::attributes;
use crate::map::{BlockSink, FileState, FrameRef, MapFrame, RunRef, RunWriter, Step};

/// Merges a newer run and the runs after it into one, and writes that.
///
/// Record blocks of the oldest run that nothing newer touches are not written again.
pub struct Merge<S> {
    overlay: Overlay,
    writer: Option<RunWriter<S>>,
    bottom: bool,
    reuse: bool,
    dropping: bool,
}

impl<S> fmt::Debug for Merge<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merge")
            .field("overlay", &self.overlay)
            .finish_non_exhaustive()
    }
}

impl<S: BlockSink> Merge<S> {
    /// Merges `delta`, whose frames are written anew, with the `older` runs that follow it, newest first; none
    /// only stores the delta. `bottom` says that no run is older than those: what is removed is then forgotten.
    ///
    /// # Errors
    /// As [`RunWriter::new`].
    pub fn new(
        sink: S,
        page_size: u32,
        delta: &RunRef,
        older: &[RunRef],
        bottom: bool,
    ) -> Result<Self> {
        Self::with_limits(sink, page_size, delta, older, bottom, Limits::default())
    }

    pub(crate) fn with_limits(
        sink: S,
        page_size: u32,
        delta: &RunRef,
        older: &[RunRef],
        bottom: bool,
        limits: Limits,
    ) -> Result<Self> {
        let runs: Vec<RunRef> = std::iter::once(delta).chain(older).cloned().collect();
        Ok(Self {
            overlay: Overlay::new(&runs, true),
            writer: Some(RunWriter::with_limits(sink, page_size, limits)?),
            bottom,
            reuse: !older.is_empty(),
            dropping: false,
        })
    }
}

impl<S: BlockSink> Machine for Merge<S> {
    /// The merged run and the sink; `None` after that.
    type Output = Option<(RunRef, S)>;

    fn step(&mut self) -> Result<Step<Self::Output>> {
        let Some(writer) = &mut self.writer else {
            return Ok(Step::Ready(None));
        };
        loop {
            if self.reuse {
                self.overlay.reusing(writer.reuse(self.bottom));
            }
            match self.overlay.next()? {
                Step::Need(frames) => return Ok(Step::Need(frames)),
                Step::Ready(Some(Event::File(path, state))) => {
                    self.dropping = self.bottom && matches!(state, FileState::Removed);
                    if self.bottom {
                        // Only a file that is somewhere can be the same.
                        attributes(&path, state.clone())?;
                    }
                    if !self.dropping {
                        writer.begin(&path, &state)?;
                    }
                }
                Step::Ready(Some(Event::Rest(path, limit))) => {
                    self.dropping = false;
                    writer.begin_rest(&path, limit)?;
                }
                Step::Ready(Some(Event::Block(block))) => writer.take_block(block)?,
                Step::Ready(Some(Event::Index(index))) => writer.take_index(index)?,
                Step::Ready(Some(Event::Pages(extent, digests))) => {
                    if !self.dropping {
                        writer.pages(&extent, digests.get()?)?;
                    }
                }
                Step::Ready(None) => break,
            }
        }
        let done = self.writer.take().map(RunWriter::finish).transpose()?;
        Ok(Step::Ready(done))
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.overlay.feed(frame, &content);
    }
}
