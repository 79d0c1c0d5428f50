//! Runs, as a commit holds them.

use bytes::Buf;

use crate::error::Result;
use crate::map::frame_table::{FrameTableBuilder, get_frame_table};
use crate::map::machine::malformed;
use crate::map::wire::{cut, get_count, get_number, get_path, get_varint, put_path, put_varint};
use crate::map::{FrameRef, PageKey};

/// A view consults no more runs than this.
pub const MAX_RUNS: usize = 4;
const VERSION: u8 = 1;

/// A sorted run: its index frames.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunRef {
    pub(crate) indexes: Vec<IndexRef>,
}

/// One index frame of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexRef {
    /// The key of its first block.
    pub(crate) first: PageKey,
    pub(crate) frame: FrameRef,
    pub(crate) size: RunSize,
}

/// How much a run holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunSize {
    /// Files, each counted once per record block that is about it.
    pub files: u64,
    /// Pages that are not zero.
    pub pages: u64,
    /// Stored bytes of blocks, digests and indexes.
    pub bytes: u64,
}

impl RunSize {
    pub(crate) fn add(&mut self, other: Self) {
        self.files = self.files.saturating_add(other.files);
        self.pages = self.pages.saturating_add(other.pages);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl RunRef {
    /// How much it holds.
    #[must_use]
    pub fn size(&self) -> RunSize {
        let mut size = RunSize::default();
        self.indexes.iter().for_each(|index| size.add(index.size));
        size
    }

    /// Whether it says nothing about any file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indexes.is_empty()
    }

    /// Its index frames, with the first key of each: what opening the run fetches.
    pub fn index_frames(&self) -> impl Iterator<Item = (&PageKey, &FrameRef)> {
        self.indexes
            .iter()
            .map(|index| (&index.first, &index.frame))
    }

    /// The index frame that would lead to a key.
    pub(crate) fn find(&self, key: &PageKey) -> Option<&IndexRef> {
        let after = self.indexes.partition_point(|index| index.first <= *key);
        self.indexes.get(after.checked_sub(1)?)
    }
}

/// The bytes that a commit stores for its runs, newest first.
#[must_use]
pub fn encode_runs(runs: &[RunRef]) -> Vec<u8> {
    let (mut frames, mut entries) = (FrameTableBuilder::default(), Vec::new());
    for run in runs {
        put_varint(&mut entries, run.indexes.len() as u64);
        let mut before: &[u8] = &[];
        for index in &run.indexes {
            frames.push(&index.frame);
            put_path(&mut entries, before, index.first.path.as_bytes());
            put_varint(&mut entries, index.first.page.into());
            put_varint(&mut entries, index.size.files);
            put_varint(&mut entries, index.size.pages);
            put_varint(&mut entries, index.size.bytes);
            before = index.first.path.as_bytes();
        }
    }
    let mut out = vec![VERSION];
    frames.put(&mut out);
    put_varint(&mut out, runs.len() as u64);
    out.append(&mut entries);
    out
}

/// Reads what [`encode_runs`] wrote.
///
/// # Errors
/// [`Malformed`](crate::ErrorKind::Malformed) for anything else; [`Unsupported`](crate::ErrorKind::Unsupported)
/// for another version.
pub fn decode_runs(mut bytes: &[u8]) -> Result<Vec<RunRef>> {
    let from = &mut bytes;
    if from.try_get_u8().map_err(cut)? != VERSION {
        return Err(crate::Error::new(
            crate::ErrorKind::Unsupported,
            "page map",
            "its runs are of a version that this program does not read",
        ));
    }
    let mut frames = get_frame_table(from)?.into_iter();
    let count = get_count(from, 1)?;
    if count > MAX_RUNS {
        return Err(malformed("has more than four runs"));
    }
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let mut run = RunRef::default();
        for _ in 0..get_count(from, 6)? {
            let last = run.indexes.last();
            let before = last.map(|index| index.first.path.as_bytes());
            let path = get_path(from, before.unwrap_or_default())?;
            let first = PageKey {
                path,
                page: get_number(from)?,
            };
            if last.is_some_and(|index| index.first >= first) {
                return Err(malformed("its indexes are not in order"));
            }
            let size = RunSize {
                files: get_varint(from)?,
                pages: get_varint(from)?,
                bytes: get_varint(from)?,
            };
            let frame = frames
                .next()
                .ok_or_else(|| malformed("has indexes without frames"))?;
            run.indexes.push(IndexRef { first, frame, size });
        }
        runs.push(run);
    }
    if frames.next().is_some() || !from.is_empty() {
        return Err(malformed("holds something else than runs"));
    }
    Ok(runs)
}
