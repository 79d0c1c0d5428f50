//! What we say was changed is what the server's own WAL summarizer says (17 and later).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::{Fork, Lsn, PgMajor, RelFileLocator};
use neon_testkit::Cluster;

use super::walk::{Stop, changes};
use super::workload;

/// Of each fork: to what length it was cut at least, and the blocks changed and not cut since.
type Summary = BTreeMap<(RelFileLocator, Fork), (Option<u32>, BTreeSet<u32>)>;

fn cut(summary: &mut Summary, relation: RelFileLocator, fork: Fork, blocks: u32) {
    if fork == Fork::FreeSpaceMap {
        return;
    }
    let (limit, changed) = summary.entry((relation, fork)).or_default();
    if limit.is_none_or(|limit| blocks < limit) {
        *limit = Some(blocks);
        changed.retain(|&block| block < blocks);
    }
}

/// The rules of `walsummarizer.c`, over our changes.
fn ours(cluster: &Cluster, from: Lsn, to: Lsn) -> Summary {
    let mut summary = Summary::new();
    let whole = |database, tablespace| RelFileLocator {
        tablespace,
        database,
        number: 0,
    };
    let stop = changes(
        &cluster.data_dir().join("pg_wal"),
        1,
        Some(from),
        |lsn, change| {
            if lsn >= to {
                return;
            }
            match change {
                Change::Block(block) if block.fork != Fork::FreeSpaceMap => {
                    let entry = summary.entry((block.relation, block.fork)).or_default();
                    entry.1.insert(block.block);
                }
                Change::ForkCreated { relation, fork } => cut(&mut summary, relation, fork, 0),
                Change::Truncated {
                    relation,
                    fork,
                    blocks,
                } => cut(&mut summary, relation, fork, blocks),
                Change::RelationDropped { relation } => {
                    for fork in Fork::ALL {
                        cut(&mut summary, relation, fork, 0);
                    }
                }
                Change::DatabaseCopied {
                    database,
                    tablespace,
                    ..
                }
                | Change::DatabaseCreated {
                    database,
                    tablespace,
                }
                | Change::DatabaseDropped {
                    database,
                    tablespace,
                } => cut(&mut summary, whole(database, tablespace), Fork::Main, 0),
                _ => {}
            }
        },
    );
    assert!(!matches!(stop, Stop::Failed(_)), "{stop:?}");
    summary
}

fn theirs(cluster: &Cluster, from: Lsn, to: Lsn) -> Summary {
    let rows = cluster.psql(&format!(
        "select reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block
           from pg_wal_summary_contents(1, '{from}', '{to}')"
    ));
    let mut summary = Summary::new();
    for row in rows.lines() {
        let columns: Vec<&str> = row.split('|').collect();
        let number = |column: usize| columns[column].parse::<u32>().unwrap();
        let relation = RelFileLocator {
            tablespace: number(0),
            database: number(1),
            number: number(2),
        };
        let fork = Fork::from_number(number(3)).unwrap();
        let entry = summary.entry((relation, fork)).or_default();
        match columns[5] {
            "t" => entry.0 = Some(number(4)),
            _ => {
                entry.1.insert(number(4));
            }
        }
    }
    summary
}

fn agrees(major: PgMajor) {
    let cluster = Cluster::builder(major)
        .setting("summarize_wal", "on")
        .setting("wal_level", "logical")
        .setting("wal_keep_size", "2GB")
        .setting("max_wal_size", "2GB")
        .setting("autovacuum", "off")
        .setting("max_prepared_transactions", 5)
        .start();
    workload::run(&cluster);
    let to: Lsn = cluster
        .psql("select pg_current_wal_insert_lsn()")
        .parse()
        .unwrap();
    cluster.psql("checkpoint");
    // The summarizer follows in its own time.
    let deadline = Instant::now() + Duration::from_secs(120);
    let reached = || -> Lsn {
        let lsn = cluster.psql("select max(end_lsn) from pg_available_wal_summaries()");
        lsn.parse().unwrap_or_default()
    };
    while reached() < to {
        assert!(Instant::now() < deadline, "no summary up to {to}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let ranges = cluster.psql("select start_lsn, end_lsn from pg_available_wal_summaries()");
    let mut compared = 0;
    for range in ranges.lines() {
        let (from, to) = range.split_once('|').unwrap();
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let (ours, theirs) = (ours(&cluster, from, to), theirs(&cluster, from, to));
        for (key, theirs) in &theirs {
            assert_eq!(ours.get(key), Some(theirs), "{key:?} in {from} to {to}");
        }
        for (key, ours) in &ours {
            let nothing = ours.0.is_none() && ours.1.is_empty();
            assert!(
                nothing || theirs.contains_key(key),
                "{key:?} in {from} to {to}"
            );
        }
        compared += theirs.len();
    }
    assert!(compared > 300, "{compared} forks in {ranges}");
}

#[test]
fn changes_of_17_are_those_its_wal_summarizer_tells() {
    agrees(PgMajor::V17);
}

#[test]
fn changes_of_18_are_those_its_wal_summarizer_tells() {
    agrees(PgMajor::V18);
}
