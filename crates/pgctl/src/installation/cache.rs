//! What installed programs have said about themselves, as long as they are the same files.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Installation, folder_of_programs};
use crate::error::Result;

/// Remembers installations that were seen to work: looking at one runs three programs.
///
/// An installation is looked at again once one of its programs is another file than before, and as long as a folder of it
/// is missing. What did not work is not remembered.
#[derive(Debug, Default)]
pub struct InstallationCache(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    installations: HashMap<PathBuf, (Vec<Option<Stamp>>, Installation)>,
    /// Where each `pg_config` says its programs are.
    told: HashMap<PathBuf, (Option<Stamp>, PathBuf)>,
}

/// The programs that an [`Installation`] is known by.
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_config"];

/// One state of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = path.metadata().ok()?;
        Some(Self {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// Whether its folders besides that of its programs were found, and are there: one that was not yet unpacked may be
/// there now, also though no program is another one.
fn is_whole(installation: &Installation) -> bool {
    let folders = [installation.extension_lib_dir(), installation.share_dir()];
    folders
        .iter()
        .all(|folder| folder.is_some_and(Path::is_dir))
}

impl InstallationCache {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Installation::at`], without running a program where the same ones have been run.
    ///
    /// # Errors
    /// As there.
    pub fn at(&self, bin_dir: impl AsRef<Path>) -> Result<Installation> {
        let Ok(bin_dir) = folder_of_programs(bin_dir.as_ref()) else {
            return Installation::at(bin_dir);
        };
        // Taken before they run: of what is replaced meanwhile nothing is known.
        let stamps: Vec<_> = PROGRAMS
            .iter()
            .map(|program| Stamp::of(&bin_dir.join(program)))
            .collect();
        if let Some((known, installation)) = self.known().installations.get(&bin_dir)
            && *known == stamps
            && is_whole(installation)
        {
            return Ok(installation.clone());
        }
        let installation = Installation::at(&bin_dir)?;
        let entry = (stamps, installation.clone());
        self.known().installations.insert(bin_dir, entry);
        Ok(installation)
    }

    /// Forgets everything: whoever asks next is told how it is now.
    pub fn clear(&self) {
        *self.known() = Known::default();
    }

    /// The folder that this `pg_config` names, or what `ask` finds it to name.
    pub(super) fn bin_dir_told(
        &self,
        program: &Path,
        ask: impl FnOnce(&Path) -> Option<PathBuf>,
    ) -> Option<PathBuf> {
        let stamp = Stamp::of(program);
        if let Some((known, told)) = self.known().told.get(program)
            && *known == stamp
            // A script names another folder when that version goes, and stays as it is.
            && told.join("postgres").exists()
        {
            return Some(told.clone());
        }
        let told = ask(program)?;
        let entry = (stamp, told.clone());
        self.known().told.insert(program.to_owned(), entry);
        Some(told)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each entry is put in whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
