//! WAL summaries of 17 and 18, judged by the server's SQL functions and (18) by `pg_walsummary`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use neon_pg_layout::{BlockRefTable, DataFile, Error, Fork, PgMajor, WalSummaryName};
use neon_testkit::{Cluster, Installation};

use super::{furnished, run};

/// A block or limit block: tablespace, database, file number, fork, number, whether it is a limit.
type Row = (u32, u32, u32, u32, u64, bool);

fn rows(table: &BlockRefTable) -> BTreeSet<Row> {
    let mut rows = BTreeSet::new();
    for (locator, fork, refs) in table.iter() {
        let row = |block: u32, limit| {
            let fork = u32::from(fork.number());
            (
                locator.tablespace,
                locator.database,
                locator.number,
                fork,
                block.into(),
                limit,
            )
        };
        rows.extend(refs.limit_block().map(|block| row(block, true)));
        rows.extend(refs.blocks().map(|block| row(block, false)));
    }
    rows
}

/// Makes a cluster with some summaries, and returns their names, oldest first.
fn summarised(major: PgMajor) -> (Cluster, Vec<WalSummaryName>) {
    let cluster = furnished(Cluster::builder(major).setting("summarize_wal", "on"));
    // A chunk so full that it is stored as a bitmap, and a second segment's worth of truncation.
    cluster.psql(
        "create table wide (filler char(2000)); \
         insert into wide select 'x' from generate_series(1, 20000); checkpoint; \
         delete from wide; vacuum wide; create table later (i int); \
         insert into later select generate_series(1, 100000); truncate later; drop table elsewhere; \
         drop database other; checkpoint",
    );
    let end = cluster.psql("select redo_lsn from pg_control_checkpoint()");
    let deadline = Instant::now() + Duration::from_secs(120);
    let query = "select tli, start_lsn, end_lsn from pg_available_wal_summaries() order by 2";
    loop {
        let done = cluster.psql(&format!(
            "select count(*) from pg_available_wal_summaries() where end_lsn >= '{end}'"
        ));
        if done != "0" {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "no summary\n{}",
            cluster.log_tail()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let names = cluster.psql(query);
    let names = names.lines().map(|row| {
        let fields: Vec<&str> = row.split('|').collect();
        WalSummaryName {
            timeline: neon_pg_layout::TimelineId::new(fields[0].parse().unwrap()).unwrap(),
            start: fields[1].parse().unwrap(),
            end: fields[2].parse().unwrap(),
        }
    });
    let names = names.collect();
    (cluster, names)
}

fn read(cluster: &Cluster, name: WalSummaryName) -> BlockRefTable {
    let path = format!("pg_wal/summaries/{name}");
    assert_eq!(
        DataFile::of(&path, cluster.major().layout()),
        DataFile::WalSummary(name)
    );
    let file = std::fs::read(cluster.data_dir().join(path)).unwrap();
    BlockRefTable::from_summary(&file).unwrap()
}

fn summaries_agree_with_the_servers_sql_functions(major: PgMajor) {
    let (cluster, names) = summarised(major);
    assert!(names.len() >= 2);
    let (mut limits, mut blocks) = (0, 0);
    for name in names {
        let ours = rows(&read(&cluster, name));
        let WalSummaryName {
            timeline,
            start,
            end,
        } = name;
        let theirs = cluster.psql(&format!(
            "select reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, \
             is_limit_block from pg_wal_summary_contents({timeline}, '{start}', '{end}')"
        ));
        let theirs = theirs.lines().map(|row| {
            let fields: Vec<&str> = row.split('|').collect();
            let number = |at: usize| fields[at].parse::<u32>().unwrap();
            (
                number(0),
                number(1),
                number(2),
                number(3),
                number(4).into(),
                fields[5] == "t",
            )
        });
        assert_eq!(ours, theirs.collect());
        limits += ours.iter().filter(|row| row.5).count();
        blocks += ours.iter().filter(|row| !row.5).count();
    }
    assert!(
        limits > 10 && blocks > 4096,
        "{limits} limits, {blocks} blocks"
    );
}

#[test]
fn summaries_of_17_agree_with_the_servers_sql_functions() {
    summaries_agree_with_the_servers_sql_functions(PgMajor::V17);
}

#[test]
fn summaries_of_18_agree_with_the_servers_sql_functions() {
    summaries_agree_with_the_servers_sql_functions(PgMajor::V18);
}

/// What `pg_walsummary` prints about a table, block by block.
fn printed(table: &BlockRefTable) -> Vec<String> {
    let mut lines = Vec::new();
    for (locator, fork, refs) in table.iter() {
        let relation = format!(
            "TS {}, DB {}, REL {}, FORK {fork}",
            locator.tablespace, locator.database, locator.number
        );
        lines.extend(
            refs.limit_block()
                .map(|limit| format!("{relation}: limit {limit}")),
        );
        lines.extend(
            refs.blocks()
                .map(|block| format!("{relation}: block {block}")),
        );
    }
    lines.sort();
    lines
}

fn pg_walsummary(path: &std::path::Path) -> Vec<String> {
    let installation = Installation::of(PgMajor::V18);
    let mut command = installation.command("pg_walsummary");
    let (success, printed) = run(command.current_dir("/").arg("-i").arg(path));
    assert!(success, "{printed}");
    let mut lines: Vec<String> = printed.lines().map(ToOwned::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn pg_walsummary_of_18_reads_the_same_in_the_servers_files_and_in_ours() {
    let (cluster, names) = summarised(PgMajor::V18);
    let (mut merged, mut merged_by_rows) = (BlockRefTable::new(), BTreeSet::new());
    for name in names {
        let table = read(&cluster, name);
        let path = cluster.data_dir().join(format!("pg_wal/summaries/{name}"));
        assert_eq!(pg_walsummary(&path), printed(&table));
        merged.append(&table);
        merged_by_rows.extend(rows(&table).into_iter().filter(|row| !row.5));
    }
    let ours: BTreeSet<Row> = rows(&merged).into_iter().filter(|row| !row.5).collect();
    assert!(ours.is_subset(&merged_by_rows));
    for (tablespace, database, number, fork, block, _) in merged_by_rows.difference(&ours) {
        let locator = neon_pg_layout::RelFileLocator {
            tablespace: *tablespace,
            database: *database,
            number: *number,
        };
        let refs = merged
            .get(locator, Fork::from_number(*fork).unwrap())
            .unwrap();
        // Only a cut may take a block away.
        assert!(u64::from(refs.limit_block().unwrap()) <= *block);
    }
    let mut file = Vec::new();
    merged
        .write_summary(|bytes| {
            file.extend_from_slice(bytes);
            Ok::<(), Error>(())
        })
        .unwrap();
    let path = cluster.scratch_dir().join("merged.summary");
    std::fs::write(&path, file).unwrap();
    neon_testkit::OsUser::current().own(&path);
    assert_eq!(pg_walsummary(&path), printed(&merged));
}
