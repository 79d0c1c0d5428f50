//! What the trash has on disk of instances that it does not remember: a disk that was given up for lost, and is mounted
//! again; a home whose records are of another day. No undo brings these back; emptying the trash frees them.
//!
//! Ours is what has the name of an instance of the trash, and an id that the operation log knows: beside a data directory that
//! somebody chose a place for, others keep what is theirs, and the disk of a home that was copied is that of the first one, too.
//!
//! No undo is not nobody: who lost the records may have taken the data directory for what it is, adopted it, and works with it.
//! Nothing is left of an instance of which any part is [in use](super::in_use).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neon_pgctl::Quiet;
use serde::Serialize;

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::home::TRASHED;
use crate::instances::elsewhere::trashed_at;
use crate::instances::in_use::InUse;
use crate::instances::used::bytes_on_disk;
use crate::instances::{Instances, PgRecord};
use crate::name::Name;
use crate::operation::Operation;
use crate::record;

/// The detail of an operation that has the data directory of an instance for which somebody chose a place.
pub(super) const PLACE: &str = "pgdata";
/// The detail of an operation that has the data directory of an instance that was adopted.
pub(super) const ADOPTED: &str = "data_dir";
/// The detail that has its id.
const ID: &str = "id";
/// How long processes of a dead server, and somebody else who has a look at it, are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A folder of an instance that was destroyed and of which the trash remembers nothing: nothing brings it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeftInTrash {
    /// Where it is.
    pub path: PathBuf,
    /// The id of the instance.
    pub id: String,
    /// The name that it had, where the operation log says so.
    pub name: Option<Name>,
    /// Bytes on disk that go with it.
    pub used: u64,
}

impl Instances<'_> {
    /// What the trash has on disk and does not remember. Counts what each uses. Nothing while a disk of the home is not
    /// mounted, or a record cannot be read: it may be that of what would be found. Nothing of what somebody adopted, and nothing
    /// in which a server runs.
    ///
    /// # Errors
    /// When the operation log cannot be read.
    pub async fn left_in_trash(&self) -> Result<Vec<LeftInTrash>> {
        let mut found = self.find_left()?;
        beside(move || {
            for one in &mut found {
                one.used = bytes_on_disk(&one.path);
            }
            Ok(found)
        })
        .await
    }

    /// Removes for good what the trash does not remember. What it used is free when this returns.
    ///
    /// Dropped, or killed: it is there as a whole, or [`finish_purges`](Self::finish_purges) finds the rest.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it is gone, or remembered by now; [`Busy`](ErrorKind::Busy) when it is used by
    /// now: somebody adopted it, or a server runs in it.
    pub async fn purge_left(&self, left: &LeftInTrash) -> Result<()> {
        let _lock = match &left.name {
            Some(name) => Some(self.lock(name).await?),
            None => None,
        };
        let subject = left.name.as_ref().map_or(&*left.id, Name::as_str);
        let mut operation = self.0.begin_relief("pg purge", subject)?;
        operation.detail(ID, left.id.clone());
        operation.detail("path", left.path.display().to_string());
        let removed = async {
            let subject = || left.path.display().to_string();
            if !self.find_left()?.iter().any(|now| now.path == left.path) {
                let used = self.in_use(&self.0.operations()?)?;
                return Err(match left.path.exists() && used.is_at(&left.path) {
                    true => Error::new(
                        ErrorKind::Busy,
                        subject(),
                        "was adopted, or a server runs in it",
                    ),
                    false => Error::new(
                        ErrorKind::NotFound,
                        subject(),
                        "is not left in the trash any more",
                    ),
                });
            }
            // The last process of a server that ended may write for a while.
            for data in [left.path.clone(), left.path.join("data")] {
                if data.join("PG_VERSION").exists() {
                    let quiet = Quiet::hold(&data, PATIENCE).await;
                    let quiet = quiet.and_then(|quiet| quiet.check());
                    quiet.map_err(|error| Error::server(subject(), error))?;
                }
            }
            // Whose lock is that of who starts a server: whoever comes first keeps the other from it.
            let path = left.path.clone();
            beside(move || record::remove_tree(&path)).await
        };
        let removed = removed.await;
        operation.end(removed)
    }

    /// The folders beside data directories that this home has, or had, at places that somebody chose.
    pub(crate) fn folders_beside(&self) -> BTreeSet<PathBuf> {
        self.beside_of(&self.0.operations().unwrap_or_default())
    }

    fn beside_of(&self, operations: &[Operation]) -> BTreeSet<PathBuf> {
        let home = self.0.home();
        let mut places: Vec<PathBuf> = operations
            .iter()
            .filter_map(|operation| operation.details.get(PLACE))
            .map(PathBuf::from)
            .collect();
        for folder in [home.instances(), home.trash()] {
            let records = record::list_readable::<PgRecord>(&folder);
            let records = records.map(|(records, _)| records).unwrap_or_default();
            places.extend(records.into_iter().filter_map(|(_, record)| record.pgdata));
        }
        let folders = places.iter().filter_map(|place| place.parent());
        folders
            .filter(|folder| folder.is_absolute())
            .map(Path::to_owned)
            .collect()
    }

    /// As [`left_in_trash`](Self::left_in_trash), not counted.
    fn find_left(&self) -> Result<Vec<LeftInTrash>> {
        let home = self.0.home();
        if home.is_mounted().is_err() {
            return Ok(Vec::new());
        }
        let operations = self.0.operations()?;
        // Folders before records: what moves between the two is always remembered by a record that is there before it moves.
        let mut folders = Vec::new();
        let mut look = |folder: &Path, id_of: &dyn Fn(&str) -> Option<&str>| {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let id = name.to_str().and_then(id_of).filter(|id| is_id(id));
                if let Some(id) = id
                    && entry.file_type().is_ok_and(|kind| kind.is_dir())
                {
                    folders.push((entry.path(), id.to_owned()));
                }
            }
        };
        look(&home.path().join("trash"), &|name| Some(name));
        look(&home.path().join("pg"), &|name| name.strip_prefix(TRASHED));
        for folder in self.beside_of(&operations) {
            look(&folder, &trashed_at);
        }
        let Some(known) = self.remembered()? else {
            return Ok(Vec::new());
        };
        let used = self.in_use(&operations)?;
        let in_use: BTreeSet<String> = folders
            .iter()
            .filter(|(path, _)| used.is_at(path))
            .map(|(_, id)| id.clone())
            .collect();
        let mut left = Vec::new();
        for (path, id) in folders {
            let mut named = operations.iter().rev();
            let named = named.find(|operation| operation.details.get(ID) == Some(&id));
            let Some(named) = named.filter(|_| !known.contains(&id) && !in_use.contains(&id))
            else {
                continue;
            };
            left.push(LeftInTrash {
                path,
                id,
                name: named.subject.parse().ok(),
                used: 0,
            });
        }
        left.sort_by(|a, b| a.path.cmp(&b.path));
        left.dedup_by(|a, b| a.path == b.path);
        Ok(left)
    }

    /// What is in use of this machine's clusters, as far as records, the operation log and processes say.
    fn in_use(&self, operations: &[Operation]) -> Result<InUse> {
        let home = self.0.home();
        let mut used = InUse::of_servers();
        for folder in [home.instances(), home.trash()] {
            for (_, record) in record::list_readable::<PgRecord>(&folder)?.0 {
                // What goes to the trash itself is at its place no more.
                if record.adopted.is_some() || folder == home.instances() {
                    used.add(&self.data_dir(&record));
                }
            }
        }
        // Also what was adopted, and is not ours any more.
        let adopted = operations.iter().filter_map(|one| one.details.get(ADOPTED));
        adopted.for_each(|place| used.add(Path::new(place)));
        Ok(used)
    }

    /// The ids of all that is remembered; nothing where a record cannot be read.
    fn remembered(&self) -> Result<Option<BTreeSet<String>>> {
        let home = self.0.home();
        let mut known = BTreeSet::new();
        for folder in [home.trash(), home.instances()] {
            let (records, unreadable) = record::list_readable::<PgRecord>(&folder)?;
            if !unreadable.is_empty() {
                return Ok(None);
            }
            for (_, record) in records {
                known.extend(record.in_place_of.map(|before| before.id));
                known.insert(record.id);
            }
        }
        // By what their files are called, too: of those that are on their way to nothing there is no other record.
        for entry in fs::read_dir(home.trash()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let id = Path::new(&name).file_stem().and_then(OsStr::to_str);
            known.extend(id.map(str::to_owned));
        }
        Ok(Some(known))
    }
}

/// Whether it may be the id of an instance.
fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
