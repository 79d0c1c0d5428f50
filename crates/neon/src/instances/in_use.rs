//! The folders that clusters are in, so that nobody removes what holds one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use neon_pgctl::Adopted;

/// Where clusters are: data directories, tablespaces, logs, without symbolic links.
#[derive(Debug, Default)]
pub(super) struct InUse(BTreeSet<PathBuf>);

impl InUse {
    /// Those of all servers that run on this machine, as far as we may see them.
    pub(super) fn of_servers() -> Self {
        let mut used = Self::default();
        Adopted::running().iter().for_each(|data| used.add(data));
        used
    }

    /// The cluster in this data directory is in use.
    pub(super) fn add(&mut self, data: &Path) {
        let links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten();
        let links = links.flatten().map(|entry| entry.path());
        let all = links.chain([data.to_owned(), data.join("pg_wal")]);
        self.0
            .extend(all.filter_map(|path| path.canonicalize().ok()));
    }

    /// Whether a folder has something in it that is in use, or is in use itself.
    pub(super) fn is_at(&self, folder: &Path) -> bool {
        // What cannot be looked at is nothing to remove.
        let Ok(folder) = folder.canonicalize() else {
            return true;
        };
        self.0.iter().any(|used| used.starts_with(&folder))
    }
}
