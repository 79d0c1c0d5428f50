//! What the log, or its summaries, tell, asked file by file.
//!
//! The rules are those of `docs/change-sources.md`. Knowledge of relations is a [`BlockRefTable`], which is
//! small for any number of pages: a bit for each page where many changed, two bytes where few did.

use std::collections::BTreeSet;

use neon_pg_layout::wal::changes::UnloggedChange;
use neon_pg_layout::{BlockRefTable, DataFile, Fork, PgMajor, RelFileLocator, RelationPath, Slru};

use crate::changes::set::{FileChange, FileFacts, Hints, Ranges, WholeReason};
use crate::changes::validity::ClusterFacts;

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

    pub(crate) fn of(&self, file: &FileFacts<'_>, parent: u64) -> FileChange {
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

#[cfg(test)]
mod tests {
    use neon_pg_layout::{BlockSize, SystemIdentifier, WalLevel, WalSegmentSize};
    use neon_snapshot_format::SnapshotPath;
    use proptest::prelude::*;

    use super::*;
    use crate::changes::ChangeSet;
    use crate::id::CommitId;

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
        ChangeSet::of_log(CommitId::of(b"parent"), LogChanges::new(&cluster, blocks))
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
