//! Frames that move between packs, and records that are written down elsewhere.

use std::sync::Arc;

use neon_snapshot_format::ErrorKind;
use neon_snapshot_format::pack::{
    Codec, EncodedFrame, FRAME_SIZE, FrameCipher, FrameContext, FrameRecord, Opening, PackId,
    PackIndex, PackOptions, PackWriter, Step,
};

use crate::neon_files::Toy;

const OLD: PackId = PackId(*b"the old pack's 1");
const NEW: PackId = PackId(*b"the new pack's 2");

fn cipher(key: u8) -> Option<Arc<dyn FrameCipher>> {
    Some(Arc::new(Toy([key; 32])))
}

fn writer(id: PackId, cipher: Option<Arc<dyn FrameCipher>>) -> PackWriter<Vec<u8>> {
    let options = PackOptions {
        cipher,
        codec: Codec::Zstd(1),
        ..PackOptions::new(id)
    };
    PackWriter::new(Vec::new(), options).unwrap()
}

/// Zeros, bytes that compress, bytes that do not.
fn contents() -> [Vec<u8>; 4] {
    let noise = blake3::Hasher::new().finalize_xof();
    let mut random = vec![0; 5000];
    { noise }.fill(&mut random);
    let text = b"sixteen pages of ".repeat(FRAME_SIZE / 17);
    [vec![0; FRAME_SIZE], text, random, vec![9; 8192]]
}

fn index(pack: &[u8]) -> PackIndex {
    let mut opening = Opening::new(pack.len() as u64).unwrap();
    let at = |offset: u64| usize::try_from(offset).unwrap();
    loop {
        let range = opening.range();
        let bytes = &pack[at(range.start)..at(range.end)];
        if let Step::Done(index) = opening.feed(bytes).unwrap() {
            return index;
        }
    }
}

fn listed(pack: &[u8], frame: u64) -> FrameRecord {
    let index = index(pack);
    let which = index.table_of(frame).unwrap();
    let table = index
        .table(&which, stored_in(pack, which.range.clone()))
        .unwrap();
    *table.frame(frame).unwrap()
}

fn stored_in(pack: &[u8], range: std::ops::Range<u64>) -> &[u8] {
    &pack[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

fn old_pack(cipher: Option<Arc<dyn FrameCipher>>) -> (Vec<u8>, Vec<FrameRecord>) {
    let mut old = writer(OLD, cipher);
    let mut records = Vec::new();
    for content in contents() {
        let frame = EncodedFrame::new(&content, Codec::Zstd(1)).unwrap();
        records.push(old.append_encoded(&frame).unwrap());
    }
    (old.finish(0, None).unwrap(), records)
}

#[test]
fn a_record_is_known_when_its_frame_was_appended_and_can_be_written_down() {
    for cipher in [None, cipher(1)] {
        let (pack, records) = old_pack(cipher.clone());
        for ((number, record), content) in (0..).zip(&records).zip(contents()) {
            assert_eq!(*record, listed(&pack, number));
            let address = FrameContext {
                pack: OLD,
                frame: number,
            };
            assert_eq!(record.address(), address);
            assert_eq!(record.range().start, record.offset());
            let is_zero = content[0] == 0;
            assert_eq!(record.stored_length() == 0, is_zero);
            assert_eq!(record.is_sealed(), cipher.is_some() && !is_zero);
            let again = FrameRecord::from_parts(
                record.address(),
                record.offset(),
                record.stored_length(),
                record.plain_length(),
                record.codec(),
                record.is_sealed(),
                *record.digest(),
            );
            assert_eq!(again.unwrap(), *record);
            let stored = stored_in(&pack, record.range());
            assert_eq!(record.decode(stored, cipher.as_deref()).unwrap(), content);
        }
    }
}

#[test]
fn frames_move_verbatim_without_a_key_and_keep_their_address() {
    let (old, records) = old_pack(cipher(1));
    let mut new = writer(NEW, None);
    new.append(b"another frame, so that numbers differ")
        .unwrap();
    let mut moved = Vec::new();
    for record in records.iter().rev() {
        let stored = stored_in(&old, record.range());
        let number = new.next_frame();
        moved.push((number, new.append_stored(record, stored).unwrap()));
        if !stored.is_empty() {
            let mut wrong = stored.to_vec();
            wrong[0] ^= 1;
            let error = new.append_stored(record, &wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Damaged);
        }
    }
    let pack = new.finish(0, None).unwrap();
    for ((number, record), (old, content)) in moved.iter().zip(records.iter().zip(contents()).rev())
    {
        assert_eq!(record.address(), old.address());
        assert_eq!(record.digest(), old.digest());
        // The directory of the new pack knows the place, not the address.
        let listed = listed(&pack, *number);
        assert_eq!(listed.address().pack, NEW);
        assert_eq!(listed.for_address(old.address()), *record);
        let stored = stored_in(&pack, record.range());
        assert_eq!(
            record.decode(stored, cipher(1).as_deref()).unwrap(),
            content
        );
        if record.is_sealed() {
            let error = listed.decode(stored, cipher(1).as_deref()).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Damaged,
                "sealed for its old address"
            );
        }
    }
}

#[test]
fn a_frame_is_sealed_anew_for_its_old_address_without_being_compressed_again() {
    for from in [None, cipher(1)] {
        let (old, records) = old_pack(from.clone());
        let mut new = writer(NEW, cipher(2));
        let mut sealed = Vec::new();
        for record in &records {
            let stored = stored_in(&old, record.range());
            let frame = record.unseal(stored, from.as_deref()).unwrap().into_owned();
            assert_eq!(frame.plain_length(), record.plain_length());
            assert_eq!(frame.bytes().is_empty(), record.stored_length() == 0);
            let sealed_again = new.append_encoded_as(record.address(), &frame).unwrap();
            assert_eq!(sealed_again.codec(), record.codec());
            sealed.push(sealed_again);
        }
        let pack = new.finish(0, None).unwrap();
        for (number, (record, content)) in (0..).zip(sealed.iter().zip(contents())) {
            let address = FrameContext {
                pack: OLD,
                frame: number,
            };
            let listed = listed(&pack, number).for_address(address);
            assert_eq!(listed, *record);
            let stored = stored_in(&pack, record.range());
            assert_eq!(
                record.decode(stored, cipher(2).as_deref()).unwrap(),
                content
            );
            if record.is_sealed() {
                assert!(record.decode(stored, cipher(1).as_deref()).is_err());
                let error = record.decode(stored, None).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
            }
        }
    }
}

#[test]
fn a_record_that_no_writer_makes_is_refused() {
    let address = FrameContext {
        pack: OLD,
        frame: 0,
    };
    let full = 128 << 10;
    let made = |offset, stored, plain, codec, sealed| {
        FrameRecord::from_parts(address, offset, stored, plain, codec, sealed, [0; 16])
    };
    assert!(made(64, full + 64, full, 2, true).is_ok());
    assert!(made(64, 0, full, 3, false).is_ok());
    for refused in [
        made(64, 100, 0, 0, false),
        made(64, 100, full + 1, 0, false),
        made(64, full + 65, full, 2, true),
        made(64, 0, full, 2, false),
        made(64, 1, full, 3, false),
        made(64, 0, full, 3, true),
        made(64, 100, full, 4, false),
        made(u64::MAX - 99, 100, full, 2, false),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Malformed);
    }
}
