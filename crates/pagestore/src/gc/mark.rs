//! What is live, and in which packs it lies.

use std::collections::{BTreeSet, HashMap, HashSet};

use neon_snapshot_format::pack::PackId;

use crate::commit::Commit;
use crate::error::{Error, Result};
use crate::gc::Inventory;
use crate::id::CommitId;
use crate::map::{LiveFrames, Machine, MapFrame, Mark, Step, View, decode_runs};
use crate::moves::MovePiece;
use crate::read::FrameReader;
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
    /// How many live frames it holds.
    pub(crate) frames: u64,
    /// Their stored bytes.
    pub(crate) bytes: u64,
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
    /// When anything of any root cannot be read, or a live frame is nowhere.
    pub(crate) async fn of(
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
        let mut held: HashMap<PackId, Held> = HashMap::new();
        place(&live, inventory, shunned, |place, _, bytes| {
            let held = held.entry(place).or_default();
            held.frames = held.frames.saturating_add(1);
            held.bytes = held.bytes.saturating_add(bytes);
        })?;
        let shunned = shunned.clone();
        Ok(Self {
            live,
            held,
            shunned,
        })
    }

    /// Which live frames some packs hold. Of all packs at once it would be more than fits into memory.
    pub(crate) fn frames_in(
        &self,
        inventory: &Inventory,
        packs: &[PackId],
    ) -> Result<HashMap<PackId, Vec<Address>>> {
        let mut found: HashMap<PackId, Vec<Address>> =
            packs.iter().map(|pack| (*pack, Vec::new())).collect();
        place(&self.live, inventory, &self.shunned, |place, address, _| {
            if let Some(frames) = found.get_mut(&place) {
                frames.push(address);
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

/// Tells for every live frame which pack has to keep it, and how many bytes it takes there: where it moved last, among
/// packs that are there and that no other collection may be deleting. The bytes of frames that did not move are told with
/// the last of them.
fn place(
    live: &LiveFrames,
    inventory: &Inventory,
    shunned: &HashSet<PackId>,
    mut keep: impl FnMut(PackId, Address, u64),
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
        let (_, bytes) = live.pack(pack);
        let (mut last, mut elsewhere) = (None, 0_u64);
        // Told late, to know how much of the pack is elsewhere.
        let mut own = |frame| last.replace(frame).map(|before| (pack, before));
        for frame in live.frames(pack) {
            let address = (pack, frame);
            let places = pieces
                .iter()
                .filter_map(|piece| Some((piece.new, piece.find(frame)?.length)));
            let safe = places.clone().find(|(place, _)| !shunned.contains(place));
            if let Some((place, length)) = safe {
                keep(place, address, length.into());
                elsewhere = elsewhere.saturating_add(length.into());
            } else if stays && !shunned.contains(&pack) {
                own(frame)
                    .into_iter()
                    .for_each(|before| keep(pack, before, 0));
            } else if stays || places.clone().next().is_some() {
                // Whoever is at those packs marks too, and finds them needed; so do we.
                places.for_each(|(place, length)| keep(place, address, length.into()));
                if stays {
                    own(frame)
                        .into_iter()
                        .for_each(|before| keep(pack, before, 0));
                }
            } else {
                return Err(Error::damaged(
                    format!("frame {frame} of pack {pack}"),
                    "is needed and not in the storage; nothing is deleted",
                ));
            }
        }
        if let Some(frame) = last {
            keep(pack, (pack, frame), bytes.saturating_sub(elsewhere));
        }
    }
    Ok(())
}
