//! Snapshots between repositories: pushed and pulled, with the same id on both sides.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use neon_pagestore::{CommitId, Copied, CopyProgress, SnapshotName};
use neon_storage::Locator;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::name::Name;
use crate::neon::Neon;
use crate::repositories::StorageRepository;
use crate::snapshots::bring::named;
use crate::snapshots::location::{is_repository, locator};
use crate::snapshots::{
    Found, ImportSnapshot, ImportSource, Imported, ParentChoice, Snapshots, room,
};
use crate::storages::LOCAL;

/// A place to push to or to pull from.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Remote {
    /// An attached storage.
    Storage(Name),
    /// A repository by its address, attached or not.
    Locator(Locator),
    /// Something that is no repository: a `.neon` file, a folder with a base backup.
    Outside(ImportSource),
}

/// What pushing or pulling a snapshot came to.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Transferred {
    /// The snapshot there.
    #[serde(skip)]
    pub found: Option<Found>,
    /// Its id, the same on both sides.
    pub id: CommitId,
    /// Its names.
    pub names: Vec<SnapshotName>,
    /// Where it is now.
    pub to: String,
    /// Bytes that its files have.
    pub size: u64,
    /// Bytes that were stored there for it. What was there before was not sent again.
    pub sent: u64,
    /// Packs that were there already.
    pub packs_there: u64,
    /// Packs that were sent whole.
    pub packs_sent: u64,
    /// Frames that were sent by themselves.
    pub frames_sent: u64,
    /// How long it took, in seconds.
    pub elapsed: f64,
}

/// What pulling came to: a copy from a repository, or an import from elsewhere.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "how", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pulled {
    /// From a repository.
    Copied(Transferred),
    /// From a file or a server.
    Imported(Imported),
}

impl Remote {
    /// Reads the name of a storage, or an address.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for what is neither.
    pub fn parse(text: &str) -> Result<Self> {
        if let Ok(name) = text.parse::<Name>() {
            return Ok(Self::Storage(name));
        }
        if text.starts_with("basebackup://") || text.ends_with(".neon") {
            return ImportSource::parse(text).map(Self::Outside);
        }
        let place = locator(text)?;
        if let Some(path) = place.file_path() {
            let path = std::path::absolute(path)
                .map_err(|error| Error::io(path, "cannot be made absolute", error))?;
            if path.exists() && !is_repository(&path) && !is_empty(&path) {
                return Ok(Self::Outside(ImportSource::Path(path)));
            }
            return Ok(Self::Locator(Locator::path_of(path)));
        }
        Ok(Self::Locator(place))
    }
}

fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

impl Snapshots<'_> {
    /// Copies a snapshot to another storage, whose repository is made if there is none yet. One in an attached storage
    /// is made as that was attached (compressed, encrypted); one at a mere address is not encrypted. When this returns it
    /// exists there.
    ///
    /// Dropped or stopped: nothing exists there but what a collection finds; pushed again soon, what arrived is not
    /// sent again.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when another snapshot has its name there: both stay as they are;
    /// [`Invalid`](ErrorKind::Invalid) for a place that is read only; what either storage answers.
    pub async fn push(&self, from: &Found, to: &Remote) -> Result<Transferred> {
        let target = match to {
            Remote::Storage(name) => self.0.storages().repository(name).await?,
            Remote::Locator(locator) => self.0.storages().repository_made_at(locator).await?,
            Remote::Outside(source) => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    source.to_string(),
                    "is no storage to push to",
                )
                .hinted("write a file with neon snapshot export"));
            }
        };
        self.copied("snapshot push", from, target).await
    }

    /// Copies a snapshot from elsewhere into a storage of this home, the local one if none is named. From a file or a
    /// server it is [imported](Self::import), then under this name.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it is not there; as [`push`](Self::push) and [`import`](Self::import).
    pub async fn pull(&self, from: &Remote, name: &str, into: Option<&Name>) -> Result<Pulled> {
        self.pull_sharing(from, name, into, &ParentChoice::Best)
            .await
    }

    /// As [`pull`](Self::pull); what is imported shares its pages with this snapshot.
    ///
    /// # Errors
    /// As [`pull`](Self::pull); [`Invalid`](ErrorKind::Invalid) for another choice than the best of what is copied from a storage:
    /// that comes as it is there.
    pub async fn pull_sharing(
        &self,
        from: &Remote,
        name: &str,
        into: Option<&Name>,
        parent: &ParentChoice,
    ) -> Result<Pulled> {
        if *parent != ParentChoice::Best && !matches!(from, Remote::Outside(_)) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("snapshot {name}"),
                "comes from a storage, with what it shares there",
            )
            .hinted("only what is imported from a file or a server can do without a parent"));
        }
        let storages = self.0.storages();
        let found = match from {
            Remote::Storage(storage) => self.find(name, Some(storage)).await?,
            Remote::Locator(locator) => match storages.repository_at(locator).await? {
                Some(repository) => self.find_in(repository, name).await?,
                None => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("storage {locator}"),
                        "has no snapshots: there is no repository",
                    ));
                }
            },
            Remote::Outside(source) => {
                let mut import = ImportSnapshot::new(source.clone());
                import.name = Some(
                    SnapshotName::to_give(name)
                        .map_err(|error| Error::repository(format!("snapshot {name}"), error))?,
                );
                import.storage = into.cloned();
                import.parent = parent.clone();
                return self.import(&import).await.map(Pulled::Imported);
            }
        };
        let into = match into {
            Some(into) => into.clone(),
            None => LOCAL.parse()?,
        };
        let target = storages.repository(&into).await?;
        self.copied("snapshot pull", &found, target)
            .await
            .map(Pulled::Copied)
    }

    async fn copied(&self, verb: &str, from: &Found, to: StorageRepository) -> Result<Transferred> {
        let mut operation = self.0.begin_operation(verb, &from.asked)?;
        operation.detail("id", from.id.to_string());
        operation.detail("from", from.repository.label());
        operation.detail("to", to.label());
        operation.end(self.copy(from, to).await)
    }

    async fn copy(&self, from: &Found, to: StorageRepository) -> Result<Transferred> {
        let begun = Instant::now();
        let subject = from.subject();
        let (source, label) = (&from.repository, to.label());
        if source.repository.id() == to.repository.id() {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                format!("is in {label} already: it is the same repository"),
            ));
        }
        let snapshot = source.snapshot(from.id).await?;
        let facts = snapshot.facts();
        // Asked before anything is sent; who comes first in a race is settled when it is there.
        for name in &facts.names {
            match to.repository.resolve_name(name).await {
                Ok(other) if other != from.id => {
                    return Err(Error::new(
                        ErrorKind::Exists,
                        format!("snapshot {name}"),
                        format!("is the name of another snapshot in {label}, {other}"),
                    )
                    .hinted("destroy that one first, or take yours under another name"));
                }
                Ok(_) => {}
                Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::repository(label, error)),
            }
        }
        self.0
            .tell(Event::Step(format!("Copying {subject} to {label}.")));
        let refused = Arc::new(Mutex::new(None));
        let watch = watch(self.0, &to, subject.clone(), &refused);
        let copying = source
            .repository
            .copy_to_watched(&to.repository, from.id, watch);
        let copied = self.stopping(copying).await?;
        let copied = copied.map_err(|error| {
            let refused = refused
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            refused.unwrap_or_else(|| Error::repository(label.clone(), error))
        })?;
        let Copied { names, .. } = &copied;
        named(self.0, &to.repository, names, copied.id, &subject, false).await?;
        Ok(Transferred {
            id: copied.id,
            names: facts.names.clone(),
            to: label,
            size: facts.cost.bytes,
            sent: copied.bytes,
            packs_there: copied.packs_there,
            packs_sent: copied.packs_whole,
            frames_sent: copied.frames,
            elapsed: begun.elapsed().as_secs_f64(),
            found: Some(Found {
                id: copied.id,
                asked: from.asked.clone(),
                repository: Arc::new(to),
            }),
        })
    }

    /// Waits for something that leaves nothing behind when it is dropped, until somebody asks to stop.
    pub(crate) async fn stopping<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let pause = std::time::Duration::from_millis(100);
            match tokio::time::timeout(pause, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) => self.0.go_on()?,
            }
        }
    }
}

/// Tells how far a copy is. Before anything is sent: whether there is room for it; why not is left in `refused`.
fn watch(
    neon: &Neon,
    to: &StorageRepository,
    subject: String,
    refused: &Arc<Mutex<Option<Error>>>,
) -> impl Fn(CopyProgress) -> neon_pagestore::Result<()> + Send + Sync + 'static {
    let (neon, to, refused) = (neon.clone(), to.clone(), Arc::clone(refused));
    move |progress| {
        if progress.total == 0 {
            return Ok(());
        }
        if progress.done == 0
            && let Err(error) = room::check_stored(&neon, &to, progress.total)
        {
            *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            let limit = neon_pagestore::ErrorKind::Limit;
            return Err(neon_pagestore::Error::new(limit, &*subject, "does not fit"));
        }
        if neon.go_on().is_err() {
            let cancelled = neon_pagestore::ErrorKind::Cancelled;
            return Err(neon_pagestore::Error::new(
                cancelled,
                &*subject,
                "was stopped",
            ));
        }
        neon.tell(Event::Progress {
            subject: subject.clone(),
            done: progress.done,
            total: progress.total,
        });
        Ok(())
    }
}
