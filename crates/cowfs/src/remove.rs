//! Removing trees, subvolumes of btrfs among them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Stat, flock, fstat, statat, unlinkat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::temporary::{CLONING, PROBING, REMOVING, open_and_lock, random_name, rename_new, split};
use crate::{ioctl, place, probe};

/// Removes a tree that a clone made, or any directory: its subvolumes too, which `rm -r` leaves. Links are removed
/// and not followed, so tablespaces and a log directory elsewhere are the caller's to remove as well.
///
/// The tree loses its name first: after a crash it is there as a whole, or is rubbish that [`sweep`] removes. That
/// it has gone is durable when this returns.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound); [`Unsafe`](ErrorKind::Unsafe) when the path is a link or another file system
/// is mounted inside, in which case what was reached before is gone; [`Io`](ErrorKind::Io) and its like.
pub fn remove_tree(path: &Path) -> Result<()> {
    let failed = |error| Error::io(path, "cannot be removed", error);
    let (folder, name) = split(path)?;
    let parent = place::root(&folder).map_err(failed)?;
    let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        let reason = "is no directory; what a link leads to is not removed";
        return Err(Error::new(ErrorKind::Unsafe, path, reason));
    }
    let temporary = random_name(REMOVING);
    // Held to the end: by it, `sweep` knows that somebody is at work.
    let lock = open_and_lock(&parent, &name).map_err(|error| match error {
        Errno::WOULDBLOCK => Error::new(ErrorKind::Exists, path, "is in use by another process"),
        other => failed(other),
    })?;
    rename_new(&parent, &name, &temporary).map_err(failed)?;
    rustix::fs::fsync(&parent).map_err(failed)?;
    remove_at(&parent, &temporary, &folder)?;
    drop(lock);
    rustix::fs::fsync(&parent).map_err(failed)
}

/// Removes from a folder what clones and removals that were killed left there, and returns what it removed. What
/// another process works on stays.
///
/// # Errors
/// As [`remove_tree`].
pub fn sweep(folder: &Path) -> Result<Vec<PathBuf>> {
    sweep_of(folder, &[CLONING, REMOVING, PROBING])
}

/// As [`sweep`], only what removals left: of a folder in which others clone, too.
///
/// # Errors
/// As [`remove_tree`].
pub fn sweep_removals(folder: &Path) -> Result<Vec<PathBuf>> {
    sweep_of(folder, &[REMOVING])
}

fn sweep_of(folder: &Path, ours: &[&str]) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io(folder, "cannot be swept", error);
    let parent = place::root(folder).map_err(failed)?;
    let mut removed = Vec::new();
    for name in place::names(&parent).map_err(failed)? {
        if !ours
            .iter()
            .any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
        {
            continue;
        }
        let lock = match place::child(&parent, &name) {
            Ok(lock) => lock,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(failed(error)),
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        match remove_at(&parent, &name, folder) {
            Ok(()) => removed.push(folder.join(&name)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    rustix::fs::fsync(&parent).map_err(failed)?;
    Ok(removed)
}

/// Removes what this name in the directory means, with all below it.
pub(crate) fn remove_at(parent: &OwnedFd, name: &OsStr, folder: &Path) -> Result<()> {
    let path = folder.join(name);
    let failed = |error| Error::io(&path, "cannot be removed", error);
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlinkat(parent, name, AtFlags::empty()).map_err(failed);
    }
    let directory = place::child(parent, name).map_err(failed)?;
    let (here, above) = (
        fstat(&directory).map_err(failed)?,
        fstat(parent).map_err(failed)?,
    );
    let subvolume = is_subvolume(&directory, &here);
    // Neither device numbers nor the look of a subvolume tell every mount.
    let mounted = place::is_mount(&directory).unwrap_or(here.st_dev != above.st_dev && !subvolume);
    if mounted {
        let reason = "something is mounted here; nothing in it is removed";
        return Err(Error::new(ErrorKind::Unsafe, &path, reason));
    }
    if subvolume {
        // Only its owner may; whoever may not is told by what follows.
        ioctl::set_read_only(&directory, false).ok();
        if ioctl::destroy_subvolume(parent, name).is_ok() {
            return Ok(());
        }
        // It holds other subvolumes, or this user may only remove empty ones.
    }
    for child in place::names(&directory).map_err(failed)? {
        remove_at(&directory, &child, &path)?;
    }
    if subvolume && ioctl::destroy_subvolume(parent, name).is_ok() {
        return Ok(());
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(failed)
}

/// Whether the directory is the top of a btrfs subvolume, whose inode number is always the same.
pub(crate) fn is_subvolume(directory: impl AsFd, stat: &Stat) -> bool {
    stat.st_ino == 256 && probe::is_btrfs(directory)
}
