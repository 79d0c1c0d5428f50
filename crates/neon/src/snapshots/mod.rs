//! Snapshots: found, listed, and (each in its own file) taken, used, moved and destroyed.

mod base_backup;
mod blamed;
mod bring;
mod catalogue;
pub(crate) mod copying;
pub(crate) mod create;
mod current;
mod destroy;
mod diff;
mod export;
mod for_others;
mod implicit;
mod import;
mod imported;
mod inspection;
mod judge;
mod location;
mod log_end;
pub(crate) mod needs;
mod offered;
mod once_more;
pub(crate) mod open;
mod parent;
mod partial;
mod plain_backup;
mod ranges;
pub(crate) mod redo;
pub(crate) mod room;
mod serve;
mod show;
mod sources;
mod transfer;
mod verify;
mod watch;

use std::sync::Arc;

use neon_pagestore::read::Snapshot;
use neon_pagestore::{CommitId, Listed, SnapshotName};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::name::Name;
use crate::neon::Neon;
use crate::repositories::StorageRepository;

pub use create::{CreateSnapshot, TakenSnapshot};
pub use current::CurrentState;
pub use destroy::DestroySnapshot;
pub use diff::{OtherDiff, RelationDiff, SnapshotDiff};
pub(crate) use export::require_free;
pub use export::{ExportFormat, ExportOptions, Exported};
pub use implicit::CreatedFrom;
pub(crate) use implicit::LeftImport;
pub use import::{ImportSnapshot, Imported};
pub use location::{ImportSource, Located};
pub use open::OpenSnapshot;
pub use parent::ParentChoice;
pub use serve::{Offer, OfferAbout, ServeOptions};
pub use show::SnapshotDetails;
pub use transfer::{Pulled, Remote, Transferred};
pub use verify::{Verified, VerifiedServer, VerifyDepth};

/// The snapshots in the storages of a home.
#[derive(Debug, Clone, Copy)]
pub struct Snapshots<'a>(pub(crate) &'a Neon);

/// A snapshot, and the repository it was found in.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Found {
    /// Its id.
    pub id: CommitId,
    /// What it was asked for as.
    pub asked: String,
    /// Where.
    pub repository: Arc<StorageRepository>,
}

impl Found {
    /// What messages call it: as it was asked for.
    pub(crate) fn subject(&self) -> String {
        format!("snapshot {}", self.asked)
    }

    /// Opens it for reading.
    pub(crate) async fn open(&self) -> Result<Snapshot> {
        let StorageRepository {
            repository, maps, ..
        } = &*self.repository;
        let opened = Snapshot::open(repository, self.id, maps).await;
        opened.map_err(|error| Error::repository(self.subject(), error))
    }
}

/// A snapshot in a listing of all storages.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ListedSnapshot {
    /// The storage that holds it.
    pub storage: Name,
    /// What is known of it.
    pub listed: Listed,
}

impl Snapshots<'_> {
    /// The snapshot that a name, an id, or eight or more digits of one mean. Looked for in this storage; if none is given,
    /// in the storage of the instance that the name mentions, then in `local`, then in all others by name.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when no storage has it; [`Invalid`](ErrorKind::Invalid) for `CURRENT`, and when
    /// storages that are neither the instance's own nor `local` have the name for different snapshots. The instance's own
    /// storage must answer: a name never means what another storage calls so because this one is away. Another storage
    /// that cannot be asked is an error only if none has it, and told otherwise.
    pub async fn find(&self, text: &str, storage: Option<&Name>) -> Result<Found> {
        if let Ok(name) = text.parse::<SnapshotName>()
            && name.is_current()
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("snapshot {text}"),
                "stands for the live state, which is no snapshot",
            )
            .hinted(format!(
                "take one: neon snapshot create {}@TAG",
                name.instance().unwrap_or("PGDATA")
            )));
        }
        if let Some(storage) = storage {
            self.0.storages().get(storage)?;
            return match self.look_in(storage, text).await? {
                Looked::Here(found) => Ok(found),
                Looked::Nothing => Err(nowhere(text, format!("is not in storage {storage}"))),
                Looked::Mute(error) | Looked::Unclear(error) => Err(error),
            };
        }
        let own = self.own_storage(text);
        let local: Name = crate::storages::LOCAL.parse()?;
        let mut trouble = Vec::new();
        for name in own.iter().chain(
            [&local]
                .into_iter()
                .filter(|local| own.as_ref() != Some(*local)),
        ) {
            match self.look_in(name, text).await {
                Ok(Looked::Here(found)) => return Ok(found),
                Ok(Looked::Nothing | Looked::Mute(_)) => {}
                Ok(Looked::Unclear(error)) => return Err(error),
                Err(error) if Some(name) == own.as_ref() => {
                    return Err(match error.hint() {
                        Some(_) => error,
                        None => error.hinted("`--storage` names another storage to look in"),
                    });
                }
                Err(error) => trouble.push((name.clone(), error)),
            }
        }
        let mut hits: Vec<Found> = Vec::new();
        for (name, _) in self.0.storages().list()? {
            if name == local || Some(&name) == own.as_ref() {
                continue;
            }
            match self.look_in(&name, text).await {
                Ok(Looked::Here(found)) if hits.iter().all(|hit| hit.id != found.id) => {
                    hits.push(found);
                }
                Ok(Looked::Unclear(error)) => return Err(error),
                Ok(_) => {}
                Err(error) => trouble.push((name, error)),
            }
        }
        match (hits.len(), hits.pop()) {
            (1, Some(found)) => {
                for (name, error) in trouble {
                    self.0.tell(Event::Warning(format!(
                        "{text} was not looked for in storage {name} ({error})"
                    )));
                }
                Ok(found)
            }
            (0, _) | (_, None) => Err(unasked(text, trouble)),
            (_, Some(last)) => {
                hits.push(last);
                let labels: Vec<String> = hits.iter().map(|hit| hit.repository.label()).collect();
                Err(Error::new(
                    ErrorKind::Invalid,
                    format!("snapshot {text}"),
                    format!("is another one in each of {}", labels.join(", ")),
                )
                .hinted("choose one with `--storage`, or name it by its id"))
            }
        }
    }

    async fn look_in(&self, storage: &Name, text: &str) -> Result<Looked> {
        let Some(repository) = self.0.storages().existing_repository(storage).await? else {
            return Ok(Looked::Nothing);
        };
        match repository.repository.resolve(text).await {
            Ok(id) => Ok(Looked::Here(Found {
                id,
                asked: text.to_owned(),
                repository: Arc::new(repository),
            })),
            Err(error) => {
                let kind = error.kind();
                let error = Error::repository(format!("snapshot {text}"), error);
                match (kind, error.kind()) {
                    (neon_pagestore::ErrorKind::NotFound, _) => Ok(Looked::Nothing),
                    (neon_pagestore::ErrorKind::Invalid, _) => Ok(Looked::Unclear(error)),
                    (_, ErrorKind::Invalid) => Ok(Looked::Mute(error)),
                    _ => Err(error),
                }
            }
        }
    }

    /// The storage of the instance that a name mentions, if there is one of that name here.
    fn own_storage(&self, text: &str) -> Option<Name> {
        let name = text.parse::<SnapshotName>().ok()?;
        let instance = name.instance()?.parse::<Name>().ok()?;
        Some(self.0.pg().record_of(&instance).ok()?.storage)
    }

    /// As [`find`](Self::find), in a repository that is open.
    pub(crate) async fn find_in(&self, repository: StorageRepository, text: &str) -> Result<Found> {
        let id = repository.repository.resolve(text).await;
        let id = id.map_err(|error| match error.kind() {
            neon_pagestore::ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                format!("snapshot {text}"),
                format!("is not in {}", repository.label()),
            ),
            _ => Error::repository(format!("snapshot {text}"), error),
        })?;
        Ok(Found {
            id,
            asked: text.to_owned(),
            repository: Arc::new(repository),
        })
    }

    /// All snapshots of a storage, or of all storages, oldest first within each. What could not be listed comes with the
    /// reason.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) for the storage; when the one storage asked for cannot be listed.
    pub async fn list(
        &self,
        storage: Option<&Name>,
    ) -> Result<(Vec<ListedSnapshot>, Vec<(Name, Error)>)> {
        let names = match storage {
            Some(storage) => {
                self.0.storages().get(storage)?;
                vec![storage.clone()]
            }
            None => self
                .0
                .storages()
                .list()?
                .into_iter()
                .map(|(name, _)| name)
                .collect(),
        };
        let (mut all, mut failed) = (Vec::new(), Vec::new());
        for name in names {
            let listed = match self.0.storages().existing_repository(&name).await {
                Ok(None) => Ok(Vec::new()),
                Ok(Some(repository)) => repository
                    .repository
                    .list()
                    .await
                    .map_err(|error| Error::repository(format!("storage {name}"), error)),
                Err(error) => Err(error),
            };
            match listed {
                Ok(listed) => all.extend(listed.into_iter().map(|listed| ListedSnapshot {
                    storage: name.clone(),
                    listed,
                })),
                Err(error) if storage.is_some() => return Err(error),
                Err(error) => failed.push((name, error)),
            }
        }
        Ok((all, failed))
    }
}

/// What a storage says to a name.
enum Looked {
    Here(Found),
    Nothing,
    /// It lists nothing, as behind HTTP: it has snapshots for those who know their ids.
    Mute(Error),
    /// No name, or the beginning of several ids.
    Unclear(Error),
}

/// No storage that could be asked has it. Those that could not be asked for want of a key are named, and no more than that: who
/// has no key does not look there. Any other trouble is the error, as what is looked for may be behind it.
fn unasked(text: &str, trouble: Vec<(Name, Error)>) -> Error {
    let is_locked = |error: &Error| {
        error.kind() == ErrorKind::Environment && error.reason().starts_with("is encrypted")
    };
    if trouble.is_empty() {
        return nowhere(text, "is in no attached storage".to_owned());
    }
    let names: Vec<String> = trouble
        .iter()
        .map(|(name, _)| format!("{name}: no passphrase"))
        .collect();
    match trouble.into_iter().find(|(_, error)| !is_locked(error)) {
        Some((_, error)) => error,
        None => nowhere(
            text,
            format!("is in no storage that can be asked ({})", names.join(", ")),
        ),
    }
}

fn nowhere(text: &str, place: String) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {text}"), place)
        .hinted("see `neon snapshot list`")
}
