//! Rewrites packs of which little is live: their live frames, as they are stored, move to new packs.

use std::collections::{BTreeMap, HashMap};

use neon_snapshot_format::pack::{FrameRecord, PackId};

use crate::error::{Error, Result};
use crate::gc::mark::Address;
use crate::gc::{Inventory, Marked};
use crate::lease::Lease;
use crate::moves::MovedFrame;
use crate::pack_file::NewPack;
use crate::repository::Repository;

/// Of so many packs live frames are kept in mind at once.
const AT_ONCE: usize = 256;
/// How large new packs grow.
const PACK_SIZE: u64 = 64 << 20;

/// New packs being filled, and what is to be said about them.
struct Filling<'a> {
    repository: &'a Repository,
    lease: &'a Lease,
    pack: Option<NewPack>,
    moves: BTreeMap<PackId, Vec<MovedFrame>>,
}

impl Filling<'_> {
    async fn flush(&mut self) -> Result<()> {
        let Some(pack) = self.pack.take() else {
            return Ok(());
        };
        let new = pack.id;
        pack.store(&*self.repository.shared.storage).await?;
        for (old, frames) in std::mem::take(&mut self.moves) {
            self.repository
                .put_moves(self.lease.writer(), old, new, frames)
                .await?;
        }
        Ok(())
    }

    fn pack(&mut self) -> Result<&mut NewPack> {
        if self.pack.is_none() {
            self.pack = Some(NewPack::new(self.lease.writer().new_pack()?)?);
        }
        self.pack
            .as_mut()
            .ok_or_else(|| Error::new(crate::ErrorKind::Limit, "pack", "cannot be begun"))
    }

    /// Moves these frames of a pack; returns the bytes that were written.
    async fn take(
        &mut self,
        inventory: &Inventory,
        id: PackId,
        size: u64,
        frames: &[Address],
    ) -> Result<u64> {
        let file = self.repository.pack_file(id, size).await?;
        // Read by anybody, rewritten only by who knows its additions: it stays as large as it is.
        if !file.flags.writable() {
            return Ok(0);
        }
        let mut wanted = places(inventory, id, frames, &file.records)?;
        let mut written = 0_u64;
        wanted.sort_unstable_by_key(|(_, record, _)| record.offset());
        let mut from = wanted.as_slice();
        while !from.is_empty() {
            // As much as one new pack takes at most.
            let room = PACK_SIZE.saturating_sub(self.pack.as_ref().map_or(0, NewPack::size));
            let mut sum = 0_u64;
            let fits = from
                .iter()
                .take_while(|(_, record, _)| {
                    let fits = sum == 0 || sum < room;
                    sum = sum.saturating_add(record.stored_length().into());
                    fits
                })
                .count();
            let (now, later) = from.split_at_checked(fits).unwrap_or((from, &[]));
            let records: Vec<FrameRecord> = now.iter().map(|(_, record, _)| *record).collect();
            let mut addresses = now.iter();
            let mut moved: BTreeMap<PackId, Vec<MovedFrame>> = BTreeMap::new();
            let repository = self.repository;
            let pack = self.pack()?;
            repository
                .each_stored(id, &records, |record, stored| {
                    let new = pack.append(record, &stored)?;
                    written = written.saturating_add(record.stored_length().into());
                    if let Some(((old, frame), _, wrapped)) = addresses.next() {
                        moved.entry(*old).or_default().push(MovedFrame {
                            frame: *frame,
                            offset: new.offset(),
                            length: new.stored_length(),
                            wrapped: *wrapped,
                        });
                    }
                    Ok(())
                })
                .await?;
            for (old, frames) in moved {
                self.moves.entry(old).or_default().extend(frames);
            }
            if self
                .pack
                .as_ref()
                .is_some_and(|pack| pack.size() >= PACK_SIZE)
            {
                self.flush().await?;
            }
            from = later;
        }
        Ok(written)
    }
}

/// Copies the live frames of these packs to new ones and says where they are. The old packs are redundant then.
/// Returns the bytes that were written.
pub(crate) async fn repack(
    repository: &Repository,
    lease: &Lease,
    inventory: &Inventory,
    marked: &Marked,
    sparse: &[PackId],
) -> Result<u64> {
    let mut filling = Filling {
        repository,
        lease,
        pack: None,
        moves: BTreeMap::new(),
    };
    let mut written = 0_u64;
    for some in sparse.chunks(AT_ONCE) {
        let frames = marked.frames_in(inventory, some)?;
        for id in some {
            let (Some(frames), Some(size)) = (frames.get(id), inventory.packs.get(id)) else {
                continue;
            };
            written = written.saturating_add(filling.take(inventory, *id, *size, frames).await?);
        }
    }
    filling.flush().await?;
    Ok(written)
}

/// Where live frames lie in a pack, by its directory, and whether they are sealed once more.
fn places(
    inventory: &Inventory,
    id: PackId,
    frames: &[Address],
    records: &[FrameRecord],
) -> Result<Vec<(Address, FrameRecord, bool)>> {
    let by_offset: HashMap<u64, &FrameRecord> = records
        .iter()
        .filter(|record| record.stored_length() > 0)
        .map(|record| (record.offset(), record))
        .collect();
    let pieces: HashMap<PackId, _> = inventory
        .moves
        .iter()
        .filter(|piece| piece.new == id)
        .map(|piece| (piece.old, piece))
        .collect();
    let mut found = Vec::with_capacity(frames.len());
    for (pack, frame) in frames {
        let place = if *pack == id {
            let number = usize::try_from(*frame).unwrap_or(usize::MAX);
            records.get(number).map(|record| (*record, false))
        } else {
            pieces
                .get(pack)
                .and_then(|piece| piece.find(*frame))
                .and_then(|moved| Some((**by_offset.get(&moved.offset)?, moved.wrapped)))
        };
        let (record, wrapped) = place.ok_or_else(|| {
            Error::damaged(
                format!("pack {id}"),
                format!("does not hold frame {frame} of pack {pack}"),
            )
        })?;
        found.push(((*pack, *frame), record, wrapped));
    }
    Ok(found)
}
