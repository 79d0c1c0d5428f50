//! Directories that are known to survive a loss of power.
//!
//! A file is only as durable as every directory on its path. Another process may have made a
//! directory and not yet synced it, so finding one proves nothing: each is synced into its parent
//! once by this handle before it relies on it. This backend never removes a directory; where
//! somebody else did, what is known is forgotten.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, Place};

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
                parent = open(&at)?;
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
            disk.sync_dir(&parent, &above).map_err(DirError::Sync)?;
            self.known().insert(at.clone());
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
