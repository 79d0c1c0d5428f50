//! What a collection would do, as a value.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use futures_util::{StreamExt, TryStreamExt, stream};
use neon_snapshot_format::pack::PackId;

use crate::commit_object::CommitObject;
use crate::error::{ErrorKind, Result};
use crate::gc::mark::Held;
use crate::gc::{Inventory, Marked};
use crate::id::CommitId;
use crate::repository::Repository;

/// What the directory and the ends of a pack take, about, for each frame and for itself.
const FRAME_OVERHEAD: u64 = 28;
const PACK_OVERHEAD: u64 = 256;

/// A pack of which less than two thirds are needed, and which no collection rewrites.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftPack {
    /// Which.
    pub id: PackId,
    /// Its size.
    pub size: u64,
    /// How much of it is needed.
    pub live: u64,
    /// Why it stays as it is.
    pub reason: LeftReason,
}

/// Why a pack is not rewritten. `Display` says it to people, about the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftReason {
    /// It uses additions of a newer version of this program, which may be read and not rewritten.
    Newer,
    /// The repository is encrypted, and a frame in it that is needed is not: nothing would tie what a thinned one has left to
    /// what was written, and a whole one would keep the pack that it moved to from being rewritten in turn.
    NotEncrypted,
    /// What it says of itself at its end cannot be read, or is that of another pack. A check says more.
    Unreadable,
}

impl fmt::Display for LeftReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Newer => {
                "was written by a newer version of this program, which alone may rewrite it"
            }
            Self::NotEncrypted => "holds a frame that is not encrypted, in a repository that is",
            Self::Unreadable => "cannot be read at its end; a check says more",
        })
    }
}

/// What a collection would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionPlan {
    /// Packs that nothing needs, with their sizes.
    pub packs: Vec<(PackId, u64)>,
    /// Packs of which less than two thirds are needed, with their sizes and how much of them is.
    pub sparse: Vec<(PackId, u64, u64)>,
    /// Packs of which as little is needed and that no collection rewrites: they stay as large as they are for as long as
    /// anything of them is needed.
    pub left: Vec<LeftPack>,
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

    /// Takes those of the sparse packs that may not be rewritten for what maps and moves say of them.
    fn set_open_aside(&mut self, marked: &Marked) {
        let (left, sparse) = std::mem::take(&mut self.sparse)
            .into_iter()
            .partition(|(id, ..)| marked.held.get(id).is_some_and(|held| held.open));
        self.sparse = sparse;
        let left: Vec<(PackId, u64, u64)> = left;
        self.left.extend(left.into_iter().map(|(id, size, live)| {
            let reason = LeftReason::NotEncrypted;
            LeftPack {
                id,
                size,
                live,
                reason,
            }
        }));
    }

    /// Takes those of the sparse packs that may not be rewritten for what they are, too. Reads the end of each; one that
    /// cannot be read is in no other's way.
    ///
    /// # Errors
    /// When the storage fails.
    pub(crate) async fn set_aside(
        &mut self,
        repository: &Repository,
        marked: &Marked,
    ) -> Result<()> {
        self.set_open_aside(marked);
        let sparse = std::mem::take(&mut self.sparse);
        let mut looked = stream::iter(sparse)
            .map(|(id, size, live)| async move {
                let reason = match repository.pack_flags(id, size).await {
                    Ok(flags) => (!flags.writable()).then_some(LeftReason::Newer),
                    // Another collection took it meanwhile.
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) if error.is_of_object() => Some(LeftReason::Unreadable),
                    Err(error) => return Err(error),
                };
                Ok((id, size, live, reason))
            })
            .buffered(16);
        while let Some((id, size, live, reason)) = looked.try_next().await? {
            match reason {
                None => self.sparse.push((id, size, live)),
                Some(reason) => self.left.push(LeftPack {
                    id,
                    size,
                    live,
                    reason,
                }),
            }
        }
        Ok(())
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
        let (mut plan, marked) = self.plan_roughly().await?;
        plan.set_aside(self, &marked).await?;
        Ok(plan)
    }

    /// As [`plan_collection`](Self::plan_collection), in fewer requests: sparse packs are not asked whether they may be
    /// rewritten. Those that may not are among them, so that less may come free than this says.
    ///
    /// # Errors
    /// As [`collect`](Self::collect).
    pub async fn estimate_collection(&self) -> Result<CollectionPlan> {
        let (mut plan, marked) = self.plan_roughly().await?;
        plan.set_open_aside(&marked);
        Ok(plan)
    }

    async fn plan_roughly(&self) -> Result<(CollectionPlan, Marked)> {
        let now = self.storage_time().await?;
        let inventory = Inventory::take(self, now, false).await?;
        let marked = Marked::of(self, &inventory, &HashSet::new()).await?;
        Ok((CollectionPlan::of(&inventory, &marked), marked))
    }
}
