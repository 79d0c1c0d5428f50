//! A base backup as a data directory, with the WAL it needs streamed beside it.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use neon_pg_layout::{Lsn, TimelineId};
use neon_pgwire::{
    BackupEnd, BackupEvent, BaseBackup, BaseBackupOptions, Client, Config, Limits, Positions,
    Replication, SlotName, StreamEnd, StreamOptions, WalEvent,
};
use tokio::sync::{mpsc, watch};

use crate::unpack::{Mapping, Modes, Unpacker, Written, create_empty, mapped};

/// No server sends messages of a tenth of this. With as many as may wait for the writer it is the
/// memory that a server can make us use.
const LARGEST_MESSAGE: usize = 1 << 20;
/// How many messages may wait for the writer.
const WAITING: usize = 64;

/// Why a backup failed.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Where the WAL of a backup comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wal {
    /// Over a connection of its own, held by this slot, or by a temporary one.
    Stream(Option<SlotName>),
    /// With the base archive, at the end.
    Fetch,
    /// Not at all.
    None,
}

/// What to fetch, and where to.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The new data directory.
    pub target: PathBuf,
    /// What the server is asked for.
    pub options: BaseBackupOptions,
    /// Where WAL comes from.
    pub wal: Wal,
    /// Where tablespaces go.
    pub mappings: Vec<Mapping>,
    /// Where `pg_wal` shall be, if not in the data directory.
    pub wal_directory: Option<PathBuf>,
    /// Whether to wait until everything is durable.
    pub sync: bool,
    /// The manifest of an earlier backup to which this one is the increment.
    pub earlier_manifest: Option<PathBuf>,
}

/// Fetches a backup. What is there when this fails is not a backup: it has no `backup_manifest`.
///
/// Dropping the future closes the connections; what was written stays.
///
/// # Errors
/// What the server says, and what the file system says.
pub async fn fetch(config: &Config, plan: Plan) -> Result<BackupEnd, Failure> {
    let limits = Limits::default().with_message(LARGEST_MESSAGE);
    let config = config.clone().with_replication(Replication::Physical);
    let config = config.with_limits(limits);
    let mut client = Client::connect(&config).await?;
    let modes = Modes::of(&client.show("data_directory_mode").await?);
    let segment = client.wal_segment_size().await?;
    let identity = client.identify_system().await?;
    if let Some(path) = &plan.earlier_manifest {
        let content = Bytes::from(fs::read(path)?);
        client
            .upload_manifest(futures_util::stream::iter([Ok(content)]))
            .await?;
    }
    let mut written = Written::default();
    create_empty(&plan.target, modes, &mut written)?;
    let pg_wal = plan.target.join("pg_wal");
    if let Some(elsewhere) = &plan.wal_directory {
        create_empty(elsewhere, modes, &mut written)?;
        std::os::unix::fs::symlink(elsewhere, &pg_wal)?;
    }
    let mut backup = client.base_backup(&plan.options).await?;
    for tablespace in backup.tablespaces() {
        if let Some(location) = tablespace.location.as_deref().map(Path::new)
            && location.is_absolute()
        {
            create_empty(&mapped(&plan.mappings, location), modes, &mut written)?;
        }
    }
    // The slot is made before anything is copied, so nothing can be missing later.
    let (stop_known, stop) = watch::channel(None);
    let mut streaming = match &plan.wal {
        Wal::Stream(slot) => {
            if plan.wal_directory.is_none() {
                modes.create_dir(&pg_wal)?;
            }
            modes.create_dir(&pg_wal.join(ARCHIVE_STATUS))?;
            let range = Range {
                from: backup.start().start_of(segment),
                timeline: backup.timeline(),
                segment,
                system: identity.system_identifier,
                slot: slot.clone(),
                modes,
                sync: plan.sync,
            };
            let (config, directory) = (config.clone(), pg_wal.clone());
            Some(tokio::spawn(async move {
                receive_wal(&config, range, &directory, stop).await
            }))
        }
        Wal::Fetch | Wal::None => None,
    };
    let (target, mappings) = (plan.target.clone(), plan.mappings.clone());
    let (pieces, received) = mpsc::channel::<BackupEvent>(WAITING);
    let writer =
        tokio::task::spawn_blocking(move || write(&target, &mappings, modes, written, received));
    let sent = match &mut streaming {
        // Without its WAL the rest of the backup is worth nothing.
        Some(streaming) => tokio::select! {
            sent = pass_on(&mut backup, pieces) => sent,
            ended = streaming => match ended? {
                Err(error) => Err(error),
                Ok(_) => Err("the stream of WAL ended before the backup was complete".into()),
            },
        },
        None => pass_on(&mut backup, pieces).await,
    };
    let unpacked = writer.await?;
    sent?;
    let (mut written, with_manifest) = unpacked?;
    let (end, client) = backup.finish()?;
    if let Some(streaming) = streaming {
        // A stream that has failed listens no more; it says why below.
        let _ = stop_known.send(Some(end.stop));
        for path in streaming.await?? {
            written.file(path);
        }
        written.directory(pg_wal.join(ARCHIVE_STATUS));
        written.directory(pg_wal);
    }
    client.close().await;
    let (target, sync) = (plan.target, plan.sync);
    tokio::task::spawn_blocking(move || finish(&target, &written, with_manifest, sync)).await??;
    Ok(end)
}

/// Hands events to the writer, which takes them as fast as it can write.
async fn pass_on(
    backup: &mut BaseBackup,
    pieces: mpsc::Sender<BackupEvent>,
) -> Result<(), Failure> {
    while let Some(event) = backup.next().await? {
        // A writer that has failed has hung up, and says why itself.
        if pieces.send(event).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Unpacks archives as they come. Gives back what was written, and whether there is a manifest: under
/// another name until everything else is durable.
fn write(
    target: &Path,
    mappings: &[Mapping],
    modes: Modes,
    mut written: Written,
    mut received: mpsc::Receiver<BackupEvent>,
) -> io::Result<(Written, bool)> {
    let mut next = received.blocking_recv();
    let mut manifest = None;
    while let Some(event) = next {
        match event {
            BackupEvent::Archive(archive) => {
                let root = match archive.location.as_deref().map(Path::new) {
                    None => target.to_owned(),
                    Some(location) if location.is_absolute() => mapped(mappings, location),
                    // A tablespace within the data directory.
                    Some(_) => {
                        let oid = archive.oid.map(|oid| oid.to_string()).unwrap_or_default();
                        let inside = target.join("pg_tblspc").join(oid);
                        modes.create_dir(&target.join("pg_tblspc"))?;
                        modes.create_dir(&inside)?;
                        written.directory(inside.clone());
                        inside
                    }
                };
                let mut unpacker = Unpacker::new(root, mappings, &mut written);
                next = loop {
                    match received.blocking_recv() {
                        Some(BackupEvent::Data(bytes)) => unpacker.push(&bytes)?,
                        Some(BackupEvent::Progress(_)) => {}
                        other => break other,
                    }
                };
                unpacker.finish()?;
                continue;
            }
            BackupEvent::Manifest => {
                let path = target.join(UNFINISHED_MANIFEST);
                manifest = Some(BufWriter::new(modes.create_file(&path)?));
                written.file(path);
            }
            BackupEvent::Data(bytes) => {
                if let Some(manifest) = &mut manifest {
                    manifest.write_all(&bytes)?;
                }
            }
            _ => {}
        }
        next = received.blocking_recv();
    }
    if let Some(manifest) = &mut manifest {
        manifest.flush()?;
    }
    Ok((written, manifest.is_some()))
}

/// Makes everything durable, and only then gives the manifest its name.
fn finish(target: &Path, written: &Written, with_manifest: bool, sync: bool) -> io::Result<()> {
    if sync {
        written.sync()?;
    }
    if !with_manifest {
        return Ok(());
    }
    fs::rename(
        target.join(UNFINISHED_MANIFEST),
        target.join("backup_manifest"),
    )?;
    if sync {
        File::open(target)?.sync_all()?;
    }
    Ok(())
}

/// The manifest until it is complete and everything it names is durable.
const UNFINISHED_MANIFEST: &str = "backup_manifest.tmp";
/// Where a server notes which segments need no archiving any more.
const ARCHIVE_STATUS: &str = "archive_status";

/// The WAL that belongs to a backup.
#[derive(Debug, Clone)]
pub struct Range {
    /// The beginning of the segment in which the backup starts.
    pub from: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The size of a segment.
    pub segment: u64,
    /// The cluster that it must come from.
    pub system: u64,
    /// The slot that holds it; without one, a temporary one.
    pub slot: Option<SlotName>,
    /// Who may read it.
    pub modes: Modes,
    /// Whether what is reported to a slot of the caller's must be durable. What is not is reported
    /// nevertheless: nobody wanted it to be.
    pub sync: bool,
}

/// Streams WAL into whole segments until the stop position is known and reached, and marks those that
/// are complete as archived in the directory `archive_status`, which exists: the server that is
/// started on the backup must not archive them once more. Gives the files.
///
/// Dropping the future closes the connection; what was written stays.
///
/// # Errors
/// What the server says, and what the file system says.
pub async fn receive_wal(
    config: &Config,
    range: Range,
    directory: &Path,
    mut stop: watch::Receiver<Option<Lsn>>,
) -> Result<Vec<PathBuf>, Failure> {
    let mut client = Client::connect(config).await?;
    if client.identify_system().await?.system_identifier != range.system {
        return Err("the two sessions are with different clusters".into());
    }
    let modes = range.modes;
    let keeps_slot = range.slot.is_some();
    let slot = match range.slot {
        Some(slot) => slot,
        None => {
            let name = format!(
                "take_base_backup_{}",
                client.process_id().unwrap_or_default()
            );
            let slot: SlotName = name.parse()?;
            client.create_physical_slot(&slot, true, true).await?;
            slot
        }
    };
    let mut files = Vec::new();
    if range.timeline != TimelineId::FIRST {
        let history = client.timeline_history(range.timeline).await?;
        let path = directory.join(&history.file_name);
        modes.create_file(&path)?.write_all(&history.content)?;
        files.push(path);
        files.push(archived(directory, &history.file_name, modes)?);
    }
    let mut options = StreamOptions::new(range.from, range.timeline);
    options.slot = Some(slot);
    let mut stream = client.start_replication(options).await?;
    let mut open: Option<File> = None;
    let mut flushed = Lsn::INVALID;
    loop {
        let position = stream.position();
        if stop
            .borrow_and_update()
            .is_some_and(|stop| position >= stop)
        {
            break;
        }
        let event = tokio::select! {
            event = stream.next() => event?,
            changed = stop.changed() => {
                changed?;
                continue;
            }
        };
        match event {
            Some(WalEvent::Data { start, mut data }) => {
                let mut at = start;
                while !data.is_empty() {
                    let left = range.segment - at.offset_in(range.segment);
                    let piece =
                        data.split_to(usize::try_from(left).unwrap_or(usize::MAX).min(data.len()));
                    if at.offset_in(range.segment) == 0 {
                        let path = directory.join(segment_name(range.timeline, at, range.segment));
                        let file = modes.create_file(&path)?;
                        // What is not received stays zeros.
                        file.set_len(range.segment)?;
                        files.push(path);
                        open = Some(file);
                    }
                    open.as_mut()
                        .ok_or("WAL before the beginning of a segment")?
                        .write_all(&piece)?;
                    at = Lsn(at.0 + u64::try_from(piece.len())?);
                    if at.offset_in(range.segment) == 0 {
                        let last = Lsn(at.0 - range.segment);
                        let name = segment_name(range.timeline, last, range.segment);
                        files.push(archived(directory, &name, modes)?);
                        if let Some(file) = open.take().filter(|_| keeps_slot) {
                            flushed = make_durable(file, directory, range.sync, at).await?;
                        }
                    }
                }
                // Written is not durable. A slot of our own goes when we do, so it is told nothing.
                stream.set_positions(Positions {
                    write: at,
                    flush: flushed,
                    apply: Lsn::INVALID,
                });
            }
            Some(_) => {}
            None => {
                return Err(
                    "the server ended the stream of WAL before the backup was complete".into(),
                );
            }
        }
    }
    if keeps_slot {
        let at = stream.position();
        if let Some(file) = open.take() {
            flushed = make_durable(file, directory, range.sync, at).await?;
        }
        // The slot outlives the backup: it keeps what comes after.
        stream.set_positions(Positions {
            write: at,
            flush: flushed,
            apply: Lsn::INVALID,
        });
    }
    if let StreamEnd::Stopped(client) = stream.finish().await? {
        client.close().await;
    }
    Ok(files)
}

/// Notes that a file needs no archiving.
fn archived(directory: &Path, name: &str, modes: Modes) -> io::Result<PathBuf> {
    let path = directory.join(ARCHIVE_STATUS).join(format!("{name}.done"));
    modes.create_file(&path)?;
    Ok(path)
}

/// Makes a segment durable, if that is wanted, and gives the position up to which it was written.
async fn make_durable(file: File, directory: &Path, sync: bool, at: Lsn) -> io::Result<Lsn> {
    if sync {
        let directory = directory.to_owned();
        let sync = move || {
            file.sync_all()
                .and_then(|()| File::open(directory)?.sync_all())
        };
        tokio::task::spawn_blocking(sync).await??;
    }
    Ok(at)
}

/// The name of the segment that begins here.
pub fn segment_name(timeline: TimelineId, start: Lsn, size: u64) -> String {
    let (number, per_log) = (start.0 / size.max(1), (1_u64 << 32) / size.max(1));
    format!(
        "{:08X}{:08X}{:08X}",
        timeline.get(),
        number / per_log.max(1),
        number % per_log.max(1)
    )
}
