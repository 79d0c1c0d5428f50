//! Snapshots of what comes from outside: running servers, base backups, data directories, `.neon` files.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use neon_pagestore::changes::LogEnd;
use neon_pagestore::{CommitId, Facts, LineageId, SnapshotName};
use neon_pg_layout::{
    ClusterState, ControlFile, Lsn, ManifestItem, ManifestReader, PostmasterPid, TimelineRange,
};
use neon_pgctl::Quiet;
use neon_snapshot_format::basebackup::BaseBackup;
use neon_snapshot_format::pack::{NeonFile, ReadRange};
use neon_snapshot_format::pgdata::PgData;
use neon_snapshot_format::{Detected, End, Sequential, SnapshotKind, SnapshotPath, Source, detect};
use serde::Serialize;

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::repositories::StorageRepository;
use crate::snapshots::base_backup::check;
use crate::snapshots::bring::{Arrival, Bringing, Brought, Origin, bring};
use crate::snapshots::copying::size_of;
use crate::snapshots::imported::facts;
use crate::snapshots::judge::Shape;
use crate::snapshots::location::{ImportSource, is_repository};
use crate::snapshots::log_end::Position;
use crate::snapshots::plain_backup::PlainBackup;
use crate::snapshots::ranges::StoredRange;
use crate::snapshots::{Found, ParentChoice, Snapshots};
use crate::storages::LOCAL;

/// What to import, and as what.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ImportSnapshot {
    /// From where.
    pub source: ImportSource,
    /// Its name; if absent, that of the file or folder, else `import1` and so on.
    pub name: Option<SnapshotName>,
    /// Into which storage; the local one, if absent.
    pub storage: Option<Name>,
    /// Whether damaged pages are taken and noted instead of refused.
    pub allow_bad_pages: bool,
    /// Which snapshot it shares its pages with: of the same cluster the one that is nearest in its log, if absent. One whose map
    /// cannot be read is none. That its pages can be is not looked at: what is damaged there is in this one, too.
    pub parent: ParentChoice,
}

impl ImportSnapshot {
    /// From this source into the local storage, under a name of its own.
    #[must_use]
    pub fn new(source: ImportSource) -> Self {
        Self {
            source,
            name: None,
            storage: None,
            allow_bad_pages: false,
            parent: ParentChoice::Best,
        }
    }
}

/// A snapshot that was imported.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// It.
    #[serde(skip)]
    pub found: Found,
    /// Its id.
    pub id: CommitId,
    /// Its name.
    pub name: SnapshotName,
    /// The storage it is in.
    pub storage: Name,
    /// Where it came from, without passwords.
    pub source: String,
    /// What the source was: `server`, `data directory`, `base backup`, `neon file`.
    pub format: &'static str,
    /// In what state the cluster was: `cold`, `online`, `standby`, `recovery`, `crashed`.
    pub kind: &'static str,
    /// The snapshot of the same cluster whose pages it shares, if the storage had one and it was known before it came.
    pub parent: Option<CommitId>,
    /// Pages that were stored.
    pub changed_pages: u64,
    /// Bytes that its files have.
    pub size: u64,
    /// Bytes that were stored for it.
    pub stored: u64,
    /// Its files.
    pub files: u64,
    /// Pages that are damaged and were taken all the same.
    pub bad_pages: usize,
    /// How long it took, in seconds.
    pub elapsed: f64,
}

impl Snapshots<'_> {
    /// Makes a snapshot of what is outside. The WAL that it needs to start is in it; a base backup without that is
    /// refused, and so is one that does not agree with its manifest. All of it is read; of a cluster of which the storage has a
    /// snapshot, only pages that differ from the one nearest in its log are stored. Archives say of which cluster they are too late for that,
    /// unless a manifest beside them does (17 and later).
    ///
    /// Dropped or stopped: nothing exists but what a collection finds.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) for a name that another snapshot has; [`NotFound`](ErrorKind::NotFound) when nothing
    /// is there; [`Invalid`](ErrorKind::Invalid) for what is no snapshot, or a backup that cannot start;
    /// [`Busy`](ErrorKind::Busy) for the data directory of a running server; [`Damaged`](ErrorKind::Damaged) for what
    /// is not as it was stored, or hostile; [`Environment`](ErrorKind::Environment) when a server does not let us in.
    pub async fn import(&self, wanted: &ImportSnapshot) -> Result<Imported> {
        let storage = match &wanted.storage {
            Some(storage) => storage.clone(),
            None => LOCAL.parse()?,
        };
        self.sweep_temporary().await;
        let repository = self.0.storages().repository(&storage).await?;
        let name = self.free_name(wanted, &repository).await?;
        let mut operation = self
            .0
            .begin_operation("snapshot import", &name.to_string())?;
        operation.detail("storage", storage.to_string());
        operation.detail("source", wanted.source.to_string());
        let imported = self
            .import_into(wanted, repository, storage, name, None)
            .await;
        if let Ok(imported) = &imported {
            operation.detail("id", imported.id.to_string());
        }
        operation.end(imported)
    }

    /// As [`import`](Self::import), into a repository, without a word in the log.
    pub(crate) async fn import_into(
        &self,
        wanted: &ImportSnapshot,
        repository: StorageRepository,
        storage: Name,
        name: SnapshotName,
        instance: Option<&Path>,
    ) -> Result<Imported> {
        let begun = Instant::now();
        let subject = wanted.source.to_string();
        let arrival = Arrival {
            to: &repository,
            subject: &subject,
            name: &name,
            instance,
            page_size: page_size(Shape::default()),
            origin: None,
            parent: &wanted.parent,
            allow_bad_pages: wanted.allow_bad_pages,
        };
        let (brought, format) = match &wanted.source {
            ImportSource::Server(params) => (self.import_server(params, arrival).await?, "server"),
            ImportSource::Path(path) => self.import_path(path, arrival).await?,
            ImportSource::Object(locator) => {
                let (storage, key) = self.0.storages().object_at(locator).await?;
                let range = StoredRange::open(storage, key)
                    .await
                    .map_err(|error| Error::storage(&*subject, error))?;
                (self.import_neon(range, arrival).await?, "neon file")
            }
        };
        let Brought { id, facts, report } = brought;
        Ok(Imported {
            id,
            name: name.clone(),
            storage,
            source: wanted.source.to_string(),
            format,
            kind: facts.kind.name(),
            parent: facts.parent,
            changed_pages: facts.cost.changed_pages,
            size: facts.cost.bytes,
            stored: report.stored_data.saturating_add(report.stored_metadata),
            files: facts.cost.files,
            bad_pages: facts.bad_pages.len(),
            elapsed: begun.elapsed().as_secs_f64(),
            found: Found {
                id,
                asked: name.to_string(),
                repository: Arc::new(repository),
            },
        })
    }

    async fn free_name(
        &self,
        wanted: &ImportSnapshot,
        repository: &StorageRepository,
    ) -> Result<SnapshotName> {
        let given = |text: &str| {
            SnapshotName::to_give(text)
                .map_err(|error| Error::repository(format!("snapshot {text}"), error))
        };
        if let Some(name) = &wanted.name {
            self.require_free(repository, name).await?;
            return Ok(name.clone());
        }
        if let Some(name) = wanted.source.suggested() {
            // What a file is called may be no name for a snapshot.
            if let Ok(name) = given(&name)
                && self.require_free(repository, &name).await.is_ok()
            {
                return Ok(name);
            }
        }
        let mut number = 0_u32;
        loop {
            number = number.saturating_add(1);
            let name = given(&format!("import{number}"))?;
            match self.require_free(repository, &name).await {
                Err(error) if error.kind() == ErrorKind::Exists => {}
                free => return free.map(|()| name),
            }
        }
    }

    /// That no snapshot there has this name.
    pub(crate) async fn require_free(
        &self,
        repository: &StorageRepository,
        name: &SnapshotName,
    ) -> Result<()> {
        match repository.repository.resolve_name(name).await {
            Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::repository(repository.label(), error)),
            Ok(id) => Err(Error::new(
                ErrorKind::Exists,
                format!("snapshot {name}"),
                format!("is in {} already, as {id}", repository.label()),
            )
            .hinted("choose another name, or destroy it first")),
        }
    }

    async fn import_path(
        &self,
        path: &Path,
        arrival: Arrival<'_>,
    ) -> Result<(Brought, &'static str)> {
        let path = std::path::absolute(path)
            .map_err(|error| Error::io(path, "cannot be made absolute", error))?;
        let subject = path.display().to_string();
        if let Err(error) = std::fs::symlink_metadata(&path)
            && error.kind() == std::io::ErrorKind::NotFound
        {
            return Err(
                Error::new(ErrorKind::NotFound, &*subject, "is not there").hinted(
                    "give the path of a data directory, a base backup or a .neon file; a snapshot that is stored already needs no import",
                ),
            );
        }
        let place = path.clone();
        let found = tokio::task::spawn_blocking(move || detect(&place))
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Failed, &*subject, "cannot be looked at").caused_by(error)
            })?
            .map_err(|error| Error::format(&*subject, error))?;
        let threads = self.0.options().threads;
        let arrival = Arrival {
            subject: &subject,
            ..arrival
        };
        let bring = |(shape, origin), feed: Feed| {
            let arrival = Arrival {
                page_size: page_size(shape),
                origin,
                ..arrival
            };
            bring(self.0, arrival, feed)
        };
        let refuse = |reason: String, hint: &'static str| {
            Err(Error::new(ErrorKind::Invalid, &*subject, reason).hinted(hint))
        };
        match found {
            Detected::DataDirectory { state, .. } => {
                let known = control(&path, &subject)?;
                require_stopped(&path, &subject, state)?;
                let quiet = Quiet::hold(&path, Duration::from_secs(60)).await;
                let quiet = quiet.map_err(|error| Error::server(&*subject, error))?;
                let brought = bring(
                    (Shape::of(&known), Some(Origin::of(&known))),
                    Box::new(move |bringing| data_directory(bringing, &path, state, threads)),
                );
                let brought = brought.await?;
                let still = quiet.check();
                still.map_err(|error| Error::server(&*subject, error))?;
                Ok((brought, "data directory"))
            }
            Detected::PlainBackup {
                incremental: true, ..
            } => refuse(
                "is an incremental backup".to_owned(),
                "combine it with those it builds on first (pg_combinebackup)",
            ),
            Detected::PlainBackup { .. } => {
                let known = control(&path, &subject)?;
                let shape = Shape::of(&known);
                let brought = bring(
                    (shape, Some(Origin::of(&known))),
                    Box::new(move |bringing| {
                        let mut source =
                            PlainBackup::open(&path).map_err(|error| bringing.format(error))?;
                        let total = source.size();
                        in_order(bringing, &mut source, shape, total)
                    }),
                );
                Ok((brought.await?, "base backup"))
            }
            Detected::TarSet { .. } => {
                let origin = origin_of_manifest(&path.join("backup_manifest"));
                let feed: Feed = Box::new(move |bringing| {
                    let mut source =
                        BaseBackup::in_directory(&path).map_err(|error| bringing.format(error))?;
                    let total = size_of_archives(bringing, &path)?;
                    in_order(bringing, &mut source, Shape::default(), total)
                });
                let brought = bring((Shape::default(), origin), feed).await?;
                Ok((brought, "base backup"))
            }
            Detected::Tar { .. } => {
                let feed: Feed = Box::new(move |bringing| {
                    let file = fs::File::open(&path)
                        .map_err(|error| Error::io(&path, "cannot be opened", error))?;
                    // However it is compressed: no less comes out of it.
                    bringing.require_room(file.metadata().map_or(0, |facts| facts.len()))?;
                    let mut source = BaseBackup::in_stream(file);
                    in_order(bringing, &mut source, Shape::default(), 0)
                });
                let brought = bring((Shape::default(), None), feed).await?;
                Ok((brought, "base backup"))
            }
            Detected::Neon => {
                let file = fs::File::open(&path)
                    .map_err(|error| Error::io(&path, "cannot be opened", error))?;
                Ok((self.import_neon(file, arrival).await?, "neon file"))
            }
            _ if is_repository(&path) => refuse(
                "is a repository of snapshots".to_owned(),
                "pull from it: neon snapshot pull --from PATH NAME",
            ),
            other => Err(Error::new(
                ErrorKind::Invalid,
                &*subject,
                format!("is {other}"),
            )),
        }
    }

    async fn import_neon(
        &self,
        reader: impl ReadRange + 'static,
        arrival: Arrival<'_>,
    ) -> Result<Brought> {
        let threads = self.0.options().threads;
        let subject = arrival.subject.to_owned();
        let (file, origin) = beside(move || {
            let failed = |error| Error::format(&*subject, error);
            let file = NeonFile::open(reader, None).map_err(failed)?;
            let control = SnapshotPath::new("global/pg_control").map_err(failed)?;
            // What it says is said again, and believed or not, when it comes.
            let control = file.read(&control, 0, CONTROL_FILE).ok();
            let control = control.and_then(|bytes| ControlFile::decode(&bytes).ok());
            Ok((file, control.as_ref().map(Origin::of)))
        })
        .await?;
        let arrival = Arrival { origin, ..arrival };
        bring(self.0, arrival, move |bringing| {
            neon_file(bringing, &file, threads)
        })
        .await
    }
}

/// Bytes of a control file.
const CONTROL_FILE: usize = 8192;

type Feed = Box<dyn FnOnce(&Bringing<'_>) -> Result<Facts> + Send>;

/// A source that is read once, in order; `total` bytes, or 0 if nobody knows.
fn in_order(
    bringing: &Bringing<'_>,
    source: &mut dyn Source,
    shape: Shape,
    total: u64,
) -> Result<Facts> {
    let sink = bringing.sink(total)?.summing().judging(shape);
    let mut order = Remembered {
        sink: Sequential::new(&sink).map_err(|error| bringing.format(error))?,
        end: End::default(),
    };
    let sent = source.send(&mut order);
    sent.map_err(|error| bringing.format(error))?;
    let end = order.end;
    // One archive alone has its manifest in it.
    if let Some(manifest) = sink.kept(b"backup_manifest") {
        check(bringing, &sink, manifest.as_slice(), &mut Vec::new())?;
    }
    facts(bringing, &sink, &end, None, None)
}

/// Bytes that come out of the archives in a folder, about, once it is known that there is room for them. 0 if nobody knows:
/// then no less comes than they are long.
fn size_of_archives(bringing: &Bringing<'_>, folder: &Path) -> Result<u64> {
    let failed = |error| Error::io(folder, "cannot be listed", error);
    let (mut total, mut packed) = (0_u64, false);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some((_, ending)) = name.to_str().and_then(|name| name.split_once(".tar")) else {
            continue;
        };
        packed |= !ending.is_empty();
        total = total.saturating_add(entry.metadata().map_err(failed)?.len());
    }
    bringing.require_room(total)?;
    Ok(if packed { 0 } else { total })
}

/// Keeps what the source said at the end.
struct Remembered<'a> {
    sink: Sequential<'a>,
    end: End,
}

impl neon_snapshot_format::Sink for Remembered<'_> {
    fn entry(&mut self, entry: &neon_snapshot_format::Entry) -> neon_snapshot_format::Result<()> {
        self.sink.entry(entry)
    }

    fn chunk(
        &mut self,
        chunk: &neon_snapshot_format::Chunk<'_>,
    ) -> neon_snapshot_format::Result<()> {
        self.sink.chunk(chunk)
    }

    fn end(&mut self, end: &End) -> neon_snapshot_format::Result<()> {
        self.end = end.clone();
        self.sink.end(end)
    }
}

fn neon_file(
    bringing: &Bringing<'_>,
    file: &NeonFile<impl ReadRange>,
    threads: usize,
) -> Result<Facts> {
    let mut total = 0_u64;
    for page in 0..file.entry_pages() {
        let entries = file.entries(page).map_err(|error| bringing.format(error))?;
        let sizes = entries.iter().map(neon_snapshot_format::Entry::size);
        total = sizes.fold(total, u64::saturating_add);
    }
    let sink = bringing.sink(total)?.judging(Shape::default());
    file.send_parallel(&sink, threads)
        .map_err(|error| bringing.format(error))?;
    let end = file.snapshot().clone();
    facts(bringing, &sink, &end, None, None)
}

fn data_directory(
    bringing: &Bringing<'_>,
    path: &Path,
    state: ClusterState,
    threads: usize,
) -> Result<Facts> {
    let fail = |error| bringing.format(error);
    let source = match state {
        ClusterState::ShutDown => PgData::cold(path),
        ClusterState::ShutDownInRecovery => PgData::recovery(path),
        _ => PgData::crashed(path),
    };
    // It judges its pages itself, and names them.
    let source = source.map_err(fail)?.allow_bad_pages(true);
    let control = source.control().clone();
    let sink = bringing.announced_sink(size_of(path))?;
    let copied = source.copy_parallel(&sink, threads).map_err(fail)?;
    let mut rest = Sequential::new(&sink).map_err(fail)?;
    let mut end = copied.finish(&mut rest, None).map_err(fail)?;
    let log = Position::of_stopped(source.kind(), &control, &path.join("pg_wal"))?;
    if source.kind() != SnapshotKind::Cold {
        end.wal = vec![TimelineRange {
            timeline: control.checkpoint.timeline,
            start: log.redo,
            end: log.stop,
        }];
        if control.checkpoint.timeline != log.history.timeline() {
            let crossed = log
                .history
                .path(control.checkpoint.timeline, log.redo, log.stop);
            end.wal = crossed.map_err(|error| {
                Error::new(ErrorKind::Damaged, bringing.subject, "has a log of no use")
                    .caused_by(error)
            })?;
        }
    }
    let mut facts = facts(bringing, &sink, &end, None, None)?;
    let failed = |error| Error::repository(bringing.subject, error);
    // With these the next snapshot of an instance made from it need not read everything.
    let known = LogEnd {
        redo: log.redo,
        stop: log.stop,
        history: &log.history,
        tail: log.tail(&control, &path.join("pg_wal")),
    };
    let lineage = LineageId::random().map_err(failed)?;
    facts
        .record_log(lineage, &control, &known)
        .map_err(failed)?;
    Ok(facts)
}

fn page_size(shape: Shape) -> u32 {
    // 32 KiB at most.
    u32::try_from(shape.page_size.bytes()).unwrap_or_default()
}

/// What a directory says of itself.
fn control(path: &Path, subject: &str) -> Result<ControlFile> {
    let place = path.join("global/pg_control");
    let bytes = fs::read(&place).map_err(|error| Error::io(&place, "cannot be read", error))?;
    ControlFile::decode(&bytes).map_err(|error| {
        Error::new(ErrorKind::Damaged, subject, "has a control file of no use").caused_by(error)
    })
}

/// Of which cluster a backup is, where its manifest says so (17 and later): the archives say it last.
fn origin_of_manifest(path: &Path) -> Option<Origin> {
    let mut file = fs::File::open(path).ok()?;
    let (mut reader, mut buffer) = (ManifestReader::new(), vec![0; 64 << 10]);
    let mut at = Lsn(0);
    loop {
        let count = io::Read::read(&mut file, &mut buffer).ok()?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            let system = reader.finish().ok()??;
            return Some(Origin { system, at });
        };
        let keep = |item| {
            if let ManifestItem::WalRange(range) = item {
                at = at.max(range.end);
            }
        };
        reader.push(bytes, keep).ok()?;
    }
}

/// The directory of a running server changes while it is read.
fn require_stopped(path: &Path, subject: &str, state: ClusterState) -> Result<()> {
    let Ok(content) = fs::read(path.join("postmaster.pid")) else {
        return Ok(());
    };
    let pid = PostmasterPid::parse(&content).ok().map(|pid| pid.pid);
    let alive = pid
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| {
            // Somebody else's process is alive too.
            !matches!(
                rustix::process::test_kill_process(pid),
                Err(rustix::io::Errno::SRCH)
            )
        });
    if alive || state.is_clean() {
        return Err(Error::new(
            ErrorKind::Busy,
            subject,
            match alive {
                true => "is the data directory of a running server",
                false => "has a postmaster.pid, so a server runs on it or is just starting",
            },
        )
        .hinted("adopt it (neon pg adopt PATH) and take a snapshot, stop it, or import it as basebackup://…"));
    }
    Ok(())
}
