//! Taking snapshots: what is wanted, what became of it. All that comes before the commit is [`capture`](super::capture)'s; the
//! commit makes the snapshot exist. Before it, there is at most garbage that a collection takes.

use std::time::Instant;

use neon_pagestore::{CommitId, Facts, NameOutcome, Noted, SnapshotName};
use neon_snapshot_format::SnapshotKind;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::PgRecord;
use crate::name::Name;
use crate::neon::Neon;
use crate::snapshots::Snapshots;
use crate::snapshots::capture::{prepare, unless_cancelled};
use crate::snapshots::once_more::once_more;
use crate::snapshots::parent::ParentChoice;

/// What snapshot to take.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CreateSnapshot {
    /// What it shall be called.
    pub name: SnapshotName,
    /// Of which instance; absent, of the one that the name mentions.
    pub pg: Option<Name>,
    /// Where it shall be kept; absent, where the instance keeps its snapshots.
    pub storage: Option<Name>,
    /// Whose pages it shall share.
    pub parent: ParentChoice,
    /// Whether damaged pages are copied and recorded instead of refused.
    pub allow_bad_pages: bool,
    /// Whether the checkpoint that a snapshot of a running server begins with is written at once, or spread over minutes.
    pub fast_checkpoint: bool,
}

impl CreateSnapshot {
    /// A snapshot of this name, of the instance that it mentions, with a fast checkpoint.
    #[must_use]
    pub fn new(name: SnapshotName) -> Self {
        Self {
            name,
            pg: None,
            storage: None,
            parent: ParentChoice::Best,
            allow_bad_pages: false,
            fast_checkpoint: true,
        }
    }
}

/// A snapshot that was taken.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TakenSnapshot {
    /// Its id.
    pub id: CommitId,
    /// Its name; absent when another snapshot got it while this one was taken.
    pub name: Option<SnapshotName>,
    /// The snapshot that has the name that was wanted, or why nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_lost: Option<String>,
    /// The instance.
    pub pg: Name,
    /// The storage.
    pub storage: Name,
    /// In what state the cluster was: `cold`, `online`, `standby`, `recovery`, `crashed`.
    pub kind: &'static str,
    /// Whose pages it shares.
    pub parent: Option<CommitId>,
    /// Bytes that it shows.
    pub size: u64,
    /// Bytes that it added to the storage.
    pub added: u64,
    /// Bytes that were read of the cluster.
    pub read: u64,
    /// Pages that were stored.
    pub changed_pages: u64,
    /// What told what to read: `server-summaries`, `log`, `scan`; absent without a parent.
    pub source: Option<String>,
    /// Better sources, and why they were not used.
    pub passed_over: Vec<Noted>,
    /// Damaged pages in it.
    pub bad_pages: u64,
    /// How long the server took for its checkpoint, in seconds; 0 if it did not run.
    pub checkpoint: f64,
    /// How long all of it took, in seconds.
    pub elapsed: f64,
}

impl Snapshots<'_> {
    /// Takes a snapshot of an instance, whatever its server does, and without keeping it from its work.
    ///
    /// Dropped: the bracket is given up and its slot is gone; the threads that copy stop soon; there is a whole snapshot or
    /// none, and at most packs that no snapshot uses, which a collection takes.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a reserved name, or one that mentions another instance;
    /// [`Exists`](ErrorKind::Exists) when the name is taken; [`NotFound`](ErrorKind::NotFound) for the instance or the storage;
    /// [`Busy`](ErrorKind::Busy) when another command works on the instance, or its server is starting, or does not come to its end;
    /// [`Damaged`](ErrorKind::Damaged) for pages that are damaged and that nothing explains;
    /// [`Environment`](ErrorKind::Environment) when it would not fit.
    pub async fn create(&self, wanted: &CreateSnapshot) -> Result<TakenSnapshot> {
        if wanted.name.is_reserved() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("name {}", wanted.name),
                "is given by checkouts, not by people",
            )
            .hinted("choose another tag than CURRENT and HEAD{…}"));
        }
        let pg = instance_of(wanted)?;
        let _lock = self.0.pg().lock(&pg).await?;
        Box::pin(self.0.pg().settle(&pg)).await?;
        let record = self.0.pg().record_of(&pg)?;
        self.0.pg().is_whole(&record)?;
        let mut operation = self
            .0
            .begin_operation("snapshot create", &wanted.name.to_string())?;
        let taken = Box::pin(take_locked(self.0, &record, wanted)).await;
        if let Ok(taken) = &taken {
            operation.detail("id", taken.id.to_string());
            operation.detail("storage", taken.storage.to_string());
            operation.detail("pg", pg.to_string());
        }
        operation.end(taken)
    }
}

fn instance_of(wanted: &CreateSnapshot) -> Result<Name> {
    let mentioned = wanted.name.instance();
    match (&wanted.pg, mentioned) {
        (Some(pg), Some(other)) if pg.as_str() != other => Err(Error::new(
            ErrorKind::Invalid,
            format!("name {}", wanted.name),
            format!("mentions {other}, and the snapshot is of {pg}"),
        )
        .hinted("a snapshot is called by its instance, or has a name without one")),
        (Some(pg), _) => Ok(pg.clone()),
        (None, Some(mentioned)) => mentioned.parse(),
        (None, None) => Err(Error::new(
            ErrorKind::Invalid,
            format!("name {}", wanted.name),
            "does not say of which instance",
        )
        .hinted("write PGDATA@TAG, or name the instance: --pg PGDATA")),
    }
}

/// Takes a snapshot of an instance that is locked already. Reserved names are given here.
pub(crate) async fn take_locked(
    neon: &Neon,
    record: &PgRecord,
    wanted: &CreateSnapshot,
) -> Result<TakenSnapshot> {
    let begun = Instant::now();
    let storage = wanted.storage.as_ref().unwrap_or(&record.storage).clone();
    // What was begun is given up when somebody asks to stop; the commit itself is waited for.
    let mut prepared = Box::pin(unless_cancelled(
        neon,
        once_more(neon, record, || prepare(neon, record, wanted, &storage)),
    ))
    .await?;
    if prepared.creates() && prepared.commit.facts.kind == SnapshotKind::Online {
        neon.tell(Event::Note(format!(
            "A tablespace was created while {} was copied; it is copied once more.",
            record.name
        )));
        drop(prepared);
        prepared = Box::pin(unless_cancelled(
            neon,
            once_more(neon, record, || prepare(neon, record, wanted, &storage)),
        ))
        .await?;
    }
    if prepared.creates() {
        neon.tell(Event::Warning(format!(
            "{} was taken just after a tablespace was created; no other instance can be made of it. Take another one after a checkpoint.",
            wanted.name
        )));
    }
    let (commit, checkpoint) = (&prepared.commit, prepared.checkpoint);
    let committed = prepared.writing.take()?.commit(commit).await;
    let committed =
        committed.map_err(|error| Error::repository(format!("storage {storage}"), error))?;
    // The snapshot is there, whatever becomes of this.
    if let Err(error) = remember_timelines(neon, record, &commit.facts) {
        neon.tell(Event::Warning(format!(
            "the timelines of {} could not be written down ({error})",
            record.name
        )));
    }
    let lost = committed
        .names
        .iter()
        .find_map(|(name, outcome)| match outcome {
            NameOutcome::Given => None,
            NameOutcome::Taken { by } => Some((name, by.to_string())),
            NameOutcome::Unsettled(error) => Some((name, error.to_string())),
        });
    if let Some((name, by)) = &lost {
        neon.tell(Event::Warning(format!(
            "The name {name} was given to another snapshot meanwhile ({by}). This one is safe under its id {}.",
            committed.id
        )));
    }
    let cost = &commit.facts.cost;
    Ok(TakenSnapshot {
        id: committed.id,
        name: lost.is_none().then(|| wanted.name.clone()),
        name_lost: lost.map(|(_, by)| by),
        pg: record.name.clone(),
        storage,
        kind: commit.facts.kind.name(),
        parent: commit.facts.parent,
        size: cost.bytes,
        added: cost.written_data.saturating_add(cost.written_metadata),
        read: cost.read_changed.saturating_add(cost.read_other),
        changed_pages: cost.changed_pages,
        source: cost.source.clone(),
        passed_over: cost.refused_sources.clone(),
        bad_pages: commit.facts.bad_pages.len() as u64,
        checkpoint: checkpoint.as_secs_f64(),
        elapsed: begun.elapsed().as_secs_f64(),
    })
}

/// Every timeline an instance was on is remembered: a checkout ends on another.
fn remember_timelines(neon: &Neon, record: &PgRecord, facts: &Facts) -> Result<()> {
    let timelines: Vec<u32> = facts
        .log
        .timelines
        .iter()
        .map(|step| step.timeline.get())
        .collect();
    if timelines.iter().all(|step| record.timelines.contains(step)) {
        return Ok(());
    }
    neon.pg()
        .update(&record.name, |record| record.timelines.extend(timelines))
}
