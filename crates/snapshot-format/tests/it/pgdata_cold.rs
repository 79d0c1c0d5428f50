//! Stopped clusters: what is written is what was read, byte for byte, and starts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;

use neon_snapshot_format::pgdata::{DirectoryOptions, DirectoryWriter, Flush, PgData};
use neon_snapshot_format::{Chunk, ChunkData, ParallelSink, Sequential, SnapshotKind, Source};
use neon_testkit::{Cluster, PgMajor, StopMode, assert_cold_copy, tree};

use crate::clusters::{check_stopped, contents, majors, options, start, unpack, varied, verify};
use crate::for_every_major;
use crate::pgdata_selected::Recorder;

fn assert_equal(source: &Path, copy: &Path) {
    let both = assert_cold_copy(source, copy);
    let segments = both.iter().filter(|path| path.starts_with("pg_wal/0"));
    let segments = segments.count();
    assert!(
        (1..=2).contains(&segments),
        "{segments} segments of the log"
    );
}

fn a_cold_copy_is_equal_and_starts(major: PgMajor) {
    let mut cluster = varied(major, major != PgMajor::V16);
    cluster.psql("select pg_create_physical_replication_slot('someone', true); checkpoint; select pg_switch_wal(); checkpoint");
    let before = contents(&cluster);
    cluster.stop(StopMode::Fast);

    // In one thread, and in three.
    let mut first = Cluster::without_data(major);
    let mut source = PgData::cold(&cluster.data_dir()).unwrap();
    unpack(&mut source, &first);
    assert_equal(&cluster.data_dir(), &first.data_dir());

    let second = Cluster::without_data(major);
    let mut how = options(&second);
    if major == PgMajor::V15 {
        how.flush = Flush::Files;
    }
    let writer = DirectoryWriter::create(&second.data_dir(), how).unwrap();
    let source = source.extent_size(8 << 20);
    let copied = source.copy_parallel(&writer, 3).unwrap();
    assert!(copied.files > 500 && copied.vanished == 0);
    let end = copied
        .finish(&mut Sequential::new(&writer).unwrap(), None)
        .unwrap();
    assert_eq!(
        (end.kind, end.major),
        (Some(SnapshotKind::Cold), Some(major))
    );
    assert_equal(&cluster.data_dir(), &second.data_dir());
    assert!(
        tree(&first.data_dir()) == tree(&second.data_dir()),
        "threads change nothing"
    );

    // Owners too, and links.
    for path in ["", "PG_VERSION", "base", "pg_tblspc"] {
        let (a, b) = (cluster.data_dir().join(path), first.data_dir().join(path));
        let owner = |path: &Path| {
            (
                fs::metadata(path).unwrap().uid(),
                fs::metadata(path).unwrap().gid(),
            )
        };
        assert_eq!(owner(&a), owner(&b), "{path}");
    }
    verify(&first.data_dir(), major);
    verify(&second.data_dir(), major);

    start(&mut first);
    assert_eq!(contents(&first), before);
    assert_eq!(
        first.psql("select count(*) from scratch"),
        "1000",
        "unlogged relations are kept"
    );
    assert_eq!(first.psql("select count(*) from pg_replication_slots"), "0");
    assert!(
        !first.log().contains("not properly shut down"),
        "no recovery ran"
    );
    let place = first
        .psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'outside'");
    assert!(
        place.starts_with(first.scratch_dir().to_str().unwrap()),
        "{place}"
    );
    first.check_running();
    check_stopped(&mut first);
}

for_every_major!(a_cold_copy_is_equal_and_starts:
    a_cold_copy_of_13_is_equal_and_starts_and_verifies_by_15 = V13,
    a_cold_copy_of_14_is_equal_and_starts_and_verifies_by_15 = V14,
    a_cold_copy_of_15_is_equal_and_starts_and_verifies = V15,
    a_cold_copy_of_16_without_checksums_is_equal_and_starts_and_verifies = V16,
    a_cold_copy_of_17_is_equal_and_starts_and_its_manifest_reads_back = V17,
    a_cold_copy_of_18_is_equal_and_starts_and_verifies = V18,
);

#[test]
fn a_linked_log_directory_and_group_access_survive() {
    let mut source = Cluster::builder(PgMajor::V15)
        .initdb_arg("--allow-group-access")
        .init();
    source.start();
    source.psql("create table t as select 1 as i");
    source.stop(StopMode::Fast);
    let moved = source.scratch_dir().join("log-elsewhere");
    fs::rename(source.data_dir().join("pg_wal"), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, source.data_dir().join("pg_wal")).unwrap();

    let mut copy = Cluster::without_data(PgMajor::V15);
    let wal = copy.scratch_dir().join("restored-log");
    let mut how = options(&copy);
    how.wal_directory = Some(wal.clone());
    let writer = DirectoryWriter::create(&copy.data_dir(), how).unwrap();
    let mut data = PgData::cold(&source.data_dir()).unwrap();
    data.send(&mut Sequential::new(&writer).unwrap()).unwrap();
    assert_eq!(fs::read_link(copy.data_dir().join("pg_wal")).unwrap(), wal);
    let mode = fs::metadata(copy.data_dir()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o750);
    assert_equal(&source.data_dir(), &copy.data_dir());
    start(&mut copy);
    assert_eq!(copy.psql("select * from t"), "1");
}

#[test]
fn a_crashed_cluster_and_a_stopped_standby_are_copied_with_their_log() {
    for major in majors([PgMajor::V13, PgMajor::V18]) {
        a_crashed_cluster_is_copied(major);
    }
}

fn a_crashed_cluster_is_copied(major: PgMajor) {
    let mut cluster = varied(major, true);
    let before = contents(&cluster);
    cluster.kill9();
    assert!(PgData::cold(&cluster.data_dir()).is_err());
    let mut copy = Cluster::without_data(major);
    unpack(&mut PgData::crashed(&cluster.data_dir()).unwrap(), &copy);
    verify(&copy.data_dir(), major);
    start(&mut copy);
    assert_eq!(contents(&copy), before);
    assert_eq!(
        copy.psql("select count(*) from scratch"),
        "0",
        "recovery reset it"
    );
    assert!(copy.log().contains("was not properly shut down"));

    // The copy becomes a standby of nobody, is stopped, and copied as that.
    copy.stop(StopMode::Fast);
    fs::write(copy.data_dir().join("standby.signal"), "").unwrap();
    copy.start();
    copy.stop(StopMode::Fast);
    let mut standby = Cluster::without_data(major);
    unpack(&mut PgData::recovery(&copy.data_dir()).unwrap(), &standby);
    verify(&standby.data_dir(), major);
    start(&mut standby);
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    // A standby shows no prepared transactions before it is promoted.
    let data = |line: &str| line.rsplit_once('|').unwrap().0.to_owned();
    assert_eq!(data(&contents(&standby)), data(&before));
}

#[test]
fn zero_pages_become_holes() {
    let mut cluster = Cluster::builder(PgMajor::V16).start();
    cluster.psql("create table t (i int)");
    let path = cluster.psql("select pg_relation_filepath('t')");
    cluster.stop(StopMode::Fast);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(cluster.data_dir().join(&path))
        .unwrap();
    file.set_len(64 << 20).unwrap();
    let copy = Cluster::without_data(PgMajor::V16);
    let writer = DirectoryWriter::create(&copy.data_dir(), options(&copy)).unwrap();
    let source = PgData::cold(&cluster.data_dir())
        .unwrap()
        .extent_size(8 << 20);
    let copied = source.copy_parallel(&writer, 3).unwrap();
    drop(
        copied
            .finish(&mut Sequential::new(&writer).unwrap(), None)
            .unwrap(),
    );
    let facts = fs::metadata(copy.data_dir().join(&path)).unwrap();
    assert_eq!(facts.len(), 64 << 20);
    assert!(facts.blocks() < 64, "{} blocks", facts.blocks());
    assert!(writer.written().sparse >= 64 << 20);
    verify(&copy.data_dir(), PgMajor::V16);
}

/// Restores of snapshots after many others send pages as their frames come.
#[test]
fn files_may_come_page_by_page_in_any_order_and_more_than_can_be_kept_open() {
    let major = PgMajor::V15;
    let cluster = Cluster::builder(major).init();
    let recorder = Recorder::default();
    let source = PgData::cold(&cluster.data_dir()).unwrap();
    let copied = source.copy_parallel(&recorder, 2).unwrap();
    let copy = Cluster::without_data(major);
    let how = DirectoryOptions {
        flush: Flush::Files,
        ..options(&copy)
    };
    let writer = DirectoryWriter::create(&copy.data_dir(), how).unwrap();
    for entry in recorder.directories.lock().unwrap().iter() {
        writer.entry(entry).unwrap();
    }
    for (entry, wanted) in recorder.announced.lock().unwrap().iter() {
        writer.file(entry, wanted).unwrap();
    }
    let sent = recorder.parts.into_inner().unwrap();
    let mut parts = Vec::new();
    for (number, part) in sent.iter().enumerate() {
        let whole = 0..part.bytes.len();
        if part.entry.path.as_bytes() == b"global/pg_control" || whole.is_empty() {
            parts.push((0, number, whole));
            continue;
        }
        for from in whole.step_by(8192) {
            let order = (number * 7919 + from / 8192 * 104_729) % 10_007;
            let to = part.bytes.len().min(from + 8192);
            parts.push((order, number, from..to));
        }
    }
    parts.sort_by_key(|(order, ..)| *order);
    let next = Mutex::new(parts.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut worker = writer.worker().unwrap();
                loop {
                    let part = next.lock().unwrap().next();
                    let Some((_, number, range)) = part else {
                        break;
                    };
                    let part = &sent[number];
                    let offset = part.range.start + range.start as u64;
                    let place = offset..part.range.start + range.end as u64;
                    worker.begin(&part.entry, place).unwrap();
                    let data = ChunkData::Bytes(&part.bytes[range]);
                    worker.chunk(&Chunk { offset, data }).unwrap();
                    worker.commit().unwrap();
                }
                worker.finish().unwrap();
            });
        }
    });
    copied
        .finish(&mut Sequential::new(&writer).unwrap(), None)
        .unwrap();
    assert_equal(&cluster.data_dir(), &copy.data_dir());
    verify(&copy.data_dir(), major);
}
