//! What there is, taken in an order that misses nothing.
//!
//! Packs first: a pack that is there belongs to a writer whose lease is there or was released. Then the flags that
//! protect: leases, pins. Then what flags are taken down for: a lease is released only after its commit or its moves
//! were stored, and a tombstone is taken away under a lease; so tombstones, commits and moves come last, in this order:
//! a commit is created after the moves that it needs. A writer whose lease lapsed is suspected before commits are
//! listed, and condemned when none of them is its.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt, stream};
use neon_snapshot_format::pack::PackId;
use neon_storage::ListOptions;

use crate::commit::Commit;
use crate::commit_object::CommitObject;
use crate::doomed::Stage;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitId, WriterId};
use crate::keys::{self, PACKS, SNAPSHOTS};
use crate::lease::LeaseState;
use crate::moves::MovePiece;
use crate::pin::Pin;
use crate::repository::Repository;
use crate::tombstone::Tombstones;

/// What there is in a repository.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// Sizes of packs that may go: those that were there first of all.
    pub(crate) packs: HashMap<PackId, u64>,
    /// Packs that are there last of all, those of commits that came meanwhile included.
    pub(crate) there: HashMap<PackId, u64>,
    /// Writers at work.
    pub(crate) leases: Vec<LeaseState>,
    /// Writers that fell silent.
    pub(crate) lapsed: Vec<LeaseState>,
    pub(crate) pins: Vec<Pin>,
    pub(crate) tombstones: Tombstones,
    /// Latest first.
    pub(crate) moves: Vec<MovePiece>,
    pub(crate) commits: BTreeMap<CommitObject, (WriterId, Commit)>,
}

impl Inventory {
    /// Takes it at this time of the storage. `judge`: suspect and condemn writers that fell silent; else they are
    /// only left out.
    pub(crate) async fn take(
        repository: &Repository,
        now: SystemTime,
        judge: bool,
    ) -> Result<Self> {
        let packs = list_packs(repository).await?;
        let grace = repository.shared.options.grace;
        let (lapsed, leases): (Vec<_>, Vec<_>) = repository
            .leases()
            .await?
            .into_iter()
            .partition(|lease| lease.lapsed(grace, now));
        let pins = repository.pins().await?;
        if judge {
            for lease in &lapsed {
                repository.suspect(lease.writer).await?;
            }
        }
        let mut tombstones = repository.tombstones().await?;
        let commits = list_commits(repository).await?;
        let moves = repository.all_moves().await?;
        let committed = committed(&commits);
        for lease in lapsed
            .iter()
            .filter(|lease| !committed.contains(&lease.writer))
        {
            if judge && tombstones.suspected.contains(&lease.writer) {
                repository.condemn(lease.writer).await?;
            }
            tombstones.condemned.insert(lease.writer);
        }
        Ok(Self {
            packs,
            there: list_packs(repository).await?,
            leases,
            lapsed,
            pins,
            tombstones,
            moves,
            commits,
        })
    }

    /// Writers of which something was reported, or may yet be.
    pub(crate) fn committed(&self) -> HashSet<WriterId> {
        committed(&self.commits)
    }

    /// The commits that are snapshots.
    pub(crate) fn alive(&self) -> impl Iterator<Item = (CommitId, &Commit)> {
        self.commits
            .iter()
            .filter(|(object, (author, _))| !self.tombstones.bury(**object, *author))
            .map(|(object, (_, commit))| (object.id, commit))
    }

    /// Everything whose pages must stay: snapshots, what writers at work build on, what is pinned.
    pub(crate) fn roots(&self) -> BTreeMap<CommitId, &Commit> {
        let parents = self.leases.iter().flat_map(|lease| &lease.body.parents);
        let held = parents.chain(self.pins.iter().map(|pin| &pin.commit));
        // Who protects what is not there has looked, or will, and finds that it is not.
        let held = held.filter_map(|id| {
            let mut objects = self.commits.range(CommitObject::first(*id)..);
            let (object, (_, commit)) = objects.next()?;
            (object.id == *id).then_some((*id, commit))
        });
        self.alive().chain(held).collect()
    }

    /// What an error means that came of reading what roots need. A destroyed snapshot is a root for as long as a lease or a
    /// pin names it, also of somebody who came too late, is refused, and has not taken it down yet: another collection, which
    /// looked before they came, deletes what it needs all the same. Its list is there until the snapshot's objects are not,
    /// so both are looked for in this order.
    pub(crate) async fn explain(&self, repository: &Repository, error: Error) -> Error {
        if !error.is_of_object() {
            return error;
        }
        match self.taken_away(repository).await {
            Ok(Some(id)) => Error::new(
                ErrorKind::Busy,
                format!("snapshot {id}"),
                "is destroyed, and another collection takes it away while somebody still asks for it; try again",
            )
            .caused_by(error),
            Ok(None) => error,
            Err(failed) => failed,
        }
    }

    /// A destroyed snapshot among the roots that another collection is deleting, or has deleted by now.
    async fn taken_away(&self, repository: &Repository) -> Result<Option<CommitId>> {
        let alive: HashSet<CommitId> = self.alive().map(|(id, _)| id).collect();
        let held = self.roots().into_keys().filter(|id| !alive.contains(id));
        let held: HashSet<CommitId> = held.collect();
        if held.is_empty() {
            return Ok(None);
        }
        let lists = repository.doomed_lists().await?;
        let executing = lists
            .iter()
            .filter(|list| list.body.stage == Stage::Executing);
        let doomed: HashSet<&CommitObject> =
            executing.flat_map(|list| &list.body.commits).collect();
        let there = list_commit_objects(repository).await?;
        let there: HashSet<CommitObject> = there.into_iter().collect();
        // All of its objects: the list of a collection that was killed stays, also when the snapshot was brought again since.
        let goes = |id: &CommitId| {
            let objects = self.commits.range(CommitObject::first(*id)..);
            let mut objects = objects.take_while(|(object, _)| object.id == *id);
            objects.all(|(object, _)| doomed.contains(object) || !there.contains(object))
        };
        Ok(held.into_iter().find(goes))
    }

    /// The objects that are not needed: those that do not stand, but for what is held of a snapshot that is destroyed.
    pub(crate) fn dead_commits(&self) -> impl Iterator<Item = CommitObject> {
        let alive: HashSet<CommitId> = self.alive().map(|(id, _)| id).collect();
        let held: HashSet<CommitId> = self.roots().into_keys().collect();
        let dead = self.commits.iter().filter(move |(object, (author, _))| {
            self.tombstones.bury(**object, *author)
                && (alive.contains(&object.id) || !held.contains(&object.id))
        });
        dead.map(|(object, _)| *object)
    }

    /// Whether a writer at work made this pack or relies on it.
    pub(crate) fn protected(&self) -> impl Fn(PackId) -> bool + use<> {
        let writers: HashSet<_> = self.leases.iter().map(|lease| lease.writer).collect();
        let bringing: HashSet<_> = self
            .leases
            .iter()
            .flat_map(|lease| lease.body.bringing.iter().copied())
            .collect();
        move |pack| writers.contains(&WriterId::of_pack(pack)) || bringing.contains(&pack)
    }
}

fn committed(commits: &BTreeMap<CommitObject, (WriterId, Commit)>) -> HashSet<WriterId> {
    commits.values().map(|(author, _)| *author).collect()
}

pub(crate) async fn list_packs(repository: &Repository) -> Result<HashMap<PackId, u64>> {
    let mut packs = HashMap::new();
    let mut listing = repository.shared.storage.list(ListOptions::prefix(PACKS));
    while let Some(object) = listing
        .try_next()
        .await
        .map_err(|error| Error::storage(PACKS, error))?
    {
        // What is stored there under other keys is not ours, and stays.
        if let Some(id) = keys::pack_of(&object.key) {
            packs.insert(id, object.size);
        }
    }
    Ok(packs)
}

async fn list_commit_objects(repository: &Repository) -> Result<Vec<CommitObject>> {
    let listing = repository
        .shared
        .storage
        .list(ListOptions::prefix(SNAPSHOTS));
    listing
        .map_err(|error| Error::storage(SNAPSHOTS, error))
        .and_then(|object| async move {
            keys::commit_of(&object.key)
                .ok_or_else(|| Error::malformed(object.key.as_str(), "is not where snapshots are"))
        })
        .try_collect()
        .await
}

/// Reads every commit. One that cannot be read is an error: what it needs is not known.
async fn list_commits(
    repository: &Repository,
) -> Result<BTreeMap<CommitObject, (WriterId, Commit)>> {
    let objects = list_commit_objects(repository).await?;
    let commits: Vec<_> = stream::iter(objects)
        .map(|object| async move {
            match repository.read_commit_object(object).await {
                Ok(found) => Ok(Some((object, found))),
                // Another collection took it meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
        .buffered(32)
        .try_collect()
        .await?;
    Ok(commits.into_iter().flatten().collect())
}
