//! Summaries: which of them are read, where they leave gaps, and what rows say.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use neon_pagestore::ErrorKind;
use neon_pagestore::changes::{
    CannotSay, ChangeSource, ClusterFacts, FileChange, Hints, SourceKind, Summaries, Summary,
    SummaryRow, SummarySource, WholeReason,
};
use neon_pg_layout::{BlockRefTable, Fork, Lsn, PgMajor, TimelineId, WalSummaryName};
use neon_testkit::forge::Forge;
use proptest::prelude::*;

use super::forged::{
    Memory, RELATION, ask, change, first_timeline, nothing, of, relation, span, span_of,
};
use super::validity::cluster;

/// Summaries that were made up, as files or as rows; opened ones are remembered.
#[derive(Default)]
struct Made {
    tables: BTreeMap<WalSummaryName, BlockRefTable>,
    as_rows: bool,
    opened: Vec<WalSummaryName>,
    damage: Option<fn(&mut Vec<u8>)>,
    refuse: bool,
}

fn name(timeline: u32, start: u64, end: u64) -> WalSummaryName {
    WalSummaryName {
        timeline: TimelineId::new(timeline).unwrap(),
        start: Lsn(start),
        end: Lsn(end),
    }
}

impl Made {
    fn of(names: &[(u32, u64, u64)]) -> Self {
        let tables = names
            .iter()
            .map(|(timeline, start, end)| (name(*timeline, *start, *end), BlockRefTable::new()))
            .collect();
        Self {
            tables,
            ..Self::default()
        }
    }

    fn rows(table: &BlockRefTable) -> Vec<SummaryRow> {
        let mut rows = Vec::new();
        for (relation, fork, refs) in table.iter() {
            let row = |block, is_limit| SummaryRow {
                relation,
                fork,
                block,
                is_limit,
            };
            rows.extend(refs.blocks().map(|block| row(block, false)));
            // Out of the server's order: the limit after its blocks.
            rows.extend(refs.limit_block().map(|block| row(block, true)));
        }
        rows
    }
}

impl Summaries for Made {
    fn names(&mut self) -> io::Result<Vec<WalSummaryName>> {
        if self.refuse {
            return Err(io::Error::other("no"));
        }
        Ok(self.tables.keys().rev().copied().collect())
    }

    fn open(&mut self, name: WalSummaryName) -> io::Result<Option<Summary<'_>>> {
        self.opened.push(name);
        let Some(table) = self.tables.get(&name) else {
            return Ok(None);
        };
        Ok(Some(if self.as_rows {
            Summary::Rows(Box::new(Self::rows(table).into_iter().map(Ok)))
        } else {
            let mut bytes = Vec::new();
            table
                .write_summary(|piece| {
                    bytes.extend_from_slice(piece);
                    Ok::<_, io::Error>(())
                })
                .unwrap();
            if let Some(damage) = self.damage {
                damage(&mut bytes);
            }
            Summary::File(Box::new(io::Cursor::new(bytes)))
        }))
    }
}

fn source<'a>(summaries: &'a mut Made, start: u64, end: u64) -> SummarySource<'a> {
    SummarySource::new(
        SourceKind::ServerSummaries,
        span(Lsn(start), Lsn(end)),
        summaries,
    )
}

const A: u64 = 0x100_0000;

#[test]
fn the_fewest_summaries_that_cover_the_span_are_read() {
    let mut made = Made::of(&[
        (1, A - 50, A),
        (1, A - 50, A + 10),
        (1, A, A + 20),
        (1, A + 5, A + 15),
        (1, A + 20, A + 30),
        (2, A, A + 100),
        (1, A + 30, A + 60),
        (1, A + 60, A + 90),
    ]);
    ask(&mut source(&mut made, A, A + 60)).unwrap();
    assert_eq!(
        made.opened,
        [
            name(1, A, A + 20),
            name(1, A + 20, A + 30),
            name(1, A + 30, A + 60)
        ]
    );
}

#[test]
fn a_gap_is_named() {
    let gap = |names: &[(u32, u64, u64)]| {
        let mut made = Made::of(names);
        ask(&mut source(&mut made, A, A + 40)).unwrap_err()
    };
    let expected = |from, to| CannotSay::SummaryGap {
        timeline: TimelineId::FIRST,
        from: Lsn(from),
        to: Lsn(to),
    };
    assert_eq!(gap(&[]), CannotSay::NoSummaries);
    assert_eq!(gap(&[(1, A, A + 10)]), expected(A + 10, A + 40));
    assert_eq!(
        gap(&[(1, A, A + 10), (1, A + 12, A + 40)]),
        expected(A + 10, A + 12)
    );
    assert_eq!(gap(&[(1, A + 1, A + 40)]), expected(A, A + 1));
    // Of another log: where the cluster has a redo position, a summary ends.
    assert_eq!(
        gap(&[(1, A, A + 10), (1, A + 10, A + 50)]),
        expected(A + 10, A + 40)
    );
    assert_eq!(gap(&[(2, A, A + 50)]), expected(A, A + 40));
}

#[test]
fn each_timeline_needs_summaries_of_its_own() {
    let history = first_timeline()
        .branch(TimelineId::new(3).unwrap(), Lsn(A + 20), "x")
        .unwrap();
    let span =
        |facts: &ClusterFacts| span_of((facts, facts), &history, (Lsn(A), Lsn(A + 40)), false);
    let mut made = Made::of(&[(1, A, A + 30), (3, A + 20, A + 40)]);
    let mut source = SummarySource::new(SourceKind::ServerSummaries, span(&cluster()), &mut made);
    ask(&mut source).unwrap();
    let mut made = Made::of(&[(1, A, A + 50)]);
    let mut source = SummarySource::new(SourceKind::ServerSummaries, span(&cluster()), &mut made);
    assert_eq!(
        ask(&mut source).unwrap_err(),
        CannotSay::SummaryGap {
            timeline: TimelineId::new(3).unwrap(),
            from: Lsn(A + 20),
            to: Lsn(A + 40),
        }
    );
}

proptest! {
    #[test]
    fn a_span_is_covered_when_every_position_is(
        names in prop::collection::vec((0..60_u64, 1..30_u64), 0..10)
    ) {
        let names: Vec<_> = names.into_iter().map(|(at, count)| (1, A + at, A + at + count)).collect();
        let (start, end) = (A + 15, A + 50);
        let within: Vec<_> = names.iter().copied().filter(|(_, _, to)| *to <= end).collect();
        let uncovered = (start..end).find(|at| !within.iter().any(|(_, from, to)| (from..to).contains(&at)));
        let mut made = Made::of(&names);
        let answer = ask(&mut source(&mut made, start, end));
        match (answer, uncovered) {
            (Ok(_), None) => {}
            (Err(CannotSay::SummaryGap { from, to, .. }), Some(at)) => {
                prop_assert_eq!(from, Lsn(at));
                prop_assert!(to > from && to <= Lsn(end));
                prop_assert!((from.0..to.0).all(|at| !within.iter().any(|(_, from, to)| (from..to).contains(&&at))));
            }
            (Err(CannotSay::NoSummaries), Some(_)) => prop_assert!(within.is_empty()),
            (answer, uncovered) => prop_assert!(false, "{answer:?} {uncovered:?}"),
        }
    }
}

/// A table in which blocks behind the limit were written after it.
fn cut_and_filled() -> BlockRefTable {
    let mut table = BlockRefTable::new();
    table.limit(RELATION, Fork::Main, 10);
    for block in [3, 12, 15] {
        table.mark(RELATION, Fork::Main, block);
    }
    table.limit(relation(0), Fork::Main, 0);
    table
}

#[test]
fn files_and_rows_say_the_same() {
    let mut later = BlockRefTable::new();
    later.limit(RELATION, Fork::Main, 14);
    later.mark(RELATION, Fork::Main, 14);
    let mut sets = Vec::new();
    for as_rows in [false, true] {
        let mut made = Made::of(&[(1, A, A + 10), (1, A + 10, A + 20)]);
        made.tables.insert(name(1, A, A + 10), cut_and_filled());
        made.tables.insert(name(1, A + 10, A + 20), later.clone());
        made.as_rows = as_rows;
        sets.push(ask(&mut source(&mut made, A, A + 20)).unwrap());
    }
    assert_eq!(sets[0].blocks(), sets[1].blocks());
    let refs = sets[0].blocks().unwrap().get(RELATION, Fork::Main).unwrap();
    assert_eq!(refs.limit_block(), Some(10));
    assert_eq!(refs.blocks().collect::<Vec<_>>(), [3, 12, 14, 15]);
    assert!(sets[0].blocks().unwrap().database_replaced(1663, 5));
}

#[test]
fn what_summaries_do_not_tell_is_read_in_whole() {
    let mut made = Made::of(&[(1, A, A + 10)]);
    let mut table = BlockRefTable::new();
    table.mark(RELATION, Fork::Main, 1);
    made.tables.insert(name(1, A, A + 10), table);
    let set = ask(&mut source(&mut made, A, A + 10)).unwrap();
    let whole = FileChange::Whole;
    for (path, reason) in [
        ("pg_xact/0000", WholeReason::States),
        ("pg_multixact/members/0000", WholeReason::States),
        ("pg_commit_ts/0000", WholeReason::States),
        ("global/pg_filenode.map", WholeReason::NotRelation),
        ("pg_twophase/0000000000000007", WholeReason::NotRelation),
        ("base/5/16400_fsm", WholeReason::FreeSpaceMap),
        ("base/5/16400_vm", WholeReason::VisibilityMap),
    ] {
        assert_eq!(of(&set, path, 2, 2), whole(reason), "{path}");
    }
    assert_eq!(of(&set, "base/5/16401_vm", 2, 2), FileChange::Unchanged);
    assert_eq!(set.hints(), Hints::Exact);
    // A switch of wal_log_hints and back leaves no trace in summaries.
    let facts = ClusterFacts {
        checksums: false,
        wal_log_hints: true,
        ..cluster()
    };
    let span = span_of(
        (&facts, &facts),
        &first_timeline(),
        (Lsn(A), Lsn(A + 10)),
        false,
    );
    let mut source = SummarySource::new(SourceKind::ServerSummaries, span, &mut made);
    assert_eq!(ask(&mut source).unwrap().hints(), Hints::MayBeOlder);
}

#[test]
fn a_damaged_summary_is_named() {
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes[20] ^= 1,
        |bytes| bytes.truncate(bytes.len() - 5),
        |bytes| bytes.push(0),
    ];
    for damage in damages {
        let mut made = Made::of(&[(1, A, A + 10)]);
        made.tables.insert(name(1, A, A + 10), cut_and_filled());
        made.damage = Some(damage);
        let reason = ask(&mut source(&mut made, A, A + 10)).unwrap_err();
        let CannotSay::SummaryDamaged { name: named, .. } = &reason else {
            panic!("{reason}");
        };
        assert_eq!(*named, name(1, A, A + 10).to_string());
    }
    let mut made = Made {
        refuse: true,
        ..Made::default()
    };
    let reason = ask(&mut source(&mut made, A, A + 10)).unwrap_err();
    assert_eq!(
        reason.to_string(),
        "the list of summaries cannot be read: no"
    );
}

/// A log with changes, and where the records begin that are of none.
fn log() -> (Forge, Vec<Lsn>) {
    let mut forge = Forge::new(PgMajor::V17);
    let mut stops = vec![nothing(&mut forge)];
    for number in 0..4 {
        for _ in 0..300 {
            change(&mut forge, RELATION, number);
        }
        stops.push(nothing(&mut forge));
    }
    nothing(&mut forge);
    (forge, stops)
}

#[test]
fn what_summaries_do_not_reach_is_read_from_the_log() {
    let (forge, stops) = log();
    let (start, end) = (stops[0], stops[4]);
    let mut table = BlockRefTable::new();
    table.mark(RELATION, Fork::Main, 100);
    let mut made = Made::of(&[(1, start.0, stops[2].0), (1, stops[3].0, end.0)]);
    made.tables.insert(name(1, start.0, stops[2].0), table);
    let mut log = Memory::of(&forge, 1);
    let mut source = source(&mut made, start.0, end.0).with_rest(&mut log);
    let set = ask(&mut source).unwrap();
    let refs = set.blocks().unwrap().get(RELATION, Fork::Main).unwrap();
    assert_eq!(refs.blocks().collect::<Vec<_>>(), [2, 3, 100]);
    drop(source);
    // The log is not there either.
    let mut none = Memory::default();
    let mut source = self::source(&mut made, start.0, end.0).with_rest(&mut none);
    assert_eq!(ask(&mut source).unwrap_err().code(), "log-missing");
}

#[test]
fn reading_summaries_can_be_stopped() {
    let (forge, stops) = log();
    let (start, end) = (stops[0], stops[4]);
    let mut made = Made::of(&[(1, start.0, stops[2].0)]);
    let mut log = Memory::of(&forge, 1);
    let mut asked = 0;
    let mut source = source(&mut made, start.0, end.0)
        .with_rest(&mut log)
        .watched(|_| {
            asked += 1;
            if asked % 2 == 1 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
    assert_eq!(source.changes().unwrap_err().kind(), ErrorKind::Cancelled);
    let set = ask(&mut source).unwrap();
    assert_eq!(set.named_pages(), Some(2));
}
