//! Standbys that follow, and their slots.

use std::time::Duration;

use neon_pgctl::{Replication, StandbyOptions, Upstream, claim_slot, drop_slot};
use neon_pgwire::SlotName;
use neon_testkit::Cluster;

use crate::bracket::until;
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

macro_rules! per_major {
    ($($module:ident $major:ident)*) => {$(
        #[test]
        fn $module() {
            a_standby_follows_through_a_slot_of_its_own_and_is_promoted(PgMajor::$major);
        }
    )*};
}

mod a_standby_follows_and_is_promoted {
    use super::*;
    per_major!(v13 V13 v14 V14 v15 V15 v16 V16 v17 V17 v18 V18);
}
