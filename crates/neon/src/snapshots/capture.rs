//! Everything of a snapshot but its commit.
//!
//! 1. The kind follows from what the server does: *online* and *standby* in a bracket, *cold*, *recovery* and *crashed* of
//!    files that nobody writes.
//! 2. The parent is protected before it is looked at, and what changed since is told by the best source.
//! 3. Pages are copied, `pg_control` last; then, of a bracket, label and log, which a slot keeps until they are copied.
//!
//! A small snapshot mostly waits: for a storage that makes something durable, for the server, for programs. So what does not
//! need each other goes side by side: the look at the repository beside that at the instance; lease and parent beside the
//! checkpoint that a bracket begins with; and what the snapshot needs of the machine is asked from there on, until all is copied.
//! In order stays what makes it right: no page is left out for a parent that no lease protects, none is read before the bracket
//! began, and the parent was listed before that, so that it ends before the new snapshot begins.

use std::sync::Arc;
use std::time::{Duration, Instant};

use neon_pagestore::read::Snapshot;
use neon_pagestore::write::Stored;
use neon_pagestore::{Commit, CommitId, Facts, Listed, SnapshotName, Writing};
use neon_pg_layout::{ControlFile, Lsn};
use neon_pgctl::facts::Facts as ServerFacts;
use neon_pgctl::{BackupBracket, BracketOptions, Instance, Quiet, ServerState, Status, WalHold};
use neon_snapshot_format::SnapshotKind;
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
use crate::snapshots::create::CreateSnapshot;
use crate::snapshots::parent::{self, ParentChoice};
use crate::snapshots::watch::{Meter, Wanting};
use crate::snapshots::{needs, redo};

/// A snapshot of which everything is stored but the commit.
pub(super) struct Prepared {
    pub(super) writing: Held,
    pub(super) commit: Commit,
    pub(super) checkpoint: Duration,
}

impl Prepared {
    /// Whether its log makes a tablespace.
    pub(super) fn creates(&self) -> bool {
        self.commit.facts.labels.contains_key(redo::LABEL)
    }
}

/// How soon it is noticed that somebody asks to stop.
const NOTICE: Duration = Duration::from_millis(50);

/// Drops the work when somebody asks to stop.
pub(super) async fn unless_cancelled<T>(
    neon: &Neon,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    loop {
        neon.go_on()?;
        match tokio::time::timeout(NOTICE, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => continue,
        }
    }
}

/// Who calls it does so once more where the server ended meanwhile.
pub(super) async fn prepare(
    neon: &Neon,
    record: &PgRecord,
    wanted: &CreateSnapshot,
    storage: &Name,
) -> Result<Prepared> {
    let of_server = |error| Error::server(format!("pg {}", record.name), error);
    let (offer, seen) = tokio::try_join!(
        Box::pin(Offer::of(neon, wanted, storage)),
        Box::pin(Seen::of(neon, record))
    )?;
    let Offer { target, listed } = offer;
    let Seen {
        instance,
        mut control,
        mut kind,
    } = seen;
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
    let parent = parent::chosen(&wanted.parent, &listed, record, &control);
    let opened = async {
        match running {
            true => open(neon, record, wanted, &instance).await.map(Some),
            false => Ok(None),
        }
    };
    // Both to their ends: who is dropped in the middle leaves a lease that collections wait for.
    let (begun, opened) = tokio::join!(Box::pin(begin(&target, parent)), Box::pin(opened));
    let ((writing, parent), opened) = (begun?, opened?);
    let wish = Wish {
        neon,
        record,
        wanted,
        target: &target,
        instance: &instance,
        kind,
        parent,
        asking,
        opened,
        quiet,
    };
    let stored = store(wish, &control, writing.get()?).await;
    let (commit, checkpoint) = unless_asleep(&target, &writing, stored).await?;
    Ok(Prepared {
        writing,
        commit,
        checkpoint,
    })
}

/// The repository, which has the name to give.
struct Offer {
    target: StorageRepository,
    /// What it lists, where a parent is to be chosen.
    listed: Vec<Listed>,
}

impl Offer {
    async fn of(neon: &Neon, wanted: &CreateSnapshot, storage: &Name) -> Result<Self> {
        let target = neon.storages().repository(storage).await?;
        refuse_taken(&target, &wanted.name).await?;
        let listed = match wanted.parent {
            ParentChoice::Best => {
                let listed = target.repository.list().await;
                listed.map_err(|error| Error::repository(target.label(), error))?
            }
            ParentChoice::None | ParentChoice::Snapshot(_) => Vec::new(),
        };
        Ok(Self { target, listed })
    }
}

/// The instance as it is found.
struct Seen {
    instance: Instance,
    control: ControlFile,
    kind: SnapshotKind,
}

impl Seen {
    async fn of(neon: &Neon, record: &PgRecord) -> Result<Self> {
        let instance = neon.pg().open(record).await?;
        let status = neon.pg().settled_status(&instance, &record.name).await?;
        let control = instance.control_file();
        let control =
            control.map_err(|error| Error::server(format!("pg {}", record.name), error))?;
        Ok(Self {
            kind: kind_of(&status, &control, &record.name)?,
            instance,
            control,
        })
    }
}

/// Begins to write, with the parent protected from the first heartbeat on.
async fn begin(
    target: &StorageRepository,
    parent: Option<CommitId>,
) -> Result<(Held, Option<Snapshot>)> {
    let writing = target.repository.begin_writing_on(parent.as_slice()).await;
    let writing = Held(Some(
        writing.map_err(|error| Error::repository(target.label(), error))?,
    ));
    let parent = match parent {
        None => None,
        Some(id) => {
            let protected = protect(target, writing.get()?, id).await;
            Some(unless_asleep(target, &writing, protected).await?)
        }
    };
    Ok((writing, parent))
}

/// A bracket that was begun, and how long its checkpoint took.
struct Opened {
    bracket: BackupBracket,
    checkpoint: Duration,
}

/// Begins a bracket.
async fn open(
    neon: &Neon,
    record: &PgRecord,
    wanted: &CreateSnapshot,
    instance: &Instance,
) -> Result<Opened> {
    let of_server = |error| Error::server(format!("pg {}", record.name), error);
    let waiting = format!("Waiting for a checkpoint of {}.", record.name);
    neon.tell(Event::Step(waiting));
    let client = connect(instance).await.map_err(of_server)?;
    let options = BracketOptions::new(subject(wanted)).with_fast_checkpoint(wanted.fast_checkpoint);
    let waited = Instant::now();
    let bracket = BackupBracket::start(client, &options).await;
    Ok(Opened {
        bracket: bracket.map_err(of_server)?,
        checkpoint: waited.elapsed(),
    })
}

/// Who slept for too long sees the work of collections, which is no damage.
async fn unless_asleep<T>(
    target: &StorageRepository,
    writing: &Held,
    done: Result<T>,
) -> Result<T> {
    match done {
        Err(error) if error.kind() == ErrorKind::Damaged => {
            let heard = writing.get()?.require_heard().await;
            heard.map_err(|asleep| Error::repository(target.label(), asleep))?;
            Err(error)
        }
        done => done,
    }
}

fn subject(wanted: &CreateSnapshot) -> String {
    format!("snapshot {}", wanted.name)
}

/// What is to be copied, from where, to where, and what is known of it.
struct Wish<'a> {
    neon: &'a Neon,
    record: &'a PgRecord,
    wanted: &'a CreateSnapshot,
    target: &'a StorageRepository,
    instance: &'a Instance,
    kind: SnapshotKind,
    parent: Option<Snapshot>,
    /// What the snapshot needs of the machine is found out meanwhile.
    asking: JoinSet<Result<ServerFacts>>,
    /// Of a server that runs.
    opened: Option<Opened>,
    /// Of any other: nobody else uses the data directory.
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
        opened,
        quiet,
    } = wish;
    let subject = subject(wanted);
    let of_server = |error| Error::server(format!("pg {}", record.name), error);
    // Dropped with this future, it stops the threads.
    let (_wanting, go_on) = Wanting::new(neon);
    let job = Arc::new(Job {
        neon: neon.clone(),
        record: record.clone(),
        instance: instance.clone(),
        target: target.clone(),
        kind,
        parent: parent.clone(),
        allow_bad_pages: wanted.allow_bad_pages,
        taken: i64::try_from(seconds(neon.now())).unwrap_or(i64::MAX),
        name: wanted.name.clone(),
        meter: Arc::new(Meter::new(neon, subject.clone(), go_on)),
    });
    let writer = writing.writer();
    let copying = Arc::clone(&job);
    neon.tell(Event::Step(format!("Copying {}.", record.name)));
    let mut checkpoint = Duration::ZERO;
    let (stored, facts) = match opened {
        Some(Opened {
            mut bracket,
            checkpoint: took,
        }) => {
            checkpoint = took;
            let start = bracket.started().clone();
            let asked = insert_position(instance, kind);
            let bounds = Some((start.start, start.timeline, asked));
            let copy = beside(move || copying.copy(writer, bounds));
            let copy = bracket.during(copy).await.map_err(of_server)??;
            let (backup, mut hold) = bracket.stop_with().await.map_err(of_server)?;
            let finishing = async {
                let found = told_soon(neon, instance, &record.name, &mut asking).await?;
                let finished = beside(move || job.finish(copy, Some(&backup), &found)).await?;
                with_creations(instance, control, finished).await
            };
            let finished = held(&mut hold, finishing).await;
            hold.release().await;
            finished?
        }
        None => {
            let copy = beside(move || copying.copy(writer, None)).await?;
            let found = told(&mut asking).await?;
            let finished = beside(move || job.finish(copy, None, &found)).await?;
            with_creations(instance, control, finished).await?
        }
    };
    if let Some(quiet) = quiet {
        quiet.check().map_err(of_server)?;
    }
    let commit = stored
        .commit(facts)
        .map_err(|error| Error::repository(subject.as_str(), error))?;
    let allow = wanted.allow_bad_pages;
    let commit = match parent {
        Some(parent) => carry_bad_pages(target, &parent, commit, allow, &subject).await?,
        None => commit,
    };
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
pub(super) struct Held(Option<Writing>);

impl Held {
    fn get(&self) -> Result<&Writing> {
        self.0.as_ref().ok_or_else(Self::used)
    }

    pub(super) fn take(&mut self) -> Result<Writing> {
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
