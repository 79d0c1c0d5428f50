//! Unlogged relations of a cluster that was stopped cleanly.
//!
//! A cold snapshot has them whole. The recovery that only takes the cluster to a new timeline would empty them, as any recovery
//! does, although it replays nothing: so they step aside meanwhile, each in its own folder, under a name that the server does
//! not know (`16384.neon-kept`). After a crash in between, whoever restores again removes those names with everything
//! else that no snapshot has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use neon_pg_layout::{PgMajor, tablespace_version_directory};

use crate::error::{Error, Result};
use crate::record;

const KEPT: &str = ".neon-kept";

/// Relations that stepped aside.
#[derive(Debug, Default)]
pub(super) struct Aside {
    files: Vec<PathBuf>,
}

impl Aside {
    /// Renames every file of every unlogged relation, but for its `init` fork.
    pub(super) fn step(data: &Path, major: PgMajor) -> Result<Self> {
        let mut aside = Self::default();
        for folder in databases(data, major) {
            let names = names(&folder)?;
            let unlogged: BTreeSet<&str> = names
                .iter()
                .filter_map(|name| name.strip_suffix("_init"))
                .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
                .collect();
            for name in &names {
                let (number, rest) = match name.find(|letter: char| !letter.is_ascii_digit()) {
                    Some(at) => name.split_at(at),
                    None => (name.as_str(), ""),
                };
                let fork = rest.is_empty()
                    || rest.starts_with('.')
                    || rest.starts_with("_fsm")
                    || rest.starts_with("_vm");
                if fork && unlogged.contains(number) && !name.ends_with(KEPT) {
                    let from = folder.join(name);
                    move_file(&from, &kept(&from))?;
                    aside.files.push(from);
                }
            }
        }
        Ok(aside)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Puts them back in place of the empty ones. Durable when it returns.
    pub(super) fn back(self) -> Result<()> {
        let folders: BTreeSet<&Path> = self.files.iter().filter_map(|file| file.parent()).collect();
        for file in &self.files {
            move_file(&kept(file), file)?;
        }
        for folder in folders {
            record::sync_folder(folder)?;
        }
        Ok(())
    }
}

fn kept(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(KEPT);
    PathBuf::from(name)
}

fn move_file(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| Error::io(from, "cannot be moved", error))
}

/// The folders of databases, in tablespaces too. A folder of tablespaces may serve clusters of several majors, each with a
/// folder of its own in it, and only ours may be touched.
fn databases(data: &Path, major: PgMajor) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        paths.filter(|path| path.is_dir()).collect()
    };
    let version = tablespace_version_directory(major.layout());
    let mut found = below(&data.join("base"));
    for tablespace in below(&data.join("pg_tblspc")) {
        found.extend(below(&tablespace.join(&version)));
    }
    found
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::io(folder, "cannot be listed", error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_major_has_in_the_same_tablespace_stays() -> std::io::Result<()> {
        let scratch = tempfile::tempdir()?;
        let data = scratch.path().join("data");
        let place = scratch.path().join("place");
        fs::create_dir_all(data.join("base"))?;
        fs::create_dir_all(data.join("pg_tblspc"))?;
        let versions = [PgMajor::V15, PgMajor::V13].map(|major| {
            place
                .join(tablespace_version_directory(major.layout()))
                .join("5")
        });
        for folder in &versions {
            fs::create_dir_all(folder)?;
            for name in ["16384", "16384_init"] {
                fs::write(folder.join(name), b"")?;
            }
        }
        std::os::unix::fs::symlink(&place, data.join("pg_tblspc/16390"))?;
        let aside = Aside::step(&data, PgMajor::V15).map_err(std::io::Error::other)?;
        let [ours, theirs] = &versions;
        assert!(!ours.join("16384").exists() && ours.join("16384.neon-kept").exists());
        assert!(theirs.join("16384").exists());
        aside.back().map_err(std::io::Error::other)?;
        assert!(ours.join("16384").exists());
        Ok(())
    }
}
