//! What installed programs have said about themselves, as long as they are the same files.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(feature = "serde")]
use super::Version;
use super::{Installation, folder_of_programs, holds_library};
use crate::error::Result;

/// Remembers installations that were seen to work: looking at one runs three programs.
///
/// An installation is looked at again once one of its programs is another file than before, or the libraries beside them are
/// others, and as long as a folder of it is missing. What did not work is not remembered.
#[derive(Debug, Default)]
pub struct InstallationCache(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    installations: HashMap<PathBuf, (Vec<Option<Stamp>>, Installation)>,
    /// Where each `pg_config` says its programs are.
    told: HashMap<PathBuf, (Option<Stamp>, PathBuf)>,
    /// Something was learned that nobody [took](InstallationCache::learned).
    news: bool,
}

/// What an [`InstallationCache`] knows of installations, to be kept by who lives longer than one process.
///
/// It holds where the programs, and the folder of libraries beside them, still are the same, by device, number, size and times:
/// whoever changes one, changes these. Nobody else may write it: it names programs that are run.
#[cfg(feature = "serde")]
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LearnedInstallations(Vec<Learned>);

#[cfg(feature = "serde")]
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Learned {
    stamps: Vec<Option<Stamp>>,
    bin_dir: PathBuf,
    major: String,
    minor: u32,
    library_path: Option<PathBuf>,
    extension_lib_dir: Option<PathBuf>,
    share_dir: Option<PathBuf>,
}

/// The programs that an [`Installation`] is known by.
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_config"];

/// One state of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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

/// What an installation in this folder is known by: its programs, and the folder that they may find `libpq` in, if it is there.
fn stamps_of(bin_dir: &Path) -> Vec<Option<Stamp>> {
    let libraries = bin_dir.join("../lib").canonicalize().ok();
    let libraries = libraries.filter(|folder| holds_library(folder, "libpq."));
    PROGRAMS
        .iter()
        .map(|program| Stamp::of(&bin_dir.join(program)))
        .chain([libraries.and_then(|folder| Stamp::of(&folder))])
        .collect()
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
        let stamps = stamps_of(&bin_dir);
        if let Some((known, installation)) = self.known().installations.get(&bin_dir)
            && *known == stamps
            && is_whole(installation)
        {
            return Ok(installation.clone());
        }
        let installation = Installation::at(&bin_dir)?;
        let entry = (stamps, installation.clone());
        let mut known = self.known();
        known.installations.insert(bin_dir, entry);
        known.news = true;
        Ok(installation)
    }

    /// What is known of installations, if anything was learned since this was asked last.
    #[cfg(feature = "serde")]
    pub fn learned(&self) -> Option<LearnedInstallations> {
        let mut known = self.known();
        if !std::mem::take(&mut known.news) {
            return None;
        }
        // Of one that is gone nobody asks again.
        known.installations.retain(|bin_dir, _| bin_dir.is_dir());
        let mut all: Vec<_> = known
            .installations
            .values()
            .map(|(stamps, found)| Learned {
                stamps: stamps.clone(),
                bin_dir: found.bin_dir.clone(),
                major: found.version.major.to_string(),
                minor: found.version.minor,
                library_path: found.library_path.clone(),
                extension_lib_dir: found.extension_lib_dir.clone(),
                share_dir: found.share_dir.clone(),
            })
            .collect();
        all.sort_by(|one, other| one.bin_dir.cmp(&other.bin_dir));
        Some(LearnedInstallations(all))
    }

    /// Takes what another one learned, where this one knows nothing. It is believed as long as it holds.
    #[cfg(feature = "serde")]
    pub fn recall(&self, learned: LearnedInstallations) {
        let mut known = self.known();
        for one in learned.0 {
            let Ok(major) = one.major.parse() else {
                continue;
            };
            let found = Installation {
                bin_dir: one.bin_dir.clone(),
                version: Version {
                    major,
                    minor: one.minor,
                },
                library_path: one.library_path,
                extension_lib_dir: one.extension_lib_dir,
                share_dir: one.share_dir,
            };
            let entry = (one.stamps, found);
            known.installations.entry(one.bin_dir).or_insert(entry);
        }
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
