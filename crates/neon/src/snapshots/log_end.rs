//! Where in the log a snapshot stands.

use std::fs::{self, File};
use std::io::ErrorKind as IoKind;
use std::path::Path;

use neon_pagestore::changes::{LogTail, SegmentDirectory, read_tail};
use neon_pg_layout::wal::{WalFormat, end_of_log};
use neon_pg_layout::{ControlFile, Lsn, SegmentName, TimelineHistory, TimelineId};
use neon_snapshot_format::SnapshotKind;

use crate::error::{Error, ErrorKind, Result};

/// Where the log of a snapshot begins and, once that is known, ends.
#[derive(Debug, Clone)]
pub(crate) struct Position {
    /// Where replay begins; of a clean stop its shutdown checkpoint.
    pub(crate) redo: Lsn,
    /// Where the log ends.
    pub(crate) stop: Lsn,
    /// The history of the timeline it ends on.
    pub(crate) history: TimelineHistory,
}

impl Position {
    /// Of a cluster that does not run.
    pub(crate) fn of_stopped(
        kind: SnapshotKind,
        control: &ControlFile,
        pg_wal: &Path,
    ) -> Result<Self> {
        let redo = control.checkpoint.redo;
        let (timeline, stop) = if kind == SnapshotKind::Recovery {
            let timeline = control.min_recovery_timeline;
            (
                timeline.unwrap_or(control.checkpoint.timeline),
                control.min_recovery_point.max(redo),
            )
        } else {
            let timeline = control.checkpoint.timeline;
            (timeline, end(control, timeline, pg_wal)?)
        };
        Ok(Self {
            redo,
            stop: stop.max(redo),
            history: history(pg_wal, timeline)?,
        })
    }

    /// How the log ends there, if it can be read.
    pub(crate) fn tail(&self, control: &ControlFile, pg_wal: &Path) -> Option<LogTail> {
        let size = control.build.wal_segment_size;
        let mut log = SegmentDirectory::new(pg_wal);
        read_tail(size, &self.history, self.stop, &mut log).ok()
    }
}

fn end(control: &ControlFile, timeline: TimelineId, pg_wal: &Path) -> Result<Lsn> {
    let failed = |error| Error::io(pg_wal, "cannot be read", error);
    let mut segments: Vec<SegmentName> = Vec::new();
    for entry in fs::read_dir(pg_wal).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_str().and_then(|name| name.parse().ok());
        // Those of later timelines are of another future.
        segments.extend(name.filter(|name: &SegmentName| name.timeline() <= timeline));
    }
    let format = WalFormat::of_control(control).map_err(|error| {
        Error::new(
            ErrorKind::Damaged,
            pg_wal.display().to_string(),
            "its format is not known",
        )
        .caused_by(error)
    })?;
    end_of_log(format, control.checkpoint.redo, &segments, |name| {
        File::open(pg_wal.join(name.to_string()))
    })
    .map_err(failed)
}

/// The history of a timeline; one without a file has no ancestors.
pub(crate) fn history(pg_wal: &Path, timeline: TimelineId) -> Result<TimelineHistory> {
    let root = TimelineHistory::root(timeline);
    let path = pg_wal.join(root.file_name().to_string());
    match fs::read(&path) {
        Ok(content) => TimelineHistory::parse(timeline, &content).map_err(|error| {
            Error::new(
                ErrorKind::Damaged,
                path.display().to_string(),
                "is no history of a timeline",
            )
            .caused_by(error)
        }),
        Err(error) if error.kind() == IoKind::NotFound => Ok(root),
        Err(error) => Err(Error::io(&path, "cannot be read", error)),
    }
}
