//! Standbys that follow, and their slots.

use std::time::Duration;

use neon_pgctl::{Replication, StandbyOptions, Upstream, claim_slot, drop_slot};
use neon_pgwire::SlotName;
use neon_testkit::Cluster;

use crate::bracket::until;
use crate::dropping::drop_after;
use crate::history::{connect, runtime, take_base};
use crate::support::*;

fn a_standby_follows_through_a_slot_of_its_own_and_is_promoted(major: PgMajor) {
    let mut cluster = Cluster::builder(major)
        .tcp()
        .password("se'cret")
        .setting("max_connections", 150)
        .setting("wal_keep_size", "0")
        .start();
    cluster.psql("create table t (i int)");
    let slot: SlotName = "follower".parse().unwrap();
    let scratch = Scratch::new();
    let pass_file = scratch.path().join("pgpass");
    std::fs::write(
        &pass_file,
        format!(
            "127.0.0.1:{}:replication:postgres:se'cret\n",
            cluster.port()
        ),
    )
    .unwrap();
    std::fs::set_permissions(
        &pass_file,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    neon_testkit::OsUser::current().own(&pass_file);
    let data = scratch.path().join("data");
    runtime().block_on(async {
        let mut primary = connect(&cluster).await;
        claim_slot(&mut primary, &slot).await.unwrap();
        // Nobody uses it yet: the same again.
        claim_slot(&mut primary, &slot).await.unwrap();
    });
    take_base(&cluster, &data);
    // A copy whose configuration gives less than the primary has.
    let conf = data.join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{text}\nmax_connections = 20\n")).unwrap();
    let standby = Instance::at(
        &installation(major),
        &data,
        scratch.path().join("log"),
        scratch.path().join("run"),
    )
    .unwrap();
    let upstream = Upstream::new("127.0.0.1", cluster.port(), "postgres")
        .with_pass_file(&pass_file)
        .with_application_name("one");
    let options = StandbyOptions::new(upstream).with_slot(slot.clone());
    runtime().block_on(async {
        standby.make_standby(&options).await.unwrap();
        standby.make_standby(&options).await.unwrap();
        let auto = std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
        assert_eq!(auto.matches("primary_conninfo").count(), 1);
        assert!(!auto.contains("se'cret") && !auto.contains("se''cret"));
        standby
            .start(&StartOptions::new().with_setting("listen_addresses", ""))
            .await
            .unwrap();
        let mut primary = connect(&cluster).await;
        primary
            .simple_query("insert into t select generate_series(1, 100)")
            .await
            .unwrap();
        let end = loop {
            let Replication::Primary { position, standbys } =
                neon_pgctl::replication(&mut primary).await.unwrap()
            else {
                panic!("no primary")
            };
            match standbys.as_slice() {
                [one] if one.replayed == Some(position) => {
                    assert_eq!(
                        (
                            one.application_name.as_str(),
                            one.slot.as_deref(),
                            one.behind
                        ),
                        ("one", Some("follower"), Some(0))
                    );
                    break position;
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let Replication::Standby {
            streaming,
            replayed,
            age,
            ..
        } = standby.replication().await.unwrap()
        else {
            panic!("no standby")
        };
        assert!(streaming && replayed >= end && age.is_some());
        // Another standby would take its WAL away.
        let error = claim_slot(&mut primary, &slot).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Slot);
        assert_eq!(
            drop_slot(&mut primary, &slot).await.unwrap_err().kind(),
            ErrorKind::Slot
        );
        let refused = standby
            .promote_standby(false, Duration::from_secs(120))
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::UpstreamAlive);
    });
    cluster.stop(neon_testkit::StopMode::Fast);
    until("the receiver to notice", || {
        let seen = runtime().block_on(standby.replication()).unwrap();
        matches!(
            seen,
            Replication::Standby {
                streaming: false,
                ..
            }
        )
    });
    runtime().block_on(async {
        standby
            .promote_standby(false, Duration::from_secs(120))
            .await
            .unwrap();
        let mut client = standby.connect("postgres").await.unwrap();
        let rows = client
            .simple_query("insert into t values (0); select count(*) from t")
            .await
            .unwrap();
        assert_eq!(rows[1].value(0, 0), Some("101"));
        client.close().await;
        standby.stop(&StopOptions::default()).await.unwrap();
        assert!(!data.join("standby.signal").exists());
    });
    cluster.start();
    runtime().block_on(async {
        let mut primary = connect(&cluster).await;
        assert!(drop_slot(&mut primary, &slot).await.unwrap());
        assert!(!drop_slot(&mut primary, &slot).await.unwrap());
    });
}

/// How a standby of an instance of ours reaches it.
fn upstream_of(primary: &Instance, port: u16) -> Upstream {
    Upstream::new(primary.socket_dir().to_str().unwrap(), port, "postgres")
        .with_pass_file(primary.pass_file().unwrap())
}

/// With this crate alone: an instance, its standby, a switchover.
fn a_standby_is_created_from_nothing(major: PgMajor) {
    run(async {
        let fixture = Fixture::new(major).await;
        let primary = &fixture.instance;
        // A reason for a primary to be unreachable by its old port, and a tablespace.
        fixture.configure("wal_keep_size = 0");
        let space = fixture.dir().join("space");
        std::fs::create_dir(&space).unwrap();
        neon_testkit::OsUser::current().own(&space);
        let started = primary.start(&start_options()).await.unwrap();
        query(primary, "CREATE TABLE t AS SELECT 1 AS i").await;
        let sql = format!("CREATE TABLESPACE s LOCATION '{}'", space.display());
        query(primary, &sql).await;
        query(primary, "CREATE TABLE far TABLESPACE s AS SELECT 1 AS i").await;
        let slot: SlotName = "follower".parse().unwrap();
        let mut client = primary.connect("postgres").await.unwrap();
        claim_slot(&mut client, &slot).await.unwrap();
        let options = StandbyOptions::new(upstream_of(primary, started.port))
            .with_slot(slot.clone())
            .without_sync();
        let dir = fixture.scratch.path().join("standby");
        let standby = Instance::create_standby(&installation(major), &dir, &options)
            .await
            .unwrap();
        // What is there is not replaced.
        let again = Instance::create_standby(&installation(major), &dir, &options).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::Exists);
        query(
            primary,
            "INSERT INTO t VALUES (2); INSERT INTO far VALUES (2)",
        )
        .await;
        let second = standby.start(&start_options()).await.unwrap();
        assert_ne!(second.port, started.port);
        assert_eq!(standby.status().await.unwrap().state, ServerState::Standby);
        let sum = "SELECT sum(i) FROM (SELECT i FROM t UNION ALL SELECT i FROM far) x";
        let start = std::time::Instant::now();
        while query(&standby, sum).await != "6" {
            assert!(start.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        primary.stop(&StopOptions::default()).await.unwrap();
        standby.promote_standby(true, PATIENCE).await.unwrap();
        query(&standby, "INSERT INTO far VALUES (3)").await;
        assert_eq!(query(&standby, sum).await, "9");
        standby.stop(&StopOptions::default()).await.unwrap();
        // In the tablespace of its own.
        primary.start(&start_options()).await.unwrap();
        assert_eq!(query(primary, sum).await, "6");
        primary.stop(&StopOptions::default()).await.unwrap();
        let names = std::fs::read_dir(fixture.scratch.path()).unwrap().count();
        assert_eq!(names, 2, "the two instances and nothing else");
    });
}

#[test]
fn a_standby_of_another_major_or_of_nobody_is_refused_and_nothing_is_left() {
    run(async {
        let fixture = Fixture::new(PgMajor::V16).await;
        let primary = &fixture.instance;
        let started = primary.start(&start_options()).await.unwrap();
        let create = async |major, upstream: Upstream| {
            let dir = fixture.scratch.path().join("standby");
            let options = StandbyOptions::new(upstream);
            let error = Instance::create_standby(&installation(major), dir, &options).await;
            error.unwrap_err().kind()
        };
        let upstream = upstream_of(primary, started.port);
        let wrong = create(PgMajor::V15, upstream.clone()).await;
        assert_eq!(wrong, ErrorKind::WrongMajor);
        query(primary, "ALTER SYSTEM SET max_replication_slots = 0").await;
        let stop = StopOptions::default();
        primary.restart(&stop, &start_options()).await.unwrap();
        assert_eq!(
            create(PgMajor::V16, upstream.clone()).await,
            ErrorKind::Slot
        );
        primary.stop(&stop).await.unwrap();
        let nobody = create(PgMajor::V16, upstream).await;
        assert_eq!(nobody, ErrorKind::Connection);
        let names = std::fs::read_dir(fixture.scratch.path()).unwrap().count();
        assert_eq!(names, 1, "nothing is left");
    });
}

/// Sessions, backups and slots of a server, but for the session that asks.
const HELD: &str = "SELECT (SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
    AND backend_type IN ('client backend', 'walsender')) \
    + (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'kept')";

/// Whatever a future of this module and of the facts was doing: nothing is held on the server afterwards.
#[test]
fn what_is_asked_of_a_primary_and_given_up_anywhere_holds_nothing() {
    run(async {
        let fixture = Fixture::new(PgMajor::V16).await;
        let primary = &fixture.instance;
        let started = primary.start(&start_options()).await.unwrap();
        let installation = installation(PgMajor::V16);
        let options = StandbyOptions::new(upstream_of(primary, started.port)).without_sync();
        let dir = fixture.scratch.path().join("standby");
        let folders = || std::fs::read_dir(fixture.scratch.path()).unwrap().count();
        let released = async |what: &str, polls: usize| {
            let start = std::time::Instant::now();
            while query(primary, HELD).await != "0" {
                assert!(start.elapsed() < PATIENCE, "{what} after {polls} polls");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let mut polls = 0;
        loop {
            let create = Instance::create_standby(&installation, &dir, &options);
            let done = drop_after(polls, create).await;
            released("a copy", polls).await;
            if let Some(standby) = done {
                standby.unwrap();
                break;
            }
            assert_eq!(folders(), 1, "after {polls} polls");
            polls = (polls + 1).max(polls * 5 / 4);
        }
        assert!(polls > 20, "only {polls}");
        let standby = Instance::open(&installation, &dir).unwrap();

        for polls in 0.. {
            let done = drop_after(polls, primary.replication()).await.is_some();
            released("replication", polls).await;
            if done {
                break;
            }
        }
        for polls in (0..).map(|n| n * (n + 1) / 2) {
            let done = drop_after(polls, primary.online_facts()).await.is_some();
            released("facts", polls).await;
            if done {
                break;
            }
        }
        for polls in 0.. {
            if drop_after(polls, primary.offline_facts()).await.is_some() {
                break;
            }
        }
        // A slot that was asked for may be there. Nobody holds it, and it can be claimed or dropped.
        let slot: SlotName = "kept".parse().unwrap();
        for polls in 0.. {
            let mut client = primary.connect("postgres").await.unwrap();
            let done = drop_after(polls, claim_slot(&mut client, &slot))
                .await
                .is_some();
            drop(client);
            released("claim_slot", polls).await;
            let mut client = primary.connect("postgres").await.unwrap();
            let dropped = drop_after(polls, drop_slot(&mut client, &slot))
                .await
                .is_some();
            drop(client);
            released("drop_slot", polls).await;
            let mut client = primary.connect("postgres").await.unwrap();
            drop_slot(&mut client, &slot).await.unwrap();
            assert!(!drop_slot(&mut client, &slot).await.unwrap());
            client.close().await;
            if done && dropped {
                break;
            }
        }

        // A directory that is being made a standby is none before it is one wholly.
        let signal = standby.data_dir().join("standby.signal");
        std::fs::remove_file(&signal).unwrap();
        for polls in 0.. {
            let done = drop_after(polls, standby.make_standby(&options)).await;
            assert_eq!(signal.exists(), done.is_some());
            if let Some(done) = done {
                done.unwrap();
                break;
            }
        }
        // The request to be promoted stands, or was not made; a session is not left in any case.
        standby.start(&start_options()).await.unwrap();
        for polls in 0.. {
            let done = drop_after(polls, standby.promote_standby(true, PATIENCE)).await;
            if done.is_some_and(|done| done.is_ok()) || !signal.exists() {
                break;
            }
            assert_eq!(query(&standby, HELD).await, "0");
        }
        until_promoted(&standby).await;
        for instance in [&standby, primary] {
            instance.stop(&StopOptions::default()).await.unwrap();
        }
    });
}

macro_rules! per_major {
    ($($module:ident $major:ident)*) => {$(
        #[test]
        fn $module() {
            a_standby_follows_through_a_slot_of_its_own_and_is_promoted(PgMajor::$major);
        }
    )*};
}

async fn until_promoted(standby: &Instance) {
    let start = std::time::Instant::now();
    while query(standby, "SELECT pg_is_in_recovery()").await != "f" {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

macro_rules! created_per_major {
    ($($module:ident $major:ident)*) => {$(
        #[test]
        fn $module() {
            a_standby_is_created_from_nothing(PgMajor::$major);
        }
    )*};
}

mod a_standby_is_created {
    use super::*;
    created_per_major!(v13 V13 v14 V14 v15 V15 v16 V16 v17 V17 v18 V18);
}

mod a_standby_follows_and_is_promoted {
    use super::*;
    per_major!(v13 V13 v14 V14 v15 V15 v16 V16 v17 V17 v18 V18);
}
