//! Walking the log, against the floor of merely computing the CRC of its bytes.
//!
//! Prints speeds and ratios, measured in turns in this run on one core; the project asks for at least
//! 1 GB/s with CRC checked and every change looked at.
//!
//! The log is that of a real server: index builds, pgbench's accounts filled and updated, with the
//! full-page images that follow a checkpoint. Two mixes, since small records cost more per byte:
//! everything, and the updates alone after all pages had their image.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a bench prints what it measured, and stops when it has nothing to measure"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::wal::{Record, Step, WalFormat, WalReader};
use neon_pg_layout::{Lsn, PgMajor, SegmentName};
use neon_testkit::{Cluster, StopMode};

struct Log {
    format: WalFormat,
    start: Lsn,
    bytes: Vec<u8>,
}

/// All that a server wrote, and where its small records begin.
fn make() -> (Log, Lsn) {
    let mut cluster = Cluster::builder(PgMajor::V16)
        .setting("wal_level", "replica")
        .setting("wal_keep_size", "4GB")
        .setting("max_wal_size", "4GB")
        .setting("autovacuum", "off")
        .start();
    cluster.psql(
        "create table accounts (id int primary key, branch int, balance bigint, filler char(84));
         insert into accounts select i, i % 10, 0, '' from generate_series(1, 200000) i;
         create index on accounts (branch);
         checkpoint;
         update accounts set balance = balance + 1 where id % 4 = 0;",
    );
    let small: Lsn = cluster
        .psql("select pg_current_wal_lsn()")
        .parse()
        .expect("a position");
    cluster.psql(
        "do $$ begin for i in 1..100000 loop
           update accounts set balance = balance + i where id = 1 + (i * 7919) % 200000;
           if i % 20 = 0 then commit; end if;
         end loop; end $$;
         insert into accounts select i, i % 10, 0, '' from generate_series(200001, 260000) i;",
    );
    cluster.stop(StopMode::Fast);
    let folder = cluster.data_dir().join("pg_wal");
    let mut names: Vec<SegmentName> = std::fs::read_dir(&folder)
        .expect("pg_wal")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    let mut bytes = Vec::new();
    for name in &names {
        bytes.extend(std::fs::read(folder.join(name.to_string())).expect("a segment"));
    }
    let format = WalFormat::of_segment(&bytes).expect("a segment");
    let start = names
        .first()
        .and_then(|name| name.start(format.segment_size()).ok())
        .expect("a segment");
    // Only what was written.
    let mut log = Log {
        format,
        start,
        bytes,
    };
    let mut end = start;
    let whole = walk(&log, |record| end = record.end());
    assert!(!whole, "the last segment was filled");
    let len = usize::try_from(end.0 - start.0).expect("64 bits");
    log.bytes.truncate(len);
    (log, small)
}

/// Whether the records reach to the last byte of the log; fails on damage.
fn walk(log: &Log, mut visit: impl FnMut(&Record<'_>)) -> bool {
    let mut reader = WalReader::first_after(log.format.clone(), log.start);
    let mut input = log.bytes.as_slice();
    loop {
        match reader.read(&mut input).expect("the log of a real server") {
            Step::Record(record) => visit(&record),
            Step::NeedMore => return input.is_empty(),
            Step::End(_) => return false,
        }
    }
}

/// Walks the log and looks at every change.
fn changes(log: &Log) -> u64 {
    let mut count = 0_u64;
    let whole = walk(log, |record| {
        let told = record.changes(|change| {
            count += match change {
                Change::Block(block) => u64::from(block.block),
                Change::Committed(end) => u64::from(end.xid),
                _ => 1,
            };
        });
        told.expect("the log of a real server");
    });
    assert!(whole, "the walk ended early");
    count
}

/// Walks the log and no more.
fn records(log: &Log) -> u64 {
    let mut count = 0_u64;
    let whole = walk(log, |record| count += u64::from(record.header().total_len));
    assert!(whole, "the walk ended early");
    count
}

fn floor(log: &Log) -> u64 {
    crc32c::crc32c(&log.bytes).into()
}

/// The best of several rounds for each segment, summed: short enough to run undisturbed now and then
/// on a machine that does other things.
///
/// Each part misses at most the record that the one before it did not get to the end of; `expected` is
/// how many there are in all.
fn best(rounds: usize, log: &Log, expected: usize, work: [fn(&Log) -> u64; 3]) -> [Duration; 3] {
    let (mut parts, mut seen) = (0, 0);
    let mut sum = [Duration::ZERO; 3];
    let mut start = log.start;
    let size = usize::try_from(log.format.segment_size().bytes() / 4).expect("64 bits");
    for piece in log.bytes.chunks(size) {
        let log = Log {
            format: log.format.clone(),
            start,
            bytes: piece.to_vec(),
        };
        parts += 1;
        walk(&log, |_| seen += 1);
        let mut best = [Duration::MAX; 3];
        for _ in 0..rounds {
            for (best, work) in best.iter_mut().zip(work) {
                let start = Instant::now();
                black_box(work(black_box(&log)));
                *best = start.elapsed().min(*best);
            }
        }
        for (sum, best) in sum.iter_mut().zip(best) {
            *sum += best;
        }
        start = start.saturating_add(piece.len() as u64);
    }
    assert!(
        (expected - parts..=expected).contains(&seen),
        "{seen} records in parts, {expected} in all"
    );
    sum
}

fn print_ratios(name: &str, log: &Log, rows: usize) {
    let (mut count, mut blocks, mut images) = (0_usize, 0_usize, 0_usize);
    let whole = walk(log, |record| {
        count += 1;
        blocks += record.block_count();
        images += record
            .blocks()
            .filter(|block| block.image.is_some())
            .count();
    });
    assert!(
        whole && count >= rows,
        "{count} records of {rows} rows, whole: {whole}"
    );
    let len = log.bytes.len();
    let [crc, walked, changed] = best(15, log, count, [floor, records, changes]);
    let speed = |time: Duration| len as f64 / time.as_secs_f64() / 1e9;
    println!(
        "wal walk, {name}: {:.2} GB/s with changes, {:.2} GB/s without; CRC-32C of the same bytes \
         {:.1} GB/s, ratio {:.3} and {:.3}; {} MB, {count} records of {} bytes, {blocks} blocks, \
         {images} images",
        speed(changed),
        speed(walked),
        speed(crc),
        speed(changed) / speed(crc),
        speed(walked) / speed(crc),
        len / 1_000_000,
        len / count.max(1),
    );
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let (all, small) = make();
    let page = all.format.page_size().into();
    let from = usize::try_from(small.start_of(page).0 - all.start.0).expect("64 bits");
    let small = Log {
        format: all.format.clone(),
        start: Lsn(all.start.0 + from as u64),
        bytes: all.bytes.get(from..).expect("inside").to_vec(),
    };
    // A record for each row inserted or updated, at the least.
    for (name, log, rows) in [
        ("everything", &all, 410_000),
        ("small records", &small, 160_000),
    ] {
        print_ratios(name, log, rows);
        let mut group = criterion.benchmark_group(format!("wal_walk, {name}"));
        group.throughput(Throughput::Bytes(log.bytes.len() as u64));
        group.sample_size(20);
        group.bench_function("floor: CRC-32C", |b| b.iter(|| floor(black_box(log))));
        group.bench_function("walk", |b| b.iter(|| records(black_box(log))));
        group.bench_function("walk and changes", |b| b.iter(|| changes(black_box(log))));
        group.finish();
    }
    criterion.final_summary();
}
