//! All files of a view, in order.

use neon_snapshot_format::SnapshotPath;

use crate::error::{Error, Result};
use crate::map::machine::Machine;
use crate::map::overlay::{Event, Overlay};
use crate::map::{Attributes, Extent, FileState, FrameRef, MapFrame, PageDigest, Step, View};

/// A file of a snapshot, all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedFile {
    /// Its path.
    pub path: SnapshotPath,
    /// What a listing shows.
    pub attributes: Attributes,
    /// Where its pages are: sorted, not overlapping.
    pub extents: Vec<Extent>,
    /// The digests of its pages that are not zero, in the order of the extents. Empty if not asked for.
    pub digests: Vec<PageDigest>,
}

/// Tells the files of a view in the order of their paths' bytes, each with all its visible pages.
#[derive(Debug)]
pub struct Walk {
    overlay: Overlay,
    page_size: u32,
    with_digests: bool,
    /// What has been gathered of the file that is next.
    file: Option<MappedFile>,
    /// Only paths that begin with it.
    prefix: Vec<u8>,
    over: bool,
}

impl Walk {
    /// From the first file on.
    #[must_use]
    pub fn new(view: &View, with_digests: bool) -> Self {
        Self {
            overlay: Overlay::new(&view.runs, with_digests).of_pages(view.page_size),
            page_size: view.page_size,
            with_digests,
            file: None,
            prefix: Vec::new(),
            over: false,
        }
    }

    /// Only from this path on, itself included.
    #[must_use]
    pub fn from(mut self, path: &SnapshotPath) -> Self {
        self.overlay.seek(path);
        self
    }

    /// Only what lies in this directory, however deep; not itself.
    #[must_use]
    pub fn below(mut self, directory: &SnapshotPath) -> Self {
        if !directory.is_root() {
            self.overlay.seek(directory);
            self.prefix = [directory.as_bytes(), b"/"].concat();
        }
        self
    }

    fn wanted(&self, file: &MappedFile) -> bool {
        file.path.as_bytes().starts_with(&self.prefix)
    }

    fn is_past(&self, path: &SnapshotPath) -> bool {
        let path = path.as_bytes();
        path > self.prefix.as_slice() && !path.starts_with(&self.prefix)
    }
}

/// The attributes of a file whose runs have been laid over each other; none when it is removed.
pub(crate) fn attributes(path: &SnapshotPath, state: FileState) -> Result<Option<Attributes>> {
    match state {
        FileState::Present { attributes, .. } => Ok(Some(attributes)),
        FileState::Removed => Ok(None),
        FileState::Same => Err(Error::malformed(
            path.to_string(),
            "the map has pages of a file and nowhere the file",
        )),
    }
}

impl Machine for Walk {
    type Output = Option<MappedFile>;

    fn step(&mut self) -> Result<Step<Self::Output>> {
        while !self.over {
            match self.overlay.next()? {
                Step::Need(frames) => return Ok(Step::Need(frames)),
                Step::Ready(Some(Event::Pages(extent, digests))) => {
                    let Some(file) = &mut self.file else { continue };
                    match file.extents.last_mut() {
                        Some(last)
                            if super::run_writer::continues(last, &extent, self.page_size) =>
                        {
                            last.count += extent.count;
                        }
                        _ => file.extents.push(extent),
                    }
                    if self.with_digests {
                        file.digests.extend_from_slice(digests.get()?);
                    }
                }
                Step::Ready(Some(Event::File(path, state))) => {
                    let next = if self.is_past(&path) {
                        self.over = true;
                        None
                    } else {
                        attributes(&path, state)?.map(|attributes| MappedFile {
                            path,
                            attributes,
                            extents: Vec::new(),
                            digests: Vec::new(),
                        })
                    };
                    let file = std::mem::replace(&mut self.file, next);
                    if let Some(file) = file.filter(|file| self.wanted(file)) {
                        return Ok(Step::Ready(Some(file)));
                    }
                }
                // Not told without being asked for.
                Step::Ready(Some(Event::Block(_) | Event::Index(_) | Event::Rest(..))) => {}
                Step::Ready(None) => {
                    self.over = true;
                    let file = self.file.take();
                    if let Some(file) = file.filter(|file| self.wanted(file)) {
                        return Ok(Step::Ready(Some(file)));
                    }
                }
            }
        }
        Ok(Step::Ready(None))
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.overlay.feed(frame, &content);
    }
}
