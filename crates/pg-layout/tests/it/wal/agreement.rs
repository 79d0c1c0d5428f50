//! Every record and every block reference is what PostgreSQL says it is.

use neon_pg_layout::Lsn;
use neon_pg_layout::wal::Compression;
use neon_testkit::{Cluster, ClusterBuilder, PgMajor, StopMode};

use super::walk::{Seen, Stop, records, start_of, walk};
use super::{judges, workload};

fn cluster(major: PgMajor, segment_mib: u32) -> ClusterBuilder {
    Cluster::builder(major)
        .wal_segment_mib(segment_mib)
        .setting("wal_level", "logical")
        .setting("wal_keep_size", "2GB")
        .setting("max_wal_size", "2GB")
        .setting("autovacuum", "off")
        .setting("max_prepared_transactions", 5)
        .setting("wal_compression", "on")
}

fn assert_same(ours: &[Seen], theirs: &[Seen]) {
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
    assert!(ours.len() > 1000, "{} records", ours.len());
}

fn agrees_with_pg_waldump(cluster: ClusterBuilder) {
    let mut cluster = cluster.start();
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
    agrees_with_pg_waldump(cluster(PgMajor::V15, 16));
}

#[test]
fn records_and_blocks_of_16_in_small_segments_are_those_of_pg_waldump() {
    agrees_with_pg_waldump(cluster(PgMajor::V16, 1));
}

#[test]
fn records_and_blocks_of_18_are_those_of_pg_waldump() {
    agrees_with_pg_waldump(cluster(PgMajor::V18, 16));
}

#[test]
fn records_and_blocks_of_17_are_those_of_its_servers_pg_walinspect() {
    let cluster = cluster(PgMajor::V17, 1).start();
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

/// Images in every record, compressed as `method` says; those that replay leaves alone are told.
fn images_agree(major: PgMajor, method: &str, expected: Option<Compression>) {
    let mut cluster = cluster(major, 16)
        .setting("wal_compression", method)
        .setting(
            "wal_consistency_checking",
            "heap, heap2, btree, gin, sequence",
        )
        .start();
    cluster.psql(
        "create table t (i int primary key, t text);
         insert into t select i, repeat('x', i % 100) from generate_series(1, 1000) i;
         checkpoint;
         update t set i = -i where i % 3 = 0; delete from t where i % 7 = 0; vacuum t",
    );
    cluster.stop(StopMode::Fast);
    let dir = cluster.data_dir().join("pg_wal");
    let (mut restored, mut checked) = (0, 0);
    walk(&dir, 1, Some(start_of(&dir)), usize::MAX, |record| {
        for image in record.blocks().filter_map(|block| block.image) {
            assert!(image.compression.is_none() || image.compression == expected);
            match (image.compression, image.restores) {
                (None, _) => {}
                (Some(_), true) => restored += 1,
                (Some(_), false) => {
                    assert!(record.header().checks_consistency());
                    checked += 1;
                }
            }
        }
    });
    let some = expected.is_some();
    assert!(
        (restored > 10) == some && (checked > 1000) == some,
        "{restored} {checked}"
    );
    if cluster.installation().tool("pg_waldump").is_some() {
        let (theirs, _) = judges::pg_waldump(&cluster, 1, start_of(&dir));
        assert_same(&records(&dir, 1, None).0, &theirs);
    }
}

#[test]
fn images_of_15_compressed_by_lz4_are_those_of_pg_waldump() {
    images_agree(PgMajor::V15, "lz4", Some(Compression::Lz4));
}

#[test]
fn images_of_15_compressed_by_zstd_are_those_of_pg_waldump() {
    images_agree(PgMajor::V15, "zstd", Some(Compression::Zstd));
}

#[test]
fn images_of_16_compressed_by_pglz_are_those_of_pg_waldump() {
    images_agree(PgMajor::V16, "pglz", Some(Compression::Pglz));
}

#[test]
fn images_of_18_without_compression_are_those_of_pg_waldump() {
    images_agree(PgMajor::V18, "off", None);
}

/// Its server replays what we read: that the images agree is for it to say.
#[test]
fn images_of_13_compressed_by_pglz_are_read_by_their_own_bits() {
    images_agree(PgMajor::V13, "on", Some(Compression::Pglz));
}
