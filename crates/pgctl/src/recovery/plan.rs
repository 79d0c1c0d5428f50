//! What a recovery is to do, what it tells on the way, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::SystemTime;

use neon_pg_layout::{ClusterState, Lsn, SegmentName, TimelineId};

use crate::recovery::log::StopPoint;
use crate::recovery::source::WalSource;
use crate::recovery::target::{RecoveryTarget, RecoveryTimeline};

/// What becomes of the data directory at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RecoveryEnd {
    /// Shut down while still in recovery: another run can take it further along the same WAL.
    #[default]
    InRecovery,
    /// Promoted to a new timeline and shut down cleanly: a primary, ready to be started.
    Promoted,
}

/// A recovery to be run by [`Instance::recover`](crate::Instance::recover).
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct RecoveryPlan {
    pub(crate) source: WalSource,
    pub(crate) target: RecoveryTarget,
    pub(crate) timeline: RecoveryTimeline,
    pub(crate) end: RecoveryEnd,
    pub(crate) used_timelines: BTreeSet<TimelineId>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) shared_buffers_kib: u64,
    pub(crate) preload: String,
    pub(crate) durable: bool,
    /// Whether the source is asked for histories only: nothing is replayed that is not in the directory.
    pub(crate) without_segments: bool,
    /// None: links may lead anywhere.
    pub(crate) tablespaces: Option<BTreeMap<u32, PathBuf>>,
}

impl RecoveryPlan {
    /// WAL from `source` up to `target` along the timeline the data directory is on, then
    /// [in recovery](RecoveryEnd::InRecovery).
    pub fn new(source: WalSource, target: RecoveryTarget) -> Self {
        Self {
            source,
            target,
            timeline: RecoveryTimeline::Current,
            end: RecoveryEnd::InRecovery,
            used_timelines: BTreeSet::new(),
            variables: Vec::new(),
            shared_buffers_kib: 128 << 10,
            preload: String::new(),
            durable: true,
            without_segments: false,
            tablespaces: Some(BTreeMap::new()),
        }
    }

    /// Follows this timeline.
    pub fn with_timeline(mut self, timeline: RecoveryTimeline) -> Self {
        self.timeline = timeline;
        self
    }

    /// What becomes of the data directory.
    pub fn with_end(mut self, end: RecoveryEnd) -> Self {
        self.end = end;
        self
    }

    /// Timelines that a promotion must not take, besides those the source has a history of: each one that the
    /// instance ever was on, also where nothing of it was archived.
    pub fn with_used_timelines(mut self, timelines: impl IntoIterator<Item = TimelineId>) -> Self {
        self.used_timelines.extend(timelines);
        self
    }

    /// A variable of the environment of the WAL source's command. It inherits none of ours.
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// The server's `shared_buffers`, 128 MiB if not said, whatever the configuration says.
    pub fn with_shared_buffers_kib(mut self, kib: u64) -> Self {
        self.shared_buffers_kib = kib;
        self
    }

    /// Whether the result is to survive a power cut, which costs a sync of every file of the data directory. Not
    /// so for a copy that is looked at and thrown away.
    pub fn with_durability(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// The place that a tablespace was copied to, below the [root](crate::Instance::with_root) of the copy: its link
    /// is turned there before the server starts. Links that lead out of the copy are refused, since replay would write to the tablespaces of the origin.
    pub fn with_tablespace(mut self, oid: u32, place: impl Into<PathBuf>) -> Self {
        self.tablespaces
            .get_or_insert_default()
            .insert(oid, place.into());
        self
    }

    /// The links are right wherever they lead: this is no copy, or one that took the place of its origin.
    pub fn in_place(mut self) -> Self {
        self.tablespaces = None;
        self
    }

    /// The server's `shared_preload_libraries`, none if not said: what they start in the background has no business
    /// here. Replay needs a library only if it defines WAL records of its own (15 and later).
    pub fn with_preload(mut self, libraries: impl Into<String>) -> Self {
        self.preload = libraries.into();
        self
    }
}

/// What a recovery tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryEvent {
    /// Replay begins here.
    RedoStarts(Lsn),
    /// A segment came from the WAL source.
    Restored(SegmentName),
    /// Everything before this position is replayed; more may be. Told about once a segment, on 15 and later
    /// also once a second. Never goes back.
    Replayed(Lsn),
    /// The data is consistent from this position on.
    Consistent(Lsn),
    /// Replay stopped at the target.
    Stopped(StopPoint),
    /// The end of WAL is reached.
    EndOfWal,
    /// The server is being promoted.
    Promoting,
}

/// A recovery that did what it was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Where and why replay stopped; none at the end of WAL.
    pub stopped: Option<StopPoint>,
    /// Shut down in recovery, or shut down.
    pub state: ClusterState,
    /// In recovery: the data holds what was logged up to here, at least. After a promotion: where the new
    /// timeline's first checkpoint is.
    pub position: Lsn,
    /// The timeline the data directory is on now.
    pub timeline: TimelineId,
    /// When the last replayed transaction ended, if the server told.
    pub newest_commit: Option<SystemTime>,
}
