//! Tombstones: of snapshots that were destroyed, and of writers that fell silent.
//!
//! A writer has two. The *suspicion* is put by a collection that finds its lease lapsed: a writer that sees it after
//! creating its commit retracts. The *condemnation* is put by a collection that listed all commits after the
//! suspicion was there, and found none of this writer: whatever it commits later was never reported as done, and is
//! no snapshot for anybody. So what a writer reported stays, and what was collected is never shown.

use std::collections::HashSet;

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
    pub(crate) commits: HashSet<CommitId>,
    pub(crate) suspected: HashSet<WriterId>,
    pub(crate) condemned: HashSet<WriterId>,
}

impl Tombstones {
    /// Whether this commit of this writer is no snapshot.
    pub(crate) fn bury(&self, id: CommitId, writer: WriterId) -> bool {
        self.commits.contains(&id) || self.condemned.contains(&writer)
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
            } else {
                found.commits.insert(text.parse()?);
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
        self.put_tombstone(&key, "its lease lapsed before it committed")
            .await
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
            if !tombstones.commits.contains(&id) {
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
            self.read_commit(id).await?;
            let key = keys::tombstone(id)?;
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

fn gone(id: CommitId, reason: &'static str) -> Error {
    Error::new(ErrorKind::NotFound, format!("snapshot {id}"), reason)
}
