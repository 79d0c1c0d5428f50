//! What a collection would do, as a value.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use neon_snapshot_format::pack::PackId;

use crate::commit_object::CommitObject;
use crate::error::Result;
use crate::gc::mark::{Address, Held, run};
use crate::gc::{Inventory, Marked};
use crate::id::CommitId;
use crate::map::{At, Walk};
use crate::repository::Repository;

/// What the directory and the ends of a pack take, about, for each frame and for itself.
const FRAME_OVERHEAD: u64 = 28;
const PACK_OVERHEAD: u64 = 256;

/// What a collection would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionPlan {
    /// Packs that nothing needs, with their sizes.
    pub packs: Vec<(PackId, u64)>,
    /// Packs of which less than two thirds are needed, with their sizes and how much of them is.
    pub sparse: Vec<(PackId, u64, u64)>,
    /// Commits of snapshots that are destroyed, or were never completed.
    pub commits: Vec<CommitId>,
    /// Bytes in all packs.
    pub stored: u64,
    /// Bytes that snapshots, writers at work and pins need.
    pub live: u64,
    /// The objects that hold those, and others of snapshots that were brought again.
    pub(crate) objects: Vec<CommitObject>,
    /// Packs that are gone and whose moved frames nothing needs.
    pub(crate) forgotten: Vec<PackId>,
}

impl CollectionPlan {
    /// Bytes that will be free when the collection is through.
    #[must_use]
    pub fn freed(&self) -> u64 {
        let dead = self.packs.iter().map(|(_, size)| *size);
        let sparse = self
            .sparse
            .iter()
            .map(|(_, size, live)| size.saturating_sub(*live));
        dead.chain(sparse).fold(0, u64::saturating_add)
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
            && self.sparse.is_empty()
            && self.objects.is_empty()
            && self.forgotten.is_empty()
    }

    /// The plan for what was found and marked.
    pub(crate) fn of(inventory: &Inventory, marked: &Marked) -> Self {
        let protected = inventory.protected();
        let mut plan = Self {
            stored: inventory
                .packs
                .values()
                .fold(0, |sum, size| sum.saturating_add(*size)),
            live: marked
                .live
                .packs()
                .fold(0, |sum, (.., bytes)| sum.saturating_add(bytes)),
            ..Self::default()
        };
        let packs: BTreeMap<_, _> = inventory.packs.iter().collect();
        for (id, size) in packs {
            if protected(*id) {
                continue;
            }
            match marked.held.get(id).map(needed) {
                None => plan.packs.push((*id, *size)),
                Some(live) if live.saturating_mul(3) < size.saturating_mul(2) => {
                    plan.sparse.push((*id, *size, live));
                }
                Some(_) => {}
            }
        }
        let roots = inventory.roots();
        plan.objects = inventory.dead_commits().collect();
        let gone: BTreeSet<CommitId> = plan.objects.iter().map(|object| object.id).collect();
        plan.commits = gone
            .into_iter()
            .filter(|id| !roots.contains_key(id))
            .collect();
        let forgotten: BTreeSet<PackId> = inventory
            .moves
            .iter()
            .map(|piece| piece.old)
            .filter(|old| {
                !inventory.packs.contains_key(old)
                    && marked.live.pack(*old).0 == 0
                    && !protected(*old)
            })
            .collect();
        plan.forgotten = forgotten.into_iter().collect();
        plan
    }
}

/// About how large a pack of only this would be.
fn needed(held: &Held) -> u64 {
    held.bytes
        .saturating_add(FRAME_OVERHEAD.saturating_mul(held.frames.len() as u64))
        .saturating_add(PACK_OVERHEAD)
}

/// What destroying a snapshot alone would free, and what it shares: its pages, without its map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Retained {
    /// Stored bytes of frames that only this snapshot needs.
    pub own: u64,
    /// Stored bytes of all frames that it needs.
    pub all: u64,
}

impl Repository {
    /// What a collection would do now. Changes nothing.
    ///
    /// # Errors
    /// As [`collect`](Self::collect).
    pub async fn plan_collection(&self) -> Result<CollectionPlan> {
        let now = self.storage_time().await?;
        let inventory = Inventory::take(self, now, false).await?;
        let marked = Marked::of(self, &inventory, &HashSet::new()).await?;
        Ok(CollectionPlan::of(&inventory, &marked))
    }

    /// For every snapshot, what destroying it alone would free. Needs memory for every frame of the repository.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage), and when a map cannot be read.
    pub async fn retained(&self) -> Result<BTreeMap<CommitId, Retained>> {
        let now = self.storage_time().await?;
        let inventory = Inventory::take(self, now, false).await?;
        let reader = self.frames();
        let mut retained = BTreeMap::new();
        let mut owners: HashMap<Address, (Option<CommitId>, u32)> = HashMap::new();
        for (id, commit) in inventory.roots() {
            let mut frames = HashSet::new();
            let mut all = 0_u64;
            let mut walk = Walk::new(&commit.view()?, false);
            while let Some(file) = run(&reader, &mut walk).await? {
                for extent in &file.extents {
                    let At::Frame { frame, .. } = &extent.at else {
                        continue;
                    };
                    if frames.insert(frame.id()) {
                        all = all.saturating_add(frame.stored_length.into());
                        owners
                            .entry(frame.id())
                            .and_modify(|(owner, _)| *owner = None)
                            .or_insert((Some(id), frame.stored_length));
                    }
                }
            }
            retained.insert(id, Retained { own: 0, all });
        }
        for (owner, length) in owners.into_values() {
            if let Some(entry) = owner.and_then(|owner| retained.get_mut(&owner)) {
                entry.own = entry.own.saturating_add(length.into());
            }
        }
        Ok(retained)
    }
}
