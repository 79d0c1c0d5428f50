//! Tombstones: of snapshots that were destroyed, and of writers that fell silent.
//!
//! A writer has two. The *suspicion* is put by a collection that finds its lease lapsed: a writer that sees it after
//! creating its commit retracts. The *condemnation* is put by a collection that listed all commits after the
//! suspicion was there, and found none of this writer: whatever it commits later was never reported as done, and is
//! no snapshot for anybody. So what a writer reported stays, and what was collected is never shown. A writer that has
//! to take back its commit condemns itself: nobody relies on that object, whatever becomes of tombstones of its key.
//!
//! A condemnation replaces the suspicion, also of a writer that had committed once that commit is collected. It stays for
//! ever: a writer may sleep for any time between its last heartbeat and its commit, or send it once more, and nothing
//! else tells then that its packs are gone. That is one small object for each writer that died at work.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use futures_util::TryStreamExt;
use neon_storage::{ListOptions, StorageExt};
use serde::{Deserialize, Serialize};

use crate::commit_object::CommitObject;
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
    pub(crate) commits: HashMap<CommitObject, SystemTime>,
    pub(crate) suspected: HashSet<WriterId>,
    pub(crate) condemned: HashSet<WriterId>,
}

impl Tombstones {
    /// Whether this object, of this writer, does not make a snapshot.
    pub(crate) fn bury(&self, object: CommitObject, author: WriterId) -> bool {
        self.commits.contains_key(&object) || self.condemned.contains(&author)
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
            // What is there under another name is not ours, and hurts nobody; a check names it.
            if let Some(writer) = text.strip_prefix("writer-") {
                found.suspected.extend(writer.parse::<WriterId>());
            } else if let Some(writer) = text.strip_prefix("condemned-") {
                found.condemned.extend(writer.parse::<WriterId>());
            } else if let Ok(commit) = text.parse() {
                found.commits.insert(commit, object.modified);
            }
        }
        Ok(found)
    }

    /// Puts a tombstone; one that is there already is as good.
    pub(crate) async fn bury_commit(&self, object: CommitObject, reason: &str) -> Result<()> {
        self.put_tombstone(&keys::tombstone(object)?, reason).await
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

    /// Whether a collection took this writer for gone.
    pub(crate) async fn is_suspected(&self, writer: WriterId) -> Result<bool> {
        // In this order: a suspicion is taken away when the condemnation is there.
        for key in [keys::suspicion(writer)?, keys::condemnation(writer)?] {
            let there = self.shared.storage.exists(&key).await;
            if there.map_err(|error| Error::storage(key.as_str(), error))? {
                return Ok(true);
            }
        }
        Ok(false)
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
        let alive = self.require_alive(id).await?;
        let standing = alive.standing.iter().map(|standing| standing.object);
        for object in standing.chain(alive.unread.iter().map(|(object, _)| *object)) {
            self.bury_commit(object, "destroyed").await?;
        }
        Ok(())
    }
}
