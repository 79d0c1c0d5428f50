//! What one run says about one file.

use neon_pg_layout::Oid;
use neon_snapshot_format::{Entry, EntryKind, Owner, SnapshotPath};

use crate::map::{Cells, FrameRef};

/// A limit that hides nothing of older runs.
pub const KEEP_ALL: u32 = u32::MAX;

/// The first half of the BLAKE3 digest of a page's plain bytes.
pub type PageDigest = [u8; 16];

/// One file, directory or tablespace as one run describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its path.
    pub path: SnapshotPath,
    /// What is new about it as a whole; nothing when only pages changed.
    pub state: FileState,
    /// Where pages are: sorted, not empty, not overlapping.
    pub extents: Vec<Extent>,
}

/// What a run says about a file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileState {
    /// Nothing: an older run knows it. Only pages of it follow.
    Same,
    /// It has these attributes. Pages of older runs are seen only below `limit`, counted in pages: 0 for a file
    /// that is new or was written anew, [`KEEP_ALL`] for one that was only added to or changed.
    Present {
        /// Mode, owner, size.
        attributes: Attributes,
        /// How many pages of older runs are seen.
        limit: u32,
    },
    /// It is gone; nothing of older runs is seen.
    Removed,
}

/// What a directory listing would show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Who owns it, where that is known.
    pub owner: Option<Owner>,
    /// When its content changed last, in seconds since 1970.
    pub modified: i64,
}

/// What a [`Group`] is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A file of so many bytes.
    File {
        /// Bytes.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A tablespace outside of the data directory.
    Tablespace {
        /// The tablespace.
        oid: Oid,
        /// Where it was.
        location: Option<Vec<u8>>,
    },
}

/// Neighbouring pages of a file that are neighbours in a frame too, or are all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first page, counted within the file.
    pub page: u32,
    /// How many; at least 1.
    pub count: u32,
    /// Where they are.
    pub at: At,
}

/// Where pages are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Nowhere: all their bytes are zero.
    Zeros,
    /// In a frame, one after the other.
    Frame {
        /// Which.
        frame: FrameRef,
        /// Where the first begins in the frame's plain bytes.
        offset: u32,
    },
}

impl Extent {
    /// The page after the last.
    #[must_use]
    pub const fn end(&self) -> u32 {
        self.page.saturating_add(self.count)
    }

    /// The frame that the pages are in and the cells that they touch, as pages of this size; none for zeros.
    ///
    /// The last page of a file may be short, which is not known here: it counts as a whole one. So all that look at an
    /// extent get at least what anybody reads of it, and what is visible of it in a later snapshot gets no other cells.
    #[must_use]
    pub fn cells(&self, page_size: u32) -> Option<(&FrameRef, Cells)> {
        match &self.at {
            At::Zeros => None,
            At::Frame { frame, offset } => {
                Some((frame, frame.cells_of(*offset, self.count, page_size)))
            }
        }
    }
}

impl Attributes {
    /// Of an entry of the event stream.
    #[must_use]
    pub fn of(entry: &Entry) -> Self {
        let kind = match &entry.kind {
            EntryKind::File { size } => FileKind::File { size: *size },
            EntryKind::Tablespace { oid, location } => FileKind::Tablespace {
                oid: *oid,
                location: location.clone(),
            },
            _ => FileKind::Directory,
        };
        Self {
            kind,
            mode: entry.mode,
            owner: entry.owner,
            modified: entry.modified,
        }
    }

    /// As an entry of the event stream.
    #[must_use]
    pub fn entry(&self, path: SnapshotPath) -> Entry {
        let kind = match &self.kind {
            FileKind::File { size } => EntryKind::File { size: *size },
            FileKind::Directory => EntryKind::Directory,
            FileKind::Tablespace { oid, location } => EntryKind::Tablespace {
                oid: *oid,
                location: location.clone(),
            },
        };
        Entry {
            path,
            kind,
            mode: self.mode,
            owner: self.owner,
            modified: self.modified,
        }
    }
}
