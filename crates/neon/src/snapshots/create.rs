//! Taking snapshots.
//!
//! 1. The kind follows from what the server does: *online* and *standby* in a bracket, *cold*, *recovery* and *crashed* of
//!    files that nobody writes.
//! 2. The parent is protected before it is looked at, and what changed since is told by the best source.
//! 3. Pages are copied, `pg_control` last; then, of a bracket, label and log, which a slot keeps until they are copied.
//! 4. The commit makes the snapshot exist. Before it, there is at most garbage that a collection takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use neon_pagestore::read::Snapshot;
use neon_pagestore::write::Stored;
use neon_pagestore::{Commit, CommitId, Facts, NameOutcome, Noted, SnapshotName, Writing};
use neon_pg_layout::{ControlFile, Lsn};
use neon_pgctl::facts::Facts as ServerFacts;
use neon_pgctl::{BackupBracket, BracketOptions, Instance, Quiet, ServerState, Status, WalHold};
use neon_snapshot_format::SnapshotKind;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::PgRecord;
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::seconds;
use crate::repositories::StorageRepository;
use crate::snapshots::catalogue::Files;
use crate::snapshots::copying::{Job, carry_bad_pages, connect, insert_position};
use crate::snapshots::once_more::once_more;
use crate::snapshots::parent::{self, ParentChoice};
use crate::snapshots::watch::{Meter, Wanting};
use crate::snapshots::{Snapshots, needs, redo};

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

/// A snapshot of which everything is stored but the commit.
struct Prepared {
    writing: Held,
    commit: Commit,
    checkpoint: Duration,
}

impl Prepared {
    /// Whether its log makes a tablespace.
    fn creates(&self) -> bool {
        self.commit.facts.labels.contains_key(redo::LABEL)
    }
}

/// How soon it is noticed that somebody asks to stop.
const NOTICE: Duration = Duration::from_millis(50);

/// Drops the work when somebody asks to stop.
async fn unless_cancelled<T>(neon: &Neon, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        neon.go_on()?;
        match tokio::time::timeout(NOTICE, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => continue,
        }
    }
}

async fn prepare(
    neon: &Neon,
    record: &PgRecord,
    wanted: &CreateSnapshot,
    storage: &Name,
) -> Result<Prepared> {
    let target = neon.storages().repository(storage).await?;
    refuse_taken(&target, &wanted.name).await?;
    let instance = neon.pg().open(record).await?;
    let of_server = |error| Error::server(format!("pg {}", record.name), error);
    let status = neon.pg().settled_status(&instance, &record.name).await?;
    let mut control = instance.control_file().map_err(of_server)?;
    let mut kind = kind_of(&status, &control, &record.name)?;
    let running = kind.is_bracketed();
    let mut quiet = None;
    if !running {
        let held = Quiet::hold(instance.data_dir(), SURVIVORS).await;
        quiet = Some(held.map_err(of_server)?);
        // By who ended meanwhile.
        let status = neon.pg().settled_status(&instance, &record.name).await?;
        control = instance.control_file().map_err(of_server)?;
        kind = kind_of(&status, &control, &record.name)?;
        if kind.is_bracketed() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("pg {}", record.name),
                "its server was started this moment",
            )
            .hinted("try again"));
        }
    }
    // Beside the checkpoint and the copy: neither needs it.
    let mut asking = JoinSet::new();
    let (of, asked) = (neon.clone(), instance.clone());
    let about = format!("pg {}", record.name);
    asking.spawn(async move { needs::ask(&of, &asked, running, &about).await });
    let parent = parent::choose(&wanted.parent, &target, record, &control).await?;
    let writing = target.repository.begin_writing().await;
    let writing = Held(Some(
        writing.map_err(|error| Error::repository(target.label(), error))?,
    ));
    let wish = Wish {
        neon,
        record,
        wanted,
        target: &target,
        instance: &instance,
        kind,
        parent,
        asking,
        quiet,
    };
    match store(wish, &control, writing.get()?).await {
        Ok((commit, checkpoint)) => Ok(Prepared {
            writing,
            commit,
            checkpoint,
        }),
        Err(error) if error.kind() == ErrorKind::Damaged => {
            // Who slept for too long sees the work of collections.
            let heard = writing.get()?.require_heard().await;
            heard.map_err(|asleep| Error::repository(target.label(), asleep))?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// What is to be copied, from where, to where, and what is known of it.
struct Wish<'a> {
    neon: &'a Neon,
    record: &'a PgRecord,
    wanted: &'a CreateSnapshot,
    target: &'a StorageRepository,
    instance: &'a Instance,
    kind: SnapshotKind,
    parent: Option<CommitId>,
    /// What the snapshot needs of the machine is found out meanwhile.
    asking: JoinSet<Result<ServerFacts>>,
    /// Nobody else uses the data directory.
    quiet: Option<Quiet>,
}

/// Stores everything but the commit.
async fn store(
    wish: Wish<'_>,
    control: &ControlFile,
    writing: &Writing,
) -> Result<(Commit, Duration)> {
    let Wish {
        neon,
        record,
        wanted,
        target,
        instance,
        kind,
        parent,
        mut asking,
        quiet,
    } = wish;
    let subject = format!("snapshot {}", wanted.name);
    let of_server = |error| Error::server(format!("pg {}", record.name), error);
    let parent = match parent {
        None => None,
        Some(id) => Some(protect(target, writing, id).await?),
    };
    // Dropped with this future, it stops the threads.
    let (_wanting, go_on) = Wanting::new(neon);
    let job = Arc::new(Job {
        neon: neon.clone(),
        record: record.clone(),
        instance: instance.clone(),
        target: target.clone(),
        kind,
        parent,
        allow_bad_pages: wanted.allow_bad_pages,
        taken: i64::try_from(seconds(neon.now())).unwrap_or(i64::MAX),
        name: wanted.name.clone(),
        meter: Arc::new(Meter::new(neon, subject.clone(), go_on)),
    });
    let writer = writing.writer();
    let copying = Arc::clone(&job);
    let mut checkpoint = Duration::ZERO;
    let (stored, facts) = if kind.is_bracketed() {
        let waiting = format!("Waiting for a checkpoint of {}.", record.name);
        neon.tell(Event::Step(waiting));
        let client = connect(instance).await.map_err(of_server)?;
        let options =
            BracketOptions::new(subject.clone()).with_fast_checkpoint(wanted.fast_checkpoint);
        let waited = Instant::now();
        let bracket = BackupBracket::start(client, &options).await;
        let mut bracket = bracket.map_err(of_server)?;
        checkpoint = waited.elapsed();
        neon.tell(Event::Step(format!("Copying {}.", record.name)));
        let start = bracket.started().clone();
        let asked = insert_position(instance, kind);
        let copy = async {
            let bracket = Some((start.start, start.timeline, asked));
            let copy = beside(move || copying.copy(writer, bracket)).await?;
            let found = told_soon(neon, instance, &record.name, &mut asking).await?;
            Ok((copy, found))
        };
        let (copy, found) = bracket.during(copy).await.map_err(of_server)??;
        let (backup, mut hold) = bracket.stop_with().await.map_err(of_server)?;
        let finishing = async {
            let finished = beside(move || job.finish(copy, Some(&backup), &found)).await?;
            with_creations(instance, control, finished).await
        };
        let finished = held(&mut hold, finishing).await;
        hold.release().await;
        finished?
    } else {
        neon.tell(Event::Step(format!("Copying {}.", record.name)));
        let copy = beside(move || copying.copy(writer, None)).await?;
        let found = told(&mut asking).await?;
        let finished = beside(move || job.finish(copy, None, &found)).await?;
        with_creations(instance, control, finished).await?
    };
    if let Some(quiet) = quiet {
        quiet.check().map_err(of_server)?;
    }
    let commit = stored
        .commit(facts)
        .map_err(|error| Error::repository(subject.as_str(), error))?;
    let commit = carry_bad_pages(target, commit, wanted.allow_bad_pages, &subject).await?;
    Ok((commit, checkpoint))
}

/// What was found out meanwhile.
async fn told(asking: &mut JoinSet<Result<ServerFacts>>) -> Result<ServerFacts> {
    match asking.join_next().await {
        Some(Ok(found)) => found,
        Some(Err(error)) => Err(Error::new(
            ErrorKind::Failed,
            "what the snapshot needs",
            "could not be found out",
        )
        .caused_by(error)),
        None => Err(Error::new(
            ErrorKind::Failed,
            "what the snapshot needs",
            "was asked already",
        )),
    }
}

/// The same, of a server whose databases may be locked: who does not answer keeps nobody from a snapshot.
async fn told_soon(
    neon: &Neon,
    instance: &Instance,
    name: &Name,
    asking: &mut JoinSet<Result<ServerFacts>>,
) -> Result<ServerFacts> {
    if let Ok(found) = tokio::time::timeout(neon.options().answers_within, told(asking)).await {
        return found;
    }
    asking.abort_all();
    neon.tell(Event::Note(format!(
        "The databases of {name} did not answer for extensions and collations; the snapshot is without them."
    )));
    let facts = instance.offline_facts().await;
    facts.map_err(|error| Error::server(format!("pg {name}"), error))
}

/// How long to wait for the processes of a server that is dead already.
const SURVIVORS: Duration = Duration::from_secs(60);

/// Notes whether the log of what was copied makes a tablespace.
async fn with_creations(
    instance: &Instance,
    control: &ControlFile,
    (stored, mut facts): (Stored, Facts),
) -> Result<(Stored, Facts)> {
    let files = Files::Live(instance.data_dir().to_owned());
    let log = redo::Log {
        files: &files,
        control,
        start: facts.log.start.unwrap_or(control.checkpoint.redo),
        stop: facts.log.stop.unwrap_or(Lsn::MAX),
    };
    let timelines = facts.log.timelines.iter().map(|step| step.timeline);
    let created = redo::created(&log, timelines.collect()).await?;
    let paths: Vec<_> = created
        .values()
        .map(|path| path.to_string_lossy())
        .collect();
    if !paths.is_empty() {
        facts
            .labels
            .insert(redo::LABEL.to_owned(), paths.join("\n"));
    }
    Ok((stored, facts))
}

/// A writer that is given up when it was not used.
struct Held(Option<Writing>);

impl Held {
    fn get(&self) -> Result<&Writing> {
        self.0.as_ref().ok_or_else(Self::used)
    }

    fn take(&mut self) -> Result<Writing> {
        self.0.take().ok_or_else(Self::used)
    }

    fn used() -> Error {
        Error::new(ErrorKind::Failed, "the writer", "was used already")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(writing), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        {
            // Spares collections to wait until its lease lapses.
            drop(runtime.spawn(writing.abandon()));
        }
    }
}

async fn refuse_taken(target: &StorageRepository, name: &SnapshotName) -> Result<()> {
    match target.repository.resolve_name(name).await {
        Ok(id) => Err(Error::new(
            ErrorKind::Exists,
            format!("snapshot {name}"),
            format!("is there already, with id {id}"),
        )
        .hinted("choose another name, or destroy it first")),
        Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::repository(target.label(), error)),
    }
}

fn kind_of(status: &Status, control: &ControlFile, name: &Name) -> Result<SnapshotKind> {
    let busy = |what: &'static str| {
        Error::new(ErrorKind::Busy, format!("pg {name}"), what)
            .hinted("try again when that is done")
    };
    Ok(match status.state {
        ServerState::Running => SnapshotKind::Online,
        ServerState::Standby => SnapshotKind::Standby,
        ServerState::Crashed => SnapshotKind::Crashed,
        ServerState::Stopped if control.state == neon_pg_layout::ClusterState::ShutDown => {
            SnapshotKind::Cold
        }
        ServerState::Stopped => SnapshotKind::Recovery,
        ServerState::Starting => return Err(busy("its server is starting")),
        ServerState::SingleUser => return Err(busy("a backend without a server works on it")),
        _ => return Err(busy("what its server does is not known")),
    })
}

async fn protect(target: &StorageRepository, writing: &Writing, id: CommitId) -> Result<Snapshot> {
    let of_target = |error| Error::repository(target.label(), error);
    let commit = writing.protect(id).await.map_err(of_target)?;
    Snapshot::of(id, commit, &target.maps).map_err(of_target)
}

/// Waits for work that needs the log to be kept, and fails when it is not kept any more.
async fn held<T>(hold: &mut WalHold, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = std::pin::pin!(work);
    let mut lost = std::pin::pin!(hold.lost());
    std::future::poll_fn(|context| {
        // The work first: what is done is done.
        if let std::task::Poll::Ready(done) = work.as_mut().poll(context) {
            return std::task::Poll::Ready(done);
        }
        lost.as_mut()
            .poll(context)
            .map(|error| Err(Error::server("the log of the snapshot", error)))
    })
    .await
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
