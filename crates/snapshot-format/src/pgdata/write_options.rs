//! How a data directory is written, and how much was.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use neon_pg_layout::Oid;

use crate::error::{Error, ErrorKind, Result};
use crate::path::SnapshotPath;
use crate::stream::Owner;

/// Who owns what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// The user this process runs as.
    #[default]
    Process,
    /// The one that the snapshot recorded, where it did.
    Recorded,
    /// This one.
    Fixed(Owner),
}

/// Where tablespaces are put that lay outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TablespacePlaces {
    /// Nowhere: a snapshot that has any is refused.
    Refuse,
    /// Into directories named by their OIDs below this absolute path, which is made if missing.
    Below(PathBuf),
    /// Each into its own absolute path; one that is not listed is an error.
    Listed(BTreeMap<Oid, PathBuf>),
    /// Into directories inside `pg_tblspc`.
    InPlace,
    /// Where the snapshot says they were.
    Original,
}

impl TablespacePlaces {
    /// Where a tablespace goes; none for inside of the data directory.
    pub(crate) fn place(
        &self,
        path: &SnapshotPath,
        oid: Oid,
        location: Option<&[u8]>,
    ) -> Result<Option<PathBuf>> {
        let refuse = |reason| Err(Error::new(ErrorKind::Unsupported, path.to_string(), reason));
        let place = match self {
            Self::Refuse => {
                return refuse("the snapshot has tablespaces and no place was given for them");
            }
            Self::InPlace => return Ok(None),
            Self::Below(directory) => directory.join(oid.to_string()),
            Self::Listed(places) => match places.get(&oid) {
                Some(place) => place.clone(),
                None => return refuse("no place was given for this tablespace"),
            },
            Self::Original => match location {
                Some(location) => PathBuf::from(OsStr::from_bytes(location)),
                None => return refuse("the snapshot does not say where this tablespace was"),
            },
        };
        absolute(&place)?;
        Ok(Some(place))
    }
}

/// A path that a link may hold.
pub(crate) fn absolute(path: &Path) -> Result<&Path> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        path.display().to_string(),
        "a link in a data directory needs an absolute path",
    ))
}

/// How what was written is made durable. Either way everything is, before the control file appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Flush {
    /// Each file and directory by itself, as `pg_basebackup` does by default. A cost per file.
    #[default]
    Files,
    /// The whole file systems once, as `pg_basebackup --sync-method=syncfs` does. Better for many small
    /// files, worse where others write much to the same file system. On Linux from 5.8 on, which reports
    /// what failed; elsewhere as [`Files`](Self::Files).
    FileSystem,
}

/// How to write a data directory.
#[derive(Debug, Clone)]
pub struct DirectoryOptions {
    /// Who owns it.
    pub ownership: Ownership,
    /// Where tablespaces go.
    pub tablespaces: TablespacePlaces,
    /// An absolute path that `pg_wal` becomes a link to.
    pub wal_directory: Option<PathBuf>,
    /// Whether a `backup_manifest` is written.
    pub manifest: bool,
    /// How it is made durable.
    pub flush: Flush,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            ownership: Ownership::Process,
            tablespaces: TablespacePlaces::Refuse,
            wal_directory: None,
            manifest: true,
            flush: Flush::Files,
        }
    }
}

/// How much was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Files.
    pub files: u64,
    /// Bytes they have.
    pub bytes: u64,
    /// Bytes of them that were zero and became holes.
    pub sparse: u64,
}

impl Written {
    pub(crate) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.sparse += other.sparse;
    }
}
