//! What a range of the log says has changed, gathered as a snapshot would gather it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use neon_pg_layout::wal::Change;
use neon_pg_layout::{BlockRefTable, ControlFile, Fork, Lsn, Oid, RelFileLocator, Slru};

use crate::wal::walk::{Stop, changes};

#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// Blocks named by records and limit blocks.
    pub(crate) blocks: BlockRefTable,
    /// Visibility map blocks of which a record says that bits were cleared.
    pub(crate) cleared: BTreeSet<(RelFileLocator, u32)>,
    /// Relations of which anything changed.
    pub(crate) touched: BTreeSet<RelFileLocator>,
    /// Databases (tablespace, database) made by copying files.
    pub(crate) copied: BTreeSet<(Oid, Oid)>,
    /// Relation maps (tablespace, database) that were replaced, with their last content.
    pub(crate) maps: BTreeMap<(Oid, Oid), Vec<u8>>,
    /// Pages of logs of transaction states.
    pub(crate) states: BTreeSet<(Slru, u64)>,
    /// The first page still needed of each, where files before it may be gone.
    pub(crate) states_kept: BTreeMap<Slru, u64>,
    /// How many of each kind of event there were.
    pub(crate) kinds: BTreeMap<&'static str, usize>,
    /// Where the last shutdown checkpoint is.
    shutdown: Option<Lsn>,
}

const FORKS: [Fork; 4] = Fork::ALL;

impl Changed {
    /// Reads the log in `pg_wal` from where the cluster stood at `from` to where it stood at `to`,
    /// both cleanly shut down. Events of the kind `deaf_to` are passed over.
    pub(crate) fn read(
        pg_wal: &Path,
        from: &ControlFile,
        to: &ControlFile,
        deaf_to: Option<&str>,
    ) -> Self {
        let mut changed = Self::default();
        let stop = changes(pg_wal, 1, Some(from.checkpoint.redo), |lsn, change| {
            let kind = kind(lsn, &change);
            if lsn > from.checkpoint_location && deaf_to != Some(kind) {
                *changed.kinds.entry(kind).or_default() += 1;
                changed.add(lsn, &change);
            }
        });
        assert!(matches!(stop, Stop::End(_)), "{stop:?}");
        assert_eq!(
            changed.shutdown,
            Some(to.checkpoint_location),
            "the log is not read to its end"
        );
        changed
    }

    fn limit(&mut self, relation: RelFileLocator, fork: Fork, blocks: u32) {
        self.blocks.limit(relation, fork, blocks);
        self.touched.insert(relation);
    }

    /// Nothing that was in the database's directory before is there any more.
    fn replaced(&mut self, tablespace: Oid, database: Oid) {
        self.blocks.limit(
            RelFileLocator {
                tablespace,
                database,
                number: 0,
            },
            Fork::Main,
            0,
        );
        self.copied.remove(&(tablespace, database));
    }

    fn add(&mut self, lsn: Lsn, change: &Change<'_>) {
        match change {
            Change::Block(block) => {
                self.blocks.mark(block.relation, block.fork, block.block);
                self.touched.insert(block.relation);
            }
            Change::VisibilityMapCleared { relation, block } => {
                self.cleared.insert((*relation, *block));
            }
            Change::ForkCreated { relation, fork } => {
                self.limit(*relation, *fork, 0);
            }
            Change::Truncated {
                relation,
                fork,
                blocks,
            } => {
                self.limit(*relation, *fork, *blocks);
            }
            Change::RelationDropped { relation } => {
                for fork in FORKS {
                    self.limit(*relation, fork, 0);
                }
            }
            Change::DatabaseCopied {
                database,
                tablespace,
                ..
            } => {
                self.replaced(*tablespace, *database);
                self.copied.insert((*tablespace, *database));
            }
            Change::DatabaseCreated {
                database,
                tablespace,
            } => {
                self.replaced(*tablespace, *database);
            }
            Change::DatabaseDropped {
                database,
                tablespace,
            } => {
                self.replaced(*tablespace, *database);
            }
            Change::RelationMapUpdated {
                database,
                tablespace,
                map,
            } => {
                self.maps.insert((*tablespace, *database), map.to_vec());
            }
            Change::SlruPages { slru, first, last } => {
                self.states
                    .extend((*first..=*last).map(|page| (*slru, page)));
            }
            Change::SlruTruncated { slru, first_kept } => {
                self.states_kept.insert(*slru, *first_kept);
            }
            Change::Checkpoint { shutdown, .. } => self.shutdown = shutdown.then_some(lsn),
            _ => {}
        }
    }
}

/// What an event is counted as.
fn kind(lsn: Lsn, change: &Change<'_>) -> &'static str {
    match change {
        Change::Block(_) => "block",
        Change::VisibilityMapCleared { .. } => "visibility map cleared",
        Change::ForkCreated { .. } => "fork created",
        Change::Truncated { .. } => "truncated",
        Change::RelationDropped { .. } => "relation dropped",
        Change::DatabaseCopied { .. } => "database copied",
        Change::DatabaseCreated { .. } => "database created",
        Change::DatabaseDropped { .. } => "database dropped",
        Change::TablespaceCreated { .. } => "tablespace created",
        Change::TablespaceDropped { .. } => "tablespace dropped",
        Change::RelationMapUpdated { .. } => "relation map updated",
        Change::SlruPages { .. } => "states written",
        Change::SlruTruncated { .. } => "states removed",
        Change::Checkpoint { .. } => "checkpoint",
        Change::Prepared(_) => "prepared",
        Change::Committed(_) => "committed",
        Change::Aborted(_) => "aborted",
        Change::Unknown { .. } => panic!("{lsn}: {change:?}"),
        _ => "other",
    }
}
