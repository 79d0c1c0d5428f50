//! Snapshots of what comes from outside: running servers, base backups, data directories, `.neon` files.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use neon_pagestore::changes::LogEnd;
use neon_pagestore::{CommitId, Facts, LineageId, SnapshotName};
use neon_pg_layout::{ClusterState, ControlFile, PostmasterPid, TimelineRange};
use neon_pgctl::Quiet;
use neon_snapshot_format::basebackup::BaseBackup;
use neon_snapshot_format::pack::{NeonFile, ReadRange};
use neon_snapshot_format::pgdata::PgData;
use neon_snapshot_format::{Detected, End, Sequential, SnapshotKind, Source, detect};
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::repositories::StorageRepository;
use crate::snapshots::base_backup::check;
use crate::snapshots::bring::{Bringing, Brought, bring};
use crate::snapshots::imported::facts;
use crate::snapshots::location::{ImportSource, is_repository};
use crate::snapshots::log_end::Position;
use crate::snapshots::plain_backup::PlainBackup;
use crate::snapshots::ranges::StoredRange;
use crate::snapshots::{Found, Snapshots};
use crate::storages::LOCAL;

/// Bytes of a page of every server that was not built otherwise.
const PAGE: u32 = 8192;

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
    /// refused, and so is one that does not agree with its manifest.
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
        let repository = self.0.storages().repository(&storage).await?;
        let name = self.free_name(wanted, &repository).await?;
        let mut operation = self
            .0
            .begin_operation("snapshot import", &name.to_string())?;
        operation.detail("storage", storage.to_string());
        operation.detail("source", wanted.source.to_string());
        let imported = self.import_into(wanted, repository, storage, name).await;
        if let Ok(imported) = &imported {
            operation.detail("id", imported.id.to_string());
        }
        operation.end(imported)
    }

    async fn import_into(
        &self,
        wanted: &ImportSnapshot,
        repository: StorageRepository,
        storage: Name,
        name: SnapshotName,
    ) -> Result<Imported> {
        let begun = Instant::now();
        let (brought, format) = match &wanted.source {
            ImportSource::Server(params) => {
                let subject = wanted.source.to_string();
                let allow = wanted.allow_bad_pages;
                let brought = self.import_server(params, &subject, &repository, &name, allow);
                (brought.await?, "server")
            }
            ImportSource::Path(path) => {
                self.import_path(path, &repository, &name, wanted.allow_bad_pages)
                    .await?
            }
            ImportSource::Object(locator) => {
                let (storage, key) = self.0.storages().object_at(locator).await?;
                let subject = locator.to_string();
                let range = StoredRange::open(storage, key)
                    .await
                    .map_err(|error| Error::storage(&*subject, error))?;
                let brought = self.import_neon(range, &subject, &repository, &name);
                (brought.await?, "neon file")
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
            let name = given(&name)?;
            if self.require_free(repository, &name).await.is_ok() {
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
        repository: &StorageRepository,
        name: &SnapshotName,
        allow_bad_pages: bool,
    ) -> Result<(Brought, &'static str)> {
        let path = std::path::absolute(path)
            .map_err(|error| Error::io(path, "cannot be made absolute", error))?;
        let subject = path.display().to_string();
        let place = path.clone();
        let found = tokio::task::spawn_blocking(move || detect(&place))
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Failed, &*subject, "cannot be looked at").caused_by(error)
            })?
            .map_err(|error| Error::format(&*subject, error))?;
        let threads = self.0.options().threads;
        let bring = |page, feed: Feed| bring(self.0, repository, &subject, name, page, feed);
        let refuse = |reason: String, hint: &'static str| {
            Err(Error::new(ErrorKind::Invalid, &*subject, reason).hinted(hint))
        };
        match found {
            Detected::DataDirectory { state, .. } => {
                let page = page_size(&path, &subject)?;
                require_stopped(&path, &subject, state)?;
                let quiet = Quiet::hold(&path, Duration::from_secs(60)).await;
                let quiet = quiet.map_err(|error| Error::server(&*subject, error))?;
                let brought = bring(
                    page,
                    Box::new(move |bringing| {
                        data_directory(bringing, &path, state, allow_bad_pages, threads)
                    }),
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
                let page = page_size(&path, &subject)?;
                let brought = bring(
                    page,
                    Box::new(move |bringing| {
                        let mut source =
                            PlainBackup::open(&path).map_err(|error| bringing.format(error))?;
                        in_order(bringing, &mut source)
                    }),
                );
                Ok((brought.await?, "base backup"))
            }
            Detected::TarSet { .. } => {
                let feed: Feed = Box::new(move |bringing| {
                    let mut source =
                        BaseBackup::in_directory(&path).map_err(|error| bringing.format(error))?;
                    in_order(bringing, &mut source)
                });
                Ok((bring(PAGE, feed).await?, "base backup"))
            }
            Detected::Tar { .. } => {
                let feed: Feed = Box::new(move |bringing| {
                    let file = fs::File::open(&path)
                        .map_err(|error| Error::io(&path, "cannot be opened", error))?;
                    in_order(bringing, &mut BaseBackup::in_stream(file))
                });
                Ok((bring(PAGE, feed).await?, "base backup"))
            }
            Detected::Neon => {
                let file = fs::File::open(&path)
                    .map_err(|error| Error::io(&path, "cannot be opened", error))?;
                let brought = self.import_neon(file, &subject, repository, name).await?;
                Ok((brought, "neon file"))
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
        subject: &str,
        repository: &StorageRepository,
        name: &SnapshotName,
    ) -> Result<Brought> {
        let threads = self.0.options().threads;
        bring(self.0, repository, subject, name, PAGE, move |bringing| {
            neon_file(bringing, reader, threads)
        })
        .await
    }
}

type Feed = Box<dyn FnOnce(&Bringing<'_>) -> Result<Facts> + Send>;

/// A source that is read once, in order.
fn in_order(bringing: &Bringing<'_>, source: &mut dyn Source) -> Result<Facts> {
    let sink = bringing.sink(0).summing();
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
    facts(bringing.subject, &sink, &end, None, None)
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

fn neon_file(bringing: &Bringing<'_>, reader: impl ReadRange, threads: usize) -> Result<Facts> {
    let file = NeonFile::open(reader, None).map_err(|error| bringing.format(error))?;
    let mut total = 0_u64;
    for page in 0..file.entry_pages() {
        let entries = file.entries(page).map_err(|error| bringing.format(error))?;
        let sizes = entries.iter().map(neon_snapshot_format::Entry::size);
        total = sizes.fold(total, u64::saturating_add);
    }
    let sink = bringing.sink(total);
    file.send_parallel(&sink, threads)
        .map_err(|error| bringing.format(error))?;
    let end = file.snapshot().clone();
    facts(bringing.subject, &sink, &end, None, None)
}

fn data_directory(
    bringing: &Bringing<'_>,
    path: &Path,
    state: ClusterState,
    allow_bad_pages: bool,
    threads: usize,
) -> Result<Facts> {
    let fail = |error| bringing.format(error);
    let source = match state {
        ClusterState::ShutDown => PgData::cold(path),
        ClusterState::ShutDownInRecovery => PgData::recovery(path),
        _ => PgData::crashed(path),
    };
    let source = source.map_err(fail)?.allow_bad_pages(allow_bad_pages);
    let control = source.control().clone();
    let sink = bringing.sink(0);
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
    let mut facts = facts(bringing.subject, &sink, &end, None, None)?;
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

fn page_size(path: &Path, subject: &str) -> Result<u32> {
    let place = path.join("global/pg_control");
    let bytes = fs::read(&place).map_err(|error| Error::io(&place, "cannot be read", error))?;
    let control = ControlFile::decode(&bytes).map_err(|error| {
        Error::new(ErrorKind::Damaged, subject, "has a control file of no use").caused_by(error)
    })?;
    Ok(u32::try_from(control.build.block_size.bytes()).unwrap_or(PAGE))
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
