//! Directories held open, so that no path is resolved twice.
//!
//! Everything below a root is reached part by part from an open directory with `O_NOFOLLOW`: a link put in the way,
//! before or while we work, is an error and leads nowhere.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, Stat, StatxAttributes, StatxFlags, Timespec, Timestamps, Uid,
    openat, statx,
};
use rustix::io::{Errno, Result};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Opens a directory by a path of the caller's, which may lead through links.
pub(crate) fn root(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}

/// Opens what this name in the directory leads to, a known link too.
pub(crate) fn follow(directory: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    openat(directory, name, DIRECTORY, Mode::empty())
}

/// Opens a directory of this name, and no link.
pub(crate) fn child(directory: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens a directory below a root; the empty path is the root itself.
pub(crate) fn below(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let mut at = openat(root, c".", DIRECTORY, Mode::empty())?;
    for part in path {
        if part == ".." || part == "/" {
            return Err(Errno::INVAL);
        }
        at = child(&at, part)?;
    }
    Ok(at)
}

/// Whether something is mounted at this directory, of whatever file system, this one too. None when the kernel does
/// not tell (before 5.8).
pub(crate) fn is_mount(directory: impl AsFd) -> Option<bool> {
    let flags = AtFlags::EMPTY_PATH;
    let facts = statx(directory, c"", flags, StatxFlags::BASIC_STATS).ok()?;
    let mount = StatxAttributes::MOUNT_ROOT;
    let told = facts.stx_attributes_mask.contains(mount);
    told.then(|| facts.stx_attributes.contains(mount))
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: impl AsFd) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(OsString::from_vec(name.as_bytes().to_vec()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What is kept of a file or a directory beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) device: u64,
    pub(crate) modified: (i64, i64),
}

impl Facts {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            device: stat.st_dev,
            modified: (
                stat.st_mtime,
                i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ),
        }
    }

    /// Whether nobody wrote between: as far as sizes and times can tell.
    pub(crate) fn still(&self, stat: &Stat) -> bool {
        let now = Self::of(stat);
        (now.size, now.modified) == (self.size, self.modified)
    }

    /// Gives owner (as root; otherwise what we make is ours), mode and time to what is open here.
    pub(crate) fn apply(&self, to: impl AsFd) -> Result<()> {
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::fs::fchown(&to, Some(uid), Some(gid))?;
        }
        // After the owner, whose change may clear bits.
        rustix::fs::fchmod(&to, Mode::from_raw_mode(self.mode))?;
        let time = Timespec {
            tv_sec: self.modified.0,
            tv_nsec: self.modified.1,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&to, &times)
    }
}
