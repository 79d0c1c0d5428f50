//! A writer at work: what must happen, and in which order, for a snapshot to come into being beside other writers
//! and collections.
//!
//! 1. The lease is put before anything else; it names the parent before the parent is looked at.
//! 2. Packs are written under ids that carry the writer's; others' packs are named in the lease before they are relied
//!    on.
//! 3. A last heartbeat shows that the writer never slept for half the grace.
//! 4. The commit is created.
//! 5. No suspicion of this writer is there, no tombstone of the commit, no list has it, and it is still there: the
//!    snapshot exists. Otherwise the writer condemns itself. Who finds the commit there, of another writer that may
//!    yet be condemned, or going away, creates it once more under a key of its own.
//! 6. Its names are claimed.

use std::collections::HashSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use neon_snapshot_format::pack::PackId;
use neon_storage::{ListOptions, StorageExt};

use crate::claim::NameOutcome;
use crate::commit::Commit;
use crate::commit_object::{CommitObject, gone};
use crate::crypt::{DataKey, PackCipher};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitId, WriterId};
use crate::keys::{self, PACKS};
use crate::lease::Lease;
use crate::map::PackRef;
use crate::name::SnapshotName;
use crate::object::{Object, ObjectKind};
use crate::repository::Repository;

/// From how many packs on listing them is cheaper than asking for each.
const LIST_FROM: usize = 200;

/// One snapshot being written. Makes at most one commit.
///
/// Dropped: what was written is garbage, and a collection takes it once the lease has lapsed.
/// [`abandon`](Self::abandon) spares it that wait.
#[derive(Debug)]
pub struct Writing {
    repository: Repository,
    lease: Lease,
}

/// A snapshot that exists.
#[derive(Debug)]
#[non_exhaustive]
pub struct Committed {
    /// Its id.
    pub id: CommitId,
    /// What came of the names it asked for.
    pub names: Vec<(SnapshotName, NameOutcome)>,
}

impl Repository {
    /// Begins to write a snapshot. A task of the current tokio runtime keeps the lease alive.
    ///
    /// Dropped: a lease may remain until it lapses.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage).
    pub async fn begin_writing(&self) -> Result<Writing> {
        self.begin_writing_on(&[]).await
    }

    /// As [`begin_writing`](Self::begin_writing), by a writer that knows already which snapshots it builds on: its first
    /// heartbeat names them, and to [protect](Writing::protect) them, which it has to as before, takes no further one.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage).
    pub async fn begin_writing_on(&self, parents: &[CommitId]) -> Result<Writing> {
        Ok(Writing {
            repository: self.clone(),
            lease: self.lease(parents).await?,
        })
    }

    /// Takes back a [`destroy`](Self::destroy), unless a collection is at it: the commit is stored once more, by a writer
    /// as any other, and the snapshot is what it was. A name that was given to another snapshot meanwhile stays there.
    ///
    /// Dropped, or failed with [`Storage`](ErrorKind::Storage): it is destroyed or not.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it was not destroyed or is gone; [`Busy`](ErrorKind::Busy) when a
    /// collection has announced it, or this writer was silent for too long.
    pub async fn undo_destroy(&self, id: CommitId) -> Result<()> {
        let writing = Writing {
            repository: self.clone(),
            lease: self.lease(&[id]).await?,
        };
        let result = writing.undo(id).await;
        writing.end(result).await
    }
}

impl Writing {
    /// The writer.
    #[must_use]
    pub fn writer(&self) -> WriterId {
        self.lease.writer()
    }

    /// The repository.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// A new pack of this writer with its key.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) when the system has no randomness to give.
    pub fn new_pack(&self) -> Result<PackRef> {
        Ok(PackRef {
            id: self.writer().new_pack()?,
            key: DataKey::random()?,
        })
    }

    /// What to seal the frames of a pack with; nothing in a repository that is not encrypted.
    #[must_use]
    pub fn cipher(&self, pack: &PackRef) -> Option<PackCipher> {
        self.repository
            .is_encrypted()
            .then(|| PackCipher::new(&pack.key))
    }

    /// Makes sure that a snapshot and all its pages stay until this writer is done, and reads its commit. To be called
    /// before anything of it is relied on.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such snapshot (any more);
    /// [`Unsupported`](ErrorKind::Unsupported) when it uses additions with which this version may read it only.
    pub async fn protect(&self, parent: CommitId) -> Result<Commit> {
        self.lease.add_parent(parent).await?;
        let commit = self.repository.require_kept(parent).await?.commit;
        match commit.flags.writable() {
            true => Ok(commit),
            false => Err(read_only(format!("snapshot {parent}"))),
        }
    }

    /// Announces packs of other writers that the new snapshot refers to, and returns those that are there and stay.
    /// Any other must be stored under its id if nothing is there, or have its frames stored in a pack of this
    /// writer, with a note where they moved: see [`Brought`].
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage).
    pub async fn bring(&self, packs: &[PackId]) -> Result<Brought> {
        self.lease.add_packs(packs).await?;
        let doomed = self.repository.doomed().await?;
        let there = self.existing(packs).await?;
        let mut brought = Brought::default();
        for pack in packs {
            let list = match (doomed.packs.contains(pack), there.contains(pack)) {
                (true, _) => &mut brought.doomed,
                (false, true) => &mut brought.there,
                (false, false) => &mut brought.absent,
            };
            list.push(*pack);
        }
        Ok(brought)
    }

    async fn existing(&self, packs: &[PackId]) -> Result<HashSet<PackId>> {
        let storage = &self.repository.shared.storage;
        if packs.len() >= LIST_FROM {
            let wanted: HashSet<_> = packs.iter().copied().collect();
            return storage
                .list(ListOptions::prefix(PACKS))
                .try_filter_map(|object| async move { Ok(keys::pack_of(&object.key)) })
                .try_filter(|pack| std::future::ready(wanted.contains(pack)))
                .try_collect()
                .await
                .map_err(|error| Error::storage(PACKS, error));
        }
        stream::iter(packs.iter().copied())
            .map(|pack| async move {
                let key = keys::pack(pack)?;
                let there = storage.exists(&key).await;
                let there = there.map_err(|error| Error::storage(key.as_str(), error))?;
                Ok(there.then_some(pack))
            })
            .buffer_unordered(16)
            .try_filter_map(|pack| async move { Ok(pack) })
            .try_collect()
            .await
    }

    /// Makes the snapshot exist. All its packs must be stored. When this returns, it is as durable as the storage makes
    /// it; a name that another snapshot has is no error, see [`Committed::names`].
    ///
    /// Dropped, or failed with [`Storage`](ErrorKind::Storage): the snapshot exists or not.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) when this writer was silent for too long, or the same snapshot was here and is being
    /// got rid of: nothing exists that was not there by another.
    pub async fn commit(self, commit: &Commit) -> Result<Committed> {
        let body = match commit.encode() {
            Ok(body) => body,
            Err(error) => {
                self.abandon().await;
                return Err(error);
            }
        };
        self.commit_body(body, &commit.facts.names).await
    }

    /// As [`commit`](Self::commit), with the bytes that a commit has elsewhere.
    pub(crate) async fn commit_body(
        self,
        body: Vec<u8>,
        names: &[SnapshotName],
    ) -> Result<Committed> {
        let result = self.try_commit(body, names).await;
        self.end(result).await
    }

    /// Ends after a try to commit.
    async fn end<T>(self, result: Result<T>) -> Result<T> {
        match result {
            // A commit that was sent and not acknowledged may still arrive. The lease is left to lapse, so that this
            // writer is condemned before its packs go.
            Err(error) if error.kind() == ErrorKind::Storage => Err(error),
            result => {
                self.lease.release().await;
                result
            }
        }
    }

    async fn try_commit(&self, body: Vec<u8>, wanted: &[SnapshotName]) -> Result<Committed> {
        if let Some(name) = wanted.iter().find(|name| name.is_current()) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("name {name}"),
                "stands for the live state and is given to no snapshot",
            ));
        }
        let writer = self.writer();
        let id = CommitId::of(&body);
        self.bring_about(id, body).await?;
        let mut names = Vec::with_capacity(wanted.len());
        for name in wanted {
            let outcome = self.repository.claim(writer, name, id).await;
            names.push((name.clone(), outcome));
        }
        Ok(Committed { id, names })
    }

    /// Makes the commit stand, by an object of this writer or by one that is there and stays.
    async fn bring_about(&self, id: CommitId, body: Vec<u8>) -> Result<()> {
        self.lease.prove().await?;
        let first = CommitObject::first(id);
        let object = Object::new(ObjectKind::Commit, self.writer(), body);
        // A key that is on a list may be deleted by who is asleep, for however long. And looked at although only one can
        // create it: some storages say so of themselves and are wrong.
        let doomed = self.repository.doomed().await?.commits.contains(&first);
        if !doomed && self.is_free(first).await? {
            match self.put_commit(first, &object).await {
                Err(error) if error.kind() == ErrorKind::Exists => {}
                put => return put,
            }
        }
        // The same snapshot was brought here before. Where its writer may yet be condemned, or it is going away, ours is
        // stored beside it.
        for object in self.repository.commit_objects_of(id).await? {
            let author = match self.repository.read_commit_object(object).await {
                Ok((author, _)) => author,
                // Gone; or damaged, which keeps nobody from storing it anew.
                Err(error) if error.is_of_object() => continue,
                Err(error) => return Err(error),
            };
            if self.is_settled(author).await? {
                self.require_awake().await?;
                if self.against(object, author).await?.is_none() {
                    return Ok(());
                }
            }
        }
        self.put_commit(CommitObject::again(id, self.writer()), &object)
            .await
    }

    /// Whether nothing is stored there; what cannot be read is something.
    async fn is_free(&self, object: CommitObject) -> Result<bool> {
        match self.repository.commit_author(object).await {
            Ok(author) => Ok(author.is_none()),
            Err(error) if error.is_of_object() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates the commit. After that, either no suspicion was there when we looked, and every collection that suspects
    /// us later sees the commit; or we condemn ourselves, and it never was a snapshot. A look that fails decides nothing.
    async fn put_commit(&self, object: CommitObject, content: &Object) -> Result<()> {
        let key = keys::commit(object)?;
        self.repository.put_object(&key, content).await?;
        let writer = self.writer();
        let doubt = match self.require_awake().await {
            Ok(()) => self.against(object, writer).await?,
            Err(error) if error.kind() == ErrorKind::Busy => Some(error),
            Err(error) => return Err(error),
        };
        match doubt {
            None => Ok(()),
            Some(doubt) => {
                self.repository.condemn(writer).await?;
                Err(doubt)
            }
        }
    }

    /// Whether a writer reported what it stored, or gave it up, is at work no more and was never suspected: nobody
    /// condemns it any more.
    async fn is_settled(&self, author: WriterId) -> Result<bool> {
        // A writer that is done has condemned itself over what it did not report before its lease went; one whose lease
        // a collection took away was suspected before.
        let working = self.repository.writers_with_leases().await?;
        let tombstones = self.repository.tombstones().await?;
        Ok(!working.contains(&author)
            && !tombstones.suspected.contains(&author)
            && !tombstones.condemned.contains(&author))
    }

    /// An error when a collection took this writer for gone.
    async fn require_awake(&self) -> Result<()> {
        match self.repository.is_suspected(self.writer()).await? {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Busy,
                format!("writer {}", self.writer()),
                "was taken for gone; what it wrote may be gone too, begin anew",
            )),
        }
    }

    /// Why a stored commit of this writer is not to be reported, if anything is against it.
    async fn against(&self, object: CommitObject, author: WriterId) -> Result<Option<Error>> {
        let key = keys::tombstone(object)?;
        let buried = self.repository.shared.storage.exists(&key).await;
        if buried.map_err(|error| Error::storage(key.as_str(), error))? {
            return Ok(Some(Error::new(
                ErrorKind::Busy,
                format!("snapshot {}", object.id),
                "was destroyed meanwhile",
            )));
        }
        // Who deletes by a list that comes later marks after our commit was there. Who deleted by one that is gone is
        // through with it, so the commit is looked at last.
        let doomed = self.repository.doomed().await?.commits.contains(&object);
        if doomed || self.repository.commit_author(object).await? != Some(author) {
            return Ok(Some(Error::new(
                ErrorKind::Busy,
                format!("snapshot {}", object.id),
                "was here and is going away; try again",
            )));
        }
        Ok(None)
    }

    /// Brings back a snapshot that was destroyed and that the lease names.
    async fn undo(&self, id: CommitId) -> Result<()> {
        let subject = || format!("snapshot {id}");
        // After the lease: a collection that does not see it has announced before we look.
        let objects = self.repository.commit_objects_of(id).await?;
        let stands = !self.repository.look_at(&objects).await?.standing.is_empty();
        let tombstones = self.repository.tombstones().await?;
        let destroyed = |object: &&CommitObject| tombstones.commits.contains_key(object);
        if stands || !objects.iter().any(|object| destroyed(&object)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                subject(),
                "is not destroyed",
            ));
        }
        let doomed = self.repository.doomed().await?;
        let mut refused = None;
        for object in objects.iter().filter(destroyed) {
            if doomed.commits.contains(object) {
                refused = Some(Error::new(
                    ErrorKind::Busy,
                    subject(),
                    "is being collected; it can no longer be brought back",
                ));
                continue;
            }
            // After the looks: what a collection deletes is on its list while it does.
            match self.repository.commit_body(*object).await {
                Ok((author, _)) if tombstones.condemned.contains(&author) => {
                    refused.get_or_insert_with(|| gone(id, "was never completed"));
                }
                Ok((_, body)) => {
                    self.lease.prove().await?;
                    let content = Object::new(ObjectKind::Commit, self.writer(), body);
                    let again = CommitObject::again(id, self.writer());
                    return self.put_commit(again, &content).await;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    refused.get_or_insert_with(|| gone(id, "was collected"));
                }
                Err(error) if error.is_of_object() => {
                    refused.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| gone(id, "was collected")))
    }

    /// Whether this writer can still commit. To be asked when it finds something amiss in the repository: who slept for
    /// too long sees the work of collections that took it for gone, and that is no damage.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) when it was silent for too long.
    pub async fn require_heard(&self) -> Result<()> {
        match self.lease.prove().await {
            Err(error) if error.kind() == ErrorKind::Busy => Err(error),
            // Nothing is known then, and what was found stands.
            _ => Ok(()),
        }
    }

    /// Ends without a snapshot.
    pub async fn abandon(self) {
        self.lease.release().await;
    }
}

/// Why nothing is built on a snapshot.
pub(crate) fn read_only(subject: impl Into<String>) -> Error {
    let reason = "was written by a newer version of this program; it can be read, and nothing be built on it";
    Error::new(ErrorKind::Unsupported, subject, reason)
}

/// What [`Writing::bring`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Brought {
    /// These are there, and stay.
    pub there: Vec<PackId>,
    /// Nothing is there: to be stored under their ids.
    pub absent: Vec<PackId>,
    /// These are there and are being deleted: their frames have to be stored in a new pack, with a note where they are.
    pub doomed: Vec<PackId>,
}
