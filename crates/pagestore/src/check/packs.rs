//! Packs as wholes, and whether the frames that maps lead to are where they are said to be.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use neon_snapshot_format::pack::{FrameRecord, PackId};
use neon_storage::StorageExt;

use crate::check::{Check, Problem};
use crate::error::{Error, ErrorKind, Result};
use crate::keys;
use crate::map::{Cells, FrameRef};
use crate::pack_file::PackFile;
use crate::read::{Form, Part};

/// What a pack's directory says of a frame, in few bytes: there are eight million in a terabyte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    offset: u64,
    length: u32,
    /// The digest, folded.
    digest: u32,
}

impl Noted {
    fn new(offset: u64, length: u32, digest: &[u8; 16]) -> Self {
        let (words, _) = digest.as_chunks::<4>();
        let digest = words
            .iter()
            .fold(0, |folded, word| folded ^ u32::from_le_bytes(*word));
        Self {
            offset,
            length,
            digest,
        }
    }

    fn of(record: &FrameRecord) -> Self {
        Self::new(record.offset(), record.stored_length(), record.digest())
    }
}

impl Check<'_> {
    /// Learns where the frames of these packs are that are not in the storage themselves.
    pub(super) async fn moves_of(&mut self, needed: &BTreeSet<PackId>) -> Result<BTreeSet<PackId>> {
        let absent = needed.iter().filter(|pack| !self.packs.contains_key(pack));
        let repository = self.repository;
        let found: Vec<_> = stream::iter(absent.copied().collect::<Vec<_>>())
            .map(|pack| async move { Ok::<_, Error>((pack, repository.moves_of(pack).await?)) })
            .buffered(16)
            .try_collect()
            .await?;
        self.moves.extend(found);
        let pieces = self.moves.values().flatten();
        Ok(pieces.map(|piece| piece.new).collect())
    }

    /// The directories of all packs; with data, all their bytes.
    pub(super) async fn directories(&mut self) -> Result<()> {
        let packs: BTreeMap<PackId, u64> =
            self.packs.iter().map(|(id, size)| (*id, *size)).collect();
        for (id, size) in packs {
            self.directory(id, size).await?;
        }
        Ok(())
    }

    /// The directory of one pack. One that was collected meanwhile is passed over.
    async fn directory(&mut self, id: PackId, size: u64) -> Result<()> {
        let file = match self.repository.pack_file(id, size).await {
            Ok(file) => Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                self.note_error(about_pack(id, error), None)?;
                None
            }
        };
        self.checked.packs = self.checked.packs.saturating_add(1);
        if let (Some(file), true) = (&file, self.read_data)
            && let Err(error) = self.every_byte(file).await
        {
            match error.kind() {
                ErrorKind::NotFound => return Ok(()),
                _ => self.note_error(about_pack(id, error), None)?,
            }
        }
        let noted = file.map(|file| file.records.iter().map(Noted::of).collect());
        self.files.insert(id, noted);
        Ok(())
    }

    /// What the directory does not vouch for is the head; frames are checked one by one, so that each damaged one
    /// is named.
    async fn every_byte(&mut self, file: &PackFile) -> Result<()> {
        let head = self.repository.pack_range(file.id, 0..64).await?;
        let (covered, digest) = head.split_at_checked(48).unwrap_or_default();
        if blake3::hash(covered)
            .as_bytes()
            .first_chunk::<16>()
            .map(<[u8; 16]>::as_slice)
            != Some(digest)
        {
            return Err(Error::damaged(
                format!("pack {}", file.id),
                "its head does not match its digest",
            ));
        }
        // All at once, as few requests as may be; one by one only to tell which are damaged.
        match self
            .repository
            .each_stored(file.id, &file.records, |_, _| Ok(()))
            .await
        {
            Err(error) if error.kind() == ErrorKind::Damaged => {}
            whole => return whole,
        }
        for (number, record) in (0_u64..).zip(&file.records) {
            let one = std::slice::from_ref(record);
            match self
                .repository
                .each_stored(file.id, one, |_, _| Ok(()))
                .await
            {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Damaged) => {
                    let problem = (
                        ErrorKind::Damaged,
                        "its bytes are not those that were written".to_owned(),
                    );
                    self.note(
                        frame_name(file.id, number),
                        problem.1.clone(),
                        problem.0,
                        None,
                    );
                    self.bad.insert((file.id, number), (Cells::ALL, problem));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What is wrong with where cells of a frame are, by the map and by what is said about moves; notes nothing.
    pub(super) async fn frame(
        &mut self,
        frame: &FrameRef,
        cells: Cells,
    ) -> Result<Option<Problem>> {
        if let Some((bad, problem)) = self.bad.get(&frame.id())
            && !bad.common(cells).is_empty()
        {
            return Ok(Some(problem.clone()));
        }
        if self.good.cells(frame.id()).is_empty() {
            self.checked.frames = self.checked.frames.saturating_add(1);
        }
        let cells = self.good.insert_cells(frame, cells);
        if cells.is_empty() {
            return Ok(None);
        }
        let (mut looked, mut open) = self.look(frame, cells);
        if matches!(looked, Some((ErrorKind::NotFound, _))) {
            self.ask_again(frame.pack.id).await?;
            (looked, open) = self.look(frame, cells);
        }
        self.note_open(open);
        let problem = match looked {
            // What is nowhere may have been moved while we looked.
            Some((ErrorKind::NotFound, _)) if self.moved_meanwhile(frame, cells).await? => None,
            Some((ErrorKind::NotFound, problem)) => Some((ErrorKind::Damaged, problem)),
            found => found,
        };
        if let Some(problem) = &problem {
            let known = self.bad.entry(frame.id());
            let (bad, _) = known.or_insert_with(|| (cells, problem.clone()));
            *bad = bad.and(cells);
        }
        Ok(problem)
    }

    /// Notes packs in which a frame lies open though the repository is encrypted. They are as readable as others.
    fn note_open(&mut self, packs: Vec<PackId>) {
        if !self.repository.is_encrypted() {
            return;
        }
        for pack in packs {
            if self.open.insert(pack) {
                let problem = "holds what is not encrypted, in a repository that is";
                self.note(
                    format!("pack {pack}"),
                    problem.to_owned(),
                    ErrorKind::Inconsistent,
                    None,
                );
            }
        }
    }

    /// Asks once more for a pack that was not there when packs were listed: a snapshot may have been stored since, with it, or
    /// its frames have moved.
    async fn ask_again(&mut self, pack: PackId) -> Result<()> {
        if !self.asked_again.insert(pack) {
            return Ok(());
        }
        let key = keys::pack(pack)?;
        let head = self.repository.shared.storage.head_opt(&key).await;
        if let Some(head) = head.map_err(|error| Error::storage(key.as_str(), error))? {
            self.packs.insert(pack, head.meta.size);
            return self.directory(pack, head.meta.size).await;
        }
        let pieces = self.repository.moves_of(pack).await?;
        self.moves.insert(pack, pieces);
        Ok(())
    }

    async fn moved_meanwhile(&mut self, frame: &FrameRef, cells: Cells) -> Result<bool> {
        let pack = frame.pack.id;
        let pieces = self.moves.get(&pack).map(Vec::as_slice).unwrap_or_default();
        if !pieces.iter().any(|piece| piece.find(frame.frame).is_some()) {
            return Ok(false);
        }
        let part = Part {
            frame: *frame,
            cells,
        };
        match self.reader.part(&part).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_of_object() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What is wrong with where cells of a frame are, and in which of the packs that it looked at they lie unencrypted.
    fn look(&self, frame: &FrameRef, cells: Cells) -> (Option<Problem>, Vec<PackId>) {
        let mut open = Vec::new();
        let damaged = |problem: &str| Some((ErrorKind::Damaged, problem.to_owned()));
        if let Some(records) = self.files.get(&frame.pack.id) {
            let Some(records) = records else {
                return (damaged("its pack cannot be read"), open);
            };
            if !frame.sealed && frame.stored_length > 0 {
                open.push(frame.pack.id);
            }
            let noted = usize::try_from(frame.frame).ok();
            let noted = noted.and_then(|number| records.get(number));
            let expected = Noted::new(frame.offset, frame.stored_length, &frame.digest);
            return match noted == Some(&expected) {
                true => (None, open),
                false => (
                    damaged("its pack says something else of it than the map"),
                    open,
                ),
            };
        }
        let pieces = self.moves.get(&frame.pack.id).map(Vec::as_slice);
        let mut left = cells;
        for piece in pieces.unwrap_or_default() {
            let (Some(moved), Some(Some(records))) =
                (piece.find(frame.frame), self.files.get(&piece.new))
            else {
                continue;
            };
            let held = moved.form.cells(frame.whole());
            if held.common(left).is_empty() {
                continue;
            }
            let noted = at(records, moved.offset);
            let is = |digest| noted.contains(&Noted::new(moved.offset, moved.length, digest));
            let there = match &moved.form {
                // Of zeros nothing is stored, and of what was sealed once more the map does not know the digest.
                _ if moved.length == 0 => true,
                Form::Wrapped => noted.iter().any(|noted| noted.length == moved.length),
                Form::Same => is(&frame.digest),
                Form::Thinned(thinned) => thinned.is_of(frame.whole()) && is(&thinned.digest),
            };
            if !there {
                let problem = format!("is not as it is said to be in pack {}", piece.new);
                return (Some((ErrorKind::Damaged, problem)), open);
            }
            let sealed = match &moved.form {
                Form::Same => frame.sealed,
                Form::Wrapped => true,
                Form::Thinned(thinned) => thinned.sealed,
            };
            if !sealed && moved.length > 0 {
                open.push(piece.new);
            }
            left = left.without(held);
            if left.is_empty() {
                return (None, open);
            }
        }
        let problem = match left == cells {
            true => "is not in the storage",
            false => "is not in the storage with all that is needed of it",
        };
        (Some((ErrorKind::NotFound, problem.to_owned())), open)
    }
}

/// What begins at an offset, by records in order: a frame, and those of zeros before it, of which nothing is stored.
fn at(records: &[Noted], offset: u64) -> &[Noted] {
    let from = records.partition_point(|noted| noted.offset < offset);
    let to = records.partition_point(|noted| noted.offset <= offset);
    records.get(from..to).unwrap_or_default()
}

pub(super) fn frame_name(pack: PackId, frame: u64) -> String {
    format!("frame {frame} of pack {pack}")
}

fn about_pack(id: PackId, error: Error) -> Error {
    match error.subject().contains(&id.to_string()) {
        true => error,
        false => Error::new(error.kind(), format!("pack {id}"), "cannot be read").caused_by(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use neon_storage::Memory;

    use super::*;
    use crate::crypt::{DataKey, KeySource};
    use crate::map::PackRef;
    use crate::moves::{MovePiece, MovedFrame};
    use crate::read::Thinned;
    use crate::repository::{OpenOptions, Repository};

    #[test]
    fn of_all_that_begins_at_an_offset_none_is_overlooked() {
        let lengths = [9, 0, 0, 5, 0, 1];
        let ends = lengths.iter().scan(64_u64, |end, length| {
            let start = *end;
            *end += u64::from(*length);
            Some(Noted::new(start, *length, &[1; 16]))
        });
        let records: Vec<Noted> = ends.collect();
        let found = |offset| -> Vec<u32> {
            at(&records, offset)
                .iter()
                .map(|noted| noted.length)
                .collect()
        };
        assert_eq!(found(64), [9]);
        assert_eq!(found(73), [0, 0, 5]);
        assert_eq!(found(78), [0, 1]);
        assert!(found(74).is_empty() && found(79).is_empty() && found(0).is_empty());
    }

    /// A frame that maps call sealed, and whose cells lie unencrypted in one of two packs that it moved to.
    #[tokio::test]
    async fn what_lies_open_is_told_of_the_pack_that_it_was_found_in() {
        let key = KeySource::passphrase("one").with_cost(64, 1);
        let options = OpenOptions::new().key(key);
        let storage = Arc::new(Memory::new());
        let repository = Repository::init(storage, options).await.unwrap();
        let [own, sealed, open, gone] = [1, 2, 3, 4].map(|number| PackId([number; 16]));
        let frame = FrameRef {
            pack: PackRef {
                id: own,
                key: DataKey([0; 32]),
            },
            frame: 0,
            offset: 64,
            stored_length: 900,
            plain_length: 4 * Cells::SIZE,
            codec: 1,
            sealed: true,
            digest: [9; 16],
        };
        let thinned = |new: PackId, cells: u16, sealed: bool| MovePiece {
            key: keys::pack(new).unwrap(),
            old: own,
            new,
            stored: SystemTime::UNIX_EPOCH,
            frames: Arc::new([MovedFrame {
                frame: 0,
                offset: 64,
                length: 300,
                form: Form::Thinned(Thinned {
                    cells: Cells::from_bits(cells),
                    codec: 1,
                    sealed,
                    digest: [7; 16],
                }),
            }]),
        };
        let found = async |there: &[PackId], frame: FrameRef, cells: u16| {
            let mut check = Check::new(&repository, false);
            let pieces = [
                thinned(gone, 0b1111, false),
                thinned(sealed, 0b0011, true),
                thinned(open, 0b0110, false),
            ];
            check.moves.insert(own, pieces.to_vec());
            for pack in there {
                let (length, digest) = match *pack == own {
                    true => (900, [9; 16]),
                    false => (300, [7; 16]),
                };
                check.packs.insert(*pack, 10_000);
                let noted = vec![Noted::new(64, length, &digest)];
                check.files.insert(*pack, Some(noted));
            }
            let problem = check.frame(&frame, Cells::from_bits(cells)).await.unwrap();
            assert_eq!(problem, None);
            let findings = check.checked.findings.into_iter();
            findings.map(|finding| finding.object).collect::<Vec<_>>()
        };
        let named = |pack: PackId| vec![format!("pack {pack}")];
        let moved = [sealed, open];
        // Who needs nothing of it there hears nothing of it.
        assert_eq!(found(&moved, frame, 0b0001).await, Vec::<String>::new());
        assert_eq!(found(&moved, frame, 0b0111).await, named(open));
        // At home it is sealed, or is not.
        let all = [own, sealed, open];
        assert_eq!(found(&all, frame, 0b1111).await, Vec::<String>::new());
        let bare = FrameRef {
            sealed: false,
            ..frame
        };
        assert_eq!(found(&all, bare, 0b1111).await, named(own));
    }

    #[test]
    fn sixteen_bytes_a_frame_are_kept_of_what_a_directory_says() {
        assert_eq!(size_of::<Noted>(), 16);
        let noted = Noted::new(7, 9, &[1; 16]);
        for other in [
            Noted::new(8, 9, &[1; 16]),
            Noted::new(7, 8, &[1; 16]),
            Noted::new(
                7,
                9,
                &[[0; 15].as_slice(), &[1]].concat().try_into().unwrap(),
            ),
        ] {
            assert_ne!(noted, other);
        }
    }
}
