//! Walking the log, against merely computing the CRC of its bytes.
//!
//! The log is that of a real server: index builds, pgbench's accounts filled and updated, with the
//! full-page images that follow a checkpoint. Two mixes, since small records cost more per byte:
//! everything, and the updates alone after all pages had their image.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
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
         update accounts set balance = balance + 1 where id % 4 = 0;
         select pg_switch_wal();",
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
    walk(&log, |record| end = record.end());
    let len = usize::try_from(end.0 - start.0).expect("64 bits");
    log.bytes.truncate(len);
    (log, small)
}

fn walk(log: &Log, mut visit: impl FnMut(&Record<'_>)) {
    let mut reader = WalReader::first_after(log.format.clone(), log.start);
    let mut input = log.bytes.as_slice();
    while let Ok(Step::Record(record)) = reader.read(&mut input) {
        visit(&record);
    }
}

fn bench_log(c: &mut Criterion, name: &str, log: &Log) {
    let (mut records, mut blocks, mut images) = (0_u64, 0_u64, 0_u64);
    walk(log, |record| {
        records += 1;
        blocks += record.block_count() as u64;
        images += record
            .blocks()
            .filter(|block| block.image.is_some())
            .count() as u64;
    });
    let bytes = log.bytes.len() as u64;
    eprintln!(
        "{name}: {bytes} bytes, {records} records of {} bytes, {blocks} blocks, {images} images",
        bytes / records
    );
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes)).sample_size(20);
    group.bench_function("crc32c_of_the_bytes", |b| {
        b.iter(|| crc32c::crc32c(black_box(&log.bytes)));
    });
    group.bench_function("walk", |b| {
        b.iter(|| {
            let mut count = 0_u64;
            walk(log, |record| count += u64::from(record.header().total_len));
            black_box(count)
        });
    });
    group.bench_function("walk_and_changes", |b| {
        b.iter(|| {
            let mut count = 0_u64;
            walk(log, |record| {
                let changes = record.changes(|change| {
                    count += match change {
                        Change::Block(block) => u64::from(block.block),
                        Change::Committed(end) => u64::from(end.xid),
                        _ => 1,
                    };
                });
                changes.expect("the log of a real server");
            });
            black_box(count)
        });
    });
    group.finish();
}

fn bench(c: &mut Criterion) {
    let (all, small) = make();
    let from = usize::try_from(small.start_of(all.format.segment_size().bytes()).0 - all.start.0)
        .expect("64 bits");
    let updates = Log {
        format: all.format.clone(),
        start: Lsn(all.start.0 + from as u64),
        bytes: all.bytes.get(from..).unwrap_or_default().to_vec(),
    };
    bench_log(c, "everything", &all);
    bench_log(c, "small_records", &updates);
}

criterion_group!(benches, bench);
criterion_main!(benches);
