//! What changed since a snapshot, asked file by file of a new listing.
//!
//! The rules are those of `docs/change-sources.md`. Knowledge from the log is a [`BlockRefTable`], which is
//! small for any number of pages: a bit for each page where many changed, two bytes where few did.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use neon_pg_layout::wal::changes::UnloggedChange;
use neon_pg_layout::{BlockRefTable, DataFile, Fork, PgMajor, RelFileLocator, RelationPath, Slru};
use neon_snapshot_format::SnapshotPath;

use crate::changes::validity::ClusterFacts;
use crate::error::{Error, ErrorKind, Result};
use crate::id::CommitId;

/// All that changed since a parent.
#[derive(Debug, Clone)]
pub struct ChangeSet {
    known: Known,
    /// Since which snapshot, where that was said.
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

/// What the log, or its summaries, tell.
#[derive(Debug, Clone)]
pub(crate) struct LogChanges {
    pub(crate) major: PgMajor,
    pub(crate) page_size: u64,
    pub(crate) segment_blocks: u32,
    pub(crate) blocks: BlockRefTable,
    /// Segments of logs of transaction states that may differ; unknown when the source does not tell.
    pub(crate) states: Option<BTreeSet<(Slru, u64)>>,
    /// `track_commit_timestamp` was switched.
    pub(crate) commit_times_switched: bool,
    pub(crate) hints: Hints,
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
    const fn new(known: Known) -> Self {
        Self {
            known,
            parent: None,
        }
    }

    /// Says since which snapshot this is what changed: used with another parent, it is refused.
    #[must_use]
    pub const fn since(mut self, parent: CommitId) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Since which snapshot, where that was said.
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
        Self::new(Known::Nothing)
    }

    pub(crate) const fn of_log(changes: LogChanges) -> Self {
        Self::new(Known::Log(changes))
    }

    pub(crate) const fn of_scan(
        page_size: u64,
        files: BTreeMap<SnapshotPath, ScannedFile>,
    ) -> Self {
        Self::new(Known::Scan { page_size, files })
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

impl LogChanges {
    pub(crate) fn new(cluster: &ClusterFacts, blocks: BlockRefTable) -> Self {
        Self {
            major: cluster.major,
            page_size: cluster.block_size.bytes() as u64,
            segment_blocks: cluster.segment_blocks,
            blocks,
            states: None,
            commit_times_switched: false,
            hints: if cluster.hints_are_logged() {
                Hints::Exact
            } else {
                Hints::MayBeOlder
            },
        }
    }

    fn of(&self, file: &FileFacts<'_>, parent: u64) -> FileChange {
        let kind = match file.path.as_str() {
            Some(path) => DataFile::of(path, self.major.layout()),
            None => DataFile::Other,
        };
        match kind {
            DataFile::Relation(relation) => match self.whole(&relation, file.unlogged) {
                Some(reason) => FileChange::Whole(reason),
                None => self.pages(&relation, file.size, parent),
            },
            DataFile::Slru { area, segment } => self.states(area, segment, file.size == parent),
            _ => FileChange::Whole(WholeReason::NotRelation),
        }
    }

    /// The rule by which the file is read in whole, if there is one.
    fn whole(&self, path: &RelationPath, unlogged: bool) -> Option<WholeReason> {
        let RelFileLocator {
            tablespace,
            database,
            ..
        } = path.locator;
        if path.backend.is_some() {
            return Some(WholeReason::Temporary);
        }
        if self.blocks.database_replaced(tablespace, database) {
            return Some(WholeReason::DatabaseReplaced);
        }
        let changed = || {
            Fork::ALL
                .into_iter()
                .any(|fork| self.blocks.get(path.locator, fork).is_some())
        };
        // Asked for visibility maps only.
        let changed = path.fork == Fork::VisibilityMap && changed();
        match UnloggedChange::of_fork(path.fork, unlogged, changed)? {
            UnloggedChange::FreeSpaceMap => Some(WholeReason::FreeSpaceMap),
            UnloggedChange::VisibilityMap => Some(WholeReason::VisibilityMap),
            _ => Some(WholeReason::Unlogged),
        }
    }

    fn pages(&self, path: &RelationPath, size: u64, parent: u64) -> FileChange {
        let whole = FileChange::Whole;
        if !size.is_multiple_of(self.page_size) || !parent.is_multiple_of(self.page_size) {
            return whole(WholeReason::PartOfPage);
        }
        let count = |bytes: u64| u32::try_from(bytes.checked_div(self.page_size).unwrap_or(0)).ok();
        let (Some(now), Some(then)) = (count(size), count(parent)) else {
            return whole(WholeReason::TooLarge);
        };
        let Some(first) = path.first_block(self.segment_blocks) else {
            return whole(WholeReason::TooLarge);
        };
        let refs = self.blocks.get(path.locator, path.fork);
        let limit = match refs.and_then(|refs| refs.limit_block()) {
            Some(limit) if limit <= first => return whole(WholeReason::CutBefore),
            Some(limit) => (limit - first).min(then).min(now),
            None => then.min(now),
        };
        let end = first.saturating_add(limit);
        let named = refs.into_iter().flat_map(|refs| refs.blocks_in(first..end));
        let mut pages = Ranges::default();
        named.for_each(|block| pages.add(block - first));
        pages.add_range(limit..now);
        if pages.0.is_empty() && now == then && limit == then {
            return FileChange::Unchanged;
        }
        FileChange::Pages {
            limit,
            pages: pages.0,
        }
    }

    fn states(&self, area: Slru, segment: u64, as_long: bool) -> FileChange {
        let known = UnloggedChange::of_slru(area).is_none()
            && !(area == Slru::CommitTimestamps && self.commit_times_switched);
        let same = known
            && as_long
            && self
                .states
                .as_ref()
                .is_some_and(|changed| !changed.contains(&(area, segment)));
        if same {
            FileChange::Unchanged
        } else {
            FileChange::Whole(WholeReason::States)
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

/// Relations that have an init fork, and so are unlogged, gathered from a listing.
#[derive(Debug, Clone)]
pub struct UnloggedRelations {
    major: PgMajor,
    relations: BTreeSet<RelFileLocator>,
}

impl UnloggedRelations {
    /// None yet.
    #[must_use]
    pub const fn new(major: PgMajor) -> Self {
        Self {
            major,
            relations: BTreeSet::new(),
        }
    }

    /// Looks at one file of the listing.
    pub fn note(&mut self, path: &SnapshotPath) {
        // Cheap for all the others.
        if path.as_bytes().ends_with(b"_init")
            && let Some(relation) = self.parse(path)
            && relation.fork == Fork::Init
        {
            self.relations.insert(relation.locator);
        }
    }

    /// Whether the file belongs to an unlogged relation. True only once the whole listing was noted.
    #[must_use]
    pub fn contains(&self, path: &SnapshotPath) -> bool {
        !self.relations.is_empty()
            && self
                .parse(path)
                .is_some_and(|relation| self.relations.contains(&relation.locator))
    }

    fn parse(&self, path: &SnapshotPath) -> Option<RelationPath> {
        RelationPath::parse(path.as_str()?, self.major.layout())
    }
}

#[cfg(test)]
mod tests {
    use neon_pg_layout::{BlockSize, SystemIdentifier, WalLevel, WalSegmentSize};
    use proptest::prelude::*;

    use super::*;

    const SEGMENT: u32 = 8;
    const PAGE: u64 = 8192;
    const RELATION: RelFileLocator = RelFileLocator {
        tablespace: 1663,
        database: 5,
        number: 16400,
    };

    fn changes(blocks: BlockRefTable) -> ChangeSet {
        let cluster = ClusterFacts {
            system: SystemIdentifier::new(1).unwrap(),
            major: PgMajor::V16,
            catalog_version: 0,
            block_size: BlockSize::DEFAULT,
            segment_blocks: SEGMENT,
            wal_segment_size: WalSegmentSize::DEFAULT,
            wal_page_size: 8192,
            checksums: true,
            wal_level: WalLevel::Replica,
            wal_log_hints: false,
            track_commit_timestamp: false,
        };
        ChangeSet::of_log(LogChanges::new(&cluster, blocks))
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A logged change of a block, which extends the fork with zeros up to it.
        Write(u32),
        /// An extension by zeros that is not logged.
        Extend(u32),
        Cut(u32),
        /// Dropped, and created anew under the same number.
        Anew,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..40_u32).prop_map(Step::Write),
            2 => (0..6_u32).prop_map(Step::Extend),
            2 => (0..40_u32).prop_map(Step::Cut),
            1 => Just(Step::Anew),
        ];
        prop::collection::vec(step, 0..16)
    }

    /// A fork as a list of pages, each with the number of its last change; 0 is all zeros.
    fn run(fork: &mut Vec<u32>, table: &mut BlockRefTable, clock: &mut u32, steps: &[Step]) {
        for step in steps {
            *clock += 1;
            match *step {
                Step::Write(block) => {
                    let at = block as usize;
                    fork.resize(fork.len().max(at + 1), 0);
                    fork[at] = *clock;
                    table.mark(RELATION, Fork::Main, block);
                }
                Step::Extend(more) => fork.resize(fork.len() + more as usize, 0),
                Step::Cut(length) => {
                    if (length as usize) < fork.len() {
                        fork.truncate(length as usize);
                        table.limit(RELATION, Fork::Main, length);
                    }
                }
                Step::Anew => {
                    fork.clear();
                    table.limit(RELATION, Fork::Main, 0);
                }
            }
        }
    }

    /// The segment files of a fork, those that are empty too.
    fn files(fork: &[u32]) -> Vec<&[u32]> {
        let mut files: Vec<_> = fork.chunks(SEGMENT as usize).collect();
        files.resize(12, &[]);
        files
    }

    proptest! {
        #[test]
        fn what_is_not_read_is_what_it_was(before in steps(), after in steps()) {
            let (mut fork, mut clock) = (Vec::new(), 0);
            run(&mut fork, &mut BlockRefTable::new(), &mut clock, &before);
            let then = fork.clone();
            let mut table = BlockRefTable::new();
            run(&mut fork, &mut table, &mut clock, &after);
            let set = changes(table);
            for (number, (then, now)) in files(&then).into_iter().zip(files(&fork)).enumerate() {
                let path = RelationPath { segment: u32::try_from(number).unwrap(), ..RelationPath::new(RELATION, Fork::Main) };
                let path = SnapshotPath::new(path.to_path(PgMajor::V16.layout())).unwrap();
                let change = set.of(&FileFacts {
                    path: &path,
                    size: now.len() as u64 * PAGE,
                    parent_size: Some(then.len() as u64 * PAGE),
                    unlogged: false,
                });
                match change {
                    FileChange::Whole(_) => {}
                    FileChange::Unchanged => prop_assert_eq!(then, now),
                    FileChange::Pages { limit, pages } => {
                        let mut made = vec![u32::MAX; now.len()];
                        let kept = limit as usize;
                        prop_assert!(kept <= then.len() && kept <= now.len());
                        made[..kept].copy_from_slice(&then[..kept]);
                        let mut end = None;
                        for range in &pages {
                            prop_assert!(range.start < range.end && end.is_none_or(|end| end < range.start));
                            end = Some(range.end);
                            let range = range.start as usize..range.end as usize;
                            made[range.clone()].copy_from_slice(&now[range]);
                        }
                        prop_assert_eq!(made, now, "{:?} {:?}", limit, pages);
                    }
                }
            }
        }
    }

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

    #[test]
    fn the_last_file_of_a_large_relation_is_answered_without_looking_at_those_before() {
        const BLOCKS: u32 = 1 << 20;
        let mut table = BlockRefTable::new();
        for block in 0..BLOCKS {
            table.mark(RELATION, Fork::Main, block);
        }
        let set = changes(table);
        assert_eq!(set.named_pages(), Some(BLOCKS.into()));
        let path = SnapshotPath::new(format!("base/5/16400.{}", BLOCKS / SEGMENT - 1)).unwrap();
        let size = u64::from(SEGMENT) * PAGE;
        let facts = FileFacts {
            path: &path,
            size,
            parent_size: Some(size),
            unlogged: false,
        };
        for _ in 0..20 {
            let FileChange::Pages { limit, pages } = set.of(&facts) else {
                panic!("all its pages changed");
            };
            assert_eq!(limit, SEGMENT);
            assert!(pages.into_iter().eq(std::iter::once(0..SEGMENT)));
        }
    }
}
