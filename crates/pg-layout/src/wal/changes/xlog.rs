//! Records about the log and the cluster themselves: checkpoints, settings, restore points.

use super::storage::until_nul;
use super::{Change, Known};
use crate::checkpoint::{CheckPoint, WalLevel, boolean, timeline};
use crate::cursor::Cursor;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::timestamp::Timestamp;
use crate::wal::record::Record;

/// Settings that `pg_control` keeps because standbys and tools depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parameters {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const CHECKPOINT_ONLINE: u8 = 0x10;
const NOOP: u8 = 0x20;
const NEXT_OID: u8 = 0x30;
const SWITCH: u8 = 0x40;
const BACKUP_END: u8 = 0x50;
const PARAMETER_CHANGE: u8 = 0x60;
const RESTORE_POINT: u8 = 0x70;
const FPW_CHANGE: u8 = 0x80;
const END_OF_RECOVERY: u8 = 0x90;
const FPI_FOR_HINT: u8 = 0xA0;
const FPI: u8 = 0xB0;
const OVERWRITE_CONTRECORD: u8 = 0xD0;
const CHECKPOINT_REDO: u8 = 0xE0;

pub(super) fn decode<'a>(record: &Record<'a>, visit: &mut impl FnMut(Change<'a>)) -> Result<Known> {
    let layout = record.layout();
    let mut at = Cursor::new("XLOG record", record.main_data());
    let code = record.header().code();
    visit(match code {
        FPI_FOR_HINT | FPI | NOOP => return Ok(Known::Yes),
        CHECKPOINT_SHUTDOWN | CHECKPOINT_ONLINE => Change::Checkpoint {
            shutdown: code == CHECKPOINT_SHUTDOWN,
            checkpoint: CheckPoint::decode(record.main_data(), layout)?,
        },
        NEXT_OID => Change::NextOid { oid: at.u32()? },
        SWITCH => Change::SegmentSwitched,
        BACKUP_END => Change::BackupEnded {
            start: Lsn(at.u64()?),
        },
        PARAMETER_CHANGE => Change::ParametersChanged(Parameters {
            max_connections: at.i32()?,
            max_worker_processes: at.i32()?,
            max_wal_senders: at.i32()?,
            max_prepared_transactions: at.i32()?,
            max_locks_per_transaction: at.i32()?,
            wal_level: WalLevel::from_number(at.i32()?)?,
            wal_log_hints: boolean(&mut at)?,
            track_commit_timestamp: boolean(&mut at)?,
        }),
        RESTORE_POINT => Change::RestorePoint {
            time: Timestamp(at.i64()?),
            name: until_nul(at.take(at.remaining())?),
        },
        FPW_CHANGE => Change::FullPageWritesChanged {
            on: boolean(&mut at)?,
        },
        END_OF_RECOVERY => Change::EndOfRecovery {
            time: Timestamp(at.i64()?),
            timeline: timeline(&mut at)?,
            previous_timeline: timeline(&mut at)?,
            wal_level: wal_level(&mut at, layout.checkpoint_has_wal_level)?,
        },
        OVERWRITE_CONTRECORD => Change::CutRecordReplaced {
            lsn: Lsn(at.u64()?),
            time: Timestamp(at.i64()?),
        },
        CHECKPOINT_REDO if layout.has_checkpoint_redo => Change::CheckpointRedo {
            wal_level: wal_level(&mut at, true)?,
        },
        _ => return Ok(Known::No),
    });
    Ok(Known::Yes)
}

fn wal_level(at: &mut Cursor<'_>, told: bool) -> Result<Option<WalLevel>> {
    told.then(|| WalLevel::from_number(at.i32()?)).transpose()
}
