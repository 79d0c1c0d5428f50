//! What each snapshot alone keeps.

use std::collections::{BTreeMap, HashMap};

use neon_snapshot_format::pack::PackId;

use crate::error::Result;
use crate::gc::Inventory;
use crate::gc::mark::run;
use crate::id::CommitId;
use crate::map::{At, FrameRef, Walk};
use crate::repository::Repository;

/// What destroying a snapshot alone would free, and what it shares: its pages, without its map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Retained {
    /// Stored bytes of frames that only this snapshot needs.
    pub own: u64,
    /// Stored bytes of all frames that it needs.
    pub all: u64,
}

/// A number of a snapshot that stands for several.
const SHARED: u32 = u32::MAX;

/// To which snapshot each frame belongs, in eight bytes each: of snapshots that are looked at one after the other.
#[derive(Debug, Default)]
struct Owners {
    /// By pack, and the number of the frame divided by 64.
    packs: HashMap<PackId, BTreeMap<u64, Box<[Owner; 64]>>>,
    /// By number of the snapshot, from 1.
    retained: Vec<Retained>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    /// The only one that needs it; nobody yet.
    owner: u32,
    /// The last one that was seen to need it.
    last: u32,
}

impl Owners {
    fn next_snapshot(&mut self) {
        self.retained.push(Retained::default());
    }

    /// The snapshot that came last needs a frame.
    fn add(&mut self, frame: &FrameRef) {
        let now = u32::try_from(self.retained.len()).unwrap_or(SHARED);
        let bytes = u64::from(frame.stored_length);
        let words = self.packs.entry(frame.pack.id).or_default();
        let word = words
            .entry(frame.frame / 64)
            .or_insert_with(|| Box::new([Owner::default(); 64]));
        let bit = usize::try_from(frame.frame % 64).unwrap_or_default();
        let Some(slot) = word.get_mut(bit) else {
            return;
        };
        if slot.last == now {
            return;
        }
        slot.last = now;
        let before = slot.owner;
        slot.owner = if before == 0 { now } else { SHARED };
        if let Some(other) = self.of(before) {
            other.own = other.own.saturating_sub(bytes);
        }
        if let Some(mine) = self.of(now) {
            mine.all = mine.all.saturating_add(bytes);
            if before == 0 {
                mine.own = mine.own.saturating_add(bytes);
            }
        }
    }

    fn of(&mut self, snapshot: u32) -> Option<&mut Retained> {
        let at = usize::try_from(snapshot).ok()?.checked_sub(1)?;
        self.retained.get_mut(at)
    }
}

impl Repository {
    /// For every snapshot, what destroying it alone would free. Needs eight bytes of memory for every frame that any of
    /// them needs: 64 MiB for 1 TB of pages that do not compress.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage), and when a map cannot be read.
    pub async fn retained(&self) -> Result<BTreeMap<CommitId, Retained>> {
        let now = self.storage_time().await?;
        let inventory = Inventory::take(self, now, false).await?;
        let reader = self.frames();
        let mut owners = Owners::default();
        let mut ids = Vec::new();
        for (id, commit) in inventory.roots() {
            ids.push(id);
            owners.next_snapshot();
            let mut walk = Walk::new(&commit.view()?, false);
            while let Some(file) = run(&reader, &mut walk).await? {
                for extent in &file.extents {
                    if let At::Frame { frame, .. } = &extent.at {
                        owners.add(frame);
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
                    owners.add(frame);
                }
            });
        }
        let shared = peak() - before - marked;
        println!("{frames} frames: {marked} bytes to mark, {shared} to share out");
        assert!(marked < frames * 2 + (8 << 20), "{marked}");
        assert!(shared < frames * 10 + (8 << 20), "{shared}");
        let bytes = frames << 17;
        assert_eq!(live.packs().map(|(.., bytes)| bytes).sum::<u64>(), bytes);
        assert!(owners.retained.iter().all(|retained| retained.own == 0));
        assert_eq!(owners.retained[1].all, bytes);
        assert_eq!(owners.retained[2].all, bytes / 64 * 63);
    }
}
