//! Logs made to order, for what real servers write too rarely.

use neon_pg_layout::Slru;
use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::wal::{ResourceManager, Step, WalReader};
use neon_pg_layout::{Error, ErrorKind, Lsn, PgMajor};

use super::damage::{format, read};
use neon_testkit::forge::{Forge, PAGE, START, main_data};

fn forged(forge: &Forge) -> Result<Option<Lsn>, Error> {
    let reader = WalReader::first_after(format(PgMajor::V17), START);
    read(reader, &forge.bytes, usize::MAX, |_| {})
}

/// The changes, printed, of one record with this main data, or why there are none.
fn changes(
    major: PgMajor,
    rmgr: ResourceManager,
    info: u8,
    data: &[u8],
) -> Result<Vec<String>, Error> {
    let mut forge = Forge::new(major);
    forge.record(rmgr.0, info, &main_data(data));
    let mut found = Vec::new();
    let mut reader = WalReader::first_after(format(major), START);
    match reader.read(&mut forge.bytes.as_slice()).unwrap() {
        Step::Record(record) => {
            record.changes(|change| found.push(format!("{change:?}")))?;
        }
        other => panic!("{other:?}"),
    }
    Ok(found)
}

fn printed(changes: &[Change<'_>]) -> Vec<String> {
    changes.iter().map(|change| format!("{change:?}")).collect()
}

#[test]
fn pages_of_transaction_states_are_numbered_in_four_bytes_and_from_17_in_eight() {
    let narrow = 70_000_i32.to_le_bytes();
    let wide = 70_000_i64.to_le_bytes();
    for (rmgr, slru) in [
        (ResourceManager::CLOG, Slru::Transactions),
        (ResourceManager::COMMIT_TS, Slru::CommitTimestamps),
    ] {
        for (major, data) in [(PgMajor::V16, &narrow[..]), (PgMajor::V17, &wide[..])] {
            let zeroed = Change::SlruPages {
                slru,
                first: 70_000,
                last: 70_000,
            };
            assert_eq!(changes(major, rmgr, 0, data).unwrap(), printed(&[zeroed]));
            let cut = Change::SlruTruncated {
                slru,
                first_kept: 70_000,
            };
            let data = [data, &[0; 8]].concat();
            assert_eq!(changes(major, rmgr, 0x10, &data).unwrap(), printed(&[cut]));
        }
        let negative = changes(PgMajor::V13, rmgr, 0, &(-1_i32).to_le_bytes()).unwrap_err();
        assert_eq!(negative.kind(), ErrorKind::Malformed);
    }
}

#[test]
fn multixacts_are_cut_in_both_of_their_files() {
    let mut data = Vec::new();
    for number in [1_u32, 0, 2048 * 5, 0, 1636 * 9] {
        data.extend_from_slice(&number.to_le_bytes());
    }
    let expected = [
        Change::SlruTruncated {
            slru: Slru::MultiXactOffsets,
            first_kept: 5,
        },
        Change::SlruTruncated {
            slru: Slru::MultiXactMembers,
            first_kept: 9,
        },
    ];
    let found = changes(PgMajor::V15, ResourceManager::MULTIXACT, 0x30, &data);
    assert_eq!(found.unwrap(), printed(&expected));
    let found = changes(
        PgMajor::V17,
        ResourceManager::MULTIXACT,
        0x10,
        &3_i64.to_le_bytes(),
    );
    let zeroed = Change::SlruPages {
        slru: Slru::MultiXactMembers,
        first: 3,
        last: 3,
    };
    assert_eq!(found.unwrap(), printed(&[zeroed]));
}

#[test]
fn data_too_short_for_its_code_is_an_error_that_says_where() {
    for (rmgr, info) in [
        (ResourceManager::XLOG, 0x00),
        (ResourceManager::XLOG, 0x60),
        (ResourceManager::XLOG, 0x90),
        (ResourceManager::TRANSACTION, 0x80),
        (ResourceManager::TRANSACTION, 0x10),
        (ResourceManager::STORAGE, 0x11),
        (ResourceManager::STORAGE, 0x21),
        (ResourceManager::DATABASE, 0x01),
        (ResourceManager::DATABASE, 0x21),
        (ResourceManager::TABLESPACE, 0x00),
        (ResourceManager::RELMAP, 0x00),
        (ResourceManager::CLOG, 0x10),
        (ResourceManager::MULTIXACT, 0x20),
        (ResourceManager::COMMIT_TS, 0x00),
        (ResourceManager::HEAP, 0x00),
        (ResourceManager::HEAP, 0x10),
        (ResourceManager::HEAP, 0x20),
        (ResourceManager::HEAP, 0x60),
        (ResourceManager::HEAP2, 0x60),
    ] {
        let error = changes(PgMajor::V17, rmgr, info, &[0; 2]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert_eq!(error.lsn(), Some(Lsn(START.0 + 40)), "{error}");
        assert!(error.reason().contains(&rmgr.to_string()), "{error}");
    }
}

#[test]
fn a_replacement_of_another_record_than_the_one_cut_is_refused() {
    for (named_off, good) in [(0, true), (8, false)] {
        let mut forge = Forge::new(PgMajor::V17);
        let first = forge.record(21, 0, &main_data(&[1; 100]));
        let cut = forge.record(21, 0, &main_data(&[2; 20_000]));
        // Its third page is lost.
        let keep = usize::try_from(2 * PAGE).unwrap();
        forge.bytes.truncate(keep);
        forge.previous = first;
        forge.page(8, 0);
        let mut data = (cut.0 + named_off).to_le_bytes().to_vec();
        data.extend_from_slice(&0_i64.to_le_bytes());
        let replacement = forge.record(0, 0xD0, &main_data(&data));
        forge.record(21, 0, &main_data(&[3; 10]));
        match forged(&forge) {
            Ok(None) => assert!(good),
            Err(error) => {
                assert!(!good, "{error}");
                assert_eq!(error.kind(), ErrorKind::Inconsistent);
                assert_eq!(error.lsn(), Some(replacement));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_page_that_overwrites_must_begin_with_the_record_that_says_so() {
    let mut forge = Forge::new(PgMajor::V17);
    let first = forge.record(21, 0, &main_data(&[1; 100]));
    forge.record(21, 0, &main_data(&[2; 20_000]));
    forge.bytes.truncate(usize::try_from(PAGE).unwrap());
    forge.previous = first;
    forge.page(8, 0);
    let wrong = forge.record(21, 0, &main_data(&[3; 10]));
    let error = forged(&forge).unwrap_err();
    assert_eq!(
        (error.kind(), error.lsn()),
        (ErrorKind::Inconsistent, Some(wrong))
    );
}

#[test]
fn a_record_that_replaces_nothing_is_refused() {
    let mut forge = Forge::new(PgMajor::V17);
    forge.record(21, 0, &main_data(&[1; 100]));
    let wrong = forge.record(0, 0xD0, &main_data(&[0; 16]));
    let error = forged(&forge).unwrap_err();
    assert_eq!(
        (error.kind(), error.lsn()),
        (ErrorKind::Inconsistent, Some(wrong))
    );
}

#[test]
fn a_wrong_link_and_a_wrong_checksum_are_told_apart() {
    let mut forge = Forge::new(PgMajor::V17);
    forge.record(21, 0, &main_data(&[1; 100]));
    let second = forge.record(21, 0, &main_data(&[1; 100]));
    let mut other = Forge::new(PgMajor::V17);
    other.record(21, 0, &main_data(&[1; 100]));
    other.previous = Lsn(8);
    other.record(21, 0, &main_data(&[1; 100]));
    let error = forged(&other).unwrap_err();
    assert_eq!(
        (error.kind(), error.lsn()),
        (ErrorKind::Inconsistent, Some(second))
    );
    assert!(error.reason().contains("0/8"), "{error}");
    *forge.bytes.last_mut().unwrap() ^= 1;
    let error = forged(&forge).unwrap_err();
    assert_eq!(
        (error.kind(), error.lsn()),
        (ErrorKind::Checksum, Some(second))
    );
}

#[test]
fn a_length_that_lies_takes_no_memory_and_is_found_at_the_next_page() {
    let mut forge = Forge::new(PgMajor::V17);
    let lsn = forge.record(21, 0, &main_data(&[1; 100]));
    let at = usize::try_from(lsn.0 - START.0).unwrap();
    // As long as a record may be.
    forge.bytes[at..at + 4].copy_from_slice(&(1020_u32 << 20).to_le_bytes());
    forge.bytes.resize(usize::try_from(PAGE).unwrap(), 7);
    assert_eq!(forged(&forge), Ok(None));
    forge.page(1, 5000);
    let error = forged(&forge).unwrap_err();
    assert_eq!(
        (error.kind(), error.lsn()),
        (ErrorKind::Inconsistent, Some(Lsn(START.0 + PAGE)))
    );
    // Longer.
    forge.bytes[at..at + 4].copy_from_slice(&((1020_u32 << 20) + 1).to_le_bytes());
    let error = forged(&forge).unwrap_err();
    assert_eq!(
        (error.kind(), error.lsn()),
        (ErrorKind::Malformed, Some(lsn))
    );
}

#[test]
fn what_cannot_be_interpreted_is_said_to_be_unknown() {
    let unknown = |rmgr: u8, info: u8| {
        let mut forge = Forge::new(PgMajor::V17);
        forge.record(rmgr, info, &main_data(&[0; 40]));
        let mut found = None;
        let reader = WalReader::first_after(format(PgMajor::V17), START);
        read(reader, &forge.bytes, usize::MAX, |record| {
            record
                .changes(|change| {
                    if let Change::Unknown {
                        rmgr,
                        code,
                        special_update,
                    } = change
                    {
                        found = Some((rmgr, code, special_update));
                    }
                })
                .unwrap();
        })
        .unwrap();
        found
    };
    let custom = ResourceManager(200);
    assert_eq!(unknown(200, 0x31), Some((custom, 0x30, true)));
    assert_eq!(unknown(200, 0x30), None);
    // A generic record that says it does more than its blocks tell.
    assert_eq!(unknown(20, 0x01), Some((ResourceManager::GENERIC, 0, true)));
    // Codes that no server of this major writes.
    assert_eq!(
        unknown(2, 0x31),
        Some((ResourceManager::STORAGE, 0x30, true))
    );
    assert_eq!(
        unknown(4, 0x30),
        Some((ResourceManager::DATABASE, 0x30, false))
    );
    assert_eq!(unknown(0, 0xF0), Some((ResourceManager::XLOG, 0xF0, false)));
}

/// A block header: id, flags, length of data, what stands between, and the block number.
fn block(id: u8, flags: u8, data_len: u16, between: &[u8]) -> Vec<u8> {
    let mut bytes = vec![id, flags];
    bytes.extend_from_slice(&data_len.to_le_bytes());
    bytes.extend_from_slice(between);
    bytes.extend_from_slice(&7_u32.to_le_bytes());
    bytes
}

const RELATION: [u8; 12] = [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];

/// An image header, then a relation.
fn image(len: u16, hole_offset: u16, info: u8, hole_len: Option<u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&hole_offset.to_le_bytes());
    bytes.push(info);
    if let Some(len) = hole_len {
        bytes.extend_from_slice(&len.to_le_bytes());
    }
    bytes.extend_from_slice(&RELATION);
    bytes
}

/// What becomes of a record with these items and as much data behind them.
fn decoded(major: PgMajor, items: &[u8], data: usize) -> Result<usize, Error> {
    let mut forge = Forge::new(major);
    let body = [items, &vec![0; data]].concat();
    let lsn = forge.record(10, 0x50, &body);
    let mut reader = WalReader::first_after(format(major), START);
    match reader.read(&mut forge.bytes.as_slice()) {
        Ok(Step::Record(record)) => Ok(record.block_count()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            assert_eq!(error.lsn(), Some(lsn));
            Err(error)
        }
    }
}

#[test]
fn items_that_contradict_each_other_are_refused() {
    let plain = block(0, 0, 0, &RELATION);
    let again = |id| block(id, 0x80, 0, &[]);
    let good = [
        (plain.clone(), 0),
        ([plain.clone(), again(1)].concat(), 0),
        ([plain.clone(), again(32)].concat(), 0),
        ([plain.clone(), vec![253, 1, 0]].concat(), 0),
        ([plain.clone(), vec![252, 1, 0, 0, 0, 255, 4]].concat(), 4),
        (block(0, 0x20, 5, &RELATION), 5),
        (block(0, 0x10, 0, &image(8192, 0, 2, None)), 8192),
        (block(0, 0x10, 0, &image(8000, 24, 3, None)), 8000),
        (block(0, 0x10, 0, &image(100, 24, 7, Some(500))), 100),
        (block(0, 0x10, 0, &image(100, 0, 8 | 2, None)), 100),
    ];
    for (items, data) in good {
        let found = decoded(PgMajor::V15, &items, data);
        assert!(found.is_ok(), "{items:?}: {found:?}");
    }
    let bad = [
        ("ids descend", [plain.clone(), again(0)].concat(), 0),
        ("no relation before", again(0), 0),
        ("an id that does not exist", vec![33, 0, 0, 0], 0),
        ("an id that does not exist", vec![251, 0, 0, 0], 0),
        ("a fork that does not exist", block(0, 4, 0, &RELATION), 0),
        ("data without flag", block(0, 0, 5, &RELATION), 5),
        ("flag without data", block(0, 0x20, 0, &RELATION), 0),
        ("too much data", plain.clone(), 40),
        ("too little data", block(0, 0x20, 5, &RELATION), 4),
        (
            "main data longer than the record",
            vec![254, 255, 255, 255, 255],
            9,
        ),
        (
            "a hole at the start",
            block(0, 0x10, 0, &image(8000, 0, 3, None)),
            8000,
        ),
        (
            "a hole of nothing",
            block(0, 0x10, 0, &image(8192, 24, 3, None)),
            8192,
        ),
        (
            "a hole over the end",
            block(0, 0x10, 0, &image(100, 8000, 3, None)),
            100,
        ),
        (
            "an offset without hole",
            block(0, 0x10, 0, &image(8192, 24, 2, None)),
            8192,
        ),
        (
            "a gap without hole",
            block(0, 0x10, 0, &image(8000, 0, 2, None)),
            8000,
        ),
        (
            "larger than a page",
            block(0, 0x10, 0, &image(8200, 0, 2, None)),
            8200,
        ),
        (
            "compressed to a page",
            block(0, 0x10, 0, &image(8192, 0, 6, None)),
            8192,
        ),
        (
            "an unknown compression",
            block(0, 0x10, 0, &image(100, 0, 0x22, None)),
            100,
        ),
    ];
    for (why, items, data) in bad {
        let error = decoded(PgMajor::V15, &items, data).expect_err(why);
        assert_eq!(error.kind(), ErrorKind::Malformed, "{why}: {error}");
    }
}

#[test]
fn bits_and_ids_mean_what_the_major_says() {
    // Bit 2 is a compressed image up to 14, one to be restored from 15 on.
    let items = block(0, 0x10, 0, &image(100, 0, 2, None));
    assert!(decoded(PgMajor::V14, &items, 100).is_ok());
    assert!(decoded(PgMajor::V15, &items, 100).is_err());
    let toplevel = [252, 9, 0, 0, 0];
    let items = [&block(0, 0, 0, &RELATION)[..], &toplevel, &[255, 3]].concat();
    assert!(decoded(PgMajor::V13, &items, 3).is_err());
    assert!(decoded(PgMajor::V14, &items, 3).is_ok());
    // Resource managers of extensions.
    for (major, exists) in [(PgMajor::V14, false), (PgMajor::V15, true)] {
        let mut forge = Forge::new(major);
        forge.record(128, 0, &main_data(&[1]));
        let mut reader = WalReader::first_after(format(major), START);
        match reader.read(&mut forge.bytes.as_slice()) {
            Ok(_) => assert!(exists),
            Err(error) => assert_eq!((error.kind(), exists), (ErrorKind::Unsupported, false)),
        }
    }
}

#[test]
fn the_end_of_all_positions_is_an_error_and_no_panic() {
    let mut forge = Forge::new(PgMajor::V17);
    forge.record(21, 0, &main_data(&[1; 100_000]));
    let last = Lsn(u64::MAX).start_of(PAGE);
    // A page that says it is the last there can be, and what would come behind it.
    let mut log = forge.bytes[usize::try_from(PAGE).unwrap()..].to_vec();
    log[8..16].copy_from_slice(&last.0.to_le_bytes());
    for flags in [0, 1, 8] {
        log[2] = flags;
        for lsn in [Lsn::MAX, Lsn(u64::MAX - 7), Lsn(u64::MAX - 100), last] {
            for log in [&log[..], &[0; 9000]] {
                for piece in [1, 24, usize::MAX] {
                    for reader in [
                        WalReader::at_record(format(PgMajor::V17), lsn),
                        WalReader::first_after(format(PgMajor::V17), lsn),
                        WalReader::resume(format(PgMajor::V17), lsn, None),
                    ] {
                        let _outcome = read(reader, log, piece, |_| {});
                    }
                }
            }
        }
    }
}
