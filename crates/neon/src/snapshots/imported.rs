//! What the bytes of a snapshot from elsewhere say about it. What they do not say stays unknown.

use neon_pagestore::{BadPage, Facts, LogPlace, LogRange, TimelineStep};
use neon_pg_layout::{
    BackupLabel, BackupSource, ControlFile, Lsn, ReplayedLog, SegmentName, TimelineHistory,
    TimelineId, TimelineRange, WalFileName,
};
use neon_snapshot_format::pgdata::holds_data;
use neon_snapshot_format::{End, SnapshotKind};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::snapshots::bring::Bringing;
use crate::snapshots::inspection::Inspection;
use crate::snapshots::judge::Known;

/// The kind of a copy of files by its label and its control file; none for a copy that nothing makes consistent.
pub(crate) fn kind_of(label: Option<&BackupLabel>, control: &ControlFile) -> Option<SnapshotKind> {
    use neon_pg_layout::ClusterState;
    match (label, control.state) {
        (Some(label), _) if label.from == BackupSource::Standby => Some(SnapshotKind::Standby),
        (Some(_), _) => Some(SnapshotKind::Online),
        (None, ClusterState::ShutDown) => Some(SnapshotKind::Cold),
        (None, ClusterState::ShutDownInRecovery) => Some(SnapshotKind::Recovery),
        (None, _) => None,
    }
}

/// Where a backup ended, from whom it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped {
    pub(crate) at: Lsn,
    pub(crate) timeline: TimelineId,
}

/// The facts of what came. `end` is what the source said, `stopped` what the server said besides. Whether pages are
/// damaged, and whether that may be, is decided here for all sources.
pub(crate) fn facts(
    bringing: &Bringing<'_>,
    came: &Inspection<'_>,
    end: &End,
    stopped: Option<Stopped>,
    taken: Option<i64>,
) -> Result<Facts> {
    let subject = bringing.subject;
    let damaged = |reason: &'static str| Error::new(ErrorKind::Damaged, subject, reason);
    let layout = |error: neon_pg_layout::Error| damaged("cannot be understood").caused_by(error);
    let control = came
        .kept(b"global/pg_control")
        .ok_or_else(|| damaged("has no global/pg_control"))?;
    let control = ControlFile::decode(&control).map_err(layout)?;
    let label = came
        .kept(b"backup_label")
        .map(|label| BackupLabel::parse(&label))
        .transpose()
        .map_err(layout)?;
    let kind = match end.kind {
        Some(kind) => kind,
        None => kind_of(label.as_ref(), &control).ok_or_else(|| {
            damaged(
                "has no backup_label, and its server was not stopped: nothing makes it consistent",
            )
        })?,
    };
    let mut facts = Facts::of_control(kind, taken.unwrap_or(control.time), &control);
    facts.cluster.wal_block_size = control.build.wal_block_size;
    facts.cluster.wal_level = Some(control.settings.wal_level.to_string());
    facts.cluster.track_commit_timestamp = control.settings.track_commit_timestamp;

    let label = label.filter(|_| kind.is_bracketed());
    let begun = label.as_ref().map_or(control.checkpoint.timeline, |label| {
        label.start_segment.timeline()
    });
    // A manifest names its ranges in any order.
    let last = end.wal.iter().max_by_key(|range| range.end);
    let reached = match (stopped, last) {
        (Some(stopped), _) => Some((stopped.timeline, stopped.at)),
        (None, Some(range)) => Some((range.timeline, range.end)),
        (None, None) => None,
    };
    let timeline = reached.map_or(begun, |(timeline, _)| timeline);
    let history = history(came, timeline).map_err(layout)?;
    facts.log.timelines = history
        .ancestors()
        .iter()
        .map(|switch| TimelineStep {
            timeline: switch.timeline,
            end: Some(switch.at),
        })
        .chain([TimelineStep {
            timeline,
            end: None,
        }])
        .collect();
    if let Some(label) = &label {
        facts.log.start = Some(label.start);
        facts.log.redo = Some(label.start);
        facts.log.stop = reached.map(|(_, at)| at);
        let ranges = match reached {
            Some((_, at)) => path(&history, begun, label.start, at).map_err(layout)?,
            None => Vec::new(),
        };
        require_log(subject, came, &control, label, &ranges)?;
        facts.log.ranges = ranges.iter().map(kept_in_snapshot).collect();
    } else if kind != SnapshotKind::Cold {
        facts.log.redo = Some(control.checkpoint.redo);
        facts.log.ranges = end.wal.iter().map(kept_in_snapshot).collect();
        facts.log.stop = reached.map(|(_, at)| at);
    }
    if matches!(kind, SnapshotKind::Standby | SnapshotKind::Recovery)
        && control.min_recovery_point != Lsn(0)
    {
        facts.log.min_recovery = Some(control.min_recovery_point);
    }
    require_whole(bringing, end)?;
    facts.bad_pages = bad_pages(bringing, came, end, &control, &facts)?;
    Ok(facts)
}

/// More damaged pages, or files that were left out, than this are not told one by one.
const MOST_TOLD: usize = 10;

/// What was left out is told. Data of the cluster may not be among it.
fn require_whole(bringing: &Bringing<'_>, end: &End) -> Result<()> {
    if let Some(lost) = end.skipped.iter().find(|skipped| holds_data(&skipped.path)) {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{} from {}", lost.path, bringing.subject),
            format!(
                "is {}, which is not followed: data would be missing",
                lost.reason
            ),
        )
        .hinted("put the data itself in its place, or take a base backup of the running server"));
    }
    for skipped in end.skipped.iter().take(MOST_TOLD) {
        bringing.tell(Event::Warning(format!(
            "{} is not in the snapshot: it is {}.",
            skipped.path, skipped.reason
        )));
    }
    let more = end.skipped.len().saturating_sub(MOST_TOLD);
    if more > 0 {
        bringing.tell(Event::Warning(format!(
            "{more} more files are not in the snapshot; `neon snapshot show` has them all."
        )));
    }
    Ok(())
}

/// The damaged pages: those that the source knew of, and those that were seen on the way.
fn bad_pages(
    bringing: &Bringing<'_>,
    came: &Inspection<'_>,
    end: &End,
    control: &ControlFile,
    facts: &Facts,
) -> Result<Vec<BadPage>> {
    let size = control.build.wal_segment_size;
    // Where nobody says where the log ends, it does not end behind its last file.
    let last = || {
        let came = came.segments();
        let ends = came.iter().filter_map(|name| name.number(size).ok());
        let last = ends.max()?.checked_add(1)?;
        last.checked_mul(size.bytes()).map(Lsn)
    };
    let replayed = (facts.kind != SnapshotKind::Cold)
        .then(|| facts.log.redo.zip(facts.log.stop.or_else(last)))
        .flatten()
        .map(|(start, end)| ReplayedLog { start, end });
    let build = &control.build;
    if let Some(shape) = came.shape()
        && (shape.page_size, shape.segment_blocks) != (build.block_size, build.segment_blocks)
    {
        return Err(Error::new(
            ErrorKind::Invalid,
            bringing.subject,
            format!(
                "has pages of {} bytes and files of {} pages, which was not known before they came",
                build.block_size.bytes(),
                build.segment_blocks
            ),
        )
        .hinted("unpack it, and import the directory"));
    }
    let seen = came.bad_pages(&Known {
        checksums: control.data_checksums,
        replayed,
        bracketed: facts.kind.is_bracketed(),
    });
    let mut bad = end.bad_pages.clone();
    bad.extend(seen.pages);
    bad.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
    bad.dedup_by(|a, b| (&a.path, a.block) == (&b.path, b.block));
    let all = seen.more.saturating_add(bad.len() as u64);
    if seen.more > 0 {
        let reason = format!("has {all} damaged pages, more than can be noted");
        return Err(
            Error::new(ErrorKind::Damaged, bringing.subject, reason).hinted("take another backup")
        );
    }
    if let Some(first) = bad.first()
        && !bringing.allow_bad_pages
    {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!(
                "page {} of {} from {}",
                first.block, first.path, bringing.subject
            ),
            format!("is damaged: {} (damaged pages in all: {all})", first.reason),
        )
        .hinted("allow bad pages to take it all the same: the snapshot then says which they are"));
    }
    for bad in bad.iter().take(MOST_TOLD) {
        bringing.tell(Event::Warning(format!(
            "Page {} of {} is damaged: {}.",
            bad.block, bad.path, bad.reason
        )));
    }
    let more = bad.len().saturating_sub(MOST_TOLD);
    if more > 0 {
        bringing.tell(Event::Warning(format!("{more} more pages are damaged.")));
    }
    Ok(bad
        .into_iter()
        .map(|bad| BadPage {
            path: bad.path.to_string(),
            block: bad.block,
            reason: bad.reason,
        })
        .collect())
}

fn kept_in_snapshot(range: &TimelineRange) -> LogRange {
    LogRange {
        timeline: range.timeline,
        start: range.start,
        end: range.end,
        place: LogPlace::Snapshot,
    }
}

/// The history of a timeline, as far as its file came along.
fn history(came: &Inspection<'_>, timeline: TimelineId) -> neon_pg_layout::Result<TimelineHistory> {
    let name = WalFileName::History(timeline).to_string();
    match came.kept(format!("pg_wal/{name}").as_bytes()) {
        Some(content) => TimelineHistory::parse(timeline, &content),
        None => Ok(TimelineHistory::root(timeline)),
    }
}

fn path(
    history: &TimelineHistory,
    begun: TimelineId,
    start: Lsn,
    end: Lsn,
) -> neon_pg_layout::Result<Vec<TimelineRange>> {
    if begun == history.timeline() {
        return Ok(vec![TimelineRange {
            timeline: begun,
            start,
            end,
        }]);
    }
    let mut ranges = history.path(begun, start, end)?;
    ranges.sort_by_key(|range| std::cmp::Reverse(range.timeline));
    Ok(ranges)
}

/// A copy of a running server that lacks its log never starts: said now, not when it is needed.
fn require_log(
    subject: &str,
    came: &Inspection<'_>,
    control: &ControlFile,
    label: &BackupLabel,
    ranges: &[TimelineRange],
) -> Result<()> {
    let size = control.build.wal_segment_size;
    let there = came.segments();
    let mut wanted = vec![label.start_segment];
    for range in ranges {
        let first = size.number_of(range.start);
        for number in first..=size.number_before(range.end).max(first) {
            wanted.extend(SegmentName::new(range.timeline, number, size));
        }
    }
    // Where the timeline changes within a segment, that of the new one holds all of it.
    let held = |name: &SegmentName| {
        there.contains(name)
            || there.iter().any(|other| {
                other.timeline() > name.timeline()
                    && other.number(size).ok() == name.number(size).ok()
            })
    };
    match wanted.iter().find(|name| !held(name)) {
        None => Ok(()),
        Some(name) => Err(Error::new(
            ErrorKind::Invalid,
            subject,
            format!("is a backup without the log that it needs to start: {name} is missing"),
        )
        .hinted("take the backup with its log (pg_basebackup -X stream or -X fetch)")),
    }
}
