//! Physical replication slots.

use std::fmt;
use std::str::FromStr;

use neon_pg_layout::{Lsn, PgMajor, TimelineId};

use crate::client::Client;
use crate::client::identify::{parsed, timeline};
use crate::error::{Error, ErrorKind, Result};

/// The name of a slot: 1 to 63 lower-case letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SlotName(String);

impl SlotName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SlotName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::config(
                "slot name",
                format!("{text:?} is not 1 to 63 lower-case letters, digits and underscores"),
            ))
        }
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What CREATE_REPLICATION_SLOT answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreatedSlot {
    /// The slot's name.
    pub name: SlotName,
    /// Always `0/0` for a physical slot.
    pub consistent_point: Lsn,
}

/// Where a slot holds WAL from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotPosition {
    /// The oldest WAL that the slot keeps; `None` if it reserves none yet.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of it.
    pub restart_timeline: Option<TimelineId>,
}

impl Client {
    /// Creates a physical slot.
    ///
    /// A `temporary` one vanishes with the connection, and on any error that the server reports on it
    /// in a replication session. With `reserve_wal` the slot keeps WAL from the
    /// present redo pointer on at once, else from where it is first used.
    ///
    /// Dropping the future closes the connection; a slot that is not temporary may exist then.
    ///
    /// # Errors
    /// See [`simple_query`](Self::simple_query); SQLSTATE 42710 if there is one of that name.
    pub async fn create_physical_slot(
        &mut self,
        name: &SlotName,
        temporary: bool,
        reserve_wal: bool,
    ) -> Result<CreatedSlot> {
        const SUBJECT: &str = "CREATE_REPLICATION_SLOT";
        let temporary = if temporary { " TEMPORARY" } else { "" };
        let reserve = match (reserve_wal, self.major()? >= PgMajor::V15) {
            (false, _) => "",
            (true, false) => " RESERVE_WAL",
            (true, true) => " (RESERVE_WAL)",
        };
        let text = format!("{SUBJECT} \"{name}\"{temporary} PHYSICAL{reserve}");
        let result = self.command_result(SUBJECT, &text).await?;
        if result.value(0, 0) != Some(name.as_str()) {
            return Err(Error::new(
                ErrorKind::Protocol,
                SUBJECT,
                "the server names another slot",
            ));
        }
        Ok(CreatedSlot {
            name: name.clone(),
            consistent_point: parsed(&result, 0, 1, SUBJECT)?,
        })
    }

    /// Drops a slot; with `wait`, waits until nobody uses it.
    ///
    /// Dropping the future closes the connection; the slot may be gone then, or not.
    ///
    /// # Errors
    /// See [`simple_query`](Self::simple_query); SQLSTATE 42704 if there is none, 55006 if it is in use.
    pub async fn drop_slot(&mut self, name: &SlotName, wait: bool) -> Result<()> {
        const SUBJECT: &str = "DROP_REPLICATION_SLOT";
        let wait = if wait { " WAIT" } else { "" };
        self.command(SUBJECT, &format!("{SUBJECT} \"{name}\"{wait}"))
            .await
            .map(drop)
    }

    /// Where a physical slot holds WAL from; `None` if there is no such slot. Servers from 15 on.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) before 15, else see
    /// [`simple_query`](Self::simple_query); SQLSTATE 0A000 for a logical slot.
    pub async fn read_slot(&mut self, name: &SlotName) -> Result<Option<SlotPosition>> {
        const SUBJECT: &str = "READ_REPLICATION_SLOT";
        if self.major()? < PgMajor::V15 {
            return Err(Error::unsupported(SUBJECT, "servers before 15 cannot tell"));
        }
        let result = self
            .command_result(SUBJECT, &format!("{SUBJECT} \"{name}\""))
            .await?;
        if result.value(0, 0).is_none() {
            return Ok(None);
        }
        Ok(Some(SlotPosition {
            restart_lsn: match result.value(0, 1) {
                Some(_) => Some(parsed(&result, 0, 1, SUBJECT)?),
                None => None,
            },
            restart_timeline: match result.value(0, 2) {
                None | Some("0") => None,
                Some(_) => Some(timeline(&result, 0, 2, SUBJECT)?),
            },
        }))
    }
}
