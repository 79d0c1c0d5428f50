//! A cluster with an archive, a base and marks in its WAL: made once for several recoveries.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use neon_pg_layout::Lsn;
use neon_pgctl::{Backup, BackupBracket, BracketOptions};
use neon_pgwire::{Client, Config, Params, Surroundings};
use neon_testkit::{Cluster, OsUser, StopMode};

use crate::support::*;

/// A stopped cluster whose table `t` got the numbers 1, 2, … one by one.
pub(crate) struct History {
    pub(crate) cluster: Cluster,
    pub(crate) major: PgMajor,
    /// An online copy taken while the table held 1.
    pub(crate) base: PathBuf,
    pub(crate) backup: Backup,
    pub(crate) archive: PathBuf,
    /// A position between the inserts of 2 and 3.
    pub(crate) lsn_after_2: Lsn,
    /// A time between 3 and 4.
    pub(crate) time_after_3: SystemTime,
    /// The name of a restore point between 4 and 5.
    pub(crate) point_after_4: &'static str,
    /// The transaction of 5.
    pub(crate) xid_of_5: u64,
    /// The last is 6.
    pub(crate) last: SystemTime,
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Connects as superuser over the private socket.
pub(crate) async fn connect(cluster: &Cluster) -> Client {
    let params: Params = cluster.conninfo().parse().unwrap();
    Client::connect(&Config::resolve(&params, &Surroundings::none()).unwrap())
        .await
        .unwrap()
}

/// Copies a running cluster inside a bracket.
pub(crate) fn take_base(cluster: &Cluster, to: &Path) -> Backup {
    runtime().block_on(async {
        let client = connect(cluster).await;
        let mut bracket = BackupBracket::start(client, &BracketOptions::new("a 'base'"))
            .await
            .unwrap();
        bracket
            .during(async { copy_files(&cluster.data_dir(), to) })
            .await
            .unwrap();
        let backup = bracket.stop().await.unwrap();
        for (name, content) in [
            ("backup_label", &backup.label_file),
            ("tablespace_map", &backup.tablespace_map_file),
        ] {
            if !content.is_empty() {
                std::fs::write(to.join(name), content).unwrap();
                OsUser::current().own(&to.join(name));
            }
        }
        backup
    })
}

/// As a backup would: without WAL, slots and what tells of a running server.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    // Files may vanish while they are copied.
    let script = r#"cp -a "$1" "$2" 2>/dev/null; cp -a "$1/global/pg_control" "$2/global/pg_control" &&
        rm -rf "$2"/postmaster.* "$2"/pg_wal/* "$2"/pg_replslot/*"#;
    let status = Command::new("/bin/sh")
        .args(["-c", script, "copy"])
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

/// A whole copy of a stopped directory.
pub(crate) fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

pub(crate) fn time_of(text: &str) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(text.parse().unwrap())
}

pub(crate) const NOW: &str = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";

impl History {
    pub(crate) fn write(major: PgMajor) -> Self {
        let mut cluster = Cluster::builder(major)
            .wal_segment_mib(1)
            .setting("archive_mode", "on")
            .setting("archive_timeout", "0")
            .setting("wal_keep_size", "0")
            .init();
        let archive = cluster.scratch_dir().join("an archive");
        OsUser::current().create_dir(&archive);
        cluster.set(
            "archive_command",
            format!("cp \"%p\" \"{}/%f\"", archive.display()),
        );
        cluster.start();
        cluster.psql("create table t (i int); insert into t values (1)");
        let base = cluster.scratch_dir().join("base");
        let backup = take_base(&cluster, &base);
        cluster.psql("insert into t values (2)");
        let lsn = cluster.psql("select pg_current_wal_insert_lsn()");
        cluster.psql("insert into t values (3)");
        let after_3 = cluster
            .psql(&format!("select pg_sleep(0.05); {NOW}"))
            .trim()
            .to_owned();
        cluster.psql("select pg_sleep(0.05); insert into t values (4); select pg_create_restore_point('after \"4\"')");
        let xid = cluster.psql("insert into t values (5) returning pg_current_xact_id()");
        // So that the last insert lies in a segment of its own.
        cluster.psql("select pg_switch_wal(); insert into t values (6)");
        let last = cluster.psql(&format!("{NOW}; select pg_switch_wal()"));
        cluster.stop(StopMode::Fast);
        Self {
            major,
            base,
            backup,
            archive,
            lsn_after_2: lsn.parse().unwrap(),
            time_after_3: time_of(&after_3),
            point_after_4: "after \"4\"",
            xid_of_5: xid.parse().unwrap(),
            last: time_of(last.lines().next().unwrap()),
            cluster,
        }
    }

    /// An instance on a fresh copy of the base.
    pub(crate) fn fresh(&self, name: &str) -> Instance {
        let to = self.cluster.scratch_dir().join(name);
        copy(&self.base, &to);
        self.instance(name)
    }

    /// The instance on a directory beside the base.
    pub(crate) fn instance(&self, name: &str) -> Instance {
        let scratch = self.cluster.scratch_dir();
        let at = |what: &str| scratch.join(format!("{name}.{what}"));
        Instance::at(
            &installation(self.major),
            scratch.join(name),
            at("log"),
            at("run"),
        )
        .unwrap()
    }
}

/// The numbers in `t` of an instance, started for it and stopped.
pub(crate) fn numbers(instance: &Instance) -> String {
    numbers_after(instance, "select 1")
}

/// As [`numbers`], after these statements.
pub(crate) fn numbers_after(instance: &Instance, sql: &str) -> String {
    runtime().block_on(async {
        // What the copied configuration says of sockets and ports is not for this one.
        instance.start(&StartOptions::new()).await.unwrap();
        let mut client = instance.connect("postgres").await.unwrap();
        client.simple_query(sql).await.unwrap();
        let results = client
            .simple_query("select string_agg(i::text, ' ' order by i) from t")
            .await
            .unwrap();
        let text = results[0].value(0, 0).unwrap().to_owned();
        client.close().await;
        instance.stop(&StopOptions::default()).await.unwrap();
        text
    })
}
