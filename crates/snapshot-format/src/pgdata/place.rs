//! Directories held open, so that no path is resolved twice.
//!
//! A snapshot's paths are walked part by part from an open directory with `O_NOFOLLOW`. So a link put in
//! the way, before or while we work, is an error and never leads anywhere: nothing outside the roots is
//! read or written, without a check that could be raced. The roots are the data directory, the target of
//! a `pg_wal` link and each tablespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use neon_pg_layout::Oid;
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, fsync, openat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::path::SnapshotPath;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// A directory that paths are resolved in.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    /// For messages.
    pub(crate) path: PathBuf,
}

impl Root {
    /// Opens a directory by a path of the caller, which may contain links.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let fd = rustix::fs::open(path, DIRECTORY, Mode::empty())
            .map_err(|error| Error::io(path.display().to_string(), "cannot be opened", error))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Opens a directory below.
    pub(crate) fn directory(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let mut at = openat(&self.fd, c".", DIRECTORY, Mode::empty())?;
        for part in path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
        {
            at = openat(&at, part, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(at)
    }
}

/// The roots of a cluster.
#[derive(Debug)]
pub(crate) struct Roots {
    pub(crate) data: Root,
    pub(crate) wal: Option<Root>,
    pub(crate) tablespaces: BTreeMap<Oid, Root>,
}

impl Roots {
    pub(crate) fn new(data: Root) -> Self {
        Self {
            data,
            wal: None,
            tablespaces: BTreeMap::new(),
        }
    }

    /// The root that a path lies in, and the rest of the path.
    pub(crate) fn resolve<'p>(&self, path: &'p SnapshotPath) -> (&Root, &'p [u8]) {
        let bytes = path.as_bytes();
        if let Some(wal) = &self.wal {
            if bytes == b"pg_wal" {
                return (wal, b"");
            }
            if let Some(rest) = bytes.strip_prefix(b"pg_wal/") {
                return (wal, rest);
            }
        }
        if let Some((oid, rest)) = path.tablespace()
            && let Some(root) = self.tablespaces.get(&oid)
        {
            return (root, rest);
        }
        (&self.data, bytes)
    }

    pub(crate) fn directory(&self, path: &SnapshotPath) -> Result<OwnedFd> {
        let (root, rest) = self.resolve(path);
        root.directory(rest)
            .map_err(|error| failed(path, "cannot be opened", error))
    }

    /// Opens a file to read. None when it is gone.
    ///
    /// Never blocks on a FIFO and never opens anything but a regular file for use.
    pub(crate) fn open_file(&self, path: &SnapshotPath) -> Result<Option<(File, Stat)>> {
        let fail = |error| failed(path, "cannot be opened", error);
        let (root, rest) = self.resolve(path);
        let (parent, name) = match rest.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (rest.get(..slash), rest.get(slash + 1..)),
            None => (Some(&b""[..]), Some(rest)),
        };
        let (Some(parent), Some(name)) = (parent, name) else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = root
            .directory(parent)
            .and_then(|parent| openat(&parent, name, flags, Mode::empty()));
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let stat = fstat(&fd).map_err(fail)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                path.to_string(),
                "was a file when the directory was read and is none now",
            ));
        }
        Ok(Some((File::from(fd), stat)))
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(fd: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn failed(path: &SnapshotPath, doing: &'static str, error: Errno) -> Error {
    if matches!(error, Errno::LOOP | Errno::NOTDIR) {
        return Error::new(
            ErrorKind::Unsafe,
            path.to_string(),
            "a link or a file stands where a directory should",
        )
        .caused_by(std::io::Error::from(error));
    }
    Error::io(path.to_string(), doing, error)
}

/// Makes a directory, or opens one that is empty.
pub(crate) fn empty_directory(path: &Path) -> Result<Root> {
    let fail = |doing, error| Error::io(path.display().to_string(), doing, error);
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(fail("cannot be made", error)),
    }
    let root = Root::open(path)?;
    let names = names(root.fd()).map_err(|error| fail("cannot be listed", error))?;
    if names.is_empty() {
        return Ok(root);
    }
    Err(Error::new(
        ErrorKind::Exists,
        path.display().to_string(),
        "is not empty",
    ))
}

/// Makes a root, and its name in the directory above it, durable.
pub(crate) fn flush_with_parent(root: &Root) -> Result<()> {
    let fail = |error| Error::io(root.path.display().to_string(), "cannot be flushed", error);
    fsync(root.fd()).map_err(fail)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat(root.fd(), c"..", flags, Mode::empty());
    match parent {
        Ok(parent) => fsync(&parent).map_err(fail),
        // Not ours to read: whoever made it made it durable.
        Err(Errno::ACCESS | Errno::PERM) => Ok(()),
        Err(error) => Err(fail(error)),
    }
}
