//! What a record changed, as one stream of typed events.
//!
//! Most records name the blocks they change. The others are told by what they do: they create, cut
//! and remove files, and switch what the cluster logs. Sources: `xlogdesc.c`, `xact.h`,
//! `storage_xlog.h`, `dbcommands_xlog.h`, `heapam_xlog.h` of each major, and `walsummarizer.c` and
//! `pg_rewind` for which of them matter to a copy.
//!
//! What no record tells is listed by [`UnloggedChange`]; a list of changed pages must take that as well.
//! Nothing holds of what was written under `wal_level = minimal`.

mod heap;
mod slru;
mod storage;
mod transaction;
mod unlogged;
mod xlog;

pub use transaction::{Origin, Prepared, TransactionEnd, Xids};
pub use unlogged::{UnloggedChange, may_be_spgist_metapage};
pub use xlog::Parameters;

use crate::checkpoint::{CheckPoint, WalLevel};
use crate::error::{ErrorKind, Result};
use crate::lsn::Lsn;
use crate::relation::{BlockNumber, Fork, Oid, RelFileLocator};
use crate::slru::Slru;
use crate::timeline::TimelineId;
use crate::timestamp::Timestamp;
use crate::wal::record::{BlockRef, Record};
use crate::wal::rmgr::ResourceManager;

/// Something a record changed or says about the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change<'a> {
    /// A block was changed; whether it got a new image, see there.
    Block(BlockRef<'a>),
    /// Bits of this visibility map block were cleared, though the record does not name it (before
    /// 17.11 and 18.6) or names it besides.
    VisibilityMapCleared {
        /// The relation whose map it is.
        relation: RelFileLocator,
        /// The block of its visibility map.
        block: BlockNumber,
    },
    /// A fork was created, empty. What a file of that name held before is gone.
    ForkCreated {
        /// The relation.
        relation: RelFileLocator,
        /// The new fork.
        fork: Fork,
    },
    /// A fork was cut to this length. Of maps, bits behind the end are cleared in the last block.
    Truncated {
        /// The relation.
        relation: RelFileLocator,
        /// The fork that was cut.
        fork: Fork,
        /// How many blocks were kept: a limit block.
        blocks: BlockNumber,
    },
    /// All forks of a relation are removed, by a commit or an abort.
    RelationDropped {
        /// The relation.
        relation: RelFileLocator,
    },
    /// A database's directory was made as a copy of another, block by block nothing is logged.
    DatabaseCopied {
        /// The new database.
        database: Oid,
        /// Where it is.
        tablespace: Oid,
        /// The database it is a copy of.
        source_database: Oid,
        /// Where that is.
        source_tablespace: Oid,
    },
    /// A database's directory was made with nothing but `PG_VERSION`; its files follow in the log.
    DatabaseCreated {
        /// The new database.
        database: Oid,
        /// Where it is.
        tablespace: Oid,
    },
    /// A database's directory in one tablespace was removed.
    DatabaseDropped {
        /// The database.
        database: Oid,
        /// Where it was.
        tablespace: Oid,
    },
    /// A tablespace was created.
    TablespaceCreated {
        /// Its OID.
        tablespace: Oid,
        /// Its absolute path in the server's encoding; empty for one inside the data directory.
        path: &'a [u8],
    },
    /// A tablespace was dropped.
    TablespaceDropped {
        /// Its OID.
        tablespace: Oid,
    },
    /// A relation map file was replaced.
    RelationMapUpdated {
        /// The database; 0 for the map in `global/`.
        database: Oid,
        /// The database's tablespace.
        tablespace: Oid,
        /// The new content of the file.
        map: &'a [u8],
    },
    /// Pages of a log of transaction states may have been written: no others were, in those that
    /// [outlive a start](Slru::outlives_a_start).
    SlruPages {
        /// Which one.
        slru: Slru,
        /// The first page, counted over all its files.
        first: u64,
        /// The last page.
        last: u64,
    },
    /// Files of a log of transaction states that lie wholly before a page may have been removed.
    SlruTruncated {
        /// Which one.
        slru: Slru,
        /// The first page still needed.
        first_kept: u64,
    },
    /// A transaction was committed.
    Committed(TransactionEnd<'a>),
    /// A transaction or subtransaction was rolled back.
    Aborted(TransactionEnd<'a>),
    /// A transaction was prepared: it has a file in `pg_twophase`, at the latest from the next
    /// checkpoint on.
    Prepared(Prepared<'a>),
    /// A named restore point.
    RestorePoint {
        /// When it was made.
        time: Timestamp,
        /// Its name, in the server's encoding.
        name: &'a [u8],
    },
    /// A checkpoint was completed; the record's place is what `pg_control` points to.
    Checkpoint {
        /// Whether the server was being shut down (or recovery ended so): nothing was in flight.
        shutdown: bool,
        /// What it recorded; its [`redo`](CheckPoint::redo) is where replay starts.
        checkpoint: CheckPoint,
    },
    /// A checkpoint will have its redo position at this record (17 and later).
    CheckpointRedo {
        /// The `wal_level` from here on, where told.
        wal_level: Option<WalLevel>,
    },
    /// Recovery ended and a new timeline began.
    EndOfRecovery {
        /// When.
        time: Timestamp,
        /// The timeline that begins.
        timeline: TimelineId,
        /// The timeline it branches off.
        previous_timeline: TimelineId,
        /// The `wal_level` from here on (17 and later).
        wal_level: Option<WalLevel>,
    },
    /// A server started with other settings than `pg_control` had.
    ParametersChanged(Parameters),
    /// `full_page_writes` was changed.
    FullPageWritesChanged {
        /// Whether it is on now.
        on: bool,
    },
    /// A base backup of a primary ended: with the log up to here a copy is consistent.
    BackupEnded {
        /// Where the backup's log starts.
        start: Lsn,
    },
    /// Object identifiers up to this one may have been used.
    NextOid {
        /// The first that was not.
        oid: Oid,
    },
    /// The rest of the segment is unused.
    SegmentSwitched,
    /// After a crash, a record that had been cut off is given up.
    CutRecordReplaced {
        /// Where the cut record began.
        lsn: Lsn,
        /// When.
        time: Timestamp,
    },
    /// A record that this crate cannot interpret and that may change files in ways it does not
    /// tell. What changed cannot be known from this log.
    Unknown {
        /// Who wrote it.
        rmgr: ResourceManager,
        /// The resource manager's code.
        code: u8,
        /// Whether it announces changes besides its block references (`XLR_SPECIAL_REL_UPDATE`).
        special_update: bool,
    },
}

/// Whether a record's code was understood.
enum Known {
    Yes,
    No,
}

impl<'a> Record<'a> {
    /// Passes everything the record changed to `visit`: its blocks in the order of their ids, then
    /// the rest. Allocates nothing.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed), with the record's position, when its data does not have
    /// the form its code asks for. Changes visited before are true.
    pub fn changes(&self, mut visit: impl FnMut(Change<'a>)) -> Result<()> {
        for block in self.blocks() {
            visit(Change::Block(block));
        }
        let header = self.header();
        let special = header.is_special_update();
        let rmgr = header.rmgr;
        let (known, may_be_special) = match rmgr {
            ResourceManager::HEAP => (heap::heap(self, &mut visit), false),
            ResourceManager::HEAP2 => (heap::heap2(self, &mut visit), false),
            ResourceManager::TRANSACTION => (transaction::decode(self, &mut visit), true),
            ResourceManager::XLOG => (xlog::decode(self, &mut visit), false),
            ResourceManager::STORAGE => (storage::storage(self, &mut visit), true),
            ResourceManager::DATABASE => (storage::database(self, &mut visit), true),
            ResourceManager::TABLESPACE => (storage::tablespace(self, &mut visit), true),
            ResourceManager::RELMAP => (storage::relation_map(self, &mut visit), true),
            ResourceManager::CLOG => (slru::clog(self, &mut visit), false),
            ResourceManager::MULTIXACT => (slru::multixact(self, &mut visit), false),
            ResourceManager::COMMIT_TS => (slru::commit_ts(self, &mut visit), false),
            _ => (Ok(Known::Yes), false),
        };
        let known = known.map_err(|error| {
            let (code, reason) = (header.code(), error.reason());
            self.error(
                ErrorKind::Malformed,
                format!("data of {rmgr} record {code:02X}: {reason}"),
            )
        })?;
        if matches!(known, Known::No) || (special && !may_be_special) {
            visit(Change::Unknown {
                rmgr,
                code: header.code(),
                special_update: special,
            });
        }
        Ok(())
    }
}
