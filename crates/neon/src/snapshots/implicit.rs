//! Instances straight from what is outside: imported under a name that nobody gave, and destroyed afterwards.
//!
//! A note in `state/import` says which snapshot belongs to a command that is at work; what a killed one left is
//! destroyed by the next, or by the doctor.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neon_pagestore::SnapshotName;
use serde::{Deserialize, Serialize};

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
pub(crate) const TEMPORARY: &str = "temporary-";

/// What is under way.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    storage: Name,
    snapshot: String,
}

/// An instance that was made from a snapshot, from wherever that was.
#[derive(Debug)]
#[non_exhaustive]
pub struct CreatedFrom {
    /// The instance.
    pub pg: Pg,
    /// The snapshot, if it was in a repository.
    pub snapshot: Option<Found>,
    /// What was imported for it; that snapshot is destroyed again.
    pub imported: Option<Imported>,
}

impl Snapshots<'_> {
    /// Makes an instance from a snapshot that a person wrote in whatever way: see [`locate`](Self::locate). What is outside
    /// of all repositories is imported into the instance's storage under a name of its own, and that snapshot is
    /// destroyed when the instance is there, and also when it could not be made.
    ///
    /// Dropped: what is half made is taken back by the next verb on its name, the imported snapshot by the next such call.
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
        self.0.pg().can_be_made(wanted)?;
        let storage = match &wanted.storage {
            Some(storage) => storage.clone(),
            None => LOCAL.parse()?,
        };
        let id = random_id()?;
        let note = Note {
            storage: storage.clone(),
            snapshot: format!("{TEMPORARY}{id}"),
        };
        let places = Places::of(self.0, &id)?;
        let lock = Lock::take(&places.lock, "an import", Duration::ZERO).await?;
        record::create(&places.note, &note)?;
        let mut import = ImportSnapshot::new(source);
        let name = SnapshotName::to_give(&note.snapshot);
        import.name = Some(name.map_err(|error| Error::repository("a name of ours", error))?);
        import.storage = Some(storage);
        self.0
            .tell(Event::Step("Downloading snapshot...".to_owned()));
        let made = Box::pin(async {
            let imported = self.import(&import).await?;
            let pg = Box::pin(self.0.pg().create_from(wanted, &imported.found, how)).await;
            Ok((pg?, imported))
        })
        .await;
        self.0
            .tell(Event::Step("Destroying snapshot...".to_owned()));
        match self.destroy_temporary(&note).await {
            Ok(()) => places.remove(),
            Err(error) => self.0.tell(Event::Warning(format!(
                "{error}; it is destroyed by the next such command"
            ))),
        }
        drop(lock);
        let (pg, imported) = made?;
        Ok(CreatedFrom {
            pg,
            snapshot: None,
            imported: Some(imported),
        })
    }

    async fn destroy_temporary(&self, note: &Note) -> Result<()> {
        let subject = format!("snapshot {}", note.snapshot);
        let failed = |error| Error::repository(&*subject, error);
        let storages = self.0.storages();
        let Some(found) = storages.existing_repository(&note.storage).await? else {
            return Ok(());
        };
        let name = SnapshotName::to_give(&note.snapshot).map_err(failed)?;
        match found.repository.resolve_name(&name).await {
            Ok(id) => found.repository.destroy(id).await.map_err(failed),
            Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Destroys what commands left that were killed.
    pub(crate) async fn sweep_temporary(&self) {
        for left in self.left_imports() {
            if let Err(error) = self.end_import(&left).await {
                self.0.tell(Event::Warning(format!(
                    "{}, and is not destroyed yet: {error}",
                    left.what()
                )));
            }
        }
    }

    /// What commands left that were killed.
    pub(crate) fn left_imports(&self) -> Vec<LeftImport> {
        let folder = self.0.home().path().join(FOLDER);
        let mut left = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let note = entry.path();
            let ending = note.extension().and_then(|ending| ending.to_str());
            let lock = note.with_extension("lock");
            let other = match ending {
                // One that says nothing speaks of nothing.
                Some("json") => record::read::<Note>(&note).unwrap_or_default(),
                // Its note went, or never came.
                Some("lock") if !note.with_extension("json").exists() => None,
                _ => continue,
            };
            // Somebody is at it.
            if lock.exists() && !record::is_free(&lock) {
                continue;
            }
            left.push(LeftImport {
                places: Places {
                    note: note.with_extension("json"),
                    lock,
                },
                note: other,
            });
        }
        left
    }

    /// Destroys what one of them left; nothing when somebody is at it.
    pub(crate) async fn end_import(&self, left: &LeftImport) -> Result<()> {
        let Some(_lock) = Lock::free(&left.places.lock) else {
            return Ok(());
        };
        if let Some(note) = &left.note {
            self.destroy_temporary(note).await?;
        }
        left.places.remove();
        Ok(())
    }
}

/// What a command left that was killed while it made an instance from outside.
#[derive(Debug)]
pub(crate) struct LeftImport {
    places: Places,
    note: Option<Note>,
}

impl LeftImport {
    /// The note of it.
    pub(crate) fn path(&self) -> &Path {
        &self.places.note
    }

    /// What it is.
    pub(crate) fn what(&self) -> String {
        match &self.note {
            Some(Note { storage, snapshot }) => format!(
                "snapshot {snapshot} in storage {storage}, or a part of it, was imported for an instance by a command that was killed"
            ),
            None => "was left by an import that was killed".to_owned(),
        }
    }
}

/// Where notes are, in a home.
const FOLDER: &str = "state/import";

fn folder(neon: &Neon) -> Result<PathBuf> {
    let folder = neon.home().path().join(FOLDER);
    record::folder(&folder, 0o700)?;
    Ok(folder)
}

#[derive(Debug)]
struct Places {
    note: PathBuf,
    lock: PathBuf,
}

impl Places {
    fn of(neon: &Neon, id: &str) -> Result<Self> {
        let folder = folder(neon)?;
        Ok(Self {
            note: folder.join(format!("{id}.json")),
            lock: folder.join(format!("{id}.lock")),
        })
    }

    /// A note that stays is found to speak of nothing by the next.
    fn remove(&self) {
        drop(record::remove(&self.note));
        drop(fs::remove_file(&self.lock));
    }
}
