//! What changed since the parent, by the best source that can tell.

use std::ops::ControlFlow;
use std::path::Path;

use neon_pagestore::changes::{
    ChangeSet, ChangeSource, Child, Chosen, ClusterFacts, LogSource, NotUsable, Parent, PassedOver,
    Progress, SegmentDirectory, SourceKind, Span, Summaries, SummaryDirectory, SummarySource,
    choose, read_tail,
};
use neon_pagestore::read::Snapshot;
use neon_pagestore::{CommitId, LineageId};
use neon_pg_layout::{ControlFile, Lsn, TimelineHistory};

use crate::error::{Error, Result};
use crate::snapshots::watch::GoOn;

/// What is true of the cluster that is copied.
#[derive(Debug)]
pub(crate) struct Copying<'a> {
    pub(crate) lineage: LineageId,
    pub(crate) base: Option<CommitId>,
    pub(crate) control: &'a ControlFile,
    pub(crate) history: &'a TimelineHistory,
    pub(crate) redo: Lsn,
    pub(crate) clean_stop: bool,
    pub(crate) pg_wal: &'a Path,
}

/// What changed, and how that is known.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) set: ChangeSet,
    /// The source; none for a snapshot without a parent.
    pub(crate) used: Option<SourceKind>,
    pub(crate) passed_over: Vec<PassedOver>,
}

impl Told {
    /// Nothing is known and nothing needs to be.
    pub(crate) fn everything() -> Self {
        Self {
            set: ChangeSet::everything(),
            used: None,
            passed_over: Vec::new(),
        }
    }

    /// Whether all is read and compared with the parent.
    pub(crate) fn is_scan(&self) -> bool {
        self.used == Some(SourceKind::Scan)
    }
}

/// Asks the server's summaries, the log, and last falls back to reading everything.
pub(crate) fn tell(parent: &Snapshot, copying: &Copying<'_>, go_on: &GoOn) -> Result<Told> {
    let watch = |_: Progress| match go_on.stopped() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let failed = |error| Error::repository(format!("what changed since {}", parent.id()), error);
    let mut log = SegmentDirectory::new(copying.pg_wal);
    let mut rest = log.clone();
    let mut summaries = SummaryDirectory::new(copying.pg_wal.join("summaries"));
    let kept = copying.control.major.layout().has_wal_summaries;
    let none_kept = kept
        && summaries
            .names()
            .is_ok_and(|names: Vec<_>| names.is_empty());
    let span = match Parent::recorded(parent.id(), parent.facts()) {
        Err(reason) => Err(reason),
        Ok(recorded) => {
            let tail = read_tail(
                copying.control.build.wal_segment_size,
                copying.history,
                recorded.stop,
                &mut log,
            );
            let child = Child {
                lineage: copying.lineage,
                base: copying.base,
                cluster: ClusterFacts::of(copying.control),
                history: copying.history.clone(),
                redo: copying.redo,
                clean_stop: copying.clean_stop,
                tail: tail.ok(),
            };
            Span::between(&recorded, &child).map_err(neon_pagestore::changes::CannotSay::Parent)
        }
    };
    let chosen = match span {
        Err(reason) => {
            let mut first = NotUsable::new(SourceKind::ServerSummaries, reason.clone());
            let mut second = NotUsable::new(SourceKind::Log, reason);
            let mut sources: Vec<&mut dyn ChangeSource> = Vec::new();
            if kept {
                sources.push(&mut first);
            }
            sources.push(&mut second);
            choose(&mut sources)
        }
        Ok(span) => {
            let mut none = NotUsable::new(
                SourceKind::ServerSummaries,
                neon_pagestore::changes::CannotSay::NoSummaries,
            );
            let mut first =
                SummarySource::new(SourceKind::ServerSummaries, span.clone(), &mut summaries)
                    .with_rest(&mut rest)
                    .watched(watch);
            let mut second = LogSource::new(span, &mut log).watched(watch);
            let mut sources: Vec<&mut dyn ChangeSource> = Vec::new();
            if none_kept {
                sources.push(&mut none);
            } else if kept {
                sources.push(&mut first);
            }
            sources.push(&mut second);
            choose(&mut sources)
        }
    };
    let Chosen { set, record } = chosen.map_err(failed)?;
    Ok(Told {
        set,
        used: Some(record.used.unwrap_or(SourceKind::Scan)),
        passed_over: record.passed_over,
    })
}
