//! Temporaries: where unfinished objects live, and who may remove the ones that a killed process
//! left behind.
//!
//! A writer holds a file lock on its temporary. The kernel drops the lock with the process, so a
//! temporary that is old and can be locked belongs to nobody.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, OFlags};

use super::beneath;
use super::disk::{Disk, Place};
use super::version;

/// Younger temporaries are never swept: their writer may not have locked them yet.
const GRACE: Duration = Duration::from_secs(3600);

/// A file that is being written; removed unless it was made an object.
#[derive(Debug)]
pub(super) struct Temp {
    pub(super) path: PathBuf,
    pub(super) file: File,
    directory: File,
    disk: Arc<dyn Disk>,
    armed: bool,
}

impl Temp {
    /// In an open directory whose path is `above`.
    pub(super) fn create(
        disk: &Arc<dyn Disk>,
        directory: File,
        above: &Path,
        mode: u32,
    ) -> io::Result<Self> {
        let name = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = above.join(name);
        let file = disk.create(Place::new(&directory, &path), mode)?;
        let temp = Self {
            path,
            file,
            directory,
            disk: Arc::clone(disk),
            armed: true,
        };
        temp.file.lock()?;
        Ok(temp)
    }

    pub(super) fn place(&self) -> Place<'_> {
        Place::new(&self.directory, &self.path)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(&mut self.file, &self.path, bytes)
    }

    /// The name moved away; there is nothing to remove.
    pub(super) fn disarm(&mut self) {
        self.armed = false;
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if self.armed {
            // What can't be removed now is swept by a later process.
            let _swept_later = self.disk.unlink(self.place());
        }
    }
}

/// Removes the temporaries of writers that are gone. `now` is the file system's clock.
pub(super) fn sweep(directory: &File, now: std::time::SystemTime) -> io::Result<usize> {
    let mut removed = 0;
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        // Others sweep too: whatever vanishes meanwhile is done.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Ok(file) = beneath::open(directory, name, flags, 0) else {
            continue;
        };
        let Ok(meta) = file.metadata() else { continue };
        let age = now
            .duration_since(version::modified(&meta))
            .unwrap_or_default();
        if !meta.is_file() || age < GRACE {
            continue;
        }
        match file.try_lock() {
            Ok(()) => {
                let gone = rustix::fs::unlinkat(directory, name, AtFlags::empty());
                removed += usize::from(gone.is_ok());
            }
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
    Ok(removed)
}
