//! What is this path or stream? Told by content, never by the name that somebody gave it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use neon_pg_layout::{BackupLabel, ClusterState, ControlFile, PgMajor, WalFileName};

use crate::basebackup::is_tar;
use crate::compression::{Compression, decompress};
use crate::error::{Error, Result};
use crate::pack::HEADER_MAGIC;

/// How much of a stream [`detect_start`] wants to see. Less will do for most.
pub const START: usize = 64 << 10;

/// What something is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detected {
    /// A data directory.
    DataDirectory {
        /// Its major version.
        major: PgMajor,
        /// What its control file says.
        state: ClusterState,
    },
    /// An unpacked base backup that was never started.
    PlainBackup {
        /// Its major version.
        major: PgMajor,
        /// Whether it builds on another one and must be combined first.
        incremental: bool,
        /// Whether it has a manifest.
        manifest: bool,
    },
    /// A directory with `base.tar`, as `pg_basebackup -Ft` writes it.
    TarSet {
        /// How `base.tar` is compressed.
        compression: Compression,
    },
    /// One tar archive.
    Tar {
        /// How it is compressed.
        compression: Compression,
    },
    /// A `.neon` file: a pack that holds a whole snapshot.
    Neon,
    /// A pack of a repository, of no use without it.
    Pack,
    /// A WAL-G storage.
    WalG,
    /// A directory of log files.
    WalDirectory,
    /// One segment of the log.
    WalSegment {
        /// The major version that wrote it.
        major: PgMajor,
    },
    /// An empty directory.
    EmptyDirectory,
    /// None of these.
    Unknown {
        /// What it looks like, and what to do with it where that is known.
        why: String,
    },
}

impl fmt::Display for Detected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DataDirectory { major, state } => {
                write!(f, "a data directory of PostgreSQL {major}, {state}")
            }
            Self::PlainBackup {
                major,
                incremental: true,
                ..
            } => {
                write!(f, "an incremental base backup of PostgreSQL {major}")
            }
            Self::PlainBackup {
                major,
                manifest: true,
                ..
            } => {
                write!(f, "an unpacked base backup of PostgreSQL {major}")
            }
            Self::PlainBackup { major, .. } => {
                write!(
                    f,
                    "an unpacked base backup of PostgreSQL {major} without manifest"
                )
            }
            Self::TarSet { compression } => {
                write!(
                    f,
                    "a base backup in tar format (compression: {compression})"
                )
            }
            Self::Tar { compression } => write!(f, "a tar archive (compression: {compression})"),
            Self::Neon => f.write_str("a .neon file"),
            Self::Pack => f.write_str("a pack of a repository"),
            Self::WalG => f.write_str("a WAL-G storage"),
            Self::WalDirectory => f.write_str("a directory of log files"),
            Self::WalSegment { major } => write!(f, "a log segment of PostgreSQL {major}"),
            Self::EmptyDirectory => f.write_str("an empty directory"),
            Self::Unknown { why } => f.write_str(why),
        }
    }
}

/// What this path is.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound) when nothing is there, [`Io`](crate::ErrorKind::Io) when it
/// cannot be read. Something that is there and is nothing we know is [`Detected::Unknown`].
pub fn detect(path: &Path) -> Result<Detected> {
    let fail = |error| Error::io(path.display().to_string(), "cannot be examined", error);
    let facts = std::fs::metadata(path).map_err(fail)?;
    if facts.is_dir() {
        return directory(path);
    }
    if !facts.is_file() {
        return unknown("neither a file nor a directory");
    }
    Ok(detect_start(&start_of(path)?))
}

/// What a stream is that starts with these bytes: all of it, or its first [`START`] bytes.
#[must_use]
pub fn detect_start(start: &[u8]) -> Detected {
    let compression = Compression::of(start);
    if compression != Compression::None {
        let mut plain = Vec::new();
        // A cut-off stream ends in an error behind what matters.
        let outcome = decompress(start).map(|stream| stream.take(4096).read_to_end(&mut plain));
        if is_tar(&plain) {
            return Detected::Tar { compression };
        }
        let why = match outcome {
            Ok(Ok(_)) => format!("a {compression} stream, but of no tar archive"),
            _ if plain.is_empty() => format!("a damaged {compression} stream"),
            _ => format!("a {compression} stream, but of no tar archive"),
        };
        return Detected::Unknown { why };
    }
    if is_tar(start) {
        return Detected::Tar { compression };
    }
    if start.starts_with(HEADER_MAGIC) {
        return match start.get(40) {
            Some(1) => Detected::Neon,
            _ => Detected::Pack,
        };
    }
    if let Some(magic) = start.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
        && start.len() >= 8192
        && let Ok(major) = PgMajor::from_wal_page_magic(magic)
    {
        return Detected::WalSegment { major };
    }
    let why = FOREIGN
        .iter()
        .find(|(magic, _)| start.starts_with(magic))
        .map_or(
            "nothing that is known: neither tar, compressed tar, .neon nor log",
            |(_, why)| why,
        );
    Detected::Unknown {
        why: why.to_owned(),
    }
}

/// What people give us that we do not read, and what to do with it.
const FOREIGN: &[(&[u8], &str)] = &[
    (
        b"PGDMP",
        "a dump in custom format; pg_restore loads it into a running server",
    ),
    (
        b"--\n-- PostgreSQL database",
        "a dump as SQL; psql loads it into a running server",
    ),
    (
        b"{ \"PostgreSQL-Backup-Manifest-Version\"",
        "a backup manifest alone, without its backup",
    ),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"\xFD7zXZ\0", "an xz stream; unpack it first"),
    (b"BZh", "a bzip2 stream; unpack it first"),
    (
        b"",
        "nothing that is known: neither tar, compressed tar, .neon nor log",
    ),
];

fn unknown(why: &str) -> Result<Detected> {
    Ok(Detected::Unknown {
        why: why.to_owned(),
    })
}

fn start_of(path: &Path) -> Result<Vec<u8>> {
    let fail = |error| Error::io(path.display().to_string(), "cannot be read", error);
    let mut start = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(START as u64)
        .read_to_end(&mut start)
        .map_err(fail)?;
    Ok(start)
}

fn directory(path: &Path) -> Result<Detected> {
    let has = |name: &str| path.join(name).exists();
    if has("global/pg_control") {
        return data_directory(path);
    }
    if has("PG_VERSION") && has("base") {
        return unknown(
            "a data directory without global/pg_control: a copy that was not finished; remove it",
        );
    }
    for compression in [
        Compression::None,
        Compression::Gzip(6),
        Compression::Lz4,
        Compression::Zstd(3),
    ] {
        let base = path.join(format!("base.tar{}", compression.extension()));
        if base.is_file() {
            return Ok(match detect_start(&start_of(&base)?) {
                Detected::Tar { compression } => Detected::TarSet { compression },
                other => Detected::Unknown {
                    why: format!("a directory whose base.tar is {other}"),
                },
            });
        }
    }
    for (names, why) in [
        (["backup/backup.info", "archive"], ""),
        (
            ["backup", "archive"],
            "perhaps a pgBackRest repository; restore it with pgbackrest",
        ),
        (
            ["backups", "wal"],
            "perhaps a pg_probackup catalog; restore it with pg_probackup",
        ),
        (
            ["base", "wals"],
            "perhaps a server of Barman; restore it with barman",
        ),
    ] {
        if names.iter().all(|name| has(name)) && !has("PG_VERSION") {
            let found = if why.is_empty() {
                "a pgBackRest repository; restore it with pgbackrest"
            } else {
                why
            };
            return unknown(found);
        }
    }
    if has("basebackups_005") || has("wal_005") {
        return Ok(Detected::WalG);
    }
    let fail = |error| Error::io(path.display().to_string(), "cannot be listed", error);
    let (mut segments, mut others) = (0_u64, 0_u64);
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        match name.to_str().map(str::parse::<WalFileName>) {
            Some(Ok(_)) => segments += 1,
            _ => others += 1,
        }
    }
    match (segments, others) {
        (0, 0) => Ok(Detected::EmptyDirectory),
        (0, _) => {
            unknown("a directory of something else: no PG_VERSION, no base.tar, no log files")
        }
        _ => Ok(Detected::WalDirectory),
    }
}

fn data_directory(path: &Path) -> Result<Detected> {
    let control = match ControlFile::decode(&start_of(&path.join("global/pg_control"))?) {
        Ok(control) => control,
        Err(error) => {
            return unknown(&format!(
                "a data directory whose control file is of no use: {error}"
            ));
        }
    };
    let major = control.major;
    let label = path.join("backup_label");
    if !label.exists() {
        return Ok(Detected::DataDirectory {
            major,
            state: control.state,
        });
    }
    match BackupLabel::parse(&start_of(&label)?) {
        Ok(label) => Ok(Detected::PlainBackup {
            major,
            incremental: label.incremental_from.is_some(),
            manifest: path.join("backup_manifest").exists(),
        }),
        Err(error) => unknown(&format!("a base backup whose label is of no use: {error}")),
    }
}
