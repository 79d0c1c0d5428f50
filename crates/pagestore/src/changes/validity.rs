//! Whether what changed since a snapshot may be told from the log at all.
//!
//! The log tells what happened to *this* cluster. A snapshot can be built on another only if the cluster
//! that is copied now is the one that was copied then, further along the same history: nothing between
//! that rewrote its past, and nothing that changed pages without writing so to the log. [`Span::between`]
//! is that judgement, a pure function over what the earlier snapshot recorded and what is true now.

use std::fmt;

use neon_pg_layout::wal::WalFormat;
use neon_pg_layout::{
    BlockSize, ControlFile, Lsn, PgMajor, SystemIdentifier, TimelineHistory, TimelineRange,
    WalLevel, WalSegmentSize,
};

use crate::changes::invalid::Invalid;
use crate::changes::tail::LogTail;
use crate::id::{CommitId, LineageId};

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
    parent: CommitId,
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
            (Some(then), _) if then.end() != parent.stop => return Err(Invalid::TailNotRecorded),
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
            parent: parent.id,
            cluster: child.cluster.clone(),
            at_start: parent.cluster.clone(),
            history: child.history.clone(),
            start: parent.redo,
            end: child.redo,
            clean_stop: child.clean_stop,
            path,
        })
    }

    /// The snapshot since which it tells what changed.
    #[must_use]
    pub const fn parent(&self) -> CommitId {
        self.parent
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
