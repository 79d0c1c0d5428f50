//! Why a source of changes cannot answer.

use std::fmt;

use neon_pg_layout::{Lsn, SegmentName, TimelineId};

use crate::changes::invalid::Invalid;

/// Why a source cannot say what changed. Another one may.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CannotSay {
    /// The parent does not allow it.
    Parent(Invalid),
    /// A segment of the log is not there.
    LogMissing {
        /// Which one.
        segment: SegmentName,
        /// The position from which the log is wanted.
        at: Lsn,
    },
    /// The log ends too early.
    LogEnds {
        /// Where.
        at: Lsn,
        /// How far it should reach.
        wanted: Lsn,
    },
    /// The log is damaged, or not of this cluster.
    LogDamaged {
        /// Where.
        at: Lsn,
        /// What is wrong.
        what: String,
    },
    /// No record begins where a checkpoint said that one does.
    NoRecordAt {
        /// Where.
        at: Lsn,
    },
    /// The log should end in a shutdown checkpoint here and does not.
    NoShutdownAt {
        /// Where.
        at: Lsn,
    },
    /// The log or a summary cannot be read.
    Unreadable {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
    /// For a while the server ran with `wal_level = minimal`.
    WalLevelMinimal {
        /// Where the log says so.
        at: Lsn,
    },
    /// Logging of hints was switched.
    HintLogging {
        /// Where the log says so.
        at: Lsn,
    },
    /// A record that may have changed files in a way that this version does not know.
    UnknownRecord {
        /// Where.
        at: Lsn,
        /// Whose record it is, and its code.
        what: String,
    },
    /// This major has no summaries, or none are kept.
    NoSummaries,
    /// A part of the log has no summary.
    SummaryGap {
        /// On which timeline.
        timeline: TimelineId,
        /// From where.
        from: Lsn,
        /// To where.
        to: Lsn,
    },
    /// A summary is damaged.
    SummaryDamaged {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The owner of the source has not allowed it, or it was not asked for.
    NotOffered(String),
}

impl CannotSay {
    /// A stable word for it, for records and scripts.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Parent(invalid) => invalid.code(),
            Self::LogMissing { .. } => "log-missing",
            Self::LogEnds { .. } => "log-ends",
            Self::LogDamaged { .. } => "log-damaged",
            Self::NoRecordAt { .. } => "log-without-record",
            Self::NoShutdownAt { .. } => "log-without-shutdown",
            Self::Unreadable { .. } => "unreadable",
            Self::WalLevelMinimal { .. } => "wal-level-minimal",
            Self::HintLogging { .. } => "hint-logging-changed",
            Self::UnknownRecord { .. } => "unknown-record",
            Self::NoSummaries => "no-summaries",
            Self::SummaryGap { .. } => "summary-gap",
            Self::SummaryDamaged { .. } => "summary-damaged",
            Self::NotOffered(_) => "not-offered",
        }
    }
}

impl From<Invalid> for CannotSay {
    fn from(invalid: Invalid) -> Self {
        Self::Parent(invalid)
    }
}

impl fmt::Display for CannotSay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parent(invalid) => invalid.fmt(f),
            Self::LogMissing { segment, at } => {
                write!(
                    f,
                    "segment {segment} of the log is gone; it is needed from {at} on"
                )
            }
            Self::LogEnds { at, wanted } => {
                write!(f, "the log ends at {at}, before {wanted}")
            }
            Self::LogDamaged { at, what } => write!(f, "the log is damaged at {at}: {what}"),
            Self::NoRecordAt { at } => write!(f, "no record of the log begins at {at}"),
            Self::NoShutdownAt { at } => write!(f, "the record at {at} is no shutdown checkpoint"),
            Self::Unreadable { what, why } => write!(f, "{what} cannot be read: {why}"),
            Self::WalLevelMinimal { at } => write!(
                f,
                "from {at} on the server ran with wal_level = minimal, so that changes are missing from the log"
            ),
            Self::HintLogging { at } => write!(f, "logging of hints was switched at {at}"),
            Self::UnknownRecord { at, what } => write!(
                f,
                "the record at {at} ({what}) may have changed files in an unknown way"
            ),
            Self::NoSummaries => f.write_str("there are no summaries of the log"),
            Self::SummaryGap { timeline, from, to } => write!(
                f,
                "no summary covers the log of timeline {timeline} from {from} to {to}"
            ),
            Self::SummaryDamaged { name, what } => {
                write!(f, "summary {name} cannot be used: {what}")
            }
            Self::NotOffered(why) => f.write_str(why),
        }
    }
}
