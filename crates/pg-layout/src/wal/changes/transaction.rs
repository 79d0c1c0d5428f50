//! Ends of transactions: when, which, and the relations that go with them.

use super::slru::{page_of, pages};
use super::storage::{relation, until_nul};
use super::{Change, Known};
use crate::cursor::Cursor;
use crate::error::{ErrorKind, Result};
use crate::lsn::Lsn;
use crate::relation::Oid;
use crate::slru::Slru;
use crate::timestamp::Timestamp;
use crate::wal::record::Record;

/// The end of a transaction, or of a subtransaction that was rolled back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransactionEnd<'a> {
    /// The transaction; 0 for one that changed nothing but files.
    pub xid: u32,
    /// When it ended, by the server's clock. Not monotonic.
    pub time: Timestamp,
    /// Whether it had been prepared: its file in `pg_twophase` is removed.
    pub prepared: bool,
    /// The name it was prepared under; told under `wal_level = logical` only.
    pub gid: Option<&'a [u8]>,
    /// The subtransactions that end with it.
    pub subxids: Xids<'a>,
    /// The database it ran in, where the record tells.
    pub database: Option<Oid>,
    /// Where it came from by replication.
    pub origin: Option<Origin>,
}

/// Where a replicated transaction came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The end of its commit in the log of its origin.
    pub lsn: Lsn,
    /// When it was committed there.
    pub time: Timestamp,
}

/// A transaction that was prepared for a two-phase commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prepared<'a> {
    /// The transaction.
    pub xid: u32,
    /// When it was prepared.
    pub time: Timestamp,
    /// The name it was given.
    pub gid: &'a [u8],
    /// The database it ran in.
    pub database: Oid,
}

/// Transaction ids inside a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Xids<'a>(&'a [[u8; 4]]);

impl<'a> Xids<'a> {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ids in the record's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + 'a {
        self.0.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }
}

const COMMIT: u8 = 0x00;
const PREPARE: u8 = 0x10;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const ASSIGNMENT: u8 = 0x50;
const INVALIDATIONS: u8 = 0x60;
const CODES: u8 = 0x70;
const HAS_INFO: u8 = 0x80;

const HAS_DATABASE: u32 = 1;
const HAS_SUBXIDS: u32 = 1 << 1;
const HAS_RELATIONS: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_ORIGIN: u32 = 1 << 5;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATS: u32 = 1 << 8;

const RELATION_SIZE: usize = 12;
const INVALIDATION_SIZE: usize = 16;

pub(super) fn decode<'a>(record: &Record<'a>, visit: &mut impl FnMut(Change<'a>)) -> Result<Known> {
    match record.header().code() & CODES {
        COMMIT | COMMIT_PREPARED => {
            let end = transaction_end(record, true, visit)?;
            visit(Change::Committed(end));
            visit_states(record, &end, Slru::Transactions, visit);
            visit_states(record, &end, Slru::CommitTimestamps, visit);
        }
        ABORT | ABORT_PREPARED => {
            let end = transaction_end(record, false, visit)?;
            visit(Change::Aborted(end));
            visit_states(record, &end, Slru::Transactions, visit);
        }
        PREPARE => visit(Change::Prepared(prepared(record)?)),
        ASSIGNMENT | INVALIDATIONS => {}
        _ => return Ok(Known::No),
    }
    Ok(Known::Yes)
}

fn transaction_end<'a>(
    record: &Record<'a>,
    commit: bool,
    visit: &mut impl FnMut(Change<'a>),
) -> Result<TransactionEnd<'a>> {
    let header = record.header();
    let mut at = Cursor::new("transaction record", record.main_data());
    let time = Timestamp(at.i64()?);
    let info = if header.info & HAS_INFO == 0 {
        0
    } else {
        at.u32()?
    };
    let has = |bit| info & bit != 0;
    let database = if has(HAS_DATABASE) {
        let database = at.u32()?;
        at.skip(4)?;
        Some(database)
    } else {
        None
    };
    let mut subxids = Xids::default();
    if has(HAS_SUBXIDS) {
        let (xids, _) = list(&mut at, 4)?.as_chunks();
        subxids = Xids(xids);
    }
    if has(HAS_RELATIONS) {
        let mut relations = Cursor::new("transaction record", list(&mut at, RELATION_SIZE)?);
        while relations.remaining() > 0 {
            let relation = relation(&mut relations)?;
            visit(Change::RelationDropped { relation });
        }
    }
    let stat_size = record.layout().dropped_stat_size;
    if has(HAS_DROPPED_STATS) && stat_size > 0 {
        list(&mut at, stat_size)?;
    }
    if has(HAS_INVALIDATIONS) && commit {
        list(&mut at, INVALIDATION_SIZE)?;
    }
    let (mut xid, mut prepared, mut gid) = (header.xid, false, None);
    if has(HAS_TWOPHASE) {
        xid = at.u32()?;
        prepared = true;
        if has(HAS_GID) {
            let rest = at.clone().take(at.remaining())?;
            let text = until_nul(rest);
            at.skip(text.len() + 1)?;
            gid = Some(text);
        }
    }
    let origin = if has(HAS_ORIGIN) {
        Some(Origin {
            lsn: Lsn(at.u64()?),
            time: Timestamp(at.i64()?),
        })
    } else {
        None
    };
    Ok(TransactionEnd {
        xid,
        time,
        prepared,
        gid,
        subxids,
        database,
        origin,
    })
}

/// A count and as many entries of `size` bytes.
fn list<'a>(at: &mut Cursor<'a>, size: usize) -> Result<&'a [u8]> {
    let count = at.i32()?;
    let bytes = usize::try_from(count)
        .ok()
        .and_then(|count| count.checked_mul(size));
    match bytes {
        Some(bytes) => at.take(bytes),
        None => Err(at.error(ErrorKind::Malformed, format!("a list of {count} entries"))),
    }
}

fn prepared<'a>(record: &Record<'a>) -> Result<Prepared<'a>> {
    /// What a state file begins with, in the log as well.
    const ALIGNMENT: usize = 8;
    let mut at = Cursor::new("prepared transaction", record.main_data());
    at.skip(8)?;
    let xid = at.u32()?;
    let database = at.u32()?;
    let time = Timestamp(at.i64()?);
    // Owner, counts of subtransactions and of relations to drop in either case; then of statistics
    // to drop in either case, where there are such; then of invalidations.
    at.skip(16)?;
    if record.layout().has_dropped_stats {
        at.skip(8)?;
    }
    at.skip(4)?;
    // Whether the relation cache file is to be removed, and a byte of padding.
    at.skip(2)?;
    let gid_len = at.u16()?;
    // Origin.
    at.skip(16)?;
    at.skip(at.position().next_multiple_of(ALIGNMENT) - at.position())?;
    Ok(Prepared {
        xid,
        time,
        gid: until_nul(at.take(gid_len.into())?),
        database,
    })
}

/// The pages that hold the states of a transaction and of its subtransactions, neighbours as one.
fn visit_states<'a>(
    record: &Record<'a>,
    end: &TransactionEnd<'a>,
    slru: Slru,
    visit: &mut impl FnMut(Change<'a>),
) {
    const FIRST_NORMAL: u32 = 3;
    let page = |xid| page_of(slru, xid, record.block_size());
    let mut range: Option<(u64, u64)> = None;
    let xids = std::iter::once(end.xid).chain(end.subxids.iter());
    for page in xids.filter(|&xid| xid >= FIRST_NORMAL).filter_map(page) {
        range = match range {
            Some((first, last)) if (first..=last.saturating_add(1)).contains(&page) => {
                Some((first, last.max(page)))
            }
            Some((first, last)) => {
                visit(pages(slru, first, last));
                Some((page, page))
            }
            None => Some((page, page)),
        };
    }
    if let Some((first, last)) = range {
        visit(pages(slru, first, last));
    }
}
