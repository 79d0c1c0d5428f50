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
}

/// What a pack is needed for.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Which live frames it holds.
    pub(crate) frames: Vec<Address>,
    /// Their stored bytes.
    pub(crate) bytes: u64,
}

impl Held {
    fn keep(&mut self, frame: Address, bytes: u64) {
        self.frames.push(frame);
        self.bytes = self.bytes.saturating_add(bytes);
    }
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
        let held = hold(&live, inventory, shunned)?;
        Ok(Self { live, held })
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

/// Decides for every live frame which pack has to keep it: where it moved last, among packs that are there and that no
/// other collection may be deleting.
fn hold(
    live: &LiveFrames,
    inventory: &Inventory,
    shunned: &HashSet<PackId>,
) -> Result<HashMap<PackId, Held>> {
    let mut pieces: HashMap<PackId, Vec<&MovePiece>> = HashMap::new();
    for piece in &inventory.moves {
        if inventory.there.contains_key(&piece.new) {
            pieces.entry(piece.old).or_default().push(piece);
        }
    }
    let mut held: HashMap<PackId, Held> = HashMap::new();
    let packs: BTreeSet<PackId> = live.packs().map(|(id, ..)| id).collect();
    for pack in packs {
        let pieces = pieces.get(&pack).map(Vec::as_slice).unwrap_or_default();
        let stays = inventory.there.contains_key(&pack);
        let mut own = Held::default();
        let mut elsewhere = 0_u64;
        for frame in live.frames(pack) {
            let address = (pack, frame);
            let places = pieces
                .iter()
                .filter_map(|piece| Some((piece.new, piece.find(frame)?.length)));
            let safe = places.clone().find(|(place, _)| !shunned.contains(place));
            if let Some((place, length)) = safe {
                held.entry(place).or_default().keep(address, length.into());
                elsewhere = elsewhere.saturating_add(length.into());
            } else if stays && !shunned.contains(&pack) {
                own.keep(address, 0);
            } else if stays || places.clone().next().is_some() {
                // Whoever is at those packs marks too, and finds them needed; so do we.
                places.for_each(|(place, length)| {
                    held.entry(place).or_default().keep(address, length.into());
                });
                if stays {
                    own.keep(address, 0);
                }
            } else {
                return Err(Error::damaged(
                    format!("frame {frame} of pack {pack}"),
                    "is needed and not in the storage; nothing is deleted",
                ));
            }
        }
        if !own.frames.is_empty() {
            let kept = held.entry(pack).or_default();
            let (_, bytes) = live.pack(pack);
            kept.bytes = kept.bytes.saturating_add(bytes.saturating_sub(elsewhere));
            kept.frames.append(&mut own.frames);
        }
    }
    Ok(held)
}
