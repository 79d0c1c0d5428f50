//! Instances straight from what is outside: imported into a repository of their own, which is removed afterwards. What was
//! imported is in no storage: nothing of it stays until a collection, and no listing shows it.
//!
//! The repository is `state/import/<id>`, with a note and a lock beside it; what a killed command left is removed by the
//! next import, or by the doctor.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neon_pagestore::SnapshotName;
use neon_storage::Locator;
use serde::{Deserialize, Serialize};

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::home::random_id;
use crate::instances::{CreatePg, Pg, RestoreChoice, Stage};
use crate::name::Name;
use crate::neon::Neon;
use crate::record::{self, Lock};
use crate::snapshots::{Found, ImportSnapshot, ImportSource, Imported, Located, Snapshots};
use crate::storages::LOCAL;

/// What names of such snapshots begin with.
const TEMPORARY: &str = "temporary-";

/// That an import is under way, or was when its command was killed.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    source: String,
}

/// An instance that was made from a snapshot, from wherever that was.
#[derive(Debug)]
#[non_exhaustive]
pub struct CreatedFrom {
    /// The instance.
    pub pg: Pg,
    /// The snapshot, if it was in a repository.
    pub snapshot: Option<Found>,
    /// What was imported for it; that snapshot is gone again.
    pub imported: Option<Imported>,
}

impl Snapshots<'_> {
    /// Makes an instance from a snapshot that a person wrote in whatever way: see [`locate`](Self::locate). What is outside
    /// of all repositories is imported into a repository of its own below the home, which is removed when the instance is
    /// there, and also when it could not be made.
    ///
    /// Dropped: what is half made is taken back by the next verb on its name, what was imported by the next import.
    ///
    /// # Errors
    /// As [`locate`](Self::locate), [`import`](Self::import), and
    /// [`create_from`](crate::Instances::create_from).
    pub async fn create_pg(
        &self,
        wanted: &CreatePg,
        text: &str,
        from: Option<&Name>,
        how: &RestoreChoice,
    ) -> Result<CreatedFrom> {
        match self.locate(text, from).await? {
            Located::Stored(found) => {
                let pg = Box::pin(self.0.pg().create_from(wanted, &found, how)).await?;
                Ok(CreatedFrom {
                    pg,
                    snapshot: Some(found),
                    imported: None,
                })
            }
            Located::Outside(source) => Box::pin(self.create_pg_outside(wanted, source, how)).await,
        }
    }

    async fn create_pg_outside(
        &self,
        wanted: &CreatePg,
        source: ImportSource,
        how: &RestoreChoice,
    ) -> Result<CreatedFrom> {
        // Also where nothing is imported now: what a killed command left would stay for as long as its instance does.
        self.sweep_temporary().await;
        if let Some(name) = &wanted.name
            && let Ok(record) = self.0.pg().record_of(name)
            && record.stage == Stage::Ready
        {
            return Err(
                Error::new(ErrorKind::Exists, format!("pg {name}"), "is there already")
                    .hinted("choose another name, or destroy it first"),
            );
        }
        // Before anything comes, however long that takes.
        self.0.home().is_mounted()?;
        self.0.pg().can_be_made(wanted)?;
        let storage = match &wanted.storage {
            Some(storage) => storage.clone(),
            None => LOCAL.parse()?,
        };
        self.0.storages().get(&storage)?;
        self.0.pg().can_listen(wanted)?;
        let id = random_id()?;
        let note = Note {
            source: source.to_string(),
        };
        record::folder(&folder(self.0), 0o700)?;
        let places = Places::of(self.0, &id);
        let lock = Lock::take(&places.lock, "an import", Duration::ZERO).await?;
        record::create(&places.note, &note)?;
        let name = SnapshotName::to_give(&format!("{TEMPORARY}{id}"));
        let name = name.map_err(|error| Error::repository("a name of ours", error))?;
        let import = ImportSnapshot::new(source);
        self.0
            .tell(Event::Step("Downloading snapshot...".to_owned()));
        let made = Box::pin(async {
            let place = Locator::path_of(&places.folder);
            let repository = self.0.storages().repository_made_at(&place).await?;
            let pg = self.0.home().path().join("pg");
            let beside = wanted.pgdata.as_deref().and_then(Path::parent);
            let imported = self
                .import_into(
                    &import,
                    repository,
                    storage,
                    name,
                    Some(beside.unwrap_or(&pg)),
                )
                .await?;
            let pg = Box::pin(self.0.pg().create_from(wanted, &imported.found, how)).await;
            Ok((pg?, imported))
        })
        .await;
        self.0
            .tell(Event::Step("Destroying snapshot...".to_owned()));
        if let Err(error) = places.remove().await {
            self.0.tell(Event::Warning(format!(
                "{error}; it is removed by the next import"
            )));
        }
        drop(lock);
        let (pg, imported) = made?;
        Ok(CreatedFrom {
            pg,
            snapshot: None,
            imported: Some(imported),
        })
    }

    /// Removes what commands left that were killed. What cannot be removed now waits for the next.
    pub(crate) async fn sweep_temporary(&self) {
        for left in self.left_imports() {
            if let Err(error) = self.end_import(&left).await {
                self.0.tell(Event::Warning(format!(
                    "{}, and is not removed yet: {error}",
                    left.what()
                )));
            }
        }
    }

    /// What commands left that were killed: the repository, its note, its lock, or what there is of them.
    pub(crate) fn left_imports(&self) -> Vec<LeftImport> {
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(folder(self.0)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let id = name.to_str().map(|name| {
                let id = name.strip_suffix(".json");
                id.or_else(|| name.strip_suffix(".lock")).unwrap_or(name)
            });
            ids.extend(id.map(str::to_owned));
        }
        let each = ids.into_iter().map(|id| LeftImport {
            places: Places::of(self.0, &id),
        });
        // Somebody is at the others.
        each.filter(|left| !left.places.lock.exists() || record::is_free(&left.places.lock))
            .collect()
    }

    /// Removes what one of them left; nothing when somebody is at it.
    pub(crate) async fn end_import(&self, left: &LeftImport) -> Result<()> {
        let Some(_lock) = Lock::free(&left.places.lock) else {
            return Ok(());
        };
        left.places.remove().await
    }
}

/// What a command left that was killed while it made an instance from outside.
#[derive(Debug)]
pub(crate) struct LeftImport {
    places: Places,
}

impl LeftImport {
    /// The note of it.
    pub(crate) fn path(&self) -> &Path {
        &self.places.note
    }

    /// What it is.
    pub(crate) fn what(&self) -> String {
        match record::read::<Note>(&self.places.note) {
            Ok(Some(Note { source })) => {
                format!("{source} was imported for an instance by a command that was killed")
            }
            _ => "was left by an import that was killed".to_owned(),
        }
    }
}

fn folder(neon: &Neon) -> PathBuf {
    neon.home().path().join("state/import")
}

#[derive(Debug)]
struct Places {
    folder: PathBuf,
    note: PathBuf,
    lock: PathBuf,
}

impl Places {
    fn of(neon: &Neon, id: &str) -> Self {
        let folder = folder(neon);
        Self {
            folder: folder.join(id),
            note: folder.join(format!("{id}.json")),
            lock: folder.join(format!("{id}.lock")),
        }
    }

    /// The repository first: as long as it is there, its note says so.
    async fn remove(&self) -> Result<()> {
        let (folder, note) = (self.folder.clone(), self.note.clone());
        beside(move || {
            record::remove_tree(&folder)?;
            record::remove(&note)
        })
        .await?;
        drop(fs::remove_file(&self.lock));
        Ok(())
    }
}
