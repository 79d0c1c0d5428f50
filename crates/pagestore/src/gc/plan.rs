//! What a collection would do, as a value.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use neon_snapshot_format::pack::PackId;

use crate::commit_object::CommitObject;
use crate::error::Result;
use crate::gc::mark::Held;
use crate::gc::{Inventory, Marked};
use crate::id::CommitId;
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
    /// Bytes that snapshots, writers at work and pins need: of frames of which only some cells of 8 KiB are needed, their
    /// share.
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
                .held
                .values()
                .fold(0, |sum, held| sum.saturating_add(held.bytes)),
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
            .filter(|piece| !inventory.there.contains_key(&piece.new))
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
        .saturating_add(FRAME_OVERHEAD.saturating_mul(held.frames))
        .saturating_add(PACK_OVERHEAD)
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
}
