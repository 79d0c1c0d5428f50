//! Instances made from snapshots.

use std::fs;
use std::sync::{Arc, Mutex};

use neon_pg::{ErrorKind, Event, EventSink, PgMajor, RestoreChoice, Stage};

use crate::support::{Fixture, name, names_in, refused, run, sql, take};

/// What was told, in order.
pub(crate) fn listening(home: &Fixture) -> (neon_pg::Neon, Arc<Mutex<Vec<Event>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let neon = home.with(|options| {
        options.events = EventSink::new(move |event| sink.lock().unwrap().push(event));
    });
    (neon, told)
}

/// While they are aside, nobody works on the server of the recovery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlogged_relations_of_a_cold_snapshot_are_aside_only_while_nobody_visits() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let origin = name("pgdata1");
    pg.create(&home.create()).await.unwrap();
    let visits = Arc::new(Mutex::new(0));
    let count = Arc::clone(&visits);
    let counting = home.with(|options| {
        options.at_step = Some(Arc::new(move |step: &str| {
            *count.lock().unwrap() += usize::from(step == "create: visited");
        }));
    });
    pg.stop(&origin).await.unwrap();
    let without = take(&home.neon, "pgdata1", "without").await;
    pg.start(&origin).await.unwrap();
    run(
        &home.neon,
        "pgdata1",
        "create unlogged table u as select 1 i",
    )
    .await;
    pg.stop(&origin).await.unwrap();
    let with = take(&home.neon, "pgdata1", "with").await;
    let how = RestoreChoice::default();
    for from in [&without, &with] {
        let copy = counting.pg().create_from(&home.create(), from, &how).await;
        let copy = copy.unwrap().record.name;
        // Of the first.
        assert_eq!(*visits.lock().unwrap(), 1);
        assert_eq!(sql(&home.neon, copy.as_str(), "select 1").await, "1");
        if from.id == with.id {
            let rows = sql(&home.neon, copy.as_str(), "select count(*) from u").await;
            assert_eq!(rows, "1");
        }
        pg.stop(&copy).await.unwrap();
    }
}

async fn a_copy_lives_beside_its_origin(major: PgMajor) {
    let home = Fixture::of(major);
    let pg = home.neon.pg();
    let origin = pg.create(&home.create()).await.unwrap();
    let archive = home.scratch.path().join("archive");
    neon_testkit::OsUser::current().create_dir(&archive);
    run(
        &home.neon,
        "pgdata1",
        &format!(
            "create table t as select i from generate_series(1, 10000) i; \
         create role app login password 'secret'; \
         create unlogged table u as select 1 i; \
         select pg_create_physical_replication_slot('kept', true); \
         alter system set archive_mode = on; \
         alter system set archive_command = 'cp %p {}/%f'; \
         alter system set synchronous_standby_names = ''; \
         alter system set listen_addresses = '*'",
            archive.display()
        ),
    )
    .await;
    pg.restart(&name("pgdata1")).await.unwrap();
    let online = take(&home.neon, "pgdata1", "online").await;
    let facts = online.repository.snapshot(online.id).await.unwrap();
    assert_eq!(
        facts.facts().needs.install_user.as_deref(),
        Some("postgres")
    );
    run(&home.neon, "pgdata1", "insert into t values (0)").await;

    let (neon, told) = listening(&home);
    let copy = neon
        .pg()
        .create_from(&home.create(), &online, &RestoreChoice::default())
        .await
        .unwrap();
    assert_eq!(copy.record.name.as_str(), "pgdata2");
    assert_eq!(copy.record.stage, Stage::Ready);
    assert_ne!(copy.endpoint(), origin.endpoint());
    assert_ne!(copy.record.lineage, origin.record.lineage);
    assert_eq!(copy.record.base.as_ref().unwrap().snapshot, online.id);
    assert_eq!(
        copy.record.timelines.iter().copied().collect::<Vec<_>>(),
        [1, 2]
    );
    let ask = async |text: &str| sql(&neon, "pgdata2", text).await;
    assert_eq!(ask("select count(*) from t").await, "10000");
    assert_eq!(ask("select count(*) from u").await, "0");
    assert_eq!(ask("select count(*) from pg_replication_slots").await, "0");
    assert_eq!(ask("show archive_mode").await, "off");
    assert_eq!(ask("show archive_command").await, "(disabled)");
    assert_eq!(ask("show listen_addresses").await, "localhost");
    assert_eq!(
        ask("select timeline_id from pg_control_checkpoint()").await,
        "2"
    );
    let notes: Vec<String> = told
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            Event::Note(note) => Some(note.clone()),
            _ => None,
        })
        .collect();
    assert!(
        notes.iter().any(|note| note.starts_with("archive_mode:")),
        "{notes:?}"
    );
    // A connection over TCP, with the password of its own.
    let instance = neon.pg().instance(&name("pgdata2")).await.unwrap();
    let uri = instance.uri("postgres").unwrap();
    assert!(uri.contains("@localhost:"), "{uri}");
    let theirs = neon.pg().instance(&name("pgdata1")).await.unwrap();
    assert_ne!(
        fs::read_to_string(instance.pass_file().unwrap()).unwrap(),
        fs::read_to_string(theirs.pass_file().unwrap()).unwrap()
    );
    // Nothing of how it was made is left.
    let left = names_in(&home.scratch.path().join("home/pg"));
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");

    // Of a stopped cluster, and as it is. A second copy of one lineage is on a timeline that the first is not judged by.
    pg.stop(&name("pgdata1")).await.unwrap();
    let cold = take(&home.neon, "pgdata1", "cold").await;
    let mut as_is = RestoreChoice::default();
    as_is.as_is = true;
    let copy = neon
        .pg()
        .create_from(&home.create(), &cold, &as_is)
        .await
        .unwrap();
    assert_eq!(copy.record.name.as_str(), "pgdata3");
    let instance = neon.pg().instance(&name("pgdata3")).await.unwrap();
    let settings = instance.file_settings();
    assert_eq!(settings.value("archive_mode"), Some("on"));
    // The origin archives what it finished, at the latest when it stopped. What the copies finish goes nowhere, but of the
    // one that is as it is: that it does is what was asked for.
    let archived = || names_in(&archive);
    assert!(!archived().is_empty());
    neon.pg().stop(&name("pgdata3")).await.unwrap();
    let before = archived();
    run(&neon, "pgdata2", "insert into t values (1)").await;
    run(&neon, "pgdata2", "select pg_switch_wal(); checkpoint").await;
    neon.pg().stop(&name("pgdata2")).await.unwrap();
    assert_eq!(archived(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_13_lives_beside_its_origin() {
    a_copy_lives_beside_its_origin(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_18_lives_beside_its_origin() {
    a_copy_lives_beside_its_origin(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_opened_to_be_read_and_leaves_nothing() {
    let home = Fixture::new();
    home.neon.pg().create(&home.create()).await.unwrap();
    run(&home.neon, "pgdata1", "create table t as select 7 i").await;
    let found = take(&home.neon, "pgdata1", "a").await;
    let open = home.neon.snapshots().open(&found).await.unwrap();
    let data = open.instance().data_dir().to_owned();
    let mut client = open.connect("postgres").await.unwrap();
    let rows = client.simple_query("select i from t").await.unwrap();
    assert_eq!(rows[0].value(0, 0), Some("7"));
    client
        .simple_query("insert into t values (8)")
        .await
        .unwrap_err();
    client.close().await;
    let (folder, port) = open.socket();
    assert!(folder.join(format!(".s.PGSQL.{port}")).exists());
    // Another one beside it; each goes by itself.
    let second = home.neon.snapshots().open(&found).await.unwrap();
    assert!(data.exists());
    open.close().await;
    assert!(!data.exists());
    second.connect("postgres").await.unwrap().close().await;
    drop(second);
    for folder in ["pg", "state/open"] {
        let left = names_in(&home.scratch.path().join("home").join(folder));
        assert!(left.iter().all(|name| name == "pgdata1"), "{left:?}");
    }
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
}

async fn a_replica_follows(major: PgMajor) {
    let home = Fixture::of(major);
    let pg = home.neon.pg();
    let missing = pg.start_replica(&name("pgdata1")).await;
    assert_eq!(refused(missing), ErrorKind::NotFound);
    pg.create(&home.create()).await.unwrap();
    run(&home.neon, "pgdata1", "create table t as select 1 i").await;
    let replica = pg.start_replica(&name("pgdata1")).await.unwrap();
    assert_eq!(replica.record.name.as_str(), "pgdata1-r1");
    assert_eq!(replica.role_in_list().as_deref(), Some("replica-1"));
    let primary = pg.get(&name("pgdata1")).await.unwrap();
    assert_eq!(primary.role_in_list().as_deref(), Some("primary"));
    assert_ne!(primary.endpoint(), replica.endpoint());
    run(&home.neon, "pgdata1", "insert into t values (2)").await;
    let begun = std::time::Instant::now();
    while sql(&home.neon, "pgdata1-r1", "select count(*) from t").await != "2" {
        assert!(begun.elapsed().as_secs() < 60);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // It shows what its primary shows; the primary says who would be lost.
    let snap = take(&home.neon, "pgdata1", "a").await;
    let choice = neon_pg::CheckoutChoice::default();
    let plan = pg
        .plan_checkout(&name("pgdata1"), &snap, choice)
        .await
        .unwrap();
    assert_eq!(plan.replicas, ["pgdata1-r1"]);
    let refused_plan = pg.plan_checkout(&name("pgdata1-r1"), &snap, choice).await;
    assert_eq!(refused(refused_plan), ErrorKind::Invalid);
    let second = pg.start_replica(&name("pgdata1")).await.unwrap();
    assert_eq!(second.role_in_list().as_deref(), Some("replica-2"));
    let record = &primary.record;
    assert_eq!(
        pg.replicas_of(record).unwrap(),
        [name("pgdata1-r1"), name("pgdata1-r2")]
    );
    pg.destroy(&name("pgdata1-r2")).await.unwrap();
    // One that is away counts, too.
    pg.stop(&name("pgdata1-r1")).await.unwrap();
    let plan = pg.plan_checkout(&name("pgdata1"), &snap, choice).await;
    assert_eq!(plan.unwrap().replicas, ["pgdata1-r1"]);
    pg.stop(&name("pgdata1")).await.unwrap();
    let plan = pg.plan_checkout(&name("pgdata1"), &snap, choice).await;
    assert_eq!(plan.unwrap().replicas, ["pgdata1-r1"]);
    let orphans = async || {
        let report = home.neon.doctor(&neon_pg::DoctorOptions::default()).await;
        let findings = report.unwrap().findings.into_iter();
        let orphans = findings.filter(|one| one.code == "replica-orphaned");
        orphans.map(|one| one.subject).collect::<Vec<_>>()
    };
    assert!(orphans().await.is_empty());
    let id = pg.destroy(&name("pgdata1")).await.unwrap();
    assert_eq!(orphans().await, ["pg pgdata1-r1"]);
    pg.undo_destroy(&id).await.unwrap();
    assert!(orphans().await.is_empty());
    if !pg
        .get(&name("pgdata1"))
        .await
        .unwrap()
        .status
        .unwrap()
        .is_up()
    {
        pg.start(&name("pgdata1")).await.unwrap();
    }
    pg.destroy(&name("pgdata1-r1")).await.unwrap();
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(sql(&home.neon, "pgdata1", slots).await, "0");
    pg.stop(&name("pgdata1")).await.unwrap();
    let stopped = pg.start_replica(&name("pgdata1")).await;
    assert_eq!(refused(stopped), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_13_follows_its_primary() {
    a_replica_follows(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_18_follows_its_primary() {
    a_replica_follows(PgMajor::V18).await;
}

/// What cannot run here, fit here or be read is told before, or leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_not_run_is_refused_with_its_repair_and_leaves_nothing() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    let data = pg
        .instance(&name("one"))
        .await
        .unwrap()
        .data_dir()
        .to_owned();
    let conf = data.join("postgresql.conf");
    let before = fs::read_to_string(&conf).unwrap();
    fs::write(
        &conf,
        format!("{before}shared_preload_libraries = 'no_such_library'\n"),
    )
    .unwrap();
    let preloads = take(&home.neon, "one", "preloads").await;
    fs::write(&conf, &before).unwrap();
    let plain = take(&home.neon, "one", "plain").await;

    let how = RestoreChoice::default();
    let two = home.stopped("two");
    let error = pg.create_from(&two, &preloads, &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(error.reason().contains("no_such_library"), "{error}");
    assert!(
        error.hint().unwrap().contains("--force"),
        "{:?}",
        error.hint()
    );
    let mut force = RestoreChoice::default();
    force.force = true;
    let mut starts = home.create();
    starts.name = Some(name("forced"));
    pg.create_from(&starts, &preloads, &force).await.unwrap();
    assert_eq!(
        sql(&home.neon, "forced", "show shared_preload_libraries").await,
        ""
    );
    pg.stop(&name("forced")).await.unwrap();

    // Another major than asked for, and one that is not installed.
    let mut other = home.stopped("two");
    other.major = Some(PgMajor::V16);
    assert_eq!(
        refused(pg.create_from(&other, &plain, &how).await),
        ErrorKind::Invalid
    );
    let bare = home.with(|options| {
        options.pg_bin = vec![
            neon_testkit::Installation::of(PgMajor::V18)
                .bin_dir()
                .to_owned(),
        ];
    });
    let mut any = neon_pg::CreatePg::default();
    any.name = Some(name("two"));
    let found = bare.snapshots().find("one@plain", None).await.unwrap();
    match bare.pg().create_from(&any, &found, &how).await {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Environment);
            assert!(error.hint().is_some(), "{error:?}");
        }
        // The distribution's own, in its usual place.
        Ok(_) => {
            pg.stop(&name("two")).await.unwrap();
            pg.destroy(&name("two")).await.unwrap();
        }
    }

    // A damaged pack, which the error names.
    let packs = home.scratch.path().join("home/store/local/packs");
    let mut largest = (0, std::path::PathBuf::new());
    for folder in fs::read_dir(&packs).unwrap().flatten() {
        for pack in fs::read_dir(folder.path()).unwrap().flatten() {
            largest = largest.max((pack.metadata().unwrap().len(), pack.path()));
        }
    }
    let mut bytes = fs::read(&largest.1).unwrap();
    for at in (0..bytes.len() / 2).step_by(512) {
        bytes[at] ^= 0x55;
    }
    fs::write(&largest.1, bytes).unwrap();
    let neon = home.again();
    let found = neon.snapshots().find("one@plain", None).await.unwrap();
    let error = neon.pg().create_from(&two, &found, &how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    let pack = largest.1.file_stem().unwrap().to_str().unwrap().to_owned();
    assert!(format!("{error:?}").contains(&pack[..16]), "{error:?}");
    assert_eq!(
        refused(neon.pg().get(&name("two")).await),
        ErrorKind::NotFound
    );
    let left = names_in(&home.scratch.path().join("home/pg"));
    assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
}

/// Data directories at places of their own, and tablespaces, which are never the origin's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_and_tablespaces_are_where_they_were_asked_for_and_below_the_copy() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let away = home.scratch.path().join("away");
    neon_testkit::OsUser::current().create_dir(&away);
    let space = home.scratch.path().join("space");
    neon_testkit::OsUser::current().create_dir(&space);
    let mut here = home.create();
    here.pgdata = Some(away.join("data"));
    pg.create(&here).await.unwrap();
    assert!(away.join("data/PG_VERSION").exists());
    let place = format!("create tablespace s location '{}'", space.display());
    run(&home.neon, "pgdata1", &place).await;
    run(
        &home.neon,
        "pgdata1",
        "create table t tablespace s as select 7 i; create table u as select 1 i",
    )
    .await;
    let snap = take(&home.neon, "pgdata1", "a").await;

    let mut there = home.create();
    there.pgdata = Some(away.join("copy"));
    let how = RestoreChoice::default();
    pg.create_from(&there, &snap, &how).await.unwrap();
    let inside = pg.create_from(&home.create(), &snap, &how).await.unwrap();
    let folder = home
        .scratch
        .path()
        .join("home/pg")
        .join(inside.record.name.as_str());
    for (copy, below) in [
        ("pgdata2", away.join("copy-tablespaces")),
        ("pgdata3", folder),
    ] {
        run(&home.neon, copy, "insert into t values (8); vacuum t").await;
        assert_eq!(sql(&home.neon, copy, "select sum(i) from t").await, "15");
        let text = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 's'";
        let location = sql(&home.neon, copy, text).await;
        assert!(location.starts_with(below.to_str().unwrap()), "{location}");
    }
    assert_eq!(
        sql(&home.neon, "pgdata1", "select sum(i) from t").await,
        "7"
    );
    // Back to the snapshot, tablespace and all.
    run(&home.neon, "pgdata2", "drop table t").await;
    run(&home.neon, "pgdata2", "drop tablespace s").await;
    let choice = neon_pg::CheckoutChoice::default();
    let plan = pg
        .plan_checkout(&name("pgdata2"), &snap, choice)
        .await
        .unwrap();
    assert!(plan.of_another);
    pg.checkout(&plan).await.unwrap();
    assert_eq!(
        sql(&home.neon, "pgdata2", "select sum(i) from t").await,
        "7"
    );

    // Into the trash and back; in between the place is free.
    let id = pg.destroy(&name("pgdata2")).await.unwrap();
    assert!(!away.join("copy").exists() && !away.join("copy-tablespaces").exists());
    there.name = Some(name("other"));
    pg.create(&there).await.unwrap();
    assert_eq!(refused(pg.create(&there).await), ErrorKind::Exists);
    assert_eq!(refused(pg.undo_destroy(&id).await), ErrorKind::Exists);
    pg.destroy(&name("other")).await.unwrap();
    // It ran.
    pg.undo_destroy(&id).await.unwrap();
    assert_eq!(
        sql(&home.neon, "pgdata2", "select sum(i) from t").await,
        "7"
    );
    for copy in ["pgdata1", "pgdata2", "pgdata3"] {
        pg.stop(&name(copy)).await.unwrap();
    }
    there.pgdata = Some("relative".into());
    assert_eq!(refused(pg.create(&there).await), ErrorKind::Invalid);
    let left = fs::read_dir(&away).unwrap().flatten();
    let left: Vec<_> = left
        .filter(|entry| entry.file_name().to_str().unwrap().starts_with(".neon-new"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
