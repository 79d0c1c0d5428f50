//! Sources, targets and judges that several tests share.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use neon_pg_layout::{ChecksumAlgorithm, Manifest, TimelineId};
use neon_snapshot_format::Result;
use neon_snapshot_format::pgdata::{
    Bracket, DirectoryOptions, DirectoryWriter, Flush, Ownership, PgData, Stop, StopWal,
    TablespacePlaces,
};
use neon_snapshot_format::{End, ParallelSink, Sequential, Sink};
use neon_testkit::{Backup, Cluster, Installation, PgMajor, StoppedBackup, tree};

/// These majors; with `NEON_LONG_TESTS` all.
pub(crate) fn majors(some: [PgMajor; 2]) -> Vec<PgMajor> {
    match std::env::var_os("NEON_LONG_TESTS") {
        Some(_) => PgMajor::ALL.to_vec(),
        None => some.to_vec(),
    }
}

/// A running cluster with what makes copying hard: large and empty relations, unlogged ones, a second
/// database, tablespaces outside and in place, a large object, a prepared transaction.
pub(crate) fn varied(major: PgMajor, checksums: bool) -> Cluster {
    varied_with(major, checksums, true)
}

/// As `varied`; `in_place` false without the tablespace in place: `pg_basebackup -Ft` of servers up to 15
/// loses what lies in such.
pub(crate) fn varied_with(major: PgMajor, checksums: bool, in_place: bool) -> Cluster {
    let cluster = Cluster::builder(major)
        .checksums(checksums)
        .setting("wal_keep_size", "512MB")
        .setting("max_prepared_transactions", 4)
        .start();
    let place = cluster.tablespace_dir("outside");
    cluster.psql(&format!(
        "create tablespace outside location '{}'",
        place.display()
    ));
    if in_place {
        cluster.psql("set allow_in_place_tablespaces = on; create tablespace inside location ''");
    }
    let inside = if in_place { "inside" } else { "pg_default" };
    cluster.psql(&format!(
        "create table kept (id int primary key, body text);
         insert into kept select i, repeat(md5(i::text), 20) from generate_series(1, 26000) i;
         create unlogged table scratch as select generate_series(1, 1000) as i;
         create table empty (i int);
         create table far (i int) tablespace outside;
         insert into far select generate_series(1, 5000);
         create table near (i int) tablespace {inside};
         insert into near select generate_series(1, 700);
         select lo_from_bytea(0, decode(repeat('ab', 10000), 'hex'));
         create database other;
         begin; insert into near values (0); prepare transaction 'open'"
    ));
    cluster.psql_in(
        "other",
        "create table t as select generate_series(1, 10) i; vacuum t",
    );
    cluster
}

/// What `varied` holds, as one line.
pub(crate) fn contents(cluster: &Cluster) -> String {
    cluster.psql(
        "select (select count(*) || ' ' || sum(hashtext(body)::bigint) from kept),
                (select sum(i) from far), (select sum(i) from near), (select count(*) from empty),
                (select count(*) from pg_largeobject), (select count(*) from pg_prepared_xacts)",
    )
}

/// Options that keep owners and put tablespaces below this cluster's folder; with one flush, which many
/// tests beside each other can afford.
pub(crate) fn options(target: &Cluster) -> DirectoryOptions {
    DirectoryOptions {
        ownership: Ownership::Recorded,
        tablespaces: TablespacePlaces::Below(target.restored_tablespaces()),
        flush: Flush::FileSystem,
        ..DirectoryOptions::default()
    }
}

/// Starts what was written to the target, with a socket of its own.
pub(crate) fn start(target: &mut Cluster) {
    target.set("wal_keep_size", "0");
    target.set("max_prepared_transactions", 4);
    // Recovery refuses directories in pg_tblspc otherwise.
    target.set("allow_in_place_tablespaces", "on");
    target.start();
}

/// How far pages of a running cluster may have come, for a backup that is open on it.
pub(crate) fn bracket(backup: &Backup, cluster: &Cluster) -> Bracket {
    let position = Backup::positions(cluster);
    Bracket::new(backup.start, move || Ok(position()))
}

/// The end of a backup, with the log in this directory.
pub(crate) fn stop<'a>(stopped: &'a StoppedBackup, wal: &'a Path) -> Stop<'a> {
    Stop {
        label: &stopped.label,
        tablespace_map: &stopped.map,
        position: stopped.position,
        timeline: TimelineId::FIRST,
        wal: StopWal::Directory(wal),
    }
}

/// Takes an online copy into a sink.
pub(crate) fn copy_online(cluster: &Cluster, sink: &mut dyn Sink) -> Result<End> {
    let backup = Backup::begin(cluster);
    let source = PgData::online(&cluster.data_dir(), bracket(&backup, cluster))?;
    let copied = source.copy(sink)?;
    let stopped = backup.stop();
    copied.finish(
        sink,
        Some(stop(&stopped, &cluster.data_dir().join("pg_wal"))),
    )
}

/// As `copy_online`, with threads.
pub(crate) fn copy_online_parallel(
    cluster: &Cluster,
    sink: &dyn ParallelSink,
    threads: usize,
) -> Result<End> {
    let backup = Backup::begin(cluster);
    let source = PgData::online(&cluster.data_dir(), bracket(&backup, cluster))?;
    let copied = source.copy_parallel(sink, threads)?;
    let stopped = backup.stop();
    let wal = cluster.data_dir().join("pg_wal");
    copied.finish(&mut Sequential::new(sink)?, Some(stop(&stopped, &wal)))
}

/// Writes a source's snapshot into the target's data directory.
pub(crate) fn unpack(source: &mut dyn neon_snapshot_format::Source, target: &Cluster) {
    let writer = DirectoryWriter::create(&target.data_dir(), options(target)).unwrap();
    source.send(&mut Sequential::new(&writer).unwrap()).unwrap();
}

/// Judges the unpacked backup by `pg_verifybackup`. 13 and 14 are judged by the one of 15 without their
/// log. 17, which is here without programs, by reading the manifest back and summing each file: its manifest
/// is of a version that 16 does not know, its control file of one that 18 does not know.
pub(crate) fn verify(data: &Path, major: PgMajor) {
    let judge = match major {
        PgMajor::V13 | PgMajor::V14 => Some((PgMajor::V15, true)),
        PgMajor::V17 => None,
        own => Some((own, false)),
    };
    let Some((judge, no_wal)) = judge else {
        return verify_by_reading(data);
    };
    let mut command = Installation::of(judge).command("pg_verifybackup");
    if no_wal {
        command.arg("-n");
    }
    let output = command.arg(data).current_dir("/").output().unwrap();
    assert!(
        output.status.success(),
        "pg_verifybackup of {judge}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn verify_by_reading(data: &Path) {
    let manifest = Manifest::parse(&fs::read(data.join("backup_manifest")).unwrap()).unwrap();
    let listed: BTreeMap<String, _> = manifest
        .files
        .into_iter()
        .map(|file| (String::from_utf8(file.path.clone()).unwrap(), file))
        .collect();
    let mut count = 0;
    for (path, (_, content)) in tree(data) {
        let Some(content) = content else { continue };
        if path == "backup_manifest" || path.starts_with("pg_wal/") {
            continue;
        }
        count += 1;
        let file = &listed[&path];
        assert_eq!(file.size, content.len() as u64, "{path}");
        let checksum = file.checksum.as_ref().unwrap();
        assert_eq!(checksum.algorithm(), ChecksumAlgorithm::Crc32c);
        assert_eq!(
            checksum.bytes(),
            crc32c::crc32c(&content).to_le_bytes(),
            "{path}"
        );
    }
    assert_eq!(count, listed.len());
}

/// Stops the cluster and judges its pages by `pg_checksums` where the major has it, and by our own reader, which the
/// server's checks have judged.
pub(crate) fn check_stopped(cluster: &mut Cluster) {
    cluster.check_stopped();
    let mut nothing = crate::pgdata_refuses::Nothing;
    let copied = PgData::cold(&cluster.data_dir())
        .unwrap()
        .copy(&mut nothing);
    let end = copied.unwrap().finish(&mut nothing, None).unwrap();
    assert_eq!(end.bad_pages, []);
}
