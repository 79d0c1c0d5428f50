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

/// The directories that this handle knows to be durable.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    known: Mutex<Known>,
}

/// By their path below the root.
#[derive(Debug, Default)]
struct Known {
    durable: HashSet<PathBuf>,
    /// Those of many names: they are not looked through again.
    large: HashSet<PathBuf>,
    /// How often all was forgotten: what was seen before is not known after.
    forgotten: u64,
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
            let folder = at.parent().unwrap_or(Path::new(""));
            let (forgotten, large) = {
                let known = self.known();
                (known.forgotten, known.large.contains(folder))
            };
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
            let seen = if large {
                Beside::TooMany
            } else {
                beside(&parent)
            };
            disk.sync_dir(&parent, &above).map_err(DirError::Sync)?;
            let mut known = self.known();
            if known.forgotten == forgotten {
                match seen {
                    Beside::Few(names) => {
                        let names = names.iter().map(|name| folder.join(name));
                        known.durable.extend(names);
                    }
                    Beside::TooMany => {
                        known.large.insert(folder.to_owned());
                    }
                }
                known.durable.insert(at.clone());
            }
            drop(known);
            parent = next;
        }
        Ok(parent)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knows(&self, below: &Path) -> bool {
        self.known().durable.contains(below)
    }

    /// Forgets everything: somebody removed a directory behind our back.
    pub(super) fn forget(&self) {
        let mut known = self.known();
        *known = Known {
            forgotten: known.forgotten.wrapping_add(1),
            ..Known::default()
        };
    }
}

/// What stands in a directory.
#[derive(Debug)]
enum Beside {
    /// The directories among its few names; none where that cannot be told.
    Few(Vec<OsString>),
    TooMany,
}

fn beside(directory: &File) -> Beside {
    let unknown = || Beside::Few(Vec::new());
    let Ok(entries) = rustix::fs::Dir::read_from(directory) else {
        return unknown();
    };
    let mut found = Vec::new();
    for (number, entry) in entries.enumerate() {
        let Ok(entry) = entry else { return unknown() };
        if number >= FEW {
            return Beside::TooMany;
        }
        let name = entry.file_name().to_bytes();
        // Of another type, or one that the file system does not tell, it is asked for by itself.
        if entry.file_type() == FileType::Directory && !matches!(name, b"." | b"..") {
            found.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Beside::Few(found)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::disk::RealDisk;
    use super::*;

    /// Counts syncs of directories, and does something else before the next one.
    #[derive(Default)]
    struct Counting(AtomicUsize, Mutex<Option<Box<dyn FnOnce() + Send>>>);

    impl std::fmt::Debug for Counting {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_tuple("Counting").field(&self.0).finish()
        }
    }

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
            if let Some(meanwhile) = self.1.lock().unwrap().take() {
                meanwhile();
            }
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

    #[test]
    fn what_was_seen_before_somebody_removed_a_directory_is_not_known_after() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().to_owned();
        std::fs::create_dir_all(root.join("packs/ab")).unwrap();
        let (disk, dirs) = (Counting::default(), std::sync::Arc::new(Dirs::default()));
        let ensure = |below: &str| {
            let before = disk.0.load(Ordering::Relaxed);
            dirs.ensure(&disk, &root, Path::new(below), 0o700).unwrap();
            disk.0.load(Ordering::Relaxed) - before
        };
        assert_eq!(ensure("packs"), 1);
        // Its names are read; then one of them goes, and another put notices.
        let (other, gone) = (std::sync::Arc::clone(&dirs), root.join("packs/ab"));
        *disk.1.lock().unwrap() = Some(Box::new(move || {
            std::fs::remove_dir(gone).unwrap();
            other.forget();
        }));
        assert_eq!(ensure("packs/cd"), 1);
        // Somebody makes it again, and has not synced it.
        std::fs::create_dir(root.join("packs/ab")).unwrap();
        assert_eq!(ensure("packs/ab"), 2, "and what is above");
        assert_eq!(ensure("packs/cd"), 0);
    }

    #[test]
    fn a_directory_of_many_names_is_looked_through_once() {
        let place = tempfile::tempdir().unwrap();
        let name = |number: usize| format!("packs/{number:04}");
        for number in 0..=FEW {
            std::fs::create_dir_all(place.path().join(name(number))).unwrap();
        }
        let (disk, dirs) = (Counting::default(), Dirs::default());
        let ensure = |below: &str| {
            let before = disk.0.load(Ordering::Relaxed);
            dirs.ensure(&disk, place.path(), Path::new(below), 0o700)
                .unwrap();
            disk.0.load(Ordering::Relaxed) - before
        };
        assert_eq!(ensure(&name(0)), 2);
        assert_eq!(ensure(&name(0)), 0);
        // It has fewer by now, which nobody looks at.
        for number in 10..=FEW {
            std::fs::remove_dir(place.path().join(name(number))).unwrap();
        }
        assert_eq!(ensure(&name(1)), 1);
        assert_eq!(ensure(&name(2)), 1);
        dirs.forget();
        assert_eq!(ensure(&name(3)), 2);
        assert_eq!(ensure(&name(4)), 0);
    }
}
