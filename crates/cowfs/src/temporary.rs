//! Trees under a temporary name, until they are whole.
//!
//! Whoever works on one holds a lock on its top directory, so that [`sweep`](crate::sweep) can tell what a killed
//! process left from what is being made.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, RenameFlags, fchmod, flock, mkdirat, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::{ioctl, place, probe, remove};

pub(crate) const CLONING: &str = ".neon-clone.";
pub(crate) const REMOVING: &str = ".neon-remove.";
pub(crate) const PROBING: &str = ".neon-probe.";

/// A name that nothing else has.
pub(crate) fn random_name(prefix: &str) -> OsString {
    // Every `RandomState` starts from new keys.
    let random = RandomState::new().build_hasher().finish();
    OsString::from(format!("{prefix}{random:016x}"))
}

/// What [`create_dir`] made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// A plain directory.
    Directory,
    /// A subvolume of btrfs.
    Subvolume,
}

/// Creates an empty directory of this mode: on btrfs as a subvolume, so that what is put into it can be cloned as
/// one. Its name is durable when it returns.
///
/// # Errors
/// [`Exists`](ErrorKind::Exists), [`NotFound`](ErrorKind::NotFound) for its parent, [`Io`](ErrorKind::Io) and its
/// like.
pub fn create_dir(path: &Path, mode: u32) -> Result<Made> {
    let failed = |error| Error::io(path, "cannot be created", error);
    let (parent, name) = split(path)?;
    let parent = place::root(&parent).map_err(failed)?;
    let (made, kind) = make(&parent, &name, true).map_err(failed)?;
    fchmod(&made, Mode::from_raw_mode(mode)).map_err(failed)?;
    rustix::fs::fsync(&made).map_err(failed)?;
    rustix::fs::fsync(&parent).map_err(failed)?;
    flock(&made, FlockOperation::Unlock).ok();
    Ok(kind)
}

/// A path as the directory it lies in and its name there.
pub(crate) fn split(path: &Path) -> Result<(PathBuf, OsString)> {
    let Some(name) = path.file_name() else {
        let reason = "has no name that it could have in a folder";
        return Err(Error::new(ErrorKind::Invalid, path, reason));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok((parent.to_owned(), name.to_owned()))
}

/// Makes an empty directory that only we may enter, a subvolume if asked for and possible, and locks it.
pub(crate) fn make(
    parent: impl AsFd,
    name: &OsStr,
    subvolume: bool,
) -> rustix::io::Result<(OwnedFd, Made)> {
    if subvolume && probe::is_btrfs(&parent) {
        match ioctl::create_subvolume(&parent, name) {
            Ok(()) => {
                let made = open_and_lock(&parent, name)?;
                fchmod(&made, Mode::RWXU)?;
                return Ok((made, Made::Subvolume));
            }
            Err(Errno::EXIST) => return Err(Errno::EXIST),
            // Forbidden here, perhaps by a quota: a plain directory does.
            Err(_) => {}
        }
    }
    mkdirat(&parent, name, Mode::RWXU)?;
    let made = open_and_lock(&parent, name)?;
    // The umask of the process, which is not ours to change, may have taken rights of our own.
    fchmod(&made, Mode::RWXU)?;
    Ok((made, Made::Directory))
}

/// Opens what was just made, and holds its lock as long as the descriptor is open.
pub(crate) fn open_and_lock(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let made = place::child(parent, name)?;
    match flock(&made, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(Errno::WOULDBLOCK),
        // Some network file systems lock no folders; then nothing is swept there either.
        _ => Ok(made),
    }
}

/// A name beside the final one. What stands under it goes when this is dropped before it is published.
#[derive(Debug)]
pub(crate) struct Temporary {
    pub(crate) parent: OwnedFd,
    pub(crate) name: OsString,
    folder: PathBuf,
    last_name: OsString,
    published: bool,
}

impl Temporary {
    /// For a tree that is to be at this path. Nothing is made yet.
    pub(crate) fn beside(path: &Path) -> Result<Self> {
        let (folder, last_name) = split(path)?;
        let parent = place::root(&folder)
            .map_err(|error| Error::io(&folder, "cannot be opened, to put a clone into", error))?;
        Ok(Self {
            parent,
            name: random_name(CLONING),
            folder,
            last_name,
            published: false,
        })
    }

    /// Removes what stands under the name.
    pub(crate) fn clear(&self) -> Result<()> {
        match remove::remove_at(&self.parent, &self.name, &self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Gives the tree its name, which nothing has, and makes that durable.
    pub(crate) fn publish(&mut self) -> Result<()> {
        let path = self.folder.join(&self.last_name);
        let failed = |error| Error::io(&path, "cannot be given its name", error);
        rename_new(&self.parent, &self.name, &self.last_name).map_err(failed)?;
        self.published = true;
        rustix::fs::fsync(&self.parent).map_err(failed)
    }

    /// Takes a published tree away again.
    pub(crate) fn take_back(&mut self) {
        if self.published && rename_new(&self.parent, &self.last_name, &self.name).is_ok() {
            self.published = false;
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now has a name that `sweep` knows.
            drop(self.clear());
        }
    }
}

/// Renames inside a directory, to a name that nothing has.
pub(crate) fn rename_new(directory: impl AsFd, from: &OsStr, to: &OsStr) -> rustix::io::Result<()> {
    match renameat_with(&directory, from, &directory, to, RenameFlags::NOREPLACE) {
        // Some file systems do not know the flag. A file in the way is still refused, a full directory too.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(&directory, from, &directory, to),
        other => other,
    }
}
