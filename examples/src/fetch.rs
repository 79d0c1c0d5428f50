//! A base backup as a data directory, with the WAL it needs streamed beside it.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use neon_pg_layout::{Lsn, TimelineId};
use neon_pgwire::{
    BackupEnd, BackupEvent, BaseBackup, BaseBackupOptions, Client, Config, Positions, Replication,
    SlotName, StreamEnd, StreamOptions, WalEvent,
};
use tokio::sync::{mpsc, watch};

use crate::unpack::{Mapping, Unpacker, Written, create_empty, mapped};

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
    let config = config.clone().with_replication(Replication::Physical);
    let mut client = Client::connect(&config).await?;
    let segment = client.wal_segment_size().await?;
    let identity = client.identify_system().await?;
    if let Some(path) = &plan.earlier_manifest {
        let content = Bytes::from(fs::read(path)?);
        client
            .upload_manifest(futures_util::stream::iter([Ok(content)]))
            .await?;
    }
    let mut written = Written::default();
    create_empty(&plan.target, &mut written)?;
    let pg_wal = plan.target.join("pg_wal");
    if let Some(elsewhere) = &plan.wal_directory {
        create_empty(elsewhere, &mut written)?;
        std::os::unix::fs::symlink(elsewhere, &pg_wal)?;
    }
    let mut backup = client.base_backup(&plan.options).await?;
    for tablespace in backup.tablespaces() {
        if let Some(location) = tablespace.location.as_deref().map(Path::new)
            && location.is_absolute()
        {
            create_empty(&mapped(&plan.mappings, location), &mut written)?;
        }
    }
    // The slot is made before anything is copied, so nothing can be missing later.
    let (stop_known, stop) = watch::channel(None);
    let mut streaming = match &plan.wal {
        Wal::Stream(slot) => {
            fs::create_dir_all(pg_wal.join("archive_status"))?;
            let range = Range {
                from: backup.start().start_of(segment),
                timeline: backup.timeline(),
                segment,
                system: identity.system_identifier,
                slot: slot.clone(),
            };
            let (config, directory) = (config.clone(), pg_wal.clone());
            Some(tokio::spawn(async move {
                receive_wal(&config, range, &directory, stop).await
            }))
        }
        Wal::Fetch | Wal::None => None,
    };
    let (target, mappings) = (plan.target.clone(), plan.mappings.clone());
    let (pieces, received) = mpsc::channel::<BackupEvent>(64);
    let writer = tokio::task::spawn_blocking(move || write(&target, &mappings, written, received));
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
    let (mut written, manifest) = unpacked?;
    let (end, client) = backup.finish()?;
    if let Some(streaming) = streaming {
        // A stream that has failed listens no more; it says why below.
        let _ = stop_known.send(Some(end.stop));
        for path in streaming.await?? {
            written.file(path);
        }
        written.directory(pg_wal.clone());
    }
    client.close().await;
    let (target, sync) = (plan.target, plan.sync);
    tokio::task::spawn_blocking(move || finish(&target, &written, manifest.as_deref(), sync))
        .await??;
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

/// Unpacks archives as they come. Gives back what was written, and the manifest, which is small enough
/// to be kept until everything else is durable.
fn write(
    target: &Path,
    mappings: &[Mapping],
    mut written: Written,
    mut received: mpsc::Receiver<BackupEvent>,
) -> io::Result<(Written, Option<Vec<u8>>)> {
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
                        fs::create_dir_all(&inside)?;
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
            BackupEvent::Manifest => manifest = Some(Vec::new()),
            BackupEvent::Data(bytes) => {
                if let Some(manifest) = &mut manifest {
                    manifest.extend_from_slice(&bytes);
                }
            }
            _ => {}
        }
        next = received.blocking_recv();
    }
    Ok((written, manifest))
}

/// Makes everything durable, and only then puts the manifest in its place.
fn finish(target: &Path, written: &Written, manifest: Option<&[u8]>, sync: bool) -> io::Result<()> {
    if sync {
        written.sync()?;
    }
    let Some(manifest) = manifest else {
        return Ok(());
    };
    let temporary = target.join("backup_manifest.tmp");
    let mut file = File::create_new(&temporary)?;
    fs::set_permissions(
        &temporary,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )?;
    file.write_all(manifest)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&temporary, target.join("backup_manifest"))?;
    if sync {
        File::open(target)?.sync_all()?;
    }
    Ok(())
}

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
}

/// Streams WAL into whole segments until the stop position is known and reached. Gives the files.
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
        fs::write(&path, &history.content)?;
        files.push(path);
    }
    let mut options = StreamOptions::new(range.from, range.timeline);
    options.slot = Some(slot);
    let mut stream = client.start_replication(options).await?;
    let mut open: Option<File> = None;
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
                        let mut options = fs::OpenOptions::new();
                        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
                        let file = options.write(true).create_new(true).open(&path)?;
                        // What is not received stays zeros.
                        file.set_len(range.segment)?;
                        files.push(path);
                        open = Some(file);
                    }
                    open.as_mut()
                        .ok_or("WAL before the beginning of a segment")?
                        .write_all(&piece)?;
                    at = Lsn(at.0 + u64::try_from(piece.len())?);
                }
                // Written is not durable: the slot goes when we do, so nothing is reported as flushed.
                stream.set_positions(Positions {
                    write: at,
                    ..Positions::default()
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
    if let StreamEnd::Stopped(client) = stream.finish().await? {
        client.close().await;
    }
    Ok(files)
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
