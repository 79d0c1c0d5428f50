//! Snapshots: found, listed, and (each in its own file) taken, used, moved and destroyed.

mod base_backup;
mod bring;
mod catalogue;
pub(crate) mod copying;
pub(crate) mod create;
mod current;
mod destroy;
mod diff;
mod export;
mod implicit;
mod import;
mod imported;
mod location;
mod log_end;
pub(crate) mod needs;
mod offered;
pub(crate) mod open;
mod parent;
mod plain_backup;
mod ranges;
pub(crate) mod redo;
mod room;
mod serve;
mod show;
mod sources;
mod transfer;
mod verify;
mod watch;
mod watched;

use std::sync::Arc;

use neon_pagestore::read::Snapshot;
use neon_pagestore::{CommitId, Listed, SnapshotName};

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::neon::Neon;
use crate::repositories::StorageRepository;

pub use create::{CreateSnapshot, TakenSnapshot};
pub use current::CurrentState;
pub use destroy::DestroySnapshot;
pub use diff::{OtherDiff, RelationDiff, SnapshotDiff};
pub use export::{ExportFormat, ExportOptions, Exported};
pub use implicit::CreatedFrom;
pub(crate) use implicit::{LeftImport, TEMPORARY};
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
    /// [`NotFound`](ErrorKind::NotFound) when no storage has it; [`Invalid`](ErrorKind::Invalid) for `CURRENT`. A storage
    /// that cannot be asked is an error only if no other has it.
    pub async fn find(&self, text: &str, storage: Option<&Name>) -> Result<Found> {
        let mut trouble = None;
        for name in self.storages_to_ask(text, storage)? {
            let repository = match self.0.storages().existing_repository(&name).await {
                Ok(Some(repository)) => repository,
                Ok(None) => continue,
                Err(error) if storage.is_some() => return Err(error),
                Err(error) => {
                    trouble.get_or_insert(error);
                    continue;
                }
            };
            match repository.repository.resolve(text).await {
                Ok(id) => {
                    return Ok(Found {
                        id,
                        asked: text.to_owned(),
                        repository: Arc::new(repository),
                    });
                }
                Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => {}
                Err(error) => {
                    let named_so = error.kind() != neon_pagestore::ErrorKind::Invalid;
                    let error = Error::repository(format!("snapshot {text}"), error);
                    if storage.is_some() || !named_so {
                        return Err(error);
                    }
                    // One that lists nothing, as behind HTTP, has snapshots for those who know their ids.
                    if error.kind() != ErrorKind::Invalid {
                        trouble.get_or_insert(error);
                    }
                }
            }
        }
        Err(trouble.unwrap_or_else(|| {
            let place = match storage {
                Some(storage) => format!("is not in storage {storage}"),
                None => "is in no attached storage".to_owned(),
            };
            Error::new(ErrorKind::NotFound, format!("snapshot {text}"), place)
                .hinted("see `neon snapshot list`")
        }))
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

    fn storages_to_ask(&self, text: &str, storage: Option<&Name>) -> Result<Vec<Name>> {
        if let Some(storage) = storage {
            self.0.storages().get(storage)?;
            return Ok(vec![storage.clone()]);
        }
        let own = text
            .parse::<SnapshotName>()
            .ok()
            .and_then(|name| name.instance()?.parse::<Name>().ok())
            .and_then(|instance| self.0.pg().record_of(&instance).ok())
            .map(|record| record.storage);
        let mut order: Vec<Name> = own.into_iter().collect();
        order.push(crate::storages::LOCAL.parse()?);
        for (name, _) in self.0.storages().list()? {
            if !order.contains(&name) {
                order.push(name);
            }
        }
        order.dedup();
        Ok(order)
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
