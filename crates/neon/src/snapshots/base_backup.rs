//! A running server as a source: BASE_BACKUP over the replication protocol, unpacked as it comes and written into the
//! repository without touching a disk on the way.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use neon_pagestore::Facts;
use neon_pg_layout::{BlockSize, ManifestItem, ManifestReader, SystemIdentifier, TimelineRange};
use neon_pgwire::{
    BackupEvent, BaseBackupOptions, Checkpoint, Client, Config, ErrorKind as Wire, ManifestOption,
    Params, Replication, SlotName,
};
use neon_snapshot_format::basebackup::{Archive, ArchiveKind, BaseBackup};
use neon_snapshot_format::{End, Sequential, Source};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::home::random_id;
use crate::operation::seconds;
use crate::snapshots::Snapshots;
use crate::snapshots::bring::{Arrival, Bringing, Brought, Origin, bring};
use crate::snapshots::imported::{Stopped, facts};
use crate::snapshots::inspection::Inspection;
use crate::snapshots::judge::Shape;

/// Pieces that wait between the connection and the writer. A server sends pieces of 32 KiB or so.
const WAITING: usize = 64;

/// One archive, or the manifest, as the bytes of it come.
struct Incoming {
    pieces: mpsc::Receiver<Piece>,
    now: Bytes,
    whole: bool,
}

enum Piece {
    Data(Bytes),
    /// All of it came. A channel that closes without this broke off.
    End,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() && !self.whole {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.now = bytes,
                Some(Piece::End) => self.whole = true,
                None => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the server stopped sending",
                    ));
                }
            }
        }
        let length = self.now.len().min(buffer.len());
        if let Some(buffer) = buffer.get_mut(..length) {
            self.now.copy_to_slice(buffer);
        }
        Ok(length)
    }
}

fn incoming() -> (mpsc::Sender<Piece>, Incoming) {
    let (sender, pieces) = mpsc::channel(WAITING);
    let incoming = Incoming {
        pieces,
        now: Bytes::new(),
        whole: false,
    };
    (sender, incoming)
}

impl Snapshots<'_> {
    /// Connects for replication; asks for a password when the server wants one and none is known.
    pub(crate) async fn connect(&self, params: &Params, subject: &str) -> Result<Client> {
        let options = self.0.options();
        let failed = |error| Error::wire(subject, error);
        let config = Config::resolve(params, &options.connections).map_err(failed)?;
        let config = config.with_replication(Replication::Physical);
        let refused = match Client::connect(&config).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let wanted = refused.kind() == Wire::Authentication || refused.sqlstate() == Some("28P01");
        let Some(ask) = options.ask_password.as_ref().filter(|_| wanted) else {
            let hint = match wanted {
                true => "put the password into ~/.pgpass or PGPASSWORD",
                false if refused.sqlstate() == Some("28000") => {
                    "pg_hba.conf of that server must let a role with REPLICATION in, for database `replication`"
                }
                false => return Err(failed(refused)),
            };
            return Err(failed(refused).hinted(hint));
        };
        let whose = format!("{}@{}", config.user(), config.hosts().join(","));
        let Some(password) = ask.ask(&whose).await else {
            return Err(failed(refused));
        };
        let password = neon_pgwire::Secret::new(password.expose());
        Client::connect(&config.with_password(password))
            .await
            .map_err(failed)
    }

    pub(crate) async fn import_server(
        &self,
        params: &Params,
        arrival: Arrival<'_>,
    ) -> Result<Brought> {
        let subject = arrival.subject;
        let failed = |error| Error::wire(subject, error);
        let mut client = self.connect(params, subject).await?;
        client.major().map_err(failed)?;
        self.keep_log(&mut client, subject).await?;
        let shape = shape(&mut client).await.map_err(failed)?;
        // Only to store less: who does not say which cluster it is has all of it stored.
        let origin = match client.identify_system().await {
            Ok(identity) => SystemIdentifier::new(identity.system_identifier)
                .ok()
                .map(|system| Origin {
                    system,
                    at: identity.position,
                }),
            Err(error) if error.kind() == neon_pgwire::ErrorKind::Server => None,
            Err(error) => return Err(failed(error)),
        };
        let mut options = BaseBackupOptions::default();
        options.label = format!("neon import {}", arrival.name);
        options.checkpoint = Checkpoint::Fast;
        options.wal = true;
        options.wait = false;
        options.progress = true;
        options.manifest = ManifestOption::Yes;
        // Links would come twice: once announced, once in the archive.
        options.tablespace_map = true;
        self.0.tell(Event::Step(format!("Copying {subject}.")));
        let mut backup = client.base_backup(&options).await.map_err(failed)?;
        let total = backup
            .tablespaces()
            .iter()
            .filter_map(|tablespace| tablespace.size)
            .fold(0_u64, u64::saturating_add)
            .saturating_mul(1024);

        let (mut senders, mut archives) = (Vec::new(), Vec::new());
        for tablespace in backup.tablespaces() {
            let (sender, stream) = incoming();
            senders.push(sender);
            let kind = match tablespace.oid {
                None => ArchiveKind::Base,
                Some(oid) => ArchiveKind::Tablespace {
                    oid,
                    location: tablespace.location.clone().map(String::into_bytes),
                },
            };
            archives.push((kind, stream));
        }
        let (manifest, manifest_stream) = incoming();
        senders.push(manifest);
        let (stopped, stop) = oneshot::channel();
        let taken = i64::try_from(seconds(self.0.now())).ok();
        let read = Reading {
            archives,
            manifest: manifest_stream,
            stop,
            taken,
            total,
            shape,
        };
        let arrival = Arrival {
            page_size: u32::try_from(shape.page_size.bytes()).unwrap_or_default(),
            origin,
            ..arrival
        };
        let writing = bring(self.0, arrival, move |bringing| read.send(bringing));
        let receiving = async {
            let mut senders = senders.into_iter();
            let mut to: Option<mpsc::Sender<Piece>> = None;
            while let Some(event) = backup.next().await.map_err(failed)? {
                match event {
                    BackupEvent::Archive(_) | BackupEvent::Manifest => {
                        finish(to.take()).await;
                        to = senders.next();
                    }
                    BackupEvent::Data(bytes) => {
                        // Nobody takes it any more: why, the writer says.
                        let Some(to) = &to else { continue };
                        if to.send(Piece::Data(bytes)).await.is_err() {
                            return Ok(None);
                        }
                    }
                    _ => {}
                }
            }
            finish(to.take()).await;
            let (end, client) = backup.finish().map_err(failed)?;
            client.close().await;
            // The commit waits for this.
            let stop = Stopped {
                at: end.stop,
                timeline: end.timeline,
            };
            let suspect = end.suspect.map(|suspect| suspect.message().to_owned());
            // A writer that failed waits for nothing, and says why itself.
            let _nobody = stopped.send((stop, suspect));
            Ok(Some(()))
        };
        let (written, received) = futures_util::future::join(writing, receiving).await;
        match (written, received) {
            // Why the server stopped says more than that the archive broke off.
            (_, Err(error)) => Err(error),
            (written, Ok(_)) => written,
        }
    }

    /// Has the server keep the log that the copy needs, as long as this connection lasts.
    async fn keep_log(&self, client: &mut Client, subject: &str) -> Result<()> {
        let failed = |error| Error::wire(subject, error);
        let slot: SlotName = format!("neon_import_{}", random_id()?)
            .parse()
            .map_err(failed)?;
        match client.create_physical_slot(&slot, true, true).await {
            Ok(_) => Ok(()),
            // 53400: all slots are taken; 55000: the server has none.
            Err(error) if matches!(error.sqlstate(), Some("53400" | "55000")) => {
                self.0.tell(Event::Warning(format!(
                    "{subject} has no replication slot left: it may remove log that the copy needs, which then fails."
                )));
                Ok(())
            }
            Err(error) => Err(failed(error)),
        }
    }
}

/// What a server says of its pages, as far as it does.
async fn shape(client: &mut Client) -> neon_pgwire::Result<Shape> {
    let mut known = Shape::default();
    let mut said = async |name: &str| match client.show(name).await {
        Ok(value) => Ok(Some(value)),
        // One that is no PostgreSQL itself need not know.
        Err(error) if error.sqlstate().is_some() => Ok(None),
        Err(error) => Err(error),
    };
    let size = said("block_size").await?.and_then(|size| size.parse().ok());
    if let Some(size) = size.and_then(|size: u64| BlockSize::new(size).ok()) {
        known.page_size = size;
    }
    let segment = said("segment_size").await?;
    let blocks = segment.and_then(|text| bytes(&text)?.checked_div(known.page_size.bytes() as u64));
    if let Some(blocks) = blocks.and_then(|blocks| u32::try_from(blocks).ok()) {
        known.segment_blocks = blocks;
    }
    known.checksums = said("data_checksums").await?.and_then(|text| match &*text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    });
    Ok(known)
}

/// A size as the server writes it.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let factor = match unit {
        "B" | "" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

async fn finish(to: Option<mpsc::Sender<Piece>>) {
    if let Some(to) = to {
        // Whoever does not take it has failed, and says so.
        drop(to.send(Piece::End).await);
    }
}

/// The side that reads what comes.
struct Reading {
    archives: Vec<(ArchiveKind, Incoming)>,
    manifest: Incoming,
    /// Where it ends, and what the server itself found damaged.
    stop: oneshot::Receiver<(Stopped, Option<String>)>,
    taken: Option<i64>,
    total: u64,
    shape: Shape,
}

impl Reading {
    fn send(self, bringing: &Bringing<'_>) -> Result<Facts> {
        let broken = |reason: &'static str| Error::new(ErrorKind::Failed, bringing.subject, reason);
        let sink = bringing.sink(self.total)?.summing().judging(self.shape);
        let mut ranges = Vec::new();
        let archives = self
            .archives
            .into_iter()
            .map(|(kind, stream)| Archive {
                kind,
                stream: Box::new(stream),
            })
            .collect();
        let mut order = Sequential::new(&sink).map_err(|error| bringing.format(error))?;
        BaseBackup::new(archives)
            .send(&mut order)
            .map_err(|error| bringing.format(error))?;
        // Nothing of it is a snapshot before the manifest agrees and the server said where the backup ends.
        check(bringing, &sink, self.manifest, &mut ranges)?;
        let (stopped, suspect) = self
            .stop
            .blocking_recv()
            .map_err(|_| broken("did not say where the backup ends"))?;
        let end = End {
            wal: ranges,
            ..End::default()
        };
        let facts = facts(bringing, &sink, &end, Some(stopped), self.taken)?;
        if let Some(suspect) = suspect.filter(|_| facts.bad_pages.is_empty()) {
            let reason = format!("has damaged pages: {suspect}");
            if !bringing.allow_bad_pages {
                return Err(Error::new(ErrorKind::Damaged, bringing.subject, reason)
                    .hinted("allow bad pages to take it all the same"));
            }
            bringing.tell(Event::Warning(format!("{} {reason}.", bringing.subject)));
        }
        Ok(facts)
    }
}

/// Holds every file that came against a manifest that comes after them.
pub(crate) fn check(
    bringing: &Bringing<'_>,
    came: &Inspection<'_>,
    mut manifest: impl Read,
    ranges: &mut Vec<TimelineRange>,
) -> Result<()> {
    let malformed = |error: neon_pg_layout::Error| {
        Error::new(
            ErrorKind::Damaged,
            bringing.subject,
            "has a manifest that cannot be understood",
        )
        .caused_by(error)
    };
    let mut reader = ManifestReader::new();
    let mut wrong: Option<String> = None;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = manifest.read(&mut buffer).map_err(|error| {
            Error::new(ErrorKind::Failed, bringing.subject, "broke off").caused_by(error)
        })?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        let pushed = reader.push(bytes, |item| match item {
            ManifestItem::File(file) if wrong.is_none() && !came.matches(&file) => {
                wrong = Some(String::from_utf8_lossy(&file.path).into_owned());
            }
            ManifestItem::File(_) => {}
            ManifestItem::WalRange(range) => ranges.push(range),
        });
        pushed.map_err(malformed)?;
    }
    reader.finish().map_err(malformed)?;
    match wrong {
        None => Ok(()),
        Some(path) => Err(Error::new(
            ErrorKind::Damaged,
            format!("{path} from {}", bringing.subject),
            "is not what the backup's manifest says",
        )),
    }
}
