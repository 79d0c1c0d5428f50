//! Each rule by itself, on logs made to order.

use neon_pagestore::changes::{
    CannotSay, ClusterFacts, FileChange, FileFacts, Hints, Invalid, LogSource, NotUsable,
    SourceKind, UnloggedRelations, WholeReason, choose,
};
use neon_pg_layout::wal::ResourceManager;
use neon_pg_layout::{Fork, PgMajor};
use neon_snapshot_format::SnapshotPath;
use neon_testkit::forge::{Forge, PAGE, main_data};

use super::forged::{
    Memory, RELATION, ask, block, change, first, first_timeline, forge, nothing, of, of_bytes,
    parameters, span, span_of, told, words,
};
use super::validity::cluster;

fn pages(limit: u32, pages: &[(u32, u32)]) -> FileChange {
    FileChange::Pages {
        limit,
        pages: pages.iter().map(|(start, end)| *start..*end).collect(),
    }
}

#[test]
fn named_pages_are_read_and_no_others() {
    let set = told(|forge| {
        for number in [9, 3, 4, 131_079, 3, 70_000] {
            change(forge, RELATION, number);
        }
    });
    assert_eq!(
        of(&set, "base/5/16400", 80_000, 80_000),
        pages(80_000, &[(3, 5), (9, 10), (70_000, 70_001)])
    );
    assert_eq!(of(&set, "base/5/16400.1", 100, 100), pages(100, &[(7, 8)]));
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
    assert_eq!(
        of(&set, "base/5/16400", 10, 14),
        pages(10, &[(3, 4), (10, 14)])
    );
    assert_eq!(of(&set, "base/5/16400", 3, 4), pages(3, &[(3, 4)]));
    assert_eq!(of(&set, "base/5/16401", 10, 14), pages(10, &[(10, 14)]));
    assert_eq!(of(&set, "base/5/16401", 0, 0), FileChange::Unchanged);
    assert_eq!(of(&set, "base/5/16401", 0, 2), pages(0, &[(0, 2)]));
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
    assert_eq!(
        of(&set, "base/5/16400", 90, 80),
        pages(50, &[(2, 3), (50, 80)])
    );
    assert_eq!(of(&set, "base/5/16400", 90, 50), pages(50, &[(2, 3)]));
    assert_eq!(
        of(&set, "base/5/16400", 40, 45),
        pages(40, &[(2, 3), (40, 45)])
    );
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
    assert_eq!(of(&set, "base/5/16400", 9, 9), pages(9, &[(0, 1), (7, 8)]));
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
