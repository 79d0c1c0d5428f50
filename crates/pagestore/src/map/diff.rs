//! What differs between two views.

use std::ops::Range;

use neon_snapshot_format::SnapshotPath;

use crate::error::Result;
use crate::map::machine::Machine;
use crate::map::walk::{MappedFile, Walk};
use crate::map::{At, Attributes, Extent, FrameRef, MapFrame, PageDigest, Step, View};

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDiff {
    /// Its path.
    pub path: SnapshotPath,
    /// What it was; nothing for one that was added.
    pub before: Option<Attributes>,
    /// What it is; nothing for one that was removed.
    pub after: Option<Attributes>,
    /// Pages that differ, or that only one of the two has; sorted, not touching each other.
    pub pages: Vec<Range<u32>>,
}

/// Compares two views by their maps alone.
///
/// Pages are the same when they lie at the same place of the same frame, or are both zero, or, if digests
/// are compared, have the same digest.
#[derive(Debug)]
pub struct Diff {
    before: Side,
    after: Side,
    page_size: u32,
    with_digests: bool,
}

#[derive(Debug)]
struct Side {
    walk: Walk,
    /// The next file; nothing inside after the last.
    next: Option<Option<MappedFile>>,
}

impl Side {
    fn fill(&mut self) -> Result<Option<Vec<FrameRef>>> {
        if self.next.is_none() {
            match self.walk.step()? {
                Step::Need(frames) => return Ok(Some(frames)),
                Step::Ready(file) => self.next = Some(file),
            }
        }
        Ok(None)
    }

    fn path(&self) -> Option<&SnapshotPath> {
        self.next.as_ref()?.as_ref().map(|file| &file.path)
    }
}

impl Diff {
    /// Compares `before` with `after`.
    #[must_use]
    pub fn new(before: &View, after: &View, with_digests: bool) -> Self {
        let side = |view| Side {
            walk: Walk::new(view, with_digests),
            next: None,
        };
        Self {
            before: side(before),
            after: side(after),
            page_size: after.page_size,
            with_digests,
        }
    }
}

impl Machine for Diff {
    type Output = Option<FileDiff>;

    fn step(&mut self) -> Result<Step<Self::Output>> {
        loop {
            let needed: Vec<FrameRef> = [self.before.fill()?, self.after.fill()?]
                .into_iter()
                .flatten()
                .flatten()
                .collect();
            if !needed.is_empty() {
                return Ok(Step::Need(needed));
            }
            let (left, right) = match (self.before.path(), self.after.path()) {
                (None, None) => return Ok(Step::Ready(None)),
                (Some(left), Some(right)) => (left <= right, right <= left),
                (left, right) => (left.is_some(), right.is_some()),
            };
            let before = if left {
                self.before.next.take().flatten()
            } else {
                None
            };
            let after = if right {
                self.after.next.take().flatten()
            } else {
                None
            };
            if let Some(diff) = compare(before, after, self.page_size, self.with_digests) {
                return Ok(Step::Ready(Some(diff)));
            }
        }
    }

    fn feed(&mut self, frame: &FrameRef, content: MapFrame) {
        self.before.walk.feed(frame, content.clone());
        self.after.walk.feed(frame, content);
    }
}

type Page = (u32, At, Option<PageDigest>);

fn pages(file: Option<&MappedFile>, page_size: u32) -> Vec<Page> {
    let Some(file) = file else { return Vec::new() };
    let mut digests = file.digests.iter();
    let mut pages = Vec::new();
    for Extent { page, count, at } in &file.extents {
        for number in 0..*count {
            pages.push(match at {
                At::Zeros => (page + number, At::Zeros, None),
                At::Frame { frame, offset } => (
                    page + number,
                    At::Frame {
                        frame: *frame,
                        offset: offset + number * page_size,
                    },
                    digests.next().copied(),
                ),
            });
        }
    }
    pages
}

fn compare(
    before: Option<MappedFile>,
    after: Option<MappedFile>,
    page_size: u32,
    with_digests: bool,
) -> Option<FileDiff> {
    let left = pages(before.as_ref(), page_size);
    let right = pages(after.as_ref(), page_size);
    let mut differing: Vec<Range<u32>> = Vec::new();
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    loop {
        let page = match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(one), Some(other)) => one.0.min(other.0),
            (Some(one), None) => one.0,
            (None, Some(other)) => other.0,
        };
        let one = left.next_if(|at| at.0 == page);
        let other = right.next_if(|at| at.0 == page);
        let same = match (one, other) {
            (Some(one), Some(other)) => {
                one.1 == other.1 || with_digests && one.2.is_some() && one.2 == other.2
            }
            _ => false,
        };
        if !same {
            match differing.last_mut() {
                Some(range) if range.end == page => range.end += 1,
                _ => differing.push(page..page + 1),
            }
        }
    }
    let path = before.as_ref().or(after.as_ref())?.path.clone();
    let before = before.map(|file| file.attributes);
    let after = after.map(|file| file.attributes);
    (before != after || !differing.is_empty()).then_some(FileDiff {
        path,
        before,
        after,
        pages: differing,
    })
}
