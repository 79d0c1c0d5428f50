//! Instances whose data directory somebody chose a place for, perhaps on another disk.
//!
//! The folder of the instance in the home then has a link at `data`. Everything is made beside the place,
//! as `.neon-new-<id>`, and moved there last; tablespaces are in `<place>-tablespaces`, which is ours only if the record says
//! so. In the trash the data directory is
//! beside its place, as `.neon-trash-<id>`: nothing is ever copied from disk to disk.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use neon_pgctl::{OsUser, OwnSettings};
use rustix::fs::Access;

use crate::doctor::first_closed;
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
        let made = staging.join("tablespaces");
        if fs::symlink_metadata(&made).is_ok() {
            self.own_tablespaces(record)?;
            shift(&made, &tablespaces(place))?;
        }
        shift(&staging.join("data"), place)?;
        record::remove_tree(&staging)
    }

    /// Writes down that the folder for tablespaces beside a chosen place is ours, before it is made. One that somebody else
    /// made is refused: what we call ours goes to the trash with the instance.
    pub(super) fn own_tablespaces(&self, record: &PgRecord) -> Result<()> {
        let known = self.known(&record.name)?;
        let Some(place) = known.pgdata.as_ref().filter(|_| !known.tablespaces_beside) else {
            return Ok(());
        };
        strangers(place)?;
        self.update(&record.name, |record| record.tablespaces_beside = true)
    }

    /// Has the server of an instance log into its folder in the home, and not beside its data directory, where it may have
    /// no rights, and others log as well.
    pub(super) fn log_at_home(&self, record: &PgRecord) -> Result<()> {
        let Some(place) = &record.pgdata else {
            return Ok(());
        };
        let failed = |error| Error::server(format!("pg {}", record.name), error);
        let Some(mut own) = OwnSettings::read(place).map_err(failed)? else {
            return Ok(());
        };
        let folder = self.0.home().instance_folder(record.name.as_str());
        let log = folder.join("log").display().to_string();
        let before = own.get("log_directory");
        // What somebody chose stays.
        let ours = before.is_some_and(|before| {
            before == "../log" || before.ends_with(&format!("/pg/{}/log", record.name))
        });
        if !ours || before == Some(log.as_str()) {
            return Ok(());
        }
        own.set("log_directory", &log);
        own.write(place).map_err(failed)
    }

    /// Moves the data directory beside its place, for the trash.
    pub(super) fn put_away(&self, record: &PgRecord) -> Result<()> {
        let Some(place) = &record.pgdata else {
            return Ok(());
        };
        let away = beside(place, "trash", &record.id);
        if record.tablespaces_beside {
            shift(&tablespaces(place), &tablespaces(&away))?;
        }
        shift(place, &away)
    }

    /// Refuses to move it back over what has its place now.
    pub(super) fn can_come_back(record: &PgRecord) -> Result<()> {
        let Some(place) = &record.pgdata else {
            return Ok(());
        };
        let away = beside(place, "trash", &record.id);
        if !away.join("PG_VERSION").exists() {
            // Moved back by somebody who was killed then; or removed, or a folder in its place for what is lost.
            if !away.exists() && place.join("PG_VERSION").exists() {
                return Ok(());
            }
            return Err(Error::new(
                ErrorKind::NotFound,
                place.display().to_string(),
                "is not in the trash any more",
            )
            .hinted(format!("neon pg trash --empty {} forgets it", record.name)));
        }
        check_folder(place)?;
        // Those that somebody who was killed then moved back already are ours.
        if record.tablespaces_beside && tablespaces(&away).exists() {
            check_folder(&tablespaces(place))?;
        }
        Ok(())
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
            if record.tablespaces_beside {
                folders.push(tablespaces(&away));
            }
            folders.push(away);
        }
        folders
    }
}

/// Refuses a place that cannot be one.
pub(super) fn check(place: Option<&Path>) -> Result<()> {
    let Some(place) = place else { return Ok(()) };
    check_folder(place)?;
    strangers(place)?;
    let device = |path: &Path| fs::metadata(path).map(|facts| facts.dev()).ok();
    let inside = place.parent().and_then(device);
    if device(place).is_some_and(|device| Some(device) != inside) {
        return Err(Error::new(
            ErrorKind::Invalid,
            place.display().to_string(),
            "is a file system of its own, and nothing can be moved there",
        )
        .hinted("name a folder in it"));
    }
    Ok(())
}

/// Refuses a place beside which somebody else has a folder where our tablespaces would be.
fn strangers(place: &Path) -> Result<()> {
    let beside = tablespaces(place);
    if fs::symlink_metadata(&beside).is_err() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Exists,
        beside.display().to_string(),
        format!(
            "is there already, and is where the tablespaces of {} would be",
            place.display()
        ),
    )
    .hinted("name another place"))
}

/// Refuses what is no path of a folder that is empty or not there.
fn check_folder(place: &Path) -> Result<()> {
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

/// Refuses a place that we cannot make anything beside, or that the user that servers run as cannot walk to.
pub(super) fn reachable(place: Option<&Path>, user: Option<&OsUser>) -> Result<()> {
    let Some(folder) = place.and_then(Path::parent) else {
        return Ok(());
    };
    if let Some(user) = user
        && let Some(closed) = first_closed(folder, user)
    {
        return Err(Error::new(
            ErrorKind::Environment,
            folder.display().to_string(),
            format!(
                "user {}, who its server runs as, cannot reach it: {} is closed to others",
                user.name().unwrap_or_default(),
                closed.display()
            ),
        )
        .hinted(format!("chmod o+x {}", closed.display())));
    }
    let access = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::access(folder, access).map_err(|error| {
        Error::io(folder, "nothing can be made in it", error).hinted(
            "name a place below a folder that you may write to; its data directory is made beside it first",
        )
    })
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

/// The id of the instance whose data directory, or whose tablespaces, are in the trash under this name beside its place.
pub(super) fn trashed_at(name: &str) -> Option<&str> {
    let id = name.strip_prefix(".neon-trash-")?;
    Some(id.strip_suffix(TABLESPACES).unwrap_or(id))
}

/// What the folder of the tablespaces has behind the name of the data directory.
const TABLESPACES: &str = "-tablespaces";

fn tablespaces(place: &Path) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().as_bytes().to_vec();
    name.extend_from_slice(TABLESPACES.as_bytes());
    place.with_file_name(std::ffi::OsStr::from_bytes(&name))
}
