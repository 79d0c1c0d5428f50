//! A snapshot from outside on its way into a repository: one thread beside the runtime writes it, the commit comes
//! last.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use neon_pagestore::map::Walk;
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter, WriteReport};
use neon_pagestore::{CommitId, Facts, NameOutcome, Repository, SnapshotName, Summary, Writing};
use neon_pg_layout::{ControlFile, Lsn, SystemIdentifier};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::place_for;
use crate::neon::Neon;
use crate::repositories::StorageRepository;
use crate::snapshots::inspection::Inspection;
use crate::snapshots::watch::{Meter, Wanting, Watched};
use crate::snapshots::{ParentChoice, room};

/// What a feed works with.
pub(crate) struct Bringing<'a> {
    neon: &'a Neon,
    writer: &'a SnapshotWriter,
    to: &'a StorageRepository,
    instance: Option<PathBuf>,
    dropped: Arc<AtomicBool>,
    pub(crate) subject: &'a str,
    /// Damaged pages are noted instead of refused.
    pub(crate) allow_bad_pages: bool,
    /// Nobody knows how little will be stored.
    shares: bool,
}

impl<'a> Bringing<'a> {
    /// The sink to send everything to, once it is known that there is room for so many bytes. 0 if nobody knows how many
    /// will come.
    pub(crate) fn sink(&self, total: u64) -> Result<Inspection<'a>> {
        self.require_room(total)?;
        Ok(Inspection::new(self.watched(total)))
    }

    /// As [`sink`](Self::sink), of a source that announces all its files before it sends any. It has about as many bytes.
    pub(crate) fn announced_sink(&self, about: u64) -> Result<Inspection<'a>> {
        self.require_room(about)?;
        Ok(Inspection::new(self.watched(0).expecting()))
    }

    /// That what comes fits: at least this many bytes. Of what shares its pages nearly nothing may be stored.
    pub(crate) fn require_room(&self, bytes: u64) -> Result<()> {
        let stored = if self.shares { 0 } else { bytes };
        match &self.instance {
            Some(place) => room::check_with(self.neon, self.to, stored, place_for(place, bytes)),
            None => room::check(self.neon, self.to, stored),
        }
    }

    fn watched(&self, total: u64) -> Watched<'a> {
        let dropped = Arc::clone(&self.dropped);
        let meter = Meter::of(self.neon, self.subject, dropped, total);
        Watched::new(self.writer, Arc::new(meter))
    }

    pub(crate) fn tell(&self, event: Event) {
        self.neon.tell(event);
    }

    /// What a copy of files came to.
    pub(crate) fn format(&self, error: neon_snapshot_format::Error) -> Error {
        Error::format(self.subject, error)
    }
}

/// A snapshot that came.
#[derive(Debug)]
pub(crate) struct Brought {
    pub(crate) id: CommitId,
    pub(crate) facts: Facts,
    pub(crate) report: WriteReport,
}

/// What comes, and as what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival<'a> {
    pub(crate) to: &'a StorageRepository,
    /// Where it comes from, in messages.
    pub(crate) subject: &'a str,
    pub(crate) name: &'a SnapshotName,
    /// Where an instance will be made of it, which must have room for it, too.
    pub(crate) instance: Option<&'a Path>,
    /// Bytes of a page.
    pub(crate) page_size: u32,
    /// Of which cluster, if that is known before it comes: what a snapshot of the same one has is not stored again.
    pub(crate) origin: Option<Origin>,
    /// Which snapshot that is.
    pub(crate) parent: &'a ParentChoice,
    pub(crate) allow_bad_pages: bool,
}

/// The cluster that something comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) system: SystemIdentifier,
    /// Where it was in its log, about.
    pub(crate) at: Lsn,
}

impl Origin {
    pub(crate) fn of(control: &ControlFile) -> Self {
        Self {
            system: control.system_identifier,
            at: control.checkpoint.redo,
        }
    }
}

/// Writes what `feed` sends, and commits it with the facts that it returns.
///
/// Dropped: the thread stops soon, and what it wrote is garbage.
pub(crate) async fn bring(
    neon: &Neon,
    arrival: Arrival<'_>,
    feed: impl FnOnce(&Bringing<'_>) -> Result<Facts> + Send + 'static,
) -> Result<Brought> {
    let Arrival {
        to,
        subject,
        name,
        instance,
        page_size,
        origin,
        parent: choice,
        allow_bad_pages,
    } = arrival;
    let failed = |error| Error::repository(to.label(), error);
    let parent = match (choice, origin) {
        (ParentChoice::Snapshot(id), _) => Some(*id),
        (ParentChoice::Best, Some(origin)) => nearest(to, origin).await?,
        (ParentChoice::None, _) | (ParentChoice::Best, None) => None,
    };
    let writing = to.repository.begin_writing().await.map_err(failed)?;
    let parent = match protected(to, &writing, parent).await {
        Ok(parent) => parent,
        Err(error) if *choice == ParentChoice::Best && is_of_parent(error.kind()) => {
            let cause = std::error::Error::source(&error);
            let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
            neon.tell(Event::Note(format!(
                "The snapshot of the same cluster that is there cannot be read ({cause}): all of {subject} is stored anew."
            )));
            None
        }
        Err(error) => {
            writing.abandon().await;
            return Err(error);
        }
    };
    let writer = writing.writer();
    let stop = Wanting::default();
    let (home, target) = (neon.clone(), to.clone());
    let (dropped, told) = (stop.flag(), subject.to_owned());
    let instance = instance.map(Path::to_owned);
    let options = SnapshotOptions {
        codec: to.codec,
        page_size,
        scratch: Some(neon.home().path().to_owned()),
        ..SnapshotOptions::default()
    };
    let written = tokio::task::spawn_blocking(move || {
        let failed = |error| Error::repository(target.label(), error);
        let mut sink = SnapshotWriter::new(&target.repository, writer, options).map_err(failed)?;
        if let Some(parent) = &parent {
            sink = sink.with_parent(Parent::of(parent));
        }
        let bringing = Bringing {
            neon: &home,
            writer: &sink,
            to: &target,
            instance,
            dropped,
            subject: &told,
            allow_bad_pages,
            shares: parent.is_some(),
        };
        let mut facts = feed(&bringing)?;
        if parent.is_some() {
            facts.cost.source = Some(neon_pagestore::changes::SourceKind::Scan.name().to_owned());
        }
        let stored = sink.complete().map_err(failed)?;
        Ok((stored, facts))
    })
    .await
    .map_err(|error| {
        Error::new(ErrorKind::Failed, subject, "could not be copied").caused_by(error)
    });
    let (stored, mut facts) = match written.and_then(|written| written) {
        Ok(written) => written,
        Err(error) => {
            let heard = writing.require_heard().await;
            writing.abandon().await;
            // What somebody asked for is no fault of the source.
            neon.go_on()?;
            heard.map_err(failed)?;
            return Err(error);
        }
    };
    drop(stop);
    neon.go_on()?;
    facts.names = vec![name.clone()];
    let commit = stored.commit(facts).map_err(failed)?;
    let committed = writing.commit(&commit).await.map_err(failed)?;
    named(
        neon,
        &to.repository,
        &committed.names,
        committed.id,
        subject,
        true,
    )
    .await?;
    Ok(Brought {
        id: committed.id,
        facts: commit.facts,
        report: stored.report,
    })
}

/// The snapshot of a cluster that is nearest in its log, the newest of several: what comes from outside as a whole is compared
/// with it page by page, and only what differs is stored.
async fn nearest(to: &StorageRepository, origin: Origin) -> Result<Option<CommitId>> {
    let listed = to.repository.list().await;
    let listed = listed.map_err(|error| Error::repository(to.label(), error))?;
    let system = origin.system.to_string();
    let same = listed.iter().filter_map(|listed| {
        let summary = listed.summary.as_ref().ok()?;
        (summary.system == system).then_some((listed.id, summary))
    });
    let away = |summary: &Summary| {
        let stop = summary.stop.as_ref()?.parse::<Lsn>().ok()?;
        Some(stop.0.abs_diff(origin.at.0))
    };
    let nearest = same.min_by_key(|(_, summary)| {
        let away = away(summary).unwrap_or(u64::MAX);
        (away, std::cmp::Reverse(summary.taken))
    });
    Ok(nearest.map(|(id, _)| id))
}

/// The parent, protected from collections, with a map that can be read. One that was destroyed this moment is none.
async fn protected(
    to: &StorageRepository,
    writing: &Writing,
    parent: Option<CommitId>,
) -> Result<Option<Snapshot>> {
    let Some(id) = parent else { return Ok(None) };
    let failed = |error| Error::repository(to.label(), error);
    let snapshot = match writing.protect(id).await {
        Ok(commit) => Snapshot::of(id, commit, &to.maps).map_err(failed)?,
        Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // All of it is read once more when pages are compared, and then it is too late to do without.
    let mut walk = Walk::new(snapshot.view(), true);
    while snapshot
        .maps()
        .run(&mut walk)
        .await
        .map_err(failed)?
        .is_some()
    {}
    Ok(Some(snapshot))
}

/// Whether a failure is one of the snapshot that was to be the parent: damaged, missing in part, or a newer version's.
fn is_of_parent(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Invalid
    )
}

/// Whether the snapshot has its names. One that was made just now and has none is taken back.
pub(crate) async fn named(
    neon: &Neon,
    repository: &Repository,
    names: &[(SnapshotName, NameOutcome)],
    id: CommitId,
    subject: &str,
    take_back: bool,
) -> Result<()> {
    for (name, outcome) in names {
        match outcome {
            NameOutcome::Given => {}
            NameOutcome::Taken { by } if *by == id => {}
            NameOutcome::Taken { by } => {
                let mut error = Error::new(
                    ErrorKind::Exists,
                    format!("snapshot {name}"),
                    format!("is the name of another snapshot there, {by}"),
                );
                if take_back {
                    repository
                        .destroy(id)
                        .await
                        .map_err(|error| Error::repository(subject, error))?;
                    error = error.hinted("choose another name");
                } else {
                    error = error.hinted(format!(
                        "it is there all the same, as {id}; both snapshots are safe"
                    ));
                }
                return Err(error);
            }
            NameOutcome::Unsettled(error) => neon.tell(Event::Warning(format!(
                "Snapshot {id} is there; whether it has the name {name} is not settled: {error}."
            ))),
        }
    }
    Ok(())
}
