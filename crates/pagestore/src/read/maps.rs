//! Runs the machines of page maps over frames of a storage, and keeps what was decoded.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bridge::Bridge;
use crate::error::{Error, Result};
use crate::map::{FrameRef, Machine, MapFrame, Step};
use crate::read::frames::{FrameReader, subject};
use crate::read::memory::Memory;

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
        self.run_with(machine, |_| None).await
    }

    /// As [`run`](Self::run), with frames that are not in the storage yet.
    pub(crate) async fn run_with<M: Machine>(
        &self,
        machine: &mut M,
        unstored: impl Fn(&FrameRef) -> Option<MapFrame>,
    ) -> Result<M::Output> {
        loop {
            let needed = match machine.step()? {
                Step::Ready(output) => return Ok(output),
                Step::Need(frames) => frames,
            };
            let mut missing = Vec::new();
            for frame in needed {
                match unstored(&frame).or_else(|| self.known(&frame)) {
                    Some(content) => machine.feed(&frame, content),
                    None => missing.push(frame),
                }
            }
            if missing.is_empty() {
                continue;
            }
            let plain = self.frames.get_many(&missing).await?;
            for (frame, plain) in missing.iter().zip(plain) {
                let content = MapFrame::decode(&plain).map_err(|error| {
                    Error::new(error.kind(), subject(frame), "is no frame of a map")
                        .caused_by(error)
                })?;
                let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
                decoded.put(frame.id(), content.clone(), content.memory());
                drop(decoded);
                machine.feed(frame, content);
            }
        }
    }

    /// As [`run`](Self::run), from a thread outside of the runtime.
    pub(crate) fn wait<M: Machine>(&self, bridge: &Bridge, machine: &mut M) -> Result<M::Output> {
        match self.run_kept_or_step(machine)? {
            Some(output) => Ok(output),
            None => bridge.wait(self.run(machine)),
        }
    }

    /// The next result if the machine needs nothing for it.
    fn run_kept_or_step<M: Machine>(&self, machine: &mut M) -> Result<Option<M::Output>> {
        match machine.step()? {
            Step::Ready(output) => Ok(Some(output)),
            Step::Need(_) => Ok(None),
        }
    }
}
