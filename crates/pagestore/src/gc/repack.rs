//! Rewrites packs of which little is live: their live frames move to new packs, as they are stored, or thinned to the cells
//! that are live.
//!
//! A frame of whose cells at least three quarters are live travels as it is. So at least that much of a new pack is live,
//! which is more than the two thirds below which it would be rewritten again: whatever compression makes of a thinned frame,
//! it is not written again until more of it dies. A thinned frame is made of bytes that were verified by what the map says,
//! or by what was said when they were thinned before; nothing is dropped here, for what it came from stays until a later
//! collection has found all that is live elsewhere.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use neon_snapshot_format::pack::{FrameCipher, FrameContext, FrameRecord, PackId, SealedFrame};

use crate::bridge::blocking;
use crate::crypt::{DataKey, PackCipher};
use crate::error::{Error, ErrorKind, Result};
use crate::gc::mark::{Address, Kept};
use crate::gc::{Inventory, Marked};
use crate::lease::Lease;
use crate::map::{Cells, PackRef};
use crate::moves::MovedFrame;
use crate::pack_file::NewPack;
use crate::read::form::{keep, thin};
use crate::read::{Form, Thinned};
use crate::repository::Repository;

/// Of so many packs live frames are kept in mind at once, and so many frames but for those of a single pack: some 50 MB.
const AT_ONCE: usize = 256;
const FRAMES_AT_ONCE: u64 = 500_000;
/// How large new packs grow.
const PACK_SIZE: u64 = 64 << 20;
/// So many stored bytes are read, thinned and written together.
const BATCH: u64 = 8 << 20;
/// The codec of frames of zeros, as directories have it.
const ZEROS: u8 = 3;

/// A frame on its way to a new pack.
struct Moving {
    kept: Kept,
    /// What the directory of the pack that it is in says of it, under the address that it is known by.
    record: FrameRecord,
}

/// A frame as it is to be stored.
enum Ready {
    AsItIs(FrameRecord, Bytes),
    Thinned(Cells, SealedFrame<'static>),
}

/// New packs being filled, and what is to be said about them.
struct Filling<'a> {
    repository: &'a Repository,
    lease: &'a Lease,
    pack: Option<NewPack>,
    moves: BTreeMap<PackId, Vec<MovedFrame>>,
    filled: HashSet<Address>,
}

impl Filling<'_> {
    async fn flush(&mut self) -> Result<()> {
        let Some(pack) = self.pack.take() else {
            return Ok(());
        };
        let new = pack.id;
        pack.store(&*self.repository.shared.storage).await?;
        self.filled.clear();
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
            .ok_or_else(|| Error::new(ErrorKind::Limit, "pack", "cannot be begun"))
    }

    /// Moves what is to be kept of a pack; returns the bytes that were written.
    async fn take(
        &mut self,
        marked: &Marked,
        id: PackId,
        size: u64,
        frames: &[Kept],
    ) -> Result<u64> {
        let file = self.repository.pack_file(id, size).await?;
        let mut moving = found(id, frames, &file.records)?;
        moving.sort_unstable_by_key(|moving| moving.record.offset());
        let mut written = 0_u64;
        let mut from = moving.as_slice();
        while !from.is_empty() {
            let mut sum = 0_u64;
            let fits = from.iter().take_while(|moving| {
                let fits = sum == 0 || sum < BATCH;
                sum = sum.saturating_add(moving.record.stored_length().into());
                fits
            });
            let (now, later) = from.split_at_checked(fits.count()).unwrap_or((from, &[]));
            from = later;
            // Of a frame that comes in two pieces, out of two packs, each needs a new pack of its own.
            let again = now
                .iter()
                .any(|moving| self.filled.contains(&moving.kept.address));
            if again
                || self
                    .pack
                    .as_ref()
                    .is_some_and(|pack| pack.size() >= PACK_SIZE)
            {
                self.flush().await?;
            }
            written = written.saturating_add(self.some(marked, id, now).await?);
        }
        Ok(written)
    }

    /// Moves some frames that lie side by side.
    async fn some(&mut self, marked: &Marked, id: PackId, now: &[Moving]) -> Result<u64> {
        let records: Vec<FrameRecord> = now.iter().map(|moving| moving.record).collect();
        let mut stored = Vec::with_capacity(now.len());
        let read = self.repository.each_stored(id, &records, |_, bytes| {
            // What lies between frames that are far apart is read along: none of it is kept in memory.
            stored.push(Bytes::copy_from_slice(&bytes));
            Ok(())
        });
        read.await?;
        let work: Vec<(Kept, FrameRecord, DataKey, Bytes)> = now
            .iter()
            .zip(stored)
            .map(|(moving, bytes)| {
                let (pack, _) = moving.kept.address;
                let key = marked
                    .live
                    .key(pack)
                    .ok_or_else(|| not_held(id, &moving.kept))?;
                Ok((moving.kept, moving.record, key, bytes))
            })
            .collect::<Result<_>>()?;
        let encrypted = self.repository.is_encrypted();
        let ready = blocking("thinning of frames", move || {
            let ready = work
                .into_iter()
                .map(|(kept, record, key, bytes)| make(id, &kept, &record, key, bytes, encrypted));
            ready.collect::<Result<Vec<Ready>>>()
        });
        let ready = ready.await?;
        let mut written = 0_u64;
        for (moving, ready) in now.iter().zip(ready) {
            let pack = self.pack()?;
            let (record, form) = match ready {
                Ready::AsItIs(record, bytes) => {
                    let form = moving.kept.moved.map_or(Form::Same, |moved| moved.form);
                    (pack.append(&record, &bytes)?, form)
                }
                Ready::Thinned(cells, frame) => {
                    let record = pack.append_sealed(&frame)?;
                    let thinned = Thinned {
                        cells,
                        codec: record.codec(),
                        sealed: record.is_sealed(),
                        digest: *record.digest(),
                    };
                    (record, Form::Thinned(thinned))
                }
            };
            written = written.saturating_add(record.stored_length().into());
            let (old, frame) = moving.kept.address;
            self.filled.insert(moving.kept.address);
            self.moves.entry(old).or_default().push(MovedFrame {
                frame,
                offset: record.offset(),
                length: record.stored_length(),
                form,
            });
        }
        Ok(written)
    }
}

/// Copies what is live of these packs to new ones and says where it is. The old packs are redundant then. Returns the bytes
/// that were written.
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
        filled: HashSet::new(),
    };
    let mut written = 0_u64;
    for some in at_once(sparse, |id| {
        marked.held.get(id).map_or(0, |held| held.frames)
    }) {
        let frames = marked.frames_in(inventory, some)?;
        for id in some {
            let (Some(frames), Some(size)) = (frames.get(id), inventory.packs.get(id)) else {
                let reason = "is to be rewritten, and nobody knows what of it";
                return Err(Error::new(
                    ErrorKind::Inconsistent,
                    format!("pack {id}"),
                    reason,
                ));
            };
            let bytes = filling.take(marked, *id, *size, frames).await?;
            written = written.saturating_add(bytes);
        }
    }
    filling.flush().await?;
    Ok(written)
}

/// Cuts packs into those whose frames are kept in mind together.
fn at_once(packs: &[PackId], frames: impl Fn(&PackId) -> u64) -> impl Iterator<Item = &[PackId]> {
    let (mut packs_now, mut frames_now) = (0_usize, 0_u64);
    packs.chunk_by(move |before, next| {
        if packs_now == 0 {
            (packs_now, frames_now) = (1, frames(before));
        }
        packs_now = packs_now.saturating_add(1);
        frames_now = frames_now.saturating_add(frames(next));
        let fits = packs_now <= AT_ONCE && frames_now <= FRAMES_AT_ONCE;
        if !fits {
            packs_now = 0;
        }
        fits
    })
}

fn not_held(id: PackId, kept: &Kept) -> Error {
    let (pack, frame) = kept.address;
    let reason = format!("does not hold frame {frame} of pack {pack}, or another one there");
    Error::damaged(format!("pack {id}"), reason)
}

/// What is to be kept of a pack, by its directory, which must say what maps and moves say.
fn found(id: PackId, frames: &[Kept], records: &[FrameRecord]) -> Result<Vec<Moving>> {
    let by_offset: HashMap<u64, &FrameRecord> = records
        .iter()
        .filter(|record| record.stored_length() > 0)
        .map(|record| (record.offset(), record))
        .collect();
    let mut found = Vec::with_capacity(frames.len());
    for kept in frames {
        let (pack, frame) = kept.address;
        let context = FrameContext { pack, frame };
        let record = match &kept.moved {
            None => usize::try_from(frame)
                .ok()
                .and_then(|frame| records.get(frame).copied()),
            Some(moved) if moved.length == 0 => zeros(context, kept, moved),
            Some(moved) => by_offset.get(&moved.offset).copied().copied(),
        };
        let record = record.filter(|record| is_meant(kept, record));
        let record = record.ok_or_else(|| not_held(id, kept))?;
        found.push(Moving {
            kept: *kept,
            record: record.for_address(context),
        });
    }
    Ok(found)
}

/// Of zeros nothing is stored, so that they have no place of their own.
fn zeros(context: FrameContext, kept: &Kept, moved: &MovedFrame) -> Option<FrameRecord> {
    let length = kept.held().count().saturating_mul(Cells::SIZE);
    let digest = blake3::hash(&[]).as_bytes().first_chunk().copied()?;
    FrameRecord::from_parts(context, moved.offset, 0, length, ZEROS, false, digest).ok()
}

/// Whether a record is that of the frame that is looked for, as far as it says. A directory is not authentic, not even in an
/// encrypted repository: how the bytes are opened and decoded is told by the map, or by what was said when they were thinned.
fn is_meant(kept: &Kept, record: &FrameRecord) -> bool {
    let cells = Cells::whole(record.plain_length()).count() == kept.held().count();
    let live = &kept.live;
    let own = record.stored_length() == live.stored_length
        && record.digest().starts_with(&live.digest)
        && record.codec() == live.codec
        && record.is_sealed() == live.sealed;
    cells
        && match &kept.moved {
            None => own,
            Some(moved) => {
                let there = record.stored_length() == moved.length;
                there
                    && match &moved.form {
                        Form::Same => own,
                        // Its digest is told when it is opened.
                        Form::Wrapped => {
                            record.is_sealed() && !live.sealed && record.codec() == live.codec
                        }
                        Form::Thinned(thinned) => {
                            *record.digest() == thinned.digest
                                && record.codec() == thinned.codec
                                && record.is_sealed() == thinned.sealed
                        }
                    }
            }
        }
}

/// What is stored anew: the frame as it is, or what is live of it.
fn make(
    id: PackId,
    kept: &Kept,
    record: &FrameRecord,
    key: DataKey,
    stored: Bytes,
    encrypted: bool,
) -> Result<Ready> {
    let held = kept.held();
    let (pack, frame) = kept.address;
    let name = || format!("frame {frame} of pack {pack} in pack {id}");
    // Packs with such frames are left as they are.
    if encrypted && !record.is_sealed() && record.stored_length() > 0 {
        let reason = "is not encrypted, in a repository that is";
        return Err(Error::damaged(name(), reason));
    }
    if kept.travels_as_it_is() {
        return Ok(Ready::AsItIs(*record, stored));
    }
    let format = |error| Error::format(name(), error);
    let cipher = record.is_sealed().then(|| PackCipher::new(&key));
    let cipher = cipher.as_ref().map(|cipher| cipher as &dyn FrameCipher);
    let opened = record.unseal(&stored, cipher).map_err(format)?;
    let wrapped = kept.moved.is_some_and(|moved| moved.form == Form::Wrapped);
    if wrapped
        && !blake3::hash(opened.bytes())
            .as_bytes()
            .starts_with(&kept.live.digest)
    {
        return Err(not_held(id, kept));
    }
    let plain = opened.decode().map_err(format)?;
    let live = keep(&plain, held, kept.cells).ok_or_else(|| not_held(id, kept))?;
    let pack = PackRef { id: pack, key };
    let thinned = thin(&pack, frame, record.codec(), record.is_sealed(), &live)?;
    Ok(Ready::Thinned(kept.cells, thinned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_frames_are_kept_in_mind_however_many_a_pack_has() {
        let packs: Vec<PackId> = (0..=u16::MAX)
            .take(600)
            .map(|number| PackId(u128::from(number).to_le_bytes()))
            .collect();
        for (frames, together) in [
            (1, 256),
            (2000, 250),
            (200_000, 2),
            (300_000, 1),
            (5 << 20, 1),
        ] {
            let lengths: Vec<usize> = at_once(&packs, |_| frames).map(<[PackId]>::len).collect();
            assert_eq!(lengths.iter().sum::<usize>(), packs.len());
            let (last, others) = lengths.split_last().unwrap();
            assert!(
                others.iter().all(|length| *length == together),
                "{lengths:?}"
            );
            assert!(*last <= together);
        }
        assert_eq!(at_once(&[], |_| 1).count(), 0);
    }
}
