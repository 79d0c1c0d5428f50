//! The home: one folder with all that is known on this machine.
//!
//! ```text
//! neon.json               format version and id
//! pg/<name>/              instances: data, log, run, pgpass; .new-<id> while one is made from a snapshot
//! pg/.home-<id>           empty: says that this is the folder of this home, and not what a disk was mounted on
//! trash/<id>/             instances that were destroyed, for a while
//! trees/<snapshot>/        the files of snapshots that instances share blocks with
//! store/local/            the storage that is there from the start
//! state/pg/<name>.json    a record for each instance, <name>.lock beside it; <name>.heads the numbers it gave
//! state/trash/<id>.json   the records of those in the trash
//! state/storage/<name>.json
//! state/operations.ndjson what was changed, a line each
//! config.json             settings of the command line, written by hand
//! cache/<repository>/     what was read from distant storages; may go at any time
//! ```
//!
//! As root, instances belong to another user, who must be able to walk to them: then the home, `pg` and `trash` let everybody
//! through and list nothing, and all else is closed.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::instances::{PgRecord, Stage, led_to};
use crate::record;

const VERSION: u32 = 1;
pub(crate) const ABOUT: &str = "neon.json";
/// An instance of the trash, beside the others.
pub(crate) const TRASHED: &str = ".trash-";

#[derive(Debug, Serialize, Deserialize)]
struct About {
    version: u32,
    id: String,
    /// Whether the folder of instances got its sign.
    #[serde(default)]
    signed: bool,
}

/// Where a home is, made if it was not there.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
    id: String,
}

impl Home {
    /// Opens the home in this folder, or makes one there. Its parent must be there.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a folder with other things in it, or of a newer version;
    /// [`Environment`](ErrorKind::Environment) without the rights.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)
            .map_err(|error| Error::io(root, "cannot be made absolute", error))?;
        leads_somewhere(&root)?;
        let place = root.join(ABOUT);
        let about: About = match record::read(&place)? {
            Some(about) => about,
            None => {
                refuse_strange(&root)?;
                let walked = if rustix::process::geteuid().is_root() {
                    0o711
                } else {
                    0o700
                };
                for (name, mode) in [
                    ("", walked),
                    ("pg", walked),
                    ("trash", walked),
                    ("store", 0o700),
                    ("state", 0o700),
                    ("state/pg", 0o700),
                    ("state/trash", 0o700),
                    ("state/storage", 0o700),
                ] {
                    record::folder(&root.join(name), mode)?;
                }
                set_mode(&root, walked)?;
                let new = About {
                    version: VERSION,
                    id: random_id()?,
                    signed: false,
                };
                // Two first commands at once: one of them makes it.
                match record::create(&place, &new) {
                    Ok(()) => new,
                    Err(error) if error.kind() == ErrorKind::Exists => {
                        record::read(&place)?.unwrap_or(new)
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        if about.version != VERSION {
            return Err(Error::new(
                ErrorKind::Invalid,
                root.display().to_string(),
                format!(
                    "is a home of version {}; this program knows version {VERSION}",
                    about.version
                ),
            )
            .hinted("use a newer neon"));
        }
        let home = Self { root, id: about.id };
        if !about.signed {
            home.sign();
        }
        Ok(home)
    }

    /// Opens the home in this folder to look at it. Where there is none yet, nothing is made; one that is there gets
    /// its sign if it has none yet.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_to_read(root: &Path) -> Result<Self> {
        let absolute = std::path::absolute(root)
            .map_err(|error| Error::io(root, "cannot be made absolute", error))?;
        if absolute.join(ABOUT).exists() {
            return Self::open(&absolute);
        }
        leads_somewhere(&absolute)?;
        refuse_strange(&absolute)?;
        Ok(Self {
            root: absolute,
            id: String::new(),
        })
    }

    /// Whether there is a home; one that was opened to be read may not have been made.
    #[must_use]
    pub fn is_made(&self) -> bool {
        !self.id.is_empty()
    }

    /// Whether something is recorded here, also when what says that it is a home was lost.
    pub(crate) fn has_records(&self) -> bool {
        [self.instances(), self.trash(), self.storages()]
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flat_map(Iterator::flatten)
            .any(|entry| entry.file_name().as_bytes().ends_with(b".json"))
    }

    /// Marks the folder of instances, if it is the one: with all instances of ours in it, or before there were any. What cannot be
    /// marked now is marked by who may write there.
    fn sign(&self) {
        let pg = self.root.join("pg");
        let all = |seen: Vec<bool>| seen.into_iter().all(|seen| seen);
        if !pg.is_dir() || !self.seen_instances().is_some_and(all) {
            return;
        }
        // Nothing is in it, so that it needs no other name first.
        let sign = self.sign_of_pg();
        let made = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&sign)
            .map_err(|error| Error::io(&sign, "cannot be made", error));
        let made = made.and_then(|_| record::sync_folder(&pg));
        // Whatever keeps it from being made now may be gone the next time.
        drop(made.and_then(|()| {
            let about = About {
                version: VERSION,
                id: self.id.clone(),
                signed: true,
            };
            record::replace(&self.root.join(ABOUT), &about)
        }));
    }

    /// Of each instance that has its folder in that of all, whether it is there. Nothing when that cannot be known.
    fn seen_instances(&self) -> Option<Vec<bool>> {
        let (records, unreadable) = record::list_readable::<PgRecord>(&self.instances()).ok()?;
        // Those that are adopted have at most a log there, and what is being made has not yet.
        let placed = records
            .into_iter()
            .filter(|(_, record)| record.stage == Stage::Ready && record.adopted.is_none());
        let seen = placed
            .map(|(name, _)| fs::symlink_metadata(self.instance_folder(&name)).is_ok())
            .collect();
        unreadable.is_empty().then_some(seen)
    }

    /// Whether the folder of instances has no instance at all, and there should be some.
    pub(crate) fn is_without_its_instances(&self) -> bool {
        let none = |seen: Vec<bool>| !seen.is_empty() && !seen.contains(&true);
        let hidden = |entry: fs::DirEntry| entry.file_name().as_bytes().starts_with(b".");
        self.seen_instances().is_some_and(none)
            && fs::read_dir(self.root.join("pg")).is_ok_and(|entries| entries.flatten().all(hidden))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Its identity: random, made with it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn instances(&self) -> PathBuf {
        self.root.join("state/pg")
    }

    pub(crate) fn storages(&self) -> PathBuf {
        self.root.join("state/storage")
    }

    pub(crate) fn operations(&self) -> PathBuf {
        self.root.join("state/operations.ndjson")
    }

    pub(crate) fn instance_folder(&self, name: &str) -> PathBuf {
        self.root.join("pg").join(name)
    }

    /// What is in the folder of instances as long as it is that of this home.
    pub(crate) fn sign_of_pg(&self) -> PathBuf {
        self.root.join("pg").join(format!(".home-{}", self.id))
    }

    /// Whether the sign was put there.
    pub(crate) fn is_signed(&self) -> bool {
        let about = record::read::<About>(&self.root.join(ABOUT));
        about.is_ok_and(|about| about.is_some_and(|about| about.signed))
    }

    /// Where an instance is made before it gets its name.
    pub(crate) fn new_folder(&self, id: &str) -> PathBuf {
        self.root.join("pg").join(format!(".new-{id}"))
    }

    /// The files of a snapshot, for clones that share their blocks.
    pub(crate) fn tree(&self, commit: &str) -> PathBuf {
        self.root.join("trees").join(commit)
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("state/trash")
    }

    /// Says of an instance of the trash that it is being removed for good.
    pub(crate) fn gone(&self, id: &str) -> PathBuf {
        self.trash().join(format!("{id}.gone"))
    }

    /// The folder that the trash has of an instance: beside the instances where these are on a disk of their own.
    pub(crate) fn trash_folder(&self, id: &str) -> PathBuf {
        let beside = self.trash_beside(id);
        match beside.exists() {
            true => beside,
            false => self.root.join("trash").join(id),
        }
    }

    /// Moves the folder of an instance to the trash. Durable when it returns.
    pub(crate) fn to_trash(&self, folder: &Path, id: &str) -> Result<()> {
        let trash = self.root.join("trash").join(id);
        match fs::rename(folder, &trash) {
            Ok(()) => {
                record::sync_folder(&self.root.join("trash"))?;
                record::sync_folder(&self.root.join("pg"))
            }
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                record::rename(folder, &self.trash_beside(id))
            }
            Err(error) => Err(Error::io(folder, "cannot be moved", error)),
        }
    }

    fn trash_beside(&self, id: &str) -> PathBuf {
        self.root.join("pg").join(format!("{TRASHED}{id}"))
    }

    /// What was read from distant repositories, for each of them. May be removed at any time.
    pub(crate) fn cache(&self, repository: &str) -> PathBuf {
        self.root.join("cache").join(repository)
    }

    pub(crate) fn local_store(&self) -> PathBuf {
        self.root.join("store/local")
    }
}

/// A home behind a link to nothing is not one that was never made.
fn leads_somewhere(root: &Path) -> Result<()> {
    for place in root.ancestors() {
        if place.is_symlink()
            && matches!(fs::metadata(place), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
        {
            let to = led_to(place);
            return Err(Error::new(
                ErrorKind::Environment,
                place.display().to_string(),
                format!("leads to nothing: there is no {}", to.display()),
            )
            .hinted("mount the disk that it is on; if the link is of no use any more, remove it"));
        }
    }
    Ok(())
}

/// A folder that is there and has something in it is not made a home: it is likely a mistake. What a first command
/// that was killed left is no hindrance.
fn refuse_strange(root: &Path) -> Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(root, "cannot be listed", error)),
    };
    for entry in entries {
        let name = entry
            .map_err(|error| Error::io(root, "cannot be listed", error))?
            .file_name();
        let name = name.to_string_lossy();
        let ours = ["pg", "trash", "store", "state", "cache", "config.json"].contains(&&*name)
            || name.starts_with('.');
        if !ours {
            return Err(Error::new(
                ErrorKind::Invalid,
                root.display().to_string(),
                format!("is no home and has something in it: {name}"),
            )
            .hinted("name an empty folder, or one that is not there"));
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| Error::io(path, "cannot get its mode", error))
}

/// Sixteen random hexadecimal digits.
pub(crate) fn random_id() -> Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(
            ErrorKind::Environment,
            "randomness of the operating system",
            "cannot be had",
        )
        .caused_by(error)
    })?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}
