//! Why a snapshot is no parent that the log could be asked about.

use std::fmt;

use neon_pg_layout::{Lsn, TimelineId};

use crate::id::CommitId;

/// Why the log does not tell what changed since a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invalid {
    /// It is a snapshot of another cluster, or of one that was rebuilt otherwise.
    Cluster {
        /// What differs.
        what: &'static str,
        /// What it was.
        parent: String,
        /// What it is.
        child: String,
    },
    /// The instance has a history of its own: it was restored, cloned or checked out since.
    Lineage {
        /// The only snapshot from before that can be built on.
        base: Option<CommitId>,
    },
    /// `wal_level` was or is `minimal`: bulk changes are not in the log.
    WalLevelMinimal,
    /// Hints are logged now and were not, or the other way round.
    HintLogging,
    /// The snapshot's redo position lies behind the present one.
    RedoBefore {
        /// The snapshot's.
        parent: Lsn,
        /// The present one.
        child: Lsn,
    },
    /// The log that the snapshot ended on is not part of the instance's history.
    Timeline {
        /// The timeline of the snapshot's end.
        timeline: TimelineId,
        /// Its end.
        stop: Lsn,
        /// Where the two histories part; nowhere in common if unknown.
        parted: Option<Lsn>,
    },
    /// The snapshot did not record how its log ended.
    TailNotRecorded,
    /// The log around the snapshot's end can no longer be read.
    TailGone {
        /// The snapshot's end.
        at: Lsn,
    },
    /// The log around the snapshot's end is another: the cluster was set back by other means and wrote
    /// over it.
    TailDiffers {
        /// The snapshot's end.
        at: Lsn,
    },
    /// The timelines between the two do not make a path.
    History {
        /// What is wrong with them.
        reason: String,
    },
}

impl Invalid {
    /// A stable word for it, for records and scripts.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Cluster { .. } => "parent-of-another-cluster",
            Self::Lineage { .. } => "parent-of-another-lineage",
            Self::WalLevelMinimal => "wal-level-minimal",
            Self::HintLogging => "hint-logging-changed",
            Self::RedoBefore { .. } => "parent-is-later",
            Self::Timeline { .. } => "parent-off-the-timeline",
            Self::TailNotRecorded => "parent-without-log-tail",
            Self::TailGone { .. } => "log-of-parent-gone",
            Self::TailDiffers { .. } => "log-of-parent-differs",
            Self::History { .. } => "no-timeline-path",
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster {
                what,
                parent,
                child,
            } => write!(f, "the parent's {what} is {parent}, here it is {child}"),
            Self::Lineage { base: Some(base) } => write!(
                f,
                "this instance began with snapshot {base}; of those made elsewhere only that one can be built on"
            ),
            Self::Lineage { base: None } => {
                f.write_str("the parent is of another instance, or from before a restore")
            }
            Self::WalLevelMinimal => {
                f.write_str("wal_level is or was minimal, so that changes are missing from the log")
            }
            Self::HintLogging => f.write_str("logging of hints was switched since the parent"),
            Self::RedoBefore { parent, child } => write!(
                f,
                "the parent's log begins at {parent}, after {child} where this one begins"
            ),
            Self::Timeline {
                timeline,
                stop,
                parted: Some(at),
            } => write!(
                f,
                "the parent ends at {stop} on timeline {timeline}, but the histories part at {at}"
            ),
            Self::Timeline {
                timeline,
                stop,
                parted: None,
            } => write!(
                f,
                "the parent ends at {stop} on timeline {timeline}, which has nothing in common with this history"
            ),
            Self::TailNotRecorded => f.write_str("the parent did not record how its log ends"),
            Self::TailGone { at } => write!(
                f,
                "the log before {at}, where the parent ends, is not there any more"
            ),
            Self::TailDiffers { at } => write!(
                f,
                "the log before {at} is not the one the parent ended with: the cluster was set back and went another way"
            ),
            Self::History { reason } => f.write_str(reason),
        }
    }
}
