//! Which snapshots there are.
//!
//! Keys of commits and tombstones say which; the catalogue, and for what is not in it the commits, say what they are. A
//! process remembers what it has read, so that listing again costs the keys alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use neon_storage::ListOptions;

use crate::catalog::{Entry, Summary};
use crate::claim::NameOutcome;
use crate::error::{Error, ErrorKind, Result};
use crate::id::CommitId;
use crate::keys::{self, SNAPSHOTS};
use crate::name::SnapshotName;
use crate::repository::Repository;

/// A snapshot in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// Its id.
    pub id: CommitId,
    /// The names it has now.
    pub names: Vec<SnapshotName>,
    /// What it is.
    pub summary: Summary,
}

impl Repository {
    /// The ids of all snapshots, in no order that means anything.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub async fn snapshot_ids(&self) -> Result<Vec<CommitId>> {
        Ok(self
            .list()
            .await?
            .into_iter()
            .map(|listed| listed.id)
            .collect())
    }

    /// All snapshots, oldest first. Who may write settles the names of snapshots whose writer did not come to it, and
    /// keeps the catalogue.
    ///
    /// Dropped: nothing remains that the next does not go on with.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage), and as [`Object::decode`](crate::Object::decode).
    pub async fn list(&self) -> Result<Vec<Listed>> {
        let mut tombstones = self.tombstones().await?;
        let ids = self.commit_ids().await?;
        let mut known = self.shared.known.lock().await;
        if ids.iter().any(|id| !known.entries.contains_key(id)) {
            // Looked at before and after commits: what was destroyed is no snapshot though its tombstone went
            // meanwhile, and neither is what a writer created that was condemned before.
            let destroyed = tombstones.commits;
            tombstones = self.tombstones().await?;
            tombstones.commits.extend(destroyed);
        }
        let there: HashSet<CommitId> = ids.iter().copied().collect();
        known.entries.retain(|id, _| there.contains(id));
        let unknown = |known: &crate::catalog::Known| -> Vec<CommitId> {
            let wanted = ids.iter().filter(|id| !tombstones.commits.contains_key(id));
            wanted
                .filter(|id| !known.entries.contains_key(id))
                .copied()
                .collect()
        };
        let mut passing = HashMap::new();
        if !unknown(&known).is_empty() {
            self.read_catalogues(&mut known).await?;
            let missing = unknown(&known);
            let mut entries = stream::iter(missing)
                .map(|id| async move { self.entry(id).await })
                .buffer_unordered(32);
            while let Some(found) = entries.try_next().await? {
                match found {
                    Some((entry, true)) => known.entries.insert(entry.id, Arc::new(entry)),
                    Some((entry, false)) => passing.insert(entry.id, Arc::new(entry)),
                    None => None,
                };
            }
            drop(entries);
            let writable = self.shared.storage.capabilities().write;
            if writable
                && let Err(error) = self.write_catalogue(&mut known, &there).await
                && error.kind() != ErrorKind::Storage
            {
                return Err(error);
            }
        }
        let entries = ids
            .iter()
            .filter_map(|id| known.entries.get(id).or_else(|| passing.get(id)))
            .filter(|entry| !tombstones.bury(entry.id, entry.writer));
        Ok(shown(entries))
    }

    pub(crate) async fn commit_ids(&self) -> Result<Vec<CommitId>> {
        let listing = self.shared.storage.list(ListOptions::prefix(SNAPSHOTS));
        listing
            .map_err(|error| Error::storage(SNAPSHOTS, error))
            .try_filter_map(|object| async move { Ok(keys::commit_of(&object.key)) })
            .try_collect()
            .await
    }

    /// What a catalogue would say of a commit, and whether it will always be so.
    async fn entry(&self, id: CommitId) -> Result<Option<(Entry, bool)>> {
        let (writer, commit) = match self.read_commit(id).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let mut settled = true;
        let mut names = Vec::with_capacity(commit.facts.names.len());
        for name in &commit.facts.names {
            let generation = |claims: &crate::claim::Claims| {
                let mut own = claims
                    .generations
                    .iter()
                    .filter(|(_, holder)| *holder == id);
                own.next_back().map(|(generation, _)| *generation)
            };
            let mut claims = self.claims(name).await?;
            if generation(&claims).is_none() && !claims.declined.contains(&id) {
                // Its writer was stopped between commit and claim, or is between them now.
                if !self.shared.storage.capabilities().write || self.is_suspected(writer).await? {
                    settled = false;
                    continue;
                }
                match self.claim(self.shared.me, name, id).await {
                    NameOutcome::Unsettled(_) => settled = false,
                    NameOutcome::Given | NameOutcome::Taken { .. } => {
                        claims = self.claims(name).await?;
                    }
                }
            }
            names.push((name.clone(), generation(&claims)));
        }
        let summary = Summary::of(&commit.facts);
        let entry = Entry {
            id,
            writer,
            summary,
            names,
        };
        Ok(Some((entry, settled)))
    }
}

/// Who has which name: the newest generation among those that are alive.
fn shown<'a>(entries: impl Iterator<Item = &'a Arc<Entry>> + Clone) -> Vec<Listed> {
    let mut holders: HashMap<&SnapshotName, (u32, CommitId)> = HashMap::new();
    for entry in entries.clone() {
        for (name, generation) in &entry.names {
            let Some(generation) = generation else {
                continue;
            };
            let holder = holders.entry(name).or_insert((*generation, entry.id));
            if *generation > holder.0 {
                *holder = (*generation, entry.id);
            }
        }
    }
    let mut listed: Vec<Listed> = entries
        .map(|entry| Listed {
            id: entry.id,
            names: entry
                .names
                .iter()
                .map(|(name, _)| name)
                .filter(|name| holders.get(name).is_some_and(|(_, id)| *id == entry.id))
                .cloned()
                .collect(),
            summary: entry.summary.clone(),
        })
        .collect();
    listed.sort_unstable_by_key(|listed| (listed.summary.taken, listed.id));
    listed
}
