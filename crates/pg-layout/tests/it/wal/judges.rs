//! What PostgreSQL itself says about a log.

use std::collections::BTreeMap;

use neon_pg_layout::{Fork, Lsn};
use neon_testkit::Cluster;

use super::walk::{Seen, SeenBlock};

/// The records of the log on timeline `timeline` as `pg_waldump` of the same major lists them, and
/// what it said at the end.
pub(crate) fn pg_waldump(cluster: &Cluster, timeline: u32, from: Lsn) -> (Vec<Seen>, String) {
    let output = cluster
        .installation()
        .command("pg_waldump")
        .arg("-p")
        .arg(cluster.data_dir().join("pg_wal"))
        .args(["-t", &timeline.to_string(), "-s", &from.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let records = text
        .lines()
        .filter(|line| line.starts_with("rmgr:"))
        .map(waldump_line)
        .collect();
    (
        records,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn after<'a>(line: &'a str, mark: &str) -> &'a str {
    let at = line
        .find(mark)
        .unwrap_or_else(|| panic!("no {mark:?} in {line}"));
    line[at + mark.len()..].trim_start()
}

fn until<'a>(text: &'a str, marks: &[char]) -> &'a str {
    text.split(marks).next().unwrap()
}

fn waldump_line(line: &str) -> Seen {
    let lengths = until(after(line, "len (rec/tot):"), &[',']);
    Seen {
        rmgr: until(after(line, "rmgr: "), &[' ']).to_owned(),
        total_len: after(lengths, "/").trim().parse().unwrap(),
        xid: until(after(line, "tx:"), &[',']).trim().parse().unwrap(),
        lsn: until(after(line, "lsn: "), &[',']).parse().unwrap(),
        previous: until(after(line, "prev "), &[',']).parse().unwrap(),
        blocks: block_references(line),
    }
}

/// `blkref #0: rel 1663/5/1249 fork vm blk 58 FPW`; main forks are not named by newer ones.
fn block_references(text: &str) -> Vec<SeenBlock> {
    text.split("blkref #")
        .skip(1)
        .map(|text| {
            let rest = after(text, "rel ");
            let relation = until(rest, &[' ']).to_owned();
            let fork = match rest.split_once(" fork ") {
                Some((_, fork)) => until(fork, &[' ']).parse().unwrap(),
                None => Fork::Main,
            };
            let image = text
                .contains("FPW")
                .then(|| !text.contains("for WAL verification"));
            SeenBlock {
                id: until(text, &[':']).parse().unwrap(),
                relation,
                fork,
                block: until(after(rest, " blk "), &[' ', ',', ';', '\n'])
                    .parse()
                    .unwrap(),
                image,
            }
        })
        .collect()
}

/// The records as SQL function `pg_get_wal_records_info` of a running server lists them, and the
/// blocks as `pg_get_wal_block_info` does.
pub(crate) fn pg_walinspect(cluster: &Cluster, from: Lsn, to: Lsn) -> Vec<Seen> {
    cluster.psql("create extension if not exists pg_walinspect");
    let mut blocks: BTreeMap<Lsn, Vec<SeenBlock>> = BTreeMap::new();
    let rows = cluster.psql(&format!(
        "select start_lsn, block_id, reltablespace, reldatabase, relfilenode, relforknumber,
                relblocknumber, block_fpi_info
           from pg_get_wal_block_info('{from}', '{to}') order by start_lsn, block_id"
    ));
    for row in rows.lines() {
        let columns: Vec<&str> = row.split('|').collect();
        blocks
            .entry(columns[0].parse().unwrap())
            .or_default()
            .push(SeenBlock {
                id: columns[1].parse().unwrap(),
                relation: columns[2..5].join("/"),
                fork: Fork::from_number(columns[5].parse().unwrap()).unwrap(),
                block: columns[6].parse().unwrap(),
                image: (!columns[7].is_empty()).then(|| columns[7].contains("APPLY")),
            });
    }
    let rows = cluster.psql(&format!(
        "select start_lsn, prev_lsn, resource_manager, xid, record_length
           from pg_get_wal_records_info('{from}', '{to}') order by start_lsn"
    ));
    rows.lines()
        .map(|row| {
            let columns: Vec<&str> = row.split('|').collect();
            let lsn = columns[0].parse().unwrap();
            Seen {
                lsn,
                previous: columns[1].parse().unwrap(),
                rmgr: columns[2].to_owned(),
                xid: columns[3].parse().unwrap(),
                total_len: columns[4].parse().unwrap(),
                blocks: blocks.remove(&lsn).unwrap_or_default(),
            }
        })
        .collect()
}
