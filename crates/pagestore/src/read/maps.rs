//! Runs the machines of page maps over frames of a storage, and keeps what was decoded.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bridge::Bridge;
use crate::error::{Error, Result};
use crate::map::{FrameRef, Machine, MapFrame, Step};
use crate::read::frames::FrameReader;
use crate::read::memory::Memory;
use crate::read::plain::subject;

/// Reads page maps. Clones share what is kept.
#[derive(Clone)]
pub struct MapReader {
    frames: FrameReader,
    decoded: Arc<Mutex<Memory<MapFrame>>>,
}

impl fmt::Debug for MapReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapReader")
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl MapReader {
    /// Reads maps through frames, and keeps so many bytes of them decoded.
    #[must_use]
    pub fn new(frames: FrameReader, memory: u64) -> Self {
        Self {
            frames,
            decoded: Arc::new(Mutex::new(Memory::new(memory))),
        }
    }

    /// The frames below.
    #[must_use]
    pub fn frames(&self) -> &FrameReader {
        &self.frames
    }

    fn known(&self, frame: &FrameRef) -> Option<MapFrame> {
        self.decoded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(frame.id())
    }

    /// Runs a machine to its next result as far as what is kept allows; none when a frame is missing.
    ///
    /// # Errors
    /// Those of the machine.
    pub fn run_kept<M: Machine>(&self, machine: &mut M) -> Result<Option<M::Output>> {
        loop {
            match machine.step()? {
                Step::Ready(output) => return Ok(Some(output)),
                Step::Need(frames) => {
                    for frame in frames {
                        let Some(content) = self.known(&frame) else {
                            return Ok(None);
                        };
                        machine.feed(&frame, content);
                    }
                }
            }
        }
    }

    /// Runs a machine to its next result.
    ///
    /// Dropped: nothing remains; the machine can go on.
    ///
    /// # Errors
    /// Those of the machine, and as [`FrameReader::get`].
    pub async fn run<M: Machine>(&self, machine: &mut M) -> Result<M::Output> {
        loop {
            let needed = match machine.step()? {
                Step::Ready(output) => return Ok(output),
                Step::Need(frames) => frames,
            };
            let missing = self.feed(machine, &needed, |_| None);
            for (frame, content) in self.fetch(&missing).await? {
                machine.feed(&frame, content);
            }
        }
    }

    /// As [`run`](Self::run), from a thread outside of the runtime.
    pub(crate) fn wait<M: Machine>(&self, bridge: &Bridge, machine: &mut M) -> Result<M::Output> {
        self.wait_with(bridge, machine, |_| None)
    }

    /// As [`wait`](Self::wait), with frames that are not in the storage yet. The machine runs on this thread and never while
    /// a future is polled: it may wait for the runtime itself, as one that writes does.
    pub(crate) fn wait_with<M: Machine>(
        &self,
        bridge: &Bridge,
        machine: &mut M,
        unstored: impl Fn(&FrameRef) -> Option<MapFrame>,
    ) -> Result<M::Output> {
        loop {
            let needed = match machine.step()? {
                Step::Ready(output) => return Ok(output),
                Step::Need(frames) => frames,
            };
            let missing = self.feed(machine, &needed, &unstored);
            if missing.is_empty() {
                continue;
            }
            for (frame, content) in bridge.wait(self.fetch(&missing))? {
                machine.feed(&frame, content);
            }
        }
    }

    /// Gives a machine what is at hand of what it needs. The rest comes back.
    fn feed<M: Machine>(
        &self,
        machine: &mut M,
        needed: &[FrameRef],
        unstored: impl Fn(&FrameRef) -> Option<MapFrame>,
    ) -> Vec<FrameRef> {
        let mut missing = Vec::new();
        for frame in needed {
            match unstored(frame).or_else(|| self.known(frame)) {
                Some(content) => machine.feed(frame, content),
                None => missing.push(*frame),
            }
        }
        missing
    }

    /// Reads frames, and keeps what they hold.
    async fn fetch(&self, missing: &[FrameRef]) -> Result<Vec<(FrameRef, MapFrame)>> {
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let plain = self.frames.get_many(missing).await?;
        let mut found = Vec::with_capacity(missing.len());
        for (frame, plain) in missing.iter().zip(plain) {
            let content = MapFrame::decode(&plain).map_err(|error| {
                Error::new(error.kind(), subject(frame), "is no frame of a map").caused_by(error)
            })?;
            let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
            decoded.put(frame.id(), content.clone(), content.memory());
            drop(decoded);
            found.push((*frame, content));
        }
        Ok(found)
    }
}
