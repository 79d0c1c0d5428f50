//! One archive of a snapshot that is offered: members of POSIX ustar, as PostgreSQL makes them, with the sums of all files for
//! the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use neon_pagestore::read::{Snapshot, SnapshotSource};
use neon_pg_layout::{ChecksumAlgorithm, FileChecksum, FileHasher, TablespaceMap};
use neon_pgwire::SourceTablespace;
use neon_snapshot_format::basebackup::member_header;
use neon_snapshot_format::{
    Chunk, ChunkData, End, Entry, EntryKind, Error, ErrorKind, Result, Sink, SnapshotPath, Source,
};
use tokio::sync::mpsc;

const BLOCK: usize = 512;
pub(super) const LABEL: &str = "backup_label";
pub(super) const MAP: &str = "tablespace_map";
const MANIFEST: &str = "backup_manifest";
/// What the server adds when the client asks for log.
pub(super) const LOG: &str = "pg_wal/";

/// What is known of a file that was sent.
#[derive(Debug, Clone)]
pub(super) struct Sum {
    pub(super) size: u64,
    pub(super) modified: i64,
    pub(super) sum: Option<FileChecksum>,
}

pub(super) type Sums = Arc<Mutex<BTreeMap<Vec<u8>, Sum>>>;
/// Archives that went out whole, so that the sums of all files in them are known.
pub(super) type Whole = Arc<Mutex<BTreeSet<Option<u32>>>>;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(subject: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Io, subject, "cannot be sent").caused_by(error)
}

pub(super) enum Target {
    Client(mpsc::Sender<io::Result<Bytes>>),
    /// Only sums are wanted; told when all are known.
    Nobody(Option<tokio::sync::oneshot::Sender<()>>),
}

struct Current {
    path: Vec<u8>,
    hasher: Option<FileHasher>,
    sends: bool,
    size: u64,
    modified: i64,
}

/// What all archives of one offer share.
pub(super) struct Known {
    pub(super) sums: Sums,
    pub(super) whole: Whole,
    pub(super) spaces: Vec<SourceTablespace>,
    /// Links of tablespaces go into a file.
    pub(super) map: bool,
}

/// See the module.
pub(super) struct Archive {
    /// Which tablespace; none for the data directory.
    of: Option<u32>,
    to: Target,
    known: Known,
    current: Option<Current>,
    spare: Vec<u8>,
}

impl Archive {
    pub(super) fn new(of: Option<u32>, to: Target, known: Known) -> Self {
        Self {
            of,
            to,
            known,
            current: None,
            spare: Vec::new(),
        }
    }

    /// Writes all that belongs into it. Blocks.
    pub(super) fn write(mut self, snapshot: &Snapshot, label: Option<&[u8]>) {
        let sent = self.first(label).and_then(|()| {
            SnapshotSource::new(snapshot)
                .map_err(|error| failed("snapshot", error))?
                .send(&mut self)
        });
        if let Err(error) = sent
            && let Target::Client(pieces) = &self.to
        {
            // One that went away needs no word.
            let _gone = pieces.blocking_send(Err(io::Error::other(error)));
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.spare.extend_from_slice(bytes);
        if self.spare.len() >= 64 << 10 {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let bytes = Bytes::from(std::mem::take(&mut self.spare));
        match &self.to {
            Target::Client(pieces) if !bytes.is_empty() => pieces
                .blocking_send(Ok(bytes))
                .map_err(|_| failed("archive", "nobody takes it any more")),
            _ => Ok(()),
        }
    }

    fn header(&mut self, entry: &Entry, name: &[u8], link: Option<&[u8]>) -> Result<()> {
        if matches!(self.to, Target::Nobody(_)) {
            return Ok(());
        }
        self.put(&member_header(entry, name, link)?)
    }

    /// The label, and the map where it stands for links, before all else.
    fn first(&mut self, label: Option<&[u8]>) -> Result<()> {
        if self.of.is_some() {
            return Ok(());
        }
        if let Some(label) = label {
            self.small(LABEL, label)?;
        }
        let spaces: Vec<_> = self
            .known
            .spaces
            .iter()
            .map(|space| (space.oid, space.location.clone().into_bytes()))
            .collect();
        if self.known.map && !spaces.is_empty() {
            let map = TablespaceMap { entries: spaces };
            self.small(MAP, &map.to_bytes())?;
        }
        Ok(())
    }

    fn small(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let entry = Entry {
            path: SnapshotPath::new(name)?,
            kind: EntryKind::File {
                size: content.len() as u64,
            },
            mode: 0o600,
            owner: None,
            modified: 0,
        };
        self.begin(&entry, name.as_bytes(), true)?;
        self.data(ChunkData::Bytes(content))?;
        self.close()
    }

    fn begin(&mut self, entry: &Entry, name: &[u8], sends: bool) -> Result<()> {
        let path = entry.path.as_bytes().to_vec();
        let known = lock(&self.known.sums).contains_key(&path);
        if sends {
            self.header(entry, name, None)?;
        }
        self.current = Some(Current {
            path,
            hasher: (!known).then(|| FileHasher::new(ChecksumAlgorithm::Crc32c)),
            sends,
            size: entry.size(),
            modified: entry.modified,
        });
        Ok(())
    }

    fn data(&mut self, data: ChunkData<'_>) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut left = match data {
            ChunkData::Bytes(bytes) => return self.bytes(bytes),
            ChunkData::Zeros(count) => count,
        };
        while left > 0 {
            let length = usize::try_from(left)
                .unwrap_or(ZEROS.len())
                .min(ZEROS.len());
            self.bytes(ZEROS.get(..length).unwrap_or(&ZEROS))?;
            left = left.saturating_sub(length as u64);
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        if let Some(hasher) = &mut current.hasher {
            hasher.update(bytes);
        }
        match current.sends && matches!(self.to, Target::Client(_)) {
            true => self.put(bytes),
            false => Ok(()),
        }
    }

    fn close(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else {
            return Ok(());
        };
        if let Some(hasher) = current.hasher {
            let sum = Sum {
                size: current.size,
                modified: current.modified,
                sum: hasher.finish(),
            };
            lock(&self.known.sums).insert(current.path, sum);
        }
        if current.sends && matches!(self.to, Target::Client(_)) {
            let over = usize::try_from(current.size % BLOCK as u64).unwrap_or(0);
            if over > 0 {
                let padding = [0; BLOCK];
                self.put(padding.get(over..).unwrap_or_default())?;
            }
        }
        Ok(())
    }

    /// The name that a path has in this archive; none if it is not in it.
    fn name<'p>(&self, path: &'p SnapshotPath) -> Option<&'p [u8]> {
        let space = path
            .tablespace()
            .filter(|(oid, _)| self.known.spaces.iter().any(|space| space.oid == *oid));
        match (space, self.of) {
            (Some((oid, inside)), Some(of)) => (oid == of && !inside.is_empty()).then_some(inside),
            (Some((_, inside)), None) => inside.is_empty().then_some(path.as_bytes()),
            (None, Some(_)) => None,
            (None, None) => Some(path.as_bytes()),
        }
    }
}

/// Files that are sent in another way: the label and the map first, the log by the server, and a manifest is made anew.
fn apart(path: &SnapshotPath) -> bool {
    let Some(text) = path.as_str() else {
        return false;
    };
    [LABEL, MAP, MANIFEST].contains(&text) || text.starts_with(LOG)
}

impl Sink for Archive {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.close()?;
        // A manifest is of all archives, and the sums of all are wanted.
        let Some(name) = self.name(&entry.path) else {
            if entry.is_file() && matches!(self.to, Target::Nobody(_)) {
                return self.begin(entry, b"", false);
            }
            return Ok(());
        };
        match &entry.kind {
            EntryKind::Directory if entry.path.is_root() => Ok(()),
            EntryKind::Directory => {
                let name = [name, b"/"].concat();
                self.header(entry, &name, None)
            }
            EntryKind::Tablespace { oid, .. } => {
                let space = self.known.spaces.iter().find(|space| space.oid == *oid);
                match space.filter(|_| !self.known.map) {
                    Some(space) => {
                        let (name, link) = (name.to_vec(), space.location.clone());
                        self.header(entry, &name, Some(link.as_bytes()))
                    }
                    None => Ok(()),
                }
            }
            _ if apart(&entry.path) => Ok(()),
            _ => {
                let name = name.to_vec();
                self.begin(entry, &name, true)
            }
        }
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.data(chunk.data)
    }

    fn end(&mut self, _: &End) -> Result<()> {
        self.close()?;
        self.flush()?;
        match &mut self.to {
            Target::Client(_) => {
                lock(&self.known.whole).insert(self.of);
            }
            // Who asked may be gone.
            Target::Nobody(done) => drop(done.take().map(|done| done.send(()))),
        }
        Ok(())
    }
}
