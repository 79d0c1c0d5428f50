//! Reading base backups in tar format into the stream.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use neon_pg_layout::{
    BackupLabel, BackupSource, ClusterState, ControlFile, FileChecksum, FileHasher, Manifest,
    ManifestFile, Oid, TablespaceMap,
};

use crate::basebackup::member::{MemberKind, Members};
use crate::compression::decompress;
use crate::error::{Error, ErrorKind, Result};
use crate::kind::SnapshotKind;
use crate::manifest::MANIFEST;
use crate::path::{SnapshotPath, oid};
use crate::stream::{
    CHUNK_SIZE, Chunk, ChunkData, End, Entry, EntryKind, Owner, Sink, Source, is_zero,
};

/// Which part of a base backup an archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveKind {
    /// The data directory.
    Base,
    /// A tablespace.
    Tablespace {
        /// Which one.
        oid: Oid,
        /// Where it was, where that is known before the base archive was read. A relative path means
        /// that it lies inside the data directory.
        location: Option<Vec<u8>>,
    },
    /// `pg_wal.tar`: the log, received beside the backup.
    Wal,
}

/// One archive of a base backup, compressed or not.
pub struct Archive<'a> {
    /// What it holds.
    pub kind: ArchiveKind,
    /// Its bytes.
    pub stream: Box<dyn Read + Send + 'a>,
}

impl fmt::Debug for Archive<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// How much an archive may ask for, all archives of a backup together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Members. Each costs 16 bytes of memory.
    pub members: u64,
    /// Bytes after decompression. Set it to what the target has room for: a kilobyte of zeros compressed
    /// may be a gigabyte of a healthy cluster, so that no ratio tells a bomb.
    pub bytes: u64,
}

impl Default for Limits {
    /// Eight million members, 64 TiB.
    fn default() -> Self {
        Self {
            members: 8 << 20,
            bytes: 64 << 40,
        }
    }
}

/// A base backup in tar format, to be read once.
///
/// Absolute paths, paths with `..`, links other than those of tablespaces, hard links, devices, duplicate
/// members, data behind the end, sizes that lie and headers that contradict each other are
/// [`Unsafe`](ErrorKind::Unsafe) or [`Malformed`](ErrorKind::Malformed). With a manifest beside the
/// archives every file is held against it.
#[derive(Debug)]
pub struct BaseBackup<'a> {
    archives: Vec<Archive<'a>>,
    manifest: Option<Manifest>,
    limits: Limits,
    end_may_be_missing: bool,
}

impl<'a> BaseBackup<'a> {
    /// The directory that `pg_basebackup -Ft -D` wrote.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it holds no `base.tar`; [`Unsupported`](ErrorKind::Unsupported)
    /// for an incremental backup; as [`Manifest::parse`] for its manifest.
    pub fn in_directory(directory: &Path) -> Result<BaseBackup<'static>> {
        let fail = |error| Error::io(directory.display().to_string(), "cannot be listed", error);
        let mut archives: BTreeMap<(u8, Oid), Archive<'static>> = BTreeMap::new();
        let mut manifest = None;
        for entry in std::fs::read_dir(directory).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let open =
                || File::open(&path).map_err(|error| Error::io(name, "cannot be opened", error));
            if name == MANIFEST {
                let mut content = Vec::new();
                open()?
                    .read_to_end(&mut content)
                    .map_err(|error| Error::io(name, "cannot be read", error))?;
                manifest =
                    Some(Manifest::parse(&content).map_err(|error| Error::layout(name, error))?);
                continue;
            }
            let Some((key, kind)) = archive_kind(name) else {
                continue;
            };
            let archive = Archive {
                kind,
                stream: Box::new(open()?),
            };
            if archives.insert(key, archive).is_some() {
                return Err(Error::malformed(
                    name,
                    "the same archive is there in two compressions",
                ));
            }
        }
        if !archives.contains_key(&(0, 0)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                directory.display().to_string(),
                "holds no base.tar",
            ));
        }
        // The base archive first: it says where tablespaces were.
        let mut backup = BaseBackup::new(archives.into_values().collect());
        backup.manifest = manifest;
        Ok(backup)
    }

    /// One stream, as `pg_basebackup -Ft -D -` writes it: the base archive, perhaps with the manifest in it.
    #[must_use]
    pub fn in_stream(stream: impl Read + Send + 'a) -> Self {
        Self::new(vec![Archive {
            kind: ArchiveKind::Base,
            stream: Box::new(stream),
        }])
    }

    /// Archives in the order they come, as a server sends them.
    #[must_use]
    pub fn new(archives: Vec<Archive<'a>>) -> Self {
        Self {
            archives,
            manifest: None,
            limits: Limits::default(),
            end_may_be_missing: false,
        }
    }

    /// Sets limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The manifest to hold every file against.
    #[must_use]
    pub fn manifest(mut self, manifest: Manifest) -> Self {
        self.manifest = Some(manifest);
        self
    }

    /// Archives without an end mark are whole: servers of 13 and 14 send them so.
    #[must_use]
    pub fn without_end_marks(mut self) -> Self {
        self.end_may_be_missing = true;
        self
    }
}

impl Source for BaseBackup<'_> {
    /// Sends each archive in turn. A second call sends nothing and fails.
    fn send(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let mut reading = Reading {
            sink,
            seen: HashSet::new(),
            limits: self.limits,
            expected: self.manifest.as_ref().map(|manifest| {
                manifest
                    .files
                    .iter()
                    .map(|file| (file.path.clone(), file.clone()))
                    .collect()
            }),
            in_place: HashSet::new(),
            kept: BTreeMap::new(),
        };
        for archive in std::mem::take(&mut self.archives) {
            reading.archive(archive, self.end_may_be_missing)?;
        }
        let end = reading.facts(self.manifest.take())?;
        sink.end(&end)
    }
}

fn archive_kind(name: &str) -> Option<((u8, Oid), ArchiveKind)> {
    let stem = [".tar", ".tar.gz", ".tar.lz4", ".tar.zst"]
        .iter()
        .find_map(|extension| name.strip_suffix(extension))?;
    match stem {
        "base" => Some(((0, 0), ArchiveKind::Base)),
        "pg_wal" => Some(((2, 0), ArchiveKind::Wal)),
        _ => {
            let oid = oid(stem.as_bytes())?;
            Some((
                (1, oid),
                ArchiveKind::Tablespace {
                    oid,
                    location: None,
                },
            ))
        }
    }
}

/// Small files that say what the backup is.
const KEPT: [&str; 4] = [
    "backup_label",
    "tablespace_map",
    "global/pg_control",
    MANIFEST,
];
const KEPT_LIMIT: u64 = 256 << 20;

struct Reading<'s> {
    sink: &'s mut dyn Sink,
    /// Digests of the paths that were seen.
    seen: HashSet<[u8; 16]>,
    limits: Limits,
    /// Files of the manifest that have not come yet.
    expected: Option<BTreeMap<Vec<u8>, ManifestFile>>,
    in_place: HashSet<Oid>,
    kept: BTreeMap<&'static str, Vec<u8>>,
}

impl Reading<'_> {
    fn archive(&mut self, archive: Archive<'_>, end_may_be_missing: bool) -> Result<()> {
        let (name, prefix) = match &archive.kind {
            ArchiveKind::Base => ("base.tar".to_owned(), SnapshotPath::root()),
            ArchiveKind::Wal => ("pg_wal.tar".to_owned(), SnapshotPath::new("pg_wal")?),
            ArchiveKind::Tablespace { oid, location } => (
                format!("{oid}.tar"),
                self.tablespace(*oid, location.clone())?,
            ),
        };
        // The client that receives the log gives it to user 0, whoever it runs as.
        let named = archive.kind != ArchiveKind::Wal;
        let mut members = Members::new(decompress(archive.stream)?, name, end_may_be_missing);
        let mut buffer = vec![0; CHUNK_SIZE];
        while let Some(member) = members.next()? {
            let mut path = SnapshotPath::new(member.path)?;
            if !prefix.is_root() {
                if path.is_root() {
                    continue;
                }
                path = SnapshotPath::new([prefix.as_bytes(), path.as_bytes()].join(&b'/'))?;
            }
            self.once(&path)?;
            let kind = match member.kind {
                MemberKind::File => EntryKind::File { size: member.size },
                MemberKind::Directory => {
                    if let Some((oid, b"")) = path.tablespace() {
                        self.in_place.insert(oid);
                    }
                    EntryKind::Directory
                }
                MemberKind::Link(target) => match path.tablespace() {
                    Some((oid, b"")) if prefix.is_root() => EntryKind::Tablespace {
                        oid,
                        location: Some(target),
                    },
                    _ => {
                        return Err(Error::new(
                            ErrorKind::Unsafe,
                            path.to_string(),
                            "a link that is not that of a tablespace",
                        ));
                    }
                },
            };
            let owner = named.then_some(Owner {
                uid: member.uid,
                gid: member.gid,
            });
            let entry = Entry {
                path,
                kind,
                mode: member.mode,
                owner,
                modified: member.modified,
            };
            if entry.is_file() {
                self.file(&entry, &mut members, &mut buffer)?;
            } else {
                self.sink.entry(&entry)?;
            }
        }
        Ok(())
    }

    /// Announces a tablespace that has an archive of its own, and returns where its files go.
    fn tablespace(&mut self, oid: Oid, location: Option<Vec<u8>>) -> Result<SnapshotPath> {
        let path = SnapshotPath::new(format!("pg_tblspc/{oid}"))?;
        let location = match location {
            Some(location) => Some(location),
            None => self.mapped(oid)?,
        };
        let relative = location
            .as_ref()
            .is_some_and(|location| !location.starts_with(b"/"));
        let kind = if relative || self.in_place.contains(&oid) {
            EntryKind::Directory
        } else {
            EntryKind::Tablespace { oid, location }
        };
        if self.in_place.insert(oid) && !self.seen.contains(&digest(&path)) {
            self.once(&path)?;
            self.sink.entry(&Entry {
                path: path.clone(),
                kind,
                mode: 0o700,
                owner: None,
                modified: 0,
            })?;
        }
        Ok(path)
    }

    fn mapped(&self, oid: Oid) -> Result<Option<Vec<u8>>> {
        let Some(map) = self.kept.get("tablespace_map") else {
            return Ok(None);
        };
        let map =
            TablespaceMap::parse(map).map_err(|error| Error::layout("tablespace_map", error))?;
        Ok(map
            .entries
            .into_iter()
            .find(|(known, _)| *known == oid)
            .map(|(_, path)| path))
    }

    fn once(&mut self, path: &SnapshotPath) -> Result<()> {
        let members = self.limits.members.checked_sub(1);
        self.limits.members = members
            .ok_or_else(|| Error::new(ErrorKind::Limit, path.to_string(), "one member too many"))?;
        if self.seen.insert(digest(path)) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsafe,
            path.to_string(),
            "comes twice",
        ))
    }

    fn file(
        &mut self,
        entry: &Entry,
        members: &mut Members<impl Read>,
        buffer: &mut [u8],
    ) -> Result<()> {
        let size = entry.size();
        let bytes = self.limits.bytes.checked_sub(size);
        self.limits.bytes = bytes.ok_or_else(|| {
            Error::new(
                ErrorKind::Limit,
                entry.path.to_string(),
                "more data than allowed",
            )
        })?;
        let incremental = entry.path.name().strip_prefix(b"INCREMENTAL.");
        if incremental.is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit)) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                entry.path.to_string(),
                "an incremental backup must be combined with those it builds on first",
            ));
        }
        let kept = KEPT
            .into_iter()
            .find(|name| name.as_bytes() == entry.path.as_bytes());
        if kept.is_some() && size > KEPT_LIMIT {
            return Err(Error::new(
                ErrorKind::Limit,
                entry.path.to_string(),
                "is too large",
            ));
        }
        let mut content = Vec::new();
        let expected = self
            .expected
            .as_mut()
            .and_then(|files| files.remove(entry.path.as_bytes()));
        let mut hasher = expected
            .as_ref()
            .and_then(|file| file.checksum.as_ref())
            .map(|checksum| FileHasher::new(checksum.algorithm()));
        self.sink.entry(entry)?;
        let mut offset = 0;
        while offset < size {
            let wanted = usize::try_from(size - offset)
                .unwrap_or(CHUNK_SIZE)
                .min(CHUNK_SIZE);
            let (bytes, _) = buffer
                .split_at_mut_checked(wanted)
                .unwrap_or((&mut [], &mut []));
            members.read(bytes)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            if kept.is_some() {
                content.extend_from_slice(bytes);
            }
            let data = if is_zero(bytes) {
                ChunkData::Zeros(wanted as u64)
            } else {
                ChunkData::Bytes(bytes)
            };
            self.sink.chunk(&Chunk { offset, data })?;
            offset += wanted as u64;
        }
        if let Some(name) = kept {
            self.kept.insert(name, content);
        }
        let Some(expected) = expected else {
            return Ok(());
        };
        let sum = hasher.and_then(FileHasher::finish);
        if expected.size != size || differs(expected.checksum.as_ref(), sum.as_ref()) {
            return Err(Error::new(
                ErrorKind::Damaged,
                entry.path.to_string(),
                "is not what the backup's manifest says",
            ));
        }
        Ok(())
    }

    /// What the small files say about the backup.
    fn facts(&mut self, manifest: Option<Manifest>) -> Result<End> {
        if let Some((path, _)) = self
            .expected
            .as_ref()
            .and_then(|files| files.first_key_value())
        {
            return Err(Error::new(
                ErrorKind::Damaged,
                String::from_utf8_lossy(path).into_owned(),
                "is in the backup's manifest and not in the backup",
            ));
        }
        let Some(control) = self.kept.get("global/pg_control") else {
            return Err(Error::malformed(
                "base backup",
                "it has no global/pg_control",
            ));
        };
        let control = ControlFile::decode(control)
            .map_err(|error| Error::layout("global/pg_control", error))?;
        let kind = match self.kept.get("backup_label") {
            Some(label) => {
                let label = BackupLabel::parse(label)
                    .map_err(|error| Error::layout("backup_label", error))?;
                if label.incremental_from.is_some() {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "backup_label",
                        "an incremental backup must be combined with those it builds on first",
                    ));
                }
                Some(match label.from {
                    BackupSource::Standby => SnapshotKind::Standby,
                    _ => SnapshotKind::Online,
                })
            }
            None => match control.state {
                ClusterState::ShutDown => Some(SnapshotKind::Cold),
                ClusterState::ShutDownInRecovery => Some(SnapshotKind::Recovery),
                _ => None,
            },
        };
        let manifest = match (manifest, self.kept.get(MANIFEST)) {
            (None, Some(content)) => {
                Some(Manifest::parse(content).map_err(|error| Error::layout(MANIFEST, error))?)
            }
            (manifest, _) => manifest,
        };
        Ok(End {
            kind,
            major: Some(control.major),
            system_identifier: Some(control.system_identifier),
            wal: manifest.map_or_else(Vec::new, |manifest| manifest.wal_ranges),
            ..End::default()
        })
    }
}

fn differs(expected: Option<&FileChecksum>, found: Option<&FileChecksum>) -> bool {
    expected.is_some_and(|expected| Some(expected) != found)
}

fn digest(path: &SnapshotPath) -> [u8; 16] {
    let hash = blake3::hash(path.as_bytes());
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}
