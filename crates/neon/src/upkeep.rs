//! What storages hold, and their upkeep: checks and collections.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::TryStreamExt;
use neon_pagestore::gc::LeftPack;
use neon_pagestore::{Checked, CommitId};
use neon_storage::{ListOptions, Storage};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::operation::seconds;
use crate::record;
use crate::storages::{StorageRecord, StorageType, Storages};

/// How old, in seconds, a sum may be before a folder of this machine is added up again.
const FRESH: u64 = 10;

/// What was counted last.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Used {
    bytes: u64,
    at: u64,
}

/// A storage in a listing.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ListedStorage {
    /// Its name.
    pub name: Name,
    /// Bytes in it, when that was last counted; absent if it never was, or cannot be, as over HTTP.
    pub used: Option<u64>,
    /// When that was, in seconds since 1970.
    pub used_at: Option<u64>,
    /// What kind of place it is.
    #[serde(rename = "type")]
    pub kind: StorageType,
    /// What was chosen for it.
    pub options: BTreeMap<String, String>,
    /// Where it is, without secrets.
    pub path: String,
    /// Why it could not be counted now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What there is to know of one storage.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct StorageDetails {
    /// As in a listing, counted now.
    #[serde(flatten)]
    pub listed: ListedStorage,
    /// When it was attached, in seconds since 1970.
    pub attached: u64,
    /// The instances that keep their snapshots in it.
    pub instances: Vec<Name>,
    /// What is in it; absent before the first snapshot.
    pub repository: Option<RepositoryDetails>,
}

/// A repository in a storage.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RepositoryDetails {
    /// Its id.
    pub id: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// Snapshots that cannot be read.
    pub unreadable: u64,
    /// Bytes of packs in it.
    pub stored: u64,
    /// Bytes of them that snapshots need, or somebody who works on it.
    pub live: u64,
    /// Bytes that a collection would free, or less where there are packs that it may not rewrite: which these are is not
    /// asked here.
    pub collectable: u64,
}

/// What a check of a storage found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CheckedStorage {
    /// What was checked: a storage, or a snapshot.
    pub subject: String,
    /// Whether every byte was read.
    pub with_data: bool,
    /// Snapshots that were checked.
    pub snapshots: u64,
    /// Small objects that were read.
    pub objects: u64,
    /// Packs whose directories were read.
    pub packs: u64,
    /// Frames that snapshots need.
    pub frames: u64,
    /// Pages whose content was read.
    pub pages: u64,
    /// What is wrong; empty when all is well.
    pub findings: Vec<Finding>,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The object, frame, page or snapshot it is about.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// The snapshots that it hurts.
    pub snapshots: Vec<CommitId>,
}

impl CheckedStorage {
    pub(crate) fn of(subject: String, with_data: bool, checked: Checked) -> Self {
        let mut findings: Vec<Finding> = Vec::new();
        for found in checked.findings {
            // Who looks at a frame and who reads it say the same of it.
            let said = findings
                .iter_mut()
                .find(|one| one.object == found.object && found.problem.ends_with(&one.problem));
            match said {
                Some(one) => {
                    let more = found.snapshots.into_iter();
                    let more: Vec<_> = more.filter(|id| !one.snapshots.contains(id)).collect();
                    one.snapshots.extend(more);
                }
                None => findings.push(Finding {
                    object: found.object,
                    problem: found.problem,
                    snapshots: found.snapshots.into_iter().collect(),
                }),
            }
        }
        Self {
            subject,
            with_data,
            snapshots: checked.snapshots,
            objects: checked.objects,
            packs: checked.packs,
            frames: checked.frames,
            pages: checked.pages,
            findings,
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// An error that names what is wrong, if anything is.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) with the first finding.
    pub fn require_sound(&self) -> Result<()> {
        let Some(first) = self.findings.first() else {
            return Ok(());
        };
        let more = match self.findings.len().saturating_sub(1) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        Err(Error::new(
            ErrorKind::Damaged,
            self.subject.clone(),
            format!("is damaged: {}: {}{more}", first.object, first.problem),
        ))
    }
}

/// What a collection of a storage would do. Destroyed snapshots can be brought back until it is executed.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CollectStorage {
    /// The storage.
    pub storage: Name,
    /// Packs that nothing needs.
    pub packs: usize,
    /// Packs that are mostly not needed: what is needed of them moves.
    pub sparse: usize,
    /// Snapshots that are destroyed, or were never completed: they are gone for good then.
    pub snapshots: Vec<CommitId>,
    /// Bytes in all packs.
    pub stored: u64,
    /// Bytes that are needed.
    pub live: u64,
    /// Bytes that will be free when all of it is done.
    pub freed: u64,
    /// Packs that are mostly not needed and stay as they are.
    pub left: Vec<PackLeft>,
}

/// A pack that is mostly not needed, and that no collection rewrites: it stays for as long as anything of it is needed.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PackLeft {
    /// Its id.
    pub pack: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of it that are needed.
    pub live: u64,
    /// Why it stays, about the pack: `holds a frame that …`.
    pub reason: String,
}

impl PackLeft {
    fn of(left: &LeftPack) -> Self {
        Self {
            pack: left.id.to_string(),
            size: left.size,
            live: left.live,
            reason: left.reason.to_string(),
        }
    }
}

/// What a collection did. Packs are announced first and deleted by a run after the storage's grace.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CollectedStorage {
    /// The storage.
    pub storage: Name,
    /// Packs that were deleted.
    pub packs: u64,
    /// Snapshots that were deleted.
    pub snapshots: u64,
    /// Bytes that are free now.
    pub freed: u64,
    /// Bytes that moved out of packs that were mostly not needed.
    pub moved: u64,
    /// Packs that were announced.
    pub announced: u64,
    /// Bytes that are needed.
    pub live: u64,
    /// In how many seconds another run has something to delete; absent when all is done.
    pub next: Option<u64>,
    /// Packs that are mostly not needed and stayed as they are.
    pub left: Vec<PackLeft>,
}

impl Storages<'_> {
    /// All storages with what they hold, by name. Folders of this machine are counted now, others only when told to
    /// `refresh`, and otherwise as they were counted last. One that cannot be counted is in the list all the same.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list_used(&self, refresh: bool) -> Result<Vec<ListedStorage>> {
        let mut all = Vec::new();
        for (name, record) in self.list()? {
            all.push(self.look(name, &record, refresh).await);
        }
        Ok(all)
    }

    async fn look(&self, name: Name, record: &StorageRecord, refresh: bool) -> ListedStorage {
        let known: Option<Used> = record::read(&self.used_record(&name)).ok().flatten();
        let now = seconds(self.0.now());
        let near = record.kind == StorageType::Native;
        let stale = known.is_none_or(|known| now.saturating_sub(known.at) > FRESH);
        let mut used = known;
        let mut trouble = None;
        if refresh || (near && stale) {
            match self.count(&name).await {
                Ok(bytes) => {
                    let counted = Used { bytes, at: now };
                    used = Some(counted);
                    self.remember_used(&name, counted);
                }
                // Such as HTTP, which lists nothing.
                Err(error) if error.kind() == ErrorKind::Invalid => {}
                Err(error) => trouble = Some(with_causes(&error)),
            }
        }
        ListedStorage {
            name,
            used: used.map(|used| used.bytes),
            used_at: used.map(|used| used.at),
            kind: record.kind,
            options: record.options.clone(),
            path: record.locator.clone(),
            trouble,
        }
    }

    async fn count(&self, name: &Name) -> Result<u64> {
        let storage = self.open(name).await?;
        total(&*storage)
            .await
            .map_err(|error| Error::storage(format!("storage {name}"), error))
    }

    /// What there is to know of a storage. Reads the maps of all snapshots in it.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), and what the storage answers.
    pub async fn show(&self, name: &Name) -> Result<StorageDetails> {
        let record = self.get(name)?;
        let listed = self.look(name.clone(), &record, true).await;
        let failed = |error| Error::repository(format!("storage {name}"), error);
        let repository = match self.existing_repository(name).await? {
            None => None,
            Some(found) => {
                let snapshots = found.repository.list().await.map_err(failed)?;
                let unreadable = snapshots.iter().filter(|listed| listed.summary.is_err());
                let plan = match record.kind {
                    StorageType::Http => None,
                    _ => Some(
                        found
                            .repository
                            .estimate_collection()
                            .await
                            .map_err(failed)?,
                    ),
                };
                Some(RepositoryDetails {
                    id: found.repository.id().to_string(),
                    encrypted: found.repository.is_encrypted(),
                    unreadable: unreadable.count() as u64,
                    snapshots: snapshots.len() as u64,
                    stored: plan.as_ref().map_or(0, |plan| plan.stored),
                    live: plan.as_ref().map_or(0, |plan| plan.live),
                    collectable: plan.as_ref().map_or(0, |plan| plan.freed()),
                })
            }
        };
        let records = self.0.pg().records()?;
        let users = records.into_iter().filter(|pg| pg.storage == *name);
        Ok(StorageDetails {
            listed,
            attached: record.attached,
            instances: users.map(|pg| pg.name).collect(),
            repository,
        })
    }

    /// Checks a storage: every object is looked at, and that what snapshots need is there. With data, every stored byte
    /// and every page is read. What is wrong is in the result, see [`CheckedStorage::require_sound`]. Nothing is written to it;
    /// but what the home knows of it, who writes to it next finds out anew.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), also when there is no repository in it; what the storage answers.
    pub async fn check(&self, name: &Name, with_data: bool) -> Result<CheckedStorage> {
        let subject = format!("storage {name}");
        let found = self.required(name).await?;
        self.doubt_probed(name).await;
        let checked = self
            .0
            .snapshots()
            .stopping(found.repository.check(with_data))
            .await?
            .map_err(|error| Error::repository(&*subject, error))?;
        Ok(CheckedStorage::of(subject, with_data, checked))
    }

    /// What a collection would do.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn plan_gc(&self, name: &Name) -> Result<CollectStorage> {
        let found = self.required(name).await?;
        let plan = found.repository.plan_collection().await;
        let plan = plan.map_err(|error| Error::repository(format!("storage {name}"), error))?;
        Ok(CollectStorage {
            storage: name.clone(),
            packs: plan.packs.len(),
            sparse: plan.sparse.len(),
            freed: plan.freed(),
            left: plan.left.iter().map(PackLeft::of).collect(),
            snapshots: plan.commits,
            stored: plan.stored,
            live: plan.live,
        })
    }

    /// Collects: what nothing needs is announced, and deleted once its grace is over. Judged anew: what came to be needed
    /// since the plan stays.
    ///
    /// Dropped or stopped: the rest goes with the next run.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) when another collection is under way; [`Damaged`](ErrorKind::Damaged) when anything is
    /// unreadable: then nothing is deleted; what the storage answers.
    pub async fn gc(&self, plan: &CollectStorage) -> Result<CollectedStorage> {
        let name = &plan.storage;
        let found = self.required(name).await?;
        let mut operation = self.0.begin_relief("storage gc", name.as_str())?;
        let snapshots = self.0.snapshots();
        let collected = snapshots.stopping(found.repository.collect()).await;
        let collected = collected.and_then(|collected| {
            collected.map_err(|error| Error::repository(format!("storage {name}"), error))
        });
        if let Ok(collected) = &collected {
            operation.detail("freed", collected.freed.to_string());
        }
        let collected = operation.end(collected)?;
        self.forget_used(name);
        Ok(CollectedStorage {
            storage: name.clone(),
            packs: collected.packs,
            snapshots: collected.commits,
            freed: collected.freed,
            moved: collected.moved,
            announced: collected.announced,
            live: collected.live,
            next: collected.next.as_ref().map(Duration::as_secs),
            left: collected.left.iter().map(PackLeft::of).collect(),
        })
    }

    async fn required(&self, name: &Name) -> Result<crate::StorageRepository> {
        self.existing_repository(name).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("storage {name}"),
                "has no repository yet: no snapshot was ever stored in it",
            )
        })
    }

    fn used_record(&self, name: &Name) -> PathBuf {
        self.0.home().cache(&format!("used-{name}.json"))
    }

    /// A sum that is lost is made again.
    fn remember_used(&self, name: &Name, used: Used) {
        let folder = record::folder(&self.0.home().path().join("cache"), 0o700);
        drop(folder.and_then(|()| record::replace(&self.used_record(name), &used)));
    }

    pub(crate) fn forget_used(&self, name: &Name) {
        drop(record::remove(&self.used_record(name)));
    }
}

async fn total(storage: &dyn Storage) -> neon_storage::Result<u64> {
    storage
        .list(ListOptions::all())
        .try_fold(0_u64, |sum, object| async move {
            Ok(sum.saturating_add(object.size))
        })
        .await
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
