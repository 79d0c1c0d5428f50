//! An unpacked base backup that was never started (`pg_basebackup -Fp`), read as it lies, with its manifest.
//!
//! Nothing is left out: who took it left out what does not belong into it. Links are followed only where PostgreSQL
//! puts them: tablespaces and `pg_wal`. Whoever made the directory chose where they lead, and we may read more than they may:
//! so of a tablespace only the directory that belongs to this cluster's version is read, and what lies outside must belong
//! to who owns the backup.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use neon_pg_layout::{
    ControlFile, FileHasher, Manifest, ManifestFile, tablespace_version_directory,
};
use neon_snapshot_format::{
    CHUNK_SIZE, Chunk, ChunkData, End, Entry, EntryKind, Error, ErrorKind, Owner, Result, Sink,
    Skipped, SnapshotPath, Source, StartUpRank,
};
use rustix::fs::OFlags;

const MANIFEST: &str = "backup_manifest";
const CONTROL: &[u8] = b"global/pg_control";
/// Names that are never part of a backup, whoever put them there.
const LEFT: [&[u8]; 3] = [b"backup_manifest", b"postmaster.pid", b"postmaster.opts"];

/// See the module.
#[derive(Debug)]
pub(crate) struct PlainBackup {
    manifest: Option<Manifest>,
    found: Found,
}

impl PlainBackup {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let manifest = match fs::read(root.join(MANIFEST)) {
            Ok(content) => Some(Manifest::parse(&content).map_err(|error| {
                Error::new(ErrorKind::Malformed, MANIFEST, "cannot be understood").caused_by(error)
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(Path::new(MANIFEST), error)),
        };
        Ok(Self {
            manifest,
            found: Found::below(root)?,
        })
    }

    /// Bytes of its files.
    pub(crate) fn size(&self) -> u64 {
        let sizes = self.found.files.iter().map(|file| file.entry.size());
        sizes.fold(0, u64::saturating_add)
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, path.display().to_string(), "cannot be read").caused_by(error)
}

#[derive(Debug, Default)]
struct Found {
    directories: Vec<Entry>,
    files: Vec<FoundFile>,
    skipped: Vec<Skipped>,
}

#[derive(Debug)]
struct FoundFile {
    entry: Entry,
    place: PathBuf,
    /// Device and number: what is read is what was found.
    identity: (u64, u64),
}

fn identity(facts: &Metadata) -> (u64, u64) {
    (facts.dev(), facts.ino())
}

fn malformed(path: &SnapshotPath, reason: &'static str) -> Error {
    Error::new(ErrorKind::Malformed, path.to_string(), reason)
}

/// Refuses what a link leads to that belongs to somebody else than the backup: who made the backup need not be allowed to
/// read it.
fn require_own(path: &SnapshotPath, facts: &Metadata, root: &Metadata) -> Result<()> {
    if facts.uid() == root.uid() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsafe,
        path.to_string(),
        "leads to what belongs to another user than the backup",
    ))
}

/// The directory of a tablespace that has files of clusters of this version.
fn version_directory(root: &Path) -> Result<String> {
    let content = fs::read(root.join("global/pg_control"))
        .map_err(|error| failed(Path::new("global/pg_control"), error))?;
    Ok(tablespace_version_directory(
        decode(&content)?.major.layout(),
    ))
}

fn decode(control: &[u8]) -> Result<ControlFile> {
    ControlFile::decode(control).map_err(|error| {
        Error::new(
            ErrorKind::Malformed,
            "global/pg_control",
            "cannot be understood",
        )
        .caused_by(error)
    })
}

fn entry(path: SnapshotPath, kind: EntryKind, facts: &Metadata) -> Entry {
    Entry {
        path,
        kind,
        mode: facts.mode() & 0o7777,
        owner: Some(Owner {
            uid: facts.uid(),
            gid: facts.gid(),
        }),
        modified: facts.mtime(),
    }
}

impl Found {
    fn below(folder: &Path) -> Result<Self> {
        let mut found = Self::default();
        let version = version_directory(folder)?;
        let owner = fs::metadata(folder).map_err(|error| failed(folder, error))?;
        let root = SnapshotPath::root();
        found
            .directories
            .push(entry(root.clone(), EntryKind::Directory, &owner));
        let mut todo = vec![(root, folder.to_owned())];
        while let Some((directory, place)) = todo.pop() {
            for item in fs::read_dir(&place).map_err(|error| failed(&place, error))? {
                let item = item.map_err(|error| failed(&place, error))?;
                let (name, at) = (item.file_name(), item.path());
                let path = directory.join(name.as_bytes())?;
                let facts = fs::symlink_metadata(&at).map_err(|error| failed(&at, error))?;
                if LEFT.contains(&path.as_bytes()) {
                    continue;
                }
                let kind = facts.file_type();
                if kind.is_dir() {
                    found
                        .directories
                        .push(entry(path.clone(), EntryKind::Directory, &facts));
                    todo.push((path, at));
                } else if kind.is_file() {
                    let size = facts.len();
                    found.files.push(FoundFile {
                        entry: entry(path, EntryKind::File { size }, &facts),
                        place: at,
                        identity: identity(&facts),
                    });
                } else if kind.is_symlink() {
                    let tablespace = path.tablespace().filter(|(_, inside)| inside.is_empty());
                    if tablespace.is_none() && path.as_bytes() != b"pg_wal" {
                        found.skipped.push(Skipped {
                            path,
                            reason: "a symbolic link",
                        });
                        continue;
                    }
                    let target = fs::read_link(&at).map_err(|error| failed(&at, error))?;
                    let facts = fs::metadata(&at).map_err(|error| failed(&at, error))?;
                    if !facts.is_dir() {
                        return Err(malformed(&path, "leads to no directory"));
                    }
                    let Some((oid, _)) = tablespace else {
                        require_own(&path, &facts, &owner)?;
                        found
                            .directories
                            .push(entry(path.clone(), EntryKind::Directory, &facts));
                        todo.push((path, at));
                        continue;
                    };
                    let inside = at.join(&version);
                    let own = match fs::symlink_metadata(&inside) {
                        Ok(own) if own.is_dir() => own,
                        Ok(_) => return Err(malformed(&path, "leads to no tablespace")),
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                            return Err(malformed(&path, "leads to no tablespace"));
                        }
                        Err(error) => return Err(failed(&inside, error)),
                    };
                    require_own(&path, &own, &owner)?;
                    let location = Some(target.as_os_str().as_bytes().to_vec());
                    let kind = EntryKind::Tablespace { oid, location };
                    found.directories.push(entry(path.clone(), kind, &facts));
                    let path = path.join(version.as_bytes())?;
                    found
                        .directories
                        .push(entry(path.clone(), EntryKind::Directory, &own));
                    todo.push((path, inside));
                } else {
                    found.skipped.push(Skipped {
                        path,
                        reason: "neither a file nor a directory",
                    });
                }
            }
        }
        found.directories.sort_by(|a, b| a.path.cmp(&b.path));
        found.files.sort_by_cached_key(|FoundFile { entry, .. }| {
            let last = entry.path.as_bytes() == CONTROL;
            (last, StartUpRank::of(&entry.path), entry.path.clone())
        });
        Ok(found)
    }
}

impl Source for PlainBackup {
    fn send(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let found = &self.found;
        let mut expected: Option<BTreeMap<&[u8], &ManifestFile>> =
            self.manifest.as_ref().map(|manifest| {
                manifest
                    .files
                    .iter()
                    .map(|file| (&*file.path, file))
                    .collect()
            });
        for entry in &found.directories {
            sink.entry(entry)?;
        }
        let mut control = Vec::new();
        for file in &found.files {
            let path = file.entry.path.as_bytes();
            let wanted = expected.as_mut().and_then(|expected| expected.remove(path));
            let keep = (path == CONTROL).then_some(&mut control);
            send_file(sink, file, wanted, keep)?;
        }
        if let Some((path, _)) = expected.as_ref().and_then(BTreeMap::first_key_value) {
            return Err(Error::new(
                ErrorKind::Damaged,
                String::from_utf8_lossy(path).into_owned(),
                "is in the backup's manifest and not in the backup",
            ));
        }
        let control = decode(&control)?;
        let wal = self.manifest.as_ref();
        sink.end(&End {
            kind: None,
            major: Some(control.major),
            system_identifier: Some(control.system_identifier),
            wal: wal.map_or_else(Vec::new, |manifest| manifest.wal_ranges.clone()),
            skipped: found.skipped.clone(),
            bad_pages: Vec::new(),
        })
    }
}

fn send_file(
    sink: &mut dyn Sink,
    FoundFile {
        entry,
        place,
        identity: found,
    }: &FoundFile,
    expected: Option<&ManifestFile>,
    mut keep: Option<&mut Vec<u8>>,
) -> Result<()> {
    // Nothing that became a link meanwhile is followed.
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nofollow)
        .open(place)
        .map_err(|error| failed(place, error))?;
    let mut hasher = expected
        .and_then(|file| file.checksum.as_ref())
        .map(|checksum| FileHasher::new(checksum.algorithm()));
    let changed = || {
        Error::new(
            ErrorKind::Inconsistent,
            entry.path.to_string(),
            "changed while it was read",
        )
    };
    // Nor anything that another folder has at this place meanwhile.
    let facts = file.metadata().map_err(|error| failed(place, error))?;
    if identity(&facts) != *found {
        return Err(changed());
    }
    sink.entry(entry)?;
    let size = entry.size();
    let mut file: std::io::Take<File> = file.take(size);
    let mut buffer = vec![0; CHUNK_SIZE];
    let mut offset = 0;
    while offset < size {
        let wanted = usize::try_from(size - offset)
            .unwrap_or(CHUNK_SIZE)
            .min(CHUNK_SIZE);
        let bytes = buffer.get_mut(..wanted).unwrap_or_default();
        file.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => changed(),
            _ => failed(place, error),
        })?;
        if let Some(hasher) = &mut hasher {
            hasher.update(bytes);
        }
        if let Some(keep) = &mut keep {
            keep.extend_from_slice(bytes);
        }
        let data = if bytes.iter().all(|byte| *byte == 0) {
            ChunkData::Zeros(wanted as u64)
        } else {
            ChunkData::Bytes(bytes)
        };
        sink.chunk(&Chunk { offset, data })?;
        offset += wanted as u64;
    }
    if let Some(expected) = expected {
        let sum = hasher.and_then(FileHasher::finish);
        if expected.size != size || (expected.checksum.is_some() && expected.checksum != sum) {
            return Err(Error::new(
                ErrorKind::Damaged,
                entry.path.to_string(),
                "is not what the backup's manifest says",
            ));
        }
    }
    Ok(())
}
