//! One run of a collection.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use neon_snapshot_format::pack::PackId;
use neon_storage::Key;

use crate::commit_object::CommitObject;
use crate::doomed::{DoomedBody, DoomedList, Stage};
use crate::error::{Error, ErrorKind, Result};
use crate::gc::{CollectionPlan, Inventory, LeftPack, Marked, repack};
use crate::id::{CommitId, WriterId};
use crate::keys;
use crate::lease::Lease;
use crate::repository::Repository;

/// So many objects are deleted at once, after a look whether this run slept.
const BATCH: usize = 500;

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// Packs that were deleted.
    pub packs: u64,
    /// Commits that were deleted.
    pub commits: u64,
    /// Bytes of the packs that were deleted.
    pub freed: u64,
    /// Bytes of live frames that moved out of sparse packs.
    pub moved: u64,
    /// Packs that were announced and can be deleted after the grace.
    pub announced: u64,
    /// Bytes in packs that snapshots, writers at work and pins need.
    pub live: u64,
    /// Packs of which little is needed and that stay as they are, as large as they are.
    pub left: Vec<LeftPack>,
    /// When the next run has something to delete.
    pub next: Option<Duration>,
}

/// What can go.
#[derive(Debug, Default)]
struct Dead {
    packs: BTreeSet<PackId>,
    commits: BTreeSet<CommitObject>,
}

impl Dead {
    fn of(plan: &CollectionPlan) -> Self {
        let packs = plan.packs.iter().map(|(id, _)| *id);
        Self {
            packs: packs.chain(plan.forgotten.iter().copied()).collect(),
            commits: plan.objects.iter().copied().collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.packs.is_empty() && self.commits.is_empty()
    }

    fn body(&self, stage: Stage) -> DoomedBody {
        DoomedBody {
            stage,
            packs: self.packs.iter().copied().collect(),
            commits: self.commits.iter().copied().collect(),
        }
    }

    fn retain(&mut self, packs: impl Fn(&PackId) -> bool, commits: impl Fn(&CommitObject) -> bool) {
        self.packs.retain(packs);
        self.commits.retain(commits);
    }
}

impl Repository {
    /// One run of a collection: deletes what was announced a grace ago and is still not needed, rewrites sparse packs,
    /// and announces what is not needed now. Beside any number of writers, readers and other runs.
    ///
    /// Dropped or failed: nothing that is needed was deleted, and the next run goes on.
    ///
    /// # Errors
    /// When anything that a snapshot needs cannot be read: then nothing is deleted. [`Busy`](ErrorKind::Busy) when this
    /// process slept for too long.
    pub async fn collect(&self) -> Result<Collected> {
        let lease = self.lease(&[]).await?;
        let run = Run {
            repository: self,
            lease: &lease,
        };
        let mut result = run.run().await;
        if result
            .as_ref()
            .is_err_and(|error| error.kind() != ErrorKind::Storage)
        {
            // What a run finds amiss that slept between two looks may be the work of another.
            result = match lease.prove().await {
                Ok(_) => result,
                Err(asleep) => Err(asleep),
            };
        }
        lease.release().await;
        result
    }
}

struct Run<'a> {
    repository: &'a Repository,
    lease: &'a Lease,
}

impl Run<'_> {
    async fn run(&self) -> Result<Collected> {
        let grace = self.repository.shared.options.grace;
        let mut done = Collected::default();
        let now = self.lease.prove().await?;
        let lists = self.repository.doomed_lists().await?;
        let mut shunned = executing(&lists, None);
        let mut inventory = Inventory::take(self.repository, now, true).await?;
        let mut marked = Marked::of(self.repository, &inventory, &shunned).await?;
        let mut plan = CollectionPlan::of(&inventory, &marked);
        let (old, young): (Vec<_>, Vec<_>) =
            lists.into_iter().partition(|list| age(list, now) > grace);
        let mut doomed = Dead::of(&plan);
        let announced: HashSet<_> = old
            .iter()
            .flat_map(|list| &list.body.packs)
            .copied()
            .collect();
        let announced_commits: HashSet<_> = old
            .iter()
            .flat_map(|list| &list.body.commits)
            .copied()
            .collect();
        doomed.retain(
            |pack| announced.contains(pack),
            |id| announced_commits.contains(id),
        );
        if !doomed.is_empty() {
            let own = self
                .repository
                .publish_doomed(doomed.body(Stage::Executing))
                .await?;
            // Only now, with the list to be seen by all, is it decided.
            let mut begun = false;
            let deleted = async {
                let now = self.lease.prove().await?;
                let lists = self.repository.doomed_lists().await?;
                shunned = executing(&lists, Some(&own.key));
                // Not two of them in memory at once.
                (inventory.moves, marked.live) = Default::default();
                inventory = Inventory::take(self.repository, now, true).await?;
                marked = Marked::of(self.repository, &inventory, &shunned).await?;
                plan = CollectionPlan::of(&inventory, &marked);
                let dead = Dead::of(&plan);
                doomed.retain(
                    |pack| dead.packs.contains(pack),
                    |id| dead.commits.contains(id),
                );
                // Read before anything is deleted, as all else.
                let claims = self.claims_of(&inventory, &doomed).await?;
                begun = true;
                self.delete(&inventory, &doomed, claims, &mut done).await
            };
            let deleted = deleted.await;
            let unknown = |error: &Error| begun && error.kind() == ErrorKind::Storage;
            if !deleted.as_ref().is_err_and(unknown) {
                // No deletion by it is under way.
                let withdrawn = self.repository.withdraw_doomed(&own).await;
                deleted.and(withdrawn)?;
            } else {
                // One may be, though we know nothing of it: the list stays.
                deleted?;
            }
        }
        self.forget(&old).await?;
        self.tidy(&inventory, now).await?;

        plan.set_aside(self.repository, &marked).await?;
        let sparse: Vec<PackId> = plan
            .sparse
            .iter()
            .map(|(id, ..)| *id)
            .filter(|id| !shunned.contains(id))
            .collect();
        let mut dead = Dead::of(&plan);
        if !sparse.is_empty() {
            done.moved =
                repack::repack(self.repository, self.lease, &inventory, &marked, &sparse).await?;
            dead.packs.extend(sparse);
        }
        let known: HashSet<_> = young
            .iter()
            .flat_map(|list| &list.body.packs)
            .copied()
            .collect();
        let known_commits: HashSet<_> = young
            .iter()
            .flat_map(|list| &list.body.commits)
            .copied()
            .collect();
        // With packs go, on the same list, all commits that are dead now, also those on young lists: who brings one of them
        // back looks for it, not for the packs that it needs, and the lists go at different times.
        dead.retain(
            |pack| !known.contains(pack) && !doomed.packs.contains(pack),
            |id| !doomed.commits.contains(id),
        );
        let is_new = |id: &CommitObject| !known_commits.contains(id);
        let anything_new = !dead.packs.is_empty() || dead.commits.iter().any(is_new);
        done.live = plan.live;
        done.left = plan.left;
        done.announced = dead.packs.len() as u64;
        let first = young
            .iter()
            .map(|list| grace.saturating_sub(age(list, now)))
            .min();
        done.next = first;
        if anything_new {
            self.repository
                .publish_doomed(dead.body(Stage::Announced))
                .await?;
            done.next = first.or(Some(grace));
        }
        Ok(done)
    }

    /// The claims of snapshots of which no object is left.
    async fn claims_of(&self, inventory: &Inventory, dead: &Dead) -> Result<Vec<Key>> {
        let left = inventory.commits.keys();
        let left: BTreeSet<CommitId> = left
            .filter(|object| !dead.commits.contains(object))
            .map(|object| object.id)
            .collect();
        let mut claims = Vec::new();
        for object in &dead.commits {
            if let Some((_, commit)) = inventory.commits.get(object)
                && !left.contains(&object.id)
            {
                let names = &commit.facts.names;
                claims.extend(self.repository.claims_to_forget(object.id, names).await?);
            }
        }
        Ok(claims)
    }

    /// Packs first, then commits, then their tombstones: a snapshot that is half gone stays destroyed. One that is
    /// brought again meanwhile is found on our list.
    async fn delete(
        &self,
        inventory: &Inventory,
        dead: &Dead,
        claims: Vec<Key>,
        done: &mut Collected,
    ) -> Result<()> {
        let there = dead
            .packs
            .iter()
            .filter(|id| inventory.packs.contains_key(id));
        self.delete_keys(there.clone().map(|id| keys::pack(*id)))
            .await?;
        for id in there {
            let size = inventory.packs.get(id).copied().unwrap_or(0);
            done.packs = done.packs.saturating_add(1);
            done.freed = done.freed.saturating_add(size);
        }
        let moves = inventory.moves.iter().filter(|piece| {
            // Where a piece leads to what is there, somebody may have brought it meanwhile: it goes with that pack.
            dead.packs.contains(&piece.new)
                || self.nothing_left(inventory, dead, piece.old)
                    && !inventory.there.contains_key(&piece.new)
        });
        self.delete_keys(moves.map(|piece| Ok(piece.key.clone())))
            .await?;
        self.delete_keys(dead.commits.iter().map(|object| keys::commit(*object)))
            .await?;
        done.commits = done.commits.saturating_add(dead.commits.len() as u64);
        self.delete_keys(claims.into_iter().map(Ok)).await?;
        // Sent once more by who sleeps, the commit of a suspected writer would come alive when its tombstone is gone.
        let working: BTreeSet<WriterId> = inventory
            .commits
            .iter()
            .filter(|(object, _)| !dead.commits.contains(object))
            .map(|(_, (author, _))| *author)
            .collect();
        let authors = dead
            .commits
            .iter()
            .filter_map(|object| Some(inventory.commits.get(object)?.0));
        let tombstones = &inventory.tombstones;
        let doubtful = |author: &WriterId| {
            tombstones.suspected.contains(author)
                && !tombstones.condemned.contains(author)
                && !working.contains(author)
        };
        for author in authors.filter(doubtful).collect::<BTreeSet<_>>() {
            self.repository.condemn(author).await?;
        }
        let tombstones = dead
            .commits
            .iter()
            .filter(|object| tombstones.commits.contains_key(object));
        self.delete_keys(tombstones.map(|object| keys::tombstone(*object)))
            .await
    }

    /// Whether no frame of this pack is live wherever it moved to: it is dead itself and moved nowhere that stays.
    fn nothing_left(&self, inventory: &Inventory, dead: &Dead, old: PackId) -> bool {
        dead.packs.contains(&old) && !inventory.packs.contains_key(&old)
    }

    /// Takes away lists that nobody deletes by; what was on them and lives again is announced anew when it dies. A
    /// list that somebody executes is taken away by nobody else: they may be asleep, for however long, and go on. What
    /// is on it and comes again under its key would be lost then.
    async fn forget(&self, old: &[DoomedList]) -> Result<()> {
        for list in old {
            if list.body.stage == Stage::Announced {
                self.repository.withdraw_doomed(list).await?;
            }
        }
        Ok(())
    }

    /// Takes away leases of writers that are settled, suspicions that became condemnations, and tombstones of commits that
    /// are gone.
    async fn tidy(&self, inventory: &Inventory, now: SystemTime) -> Result<()> {
        let committed = inventory.committed();
        for lease in &inventory.lapsed {
            let settled = inventory.tombstones.condemned.contains(&lease.writer)
                || committed.contains(&lease.writer);
            if settled {
                self.delete_keys(lease.keys.iter().cloned().map(Ok)).await?;
            }
        }
        let tombstones = &inventory.tombstones;
        let leases = inventory.lapsed.iter().chain(&inventory.leases);
        for writer in tombstones.suspected.difference(&tombstones.condemned) {
            // What it committed was collected: sent once more by who sleeps, it would come alive.
            if !committed.contains(writer) && !leases.clone().any(|lease| lease.writer == *writer) {
                self.repository.condemn(*writer).await?;
            }
        }
        let both = tombstones.suspected.intersection(&tombstones.condemned);
        self.delete_keys(both.map(|writer| keys::suspicion(*writer)))
            .await?;
        let grace = self.repository.shared.options.grace;
        let mut orphans = Vec::new();
        for (object, put) in &inventory.tombstones.commits {
            let old = now.duration_since(*put).is_ok_and(|age| age > grace);
            if old
                && !inventory.commits.contains_key(object)
                && self.repository.commit_author(*object).await?.is_none()
            {
                orphans.push(keys::tombstone(*object));
            }
        }
        self.delete_keys(orphans.into_iter()).await
    }

    async fn delete_keys(&self, keys: impl Iterator<Item = Result<Key>>) -> Result<()> {
        let keys: Vec<Key> = keys.collect::<Result<_>>()?;
        let storage = &self.repository.shared.storage;
        for batch in keys.chunks(BATCH) {
            self.lease.prove().await?;
            let batch: Vec<_> = batch.iter().cloned().map(Ok).collect();
            let mut deleted = storage.delete_many(stream::iter(batch).boxed());
            let mut failed = None;
            while let Some(outcome) = deleted.next().await {
                if let Err(error) = outcome {
                    failed = Some(error);
                }
            }
            if let Some(error) = failed {
                return Err(Error::storage("what nothing needs", error));
            }
        }
        Ok(())
    }
}

fn age(list: &DoomedList, now: SystemTime) -> Duration {
    now.duration_since(list.published).unwrap_or_default()
}

/// The packs that somebody may be deleting, by other lists than our own.
fn executing(lists: &[DoomedList], own: Option<&Key>) -> HashSet<PackId> {
    lists
        .iter()
        .filter(|list| list.body.stage == Stage::Executing && Some(&list.key) != own)
        .flat_map(|list| list.body.packs.iter().copied())
        .collect()
}
