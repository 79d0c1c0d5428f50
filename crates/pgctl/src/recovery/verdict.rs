//! Whether a recovery did what it was asked to do: from the log, what the WAL source did not have, and the
//! control file; never from how a program exited, which means different things in different majors.

use std::time::{Duration, SystemTime};

use neon_pg_layout::{
    BackupLabel, ClusterState, ControlFile, SegmentName, WalFileName, WalSegmentSize,
};

use crate::error::{Error, ErrorKind, Result};
use crate::recovery::log::{Failure, Findings, StopPoint};
use crate::recovery::plan::{Recovered, RecoveryEnd};
use crate::recovery::source::Miss;
use crate::recovery::target::RecoveryTarget;
use crate::timestamp;

/// For WAL that cannot be recovered over.
pub(crate) const MINIMAL_HINT: &str =
    "start from a base taken later, or stop before that time; this directory is of no more use";

/// What a run left to judge it by.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    pub(crate) target: &'a RecoveryTarget,
    pub(crate) end: RecoveryEnd,
    pub(crate) findings: &'a Findings,
    pub(crate) misses: &'a [Miss],
    /// The control file as the server left it.
    pub(crate) control: &'a ControlFile,
    /// A segment that the source has and that comes after the first one it has not.
    pub(crate) later_segment: Option<SegmentName>,
    /// Whether the end of WAL was seen and the server was told to stop there.
    pub(crate) at_end: bool,
}

/// Where WAL ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WalEnd {
    /// This segment was not there.
    Missing(SegmentName),
    /// What is in this segment breaks off.
    Inside(SegmentName),
}

impl WalEnd {
    pub(crate) fn segment(self) -> SegmentName {
        match self {
            Self::Missing(name) | Self::Inside(name) => name,
        }
    }
}

/// Where the server came to a stand: before a segment that was not there, or in the one it got last.
pub(crate) fn wal_end(
    findings: &Findings,
    misses: &[Miss],
    size: WalSegmentSize,
) -> Option<WalEnd> {
    let missing = misses.iter().rev().find_map(|miss| segment(&miss.file));
    let restored = findings.restored.map(|(name, _)| name);
    let number = |name: SegmentName| name.number(size).unwrap_or(u64::MAX);
    match (missing, restored) {
        (Some(missing), Some(restored)) if number(missing) <= number(restored) => {
            Some(WalEnd::Inside(restored))
        }
        (Some(missing), _) => Some(WalEnd::Missing(missing)),
        (None, Some(restored)) => Some(WalEnd::Inside(restored)),
        (None, None) => None,
    }
}

pub(crate) fn segment(file: &str) -> Option<SegmentName> {
    match file.parse().ok()? {
        WalFileName::Segment(name) => Some(name),
        _ => None,
    }
}

/// Refuses what can be known before a server is started: the target lies before the data.
pub(crate) fn check_not_before(
    target: &RecoveryTarget,
    control: &ControlFile,
    label: Option<&BackupLabel>,
) -> Result<()> {
    let early = |what: String| {
        Err(
            Error::new(ErrorKind::TargetTooEarly, target.to_string(), what)
                .with_hint("start from an older base"),
        )
    };
    match target {
        RecoveryTarget::Lsn { lsn, .. } => {
            let start = match label {
                Some(label) => label.start,
                None if control.state == ClusterState::ShutDown => control.checkpoint_location,
                // How far exactly it got only the server can tell.
                None => control.checkpoint.redo,
            };
            if *lsn < start {
                return early(format!("lies before the data, which begins at {start}"));
            }
        }
        RecoveryTarget::Time { time, .. } => {
            // Everything that ended before the checkpoint began is in the data.
            let checkpoint = u64::try_from(control.checkpoint.time).unwrap_or_default();
            let checkpoint = SystemTime::UNIX_EPOCH + Duration::from_secs(checkpoint);
            if *time < checkpoint {
                let text = timestamp::format(checkpoint).unwrap_or_default();
                return early(format!("lies before the data's checkpoint of {text}"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether the server came to a stand where it was asked to.
pub(crate) fn is_reached(target: &RecoveryTarget, findings: &Findings, at_end: bool) -> bool {
    match target {
        RecoveryTarget::Latest => at_end,
        target => findings
            .stopped
            .as_ref()
            .is_some_and(|point| answers(point, target)),
    }
}

/// Whether a server that was to be promoted is, as far as it can tell while it runs: nothing is known that would make an
/// error of it.
pub(crate) fn is_promoted(target: &RecoveryTarget, findings: &Findings, at_end: bool) -> bool {
    findings.ready
        && findings.complete
        && findings.new_timeline.is_some()
        && findings.failure.is_none()
        && is_reached(target, findings, at_end)
}

/// The result of the run.
pub(crate) fn judge(evidence: &Evidence<'_>) -> Result<Recovered> {
    if let Some(failure) = &evidence.findings.failure {
        return Err(failed(evidence, failure));
    }
    let found = evidence.findings;
    let stopped = is_reached(evidence.target, found, evidence.at_end);
    let state = evidence.control.state;
    let (position, timeline, ended) = match evidence.end {
        RecoveryEnd::InRecovery => {
            let told = evidence.target == &RecoveryTarget::Latest || found.shut_down_at_target;
            let control = evidence.control;
            (
                control.min_recovery_point.max(control.checkpoint.redo),
                control
                    .min_recovery_timeline
                    .unwrap_or(control.checkpoint.timeline)
                    .max(control.checkpoint.timeline),
                told && state == ClusterState::ShutDownInRecovery,
            )
        }
        RecoveryEnd::Promoted => {
            let timeline = evidence.control.checkpoint.timeline;
            let new = found.new_timeline == Some(timeline);
            (
                evidence.control.checkpoint_location,
                timeline,
                found.complete && new && state == ClusterState::ShutDown,
            )
        }
    };
    if !stopped || !ended {
        return Err(Error::new(
            ErrorKind::Recovery,
            evidence.target.to_string(),
            format!(
                "the server ended without saying that it got there; the control file says {state}"
            ),
        ));
    }
    Ok(Recovered {
        stopped: found.stopped.clone(),
        state,
        position,
        timeline,
        newest_commit: found.newest_commit,
    })
}

fn answers(point: &StopPoint, target: &RecoveryTarget) -> bool {
    match (point, target) {
        (StopPoint::Consistent, RecoveryTarget::Immediate) => true,
        (StopPoint::Lsn { lsn, .. }, RecoveryTarget::Lsn { lsn: wanted, .. }) => lsn >= wanted,
        (StopPoint::Transaction { xid, .. }, RecoveryTarget::Transaction { xid: wanted, .. }) => {
            u64::from(*xid) == wanted & 0xFFFF_FFFF
        }
        (
            StopPoint::Transaction { .. } | StopPoint::RestorePoint { .. },
            RecoveryTarget::Time { .. },
        ) => true,
        (StopPoint::RestorePoint { name, .. }, RecoveryTarget::RestorePoint(wanted)) => {
            name == wanted
        }
        _ => false,
    }
}

fn failed(evidence: &Evidence<'_>, failure: &Failure) -> Error {
    let target = evidence.target.to_string();
    let new = |kind, reason: String| Error::new(kind, target.clone(), reason);
    match failure {
        Failure::BeforeConsistency => new(
            ErrorKind::TargetTooEarly,
            "lies before the end of the backup, where the data becomes consistent".to_owned(),
        )
        .with_hint("start from an older base"),
        Failure::EndedBeforeTarget => ended_before_target(evidence),
        Failure::EndedBeforeConsistency | Failure::NoStart => missing(evidence),
        Failure::WrongTimeline(text) => new(
            ErrorKind::WrongTimeline,
            format!("cannot be reached along this timeline: {text}"),
        )
        .with_hint("choose a timeline that descends from the base, after the base was taken"),
        Failure::WalLevelMinimal => new(
            ErrorKind::WalLevelMinimal,
            "lies beyond WAL of wal_level=minimal, which does not hold all changes".to_owned(),
        )
        .with_hint(MINIMAL_HINT),
        Failure::SourceFailed(text) | Failure::SourceWrongSize(text) => new(
            ErrorKind::WalSource,
            format!("was not reached, the WAL source failed: {text}"),
        ),
        Failure::TooSmall { name, needed } => new(
            ErrorKind::BadSetting,
            format!("was not reached: {name} must be at least {needed}"),
        ),
        Failure::NeedsLibrary(text) => new(
            ErrorKind::MissingLibrary,
            format!("was not reached: {text}"),
        )
        .with_hint("name the library of the extension that wrote these records as one to preload"),
        Failure::Damaged(text) => new(ErrorKind::Corrupt, format!("was not reached: {text}")),
        Failure::Other(text) => new(ErrorKind::ServerEnded, format!("was not reached: {text}")),
    }
}

/// The log ended, for one of several reasons, before the target came.
fn ended_before_target(evidence: &Evidence<'_>) -> Error {
    let found = evidence.findings;
    if evidence.later_segment.is_some()
        || found.consistent.is_none() && evidence.control.backup_start.is_valid()
    {
        return missing(evidence);
    }
    let end = match found.redo_done {
        Some(end) => format!("; the last record starts at {end}"),
        None => String::new(),
    };
    let newest = match found.newest_commit.and_then(timestamp::format) {
        Some(text) => format!("the last one ended at {text}"),
        None => "none ended after the base".to_owned(),
    };
    let new = |kind, reason: String| Error::new(kind, evidence.target.to_string(), reason);
    match evidence.target {
        RecoveryTarget::Time { .. } => new(
            ErrorKind::NoLaterTransaction,
            format!(
                "no transaction ended later, so recovery cannot know that it is reached; {newest}"
            ),
        )
        .with_hint(
            "if nothing more is written to this WAL, recover to its end: it holds everything up to this time",
        ),
        RecoveryTarget::Transaction { .. } => new(
            ErrorKind::UnknownTransaction,
            format!("its end is not in the WAL there is{end}"),
        ),
        RecoveryTarget::RestorePoint(_) => new(
            ErrorKind::UnknownRestorePoint,
            format!("is not in the WAL there is{end}"),
        ),
        _ => new(
            ErrorKind::TargetTooLate,
            format!("lies beyond the end of WAL{end}"),
        )
        .with_hint("wait until more is archived, or recover to the end of WAL"),
    }
}

/// WAL that must be there is not.
pub(crate) fn missing(evidence: &Evidence<'_>) -> Error {
    let size = evidence.control.build.wal_segment_size;
    let end = wal_end(evidence.findings, evidence.misses, size);
    let what = match end {
        Some(WalEnd::Missing(segment)) => format!("WAL segment {segment} is missing"),
        Some(WalEnd::Inside(segment)) => format!("WAL breaks off in segment {segment}"),
        None => "WAL is missing".to_owned(),
    };
    let why = match evidence.later_segment {
        Some(later) => format!("although {later} is there"),
        None => "before the data is consistent".to_owned(),
    };
    let kind = match end {
        Some(WalEnd::Inside(_)) if evidence.later_segment.is_some() => ErrorKind::Corrupt,
        _ => ErrorKind::MissingWal,
    };
    let reason = format!("was not reached: {what}, {why}");
    Error::new(kind, evidence.target.to_string(), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: [&str; 4] = [
        "LOG:  recovery stopping after reaching consistency",
        "LOG:  selected new timeline ID: 2",
        "LOG:  archive recovery complete",
        "LOG:  database system is ready to accept connections",
    ];

    fn found(lines: &[&str]) -> Findings {
        let mut found = Findings::new("");
        for line in lines {
            found.note(line);
        }
        found
    }

    #[test]
    fn what_is_known_to_have_failed_is_not_promoted() {
        let immediate = RecoveryTarget::Immediate;
        assert!(is_promoted(&immediate, &found(&DONE), false));
        for without in DONE {
            let lines: Vec<&str> = DONE.into_iter().filter(|line| *line != without).collect();
            assert!(!is_promoted(&immediate, &found(&lines), false), "{without}");
        }
        let mut failed = found(&DONE);
        failed.note("FATAL:  WAL ends before consistent recovery point");
        assert!(!is_promoted(&immediate, &failed, false));
        // The end of WAL is only where the server was told so.
        let latest = RecoveryTarget::Latest;
        assert!(!is_promoted(&latest, &found(&DONE), false));
        assert!(is_promoted(&latest, &found(&DONE), true));
    }
}
