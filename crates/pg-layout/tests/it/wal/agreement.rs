//! Every record and every block reference is what PostgreSQL says it is.

use neon_pg_layout::Lsn;
use neon_testkit::{Cluster, PgMajor, StopMode};

use super::walk::{Seen, Stop, records, start_of};
use super::{judges, workload};

fn cluster(major: PgMajor, segment_mib: u32) -> neon_testkit::Cluster {
    Cluster::builder(major)
        .wal_segment_mib(segment_mib)
        .setting("wal_level", "logical")
        .setting("wal_keep_size", "2GB")
        .setting("max_wal_size", "2GB")
        .setting("autovacuum", "off")
        .setting("max_prepared_transactions", 5)
        .setting("wal_compression", "on")
        .start()
}

fn assert_same(ours: &[Seen], theirs: &[Seen]) {
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.len() > 5000, "{} records", ours.len());
}

fn agrees_with_pg_waldump(major: PgMajor, segment_mib: u32) {
    let mut cluster = cluster(major, segment_mib);
    workload::run(&cluster);
    cluster.stop(StopMode::Fast);
    let dir = cluster.data_dir().join("pg_wal");
    let (ours, stop) = records(&dir, 1, None);
    let Stop::End(end) = stop else {
        panic!("{stop:?}")
    };
    let (theirs, said) = judges::pg_waldump(&cluster, 1, start_of(&dir));
    assert_same(&ours, &theirs);
    assert!(
        said.contains(&format!(" at {}", end.lsn)),
        "{end:?}: {said}"
    );
}

#[test]
fn records_and_blocks_of_15_are_those_of_pg_waldump() {
    agrees_with_pg_waldump(PgMajor::V15, 16);
}

#[test]
fn records_and_blocks_of_16_in_small_segments_are_those_of_pg_waldump() {
    agrees_with_pg_waldump(PgMajor::V16, 1);
}

#[test]
fn records_and_blocks_of_18_are_those_of_pg_waldump() {
    agrees_with_pg_waldump(PgMajor::V18, 16);
}

#[test]
fn records_and_blocks_of_17_are_those_of_its_servers_pg_walinspect() {
    let cluster = cluster(PgMajor::V17, 1);
    workload::run(&cluster);
    cluster.psql("create extension pg_walinspect");
    let to: Lsn = cluster
        .psql("select pg_current_wal_flush_lsn()")
        .parse()
        .unwrap();
    let (ours, _) = records(&cluster.data_dir().join("pg_wal"), 1, None);
    let ours: Vec<Seen> = ours.into_iter().filter(|seen| seen.lsn < to).collect();
    let theirs = judges::pg_walinspect(&cluster, ours[0].lsn, to);
    assert_same(&ours, &theirs);
}
