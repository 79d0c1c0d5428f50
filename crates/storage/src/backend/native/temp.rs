//! Temporaries: where unfinished objects live, and who may remove the ones that a killed process
//! left behind.
//!
//! A writer holds a file lock on its temporary. The kernel drops the lock with the process, so a
//! temporary that is old and can be locked belongs to nobody.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::disk::Disk;
use super::version;

/// Younger temporaries are never swept: their writer may not have locked them yet.
const GRACE: Duration = Duration::from_secs(3600);

/// A file that is being written; removed unless it was made an object.
#[derive(Debug)]
pub(super) struct Temp {
    pub(super) path: PathBuf,
    pub(super) file: File,
    disk: Arc<dyn Disk>,
    armed: bool,
}

impl Temp {
    pub(super) fn create(disk: &Arc<dyn Disk>, directory: &Path, mode: u32) -> io::Result<Self> {
        let name = format!("{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = directory.join(name);
        let file = disk.create(&path, mode)?;
        let temp = Self {
            path,
            file,
            disk: Arc::clone(disk),
            armed: true,
        };
        temp.file.lock()?;
        Ok(temp)
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
            let _swept_later = self.disk.unlink(&self.path);
        }
    }
}

/// Removes the temporaries of writers that are gone. `now` is the file system's clock.
pub(super) fn sweep(directory: &Path, now: std::time::SystemTime) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // Others sweep too: whatever vanishes meanwhile is done.
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let Ok(meta) = file.metadata() else { continue };
        let age = now
            .duration_since(version::modified(&meta))
            .unwrap_or_default();
        if age < GRACE {
            continue;
        }
        match file.try_lock() {
            Ok(()) => removed += usize::from(fs::remove_file(&path).is_ok()),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
    Ok(removed)
}
