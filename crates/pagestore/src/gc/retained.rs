//! What each snapshot alone keeps.

use std::collections::{BTreeMap, HashMap};

use neon_snapshot_format::pack::PackId;

use crate::error::Result;
use crate::gc::Inventory;
use crate::gc::mark::run;
use crate::id::CommitId;
use crate::map::{Cells, FrameRef, Walk};
use crate::repository::Repository;

/// What destroying a snapshot alone would free, and what it shares: its pages, without its map. Of a frame of which it needs
/// some cells of 8 KiB, their share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Retained {
    /// Stored bytes that only this snapshot needs.
    pub own: u64,
    /// Stored bytes of all that it needs.
    pub all: u64,
}

/// Frames that lie side by side.
const TOGETHER: usize = 64;

/// To which snapshot each cell of a frame belongs, in sixteen bytes a frame: of snapshots that are looked at one after the
/// other.
#[derive(Debug, Default)]
struct Owners {
    /// By pack, and the number of the frame divided by 64.
    packs: HashMap<PackId, BTreeMap<u64, Box<[Owner; TOGETHER]>>>,
    /// Cells that one alone needs, who is not the owner of others of that frame. Of snapshots that follow each other, the
    /// oldest owns all that is not shared, and they are looked at in this order: so these are few.
    others: HashMap<(PackId, u64), Vec<(Cells, u32)>>,
    /// By number of the snapshot, from 1.
    retained: Vec<Retained>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    /// The first that was seen to need cells that nobody needed before; nobody yet.
    owner: u32,
    /// The last one that was seen to need any.
    last: u32,
    /// What that one needs.
    now: Cells,
    /// What anybody needs.
    any: Cells,
    /// What several need.
    many: Cells,
}

impl Owners {
    fn next_snapshot(&mut self) {
        self.retained.push(Retained::default());
    }

    /// The snapshot that came last needs cells of a frame.
    fn add(&mut self, frame: &FrameRef, cells: Cells) {
        let now = u32::try_from(self.retained.len()).unwrap_or(u32::MAX);
        let words = self.packs.entry(frame.pack.id).or_default();
        let word = words
            .entry(frame.frame / TOGETHER as u64)
            .or_insert_with(|| Box::new([Owner::default(); TOGETHER]));
        let at = usize::try_from(frame.frame % TOGETHER as u64).unwrap_or_default();
        let Some(slot) = word.get_mut(at) else {
            return;
        };
        if slot.last != now {
            (slot.last, slot.now) = (now, Cells::NONE);
        }
        let cells = cells.without(slot.now);
        slot.now = slot.now.and(cells);
        // Those that one other alone needed, until now.
        let mut lost = cells.common(slot.any).without(slot.many);
        let new = cells.without(slot.any);
        slot.any = slot.any.and(new);
        slot.many = slot.many.and(lost);
        if slot.owner == 0 {
            slot.owner = now;
        }
        let owner = slot.owner;
        let share = |cells| frame.whole().share(cells, frame.stored_length);
        if let Some(others) = self.others.get_mut(&frame.id()) {
            for (theirs, other) in others {
                let gone = theirs.common(lost);
                (*theirs, lost) = (theirs.without(gone), lost.without(gone));
                if let Some(of) = retained(&mut self.retained, *other) {
                    of.own = of.own.saturating_sub(share(gone));
                }
            }
        }
        if let Some(of) = retained(&mut self.retained, owner) {
            of.own = of.own.saturating_sub(share(lost));
        }
        if owner != now && !new.is_empty() {
            self.others.entry(frame.id()).or_default().push((new, now));
        }
        if let Some(mine) = retained(&mut self.retained, now) {
            mine.all = mine.all.saturating_add(share(cells));
            mine.own = mine.own.saturating_add(share(new));
        }
    }
}

fn retained(all: &mut [Retained], snapshot: u32) -> Option<&mut Retained> {
    let at = usize::try_from(snapshot).ok()?.checked_sub(1)?;
    all.get_mut(at)
}

impl Repository {
    /// For every snapshot, what destroying it alone would free. Needs sixteen bytes of memory for every frame that any of
    /// them needs: 128 MiB for 1 TB of pages that do not compress.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage), and when a map cannot be read. [`Busy`](crate::ErrorKind::Busy) when a collection
    /// took away a snapshot meanwhile that somebody still asked for.
    pub async fn retained(&self) -> Result<BTreeMap<CommitId, Retained>> {
        let now = self.storage_time().await?;
        let inventory = Inventory::take(self, now, false).await?;
        match self.share_out(&inventory).await {
            Err(error) => Err(inventory.explain(self, error).await),
            shared => shared,
        }
    }

    async fn share_out(&self, inventory: &Inventory) -> Result<BTreeMap<CommitId, Retained>> {
        let reader = self.frames();
        let mut owners = Owners::default();
        let roots = inventory.roots();
        let mut ids: Vec<CommitId> = roots.keys().copied().collect();
        ids.sort_by_key(|id| (roots.get(id).map(|commit| commit.facts.taken), *id));
        for id in &ids {
            let Some(commit) = roots.get(id) else {
                continue;
            };
            owners.next_snapshot();
            let view = commit.view()?;
            let mut walk = Walk::new(&view, false);
            while let Some(file) = run(&reader, &mut walk).await? {
                for extent in &file.extents {
                    if let Some((frame, cells)) = extent.cells(view.page_size) {
                        owners.add(frame, cells);
                    }
                }
            }
        }
        Ok(ids.into_iter().zip(owners.retained).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::DataKey;
    use crate::map::{LiveFrames, PackRef};

    /// The most memory that this process ever had, in bytes.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
        kilobytes.parse::<u64>().unwrap() << 10
    }

    /// The frames of a full terabyte with `NEON_LONG_TESTS`, else of a sixteenth of it.
    fn each_frame(mut visit: impl FnMut(&FrameRef)) -> u64 {
        let shift = if std::env::var_os("NEON_LONG_TESTS").is_some() {
            0
        } else {
            4
        };
        let packs = (1_u64 << 40 >> 26) >> shift;
        for pack in 0..packs {
            let id = *blake3::hash(&pack.to_le_bytes())
                .as_bytes()
                .first_chunk()
                .unwrap();
            for frame in 0..512 {
                visit(&FrameRef {
                    pack: PackRef {
                        id: PackId(id),
                        key: DataKey([0; 32]),
                    },
                    frame,
                    offset: frame << 17,
                    stored_length: 128 << 10,
                    plain_length: 128 << 10,
                    codec: 0,
                    sealed: false,
                    digest: [0; 16],
                });
            }
        }
        packs * 512
    }

    #[test]
    fn a_terabyte_is_marked_and_shared_out_in_few_bytes_a_frame() {
        let before = peak();
        let mut live = LiveFrames::default();
        let frames = each_frame(|frame| {
            live.insert(frame);
        });
        let marked = peak() - before;
        let mut owners = Owners::default();
        for round in 0..3 {
            owners.next_snapshot();
            each_frame(|frame| {
                // The last one shares all but one in 64 with the others.
                if round < 2 || frame.frame % 64 > 0 {
                    owners.add(frame, frame.whole());
                }
            });
        }
        let shared = peak() - before - marked;
        println!("{frames} frames: {marked} bytes to mark, {shared} to share out");
        assert!(marked < frames * 11 + (8 << 20), "{marked}");
        assert!(shared < frames * 17 + (8 << 20), "{shared}");
        let bytes = frames << 17;
        assert_eq!(live.packs().map(|(.., bytes)| bytes).sum::<u64>(), bytes);
        assert!(owners.retained.iter().all(|retained| retained.own == 0));
        assert_eq!(owners.retained[1].all, bytes);
        assert_eq!(owners.retained[2].all, bytes / 64 * 63);
    }

    #[test]
    fn what_each_alone_needs_is_what_counting_says() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..300 {
            let frame = FrameRef {
                pack: PackRef {
                    id: PackId([1; 16]),
                    key: DataKey([0; 32]),
                },
                frame: random.u64(0..200),
                offset: 0,
                stored_length: random.u32(1..200_000),
                plain_length: random.u32(1..=131_072),
                codec: 0,
                sealed: false,
                digest: [0; 16],
            };
            let whole = frame.whole();
            let mut owners = Owners::default();
            let mut needed = Vec::new();
            for _ in 0..random.usize(1..6) {
                owners.next_snapshot();
                let mut all = Cells::NONE;
                // Extents of one snapshot may share cells.
                for _ in 0..random.usize(0..4) {
                    let cells = whole.common(Cells::from_bits(random.u16(..) & random.u16(..)));
                    owners.add(&frame, cells);
                    all = all.and(cells);
                }
                needed.push(all);
            }
            for (at, cells) in needed.iter().enumerate() {
                let others = needed.iter().enumerate().filter(|(other, _)| *other != at);
                let others = others.fold(Cells::NONE, |sum, (_, cells)| sum.and(*cells));
                let expected = Retained {
                    own: whole.share(cells.without(others), frame.stored_length),
                    all: whole.share(*cells, frame.stored_length),
                };
                assert_eq!(owners.retained[at], expected);
            }
        }
    }
}
