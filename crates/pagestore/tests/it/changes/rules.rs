//! Each rule by itself, on logs made to order.

use std::ops::{ControlFlow, Range};

use neon_pagestore::ErrorKind;
use neon_pagestore::changes::{
    CannotSay, ChangeSet, ChangeSource, ClusterFacts, FileChange, FileFacts, Hints, Invalid,
    LogSource, LogWalk, NotUsable, SourceKind, UnloggedRelations, WholeReason, choose, read_tail,
};
use neon_pg_layout::wal::ResourceManager;
use neon_pg_layout::{Fork, Lsn, PgMajor, TimelineId};
use neon_snapshot_format::SnapshotPath;
use neon_testkit::forge::{Forge, PAGE, SEGMENT, main_data};

use super::forged::{
    Memory, RELATION, ask, block, change, changes, first, first_timeline, nothing, of, of_bytes,
    parameters, relation, span, span_of, words,
};
use super::validity::cluster;

fn forge() -> Forge {
    Forge::new(PgMajor::V17)
}

fn pages(limit: u32, pages: &[Range<u32>]) -> FileChange {
    FileChange::Pages {
        limit,
        pages: pages.to_vec(),
    }
}

/// What this record says, alone.
fn told(make: impl FnOnce(&mut Forge)) -> ChangeSet {
    let mut forge = forge();
    nothing(&mut forge);
    make(&mut forge);
    let end = nothing(&mut forge);
    changes(&forge, end).unwrap()
}

#[test]
fn named_pages_are_read_and_no_others() {
    let set = told(|forge| {
        for number in [9, 3, 4, 131_072 + 7, 3, 70_000] {
            change(forge, RELATION, number);
        }
    });
    assert_eq!(
        of(&set, "base/5/16400", 80_000, 80_000),
        pages(80_000, &[3..5, 9..10, 70_000..70_001])
    );
    assert_eq!(of(&set, "base/5/16400.1", 100, 100), pages(100, &[7..8]));
    assert_eq!(of(&set, "base/5/16401", 100, 100), FileChange::Unchanged);
    assert_eq!(of(&set, "global/16400", 100, 100), FileChange::Unchanged);
    assert_eq!(set.named_pages(), Some(5));
}

#[test]
fn pages_behind_the_parents_end_are_read() {
    let set = told(|forge| {
        change(forge, RELATION, 3);
        change(forge, RELATION, 90);
    });
    assert_eq!(of(&set, "base/5/16400", 10, 14), pages(10, &[3..4, 10..14]));
    assert_eq!(of(&set, "base/5/16400", 3, 4), pages(3, &[3..4]));
    assert_eq!(of(&set, "base/5/16401", 10, 14), pages(10, &[10..14]));
    assert_eq!(of(&set, "base/5/16401", 0, 0), FileChange::Unchanged);
    assert_eq!(of(&set, "base/5/16401", 0, 2), pages(0, &[0..2]));
    // A file that is shorter though the log does not say so yet: that comes behind the end of the span.
    assert_eq!(of(&set, "base/5/16401", 10, 7), pages(7, &[]));
}

#[test]
fn nothing_is_taken_from_behind_a_cut() {
    let truncate = |forge: &mut Forge, blocks| {
        let data = words(&[blocks, 1663, 5, 16400, 1]);
        forge.record(ResourceManager::STORAGE.0, 0x20 | 1, &data);
    };
    let set = told(|forge| {
        change(forge, RELATION, 2);
        change(forge, RELATION, 60);
        truncate(forge, 50);
        change(forge, RELATION, 70);
        truncate(forge, 55);
    });
    assert_eq!(of(&set, "base/5/16400", 90, 80), pages(50, &[2..3, 50..80]));
    assert_eq!(of(&set, "base/5/16400", 90, 50), pages(50, &[2..3]));
    assert_eq!(of(&set, "base/5/16400", 40, 45), pages(40, &[2..3, 40..45]));
    assert_eq!(
        of(&set, "base/5/16400.1", 90, 80),
        FileChange::Whole(WholeReason::CutBefore)
    );
    let created = told(|forge| {
        forge.record(
            ResourceManager::STORAGE.0,
            0x10 | 1,
            &words(&[1663, 5, 16400, 0]),
        );
    });
    assert_eq!(
        of(&created, "base/5/16400", 5, 5),
        FileChange::Whole(WholeReason::CutBefore)
    );
    // The other forks were not.
    assert_eq!(
        of(&created, "base/5/16400_init", 1, 1),
        FileChange::Unchanged
    );
}

#[test]
fn maps_are_read_in_whole_visibility_maps_where_the_relation_changed() {
    let set = told(|forge| {
        change(forge, RELATION, 2);
    });
    let whole = FileChange::Whole;
    assert_eq!(
        of(&set, "base/5/16400_fsm", 3, 3),
        whole(WholeReason::FreeSpaceMap)
    );
    assert_eq!(
        of(&set, "base/5/16401_fsm", 3, 3),
        whole(WholeReason::FreeSpaceMap)
    );
    assert_eq!(
        of(&set, "base/5/16400_vm", 1, 1),
        whole(WholeReason::VisibilityMap)
    );
    assert_eq!(of(&set, "base/5/16401_vm", 1, 1), FileChange::Unchanged);
    // Cleared without a word about the map's page: a delete whose flags say that bits were cleared.
    let cleared = told(|forge| {
        let mut body = vec![0, 0, 0, 0];
        for word in [1663_u32, 5, 16400, 8] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        // The block headers end with the length of the data.
        body.extend([255, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        forge.record(ResourceManager::HEAP.0, 0x10, &body);
    });
    assert_eq!(
        of(&cleared, "base/5/16400_vm", 1, 1),
        whole(WholeReason::VisibilityMap)
    );
    let refs = cleared
        .blocks()
        .unwrap()
        .get(RELATION, Fork::VisibilityMap)
        .unwrap();
    assert_eq!(refs.blocks().collect::<Vec<_>>(), [0]);
}

#[test]
fn unlogged_and_temporary_relations_are_read_in_whole() {
    let set = told(|_| {});
    let mut unlogged = UnloggedRelations::new(PgMajor::V17);
    for path in [
        "base/5/16400",
        "base/5/16400_init",
        "base/5/16402_vm",
        "x_init",
        "base/5/no_init",
    ] {
        unlogged.note(&SnapshotPath::new(path).unwrap());
    }
    for (path, expected) in [
        ("base/5/16400", Some(WholeReason::Unlogged)),
        ("base/5/16400.3", Some(WholeReason::Unlogged)),
        ("base/5/16400_vm", Some(WholeReason::Unlogged)),
        ("base/5/16400_fsm", Some(WholeReason::FreeSpaceMap)),
        ("base/5/16400_init", None),
        ("base/6/16400", None),
        ("base/5/16402", None),
        ("base/5/t3_16402", Some(WholeReason::Temporary)),
    ] {
        let path = SnapshotPath::new(path).unwrap();
        let found = set.of(&FileFacts {
            path: &path,
            size: PAGE,
            parent_size: Some(PAGE),
            unlogged: unlogged.contains(&path),
        });
        let expected = expected.map_or(FileChange::Unchanged, FileChange::Whole);
        assert_eq!(found, expected, "{path}");
    }
}

#[test]
fn everything_of_a_database_that_was_replaced_is_read() {
    let replaced = FileChange::Whole(WholeReason::DatabaseReplaced);
    for (info, data) in [
        // Copied by files; created block by block; dropped.
        (0x00_u8, words(&[5, 1663, 1, 1663])),
        (0x10, words(&[5, 1663])),
        (0x20, words(&[5, 1, 1663])),
    ] {
        let set = told(|forge| {
            forge.record(ResourceManager::DATABASE.0, info | 1, &data);
        });
        for path in [
            "base/5/16400",
            "base/5/16400.1",
            "base/5/16400_vm",
            "base/5/16400_init",
        ] {
            assert_eq!(of(&set, path, 9, 9), replaced, "{path} after {info:x}");
        }
        assert_eq!(of(&set, "base/6/16400", 9, 9), FileChange::Unchanged);
        let elsewhere = "pg_tblspc/16500/PG_17_202406281/5/16400";
        assert_eq!(of(&set, elsewhere, 9, 9), FileChange::Unchanged);
    }
}

#[test]
fn files_that_are_no_relations_are_read_in_whole() {
    let set = told(|_| {});
    for path in [
        "PG_VERSION",
        "global/pg_control",
        "global/pg_filenode.map",
        "base/5/pg_filenode.map",
        "base/5/PG_VERSION",
        "pg_twophase/00000000000002F1",
        "postgresql.conf",
        "notes",
        "base/5/core",
        "pg_tblspc/16500/PG_16_202307071/5/16400",
        "pg_logical/replorigin_checkpoint",
        "pg_wal/00000002.history",
    ] {
        let found = of_bytes(&set, path, 100, 100);
        assert_eq!(found, FileChange::Whole(WholeReason::NotRelation), "{path}");
    }
    let not_text = SnapshotPath::new(b"base/5/\xFF".to_vec()).unwrap();
    let facts = FileFacts {
        path: &not_text,
        size: 0,
        parent_size: Some(0),
        unlogged: false,
    };
    assert_eq!(set.of(&facts), FileChange::Whole(WholeReason::NotRelation));
    let new = FileFacts {
        parent_size: None,
        ..facts
    };
    assert_eq!(set.of(&new), FileChange::Whole(WholeReason::New));
}

#[test]
fn files_that_do_not_end_with_a_page_are_read_in_whole() {
    let set = told(|_| {});
    for (then, now) in [(PAGE, PAGE + 1), (PAGE - 1, PAGE), (5, 5)] {
        let found = of_bytes(&set, "base/5/16400", then, now);
        assert_eq!(found, FileChange::Whole(WholeReason::PartOfPage));
    }
    let found = of_bytes(&set, "base/5/16400", PAGE, PAGE << 32);
    assert_eq!(found, FileChange::Whole(WholeReason::TooLarge));
    let found = of(&set, "base/5/16400.40000", 1, 1);
    assert_eq!(found, FileChange::Whole(WholeReason::TooLarge));
}

#[test]
fn logs_of_transaction_states_are_read_where_the_log_names_them() {
    let states = FileChange::Whole(WholeReason::States);
    // A page of pg_xact that was made: 40 is in the second file.
    let set = told(|forge| {
        let data = main_data(&40_u64.to_le_bytes());
        forge.record(ResourceManager::CLOG.0, 0, &data);
    });
    assert_eq!(of(&set, "pg_xact/0001", 32, 32), states);
    assert_eq!(of(&set, "pg_xact/0000", 32, 32), FileChange::Unchanged);
    assert_eq!(of(&set, "pg_xact/0000", 31, 32), states);
    assert_eq!(
        of(&set, "pg_multixact/offsets/0001", 32, 32),
        FileChange::Unchanged
    );
    // Nothing is logged of these.
    assert_eq!(of(&set, "pg_subtrans/0000", 32, 32), states);
    // A transaction that ended: 40000 is on the second page.
    let set = told(|forge| {
        let mut data = 0_i64.to_le_bytes().to_vec();
        data.extend([0; 4]);
        forge.record(ResourceManager::TRANSACTION.0, 0, &main_data(&data));
    });
    assert_eq!(of(&set, "pg_xact/0000", 32, 32), states);
    assert_eq!(of(&set, "pg_commit_ts/0000", 32, 32), states);
    assert_eq!(of(&set, "pg_commit_ts/0001", 32, 32), FileChange::Unchanged);
}

#[test]
fn commit_times_are_read_in_whole_when_they_were_switched() {
    let states = FileChange::Whole(WholeReason::States);
    let set = told(|forge| {
        parameters(forge, 1, false, true);
        parameters(forge, 1, false, false);
    });
    assert_eq!(of(&set, "pg_commit_ts/0001", 32, 32), states);
    assert_eq!(of(&set, "pg_xact/0001", 32, 32), FileChange::Unchanged);
    let set = told(|forge| {
        parameters(forge, 1, true, false);
    });
    assert_eq!(of(&set, "pg_commit_ts/0001", 32, 32), FileChange::Unchanged);
}

#[test]
fn the_metapage_of_an_index_with_an_unlogged_cache_is_read() {
    let set = told(|forge| {
        block(forge, ResourceManager::SPGIST, RELATION, Fork::Main, 7);
    });
    assert_eq!(of(&set, "base/5/16400", 9, 9), pages(9, &[0..1, 7..8]));
}

#[test]
fn a_time_without_full_logging_is_noticed() {
    let mut minimal = forge();
    nothing(&mut minimal);
    let at = parameters(&mut minimal, 0, false, false);
    parameters(&mut minimal, 1, false, false);
    let end = nothing(&mut minimal);
    assert_eq!(
        changes(&minimal, end).unwrap_err(),
        CannotSay::WalLevelMinimal { at }
    );
    // From 17 on checkpoints tell as well.
    let mut minimal = forge();
    nothing(&mut minimal);
    let at = minimal.record(ResourceManager::XLOG.0, 0xE0, &words(&[0]));
    let end = nothing(&mut minimal);
    assert_eq!(
        changes(&minimal, end).unwrap_err(),
        CannotSay::WalLevelMinimal { at }
    );
}

#[test]
fn a_switch_of_hint_logging_is_noticed_unless_checksums_log_them_anyway() {
    let mut forge = forge();
    nothing(&mut forge);
    let at = parameters(&mut forge, 1, true, false);
    parameters(&mut forge, 1, false, false);
    let end = nothing(&mut forge);
    let plain = ClusterFacts {
        checksums: false,
        ..cluster()
    };
    let span = span_of((&plain, &plain), &first_timeline(), (first(), end), false);
    let asked = ask(&mut LogSource::new(span, &mut Memory::of(&forge, 1)));
    assert_eq!(asked.unwrap_err(), CannotSay::HintLogging { at });
    assert_eq!(changes(&forge, end).unwrap().hints(), Hints::Exact);
}

#[test]
fn hints_may_be_older_where_they_are_not_logged() {
    let mut forge = forge();
    nothing(&mut forge);
    let end = nothing(&mut forge);
    for (wal_log_hints, expected) in [(false, Hints::MayBeOlder), (true, Hints::Exact)] {
        let facts = ClusterFacts {
            checksums: false,
            wal_log_hints,
            ..cluster()
        };
        let span = span_of((&facts, &facts), &first_timeline(), (first(), end), false);
        let set = ask(&mut LogSource::new(span, &mut Memory::of(&forge, 1))).unwrap();
        assert_eq!(set.hints(), expected);
    }
}

#[test]
fn a_record_that_may_have_changed_anything_is_noticed() {
    for (rmgr, info) in [
        (ResourceManager::GENERIC, 0x01),
        (ResourceManager::STORAGE, 0x71),
        (ResourceManager(200), 0x01),
    ] {
        let mut forge = forge();
        nothing(&mut forge);
        let at = forge.record(rmgr.0, info, &words(&[1, 2, 3]));
        let end = nothing(&mut forge);
        let reason = changes(&forge, end).unwrap_err();
        assert!(
            matches!(&reason, CannotSay::UnknownRecord { at: found, .. } if *found == at),
            "{reason}"
        );
        assert_eq!(reason.code(), "unknown-record");
    }
    // An extension that names its blocks is believed.
    let set = told(|forge| {
        block(forge, ResourceManager(200), RELATION, Fork::Main, 1);
    });
    assert_eq!(set.named_pages(), Some(1));
}

/// More than two segments of changes, ending with a record of no consequence.
fn long_log() -> (Forge, Lsn) {
    let mut forge = forge();
    nothing(&mut forge);
    for number in 0..400 {
        change(&mut forge, relation(16400 + number % 7), number);
        forge.record(
            ResourceManager::LOGICAL_MESSAGE.0,
            0,
            &main_data(&[7; 6000]),
        );
    }
    let end = nothing(&mut forge);
    nothing(&mut forge);
    assert!(forge.bytes.len() as u64 > 2 * SEGMENT);
    (forge, end)
}

#[test]
fn a_missing_segment_is_named_with_the_position() {
    let (forge, end) = long_log();
    let mut log = Memory::of(&forge, 1);
    let second = *log.0.keys().nth(1).unwrap();
    let removed = log.0.remove(&second).unwrap();
    let span = span(first(), end);
    let mut source = LogSource::new(span, &mut log);
    let reason = ask(&mut source).unwrap_err();
    let CannotSay::LogMissing { segment, at } = &reason else {
        panic!("{reason}");
    };
    assert_eq!(*segment, second);
    assert!(
        *at <= Lsn(2 * SEGMENT) && at.0 > 2 * SEGMENT - 2 * PAGE,
        "{at}"
    );
    assert_eq!(removed.len() as u64, SEGMENT);
}

#[test]
fn a_log_that_ends_early_is_told_and_followed_when_it_has_grown() {
    let (forge, end) = long_log();
    let whole = changes(&forge, end).unwrap();
    for cut in [
        PAGE as usize + 100,
        SEGMENT as usize,
        2 * SEGMENT as usize - 1,
    ] {
        let mut short = forge.clone();
        short.bytes.truncate(cut);
        // What is set aside for the log is zeros.
        short
            .bytes
            .resize(cut.next_multiple_of(SEGMENT as usize), 0);
        let mut walk = LogWalk::new(&cluster(), &first_timeline(), first()).unwrap();
        let go = &mut |_| ControlFlow::Continue(());
        let reason = walk
            .advance(end, &mut Memory::of(&short, 1), go)
            .unwrap_err();
        assert!(
            matches!(
                reason,
                CannotSay::LogEnds { .. }
                    | CannotSay::LogMissing { .. }
                    | CannotSay::LogDamaged { .. }
            ),
            "{reason}"
        );
        assert!(walk.position() > first());
        let mut log = Memory::of(&forge, 1);
        let mut source = LogSource::new(span(first(), end), &mut log)
            .going_on(walk)
            .unwrap();
        assert_eq!(ask(&mut source).unwrap().blocks(), whole.blocks());
    }
}

#[test]
fn a_damaged_log_is_told_with_the_position() {
    let (mut forge, end) = long_log();
    let at = forge.bytes.len() / 2;
    forge.bytes[at] ^= 1;
    let reason = changes(&forge, end).unwrap_err();
    let CannotSay::LogDamaged { at: found, .. } = &reason else {
        panic!("{reason}");
    };
    let flipped = neon_testkit::forge::START.0 + at as u64;
    assert!(
        found.0 <= flipped && flipped - found.0 < 2 * PAGE,
        "{found}"
    );
}

#[test]
fn a_log_must_begin_and_end_with_records_where_checkpoints_said() {
    let mut forge = forge();
    nothing(&mut forge);
    let inside = Lsn(nothing(&mut forge).0 + 8);
    let end = nothing(&mut forge);
    nothing(&mut forge);
    assert_eq!(
        changes(&forge, inside).unwrap_err(),
        CannotSay::NoRecordAt { at: inside }
    );
    let bad_start = span(inside, end);
    assert!(ask(&mut LogSource::new(bad_start, &mut Memory::of(&forge, 1))).is_err());
    // A cold snapshot ends in a shutdown checkpoint, not in any record.
    let clean = span_of(
        (&cluster(), &cluster()),
        &first_timeline(),
        (first(), end),
        true,
    );
    assert_eq!(
        ask(&mut LogSource::new(clean, &mut Memory::of(&forge, 1))).unwrap_err(),
        CannotSay::NoShutdownAt { at: end }
    );
}

#[test]
fn a_walk_that_was_stopped_goes_on_where_it_was() {
    let (forge, end) = long_log();
    let whole = changes(&forge, end).unwrap();
    let mut log = Memory::of(&forge, 1);
    let mut pieces = 0;
    let mut source = LogSource::new(span(first(), end), &mut log).watched(|_| {
        pieces += 1;
        if pieces % 2 == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let mut stops = 0;
    let set = loop {
        match source.changes() {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                stops += 1;
            }
            Ok(neon_pagestore::changes::Answer::Exact(set)) => break set,
            Ok(other) => panic!("{other:?}"),
        }
    };
    assert!(stops > 2, "{stops}");
    assert_eq!(set.blocks(), whole.blocks());
}

#[test]
fn a_log_is_followed_over_timelines() {
    // The second timeline leaves the first in the middle of its second segment; the first went on.
    let mut old = forge();
    nothing(&mut old);
    while old.bytes.len() as u64 <= SEGMENT + PAGE {
        change(&mut old, RELATION, 1);
    }
    let switch = old.position().align_up(8).unwrap();
    let mut new = old.clone();
    new.timeline = 2;
    for _ in 0..2000 {
        change(&mut old, RELATION, 66);
        change(&mut new, RELATION, 2);
    }
    let end = nothing(&mut new);
    nothing(&mut new);
    let history = first_timeline()
        .branch(TimelineId::new(2).unwrap(), switch, "test")
        .unwrap();
    let span = span_of((&cluster(), &cluster()), &history, (first(), end), false);
    assert_eq!(span.path().len(), 2);
    let mut log = Memory::of(&old, 1);
    let keys: Vec<_> = log.0.keys().copied().collect();
    log.0.extend(Memory::of(&new, 2).0.into_iter().skip(1));
    let blocks = |set: &ChangeSet| -> Vec<u32> {
        set.blocks()
            .unwrap()
            .get(RELATION, Fork::Main)
            .unwrap()
            .blocks()
            .collect()
    };
    let set = ask(&mut LogSource::new(span.clone(), &mut log)).unwrap();
    assert_eq!(blocks(&set), [1, 2]);
    // The old timeline's copy of the shared segment may be gone; the first segment may not.
    log.0.remove(&keys[1]);
    let set = ask(&mut LogSource::new(span.clone(), &mut log)).unwrap();
    assert_eq!(blocks(&set), [1, 2]);
    // The new one's may not: what the old one has from the switch on is another history.
    let mut only_old = Memory::of(&old, 1);
    let reason = ask(&mut LogSource::new(span, &mut only_old)).unwrap_err();
    assert!(
        matches!(reason, CannotSay::LogMissing { segment, .. } if segment.timeline().get() == 2),
        "{reason}"
    );
    // The end of a log is the same bytes on either.
    let size = cluster().wal_segment_size;
    let of_old = read_tail(size, &first_timeline(), switch, &mut Memory::of(&old, 1)).unwrap();
    let of_new = read_tail(size, &history, switch, &mut Memory::of(&new, 2)).unwrap();
    assert_eq!(of_old, of_new);
    let later = Lsn(switch.0 + 5000);
    let other = read_tail(size, &first_timeline(), later, &mut Memory::of(&old, 1)).unwrap();
    assert_ne!(
        other,
        read_tail(size, &history, later, &mut Memory::of(&new, 2)).unwrap()
    );
    assert!(read_tail(size, &history, end, &mut Memory::default()).is_err());
}

#[test]
fn an_empty_span_tells_of_nothing() {
    let mut forge = forge();
    let only = nothing(&mut forge);
    let set = changes(&forge, only).unwrap();
    assert_eq!(set.named_pages(), Some(0));
    assert_eq!(of(&set, "base/5/16400", 5, 5), FileChange::Unchanged);
}

#[test]
fn the_first_source_that_can_answer_is_taken_and_the_better_ones_are_remembered() {
    let mut forge = forge();
    nothing(&mut forge);
    let end = nothing(&mut forge);
    let mut invalid = NotUsable::new(SourceKind::ArchiveSummaries, Invalid::WalLevelMinimal);
    let mut none = NotUsable::new(SourceKind::ServerSummaries, CannotSay::NoSummaries);
    let mut log = Memory::of(&forge, 1);
    let mut log = LogSource::new(span(first(), end), &mut log);
    let chosen = choose(&mut [&mut invalid, &mut none, &mut log]).unwrap();
    assert_eq!(chosen.record.used, Some(SourceKind::Log));
    let json = serde_json::to_string(&chosen.record).unwrap();
    assert_eq!(
        json,
        r#"{"used":"log","passed_over":[{"source":"archive-summaries","code":"wal-level-minimal","reason":"wal_level is or was minimal, so that changes are missing from the log"},{"source":"server-summaries","code":"no-summaries","reason":"there are no summaries of the log"}]}"#
    );
    assert_eq!(
        serde_json::from_str::<neon_pagestore::changes::ChangeRecord>(&json).unwrap(),
        chosen.record
    );
    // Without any that can, everything is read.
    let chosen = choose(&mut [&mut invalid]).unwrap();
    assert_eq!(chosen.record.used, None);
    assert_eq!(
        of(&chosen.set, "base/5/1", 1, 1),
        FileChange::Whole(WholeReason::NotKnown)
    );
}
