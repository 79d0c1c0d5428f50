//! How readers of maps ask for what they need: they never do I/O themselves.
//!
//! A driver calls [`Machine::step`]; on [`Step::Need`] it fetches the frames (together, if it can), decodes
//! each once ([`MapFrame::decode`], worth a cache), gives them to [`Machine::feed`] and calls again.

use neon_snapshot_format::pack::PackId;

use crate::error::{Error, Result};
use crate::map::{FrameRef, MapFrame};

/// What a machine says when it is asked to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// It cannot without these frames. The first are needed now, some later ones may be needed soon.
    Need(Vec<FrameRef>),
    /// The next result.
    Ready(T),
}

/// Something that computes from the frames of a map and leaves fetching them to its caller.
pub trait Machine {
    /// What it computes; an `Option` where there are many, `None` after the last.
    type Output;

    /// Goes on as far as it can.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed), [`Inconsistent`](crate::ErrorKind::Inconsistent) for frames
    /// that no writer makes. After an error it must not be called again.
    fn step(&mut self) -> Result<Step<Self::Output>>;

    /// Takes a frame that was asked for. Others are ignored.
    fn feed(&mut self, frame: &FrameRef, content: MapFrame);
}

/// Runs a machine to its next result with a function that has every frame at hand.
///
/// # Errors
/// Those of the machine and of the function.
pub fn drive<M: Machine>(
    machine: &mut M,
    mut get: impl FnMut(&FrameRef) -> Result<MapFrame>,
) -> Result<M::Output> {
    loop {
        match machine.step()? {
            Step::Ready(output) => return Ok(output),
            Step::Need(frames) => {
                for frame in frames {
                    let content = get(&frame)?;
                    machine.feed(&frame, content);
                }
            }
        }
    }
}

/// The address of a frame, which identifies it.
pub(crate) type FrameId = (PackId, u64);

/// Frames that were asked for, and those of them that came. There are few at a time.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    frames: Vec<(FrameId, Option<MapFrame>)>,
}

impl Inbox {
    fn position(&self, id: FrameId) -> Option<usize> {
        self.frames.iter().position(|(other, _)| *other == id)
    }

    /// Asks for a frame, unless it is there.
    pub(crate) fn want(&mut self, frame: &FrameRef, needed: &mut Vec<FrameRef>) {
        let id = frame.id();
        let came = match self.frames.iter().find(|(other, _)| *other == id) {
            Some((_, content)) => content.is_some(),
            None => {
                self.frames.push((id, None));
                false
            }
        };
        if !came && !needed.iter().any(|other| other.id() == id) {
            needed.push(*frame);
        }
    }

    pub(crate) fn feed(&mut self, frame: &FrameRef, content: &MapFrame) {
        let id = frame.id();
        if let Some((_, slot)) = self.frames.iter_mut().find(|(other, _)| *other == id) {
            *slot = Some(content.clone());
        }
    }

    /// A frame that came; it stays.
    pub(crate) fn get(&self, frame: &FrameRef) -> Option<&MapFrame> {
        let (_, content) = self.frames.get(self.position(frame.id())?)?;
        content.as_ref()
    }

    /// A frame that came; it is forgotten here.
    pub(crate) fn take(&mut self, frame: &FrameRef) -> Option<MapFrame> {
        let at = self.position(frame.id())?;
        let content = self.frames.get_mut(at)?.1.take()?;
        self.frames.swap_remove(at);
        Some(content)
    }

    /// Forgets everything when there is more of it than that.
    pub(crate) fn forget_if_over(&mut self, most: usize) {
        if self.frames.len() > most {
            self.frames.clear();
        }
    }

    /// Forgets everything but these.
    pub(crate) fn keep_only(&mut self, frames: &[FrameRef]) {
        let kept = |id: FrameId| frames.iter().any(|frame| frame.id() == id);
        self.frames.retain(|(id, _)| kept(*id));
    }
}

/// An error about a map as a whole.
pub(crate) fn malformed(reason: &'static str) -> Error {
    Error::malformed("page map", reason)
}
