//! The control file, `global/pg_control`.
//!
//! One structure of `catalog/pg_control.h`, at most 296 bytes in a file of 8192, in the byte order of
//! the host and sealed with a CRC. 13 to 16 share one control version, so the catalog version tells the
//! major. The file is read only here: a running server owns it, and a copy must stay what the server
//! wrote; there is no writer.

use std::fmt;

use crate::checkpoint::{CheckPoint, WalLevel, boolean};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::page::BlockSize;
use crate::segment::WalSegmentSize;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;
use crate::version::{PgMajor, VersionLayout};

const SUBJECT: &str = "pg_control";
const CHECKPOINT_OFFSET: usize = 40;
const NONCE_LEN: usize = 32;

/// The content of `global/pg_control`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ControlFile {
    /// The major version that wrote the file.
    pub major: PgMajor,
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// What the server was doing when it wrote the file.
    pub state: ClusterState,
    /// When the file was written, in seconds since 1970.
    pub time: i64,
    /// Where the last checkpoint's record starts.
    pub checkpoint_location: Lsn,
    /// A copy of the last checkpoint.
    pub checkpoint: CheckPoint,
    /// The counter that serves unlogged relations as a position.
    pub unlogged_lsn: Lsn,
    /// How far recovery must replay before the data is consistent; invalid when no recovery runs.
    pub min_recovery_point: Lsn,
    /// The timeline of `min_recovery_point`.
    pub min_recovery_timeline: Option<TimelineId>,
    /// Where the backup being recovered from starts; invalid when it is none or reached its end.
    pub backup_start: Lsn,
    /// Where a backup taken from a standby ends; invalid otherwise.
    pub backup_end: Lsn,
    /// Whether recovery must meet an end-of-backup record before the data is consistent.
    pub backup_end_required: bool,
    /// Settings a standby must match.
    pub settings: RecordedSettings,
    /// How the server that wrote the file was built.
    pub build: BuildFacts,
    /// Whether pages carry checksums (`data_checksum_version`, 0 or 1).
    pub data_checksums: bool,
    /// The random bytes that let the server feign authentication of unknown users.
    pub nonce: AuthenticationNonce,
}

/// What the server was doing when it wrote the control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClusterState {
    /// `initdb` or `pg_resetwal` has not finished; the data was never started.
    StartingUp,
    /// Stopped cleanly.
    ShutDown,
    /// A standby or a recovery, stopped cleanly.
    ShutDownInRecovery,
    /// Stopping.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Recovering from an archive, or a standby.
    InArchiveRecovery,
    /// Running, or crashed while it ran.
    InProduction,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::StartingUp,
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            3 => Self::ShuttingDown,
            4 => Self::InCrashRecovery,
            5 => Self::InArchiveRecovery,
            6 => Self::InProduction,
            _ => return None,
        })
    }

    /// Whether a server stopped here in order, so that a plain copy of its files is whole.
    #[must_use]
    pub const fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }
}

impl fmt::Display for ClusterState {
    /// In the words of `pg_controldata`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// Settings of the primary that a hot standby must reach or match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordedSettings {
    /// `wal_level`
    pub wal_level: WalLevel,
    /// `wal_log_hints`
    pub wal_log_hints: bool,
    /// `max_connections`
    pub max_connections: i32,
    /// `max_worker_processes`
    pub max_worker_processes: i32,
    /// `max_wal_senders`
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`
    pub max_locks_per_transaction: i32,
    /// `track_commit_timestamp`
    pub track_commit_timestamp: bool,
}

/// Facts fixed when the server was compiled or its cluster created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildFacts {
    /// Largest alignment of a data type.
    pub max_align: u32,
    /// Size of a relation's page.
    pub block_size: BlockSize,
    /// Pages in one segment file of a relation.
    pub segment_blocks: u32,
    /// Size of a page of the log.
    pub wal_block_size: u32,
    /// Size of a segment of the log.
    pub wal_segment_size: WalSegmentSize,
    /// Bytes of an identifier, the terminating zero included (`NAMEDATALEN`).
    pub name_length: u32,
    /// Columns an index may have.
    pub index_max_keys: u32,
    /// Largest piece of a TOASTed value.
    pub toast_max_chunk_size: u32,
    /// Size of a large object's piece.
    pub large_object_block_size: u32,
    /// Whether 64-bit values are passed by value.
    pub float8_by_value: bool,
    /// Whether `char` is signed on the machine of `initdb`; recorded by 18 and later.
    pub default_char_signed: Option<bool>,
}

/// Random bytes that only the server should know.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AuthenticationNonce(pub [u8; NONCE_LEN]);

impl fmt::Debug for AuthenticationNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthenticationNonce(..)")
    }
}

impl ControlFile {
    /// Bytes of the file on disk.
    pub const FILE_SIZE: usize = 8192;

    /// Reads the whole file.
    ///
    /// # Errors
    /// - [`Truncated`](ErrorKind::Truncated) or [`Malformed`](ErrorKind::Malformed) when the file is not
    ///   [`FILE_SIZE`](Self::FILE_SIZE) bytes long;
    /// - [`Unsupported`](ErrorKind::Unsupported) for another major, a beta, a fork, or a machine of
    ///   another byte order or number format;
    /// - [`Checksum`](ErrorKind::Checksum) when the CRC is wrong. A running server rewrites the file in
    ///   place, so a reader beside one should read again before it believes in damage;
    /// - [`Malformed`](ErrorKind::Malformed), [`OutOfRange`](ErrorKind::OutOfRange) or
    ///   [`Inconsistent`](ErrorKind::Inconsistent) for values under a right CRC that no server writes.
    pub fn decode(file: &[u8]) -> Result<Self> {
        check_size(file)?;
        let mut at = Cursor::new(SUBJECT, file);
        let system_identifier = at.u64()?;
        let layout = identify(at.u32()?, at.u32()?)?;
        check_crc(file, layout)?;

        let system_identifier = SystemIdentifier::new(system_identifier)?;
        let state = at.u32()?;
        let state = ClusterState::from_number(state)
            .ok_or_else(|| at.error(ErrorKind::Malformed, format!("unknown state {state}")))?;
        at.skip(4)?;
        let time = at.i64()?;
        let checkpoint_location = Lsn(at.u64()?);
        debug_assert_eq!(at.position(), CHECKPOINT_OFFSET);
        let checkpoint = CheckPoint::decode(at.take(CheckPoint::SIZE)?, layout)?;
        let unlogged_lsn = Lsn(at.u64()?);
        let min_recovery_point = Lsn(at.u64()?);
        let min_recovery_timeline = TimelineId::new(at.u32()?).ok();
        at.skip(4)?;
        let backup_start = Lsn(at.u64()?);
        let backup_end = Lsn(at.u64()?);
        let backup_end_required = boolean(&mut at)?;
        at.skip(3)?;
        let settings = settings(&mut at)?;
        let mut build = build(&mut at)?;
        at.skip(3)?;
        let data_checksums = match at.u32()? {
            0 => false,
            1 => true,
            other => {
                return Err(at.error(
                    ErrorKind::Unsupported,
                    format!("page checksums of version {other}"),
                ));
            }
        };
        if layout.control_has_char_signedness {
            build.default_char_signed = Some(boolean(&mut at)?);
        }
        Ok(Self {
            major: layout.major,
            system_identifier,
            state,
            time,
            checkpoint_location,
            checkpoint,
            unlogged_lsn,
            min_recovery_point,
            min_recovery_timeline,
            backup_start,
            backup_end,
            backup_end_required,
            settings,
            build,
            data_checksums,
            nonce: AuthenticationNonce(at.array()?),
        })
    }
}

fn check_size(file: &[u8]) -> Result<()> {
    let kind = match file.len() {
        ControlFile::FILE_SIZE => return Ok(()),
        0..ControlFile::FILE_SIZE => ErrorKind::Truncated,
        _ => ErrorKind::Malformed,
    };
    Err(Error::new(
        kind,
        SUBJECT,
        format!("{} bytes long instead of 8192", file.len()),
    ))
}

/// Finds the major by catalog version and says what else the file might be.
fn identify(control_version: u32, catalog_version: u32) -> Result<&'static VersionLayout> {
    let unsupported = |reason: String| Error::new(ErrorKind::Unsupported, SUBJECT, reason);
    let known = |version| {
        PgMajor::ALL
            .into_iter()
            .any(|major| major.layout().control_version == version)
    };
    if control_version == 0 && catalog_version == 0 {
        return Err(Error::malformed(SUBJECT, "no version in it"));
    }
    if known(control_version.swap_bytes()) {
        return Err(unsupported(format!(
            "control version {} in the byte order of another machine",
            control_version.swap_bytes()
        )));
    }
    let major = PgMajor::from_catalog_version(catalog_version).map_err(|error| {
        unsupported(format!(
            "control version {control_version}, catalog version {}",
            error.reason()
        ))
    })?;
    let layout = major.layout();
    if layout.control_version != control_version {
        return Err(unsupported(format!(
            "control version {control_version} with the catalogs of PostgreSQL {major}"
        )));
    }
    Ok(layout)
}

fn check_crc(file: &[u8], layout: &VersionLayout) -> Result<()> {
    let mut at = Cursor::new(SUBJECT, file);
    let computed = crc32c::crc32c(at.take(layout.control_crc_offset)?);
    let stored = at.u32()?;
    if stored != computed {
        return Err(at.error(
            ErrorKind::Checksum,
            format!(
                "CRC {computed:08x} instead of {stored:08x}: damaged, or read while the server wrote it"
            ),
        ));
    }
    Ok(())
}

fn settings(at: &mut Cursor<'_>) -> Result<RecordedSettings> {
    let wal_level = WalLevel::from_number(at.i32()?)?;
    let wal_log_hints = boolean(at)?;
    at.skip(3)?;
    let settings = RecordedSettings {
        wal_level,
        wal_log_hints,
        max_connections: at.i32()?,
        max_worker_processes: at.i32()?,
        max_wal_senders: at.i32()?,
        max_prepared_transactions: at.i32()?,
        max_locks_per_transaction: at.i32()?,
        track_commit_timestamp: boolean(at)?,
    };
    at.skip(3)?;
    Ok(settings)
}

fn build(at: &mut Cursor<'_>) -> Result<BuildFacts> {
    let max_align = at.u32()?;
    let float_format = f64::from_bits(at.u64()?);
    if max_align != 8 || float_format.to_bits() != 1_234_567.0_f64.to_bits() {
        return Err(at.error(
            ErrorKind::Unsupported,
            "alignment or floating-point format of another machine",
        ));
    }
    let block_size = BlockSize::new(at.u32()?.into())?;
    let segment_blocks = at.u32()?;
    let wal_block_size = at.u32()?;
    if segment_blocks == 0 || !wal_block_size.is_power_of_two() || wal_block_size > 1 << 16 {
        return Err(at.error(
            ErrorKind::OutOfRange,
            format!("{segment_blocks} blocks in a segment, WAL blocks of {wal_block_size} bytes"),
        ));
    }
    Ok(BuildFacts {
        max_align,
        block_size,
        segment_blocks,
        wal_block_size,
        wal_segment_size: WalSegmentSize::new(at.u32()?.into())?,
        name_length: at.u32()?,
        index_max_keys: at.u32()?,
        toast_max_chunk_size: at.u32()?,
        large_object_block_size: at.u32()?,
        float8_by_value: boolean(at)?,
        default_char_signed: None,
    })
}
