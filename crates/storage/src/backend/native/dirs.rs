//! Directories that are known to survive a loss of power.
//!
//! A file is only as durable as every directory on its path. Another process may have made a
//! directory and not yet synced it, so finding one proves nothing: each is synced into its parent
//! once by this handle before it relies on it. One sync makes every name durable that stood in the
//! parent before it, so all that were seen there are known by it. This backend never removes a
//! directory; where somebody else did, what is known is forgotten.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::FileType;

use super::disk::{Disk, Place};

/// A directory of more names is not looked through: that would take longer than what it saves.
const FEW: usize = 1024;

/// The directories that this handle knows to be durable, by their path below the root.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    known: Mutex<HashSet<PathBuf>>,
}

/// What went wrong while making a directory durable.
#[derive(Debug)]
pub(super) enum DirError {
    /// Making or opening it failed; nothing is the matter with the disk.
    Make(io::Error),
    /// Syncing it failed.
    Sync(io::Error),
}

impl Dirs {
    /// Makes `below` and what is missing above it, down from `root`, durable, and opens it. The
    /// root exists and is durable already.
    pub(super) fn ensure(
        &self,
        disk: &dyn Disk,
        root: &Path,
        below: &Path,
        mode: u32,
    ) -> Result<File, DirError> {
        let open = |below: &Path| disk.open_dir(root, below).map_err(DirError::Make);
        if self.knows(below) {
            match disk.open_dir(root, below) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.forget(),
                other => return other.map_err(DirError::Make),
            }
        }
        let mut parent = open(Path::new(""))?;
        let mut at = PathBuf::new();
        for segment in below.components() {
            let above = root.join(&at);
            at.push(segment);
            if self.knows(&at) {
                match disk.open_dir(root, &at) {
                    // Somebody removed it: nothing that was known holds.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.forget();
                        return self.ensure(disk, root, below, mode);
                    }
                    other => parent = other.map_err(DirError::Make)?,
                }
                continue;
            }
            let path = root.join(&at);
            match disk.make_dir(Place::new(&parent, &path), mode) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(DirError::Make(error));
                }
                _ => {}
            }
            // Fails where a link or a file has the name: what a link leads to is not listed, and
            // may lie elsewhere.
            let next = open(&at)?;
            // Read before the sync: a name that comes later may miss it.
            let seen = beside(&parent);
            disk.sync_dir(&parent, &above).map_err(DirError::Sync)?;
            let mut known = self.known();
            let folder = at.parent().unwrap_or(Path::new(""));
            known.extend(seen.iter().map(|name| folder.join(name)));
            known.insert(at.clone());
            drop(known);
            parent = next;
        }
        Ok(parent)
    }

    fn known(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knows(&self, below: &Path) -> bool {
        self.known().contains(below)
    }

    /// Forgets everything: somebody removed a directory behind our back.
    pub(super) fn forget(&self) {
        self.known().clear();
    }
}

/// The directories in a directory, if it has few names; none where that cannot be told.
fn beside(directory: &File) -> Vec<OsString> {
    let Ok(entries) = rustix::fs::Dir::read_from(directory) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (number, entry) in entries.enumerate() {
        let Ok(entry) = entry else { return Vec::new() };
        if number >= FEW {
            return Vec::new();
        }
        let name = entry.file_name().to_bytes();
        // Of another type, or one that the file system does not tell, it is asked for by itself.
        if entry.file_type() == FileType::Directory && !matches!(name, b"." | b"..") {
            found.push(OsStr::from_bytes(name).to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::disk::RealDisk;
    use super::*;

    /// Counts syncs of directories.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl Disk for Counting {
        fn create(&self, place: Place<'_>, mode: u32) -> io::Result<File> {
            RealDisk.create(place, mode)
        }
        fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
            RealDisk.write(file, path, bytes)
        }
        fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
            RealDisk.sync_file(file, path)
        }
        fn link(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
            RealDisk.link(from, to)
        }
        fn rename(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
            RealDisk.rename(from, to)
        }
        fn unlink(&self, place: Place<'_>) -> io::Result<()> {
            RealDisk.unlink(place)
        }
        fn make_dir(&self, place: Place<'_>, mode: u32) -> io::Result<()> {
            RealDisk.make_dir(place, mode)
        }
        fn open_dir(&self, root: &Path, below: &Path) -> io::Result<File> {
            RealDisk.open_dir(root, below)
        }
        fn sync_dir(&self, directory: &File, path: &Path) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            RealDisk.sync_dir(directory, path)
        }
    }

    #[test]
    fn one_sync_is_enough_for_all_that_stood_there_before() {
        let place = tempfile::tempdir().unwrap();
        for folder in ["a/x", "a/y", "b", "c"] {
            std::fs::create_dir_all(place.path().join(folder)).unwrap();
        }
        std::fs::write(place.path().join("file"), "").unwrap();
        let (disk, dirs) = (Counting::default(), Dirs::default());
        let synced = |below: &str| {
            let before = disk.0.load(Ordering::Relaxed);
            let opened = dirs.ensure(&disk, place.path(), Path::new(below), 0o700);
            assert_eq!(opened.is_ok(), below != "file", "{below}");
            disk.0.load(Ordering::Relaxed) - before
        };
        assert_eq!(synced("a/x"), 2);
        for known in ["a/y", "b", "c", "a/x"] {
            assert_eq!(synced(known), 0, "{known}");
        }
        // One that was not there yet is not known by it, whoever made it.
        std::fs::create_dir(place.path().join("d")).unwrap();
        assert_eq!(synced("d"), 1);
        assert_eq!(synced("a/z"), 1);
        assert_eq!(synced("file"), 0);
    }
}
