//! Whether what changed since a snapshot may be told from the log at all.
//!
//! The log tells what happened to *this* cluster. A snapshot can be built on another only if the cluster
//! that is copied now is the one that was copied then, further along the same history: nothing between
//! that rewrote its past, and nothing that changed pages without writing so to the log. [`Span::between`]
//! is that judgement, a pure function over what the earlier snapshot recorded and what is true now.

use std::fmt;
use std::str::FromStr;

use neon_pg_layout::wal::WalFormat;
use neon_pg_layout::{
    BlockSize, ControlFile, Lsn, PgMajor, SystemIdentifier, TimelineHistory, TimelineId,
    TimelineRange, WalLevel, WalSegmentSize,
};

use crate::error::{Error, Result};
use crate::id::{CommitId, LineageId, from_hex};

/// What `pg_control` says of a cluster and the log depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// The cluster's identity, which clones share.
    pub system: SystemIdentifier,
    /// The major version.
    pub major: PgMajor,
    /// The version of the catalogs.
    pub catalog_version: u32,
    /// Bytes of a page of a relation.
    pub block_size: BlockSize,
    /// Pages of a segment file of a relation.
    pub segment_blocks: u32,
    /// Bytes of a segment of the log.
    pub wal_segment_size: WalSegmentSize,
    /// Bytes of a page of the log.
    pub wal_page_size: u32,
    /// Whether pages carry checksums.
    pub checksums: bool,
    /// `wal_level`
    pub wal_level: WalLevel,
    /// `wal_log_hints`
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`
    pub track_commit_timestamp: bool,
}

impl ClusterFacts {
    /// What a control file says.
    #[must_use]
    pub fn of(control: &ControlFile) -> Self {
        let ControlFile {
            settings, build, ..
        } = control;
        Self {
            system: control.system_identifier,
            major: control.major,
            catalog_version: control.major.layout().catalog_version,
            block_size: build.block_size,
            segment_blocks: build.segment_blocks,
            wal_segment_size: build.wal_segment_size,
            wal_page_size: build.wal_block_size,
            checksums: control.data_checksums,
            wal_level: settings.wal_level,
            wal_log_hints: settings.wal_log_hints,
            track_commit_timestamp: settings.track_commit_timestamp,
        }
    }

    /// Whether a hint on a page is in the log, as far as it is the first change since a checkpoint.
    #[must_use]
    pub const fn hints_are_logged(&self) -> bool {
        self.checksums || self.wal_log_hints
    }

    /// The format of the cluster's log.
    pub(crate) fn log_format(&self) -> Result<WalFormat, neon_pg_layout::Error> {
        Ok(WalFormat::new(self.major, self.wal_segment_size)
            .with_page_size(self.wal_page_size)?
            .with_block_size(self.block_size)
            .of_system(self.system))
    }
}

/// The end of a log as a snapshot records it, to be found again in the log of its child.
///
/// The BLAKE3 digest of the last bytes before a position: at most [`LogTail::LENGTH`] of them, none from an
/// earlier segment than the one that holds the last byte, so that one file of the log shows them. Bytes
/// before the end of a log never change: not when it goes on, not on standbys, and a new timeline begins
/// with a copy of them. Written as `<start>-<end>:<digest>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogTail {
    start: Lsn,
    end: Lsn,
    digest: [u8; 32],
}

impl LogTail {
    /// Bytes that are looked at, at most.
    pub const LENGTH: u64 = 1 << 20;

    /// Where the tail of a log that ends at `end` begins.
    #[must_use]
    pub fn start_for(end: Lsn, segment_size: WalSegmentSize) -> Lsn {
        let last = Lsn(end.0.saturating_sub(1));
        last.start_of(segment_size.bytes())
            .max(Lsn(end.0.saturating_sub(Self::LENGTH)))
    }

    /// The tail made of these bytes, which stand in the log from `start` on.
    #[must_use]
    pub fn of(start: Lsn, bytes: &[u8]) -> Self {
        Self {
            start,
            end: start.saturating_add(bytes.len() as u64),
            digest: *blake3::hash(bytes).as_bytes(),
        }
    }

    /// The first position.
    #[must_use]
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// The position after the last.
    #[must_use]
    pub const fn end(&self) -> Lsn {
        self.end
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}:", self.start, self.end)?;
        self.digest
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for LogTail {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (range, digest) = text.split_once(':')?;
            let (start, end) = range.split_once('-')?;
            let tail = Self {
                start: start.parse().ok()?,
                end: end.parse().ok()?,
                digest: from_hex(digest)?,
            };
            (tail.start < tail.end && tail.to_string() == text).then_some(tail)
        };
        parse().ok_or_else(|| {
            let shown: String = text.chars().take(120).collect();
            Error::malformed(shown, "not the end of a log: two positions and a digest")
        })
    }
}

impl serde::Serialize for LogTail {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for LogTail {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What an earlier snapshot recorded.
#[derive(Debug, Clone)]
pub struct Parent {
    /// The snapshot.
    pub id: CommitId,
    /// The lineage of the instance it was made of.
    pub lineage: LineageId,
    /// Its control file.
    pub cluster: ClusterFacts,
    /// The history of the timeline that its log ends on.
    pub history: TimelineHistory,
    /// Where replay of its log begins; of a cold one, its shutdown checkpoint.
    pub redo: Lsn,
    /// Where its log ends.
    pub stop: Lsn,
    /// The bytes before that.
    pub tail: Option<LogTail>,
}

/// What is true of the instance that is copied now.
#[derive(Debug, Clone)]
pub struct Child {
    /// The instance's lineage.
    pub lineage: LineageId,
    /// The snapshot that the lineage began with, if it began with a restore, a clone or a checkout.
    pub base: Option<CommitId>,
    /// Its control file.
    pub cluster: ClusterFacts,
    /// The history of the timeline that its log is on.
    pub history: TimelineHistory,
    /// Where replay of the new snapshot's log will begin; of a cold one, its shutdown checkpoint.
    pub redo: Lsn,
    /// Whether it was stopped cleanly while it was no standby, so that `redo` is a shutdown checkpoint.
    pub clean_stop: bool,
    /// What stands in its log where the parent's [tail](Parent::tail) stood, if it can still be read.
    pub tail: Option<LogTail>,
}

/// A part of the log that tells what changed between two snapshots.
///
/// Made by [`Span::between`] only, so that whoever holds one knows that the log may be believed.
#[derive(Debug, Clone)]
pub struct Span {
    cluster: ClusterFacts,
    /// Settings that held at the start; changes of them are looked for on the way.
    at_start: ClusterFacts,
    history: TimelineHistory,
    start: Lsn,
    end: Lsn,
    clean_stop: bool,
    path: Vec<TimelineRange>,
}

impl Span {
    /// The log from the parent's redo position to the child's.
    ///
    /// # Errors
    /// The first reason why the log does not tell what changed between them.
    pub fn between(parent: &Parent, child: &Child) -> Result<Self, Invalid> {
        same_cluster(&parent.cluster, &child.cluster)?;
        if parent.lineage != child.lineage && child.base != Some(parent.id) {
            return Err(Invalid::Lineage { base: child.base });
        }
        for facts in [&parent.cluster, &child.cluster] {
            if facts.wal_level == WalLevel::Minimal {
                return Err(Invalid::WalLevelMinimal);
            }
        }
        if parent.cluster.hints_are_logged() != child.cluster.hints_are_logged() {
            return Err(Invalid::HintLogging);
        }
        if child.redo < parent.redo {
            return Err(Invalid::RedoBefore {
                parent: parent.redo,
                child: child.redo,
            });
        }
        same_past(parent, child)?;
        match (&parent.tail, &child.tail) {
            (None, _) => return Err(Invalid::TailNotRecorded),
            (Some(then), _) if then.end != parent.stop => return Err(Invalid::TailNotRecorded),
            (Some(_), None) => return Err(Invalid::TailGone { at: parent.stop }),
            (Some(then), Some(now)) if then != now => {
                return Err(Invalid::TailDiffers { at: parent.stop });
            }
            _ => {}
        }
        let timeline = child.history.timeline_of(parent.redo);
        let path = child
            .history
            .path(timeline, parent.redo, child.redo)
            .map_err(|error| Invalid::History {
                reason: error.to_string(),
            })?;
        Ok(Self {
            cluster: child.cluster.clone(),
            at_start: parent.cluster.clone(),
            history: child.history.clone(),
            start: parent.redo,
            end: child.redo,
            clean_stop: child.clean_stop,
            path,
        })
    }

    /// The cluster.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterFacts {
        &self.cluster
    }

    /// The cluster as it was at the start.
    pub(crate) const fn at_start(&self) -> &ClusterFacts {
        &self.at_start
    }

    /// The history of the timeline at the end.
    #[must_use]
    pub const fn history(&self) -> &TimelineHistory {
        &self.history
    }

    /// Where it begins.
    #[must_use]
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// Where it ends: a record begins there.
    #[must_use]
    pub const fn end(&self) -> Lsn {
        self.end
    }

    /// Whether that record is a shutdown checkpoint.
    #[must_use]
    pub const fn ends_in_shutdown(&self) -> bool {
        self.clean_stop
    }

    /// Its parts by timeline, oldest first; none when it is empty.
    #[must_use]
    pub fn path(&self) -> &[TimelineRange] {
        &self.path
    }
}

fn same_cluster(parent: &ClusterFacts, child: &ClusterFacts) -> Result<(), Invalid> {
    let differs = |what, then: &dyn fmt::Display, now: &dyn fmt::Display| Invalid::Cluster {
        what,
        parent: then.to_string(),
        child: now.to_string(),
    };
    if parent.system != child.system {
        return Err(differs("system identifier", &parent.system, &child.system));
    }
    let numbers: [(_, u64, u64); 6] = [
        (
            "catalog version",
            parent.catalog_version.into(),
            child.catalog_version.into(),
        ),
        (
            "block size",
            parent.block_size.bytes() as u64,
            child.block_size.bytes() as u64,
        ),
        (
            "number of blocks in a segment file",
            parent.segment_blocks.into(),
            child.segment_blocks.into(),
        ),
        (
            "size of a log segment",
            parent.wal_segment_size.bytes(),
            child.wal_segment_size.bytes(),
        ),
        (
            "size of a log page",
            parent.wal_page_size.into(),
            child.wal_page_size.into(),
        ),
        (
            "checksum version",
            parent.checksums.into(),
            child.checksums.into(),
        ),
    ];
    match numbers.into_iter().find(|(_, then, now)| then != now) {
        Some((what, then, now)) => Err(differs(what, &then, &now)),
        None => Ok(()),
    }
}

/// The child's history holds the parent's, up to where the parent's log ends.
fn same_past(parent: &Parent, child: &Child) -> Result<(), Invalid> {
    let timeline = parent.history.timeline();
    let common = child.history.common_ancestor(&parent.history);
    let parted = match common {
        Some((last, at)) if last == timeline && parent.stop <= at => return Ok(()),
        Some((_, at)) => Some(at),
        None => None,
    };
    Err(Invalid::Timeline {
        timeline,
        stop: parent.stop,
        parted,
    })
}

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
