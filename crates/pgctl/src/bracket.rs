//! The bracket around a copy of a running cluster: non-exclusive backup start and stop.
//!
//! Between start and stop a file copy of the data directory, taken in any order, can be recovered from the WAL
//! of that time. The server holds the bracket for the session that began it: when that session ends, the backup
//! is aborted, and nothing stays behind, neither on disk nor in memory. A temporary slot of the same session,
//! created before, keeps the WAL: the checkpoint that opens a bracket would otherwise remove or overwrite
//! segments, and so would any checkpoint until the copy of the WAL is complete. Being of the same session it
//! lives and dies with the bracket; WAL is copied from `pg_wal` or streamed without a slot meanwhile.
//!
//! Source: "Making a Base Backup Using the Low Level API" in the manual; `access/transam/xlogfuncs.c`.

use std::future::Future;

use neon_pg_layout::{
    BackupLabel, Lsn, PgMajor, SystemIdentifier, TablespaceMap, TimelineId, WalSegmentSize,
};
use neon_pgwire::{Client, ResultSet, quote_literal};

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::session;

/// The longest label the server takes (`MAXPGPATH` is 1024).
const LONGEST_LABEL: usize = 1023;

/// How a backup is to be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct BracketOptions {
    label: String,
    fast: bool,
    slot: bool,
}

impl BracketOptions {
    /// A backup of this name that begins with a fast checkpoint and keeps its WAL by a slot.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            fast: true,
            slot: true,
        }
    }

    /// Whether the checkpoint is written as fast as can be, or spread out as the regular ones are, which takes
    /// minutes. A standby has none to wait for.
    pub fn with_fast_checkpoint(mut self, fast: bool) -> Self {
        self.fast = fast;
        self
    }

    /// Whether a temporary slot keeps the WAL. Without one something else must: `wal_keep_size`, an archive.
    pub fn with_slot(mut self, slot: bool) -> Self {
        self.slot = slot;
        self
    }
}

/// Where a backup is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupStart {
    /// Where replay of the copy will start: the redo position of the checkpoint. WAL is needed from the start of
    /// its segment on.
    pub start: Lsn,
    /// The timeline.
    pub timeline: TimelineId,
    /// Whether the server is a standby. Then the data is consistent at the `minRecoveryPoint` of the control
    /// file, which therefore is to be copied last of all.
    pub standby: bool,
    /// The identity of the cluster.
    pub system_identifier: SystemIdentifier,
    /// The size of its WAL segments.
    pub wal_segment_size: WalSegmentSize,
    /// The slot that keeps the WAL, and from where on.
    pub slot: Option<(String, Lsn)>,
}

/// A backup that was stopped in order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backup {
    /// As it was begun.
    pub start: BackupStart,
    /// WAL is needed up to here; on a standby the copied control file may need more.
    pub stop: Lsn,
    /// The content of `backup_label` for the copy, to be written byte by byte.
    pub label_file: Vec<u8>,
    /// What it says.
    pub label: BackupLabel,
    /// The content of `tablespace_map` for the copy; no file is to be written when it is empty.
    pub tablespace_map_file: Vec<u8>,
    /// What it says.
    pub tablespace_map: TablespaceMap,
}

/// A backup under way.
///
/// Dropping it ends the session: the server aborts the backup and removes the slot as soon as it notices, that
/// is at once when it is idle, else within a second (13: when the checkpoint is done).
#[derive(Debug)]
pub struct BackupBracket {
    client: Client,
    major: PgMajor,
    start: BackupStart,
}

impl BackupBracket {
    /// Begins a backup on this session, which must be a plain one to any database and not through a pooler.
    /// Returns when the checkpoint is done: from now on files can be copied.
    ///
    /// The role needs the right to execute the functions of the bracket (superusers have it) and, for the slot,
    /// REPLICATION.
    ///
    /// Dropping the future ends the session, as dropping the bracket does.
    ///
    /// # Errors
    /// - [`Invalid`](ErrorKind::Invalid) for a label with a line break or NUL or of more than 1023 bytes;
    /// - [`WalLevelMinimal`](ErrorKind::WalLevelMinimal);
    /// - [`Permissions`](ErrorKind::Permissions) when the role may not;
    /// - [`Slot`](ErrorKind::Slot) when no slot is free;
    /// - [`BackupSpoiled`](ErrorKind::BackupSpoiled) on a standby whose primary runs with `full_page_writes` off;
    /// - [`Connection`](ErrorKind::Connection).
    pub async fn start(mut client: Client, options: &BracketOptions) -> Result<Self> {
        let label = &options.label;
        if label.len() > LONGEST_LABEL || label.contains(['\n', '\r', '\0']) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "backup label",
                "has a line break or NUL, or more than 1023 bytes",
            ));
        }
        let major = client.major().map_err(session::failed)?;
        let mut start = prepare(&mut client, major).await?;
        if options.slot {
            start.slot = Some(create_slot(&mut client).await?);
        }
        let fast = options.fast;
        let label = quote_literal(label).map_err(session::failed)?;
        let call = if major < PgMajor::V15 {
            format!("pg_catalog.pg_start_backup({label}, {fast}, false)")
        } else {
            format!("pg_catalog.pg_backup_start({label}, {fast})")
        };
        // In one statement: the checkpoint this one waited for is the last there is.
        let sql = format!(
            "SELECT start, c.timeline_id FROM {call} AS start, LATERAL \
             (SELECT timeline_id, start IS NULL FROM pg_catalog.pg_control_checkpoint()) AS c"
        );
        let result = match client.simple_query(&sql).await {
            Ok(results) => results.into_iter().next().unwrap_or_default(),
            Err(error) => return Err(refused(error, start.standby)),
        };
        start.start = value(&result, 0)?;
        let timeline = value::<u32>(&result, 1)?;
        start.timeline = TimelineId::new(timeline).map_err(|_| strange())?;
        Ok(Self {
            client,
            major,
            start,
        })
    }

    /// Where it is taken.
    #[must_use]
    pub fn started(&self) -> &BackupStart {
        &self.start
    }

    /// Completes when the session is lost, and the backup with it. To be watched while files are copied.
    ///
    /// Dropping the future changes nothing.
    pub async fn lost(&mut self) -> Error {
        let error = self.client.closed().await;
        lost(error)
    }

    /// Does the work of the backup, and gives it up at once when the session is lost.
    ///
    /// Dropping the future drops the work; the backup goes on.
    ///
    /// # Errors
    /// [`BackupLost`](ErrorKind::BackupLost).
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let mut closed = std::pin::pin!(self.client.closed());
        std::future::poll_fn(|context| {
            // The session first: work on a backup that is lost is not done.
            if let std::task::Poll::Ready(error) = closed.as_mut().poll(context) {
                return std::task::Poll::Ready(Err(lost(error)));
            }
            work.as_mut().poll(context).map(Ok)
        })
        .await
    }

    /// Ends the backup and the session, and with it the slot: WAL up to the stop position that is not yet
    /// secured then must be held by something else. See [`stop_with`](Self::stop_with).
    ///
    /// It does not wait until WAL is archived.
    ///
    /// Dropping the future aborts the backup, or leaves it stopped; the session and the slot end either way.
    ///
    /// # Errors
    /// [`BackupLost`](ErrorKind::BackupLost), [`BackupSpoiled`](ErrorKind::BackupSpoiled) when a standby was
    /// promoted or replayed WAL without full pages meanwhile, [`Connection`](ErrorKind::Connection).
    pub async fn stop(self) -> Result<Backup> {
        let (backup, slot) = self.stop_with().await?;
        slot.release().await;
        Ok(backup)
    }

    /// As [`stop`](Self::stop), but the session and its slot stay until the second value is dropped, so that the
    /// last of the WAL can be copied.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    pub async fn stop_with(mut self) -> Result<(Backup, WalHold)> {
        let call = if self.major < PgMajor::V15 {
            "pg_catalog.pg_stop_backup(false, false)"
        } else {
            "pg_catalog.pg_backup_stop(false)"
        };
        // Hexadecimal, so that no conversion between encodings touches a byte.
        let bytes =
            |column: &str| format!("encode(convert_to({column}, getdatabaseencoding()), 'hex')");
        let (label, map) = (bytes("labelfile"), bytes("spcmapfile"));
        let sql = format!("SELECT lsn, {label}, {map} FROM {call}");
        let result = match self.client.simple_query(&sql).await {
            Ok(results) => results.into_iter().next().unwrap_or_default(),
            Err(error) => return Err(self.spoiled(error)),
        };
        let label_file = unhex(result.value(0, 1))?;
        let tablespace_map_file = unhex(result.value(0, 2))?;
        let label =
            BackupLabel::parse(&label_file).map_err(|error| strange().with_source(error))?;
        let tablespace_map = TablespaceMap::parse(&tablespace_map_file)
            .map_err(|error| strange().with_source(error))?;
        if label.start != self.start.start || label.start_timeline != Some(self.start.timeline) {
            return Err(strange());
        }
        let backup = Backup {
            stop: value(&result, 0)?,
            label_file,
            label,
            tablespace_map_file,
            tablespace_map,
            start: self.start,
        };
        Ok((
            backup,
            WalHold {
                client: self.client,
            },
        ))
    }

    fn spoiled(&self, error: neon_pgwire::Error) -> Error {
        if self.client.is_closed() {
            return lost(error);
        }
        match error.sqlstate() {
            // ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
            Some("55000") if self.start.standby => Error::new(
                ErrorKind::BackupSpoiled,
                "backup",
                "the standby was promoted, or replayed WAL written with full_page_writes off, meanwhile",
            )
            .with_hint("take another one")
            .with_source(error),
            _ => session::failed(error),
        }
    }
}

/// The session of a stopped backup; its slot, if it has one, still keeps the WAL.
///
/// Dropping it lets go of the WAL.
#[derive(Debug)]
pub struct WalHold {
    client: Client,
}

impl WalHold {
    /// Completes when the session is lost and WAL is held no more.
    ///
    /// Dropping the future changes nothing.
    pub async fn lost(&mut self) -> Error {
        let error = self.client.closed().await;
        lost(error)
    }

    /// Ends the session in order.
    ///
    /// Dropping the future ends it too.
    pub async fn release(self) {
        self.client.close().await;
    }
}

/// Settles the session and asks what has to be known. The start and the slot are filled in later.
async fn prepare(client: &mut Client, major: PgMajor) -> Result<BackupStart> {
    // Nothing may end the session or the wait for the checkpoint.
    let mut sql = "SET statement_timeout = 0; SET lock_timeout = 0".to_owned();
    if major >= PgMajor::V14 {
        sql.push_str("; SET idle_session_timeout = 0");
    }
    client.simple_query(&sql).await.map_err(session::failed)?;
    if major >= PgMajor::V14 {
        // So that a server waiting for a checkpoint notices that we are gone. Not every system can.
        match client
            .simple_query("SET client_connection_check_interval = '1s'")
            .await
        {
            Err(error) if client.is_closed() => return Err(session::failed(error)),
            Ok(_) | Err(_) => {}
        }
    }
    let sql = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('wal_level'), \
               s.system_identifier, pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size')) \
               FROM pg_catalog.pg_control_system() AS s";
    let results = client.simple_query(sql).await.map_err(session::failed)?;
    let result = results.into_iter().next().unwrap_or_default();
    if result.value(0, 1) == Some("minimal") {
        return Err(minimal());
    }
    Ok(BackupStart {
        start: Lsn(0),
        timeline: TimelineId::FIRST,
        standby: result.value(0, 0) == Some("t"),
        system_identifier: {
            // A bigint: the largest ones are shown as negative.
            let shown = value::<i64>(&result, 2)?;
            SystemIdentifier::new(shown.cast_unsigned()).map_err(|_| strange())?
        },
        wal_segment_size: WalSegmentSize::new(value(&result, 3)?).map_err(|_| strange())?,
        slot: None,
    })
}

async fn create_slot(client: &mut Client) -> Result<(String, Lsn)> {
    let name = format!("neon_backup_{}", durable::random_hex(8)?);
    let sql = format!(
        "SELECT lsn FROM pg_catalog.pg_create_physical_replication_slot('{name}', true, true)"
    );
    let result = match client.simple_query(&sql).await {
        Ok(results) => results.into_iter().next().unwrap_or_default(),
        // ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, and when there may be none at all
        // ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
        Err(error) if matches!(error.sqlstate(), Some("53400" | "55000")) => {
            return Err(Error::new(
                ErrorKind::Slot,
                "backup",
                "no replication slot is free to keep its WAL",
            )
            .with_hint("raise max_replication_slots (needs a restart), or drop a slot nobody uses")
            .with_source(error));
        }
        Err(error) => return Err(refused(error, false)),
    };
    Ok((name, value(&result, 0)?))
}

/// Why a backup was not begun.
fn refused(error: neon_pgwire::Error, standby: bool) -> Error {
    match error.sqlstate() {
        Some("42501") => Error::new(ErrorKind::Permissions, "backup", "the role may not take one")
            .with_hint("connect as a superuser, or GRANT EXECUTE on the backup functions, and REPLICATION, to the role")
            .with_source(error),
        Some("55000") if standby => Error::new(
            ErrorKind::BackupSpoiled,
            "backup",
            "the standby replayed WAL written with full_page_writes off",
        )
        .with_hint("turn full_page_writes on at the primary, checkpoint there, and wait for the next restartpoint")
        .with_source(error),
        Some("55000") => minimal().with_source(error),
        _ => session::failed(error),
    }
}

fn minimal() -> Error {
    Error::new(
        ErrorKind::WalLevelMinimal,
        "backup",
        "cannot be taken of a running server with wal_level=minimal",
    )
    .with_hint("set wal_level to replica (needs a restart), or take it of the stopped cluster")
}

fn lost(error: neon_pgwire::Error) -> Error {
    Error::new(
        ErrorKind::BackupLost,
        "backup",
        "the session that held it is lost, the server has aborted it",
    )
    .with_source(error)
}

fn strange() -> Error {
    Error::new(
        ErrorKind::Connection,
        "backup",
        "the server's answer is not understood",
    )
}

fn value<T: std::str::FromStr>(result: &ResultSet, column: usize) -> Result<T> {
    result
        .value(0, column)
        .and_then(|text| text.parse().ok())
        .ok_or_else(strange)
}

fn unhex(text: Option<&str>) -> Result<Vec<u8>> {
    let text = text.ok_or_else(strange)?;
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        })
        .collect();
    let digits = digits.ok_or_else(strange)?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(strange());
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_text_becomes_bytes() {
        assert_eq!(unhex(Some("")).unwrap(), b"");
        assert_eq!(unhex(Some("00ff0a")).unwrap(), [0, 255, 10]);
        for wrong in [None, Some("0"), Some("0g"), Some("é")] {
            assert!(unhex(wrong).is_err());
        }
    }
}
