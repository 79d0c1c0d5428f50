//! Directories that are known to survive a loss of power.
//!
//! A file is only as durable as every directory on its path. Another process may have made a
//! directory and not yet synced it, so finding one proves nothing: each is synced into its parent
//! once by this handle before it relies on it. Directories are never removed by this backend, so
//! what is known stays true.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::disk::Disk;

/// The directories that this handle knows to be durable.
#[derive(Debug, Default)]
pub(super) struct Dirs {
    known: Mutex<HashSet<PathBuf>>,
}

/// What went wrong while making a directory durable.
#[derive(Debug)]
pub(super) enum DirError {
    /// Making it failed.
    Make(io::Error),
    /// Syncing it failed.
    Sync(io::Error),
}

impl Dirs {
    /// Makes `directory` and what is missing above it, down from `root`, durable. The root exists
    /// and is durable already.
    pub(super) fn ensure(
        &self,
        disk: &dyn Disk,
        root: &Path,
        directory: &Path,
        mode: u32,
    ) -> Result<(), DirError> {
        if directory == root || self.knows(directory) {
            return Ok(());
        }
        let Some(parent) = directory.parent() else {
            return Ok(());
        };
        self.ensure(disk, root, parent, mode)?;
        match disk.make_dir(directory, mode) {
            Ok(()) => {}
            // A link is no directory: what it leads to is not listed, and may lie elsewhere.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && directory.symlink_metadata().is_ok_and(|meta| meta.is_dir()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(DirError::Make(io::Error::from(
                    io::ErrorKind::NotADirectory,
                )));
            }
            Err(error) => return Err(DirError::Make(error)),
        }
        disk.sync_dir(parent).map_err(DirError::Sync)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(directory.to_owned());
        Ok(())
    }

    fn knows(&self, directory: &Path) -> bool {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(directory)
    }

    /// Forgets everything: somebody removed a directory behind our back.
    pub(super) fn forget(&self) {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}
