//! A snapshot out of its repository: as a data directory, a base backup, or one file.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use neon_pagestore::CommitId;
use neon_pagestore::read::{Snapshot, SnapshotSource};
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_snapshot_format::basebackup::{BaseBackupWriter, TarOptions};
use neon_snapshot_format::pack::{NeonWriter, PackId, PackOptions};
use neon_snapshot_format::pgdata::{
    DirectoryOptions, DirectoryWriter, Flush, Ownership, TablespacePlaces,
};
use neon_snapshot_format::{Compression, Owner, ParallelSink, Sink, Source};
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::neon::Neon;
use crate::snapshots::blamed::Blamed;
use crate::snapshots::for_others::ForOthers;
use crate::snapshots::partial::Partial;
use crate::snapshots::room::{self, Place};
use crate::snapshots::watch::{Meter, Wanting, Watched, WatchedInOrder};
use crate::snapshots::{Found, Snapshots};

/// What to call what has no name.
const STREAM: &str = "the stream";

/// How a snapshot looks outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ExportFormat {
    /// A data directory that a server starts on.
    PgData,
    /// What `pg_basebackup -Ft` writes.
    BaseBackup,
    /// One `.neon` file.
    Neon,
}

impl ExportFormat {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PgData => "pgdata",
            Self::BaseBackup => "basebackup",
            Self::Neon => "neon",
        }
    }
}

impl FromStr for ExportFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "pgdata" => Self::PgData,
            "basebackup" => Self::BaseBackup,
            "neon" => Self::Neon,
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("format {text:?}"),
                    "is none of pgdata, basebackup, neon",
                ));
            }
        })
    }
}

/// How to export.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExportOptions {
    /// The format.
    pub format: ExportFormat,
    /// Of the archives of a base backup.
    pub compression: Compression,
    /// Where tablespaces of a data directory are put, each in a folder of its number; absent, in a folder beside it:
    /// `PATH.tablespaces`. An absolute path.
    pub tablespaces: Option<PathBuf>,
}

impl ExportOptions {
    /// In this format, archives not compressed.
    #[must_use]
    pub fn new(format: ExportFormat) -> Self {
        Self {
            format,
            compression: Compression::None,
            tablespaces: None,
        }
    }
}

/// A snapshot that was exported.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The snapshot's id.
    pub id: CommitId,
    /// Where it is; absent when it went into a stream.
    pub path: Option<PathBuf>,
    /// In which format.
    pub format: ExportFormat,
    /// Bytes that its files have.
    pub size: u64,
    /// Where its tablespaces are, if it has any outside of the data directory.
    pub tablespaces: Option<PathBuf>,
    /// How long it took, in seconds.
    pub elapsed: f64,
}

impl Snapshots<'_> {
    /// Writes a snapshot to a path where nothing is, or an empty folder. When this returns it is whole and durable.
    ///
    /// Dropped, stopped or failed: nothing is at the path that could be taken for it. What was written is removed, unless
    /// the process itself ended: then a data directory lacks `pg_control`, and anything else lies under another name that
    /// ends in `.partial`, until the next export to that path removes it.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when something is there; [`Environment`](ErrorKind::Environment) without the room or
    /// the rights; [`Damaged`](ErrorKind::Damaged) when the snapshot is.
    pub async fn export(&self, from: &Found, to: &Path, how: &ExportOptions) -> Result<Exported> {
        let begun = Instant::now();
        let to = std::path::absolute(to)
            .map_err(|error| Error::io(to, "cannot be made absolute", error))?;
        let snapshot = from.open().await?;
        require_free(&to, how.format)?;
        let tablespaces = tablespaces(&snapshot, &to, how).await?;
        if let Some(tablespaces) = &tablespaces {
            require_free(tablespaces, how.format)?;
        }
        require_room(&snapshot, &to, tablespaces.as_deref(), how, &from.subject()).await?;
        let own = ForOthers::of(&snapshot, &from.subject()).await?;
        let owner = self.owner_of_export(how.format)?;
        let mut operation = self.0.begin_operation("snapshot export", &from.asked)?;
        operation.detail("id", from.id.to_string());
        operation.detail("to", to.display().to_string());
        self.0.tell(Event::Step(format!(
            "Exporting snapshot {} to {}.",
            from.asked,
            to.display()
        )));
        let (id, size) = (from.id, snapshot.facts().cost.bytes);
        let job = Job {
            neon: self.0.clone(),
            snapshot,
            own,
            label: from.repository.label(),
            to: to.clone(),
            how: how.clone(),
            tablespaces: tablespaces.clone(),
            owner,
        };
        let written = self.beside(move |dropped| job.run(&dropped)).await;
        operation.end(written)?;
        Ok(Exported {
            id,
            path: Some(to),
            format: how.format,
            size,
            tablespaces,
            elapsed: begun.elapsed().as_secs_f64(),
        })
    }

    /// Writes a snapshot into a stream, such as a pipe: a `.neon` file, or a base backup as one archive.
    ///
    /// Dropped, stopped or failed: the stream has a part of it, which nobody takes for a whole one.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a data directory, and for a base backup of a cluster with tablespaces; as
    /// [`export`](Self::export).
    pub async fn export_stream(
        &self,
        from: &Found,
        to: impl Write + Send + 'static,
        how: &ExportOptions,
    ) -> Result<Exported> {
        let begun = Instant::now();
        let snapshot = from.open().await?;
        let invalid =
            |reason: &'static str| Err(Error::new(ErrorKind::Invalid, from.subject(), reason));
        match how.format {
            ExportFormat::PgData => return invalid("is no stream as a data directory"),
            ExportFormat::BaseBackup if has_tablespaces(&snapshot).await? => {
                return invalid("has tablespaces, which one archive cannot hold");
            }
            _ => {}
        }
        let size = snapshot.facts().cost.bytes;
        let own = ForOthers::of(&snapshot, &from.subject()).await?;
        let (how, neon) = (how.clone(), self.0.clone());
        let (format, label) = (how.format, from.repository.label());
        self.beside(move |dropped| {
            let options = TarOptions {
                compression: how.compression,
                ..TarOptions::default()
            };
            match how.format {
                ExportFormat::Neon => {
                    let mut to = neon_file(&neon, &snapshot, &label, (to, STREAM), &dropped)?;
                    to.flush().map_err(|error| {
                        Error::new(ErrorKind::Failed, "the stream", "cannot be written")
                            .caused_by(error)
                    })
                }
                _ => {
                    let mut writer = BaseBackupWriter::in_stream(to, options);
                    let mut writer = own.before_in_order(&mut writer);
                    send(&neon, &snapshot, &label, (&mut writer, STREAM), &dropped)
                }
            }
        })
        .await?;
        Ok(Exported {
            id: from.id,
            path: None,
            format,
            size,
            tablespaces: None,
            elapsed: begun.elapsed().as_secs_f64(),
        })
    }

    /// Runs in a thread beside the runtime, which is asked to stop when this future is dropped.
    pub(crate) async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<AtomicBool>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let stop = Wanting::default();
        let flag = stop.flag();
        let done = tokio::task::spawn_blocking(move || work(flag)).await;
        drop(stop);
        let done = done.map_err(|error| {
            Error::new(ErrorKind::Failed, "this command", "broke off").caused_by(error)
        })?;
        if done.is_err() {
            self.0.go_on()?;
        }
        done
    }

    /// As root, a data directory belongs to the user that servers run as.
    fn owner_of_export(&self, format: ExportFormat) -> Result<Option<Owner>> {
        if format != ExportFormat::PgData {
            return Ok(None);
        }
        Ok(self.0.os_user()?.map(|user| Owner {
            uid: user.uid(),
            gid: user.gid(),
        }))
    }
}

/// Where the tablespaces of an exported data directory are put, if it has any.
async fn tablespaces(
    snapshot: &Snapshot,
    to: &Path,
    how: &ExportOptions,
) -> Result<Option<PathBuf>> {
    if how.format != ExportFormat::PgData {
        return match &how.tablespaces {
            None => Ok(None),
            Some(place) => Err(Error::new(
                ErrorKind::Invalid,
                place.display().to_string(),
                format!(
                    "is a place for tablespaces, and {} has them inside",
                    how.format.name()
                ),
            )),
        };
    }
    if !has_tablespaces(snapshot).await? {
        return Ok(None);
    }
    Ok(Some(match &how.tablespaces {
        Some(place) => place.clone(),
        None => beside(to)?,
    }))
}

/// `PATH.tablespaces`, also for a path that ends with a slash.
fn beside(to: &Path) -> Result<PathBuf> {
    let Some(name) = to.file_name() else {
        return Err(Error::new(
            ErrorKind::Invalid,
            to.display().to_string(),
            "is no path of a folder to make",
        ));
    };
    let mut name = name.to_owned();
    name.push(".tablespaces");
    Ok(to.with_file_name(name))
}

/// Refuses before anything is written. How large a compressed file will be nobody knows; there a disk that fills is
/// an error when it happens.
async fn require_room(
    snapshot: &Snapshot,
    to: &Path,
    tablespaces: Option<&Path>,
    how: &ExportOptions,
    subject: &str,
) -> Result<()> {
    let known = how.format == ExportFormat::PgData
        || (how.format == ExportFormat::BaseBackup && how.compression == Compression::None);
    if !known {
        return Ok(());
    }
    let Some(tablespaces) = tablespaces else {
        return room::require(&[Place::new(to, snapshot.facts().cost.bytes)]);
    };
    let places: Vec<Place> = room::by_tablespace(snapshot, subject)
        .await?
        .into_iter()
        .map(|(space, bytes)| match space {
            None => Place::new(to, bytes),
            Some(_) => Place::new(tablespaces, bytes),
        })
        .collect();
    room::require(&places)
}

/// That nothing is where this is to be exported to.
pub(crate) fn require_free(to: &Path, format: ExportFormat) -> Result<()> {
    let facts = match fs::symlink_metadata(to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(to, "cannot be examined", error)),
        Ok(facts) => facts,
    };
    let empty = || fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_none());
    if format != ExportFormat::Neon && facts.is_dir() && empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Exists,
        to.display().to_string(),
        "is there already",
    )
    .hinted("choose another path; nothing is overwritten"))
}

async fn has_tablespaces(snapshot: &Snapshot) -> Result<bool> {
    let failed = |error| Error::repository("snapshot", error);
    let path = neon_snapshot_format::SnapshotPath::new("pg_tblspc")
        .map_err(|error| Error::format("pg_tblspc", error))?;
    let entries = snapshot.list(&path).await.map_err(failed)?;
    Ok(entries.iter().any(|(path, attributes)| {
        matches!(
            attributes.entry(path.clone()).kind,
            neon_snapshot_format::EntryKind::Tablespace { .. }
        )
    }))
}

struct Job {
    neon: Neon,
    snapshot: Snapshot,
    own: ForOthers,
    label: String,
    to: PathBuf,
    how: ExportOptions,
    tablespaces: Option<PathBuf>,
    owner: Option<Owner>,
}

impl Job {
    fn run(&self, dropped: &Arc<AtomicBool>) -> Result<()> {
        match self.how.format {
            ExportFormat::PgData => self.directory(dropped),
            ExportFormat::BaseBackup => self.archives(dropped),
            ExportFormat::Neon => self.file(dropped),
        }
    }

    fn directory(&self, dropped: &Arc<AtomicBool>) -> Result<()> {
        let there = |path: &Path| path.symlink_metadata().is_ok();
        let was_there = there(&self.to);
        let tablespaces = self.tablespaces.as_deref();
        let spaces_were_there = tablespaces.is_some_and(there);
        // Until it has the directory for itself, nothing in it is ours to remove.
        let writer = writer(&self.to, tablespaces, self.owner)?;
        let sink = self.own.before(&writer);
        let written = fill(&sink, &self.neon, &self.snapshot, &self.label, dropped);
        if written.is_err() {
            drop(writer);
            clear(&self.to, was_there);
            if let Some(tablespaces) = tablespaces {
                clear(tablespaces, spaces_were_there);
            }
        }
        written
    }

    fn archives(&self, dropped: &Arc<AtomicBool>) -> Result<()> {
        let partial = Partial::folder(&self.to)?;
        let partial = partial.path();
        let options = TarOptions {
            compression: self.how.compression,
            ..TarOptions::default()
        };
        let written = BaseBackupWriter::in_directory(partial, options)
            .map_err(|error| Error::format(self.to.display().to_string(), error))
            .and_then(|mut writer| {
                send(
                    &self.neon,
                    &self.snapshot,
                    &self.label,
                    (
                        &mut self.own.before_in_order(&mut writer),
                        &self.to.display().to_string(),
                    ),
                    dropped,
                )
            })
            .and_then(|()| {
                // An empty folder that is there gives way.
                fs::rename(partial, &self.to)
                    .map_err(|error| Error::io(&self.to, "cannot get its name", error))?;
                sync_parent(&self.to)
            });
        if written.is_err() {
            clear(partial, false);
        }
        written
    }

    fn file(&self, dropped: &Arc<AtomicBool>) -> Result<()> {
        let partial = Partial::file(&self.to)?;
        let partial = partial.path();
        let failed = |error| Error::io(&self.to, "cannot be written", error);
        let file = OpenOptions::new()
            .write(true)
            .open(partial)
            .map_err(failed)?;
        let target = self.to.display().to_string();
        let file = (file, target.as_str());
        let written = neon_file(&self.neon, &self.snapshot, &self.label, file, dropped)
            .and_then(|file: File| file.sync_all().map_err(failed))
            .and_then(|()| {
                name_new(partial, &self.to)?;
                sync_parent(&self.to)
            });
        drop(fs::remove_file(partial));
        written
    }
}

/// A new data directory. `owner` is for those who may give files away.
fn writer(to: &Path, tablespaces: Option<&Path>, owner: Option<Owner>) -> Result<DirectoryWriter> {
    let options = DirectoryOptions {
        ownership: owner.map_or(Ownership::Process, Ownership::Fixed),
        tablespaces: tablespaces.map_or(TablespacePlaces::Refuse, |path| {
            TablespacePlaces::Below(path.to_owned())
        }),
        flush: Flush::FileSystem,
        ..DirectoryOptions::default()
    };
    DirectoryWriter::create(to, options)
        .map_err(|error| Error::format(to.display().to_string(), error))
}

fn fill(
    writer: &dyn ParallelSink,
    neon: &Neon,
    snapshot: &Snapshot,
    label: &str,
    dropped: &Arc<AtomicBool>,
) -> Result<()> {
    let mut options = RestoreOptions::default();
    options.threads = neon.options().threads;
    let total = snapshot.facts().cost.bytes;
    let meter = Meter::of(neon, label, Arc::clone(dropped), total);
    let sink = Watched::new(writer, Arc::new(meter));
    let restored =
        restore(snapshot, &sink, &options).map_err(|error| Error::repository(label, error))?;
    for bad in &restored.bad_pages {
        neon.tell(Event::Warning(format!(
            "Page {} of {} is damaged: {}.",
            bad.block, bad.path, bad.reason
        )));
    }
    Ok(())
}

fn neon_file<W: Write + Send>(
    neon: &Neon,
    snapshot: &Snapshot,
    label: &str,
    (to, target): (W, &str),
    dropped: &Arc<AtomicBool>,
) -> Result<W> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| {
        Error::new(ErrorKind::Environment, "randomness", "cannot be had").caused_by(error)
    })?;
    let fail = |error| Error::format("the file", error);
    let writer = NeonWriter::new(to, PackOptions::new(PackId(id))).map_err(fail)?;
    let mut writer = writer.threads(neon.options().threads);
    send(neon, snapshot, label, (&mut writer, target), dropped)?;
    writer
        .into_inner()
        .ok_or_else(|| Error::new(ErrorKind::Failed, "the file", "was not finished"))
}

fn send(
    neon: &Neon,
    snapshot: &Snapshot,
    label: &str,
    (to, target): (&mut dyn Sink, &str),
    dropped: &Arc<AtomicBool>,
) -> Result<()> {
    let mut source =
        SnapshotSource::new(snapshot).map_err(|error| Error::repository(label, error))?;
    let total = snapshot.facts().cost.bytes;
    let meter = Meter::of(neon, label, Arc::clone(dropped), total);
    let mut to = Blamed::new(to);
    let mut sink = WatchedInOrder::new(&mut to, meter);
    let sent = source.send(&mut sink);
    sent.map_err(|error| match to.failed() {
        true => Error::unwritten(target, error),
        false => Error::format(label, error),
    })
}

/// Gives a file its name, unless somebody put another there meanwhile.
fn name_new(partial: &Path, to: &Path) -> Result<()> {
    use std::io::ErrorKind as Io;
    let taken = || {
        Error::new(
            ErrorKind::Exists,
            to.display().to_string(),
            "is there by now",
        )
    };
    let failed = |error| Error::io(to, "cannot get its name", error);
    match fs::hard_link(partial, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == Io::AlreadyExists => Err(taken()),
        // File systems without links.
        Err(error) if matches!(error.kind(), Io::Unsupported | Io::PermissionDenied) => {
            match to.symlink_metadata() {
                Ok(_) => Err(taken()),
                Err(_) => fs::rename(partial, to).map_err(failed),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

fn sync_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(parent, "cannot be synced", error))
}

/// Removes what we wrote; of a folder that was there, its content. What cannot be removed is no cluster either way.
fn clear(path: &Path, keep_folder: bool) {
    if !keep_folder {
        drop(fs::remove_dir_all(path));
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => drop(fs::remove_dir_all(&path)),
            _ => drop(fs::remove_file(&path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tablespaces_go_beside_the_directory_however_its_path_is_written() {
        for to in ["/x/copy", "/x/copy/", "/x/copy/."] {
            let place = beside(Path::new(to)).unwrap();
            assert_eq!(place, Path::new("/x/copy.tablespaces"), "{to}");
        }
        beside(Path::new("/")).unwrap_err();
    }
}
