//! Snapshots first: one cluster, one place where its snapshots go, three verbs (`init`, `start`, `export`).
//!
//! A home remembers where its cluster's snapshots go (`storage_dest`); what a cluster was once made from, and where a copy
//! was once exported to, is not remembered. Credentials never are: they come from the environment or a profile.
//!
//! **What is durable when.** Nothing runs in the background yet. A snapshot is taken, straight into `storage_dest`, by
//! `init`, by [`stop`](SnapshotFirst::stop), by [`export`](SnapshotFirst::export) and by [`push`](SnapshotFirst::push);
//! when one of these has returned, the state of that moment survives the loss of this machine. What was committed after
//! the last of them is on this machine only. A checkout does not push: after one, `push` says which state counts.

mod begin;
mod dest;
mod newest;

use std::collections::BTreeMap;
use std::path::PathBuf;

use neon_pagestore::SnapshotName;
use neon_pg_layout::gmt;
use neon_storage::Locator;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::{CreatePg, PgRecord, RestoreChoice};
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::seconds;
use crate::record;
use crate::snapshots::{
    CreateSnapshot, ExportFormat, ExportOptions, Exported, Remote, TakenSnapshot, Transferred,
    require_free,
};

use dest::Dest;

/// The instance, if none is named.
const MAIN: &str = "main";

/// What a home remembers of these verbs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    pg: Name,
    storage: Name,
    /// The first snapshot, as long as `init` has not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfinished: Option<String>,
}

/// What to begin with.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct InitOptions {
    /// Where snapshots go: `s3://bucket/prefix`, a folder, `ssh://…`. Remembered. The local storage if absent.
    pub storage_dest: Option<String>,
    /// What was chosen for that storage, as for `storage attach`. Remembered.
    pub storage_options: BTreeMap<String, String>,
    /// What the cluster is made from: a path, an address. Not remembered. By `initdb` if absent.
    pub snapshot_path: Option<String>,
    /// What that is; told by content if absent. Not remembered.
    pub snapshot_format: Option<ExportFormat>,
    /// Of the instance: its name (`main` if absent), major version, port.
    pub pg: CreatePg,
}

/// What `init` made.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Initialized {
    /// The instance. It does not run yet.
    pub pg: Name,
    /// The storage that its snapshots go to.
    pub storage: Name,
    /// Where that is.
    pub storage_dest: String,
    /// The snapshot of how it began, in that storage.
    pub snapshot: SnapshotName,
}

/// What `start` did.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct StartedFirst {
    /// The instance.
    pub pg: Name,
    /// Where it listens.
    pub endpoint: String,
    /// What it was restored from, when its directory was missing.
    pub restored: Option<RestoredFirst>,
}

/// What a missing directory was restored from.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RestoredFirst {
    /// The snapshot.
    pub snapshot: String,
    /// When it was taken, in seconds since 1970.
    pub taken: i64,
    /// How long before now that was, in seconds. What was committed since is not there.
    pub age: i64,
}

/// What `export` did.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct ExportedFirst {
    /// The snapshot that was taken for it, in `storage_dest`.
    pub snapshot: SnapshotName,
    /// What was written, when it is a file or a directory.
    pub exported: Option<Exported>,
    /// What was pushed, when it is a storage.
    pub pushed: Option<Transferred>,
}

/// These verbs of a home.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotFirst<'a>(&'a Neon);

impl Neon {
    /// One cluster whose snapshots come first: `init`, `start`, `export`.
    #[must_use]
    pub fn snapshot_first(&self) -> SnapshotFirst<'_> {
        SnapshotFirst(self)
    }
}

impl SnapshotFirst<'_> {
    /// Starts the cluster. A directory that is there is used as it is. One that was below the home and is gone is restored
    /// from the newest snapshot of the cluster in `storage_dest`, the remembered one or this; how old that is, is in the
    /// result and told. Until that is done, nothing is forgotten. `HEAD{i}`, the states that checkouts left, do
    /// not count.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when nothing was initialized and no storage is named, or it has no snapshots;
    /// [`Busy`](ErrorKind::Busy) when it runs; [`Exists`](ErrorKind::Exists) when the instance of this name was adopted;
    /// [`Environment`](ErrorKind::Environment) when its directory is elsewhere and cannot be seen;
    /// [`Invalid`](ErrorKind::Invalid) when the snapshots are of several clusters, or the storage is attached with
    /// other options; [`Damaged`](ErrorKind::Damaged) when a snapshot that may be the newest cannot be read;
    /// as [`create_from`](crate::Instances::create_from).
    pub async fn start(
        &self,
        storage_dest: Option<&str>,
        storage_options: &BTreeMap<String, String>,
    ) -> Result<StartedFirst> {
        let neon = self.0;
        let saved = self.saved()?;
        let name = match &saved {
            Some(saved) => saved.pg.clone(),
            None => MAIN.parse()?,
        };
        let storage = match (storage_dest, &saved) {
            (Some(dest), _) => self.dest(dest, storage_options).await?,
            (None, Some(saved)) => Dest::of(saved.storage.clone()),
            // Made by pg create.
            (None, None) if neon.pg().record_of(&name).is_ok() => {
                Dest::of(neon.pg().record_of(&name)?.storage)
            }
            (None, None) => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    neon.home().path().display().to_string(),
                    "was not initialized",
                )
                .hinted("neon init makes a cluster, neon start --storage_dest=… restores one"));
            }
        };
        let restored = Box::pin(self.bring_up_to_date(&name, &storage.name)).await;
        let now = Saved {
            pg: name.clone(),
            storage: storage.name.clone(),
            unfinished: None,
        };
        let restored = self.unless_failed(storage, restored).await?;
        if saved.as_ref().map(|saved| &saved.storage) != Some(&now.storage) {
            let own = neon.pg().record_of(&name)?.id;
            self.tell_of_others(&name, &now.storage, Some(&own)).await?;
        }
        if saved.as_ref() != Some(&now) {
            self.save(&now)?;
        }
        let started = Box::pin(neon.pg().start(&name)).await?;
        Ok(StartedFirst {
            pg: name,
            endpoint: format!("localhost:{}", started.port),
            restored,
        })
    }

    /// Restores the cluster if its directory is missing, and has its snapshots go to this storage.
    async fn bring_up_to_date(&self, name: &Name, storage: &Name) -> Result<Option<RestoredFirst>> {
        let neon = self.0;
        let record = match neon.pg().record_of(name) {
            Ok(record) => Some(record),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let gone = match &record {
            None => None,
            Some(record) if record.adopted.is_some() => {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("pg {name}"),
                    "was adopted, and is left as it is",
                )
                .hinted("neon pg start starts it; neon pg create --snapshot restores beside it"));
            }
            Some(_) => match Box::pin(neon.pg().missing(name)).await {
                // One that a killed command was making is gone now.
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
                Ok(Some(gone)) => Some(gone),
                Ok(None) => {
                    if neon.pg().record_of(name)?.storage != *storage {
                        Box::pin(neon.pg().set_storage(name, storage)).await?;
                    }
                    return Ok(None);
                }
            },
        };
        let (found, taken) = self.newest(name, storage, gone.as_ref()).await?;
        let age = i64::try_from(seconds(neon.now())).unwrap_or(i64::MAX);
        let age = age.saturating_sub(taken).max(0);
        neon.tell(Event::Step(format!(
            "Restoring {name} from snapshot {}, which is {} old.",
            found.asked,
            newest::words(age)
        )));
        let trash = record::list::<PgRecord>(&neon.home().trash())?;
        if gone.is_none() && trash.iter().any(|(_, one)| one.name == *name) {
            neon.tell(Event::Warning(format!(
                "a {name} that was destroyed is in the trash, with what was written after that snapshot: neon pg trash shows it, neon undo brings it back"
            )));
        }
        let create = CreatePg {
            name: Some(name.clone()),
            storage: Some(storage.clone()),
            no_start: true,
            ..CreatePg::default()
        };
        Box::pin(neon.pg().create_in_place_of(
            &create,
            &found,
            &RestoreChoice::default(),
            gone.as_ref(),
        ))
        .await?;
        Ok(Some(RestoredFirst {
            snapshot: found.asked.clone(),
            taken,
            age,
        }))
    }

    /// Whether this home has such a cluster, or had one.
    ///
    /// # Errors
    /// When what is remembered of it cannot be read.
    pub fn is_initialized(&self) -> Result<bool> {
        Ok(self.saved()?.is_some())
    }

    /// Takes a snapshot of the present state, straight into `storage_dest`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when nothing was initialized; as [`create`](crate::Snapshots::create).
    pub async fn push(&self) -> Result<TakenSnapshot> {
        let saved = self.required()?;
        let stamp = gmt(i64::try_from(seconds(self.0.now())).unwrap_or(0));
        let stamp: String = stamp
            .chars()
            .filter(char::is_ascii_digit)
            .take(14)
            .collect();
        let (day, time) = stamp.split_at_checked(8).unwrap_or((&stamp, ""));
        let tag = format!("{day}-{time}");
        let name = self.free_tag(&saved.pg, &saved.storage, &tag).await?;
        let taken = Box::pin(self.0.snapshots().create(&CreateSnapshot::new(name))).await?;
        let told = self
            .tell_of_rivals(&self.0.pg().record_of(&saved.pg)?)
            .await;
        if let Err(error) = told {
            // It is there; what else is in the storage can be told another time.
            self.0.tell(Event::Note(format!(
                "the storage was not looked through ({error})"
            )));
        }
        Ok(taken)
    }

    /// Stops the cluster and takes a snapshot of how it was left: when this returns, everything that was committed is
    /// in `storage_dest`.
    ///
    /// # Errors
    /// As [`stop`](crate::Instances::stop) and [`push`](Self::push). When only the snapshot failed, the cluster is stopped
    /// and its directory has everything.
    pub async fn stop(&self) -> Result<TakenSnapshot> {
        let saved = self.required()?;
        Box::pin(self.0.pg().stop(&saved.pg)).await?;
        Box::pin(self.push()).await
    }

    /// Takes a snapshot of the present state, which stays in `storage_dest`, and writes it elsewhere, once: as a data
    /// directory, a base backup or one file at a path, or, in neon's own format, into another storage. Where to is not
    /// remembered.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for `storage_dest` itself and places in it, and for formats that no storage takes; as
    /// [`push`](Self::push), [`export`](crate::Snapshots::export) and the [push](crate::Snapshots::push) of a snapshot.
    pub async fn export(&self, snapshot_path: &str, format: ExportFormat) -> Result<ExportedFirst> {
        let saved = self.required()?;
        let neon = self.0;
        let place = Locator::parse(snapshot_path)
            .map_err(|error| Error::storage("snapshot_path", error))?;
        let dest = neon.storages().get(&saved.storage)?;
        if dest::holds(&dest, &place)? {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("snapshot_path {place}"),
                "is where snapshots go anyway, or in it",
            )
            .hinted("leave it to neon, or choose another place"));
        }
        let to = match place.file_path() {
            Some(path) => Some(path.to_owned()),
            None if format == ExportFormat::Neon => None,
            None => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("snapshot_path {place}"),
                    "takes snapshots in format neon only",
                )
                .hinted("export pgdata and basebackup to a folder of this machine"));
            }
        };
        if let Some(path) = &to {
            require_free(path, format)?;
        }
        let taken = Box::pin(self.push()).await?;
        let id = taken.id.to_string();
        let mut found = neon.snapshots().find(&id, Some(&saved.storage)).await?;
        if let Some(name) = &taken.name {
            found.asked = name.to_string();
        }
        let (mut exported, mut pushed) = (None, None);
        match to {
            Some(path) => {
                let how = ExportOptions::new(format);
                exported = Some(neon.snapshots().export(&found, &path, &how).await?);
            }
            None => {
                let to = Remote::Locator(place);
                pushed = Some(neon.snapshots().push(&found, &to).await?);
            }
        }
        let name = taken.name.ok_or_else(|| {
            Error::new(
                ErrorKind::Exists,
                format!("snapshot {id}"),
                "lost its name to another",
            )
        })?;
        Ok(ExportedFirst {
            snapshot: name,
            exported,
            pushed,
        })
    }

    async fn free_tag(&self, pg: &Name, storage: &Name, tag: &str) -> Result<SnapshotName> {
        let repository = self.0.storages().repository(storage).await?;
        let mut number = 1_u32;
        loop {
            let text = match number {
                1 => format!("{pg}@{tag}"),
                _ => format!("{pg}@{tag}-{number}"),
            };
            let name = SnapshotName::to_give(&text)
                .map_err(|error| Error::repository(format!("snapshot {text}"), error))?;
            match self.0.snapshots().require_free(&repository, &name).await {
                Ok(()) => return Ok(name),
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => return Err(error),
            }
            number = number.saturating_add(1);
        }
    }

    fn place(&self) -> PathBuf {
        self.0.home().path().join("state/first.json")
    }

    fn saved(&self) -> Result<Option<Saved>> {
        record::read(&self.place())
    }

    fn save(&self, saved: &Saved) -> Result<()> {
        record::replace(&self.place(), saved)
    }

    fn required(&self) -> Result<Saved> {
        self.saved()?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                self.0.home().path().display().to_string(),
                "was not initialized",
            )
            .hinted("neon init makes a cluster")
        })
    }
}
