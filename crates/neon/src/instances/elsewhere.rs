//! Instances whose data directory somebody chose a place for, perhaps on another disk.
//!
//! The folder of the instance in the home then has a link at `data`. Everything is made beside the place,
//! as `.neon-new-<id>`, and moved there last; tablespaces are in `<place>-tablespaces`. In the trash the data directory is
//! beside its place, as `.neon-trash-<id>`: nothing is ever copied from disk to disk.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use neon_pgctl::OsUser;

use crate::error::{Error, ErrorKind, Result};
use crate::instances::{Instances, PgRecord};
use crate::record;

impl Instances<'_> {
    /// Where an instance is made before it gets its name.
    pub(super) fn staging(&self, record: &PgRecord) -> PathBuf {
        match &record.pgdata {
            Some(place) => beside(place, "new", &record.id),
            None => self.0.home().new_folder(&record.id),
        }
    }

    /// Where the tablespaces of an instance are.
    pub(super) fn tablespaces(&self, record: &PgRecord) -> PathBuf {
        match &record.pgdata {
            Some(place) => tablespaces(place),
            None => {
                let folder = self.0.home().instance_folder(record.name.as_str());
                folder.join("tablespaces")
            }
        }
    }

    /// Gives what was made its name. From the moment that the folder is there, a crash is settled by going on.
    pub(super) fn place(&self, record: &PgRecord, user: Option<&OsUser>) -> Result<()> {
        let folder = self.0.home().instance_folder(record.name.as_str());
        let staging = self.staging(record);
        let Some(place) = &record.pgdata else {
            return record::rename(&staging, &folder);
        };
        let shell = self.0.home().new_folder(&record.id);
        record::remove_tree(&shell)?;
        record::folder_of(&shell, 0o700, user)?;
        for name in ["log", "run"] {
            record::folder_of(&shell.join(name), 0o700, user)?;
        }
        let pass_file = staging.join("pgpass");
        if let Ok(content) = fs::read(&pass_file) {
            record::put(&shell.join("pgpass"), &content, 0o600, user)?;
        }
        record::relink(&shell.join("data"), place, user)?;
        record::rename(&shell, &folder)?;
        self.finish_place(record)
    }

    /// Moves what was made to its place, if it is not there.
    pub(super) fn finish_place(&self, record: &PgRecord) -> Result<()> {
        let Some(place) = &record.pgdata else {
            return Ok(());
        };
        let staging = self.staging(record);
        shift(&staging.join("tablespaces"), &tablespaces(place))?;
        shift(&staging.join("data"), place)?;
        record::remove_tree(&staging)
    }

    /// Moves the data directory beside its place, for the trash.
    pub(super) fn put_away(&self, record: &PgRecord) -> Result<()> {
        let Some(place) = &record.pgdata else {
            return Ok(());
        };
        let away = beside(place, "trash", &record.id);
        shift(&tablespaces(place), &tablespaces(&away))?;
        shift(place, &away)
    }

    /// Refuses to move it back over what has its place now.
    pub(super) fn can_come_back(record: &PgRecord) -> Result<()> {
        let Some(place) = &record.pgdata else {
            return Ok(());
        };
        if !beside(place, "trash", &record.id).exists() {
            // Moved back by somebody who was killed then; or removed.
            if place.join("PG_VERSION").exists() {
                return Ok(());
            }
            return Err(Error::new(
                ErrorKind::NotFound,
                place.display().to_string(),
                "is not in the trash any more",
            ));
        }
        check(Some(place))?;
        check(Some(&tablespaces(place)))
    }

    /// Moves it back.
    pub(super) fn bring_back(&self, record: &PgRecord) -> Result<()> {
        let Some(place) = &record.pgdata else {
            return Ok(());
        };
        let away = beside(place, "trash", &record.id);
        shift(&tablespaces(&away), &tablespaces(place))?;
        shift(&away, place)
    }

    /// The folders that the trash has of it.
    pub(super) fn remains(&self, record: &PgRecord) -> Vec<PathBuf> {
        let mut folders = vec![self.0.home().trash_folder(&record.id)];
        if let Some(place) = &record.pgdata {
            let away = beside(place, "trash", &record.id);
            folders.push(tablespaces(&away));
            folders.push(away);
        }
        folders
    }
}

/// Refuses a place that cannot be one.
pub(super) fn check(place: Option<&Path>) -> Result<()> {
    let Some(place) = place else { return Ok(()) };
    let refuse =
        |kind, reason: &'static str| Err(Error::new(kind, place.display().to_string(), reason));
    if !place.is_absolute() || place.file_name().is_none() {
        return refuse(ErrorKind::Invalid, "is no absolute path of a folder");
    }
    if !place.parent().is_some_and(Path::is_dir) {
        return refuse(ErrorKind::NotFound, "is in no folder that is there");
    }
    match fs::read_dir(place) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(place, "cannot be used", error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => refuse(ErrorKind::Exists, "has something in it already"),
        },
    }
}

/// Moves a folder unless it is moved already; over an empty one at most.
fn shift(from: &Path, to: &Path) -> Result<()> {
    if fs::symlink_metadata(from).is_err() {
        return Ok(());
    }
    record::rename(from, to)
}

fn beside(place: &Path, what: &str, id: &str) -> PathBuf {
    place.with_file_name(format!(".neon-{what}-{id}"))
}

fn tablespaces(place: &Path) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().as_bytes().to_vec();
    name.extend_from_slice(b"-tablespaces");
    place.with_file_name(std::ffi::OsStr::from_bytes(&name))
}
