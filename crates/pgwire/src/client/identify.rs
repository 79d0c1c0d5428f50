//! IDENTIFY_SYSTEM, SHOW and TIMELINE_HISTORY.

use bytes::Bytes;
use neon_pg_layout::{Lsn, TimelineId};

use crate::client::{Client, ResultSet};
use crate::error::{Error, ErrorKind, Result};

/// What a server says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SystemIdentity {
    /// The system identifier of `pg_control`. Clones of a cluster share it.
    pub system_identifier: u64,
    /// The timeline it is on now.
    pub timeline: TimelineId,
    /// Up to where it has flushed WAL (a standby: replayed or received).
    pub position: Lsn,
    /// The database of the session, if it has one.
    pub dbname: Option<String>,
}

/// The history file of a timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimelineHistory {
    /// The name of the file, `%08X.history`.
    pub file_name: String,
    /// The file, byte for byte.
    pub content: Bytes,
}

/// A value of a result that must be there and must parse.
pub(super) fn parsed<T: std::str::FromStr>(
    result: &ResultSet,
    row: usize,
    column: usize,
    subject: &'static str,
) -> Result<T> {
    result
        .value(row, column)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            let reason = format!("value {column} of the answer is missing or malformed");
            Error::new(ErrorKind::Protocol, subject, reason)
        })
}

pub(super) fn timeline(
    result: &ResultSet,
    row: usize,
    column: usize,
    subject: &'static str,
) -> Result<TimelineId> {
    let number: u32 = parsed(result, row, column, subject)?;
    TimelineId::new(number)
        .map_err(|_| Error::new(ErrorKind::Protocol, subject, "the server names timeline 0"))
}

impl Client {
    /// Asks the server what it is (`IDENTIFY_SYSTEM`).
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`simple_query`](Self::simple_query).
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        const SUBJECT: &str = "IDENTIFY_SYSTEM";
        let result = self.command_result(SUBJECT, SUBJECT).await?;
        Ok(SystemIdentity {
            system_identifier: parsed(&result, 0, 0, SUBJECT)?,
            timeline: timeline(&result, 0, 1, SUBJECT)?,
            position: parsed(&result, 0, 2, SUBJECT)?,
            dbname: result.value(0, 3).map(str::to_owned),
        })
    }

    /// The value of a server setting (`SHOW`); works in every kind of session.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`simple_query`](Self::simple_query); SQLSTATE 42704 for a setting that does not exist.
    pub async fn show(&mut self, name: &str) -> Result<String> {
        const SUBJECT: &str = "SHOW";
        let plain = |part: &str| {
            let mut bytes = part.bytes();
            bytes
                .next()
                .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !name.split('.').all(plain) {
            return Err(Error::config(
                SUBJECT,
                format!("{name:?} is not the name of a setting"),
            ));
        }
        let result = self
            .command_result(SUBJECT, &format!("SHOW {name}"))
            .await?;
        parsed(&result, 0, 0, SUBJECT)
    }

    /// The size of the server's WAL segments in bytes.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`simple_query`](Self::simple_query).
    pub async fn wal_segment_size(&mut self) -> Result<u64> {
        let text = self.show("wal_segment_size").await?;
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "MB" => 1 << 20,
            "GB" => 1 << 30,
            "kB" => 1 << 10,
            _ => 1,
        };
        let size = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor));
        match size {
            Some(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(size),
            _ => Err(Error::new(
                ErrorKind::Protocol,
                "wal_segment_size",
                format!("{text:?} is not the size of a segment"),
            )),
        }
    }

    /// Fetches the history file of a timeline (`TIMELINE_HISTORY`).
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`simple_query`](Self::simple_query); SQLSTATE 58P01 for a timeline that has none.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<TimelineHistory> {
        const SUBJECT: &str = "TIMELINE_HISTORY";
        let result = self
            .command_result(SUBJECT, &format!("TIMELINE_HISTORY {timeline}"))
            .await?;
        let expected = format!("{:08X}.history", timeline.get());
        // The name becomes a file's: take none but the one that must come.
        if result.value(0, 0) != Some(expected.as_str()) {
            return Err(Error::new(
                ErrorKind::Protocol,
                SUBJECT,
                "the server names another file",
            ));
        }
        let content = result.rows().first().and_then(|row| row.bytes(1)).cloned();
        Ok(TimelineHistory {
            file_name: expected,
            content: content.ok_or_else(|| {
                Error::new(ErrorKind::Protocol, SUBJECT, "the server sent no content")
            })?,
        })
    }
}
