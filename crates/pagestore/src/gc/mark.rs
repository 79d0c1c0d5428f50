//! What is live, and in which packs it lies.
//!
//! What is live is a set of cells of frames: those that any root shows, no more. Each of them is assigned to a pack that
//! has to keep it: the home of its frame that was stored last, of those that are there, have that cell, and that nobody else may
//! be deleting. A pack to which nothing was assigned can go, for each live cell is in another one that stays; it does not
//! matter of how many homes a frame is made up, nor that cells which were dropped come alive again: then they are
//! assigned to an earlier home, which still has them, and which therefore stays. A cell that no home has ends the
//! collection before it deletes.

use std::collections::{BTreeSet, HashMap, HashSet};

use neon_snapshot_format::pack::PackId;

use crate::commit::Commit;
use crate::error::{Error, Result};
use crate::gc::Inventory;
use crate::id::CommitId;
use crate::map::{Cells, LiveFrame, LiveFrames, Machine, MapFrame, Mark, Step, View, decode_runs};
use crate::moves::{MovePiece, MovedFrame};
use crate::read::{Form, FrameReader};
use crate::repository::Repository;

/// A frame as maps know it: the pack it was written to, and its number there.
pub(crate) type Address = (PackId, u64);

/// What is live.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(crate) live: LiveFrames,
    /// Every pack that is needed.
    pub(crate) held: HashMap<PackId, Held>,
    /// Packs that another collection may be deleting.
    shunned: HashSet<PackId>,
}

/// What a pack is needed for.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// How many frames with live cells that it has to keep it holds.
    pub(crate) frames: u64,
    /// What of their stored bytes is for those cells.
    pub(crate) bytes: u64,
    /// Whether some of them lie there unencrypted, in a repository that is encrypted: see [`Kept::is_open`].
    pub(crate) open: bool,
}

/// Live cells of a frame in one of its homes, which has to keep them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) address: Address,
    pub(crate) live: LiveFrame,
    /// Where it moved; nothing in its own pack.
    pub(crate) moved: Option<MovedFrame>,
    /// What is to be kept there.
    pub(crate) cells: Cells,
}

impl Kept {
    /// The cells that this home has.
    pub(crate) fn held(&self) -> Cells {
        held(&self.live, self.moved.as_ref())
    }

    /// Whether so many of the cells that this home has are to be kept that it travels as it is.
    pub(crate) fn travels_as_it_is(&self) -> bool {
        let (kept, held) = (self.cells.count(), self.held().count());
        kept.saturating_mul(4) >= held.saturating_mul(3)
    }

    /// Whether it lies here unencrypted, by what maps and moves say. In an encrypted repository that is not thinned: nothing
    /// but a few bytes of a digest would tie it to the map, and the moves would vouch for it. Nor does it move whole: when
    /// less of it is live later, the new pack could not be rewritten either, with all that moved there beside it.
    pub(crate) fn is_open(&self) -> bool {
        let (sealed, stored) = match &self.moved {
            None => (self.live.sealed, self.live.stored_length),
            Some(moved) => match &moved.form {
                Form::Same => (self.live.sealed, moved.length),
                Form::Wrapped => (true, moved.length),
                Form::Thinned(thinned) => (thinned.sealed, moved.length),
            },
        };
        !sealed && stored > 0
    }

    /// What of the stored bytes of this home is for the cells that it has to keep.
    fn bytes(&self) -> u64 {
        let stored = self
            .moved
            .map_or(self.live.stored_length, |moved| moved.length);
        self.held().share(self.cells, stored)
    }
}

/// The cells of a frame that one of its homes has.
fn held(live: &LiveFrame, moved: Option<&MovedFrame>) -> Cells {
    moved.map_or(live.whole, |moved| moved.form.cells(live.whole))
}

impl Commit {
    /// Its page map.
    ///
    /// # Errors
    /// As [`decode_runs`].
    pub fn view(&self) -> Result<View> {
        let runs = match self.runs.is_empty() {
            true => Vec::new(),
            false => decode_runs(&self.runs)?,
        };
        Ok(View {
            runs,
            page_size: self.facts.cluster.block_size,
        })
    }
}

/// Runs a machine to its next result, reading what it asks for.
pub(crate) async fn run<M: Machine>(reader: &FrameReader, machine: &mut M) -> Result<M::Output> {
    loop {
        match machine.step()? {
            Step::Ready(output) => return Ok(output),
            Step::Need(frames) => {
                let plain = reader.get_many(&frames).await?;
                for (frame, bytes) in frames.iter().zip(&plain) {
                    machine.feed(frame, MapFrame::decode(bytes)?);
                }
            }
        }
    }
}

impl Marked {
    /// Marks all that the roots of an inventory need. `shunned` are packs that another collection may be deleting: what
    /// lies there and elsewhere is needed elsewhere.
    ///
    /// # Errors
    /// When anything of any root cannot be read, or a live frame is nowhere. [`Busy`](crate::ErrorKind::Busy) when that is
    /// another collection's work: see [`Inventory::explain`].
    pub(crate) async fn of(
        repository: &Repository,
        inventory: &Inventory,
        shunned: &HashSet<PackId>,
    ) -> Result<Self> {
        match Self::all(repository, inventory, shunned).await {
            Err(error) => Err(inventory.explain(repository, error).await),
            found => found,
        }
    }

    async fn all(
        repository: &Repository,
        inventory: &Inventory,
        shunned: &HashSet<PackId>,
    ) -> Result<Self> {
        let roots = inventory.roots();
        let mut order: Vec<_> = roots.iter().collect();
        order.sort_by_key(|(id, commit)| (commit.facts.taken, **id));
        let live = mark(
            repository,
            order.into_iter().map(|(id, commit)| (*id, *commit)),
        )
        .await?;
        let encrypted = repository.is_encrypted();
        let mut held: HashMap<PackId, Held> = HashMap::new();
        place(&live, inventory, shunned, |place, kept| {
            let held = held.entry(place).or_default();
            held.open |= encrypted && kept.is_open();
            held.frames = held.frames.saturating_add(1);
            held.bytes = held.bytes.saturating_add(kept.bytes());
        })?;
        let shunned = shunned.clone();
        Ok(Self {
            live,
            held,
            shunned,
        })
    }

    /// What of which live frames some packs have to keep. Of all packs at once it would be more than fits into memory.
    pub(crate) fn frames_in(
        &self,
        inventory: &Inventory,
        packs: &[PackId],
    ) -> Result<HashMap<PackId, Vec<Kept>>> {
        let mut found: HashMap<PackId, Vec<Kept>> =
            packs.iter().map(|pack| (*pack, Vec::new())).collect();
        place(&self.live, inventory, &self.shunned, |place, kept| {
            if let Some(frames) = found.get_mut(&place) {
                frames.push(kept);
            }
        })?;
        Ok(found)
    }
}

/// The frames that commits need, oldest first.
pub(crate) async fn mark<'a>(
    repository: &Repository,
    commits: impl Iterator<Item = (CommitId, &'a Commit)>,
) -> Result<LiveFrames> {
    let mut mark = Mark::new();
    for (_, commit) in commits {
        mark.add(commit.view()?);
    }
    run(&repository.frames(), &mut mark).await?;
    Ok(mark.into_live())
}

/// Tells for every live cell which pack has to keep it: where its frame moved last, among packs that are there, that have it,
/// and that no other collection may be deleting; last of all, the frame's own.
fn place(
    live: &LiveFrames,
    inventory: &Inventory,
    shunned: &HashSet<PackId>,
    mut keep: impl FnMut(PackId, Kept),
) -> Result<()> {
    let mut pieces: HashMap<PackId, Vec<&MovePiece>> = HashMap::new();
    for piece in &inventory.moves {
        if inventory.there.contains_key(&piece.new) {
            pieces.entry(piece.old).or_default().push(piece);
        }
    }
    let packs: BTreeSet<PackId> = live.packs().map(|(id, ..)| id).collect();
    for pack in packs {
        let pieces = pieces.get(&pack).map(Vec::as_slice).unwrap_or_default();
        let stays = inventory.there.contains_key(&pack);
        for live in live.frames(pack) {
            let moved = pieces.iter().filter_map(|piece| {
                let moved = piece.find(live.frame)?;
                Some((piece.new, Some(*moved)))
            });
            let homes: Vec<_> = moved.chain(stays.then_some((pack, None))).collect();
            check(pack, &live, &homes)?;
            let (safe, unsafe_): (Vec<_>, Vec<_>) = homes
                .into_iter()
                .partition(|(place, _)| !shunned.contains(place));
            let mut assign = |place, moved: Option<MovedFrame>, left: Cells| {
                let cells = held(&live, moved.as_ref()).common(left);
                if !cells.is_empty() {
                    let address = (pack, live.frame);
                    let kept = Kept {
                        address,
                        live,
                        moved,
                        cells,
                    };
                    keep(place, kept);
                }
                cells
            };
            let mut left = live.cells;
            for (place, moved) in safe {
                left = left.without(assign(place, moved, left));
            }
            // Whoever is at those packs marks too, and finds them needed; so do we, in each.
            let mut nowhere = left;
            for (place, moved) in unsafe_ {
                nowhere = nowhere.without(assign(place, moved, left));
            }
            if !nowhere.is_empty() {
                return Err(Error::damaged(
                    format!("frame {} of pack {pack}", live.frame),
                    "is needed and not in the storage, or not all of it; nothing is deleted",
                ));
            }
        }
    }
    Ok(())
}

/// That what is said of a frame's homes can be true.
fn check(pack: PackId, live: &LiveFrame, homes: &[(PackId, Option<MovedFrame>)]) -> Result<()> {
    for (new, moved) in homes {
        if let Some(MovedFrame {
            form: Form::Thinned(thinned),
            ..
        }) = moved
            && !thinned.is_of(live.whole)
        {
            return Err(Error::malformed(
                format!("moves of pack {pack} to {new}"),
                format!("have cells of frame {} that it does not have", live.frame),
            ));
        }
    }
    Ok(())
}
