//! The backup bracket on primaries and standbys.

use std::time::{Duration, Instant};

use neon_pg_layout::{BackupSource, Lsn};
use neon_pgctl::{BackupBracket, BracketOptions, StandbyOptions, Upstream};
use neon_pgwire::Client;
use neon_testkit::{Cluster, OsUser, StopMode};

use crate::dropping::drop_after;
use crate::history::{connect, copy_files, runtime, take_base};
use crate::support::*;

/// Waits for something that takes its time on a loaded machine.
pub(crate) fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "waiting for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

const SESSIONS: &str = "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";

fn server_is_free(cluster: &Cluster) {
    until("slot and session to go", || {
        cluster.psql("select count(*) from pg_replication_slots") == "0"
            && cluster.psql(SESSIONS) == "0"
    });
}

fn cluster(major: PgMajor) -> Cluster {
    Cluster::builder(major)
        .wal_segment_mib(1)
        .setting("archive_mode", "on")
        // An archive that takes nothing must hold up nobody.
        .setting("archive_command", "false")
        .setting("wal_keep_size", "0")
        .start()
}

fn a_bracket_gives_both_files_and_keeps_the_wal(major: PgMajor) {
    let mut cluster = cluster(major);
    let place = cluster.tablespace_dir("a \"b\" ü");
    cluster.psql(&format!(
        "create tablespace ts location '{}'",
        place.display().to_string().replace('\'', "''")
    ));
    cluster.psql("create table t (i int)");
    runtime().block_on(async {
        let client = connect(&cluster).await;
        let label = "ünïcode 'quoted' \\ and\ttabs";
        let mut bracket = BackupBracket::start(client, &BracketOptions::new(label)).await.unwrap();
        let started = bracket.started().clone();
        let (slot, from) = started.slot.clone().unwrap();
        assert!(from <= started.start, "{from} {}", started.start);
        assert!(!started.standby);
        let temporary = cluster.psql("select slot_name from pg_replication_slots where temporary");
        assert_eq!(temporary, slot);
        bracket
            .during(async {
                for _ in 0..3 {
                    cluster.psql("insert into t select generate_series(1, 5000); select pg_switch_wal(); checkpoint");
                }
            })
            .await
            .unwrap();
        let (backup, hold) = bracket.stop_with().await.unwrap();
        assert_eq!(backup.label.label.as_deref(), Some(label.as_bytes()));
        assert_eq!(backup.label.to_bytes(), backup.label_file);
        assert_eq!(backup.label.start, started.start);
        let source = if major < PgMajor::V14 { BackupSource::Master } else { BackupSource::Primary };
        assert_eq!(backup.label.from, source);
        assert!(backup.stop > backup.start.start);
        assert_eq!(backup.start.system_identifier.get().to_string(), cluster.psql("select system_identifier from pg_control_system()"));
        let [(oid, path)] = backup.tablespace_map.entries.as_slice() else { panic!("{:?}", backup.tablespace_map) };
        assert_eq!(oid.to_string(), cluster.psql("select oid from pg_tablespace where spcname = 'ts'"));
        assert_eq!(path, place.to_str().unwrap().as_bytes());
        // Every segment from the start on is still there, three checkpoints later.
        let size = backup.start.wal_segment_size;
        let mut name = backup.label.start_segment;
        let last = neon_pg_layout::SegmentName::ending_at(backup.start.timeline, backup.stop, size);
        loop {
            assert!(cluster.data_dir().join("pg_wal").join(name.to_string()).exists(), "{name}");
            if name == last {
                break;
            }
            name = name.next(size).unwrap().unwrap();
        }
        // What the server itself wrote down of this backup begins with the same bytes.
        let history = cluster.data_dir().join("pg_wal").join(backup.label.history_file_name(size).to_string());
        let history = std::fs::read(history).unwrap();
        let lines = |text: &[u8]| String::from_utf8_lossy(text).lines().map(str::to_owned).collect::<Vec<_>>();
        for line in lines(&backup.label_file) {
            assert!(lines(&history).contains(&line), "{line}");
        }
        hold.release().await;
    });
    server_is_free(&cluster);
    cluster.psql("drop tablespace ts");
    a_lost_session_is_noticed_at_once(&cluster);
    a_lost_slot_ends_the_backup(&cluster);
    a_checkpoint_can_be_spread_and_given_up(&cluster);
    every_await_point_can_be_the_last(&cluster);
    what_cannot_be_backed_up_is_refused(&mut cluster);
}

/// Both by waiting for it alone and while working; the work is dropped.
fn a_lost_session_is_noticed_at_once(cluster: &Cluster) {
    runtime().block_on(async {
        for _ in 0..2 {
            let client = connect(cluster).await;
            let pid = client.process_id().unwrap();
            let mut bracket = BackupBracket::start(client, &BracketOptions::new("x"))
                .await
                .unwrap();
            let kill = || cluster.psql(&format!("select pg_terminate_backend({pid})"));
            let error = bracket
                .during(async {
                    kill();
                    std::future::pending::<()>().await;
                })
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BackupLost);
            assert_eq!(bracket.lost().await.kind(), ErrorKind::BackupLost);
            assert_eq!(
                bracket.stop().await.unwrap_err().kind(),
                ErrorKind::BackupLost
            );
        }
    });
    server_is_free(cluster);
}

/// A slot that keeps more WAL than it may is taken away, with the session that has it.
fn a_lost_slot_ends_the_backup(cluster: &Cluster) {
    cluster.psql("alter system set max_slot_wal_keep_size = '1MB'; select pg_reload_conf()");
    until("the limit to be known", || {
        cluster.psql("show max_slot_wal_keep_size") == "1MB"
    });
    let error = runtime().block_on(async {
        let client = connect(cluster).await;
        let options = BracketOptions::new("x");
        let mut bracket = BackupBracket::start(client, &options).await.unwrap();
        for _ in 0..4 {
            cluster.psql("insert into t select generate_series(1, 5000); select pg_switch_wal()");
        }
        cluster.psql("checkpoint");
        bracket.lost().await
    });
    assert_eq!(error.kind(), ErrorKind::BackupLost);
    cluster.psql("alter system reset max_slot_wal_keep_size; select pg_reload_conf()");
    server_is_free(cluster);
}

/// A spread checkpoint of many pages takes minutes; a server that waits for one notices that we are gone.
fn a_checkpoint_can_be_spread_and_given_up(cluster: &Cluster) {
    cluster.psql("insert into t select generate_series(1, 100000)");
    let options = BracketOptions::new("slow").with_fast_checkpoint(false);
    runtime().block_on(async {
        let client = connect(cluster).await;
        let start = BackupBracket::start(client, &options);
        let waited = tokio::time::timeout(Duration::from_millis(1500), start).await;
        assert!(waited.is_err(), "it was not spread");
    });
    if cluster.major() == PgMajor::V13 {
        // Not before the checkpoint is done, which another one makes hurry.
        cluster.psql("checkpoint");
    }
    server_is_free(cluster);
    cluster.psql("checkpoint");
}

fn every_await_point_can_be_the_last(cluster: &Cluster) {
    let options = BracketOptions::new("given up");
    for polls in 0.. {
        let done = runtime().block_on(async {
            let client = connect(cluster).await;
            drop_after(polls, BackupBracket::start(client, &options))
                .await
                .is_some()
        });
        server_is_free(cluster);
        if done {
            break;
        }
    }
    for polls in 0.. {
        let done = runtime().block_on(async {
            let client: Client = connect(cluster).await;
            let bracket = BackupBracket::start(client, &options).await.unwrap();
            drop_after(polls, bracket.stop()).await.is_some()
        });
        server_is_free(cluster);
        if done {
            break;
        }
    }
}

fn what_cannot_be_backed_up_is_refused(cluster: &mut Cluster) {
    let kind = |cluster: &Cluster, options: &BracketOptions, user: &str| {
        let kind = runtime().block_on(async {
            let mut client = connect(cluster).await;
            client
                .simple_query(&format!("set role {user}"))
                .await
                .unwrap();
            BackupBracket::start(client, options)
                .await
                .unwrap_err()
                .kind()
        });
        server_is_free(cluster);
        kind
    };
    for label in [
        "a\nb".to_owned(),
        "a\rb".to_owned(),
        "a\0b".to_owned(),
        "x".repeat(1024),
    ] {
        assert_eq!(
            kind(cluster, &BracketOptions::new(label), "postgres"),
            ErrorKind::Invalid
        );
    }
    cluster.psql("create role plain");
    assert_eq!(
        kind(cluster, &BracketOptions::new("x").with_slot(false), "plain"),
        ErrorKind::Permissions
    );
    assert_eq!(
        kind(cluster, &BracketOptions::new("x"), "plain"),
        ErrorKind::Permissions
    );
    cluster.set("max_replication_slots", 0);
    cluster.restart();
    assert_eq!(
        kind(cluster, &BracketOptions::new("x"), "postgres"),
        ErrorKind::Slot
    );
    cluster.set("wal_level", "minimal");
    cluster.set("archive_mode", "off");
    cluster.set("max_wal_senders", 0);
    cluster.restart();
    assert_eq!(
        kind(
            cluster,
            &BracketOptions::new("x").with_slot(false),
            "postgres"
        ),
        ErrorKind::WalLevelMinimal
    );
    cluster.stop(StopMode::Immediate);
}

/// A standby as source, and what spoils a backup of one.
fn a_standby_can_be_the_source(major: PgMajor) {
    let cluster = Cluster::builder(major)
        .wal_segment_mib(1)
        .setting("wal_keep_size", "64MB")
        .start();
    cluster.psql("create table t (i int); insert into t values (1)");
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    take_base(&cluster, &data);
    let standby = Instance::at(
        &installation(major),
        &data,
        scratch.path().join("log"),
        scratch.path().join("run"),
    )
    .unwrap();
    let upstream = Upstream::new(
        cluster.socket_dir().to_str().unwrap(),
        cluster.port(),
        "postgres",
    );
    runtime().block_on(async {
        standby
            .make_standby(&StandbyOptions::new(upstream))
            .await
            .unwrap();
        standby.start(&StartOptions::new()).await.unwrap();
        let caught_up = async |lsn: Lsn| {
            loop {
                if let neon_pgctl::Replication::Standby { replayed, .. } =
                    standby.replication().await.unwrap()
                    && replayed >= lsn
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let insert = |number: u32| -> Lsn {
            let rows = cluster.psql(&format!(
                "insert into t values ({number}); checkpoint; select pg_current_wal_flush_lsn()"
            ));
            rows.parse().unwrap()
        };
        caught_up(insert(2)).await;
        let client = standby.connect("postgres").await.unwrap();
        let mut bracket = BackupBracket::start(client, &BracketOptions::new("of a standby"))
            .await
            .unwrap();
        assert!(bracket.started().standby);
        let copy = scratch.path().join("copy");
        caught_up(insert(3)).await;
        bracket
            .during(async { copy_files(&data, &copy) })
            .await
            .unwrap();
        let (backup, hold) = bracket.stop_with().await.unwrap();
        assert_eq!(backup.label.from, BackupSource::Standby);
        std::fs::write(copy.join("backup_label"), &backup.label_file).unwrap();
        OsUser::current().own(&copy.join("backup_label"));
        // The WAL it needs is in the standby's own pg_wal.
        let wal = neon_pgctl::WalSource::Directory(data.join("pg_wal"));
        let plan = neon_pgctl::RecoveryPlan::new(wal, neon_pgctl::RecoveryTarget::Immediate)
            .with_end(neon_pgctl::RecoveryEnd::Promoted)
            .with_durability(false);
        let instance = Instance::at(
            &installation(major),
            &copy,
            scratch.path().join("log2"),
            scratch.path().join("run2"),
        )
        .unwrap();
        instance.recover(&plan, |_| {}).await.unwrap();
        hold.release().await;
        instance.start(&StartOptions::new()).await.unwrap();
        let mut client = instance.connect("postgres").await.unwrap();
        let rows = client.simple_query("select count(*) from t").await.unwrap();
        assert!(["2", "3"].contains(&rows[0].value(0, 0).unwrap()));
        instance.stop(&StopOptions::default()).await.unwrap();

        let client = standby.connect("postgres").await.unwrap();
        let bracket = BackupBracket::start(client, &BracketOptions::new("x"))
            .await
            .unwrap();
        cluster.psql("alter system set full_page_writes = off; select pg_reload_conf()");
        until("full_page_writes to be off", || {
            cluster.psql("show full_page_writes") == "off"
        });
        caught_up(insert(4)).await;
        assert_eq!(
            bracket.stop().await.unwrap_err().kind(),
            ErrorKind::BackupSpoiled
        );
        let client = standby.connect("postgres").await.unwrap();
        let error = BackupBracket::start(client, &BracketOptions::new("x"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BackupSpoiled);
        cluster.psql("alter system reset full_page_writes; select pg_reload_conf()");
        until("full_page_writes to be on", || {
            cluster.psql("show full_page_writes") == "on"
        });
        caught_up(insert(5)).await;
        let mut client = standby.connect("postgres").await.unwrap();
        client.simple_query("checkpoint").await.unwrap();
        let bracket = BackupBracket::start(client, &BracketOptions::new("x"))
            .await
            .unwrap();
        let error = standby
            .promote_standby(false, Duration::from_secs(120))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UpstreamAlive);
        standby
            .promote_standby(true, Duration::from_secs(120))
            .await
            .unwrap();
        assert_eq!(
            bracket.stop().await.unwrap_err().kind(),
            ErrorKind::BackupSpoiled
        );
        standby.stop(&StopOptions::default()).await.unwrap();
    });
}

macro_rules! per_major {
    ($($module:ident $major:ident)*) => {$(
        mod $module {
            use neon_testkit::PgMajor;

            #[test]
            fn a_bracket_gives_both_files_and_keeps_the_wal() {
                super::a_bracket_gives_both_files_and_keeps_the_wal(PgMajor::$major);
            }

            #[test]
            fn a_standby_can_be_the_source() {
                super::a_standby_can_be_the_source(PgMajor::$major);
            }
        }
    )*};
}

per_major!(v13 V13 v14 V14 v15 V15 v16 V16 v17 V17 v18 V18);
