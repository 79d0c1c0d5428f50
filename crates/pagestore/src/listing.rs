//! Which snapshots there are.
//!
//! Keys of commits and tombstones say which; the catalogue, and for what is not in it the commits, say what they are. A
//! process remembers what it has read, so that listing again costs the keys alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt, stream};
use neon_pg_layout::Lsn;
use neon_storage::ListOptions;

use crate::catalog::{Entry, Known, Stored, Summary};
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
    /// What it is; or why its commit cannot be read.
    pub summary: std::result::Result<Summary, Unreadable>,
}

/// Why nothing can be told of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unreadable {
    /// What sort of problem it is.
    pub kind: ErrorKind,
    /// The problem, for people.
    pub problem: String,
}

impl Repository {
    /// The ids of all snapshots, also of those that cannot be read, in no order that means anything.
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

    /// All snapshots, oldest first; last those whose commits cannot be read, of which nobody can tell names. Who may write
    /// settles the names of snapshots whose writer did not come to it, and keeps the catalogue. A name of which a claim
    /// cannot be read is not shown: resolving it says why.
    ///
    /// Dropped: nothing remains that the next does not go on with.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage), and as [`Object::decode`](crate::Object::decode).
    pub async fn list(&self) -> Result<Vec<Listed>> {
        let mut tombstones = self.tombstones().await?;
        let objects = self.commit_objects().await?;
        let mut known = self.shared.known.lock().await;
        let there: HashSet<Stored> = objects.iter().copied().collect();
        known
            .entries
            .retain(|_, entry| there.contains(&entry.object()));
        if objects.iter().any(|object| known.entry(*object).is_none()) {
            // Looked at before and after commits: what was destroyed is no snapshot though its tombstone went
            // meanwhile, and neither is what a writer created that was condemned before.
            let destroyed = tombstones.commits;
            tombstones = self.tombstones().await?;
            tombstones.commits.extend(destroyed);
        }
        let unknown = |known: &Known| -> Vec<Stored> {
            objects
                .iter()
                .filter(|(object, _)| !tombstones.commits.contains_key(object))
                .filter(|object| known.entry(**object).is_none())
                .copied()
                .collect()
        };
        let mut passing = HashMap::new();
        let mut unreadable = Vec::new();
        if !unknown(&known).is_empty() {
            self.read_catalogues(&mut known, &there).await?;
            let missing = unknown(&known);
            let mut entries = stream::iter(missing)
                .map(|object| async move { (object.0.id, self.entry(object).await) })
                .buffer_unordered(32);
            while let Some((id, found)) = entries.next().await {
                match found {
                    Ok(Some((entry, true))) => {
                        known.entries.insert(entry.commit_object(), Arc::new(entry));
                    }
                    Ok(Some((entry, false))) => {
                        passing.insert(entry.commit_object(), Arc::new(entry));
                    }
                    Ok(None) => {}
                    Err(error) if !error.is_of_object() => return Err(error),
                    Err(error) => unreadable.push(Listed::unreadable(id, &error)),
                }
            }
            drop(entries);
            let writable = self.may_write();
            if writable
                && let Err(error) = self.write_catalogue(&mut known, &there).await
                && error.kind() != ErrorKind::Storage
            {
                return Err(error);
            }
        }
        let entries = objects
            .iter()
            .filter_map(|object| known.entry(*object).or_else(|| passing.get(&object.0)))
            .filter(|entry| !tombstones.bury(entry.commit_object(), entry.writer));
        let mut listed = shown(entries);
        let readable: HashSet<CommitId> = listed.iter().map(|listed| listed.id).collect();
        unreadable.retain(|unreadable| !readable.contains(&unreadable.id));
        unreadable.sort_unstable_by_key(|listed| listed.id);
        unreadable.dedup_by_key(|listed| listed.id);
        listed.append(&mut unreadable);
        Ok(listed)
    }

    /// Every commit object, and when it was stored.
    async fn commit_objects(&self) -> Result<Vec<Stored>> {
        let stored = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            u64::try_from(since.as_nanos()).ok()
        };
        let listing = self.shared.storage.list(ListOptions::prefix(SNAPSHOTS));
        listing
            .map_err(|error| Error::storage(SNAPSHOTS, error))
            .try_filter_map(|object| async move {
                Ok(keys::commit_of(&object.key).map(|commit| (commit, stored(object.modified))))
            })
            .try_collect()
            .await
    }

    /// What a catalogue would say of a commit, and whether it will always be so.
    async fn entry(&self, (object, stored): Stored) -> Result<Option<(Entry, bool)>> {
        let id = object.id;
        let (writer, commit) = match self.read_commit_object(object).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        // What cannot be told from a commit that was there before is not remembered.
        let mut settled = stored.is_some();
        let mut names = Vec::with_capacity(commit.facts.names.len());
        for name in &commit.facts.names {
            let generation = |claims: &crate::claim::Claims| {
                let mut own = claims
                    .generations
                    .iter()
                    .filter(|(_, holder)| *holder == id);
                own.next_back().map(|(generation, _)| *generation)
            };
            let mut claims = match self.claims(name).await {
                Err(error) if error.is_of_object() => {
                    settled = false;
                    continue;
                }
                claims => claims?,
            };
            if generation(&claims).is_none() && !claims.declined.contains(&id) {
                // Its writer was stopped between commit and claim, or is between them now.
                if !self.may_write() || self.is_suspected(writer).await? {
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
            again: object.again.is_some(),
            stored,
            summary,
            names,
        };
        Ok(Some((entry, settled)))
    }
}

impl Listed {
    fn unreadable(id: CommitId, error: &Error) -> Self {
        Self {
            id,
            names: Vec::new(),
            summary: Err(Unreadable {
                kind: error.kind(),
                problem: error.to_string(),
            }),
        }
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
            summary: Ok(entry.summary.clone()),
        })
        .collect();
    // Two of one second are told apart by where in the log they end.
    listed.sort_by_cached_key(|listed| {
        let summary = listed.summary.as_ref().ok();
        let taken = summary.map_or(i64::MAX, |summary| summary.taken);
        let stop = summary
            .and_then(|summary| summary.stop.as_ref())
            .and_then(|stop| stop.parse::<Lsn>().ok());
        (taken, stop, listed.id)
    });
    // Several objects may hold one commit.
    listed.dedup_by_key(|listed| listed.id);
    listed
}
