//! A checkpoint, as `pg_control` keeps it and as checkpoint records of the log carry it.
//!
//! One structure (`CheckPoint` of `catalog/pg_control.h`) with one layout in both places, 88 bytes
//! in every supported major; 17 put `wal_level` into what was padding.

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::relation::Oid;
use crate::timeline::TimelineId;
use crate::version::VersionLayout;

/// What a checkpoint recorded. Transaction and multixact numbers are as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckPoint {
    /// Where replay from this checkpoint starts.
    pub redo: Lsn,
    /// The timeline the checkpoint was written on.
    pub timeline: TimelineId,
    /// The timeline before; differs from `timeline` only in the checkpoint that began it.
    pub previous_timeline: TimelineId,
    /// Whether `full_page_writes` was on.
    pub full_page_writes: bool,
    /// The `wal_level` in force; recorded by 17 and later.
    pub wal_level: Option<WalLevel>,
    /// The next transaction id, epoch in the high half.
    pub next_xid: u64,
    /// The next object identifier.
    pub next_oid: Oid,
    /// The next multixact id.
    pub next_multi: u32,
    /// The next multixact member offset.
    pub next_multi_offset: u32,
    /// `datfrozenxid` of the cluster: the oldest transaction id that may appear unfrozen.
    pub oldest_xid: u32,
    /// The database that holds `oldest_xid` back.
    pub oldest_xid_database: Oid,
    /// `datminmxid` of the cluster.
    pub oldest_multi: u32,
    /// The database that holds `oldest_multi` back.
    pub oldest_multi_database: Oid,
    /// When the checkpoint was made, in seconds since 1970.
    pub time: i64,
    /// The oldest transaction with a commit timestamp; 0 without `track_commit_timestamp`.
    pub oldest_commit_timestamp_xid: u32,
    /// The newest transaction with a commit timestamp; 0 without `track_commit_timestamp`.
    pub newest_commit_timestamp_xid: u32,
    /// The oldest transaction still running; 0 in a shutdown checkpoint and below `replica`.
    pub oldest_active_xid: u32,
}

impl CheckPoint {
    /// Bytes of the structure, in `pg_control` and in a record's data.
    pub const SIZE: usize = 88;

    /// Reads the first [`CheckPoint::SIZE`] bytes.
    ///
    /// # Errors
    /// [`Truncated`](ErrorKind::Truncated) when there are fewer;
    /// [`Malformed`](ErrorKind::Malformed) for a value no server writes: timeline 0, an unknown
    /// `wal_level`, a truth value above 1.
    pub fn decode(bytes: &[u8], layout: &VersionLayout) -> Result<Self> {
        let mut at = Cursor::new("checkpoint", bytes);
        let redo = Lsn(at.u64()?);
        let timeline = timeline(&mut at)?;
        let previous_timeline = timeline_or(&mut at, timeline)?;
        let full_page_writes = boolean(&mut at)?;
        at.skip(3)?;
        let wal_level = at.i32()?;
        let wal_level = layout
            .checkpoint_has_wal_level
            .then(|| WalLevel::from_number(wal_level))
            .transpose()?;
        let checkpoint = Self {
            redo,
            timeline,
            previous_timeline,
            full_page_writes,
            wal_level,
            next_xid: at.u64()?,
            next_oid: at.u32()?,
            next_multi: at.u32()?,
            next_multi_offset: at.u32()?,
            oldest_xid: at.u32()?,
            oldest_xid_database: at.u32()?,
            oldest_multi: at.u32()?,
            oldest_multi_database: at.u32()?,
            time: {
                at.skip(4)?;
                at.i64()?
            },
            oldest_commit_timestamp_xid: at.u32()?,
            newest_commit_timestamp_xid: at.u32()?,
            oldest_active_xid: at.u32()?,
        };
        at.skip(Self::SIZE - at.position())?;
        Ok(checkpoint)
    }
}

/// How much the server logs (`wal_level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WalLevel {
    /// Enough for crash recovery only.
    Minimal,
    /// Enough for archiving and replication.
    Replica,
    /// Enough for logical decoding.
    Logical,
}

impl WalLevel {
    /// The level with the number stored in `pg_control` and in the log.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) for any other than 0, 1, 2.
    pub fn from_number(number: i32) -> Result<Self> {
        match number {
            0 => Ok(Self::Minimal),
            1 => Ok(Self::Replica),
            2 => Ok(Self::Logical),
            _ => Err(Error::malformed(
                "wal_level",
                format!("{number} is none of minimal, replica, logical"),
            )),
        }
    }

    /// The name as in `postgresql.conf`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        }
    }
}

impl std::fmt::Display for WalLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A timeline that must be there.
pub(crate) fn timeline(at: &mut Cursor<'_>) -> Result<TimelineId> {
    let number = at.u32()?;
    TimelineId::new(number).map_err(|_| at.error(ErrorKind::Malformed, "timeline 0"))
}

/// A timeline, or `fallback` where zero is stored.
fn timeline_or(at: &mut Cursor<'_>, fallback: TimelineId) -> Result<TimelineId> {
    Ok(TimelineId::new(at.u32()?).unwrap_or(fallback))
}

/// A C `bool`: one byte, 0 or 1.
pub(crate) fn boolean(at: &mut Cursor<'_>) -> Result<bool> {
    match at.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(at.error(
            ErrorKind::Malformed,
            format!("{other} where 0 or 1 was expected"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::PgMajor;

    fn sample() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&0x200_0028_u64.to_le_bytes());
        bytes.extend_from_slice(&3_u32.to_le_bytes());
        bytes.extend_from_slice(&2_u32.to_le_bytes());
        bytes.extend_from_slice(&[1, 0, 0, 0]);
        bytes.extend_from_slice(&1_i32.to_le_bytes());
        bytes.extend_from_slice(&0x1_0000_02DF_u64.to_le_bytes());
        for field in 11_u32..=17 {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&1_700_000_000_i64.to_le_bytes());
        for field in 18_u32..=20 {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&[0; 4]);
        bytes
    }

    #[test]
    fn fields_stand_where_the_header_puts_them() {
        let bytes = sample();
        assert_eq!(bytes.len(), CheckPoint::SIZE);
        let read = CheckPoint::decode(&bytes, PgMajor::V18.layout()).unwrap();
        assert_eq!(read.redo, Lsn(0x200_0028));
        assert_eq!((read.timeline.get(), read.previous_timeline.get()), (3, 2));
        assert_eq!(read.wal_level, Some(WalLevel::Replica));
        assert_eq!((read.next_xid, read.next_oid), (0x1_0000_02DF, 11));
        assert_eq!((read.oldest_multi_database, read.time), (17, 1_700_000_000));
        assert_eq!(read.oldest_active_xid, 20);
        let old = CheckPoint::decode(&bytes, PgMajor::V16.layout()).unwrap();
        assert_eq!(old.wal_level, None);
    }

    #[test]
    fn short_and_impossible_checkpoints_are_refused() {
        let bytes = sample();
        let layout = PgMajor::V17.layout();
        for len in 0..bytes.len() {
            let error = CheckPoint::decode(&bytes[..len], layout).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated);
        }
        for (offset, value) in [(8, 0), (16, 2), (20, 3)] {
            let mut bad = bytes.clone();
            bad[offset] = value;
            let error = CheckPoint::decode(&bad, layout).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "offset {offset}");
        }
    }
}
