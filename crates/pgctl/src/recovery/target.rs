//! Where a recovery is to stop: the targets of PostgreSQL and the settings that say them.
//!
//! Source: "Recovery Target" in the manual and `access/transam/xlogrecovery.c`.

use std::fmt;
use std::time::SystemTime;

use neon_pg_layout::{Lsn, TimelineId};

use crate::error::{Error, ErrorKind, Result};
use crate::timestamp;

/// Where a recovery stops.
///
/// `inclusive` means: what happened exactly there is still part of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryTarget {
    /// At the end of the WAL that can be had.
    Latest,
    /// As soon as the data is consistent: the end of the backup.
    Immediate,
    /// After (or, not inclusive, before) the first record that starts at this position or later. A record
    /// has to start there: the end of all WAL is [`Latest`](Self::Latest).
    Lsn {
        /// The position.
        lsn: Lsn,
        /// Whether the record that starts there is replayed.
        inclusive: bool,
    },
    /// Before the first transaction that ended later than this (not inclusive: at this time or later).
    ///
    /// Only ends of transactions and restore points carry a time, so WAL must hold one that is later.
    Time {
        /// The time, used to the microsecond (rounded down).
        time: SystemTime,
        /// Whether transactions that ended at exactly this time are part of the result.
        inclusive: bool,
    },
    /// At the end of this transaction. Others that ended before it in the log are part of the result,
    /// whatever their numbers.
    Transaction {
        /// The number, with or without the epoch above its lower 32 bits.
        xid: u64,
        /// Whether the end of the transaction is replayed.
        inclusive: bool,
    },
    /// At the first restore point of this name (`pg_create_restore_point`).
    RestorePoint(String),
}

/// Which branch of the log a recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RecoveryTimeline {
    /// The one the data directory is on: no later promotion is followed.
    #[default]
    Current,
    /// The newest that the WAL source has the history of.
    Latest,
    /// This one; it must descend from the one the data directory is on.
    Number(TimelineId),
}

/// The longest name of a restore point (`MAXFNAMELEN` is 64).
const LONGEST_NAME: usize = 63;
/// `FirstNormalTransactionId`: smaller numbers never end.
const FIRST_XID: u64 = 3;

impl RecoveryTarget {
    /// The time in a text, with what happened at exactly that time: a date, a time of day and the offset of their
    /// zone, as in `2026-11-20 10:01:31.5+00` or `2026-11-20T12:01:31+02:00`.
    ///
    /// ```
    /// use neon_pgctl::RecoveryTarget;
    /// let target = RecoveryTarget::at_time("2026-11-20T12:01:31+02:00")?;
    /// assert_eq!(target.to_string(), "time 2026-11-20 10:01:31.000000+00");
    /// assert!(RecoveryTarget::at_time("2026-11-20 12:01:31").is_err());
    /// # Ok::<(), neon_pgctl::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid), also without an offset: a time of day is one somewhere only.
    pub fn at_time(text: &str) -> Result<Self> {
        let Some(time) = timestamp::parse(text) else {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("time {text:?}"),
                "is no date and time with the offset of a zone",
            )
            .with_hint("write it as 2026-11-20T10:01:31+00:00"));
        };
        Ok(Self::Time {
            time,
            inclusive: true,
        })
    }

    /// Refuses what no server can be told.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid =
            |reason: &'static str| Err(Error::new(ErrorKind::Invalid, self.to_string(), reason));
        match self {
            Self::Lsn { lsn, .. } if !lsn.is_valid() => invalid("0/0 is no position"),
            Self::Time { time, .. } if timestamp::format(*time).is_none() => {
                invalid("lies outside the years 1 to 9999")
            }
            Self::Transaction { xid, .. } if *xid & 0xFFFF_FFFF < FIRST_XID => {
                invalid("is not the number of a transaction")
            }
            Self::RestorePoint(name) if name.is_empty() || name.len() > LONGEST_NAME => {
                invalid("a restore point has a name of 1 to 63 bytes")
            }
            Self::RestorePoint(name) if name.contains('\0') => invalid("the name holds a NUL"),
            _ => Ok(()),
        }
    }

    /// The settings for this target. Those of all other targets are emptied, in case a file sets them; the
    /// order matters, since emptying one after another was set is an error or forgets it.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let all = [
            "recovery_target",
            "recovery_target_name",
            "recovery_target_time",
            "recovery_target_xid",
            "recovery_target_lsn",
        ];
        let (name, value, inclusive) = match self {
            Self::Latest => ("", String::new(), true),
            Self::Immediate => ("recovery_target", "immediate".to_owned(), true),
            Self::Lsn { lsn, inclusive } => ("recovery_target_lsn", lsn.to_string(), *inclusive),
            Self::Time { time, inclusive } => (
                "recovery_target_time",
                timestamp::format(*time).unwrap_or_default(),
                *inclusive,
            ),
            Self::Transaction { xid, inclusive } => {
                ("recovery_target_xid", xid.to_string(), *inclusive)
            }
            Self::RestorePoint(name) => ("recovery_target_name", name.clone(), true),
        };
        let mut settings: Vec<_> = all
            .into_iter()
            .filter(|other| *other != name)
            .map(|other| (other, String::new()))
            .collect();
        let word = if inclusive { "on" } else { "off" };
        settings.push(("recovery_target_inclusive", word.to_owned()));
        if !name.is_empty() {
            settings.push((name, value));
        }
        settings
    }
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of WAL"),
            Self::Immediate => f.write_str("the first consistent state"),
            Self::Lsn { lsn, .. } => write!(f, "position {lsn}"),
            Self::Time { time, .. } => match timestamp::format(*time) {
                Some(text) => write!(f, "time {text}"),
                None => f.write_str("time"),
            },
            Self::Transaction { xid, .. } => write!(f, "transaction {xid}"),
            Self::RestorePoint(name) => write!(f, "restore point {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_itself_is_set_last_and_all_others_are_emptied() {
        let target = RecoveryTarget::Lsn {
            lsn: Lsn(0x300_0028),
            inclusive: false,
        };
        let settings = target.settings();
        assert_eq!(
            settings.last(),
            Some(&("recovery_target_lsn", "0/3000028".to_owned()))
        );
        let empty = settings
            .iter()
            .filter(|(_, value)| value.is_empty())
            .count();
        assert_eq!(empty, 4);
        assert!(settings.contains(&("recovery_target_inclusive", "off".to_owned())));
        let latest = RecoveryTarget::Latest.settings();
        assert_eq!(
            latest.iter().filter(|(_, value)| value.is_empty()).count(),
            5
        );
    }

    #[test]
    fn what_no_server_can_be_told_is_refused() {
        let wrong = [
            RecoveryTarget::Lsn {
                lsn: Lsn(0),
                inclusive: true,
            },
            RecoveryTarget::Transaction {
                xid: (7 << 32) | 2,
                inclusive: true,
            },
            RecoveryTarget::RestorePoint(String::new()),
            RecoveryTarget::RestorePoint("x".repeat(64)),
            RecoveryTarget::RestorePoint("a\0b".to_owned()),
        ];
        for target in wrong {
            assert_eq!(
                target.check().unwrap_err().kind(),
                ErrorKind::Invalid,
                "{target}"
            );
        }
        RecoveryTarget::RestorePoint("x".repeat(63))
            .check()
            .unwrap();
    }
}
