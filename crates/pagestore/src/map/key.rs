//! The order of everything in a page map.

use neon_snapshot_format::SnapshotPath;

/// A page of a file, or the file itself (page 0). Ordered by the bytes of the path, then by page.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// The file.
    pub path: SnapshotPath,
    /// The page, counted within this file.
    pub page: u32,
}

impl PageKey {
    /// The first key of a file.
    #[must_use]
    pub const fn of(path: SnapshotPath) -> Self {
        Self { path, page: 0 }
    }
}
