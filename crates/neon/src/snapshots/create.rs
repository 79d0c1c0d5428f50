//! Taking snapshots.
//!
//! 1. The kind follows from what the server does: *online* and *standby* in a bracket, *cold*, *recovery* and *crashed* of
//!    files that nobody writes.
//! 2. The parent is protected before it is looked at, and what changed since is told by the best source.
//! 3. Pages are copied, `pg_control` last; then, of a bracket, label and log, which a slot keeps until they are copied.
//! 4. The commit makes the snapshot exist. Before it, there is at most garbage that a collection takes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use neon_pagestore::changes::LogEnd;
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{ChangedSince, Parent, SnapshotOptions, SnapshotWriter, Stored};
use neon_pagestore::{
    Commit, CommitId, Facts, LogPlace, LogRange, NameOutcome, Noted, SnapshotName, Writing,
};
use neon_pg_layout::{ControlFile, Lsn, TimelineId};
use neon_pgctl::facts::Facts as ServerFacts;
use neon_pgctl::{Backup, BackupBracket, BracketOptions, Instance, Quiet, ServerState, WalHold};
use neon_snapshot_format::pgdata::{Bracket, Copied, PgData, Stop, StopWal};
use neon_snapshot_format::{Sequential, SnapshotKind};
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::PgRecord;
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::seconds;
use crate::repositories::StorageRepository;
use crate::snapshots::catalogue::Files;
use crate::snapshots::log_end::{Position, history};
use crate::snapshots::parent::{self, ParentChoice};
use crate::snapshots::sources::{self, Copying, Told};
use crate::snapshots::watch::{Counted, Meter, Wanting, Watched};
use crate::snapshots::{Snapshots, needs, redo, room};

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
    /// [`Busy`](ErrorKind::Busy) when another command works on the instance, or its server is starting or stopping;
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
        self.0.pg().settle(&pg).await?;
        let record = self.0.pg().record_of(&pg)?;
        let mut operation = self
            .0
            .begin_operation("snapshot create", &wanted.name.to_string())?;
        let taken = take_locked(self.0, &record, wanted).await;
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
        .hinted("write INSTANCE@TAG, or name the instance")),
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
    let mut prepared = unless_cancelled(neon, prepare(neon, record, wanted, &storage)).await?;
    if prepared.creates() && prepared.commit.facts.kind == SnapshotKind::Online {
        neon.tell(Event::Note(format!(
            "A tablespace was created while {} was copied; it is copied once more.",
            record.name
        )));
        drop(prepared);
        prepared = unless_cancelled(neon, prepare(neon, record, wanted, &storage)).await?;
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
    let subject = format!("snapshot {}", wanted.name);
    let target = neon.storages().repository(storage).await?;
    refuse_taken(&target, &wanted.name).await?;
    let instance = neon.pg().open(record).await?;
    let of_server = |error| Error::server(format!("pg {}", record.name), error);
    let mut control = instance.control_file().map_err(of_server)?;
    let mut kind = kind_of(&instance, &control, &record.name).await?;
    let running = kind.is_bracketed();
    let mut quiet = None;
    if !running {
        let held = Quiet::hold(instance.data_dir(), SURVIVORS).await;
        quiet = Some(held.map_err(of_server)?);
        // By who ended meanwhile.
        control = instance.control_file().map_err(of_server)?;
        kind = kind_of(&instance, &control, &record.name).await?;
    }
    let found = needs::ask(neon, &instance, running, &format!("pg {}", record.name)).await?;
    let parent = parent::choose(&wanted.parent, &target, record, &control).await?;
    let writing = target.repository.begin_writing().await;
    let writing = Held(Some(
        writing.map_err(|error| Error::repository(target.label(), error))?,
    ));
    let parent = match parent {
        None => None,
        Some(id) => Some(protect(&target, writing.get()?, id).await?),
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
        found,
        meter: Meter::new(neon, subject.clone(), go_on),
    });
    let writer = writing.get()?.writer();
    let copying = Arc::clone(&job);
    let mut checkpoint = Duration::ZERO;
    let (stored, facts) = if running {
        let waiting = format!("Waiting for a checkpoint of {}.", record.name);
        neon.tell(Event::Step(waiting));
        let client = connect(&instance).await.map_err(of_server)?;
        let options =
            BracketOptions::new(subject.clone()).with_fast_checkpoint(wanted.fast_checkpoint);
        let waited = Instant::now();
        let bracket = BackupBracket::start(client, &options).await;
        let mut bracket = bracket.map_err(of_server)?;
        checkpoint = waited.elapsed();
        neon.tell(Event::Step(format!("Copying {}.", record.name)));
        let start = bracket.started().clone();
        let asked = insert_position(&instance, kind);
        let copy = beside(move || copying.copy(writer, Some((start.start, start.timeline, asked))));
        let copy = bracket.during(copy).await.map_err(of_server)??;
        let (backup, mut hold) = bracket.stop_with().await.map_err(of_server)?;
        let finishing = async {
            let finished = beside(move || job.finish(copy, Some(&backup))).await?;
            with_creations(&instance, &control, finished).await
        };
        let finished = held(&mut hold, finishing).await;
        hold.release().await;
        finished?
    } else {
        neon.tell(Event::Step(format!("Copying {}.", record.name)));
        let finished = beside(move || {
            let copy = copying.copy(writer, None)?;
            copying.finish(copy, None)
        })
        .await?;
        with_creations(&instance, &control, finished).await?
    };
    if let Some(quiet) = quiet {
        quiet.check().map_err(of_server)?;
    }
    let commit = stored
        .commit(facts)
        .map_err(|error| Error::repository(subject.as_str(), error))?;
    let commit = carry_bad_pages(&target, commit, wanted.allow_bad_pages, &subject).await?;
    Ok(Prepared {
        writing,
        commit,
        checkpoint,
    })
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

async fn kind_of(instance: &Instance, control: &ControlFile, name: &Name) -> Result<SnapshotKind> {
    let subject = || format!("pg {name}");
    let status = instance
        .status()
        .await
        .map_err(|error| Error::server(subject(), error))?;
    let busy = |what: &'static str| {
        Error::new(ErrorKind::Busy, subject(), what).hinted("try again when that is done")
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
        ServerState::Stopping => return Err(busy("its server is stopping")),
        ServerState::SingleUser => return Err(busy("a backend without a server works on it")),
        _ => return Err(busy("what its server does is not known")),
    })
}

async fn connect(instance: &Instance) -> neon_pgctl::Result<neon_pgwire::Client> {
    match instance.connect("postgres").await {
        // It may have been dropped; this one cannot be.
        Err(error) if error.kind() == neon_pgctl::ErrorKind::Connection => {
            instance.connect("template1").await.map_err(|_| error)
        }
        connected => connected,
    }
}

async fn protect(target: &StorageRepository, writing: &Writing, id: CommitId) -> Result<Snapshot> {
    let of_target = |error| Error::repository(target.label(), error);
    let commit = writing.protect(id).await.map_err(of_target)?;
    Snapshot::of(id, commit, &target.maps).map_err(of_target)
}

/// Where the server is by now, asked from threads, and only about pages that look damaged.
type InsertPosition =
    Box<dyn Fn() -> Result<Lsn, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

fn insert_position(instance: &Instance, kind: SnapshotKind) -> InsertPosition {
    let sql = match kind {
        SnapshotKind::Standby => "SELECT pg_catalog.pg_last_wal_replay_lsn()",
        _ => "SELECT pg_catalog.pg_current_wal_insert_lsn()",
    };
    let runtime = tokio::runtime::Handle::current();
    let session = Mutex::new(None);
    let instance = instance.clone();
    Box::new(move || {
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.block_on(async {
            let mut client = match session.take() {
                Some(client) => client,
                None => connect(&instance).await?,
            };
            let results = client.simple_query(sql).await?;
            let position = results.first().and_then(|rows| rows.value(0, 0));
            let position = position.ok_or("the server says no position")?.parse()?;
            *session = Some(client);
            Ok(position)
        })
    })
}

/// Runs in a thread that may wait.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(
            Error::new(ErrorKind::Failed, "a thread", "did not come to its end").caused_by(error),
        ),
    }
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

/// What is copied, from where to where.
struct Job {
    neon: Neon,
    record: PgRecord,
    instance: Instance,
    target: StorageRepository,
    kind: SnapshotKind,
    parent: Option<Snapshot>,
    allow_bad_pages: bool,
    taken: i64,
    name: SnapshotName,
    found: ServerFacts,
    meter: Meter,
}

/// Pages that are stored, of a snapshot that is not complete.
struct Copy {
    source: PgData,
    copied: Copied,
    sink: SnapshotWriter,
    facts: Facts,
    position: Option<Position>,
}

impl Job {
    fn pg_wal(&self) -> PathBuf {
        self.instance.data_dir().join("pg_wal")
    }

    fn subject(&self) -> String {
        format!("snapshot {}", self.name)
    }

    /// Copies the pages. Blocks.
    fn copy(
        &self,
        writer: neon_pagestore::WriterId,
        bracket: Option<(Lsn, TimelineId, InsertPosition)>,
    ) -> Result<Copy> {
        let of_copy = |error| self.failed(error);
        let of_target = |error| Error::repository(self.target.label(), error);
        let data = self.instance.data_dir();
        let pg_wal = self.pg_wal();
        let mut begun = None;
        let source = match (self.kind, bracket) {
            (kind, Some((start, timeline, asked))) => {
                begun = Some((start, timeline));
                let bracket = Bracket::new(start, asked);
                match kind {
                    SnapshotKind::Standby => PgData::standby(data, bracket),
                    _ => PgData::online(data, bracket),
                }
            }
            (SnapshotKind::Cold, None) => PgData::cold(data),
            (SnapshotKind::Recovery, None) => PgData::recovery(data),
            (_, None) => PgData::crashed(data),
        };
        let source = source
            .map_err(of_copy)?
            .allow_bad_pages(self.allow_bad_pages);
        let control = source.control();
        let position = match begun {
            None => Some(Position::of_stopped(self.kind, control, &pg_wal)?),
            Some(_) => None,
        };
        let (redo, timelines) = match (&position, begun) {
            (Some(position), _) => (position.redo, position.history.clone()),
            (None, Some((start, timeline))) => (start, history(&pg_wal, timeline)?),
            (None, None) => (
                control.checkpoint.redo,
                history(&pg_wal, control.checkpoint.timeline)?,
            ),
        };
        let told = match &self.parent {
            None => Told::everything(),
            Some(parent) => {
                let copying = Copying {
                    lineage: self.record.lineage,
                    base: self.record.base.as_ref().map(|base| base.snapshot),
                    control,
                    history: &timelines,
                    redo,
                    clean_stop: self.kind == SnapshotKind::Cold,
                    pg_wal: &pg_wal,
                };
                sources::tell(parent, &copying, &self.meter.go_on)?
            }
        };
        for passed in &told.passed_over {
            self.neon.tell(Event::Note(format!(
                "What changed could not be told by {}: {}.",
                passed.source, passed.reason
            )));
        }
        let mut facts = Facts::of_control(self.kind, self.taken, control);
        facts.names = vec![self.name.clone()];
        facts.instance = Some(self.record.id.clone());
        facts.lineage = Some(self.record.lineage);
        facts.parent = self.parent.as_ref().map(Snapshot::id);
        facts.log.start = begun.map(|(start, _)| start);
        facts
            .labels
            .insert(needs::PG.to_owned(), self.record.name.to_string());
        needs::record(
            &mut facts,
            &self.found,
            self.parent.as_ref().map(Snapshot::facts),
        )?;
        needs::record_configuration(&mut facts, &self.instance);
        facts.needs.install_user = self.record.superuser(&self.instance);
        facts.cost.source = told.used.map(|used| used.name().to_owned());
        facts.cost.refused_sources = told
            .passed_over
            .iter()
            .map(|passed| Noted {
                path: passed.source.name().to_owned(),
                reason: passed.reason.clone(),
            })
            .collect();
        let options = SnapshotOptions {
            codec: self.target.codec,
            page_size: facts.cluster.block_size,
            compare: told.is_scan(),
            scratch: Some(self.neon.home().path().to_owned()),
            ..SnapshotOptions::default()
        };
        let mut sink =
            SnapshotWriter::new(&self.target.repository, writer, options).map_err(of_target)?;
        let threads = self.neon.options().threads.max(1);
        let copied = match &self.parent {
            None => {
                room::check(&self.neon, &self.target, size_of(data))?;
                let watched = Watched {
                    sink: &sink,
                    meter: &self.meter,
                };
                source.copy_parallel(&watched, threads)
            }
            Some(parent) => {
                let named = told.set.named_pages().unwrap_or(0);
                let bytes = named.saturating_mul(facts.cluster.block_size.into());
                room::check(&self.neon, &self.target, bytes)?;
                sink = sink
                    .with_parent(Parent::of(parent))
                    .with_changes(&told.set)
                    .map_err(of_target)?;
                let select = ChangedSince::new(&told.set, Parent::of(parent)).map_err(of_target)?;
                let select = Counted::of(&select);
                let watched = Watched {
                    sink: &sink,
                    meter: &self.meter,
                };
                let copied = source.copy_selected(&select, &watched, threads);
                if !told.is_scan() {
                    facts.cost.read_changed = select.changed();
                }
                copied
            }
        };
        let copied = copied.map_err(of_copy)?;
        // What the log names and is gone meanwhile was not read.
        facts.cost.read_changed = facts.cost.read_changed.min(copied.bytes);
        facts.cost.read_other = copied.bytes.saturating_sub(facts.cost.read_changed);
        Ok(Copy {
            source,
            copied,
            sink,
            facts,
            position,
        })
    }

    /// Brings what comes at the end, and makes the map. Blocks.
    fn finish(&self, copy: Copy, backup: Option<&Backup>) -> Result<(Stored, Facts)> {
        let Copy {
            source,
            copied,
            sink,
            mut facts,
            position,
        } = copy;
        let pg_wal = self.pg_wal();
        let control = source.control();
        let ended = match (position, backup) {
            (Some(position), _) => position,
            (None, Some(backup)) => self.end_of(backup, &pg_wal, &mut facts)?,
            (None, None) => Position::of_stopped(self.kind, control, &pg_wal)?,
        };
        let end = LogEnd {
            redo: ended.redo,
            stop: ended.stop,
            history: &ended.history,
            tail: ended.tail(control, &pg_wal),
        };
        facts
            .record_log(self.record.lineage, control, &end)
            .map_err(|error| Error::repository(self.subject(), error))?;
        let stop = backup.map(|backup| Stop {
            label: &backup.label_file,
            tablespace_map: &backup.tablespace_map_file,
            position: ended.stop,
            timeline: ended.history.timeline(),
            wal: StopWal::Directory(&pg_wal),
        });
        let watched = Watched {
            sink: &sink,
            meter: &self.meter,
        };
        let end = Sequential::new(&watched)
            .and_then(|mut rest| copied.finish(&mut rest, stop))
            .map_err(|error| self.failed(error))?;
        facts.log.ranges = end
            .wal
            .iter()
            .map(|range| LogRange {
                timeline: range.timeline,
                start: range.start,
                end: range.end,
                place: LogPlace::Snapshot,
            })
            .collect();
        let stored = sink
            .complete()
            .map_err(|error| Error::repository(self.target.label(), error))?;
        Ok((stored, facts))
    }

    /// Where a stopped backup ends. A standby's copy is consistent where its control file says, which was copied last.
    fn end_of(
        &self,
        backup: &Backup,
        pg_wal: &std::path::Path,
        facts: &mut Facts,
    ) -> Result<Position> {
        let (mut stop, mut timeline) = (backup.stop, backup.start.timeline);
        if self.kind == SnapshotKind::Standby {
            let control = self
                .instance
                .control_file()
                .map_err(|error| Error::server(format!("pg {}", self.record.name), error))?;
            stop = stop.max(control.min_recovery_point);
            timeline = control.min_recovery_timeline.unwrap_or(timeline);
            facts.log.min_recovery = Some(control.min_recovery_point);
        }
        Ok(Position {
            redo: backup.start.start,
            stop,
            history: history(pg_wal, timeline)?,
        })
    }

    fn failed(&self, error: neon_snapshot_format::Error) -> Error {
        if self.meter.go_on.stopped() {
            return Error::new(ErrorKind::Cancelled, self.subject(), "was stopped");
        }
        if error.kind() == neon_snapshot_format::ErrorKind::Inconsistent {
            let reason = "the cluster changed while it was copied";
            return Error::new(ErrorKind::Busy, self.subject(), reason)
                .caused_by(error)
                .hinted("see who started or stopped its server, and try again");
        }
        let damaged = error.kind() == neon_snapshot_format::ErrorKind::Damaged;
        let error = Error::format(self.subject(), error);
        if damaged {
            return error.hinted(
                "restore the page from an older snapshot, or take the snapshot with damaged pages allowed: it then says which",
            );
        }
        error
    }
}

/// Damaged pages of the parent that were not read again are damaged still.
async fn carry_bad_pages(
    target: &StorageRepository,
    mut commit: Commit,
    allow: bool,
    subject: &str,
) -> Result<Commit> {
    let Some(parent) = commit.facts.parent else {
        return Ok(commit);
    };
    let of_target = |error| Error::repository(target.label(), error);
    let before = target.snapshot(parent).await?;
    let known: Vec<_> = before
        .facts()
        .bad_pages
        .iter()
        .filter(|bad| {
            let mut now = commit.facts.bad_pages.iter();
            !now.any(|page| page.path == bad.path && page.block == bad.block)
        })
        .cloned()
        .collect();
    if known.is_empty() {
        return Ok(commit);
    }
    let after = Snapshot::of(parent, commit.clone(), &target.maps).map_err(of_target)?;
    for bad in known {
        let Ok(path) = neon_snapshot_format::SnapshotPath::new(bad.path.as_str()) else {
            continue;
        };
        let Ok(block) = u32::try_from(bad.block) else {
            continue;
        };
        if after.stat(&path).await.map_err(of_target)?.is_none() {
            continue;
        }
        let now = after.read_page(&path, block).await.map_err(of_target)?;
        let then = before.read_page(&path, block).await.map_err(of_target)?;
        if now.is_some() && now == then {
            commit.facts.bad_pages.push(bad);
        }
    }
    if !allow && !commit.facts.bad_pages.is_empty() {
        return Err(Error::new(
            ErrorKind::Damaged,
            subject,
            format!(
                "{} pages are damaged, as in the snapshot it is built on",
                commit.facts.bad_pages.len()
            ),
        )
        .hinted("take it with damaged pages allowed: it then says which"));
    }
    Ok(commit)
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

/// Bytes of all files below a data directory and in its tablespaces, about.
pub(crate) fn size_of(data: &std::path::Path) -> u64 {
    let mut folders = vec![data.to_owned()];
    let mut bytes = 0_u64;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // Links lead to tablespaces and to the log.
            let Ok(facts) = std::fs::metadata(&path) else {
                continue;
            };
            if facts.is_dir() {
                folders.push(path);
            } else {
                bytes = bytes.saturating_add(facts.len());
            }
        }
    }
    bytes
}
