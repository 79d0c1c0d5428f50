//! What changes in a data directory though no [`Change`](super::Change) names it.
//!
//! The list is complete for logs of `wal_level` `replica` and above: the test `wal_truth` compares
//! clusters of every major page by page before and after work of all kinds, and finds each difference
//! either named by a change or under one of these rules.

use crate::page::PageHeader;
use crate::relation::{BlockNumber, Fork};
use crate::slru::Slru;

/// Something that changes without a record that names it, and must be taken whole, or looked at, by
/// whoever takes "what changed" from the log.
///
/// Blocks that no rule covers and no change names are what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum UnloggedChange {
    /// Free space maps, in whole: they are hints, and almost nothing of them is logged.
    FreeSpaceMap,
    /// The visibility map of a relation with any change, in whole: it grows without a record, and a
    /// repaired page of it is not logged.
    VisibilityMap,
    /// Every fork but the init fork of an unlogged relation (one that has an init fork), in whole.
    UnloggedRelation,
    /// Every file of a database that [`DatabaseCopied`](super::Change::DatabaseCopied) made, in whole, its
    /// relation map included; until a later change replaces or drops it.
    DatabaseCopied,
    /// Blocks at or behind a limit block: the shortest the fork was cut to, zero where it was created or
    /// its database replaced. Nothing of the file's earlier content is left from there on. What stands
    /// there now was named block by block, or is zeros.
    BehindLimit,
    /// Zero blocks behind the end of a file as it was: a relation is extended before its new blocks are
    /// logged.
    Extended,
    /// Block 0 of an SP-GiST index, with checksums too: its metapage holds a cache of recently used pages
    /// that is written back and never logged. [`may_be_spgist_metapage`] tells such a block.
    SpGistCache,
    /// Hints on any page, where neither page checksums nor `wal_log_hints` are on. Whoever needs equal
    /// bytes must then compare every page; leaving a hint out is harmless, unless the cluster goes back in
    /// time: then a hint can tell of a transaction that never was.
    Hints,
    /// Files that are not of relations, nor a log of transaction states: `pg_control`, files of prepared
    /// transactions, configuration, slots, statistics and all others. Small; taken in whole.
    /// [`RelationMapUpdated`](super::Change::RelationMapUpdated) and [`Prepared`](super::Change::Prepared)
    /// tell of some.
    NotRelation,
    /// `pg_subtrans`, `pg_serial` and `pg_notify`: emptied or built anew at every start, so best left out.
    ResetAtStart,
    /// All of `pg_commit_ts` when `track_commit_timestamp` changes: files are made or removed at once.
    /// [`ParametersChanged`](super::Change::ParametersChanged) tells of it.
    CommitTimestampsSwitched,
}

impl UnloggedChange {
    /// The rule by which a fork is taken in whole, if there is one. `unlogged`: the relation has an init
    /// fork. `changed`: any change names the relation.
    #[must_use]
    pub fn of_fork(fork: Fork, unlogged: bool, changed: bool) -> Option<Self> {
        match fork {
            Fork::FreeSpaceMap => Some(Self::FreeSpaceMap),
            Fork::Init => None,
            _ if unlogged => Some(Self::UnloggedRelation),
            Fork::VisibilityMap if changed => Some(Self::VisibilityMap),
            _ => None,
        }
    }

    /// The rule for a log of transaction states, if it is not by the pages that changes name.
    #[must_use]
    pub const fn of_slru(slru: Slru) -> Option<Self> {
        if slru.outlives_a_start() {
            None
        } else {
            Some(Self::ResetAtStart)
        }
    }
}

/// Whether this may be the metapage of an SP-GiST index, which has a cache that is not logged.
///
/// Source: `access/spgist_private.h`.
#[must_use]
pub fn may_be_spgist_metapage(page: &[u8], block: BlockNumber) -> bool {
    const META: u16 = 1;
    const PAGE_ID: u16 = 0xFF82;
    const MAGIC: u32 = 0xBA0B_ABEE;
    let Ok(header) = PageHeader::decode(page) else {
        return false;
    };
    let special = usize::from(header.special);
    let Some([f0, f1, _, _, _, _, i0, i1]) = page.get(special..) else {
        return false;
    };
    block == 0
        && u16::from_le_bytes([*f0, *f1]) & META != 0
        && u16::from_le_bytes([*i0, *i1]) == PAGE_ID
        && page.get(PageHeader::SIZE..).and_then(<[u8]>::first_chunk) == Some(&MAGIC.to_le_bytes())
}
