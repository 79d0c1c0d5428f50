//! Running clusters under load, between the start and the stop of a backup.

use std::fs;
use std::process::{Child, Stdio};

use neon_snapshot_format::pgdata::{DirectoryWriter, PgData};
use neon_snapshot_format::{Sequential, SnapshotKind};
use neon_testkit::{Backup, Cluster, PgMajor, StopMode};

use crate::clusters::{
    bracket, check_stopped, copy_online, copy_online_parallel, majors, options, start, stop,
    varied, verify,
};
use crate::for_every_major;

/// A pgbench that runs until it is dropped.
pub(crate) struct Load(Child);

impl Load {
    pub(crate) fn on(cluster: &Cluster) -> Self {
        cluster.run_tool("pgbench", ["-i", "-q", "-s", "2", "postgres"]);
        let child = cluster
            .tool("pgbench")
            .args(["-n", "-c", "2", "-T", "600", "postgres"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// DDL beside the load: relations come, go and shrink while the copy runs.
fn churn(cluster: &Cluster, rounds: usize) {
    for round in 0..rounds {
        cluster.psql(&format!(
            "create table churn{round} as select generate_series(1, 3000) i;
             create unlogged table lost{round} as select generate_series(1, 3000) i;
             truncate kept; drop table if exists churn{}; vacuum pgbench_tellers",
            round.wrapping_sub(2)
        ));
    }
}

/// What holds after any number of whole transactions of pgbench.
pub(crate) fn assert_balanced(cluster: &Cluster) {
    let balances = cluster.psql(
        "select (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers)
            and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
            and (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)",
    );
    assert_eq!(balances, "t");
}

fn assert_consistent(cluster: &Cluster) {
    assert_balanced(cluster);
    assert_eq!(cluster.psql("select sum(i) from far"), "12502500");
    assert_eq!(
        cluster.psql("select count(*) from scratch"),
        "0",
        "recovery reset it"
    );
}

fn an_online_copy_under_load_starts_and_is_whole(major: PgMajor) {
    let cluster = varied(major, major != PgMajor::V15);
    let load = Load::on(&cluster);
    let mut copy = Cluster::without_data(major);
    let writer = DirectoryWriter::create(&copy.data_dir(), options(&copy)).unwrap();
    let end = std::thread::scope(|scope| {
        scope.spawn(|| churn(&cluster, 6));
        copy_online_parallel(&cluster, &writer, 2).unwrap()
    });
    drop(load);
    assert_eq!(end.kind, Some(SnapshotKind::Online));
    assert!(end.bad_pages.is_empty() && end.wal.len() == 1);
    assert!(
        !copy.data_dir().join("tablespace_map").exists(),
        "links were made instead"
    );
    verify(&copy.data_dir(), major);

    start(&mut copy);
    assert_consistent(&copy);
    copy.check_running();
    check_stopped(&mut copy);
    // Every page once more, by our own reader.
    drop(
        PgData::cold(&copy.data_dir())
            .unwrap()
            .copy(&mut crate::pgdata_refuses::Nothing)
            .unwrap(),
    );
}

for_every_major!(an_online_copy_under_load_starts_and_is_whole:
    an_online_copy_of_13_starts_and_is_whole_verified_by_15 = V13,
    an_online_copy_of_14_starts_and_is_whole_verified_by_15 = V14,
    an_online_copy_of_15_without_checksums_starts_and_is_whole = V15,
    an_online_copy_of_16_starts_and_is_whole_scanned_by_its_server = V16,
    an_online_copy_of_17_starts_and_is_whole_and_its_manifest_reads_back = V17,
    an_online_copy_of_18_starts_and_is_whole_scanned_by_its_server = V18,
);

#[test]
fn a_copy_of_a_standby_starts_and_is_whole() {
    for major in majors([PgMajor::V14, PgMajor::V16]) {
        a_standby_is_copied(major);
    }
}

fn a_standby_is_copied(major: PgMajor) {
    let primary = varied(major, true);
    let load = Load::on(&primary);
    let mut standby = Cluster::without_data(major);
    let writer = DirectoryWriter::create(&standby.data_dir(), options(&standby)).unwrap();
    copy_online(&primary, &mut Sequential::new(&writer).unwrap()).unwrap();
    fs::write(standby.data_dir().join("standby.signal"), "").unwrap();
    standby.set("primary_conninfo", primary.conninfo());
    standby.set("wal_keep_size", "512MB");
    standby.set("max_prepared_transactions", 4);
    standby.set("allow_in_place_tablespaces", "on");
    standby.start();

    let mut copy = Cluster::without_data(major);
    let writer = DirectoryWriter::create(&copy.data_dir(), options(&copy)).unwrap();
    let backup = Backup::begin(&standby);
    let source = PgData::standby(&standby.data_dir(), bracket(&backup, &standby)).unwrap();
    let copied = source.copy_parallel(&writer, 2).unwrap();
    let stopped = backup.stop();
    // Its log is that of the primary, which finishes the segment that the stop lies in.
    primary.psql("select pg_switch_wal()");
    let wal = primary.data_dir().join("pg_wal");
    let end = copied
        .finish(
            &mut Sequential::new(&writer).unwrap(),
            Some(stop(&stopped, &wal)),
        )
        .unwrap();
    drop(load);
    assert_eq!(end.kind, Some(SnapshotKind::Standby));
    assert!(
        PgData::cold(&copy.data_dir()).is_err(),
        "a copy that was never started is not cold"
    );
    verify(&copy.data_dir(), major);
    fs::remove_file(copy.data_dir().join("standby.signal")).unwrap();
    start(&mut copy);
    assert_consistent(&copy);
    copy.check_running();
    check_stopped(&mut copy);
    standby.stop(StopMode::Fast);
}
