//! What changed since a snapshot, asked file by file of a new listing.
//!
//! The rules are those of `docs/change-sources.md`.

use std::collections::BTreeMap;
use std::ops::Range;

use neon_pg_layout::BlockRefTable;
use neon_snapshot_format::SnapshotPath;

use crate::changes::logged::LogChanges;
use crate::error::{Error, ErrorKind, Result};
use crate::id::CommitId;

/// All that changed since a parent.
#[derive(Debug, Clone)]
pub struct ChangeSet {
    known: Known,
    /// Since which snapshot; none where nothing is known.
    parent: Option<CommitId>,
}

#[derive(Debug, Clone)]
enum Known {
    Nothing,
    Log(LogChanges),
    Scan {
        page_size: u64,
        files: BTreeMap<SnapshotPath, ScannedFile>,
    },
}

/// A file that a scan has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScannedFile {
    pub(crate) size: u64,
    pub(crate) change: FileChange,
}

/// Whether hints on pages that the set does not name are those of the new state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hints {
    /// They are.
    Exact,
    /// A page may miss hints that were set since the parent. A server sets them again; but whoever goes
    /// *back* to the new snapshot must compare pages by content.
    MayBeOlder,
}

/// A file of the new listing.
#[derive(Debug, Clone, Copy)]
pub struct FileFacts<'a> {
    /// Its path.
    pub path: &'a SnapshotPath,
    /// Its bytes now.
    pub size: u64,
    /// Its bytes in the parent, if it was there.
    pub parent_size: Option<u64>,
    /// Whether it belongs to an unlogged relation.
    pub unlogged: bool,
}

/// What has to be read of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChange {
    /// Nothing: it is what it was, and as long.
    Unchanged,
    /// All of it. Pages may still be those of the parent; their digests tell.
    Whole(WholeReason),
    /// These pages.
    Pages {
        /// Pages of the parent are valid below this one only, as far as they are not named.
        limit: u32,
        /// What to read: sorted, not empty, neither overlapping nor touching, none behind the end of
        /// the file.
        pages: Vec<Range<u32>>,
    },
}

/// Why all of a file has to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WholeReason {
    /// Nothing is known about what changed.
    NotKnown,
    /// It is not in the parent.
    New,
    /// It is no file of a relation.
    NotRelation,
    /// A log of transaction states that may have changed.
    States,
    /// A free space map.
    FreeSpaceMap,
    /// The visibility map of a relation that changed.
    VisibilityMap,
    /// Of an unlogged relation.
    Unlogged,
    /// Of a temporary relation.
    Temporary,
    /// Its database was created, copied, moved or dropped.
    DatabaseReplaced,
    /// It was cut, dropped or created anew at or before its first page.
    CutBefore,
    /// It does not end with a whole page, now or in the parent.
    PartOfPage,
    /// It has more pages than a page number can count.
    TooLarge,
}

impl ChangeSet {
    /// Since which snapshot; none where nothing is known, which is so of any.
    #[must_use]
    pub const fn parent(&self) -> Option<CommitId> {
        self.parent
    }

    pub(crate) fn require_parent(&self, parent: CommitId) -> Result<()> {
        match self.parent {
            Some(known) if known != parent => Err(Error::new(
                ErrorKind::Inconsistent,
                format!("snapshot {parent}"),
                format!("is not the one since which changes are known, which is {known}"),
            )),
            _ => Ok(()),
        }
    }

    pub(crate) const fn is_of_log(&self) -> bool {
        matches!(self.known, Known::Log(_))
    }

    /// Nothing is known: every file is to be read.
    #[must_use]
    pub const fn everything() -> Self {
        Self {
            known: Known::Nothing,
            parent: None,
        }
    }

    pub(crate) const fn of_log(parent: CommitId, changes: LogChanges) -> Self {
        Self {
            known: Known::Log(changes),
            parent: Some(parent),
        }
    }

    pub(crate) const fn of_scan(
        parent: CommitId,
        page_size: u64,
        files: BTreeMap<SnapshotPath, ScannedFile>,
    ) -> Self {
        Self {
            known: Known::Scan { page_size, files },
            parent: Some(parent),
        }
    }

    /// Bytes of the cluster that were read to know it; what is read for the snapshot comes on top.
    #[must_use]
    pub fn scanned(&self) -> u64 {
        match &self.known {
            Known::Scan { files, .. } => files.values().map(|file| file.size).sum(),
            Known::Nothing | Known::Log(_) => 0,
        }
    }

    /// What has to be read of a file.
    #[must_use]
    pub fn of(&self, file: &FileFacts<'_>) -> FileChange {
        let whole = FileChange::Whole;
        let Some(parent) = file.parent_size else {
            return whole(WholeReason::New);
        };
        match &self.known {
            Known::Nothing => whole(WholeReason::NotKnown),
            Known::Log(log) => log.of(file, parent),
            Known::Scan { page_size, files } => match files.get(file.path) {
                None => whole(WholeReason::NotKnown),
                Some(scanned) => scanned.now(file.size, *page_size),
            },
        }
    }

    /// What hints may be missing on pages that it does not name.
    #[must_use]
    pub const fn hints(&self) -> Hints {
        match &self.known {
            Known::Log(log) => log.hints,
            Known::Nothing | Known::Scan { .. } => Hints::Exact,
        }
    }

    /// How many pages of relations the log names; unknown where all is to be read or was.
    #[must_use]
    pub fn named_pages(&self) -> Option<u64> {
        match &self.known {
            Known::Log(log) => Some(
                log.blocks
                    .iter()
                    .map(|(_, _, refs)| refs.block_count())
                    .sum(),
            ),
            _ => None,
        }
    }

    /// What the log says, relation by relation.
    #[must_use]
    pub const fn blocks(&self) -> Option<&BlockRefTable> {
        match &self.known {
            Known::Log(log) => Some(&log.blocks),
            _ => None,
        }
    }
}

impl ScannedFile {
    /// What is to be read when the file has this size by now.
    fn now(&self, size: u64, page_size: u64) -> FileChange {
        if size == self.size {
            return self.change.clone();
        }
        let count = |bytes: u64| u32::try_from(bytes.checked_div(page_size)?).ok();
        let whole_pages = self.size.is_multiple_of(page_size) && size.is_multiple_of(page_size);
        let (Some(seen), Some(now)) = (count(self.size), count(size)) else {
            return FileChange::Whole(WholeReason::TooLarge);
        };
        if !whole_pages {
            return FileChange::Whole(WholeReason::PartOfPage);
        }
        let (limit, known) = match &self.change {
            FileChange::Whole(reason) => return FileChange::Whole(*reason),
            FileChange::Unchanged => (seen, &[][..]),
            FileChange::Pages { limit, pages } => (*limit, pages.as_slice()),
        };
        let mut pages = Ranges::default();
        for range in known {
            pages.add_range(range.start.min(now)..range.end.min(now));
        }
        pages.add_range(seen..now);
        FileChange::Pages {
            limit: limit.min(now),
            pages: pages.0,
        }
    }
}

/// Page ranges that grow at their end; neighbours become one.
#[derive(Debug, Default)]
pub(crate) struct Ranges(pub(crate) Vec<Range<u32>>);

impl Ranges {
    pub(crate) fn add(&mut self, page: u32) {
        self.add_range(page..page.saturating_add(1));
    }

    pub(crate) fn add_range(&mut self, range: Range<u32>) {
        if range.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => self.0.push(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 8192;

    #[test]
    fn a_file_that_changed_its_length_after_it_was_scanned_is_read_behind_that() {
        let scanned = |size: u64, change| ScannedFile { size, change };
        let pages = |limit, pages: &[(u32, u32)]| FileChange::Pages {
            limit,
            pages: pages.iter().map(|(start, end)| *start..*end).collect(),
        };
        let same = scanned(4 * PAGE, FileChange::Unchanged);
        assert_eq!(same.now(4 * PAGE, PAGE), FileChange::Unchanged);
        assert_eq!(same.now(6 * PAGE, PAGE), pages(4, &[(4, 6)]));
        assert_eq!(same.now(3 * PAGE, PAGE), pages(3, &[]));
        let changed = scanned(4 * PAGE, pages(3, &[(0, 1), (3, 4)]));
        assert_eq!(changed.now(4 * PAGE, PAGE), pages(3, &[(0, 1), (3, 4)]));
        assert_eq!(changed.now(6 * PAGE, PAGE), pages(3, &[(0, 1), (3, 6)]));
        assert_eq!(changed.now(2 * PAGE, PAGE), pages(2, &[(0, 1)]));
        assert_eq!(
            changed.now(5, PAGE),
            FileChange::Whole(WholeReason::PartOfPage)
        );
    }
}
