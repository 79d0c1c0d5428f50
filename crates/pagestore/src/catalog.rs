//! The catalogue: what listings show of many snapshots, in a few objects that can be rebuilt from the commits.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures_util::TryStreamExt;
use neon_pg_layout::Lsn;
use neon_snapshot_format::SnapshotKind;
use neon_snapshot_format::pack::Flags;
use neon_storage::{Key, ListOptions, StorageExt};
use serde::{Deserialize, Serialize};

use crate::commit_object::CommitObject;
use crate::error::{Error, ErrorKind, Result};
use crate::facts::{Facts, text_of};
use crate::id::{CommitId, LineageId, WriterId, random};
use crate::keys::{self, CATALOG};
use crate::name::SnapshotName;
use crate::object::ObjectKind;
use crate::repository::Repository;

/// So many snapshots outside of the catalogue are left there.
const LEFT_OUT: usize = 2;
/// A catalogue of at most so many times what is new is written anew with it: sizes grow geometrically.
const GROWTH: usize = 4;
/// The most entries in one object.
const MOST: usize = 4096;

/// What a listing shows of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// In what state the cluster was.
    #[serde(with = "text_of")]
    pub kind: SnapshotKind,
    /// When it was taken, in seconds since 1970.
    pub taken: i64,
    /// The snapshot whose pages it shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<CommitId>,
    /// The id of the instance it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The history of log it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<LineageId>,
    /// The system identifier.
    pub system: String,
    /// The major version.
    pub major: u32,
    /// Where in the log it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
    /// Bytes that it shows.
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub added: u64,
    /// Damaged pages in it.
    pub bad_pages: u64,
}

impl Summary {
    /// Of the facts of a commit.
    #[must_use]
    pub fn of(facts: &Facts) -> Self {
        let cost = &facts.cost;
        Self {
            kind: facts.kind,
            taken: facts.taken,
            parent: facts.parent,
            instance: facts.instance.clone(),
            lineage: facts.lineage,
            system: facts.cluster.system.to_string(),
            major: facts.cluster.major.number(),
            stop: facts.log.stop.as_ref().map(Lsn::to_string),
            bytes: cost.bytes,
            added: cost.written_data.saturating_add(cost.written_metadata),
            bad_pages: facts.bad_pages.len() as u64,
        }
    }
}

/// A snapshot in a catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: CommitId,
    pub(crate) writer: WriterId,
    /// Whether that writer stored it beside the first one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) again: bool,
    /// When the commit was stored, by the listing, in nanoseconds since 1970. One that was destroyed, collected and
    /// brought again may have another writer and other names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stored: Option<u64>,
    pub(crate) summary: Summary,
    /// The names it wanted, and in which generation it has them; none when they were taken. Settled for as
    /// long as this commit object is there.
    pub(crate) names: Vec<(SnapshotName, Option<u32>)>,
}

/// A commit object, told from one that was there under the same key before.
pub(crate) type Stored = (CommitObject, Option<u64>);

impl Entry {
    pub(crate) fn commit_object(&self) -> CommitObject {
        match self.again {
            false => CommitObject::first(self.id),
            true => CommitObject::again(self.id, self.writer),
        }
    }

    pub(crate) fn object(&self) -> Stored {
        (self.commit_object(), self.stored)
    }
}

/// What a process remembers of catalogues and commits it has read.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) entries: HashMap<CommitObject, Arc<Entry>>,
    /// The catalogues that were read, with what is in them.
    catalogues: BTreeMap<Key, HashSet<Stored>>,
    /// Those that this version may not write anew.
    kept: HashSet<Key>,
}

impl Known {
    /// What is known of a commit object.
    pub(crate) fn entry(&self, object: Stored) -> Option<&Arc<Entry>> {
        let entry = self.entries.get(&object.0);
        entry.filter(|entry| entry.stored.is_some() && entry.object() == object)
    }
}

impl Repository {
    /// Reads the catalogues that are not known yet.
    pub(crate) async fn read_catalogues(
        &self,
        known: &mut Known,
        alive: &HashSet<Stored>,
    ) -> Result<()> {
        let listing = self.shared.storage.list(ListOptions::prefix(CATALOG));
        let objects: Vec<_> = listing
            .try_collect()
            .await
            .map_err(|error| Error::storage(CATALOG, error))?;
        let there: HashSet<_> = objects.iter().map(|object| object.key.clone()).collect();
        known.catalogues.retain(|key, _| there.contains(key));
        for object in objects {
            if known.catalogues.contains_key(&object.key) {
                continue;
            }
            match self.read_catalogue(&object.key).await {
                Ok((flags, entries)) => {
                    if !flags.writable() {
                        known.kept.insert(object.key.clone());
                    }
                    let ids = entries.iter().map(Entry::object).collect();
                    known.catalogues.insert(object.key, ids);
                    for entry in entries {
                        // An older catalogue may show a commit that is no more.
                        if alive.contains(&entry.object())
                            || !known.entries.contains_key(&entry.commit_object())
                        {
                            known.entries.insert(entry.commit_object(), Arc::new(entry));
                        }
                    }
                }
                // Merged into another; or damaged or of another version, which costs only the reading of commits.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound
                            | ErrorKind::Limit
                            | ErrorKind::Damaged
                            | ErrorKind::Malformed
                            | ErrorKind::Unsupported
                            | ErrorKind::Locked
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn read_catalogue(&self, key: &Key) -> Result<(Flags, Vec<Entry>)> {
        let object = self.get_object(key, ObjectKind::Catalog).await?;
        let entries = serde_json::from_slice(&object.body)
            .map_err(|error| Error::malformed(key.as_str(), "cannot be read").caused_by(error))?;
        Ok((object.flags, entries))
    }

    /// Writes what is in no catalogue into a new one, together with small ones. For who may write; failing to is no harm.
    pub(crate) async fn write_catalogue(
        &self,
        known: &mut Known,
        alive: &HashSet<Stored>,
    ) -> Result<()> {
        let catalogued: HashSet<Stored> = known.catalogues.values().flatten().copied().collect();
        let mut taken: Vec<Stored> = known
            .entries
            .values()
            .map(|entry| entry.object())
            .filter(|object| alive.contains(object) && !catalogued.contains(object))
            .collect();
        if taken.len() <= LEFT_OUT {
            return Ok(());
        }
        let mut merged = Vec::new();
        loop {
            let next = known
                .catalogues
                .iter()
                .filter(|(key, ids)| {
                    !merged.contains(*key)
                        && !known.kept.contains(*key)
                        && ids.len() <= taken.len().saturating_mul(GROWTH)
                        && ids.len().saturating_add(taken.len()) <= MOST
                })
                .min_by_key(|(_, ids)| ids.len());
            let Some((key, ids)) = next else { break };
            taken.extend(ids.iter().filter(|object| alive.contains(object)));
            merged.push(key.clone());
        }
        for ids in taken.chunks(MOST) {
            let entries: Vec<&Entry> = ids
                .iter()
                .filter_map(|object| known.entry(*object).map(AsRef::as_ref))
                .collect();
            let key = keys::catalog(random()?)?;
            self.put_json(&key, ObjectKind::Catalog, self.shared.me, &entries)
                .await?;
            known.catalogues.insert(key, ids.iter().copied().collect());
        }
        for key in merged {
            let deleted = self.shared.storage.delete(&key).await;
            deleted.map_err(|error| Error::storage(key.as_str(), error))?;
            known.catalogues.remove(&key);
        }
        Ok(())
    }
}
