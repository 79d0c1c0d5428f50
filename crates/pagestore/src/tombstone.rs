//! Tombstones: of snapshots that were destroyed, and of writers that fell silent.
//!
//! A writer has two. The *suspicion* is put by a collection that finds its lease lapsed: a writer that sees it after
//! creating its commit retracts. The *condemnation* is put by a collection that listed all commits after the
//! suspicion was there, and found none of this writer: whatever it commits later was never reported as done, and is
//! no snapshot for anybody. So what a writer reported stays, and what was collected is never shown. A writer that has
//! to take back its commit condemns itself: a tombstone of the commit would take it from those who brought the same.
//!
//! Who brings a commit that is there already, of a writer that may still be condemned, *vouches* for it: such a commit
//! is a snapshot as long as its own writer or one that vouched is not condemned.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use futures_util::TryStreamExt;
use neon_storage::{ListOptions, StorageExt};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitId, WriterId};
use crate::keys::{self, TOMBSTONES};
use crate::object::ObjectKind;
use crate::repository::Repository;

/// What a tombstone says beside its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) struct TombstoneBody {
    /// Why, for people.
    #[serde(default)]
    pub(crate) reason: String,
}

/// Everything that has a tombstone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tombstones {
    /// When each was put.
    pub(crate) commits: HashMap<CommitId, SystemTime>,
    pub(crate) suspected: HashSet<WriterId>,
    pub(crate) condemned: HashSet<WriterId>,
    pub(crate) vouches: BTreeSet<Vouch>,
}

/// A writer reported a commit that another had created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Vouch {
    pub(crate) commit: CommitId,
    /// Who created it. The commit of another under the same id is not vouched for.
    pub(crate) author: WriterId,
    pub(crate) voucher: WriterId,
}

impl Vouch {
    fn parse(text: &str) -> Result<Self> {
        let mut parts = text.splitn(3, '-');
        let mut part = || parts.next().unwrap_or_default();
        Ok(Self {
            commit: part().parse()?,
            author: part().parse()?,
            voucher: part().parse()?,
        })
    }
}

impl Tombstones {
    /// Whether this commit of this writer is no snapshot.
    pub(crate) fn bury(&self, id: CommitId, writer: WriterId) -> bool {
        let stands = |writer: &WriterId| !self.condemned.contains(writer);
        self.commits.contains_key(&id)
            || !(stands(&writer) || self.vouchers(id, writer).any(|voucher| stands(&voucher)))
    }

    /// Who vouched for this commit of this writer.
    pub(crate) fn vouchers(
        &self,
        id: CommitId,
        author: WriterId,
    ) -> impl Iterator<Item = WriterId> {
        let from = |voucher| Vouch {
            commit: id,
            author,
            voucher,
        };
        self.vouches
            .range(from(WriterId([0; 8]))..=from(WriterId([u8::MAX; 8])))
            .map(|vouch| vouch.voucher)
    }
}

impl Repository {
    /// Reads the keys of all tombstones.
    pub(crate) async fn tombstones(&self) -> Result<Tombstones> {
        let mut found = Tombstones::default();
        let mut listing = self.shared.storage.list(ListOptions::prefix(TOMBSTONES));
        while let Some(object) = listing
            .try_next()
            .await
            .map_err(|error| Error::storage(TOMBSTONES, error))?
        {
            let text = object
                .key
                .as_str()
                .strip_prefix(TOMBSTONES)
                .unwrap_or_default();
            if let Some(writer) = text.strip_prefix("writer-") {
                found.suspected.insert(writer.parse()?);
            } else if let Some(writer) = text.strip_prefix("condemned-") {
                found.condemned.insert(writer.parse()?);
            } else if let Some(vouch) = text.strip_prefix("vouched-") {
                found.vouches.insert(Vouch::parse(vouch)?);
            } else {
                found.commits.insert(text.parse()?, object.modified);
            }
        }
        Ok(found)
    }

    /// Puts a tombstone; one that is there already is as good.
    pub(crate) async fn bury_commit(&self, id: CommitId, reason: &str) -> Result<()> {
        self.put_tombstone(&keys::tombstone(id)?, reason).await
    }

    pub(crate) async fn suspect(&self, writer: WriterId) -> Result<()> {
        let key = keys::suspicion(writer)?;
        self.put_tombstone(&key, "its lease lapsed").await
    }

    pub(crate) async fn condemn(&self, writer: WriterId) -> Result<()> {
        let key = keys::condemnation(writer)?;
        self.put_tombstone(&key, "it committed too late, or not at all")
            .await
    }

    pub(crate) async fn vouch(&self, vouch: Vouch) -> Result<()> {
        let key = keys::vouch(vouch)?;
        self.put_tombstone(&key, "was brought again").await
    }

    pub(crate) async fn withdraw_vouch(&self, vouch: Vouch) -> Result<()> {
        let key = keys::vouch(vouch)?;
        let deleted = self.shared.storage.delete(&key).await;
        deleted.map_err(|error| Error::storage(key.as_str(), error))
    }

    /// Whether a collection took this writer for gone.
    pub(crate) async fn is_suspected(&self, writer: WriterId) -> Result<bool> {
        let key = keys::suspicion(writer)?;
        let there = self.shared.storage.exists(&key).await;
        there.map_err(|error| Error::storage(key.as_str(), error))
    }

    async fn put_tombstone(&self, key: &neon_storage::Key, reason: &str) -> Result<()> {
        let body = TombstoneBody {
            reason: reason.to_owned(),
        };
        match self
            .put_json(key, ObjectKind::Tombstone, self.shared.me, &body)
            .await
        {
            Err(error) if error.kind() == ErrorKind::Exists => Ok(()),
            put => put.map(drop),
        }
    }

    /// Destroys a snapshot: nobody finds it any more and its names are free. Its pages go when a collection
    /// runs, and not while a pin or the lease of a writer holds it.
    ///
    /// Dropped: it is destroyed or not.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such snapshot.
    pub async fn destroy(&self, id: CommitId) -> Result<()> {
        self.require_alive(id).await?;
        self.bury_commit(id, "destroyed").await
    }

    /// Takes back a [`destroy`](Self::destroy), unless a collection is at it. A name that was given to another
    /// snapshot meanwhile stays there.
    ///
    /// Dropped: it is destroyed or not.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it was not destroyed or is gone; [`Busy`](ErrorKind::Busy) when a
    /// collection has announced it.
    pub async fn undo_destroy(&self, id: CommitId) -> Result<()> {
        let subject = || format!("snapshot {id}");
        // The lease comes first: a collection that does not see it has announced before we look.
        let lease = self.lease(&[id]).await?;
        let result = async {
            let tombstones = self.tombstones().await?;
            if !tombstones.commits.contains_key(&id) {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    subject(),
                    "is not destroyed",
                ));
            }
            if self.doomed().await?.commits.contains(&id) {
                return Err(Error::new(
                    ErrorKind::Busy,
                    subject(),
                    "is being collected; it can no longer be brought back",
                ));
            }
            // After the looks: what a collection deletes is on its list while it does.
            let (writer, _) = self.read_commit(id).await?;
            let mut undone = tombstones;
            undone.commits.remove(&id);
            if undone.bury(id, writer) {
                return Err(gone(id, "was never completed"));
            }
            let key = keys::tombstone(id)?;
            // Asleep, the lease kept nothing.
            lease.prove().await?;
            let deleted = self.shared.storage.delete(&key).await;
            deleted.map_err(|error| Error::storage(key.as_str(), error))
        };
        let result = result.await;
        lease.release().await;
        result
    }

    /// An error unless this is a snapshot: its commit is there, neither destroyed nor of a condemned writer.
    pub(crate) async fn require_alive(&self, id: CommitId) -> Result<(WriterId, crate::Commit)> {
        let (writer, commit) = self.read_commit(id).await.map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                return gone(id, "there is no such snapshot").caused_by(error);
            }
            error
        })?;
        if self.tombstones().await?.bury(id, writer) {
            return Err(gone(id, "was destroyed"));
        }
        Ok((writer, commit))
    }
}

pub(crate) fn gone(id: CommitId, reason: &'static str) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {id}"), reason)
}
