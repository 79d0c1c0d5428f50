//! What a directory holds.

use neon_snapshot_format::SnapshotPath;

use crate::error::Result;
use crate::map::machine::Machine;
use crate::map::overlay::{Event, Overlay};
use crate::map::walk::attributes;
use crate::map::{Attributes, FrameRef, MapFrame, Step, View};

/// Tells the files and directories right in a directory, sorted by the bytes of their paths.
#[derive(Debug)]
pub struct List {
    overlay: Overlay,
    prefix: Vec<u8>,
    over: bool,
}

impl List {
    /// Of this directory; the root is the data directory.
    #[must_use]
    pub fn new(view: &View, directory: &SnapshotPath) -> Self {
        let mut overlay = Overlay::new(&view.runs, false);
        let mut prefix = directory.as_bytes().to_vec();
        if !prefix.is_empty() {
            overlay.seek(directory);
            prefix.push(b'/');
        }
        Self {
            overlay,
            prefix,
            over: false,
        }
    }
}

impl Machine for List {
    type Output = Option<(SnapshotPath, Attributes)>;

    fn step(&mut self) -> Result<Step<Self::Output>> {
        while !self.over {
            let (path, state) = match self.overlay.next()? {
                Step::Need(frames) => return Ok(Step::Need(frames)),
                Step::Ready(None) => break,
                Step::Ready(Some(Event::File(path, state))) => (path, state),
                Step::Ready(Some(_)) => continue,
            };
            let Some(name) = path.as_bytes().strip_prefix(self.prefix.as_slice()) else {
                // What sorts between a directory and its content is passed.
                self.over = path.as_bytes() > self.prefix.as_slice();
                continue;
            };
            if name.contains(&b'/') || path.is_root() {
                continue;
            }
            if let Some(attributes) = attributes(&path, state)? {
                return Ok(Step::Ready(Some((path, attributes))));
            }
        }
        self.over = true;
        Ok(Step::Ready(None))
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.overlay.feed(frame, &content);
    }
}
