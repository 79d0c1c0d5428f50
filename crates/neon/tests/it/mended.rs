//! Small promises of restoring, destroying and storing, each of which was broken once.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use neon_pg::{CheckoutChoice, ErrorKind, Event, EventSink, PgMajor, RestoreChoice};
use rustix::fs::{FlockOperation, flock};

use crate::support::{Fixture, name, refused, run, sql, take};

fn folder(home: &Fixture, pg: &str) -> std::path::PathBuf {
    home.scratch.path().join("home/pg").join(pg)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_in_another_encoding_stays_in_a_copy() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    let conf = folder(&home, "one").join("data/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    // As of a cluster that was made elsewhere: without our file in it.
    let text: String = text
        .lines()
        .filter(|line| !line.contains("neon.conf"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(b"# gr\xfc\xdfe\nwork_mem = '7MB'\n");
    fs::write(&conf, &bytes).unwrap();
    let found = take(&home.neon, "one", "a").await;
    for (copy, as_is) in [("two", false), ("three", true)] {
        let mut how = RestoreChoice::default();
        how.as_is = as_is;
        pg.create_from(&home.stopped(copy), &found, &how)
            .await
            .unwrap();
        let now = fs::read(folder(&home, copy).join("data/postgresql.conf")).unwrap();
        assert!(now.starts_with(&bytes), "{copy}: {} bytes", now.len());
        let instance = pg.instance(&name(copy)).await.unwrap();
        assert_eq!(instance.file_settings().value("work_mem"), Some("7MB"));
    }
}

/// A cluster that was not only ours may have used timelines that nobody here knows of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_what_is_not_only_ours_leaps_over_timelines() {
    let home = Fixture::of(PgMajor::V16);
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    let found = take(&home.neon, "one", "a").await;
    let how = RestoreChoice::default();
    let known = pg
        .create_from(&home.stopped("two"), &found, &how)
        .await
        .unwrap();
    assert!(known.record.timelines.iter().eq(&[1, 2]));
    pg.destroy(&name("one")).await.unwrap();
    let strange = pg
        .create_from(&home.stopped("three"), &found, &how)
        .await
        .unwrap();
    assert!(
        strange.record.timelines.iter().eq(&[1, 16]),
        "{:?}",
        strange.record.timelines
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_heads_are_not_given_again_to_an_instance_of_the_same_name() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let choice = CheckoutChoice::default();
    for number in 0..2 {
        pg.create(&home.stopped("one")).await.unwrap();
        let tag = format!("a{number}");
        let found = take(&home.neon, "one", &tag).await;
        let plan = pg
            .plan_checkout(&name("one"), &found, choice)
            .await
            .unwrap();
        let done = pg.checkout(&plan).await.unwrap();
        assert_eq!(done.head.to_string(), format!("one@HEAD{{{number}}}"));
        pg.destroy(&name("one")).await.unwrap();
        let head = done.head.to_string();
        let plan = home
            .neon
            .snapshots()
            .plan_destroy(&head, None)
            .await
            .unwrap();
        home.neon.snapshots().destroy(&plan).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_is_being_detached_gets_no_instance() {
    let home = Fixture::new();
    let neon = home.with(|options| options.patience = Duration::from_millis(300));
    let lock = home.scratch.path().join("home/state/storage/local.lock");
    let lock = fs::File::create(lock).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let made = neon.pg().create(&home.stopped("one")).await;
    assert_eq!(refused(made), ErrorKind::Busy);
    assert!(neon.pg().records().unwrap().is_empty());
    drop(lock);
    neon.pg().create(&home.stopped("one")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_an_instance_does_not_come_back_from_the_trash() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let away = home.scratch.path().join("away");
    neon_testkit::OsUser::current().create_dir(&away);
    let mut one = home.stopped("one");
    one.pgdata = Some(away.join("data"));
    let id = pg.create(&one).await.unwrap().record.id;
    assert_eq!(pg.destroy(&name("one")).await.unwrap(), id);
    let kept = away.join(format!(".neon-trash-{id}"));
    assert!(kept.exists());
    // Who removed it for good was killed after its data directory was gone.
    fs::remove_dir_all(&kept).unwrap();
    assert_eq!(refused(pg.undo_destroy(&id).await), ErrorKind::NotFound);
    assert!(pg.records().unwrap().is_empty());
    // Or right when it had begun: the next one goes on.
    let trash = home.scratch.path().join("home/state/trash");
    fs::rename(
        trash.join(format!("{id}.json")),
        trash.join(format!("{id}.gone")),
    )
    .unwrap();
    fs::create_dir(&kept).unwrap();
    assert_eq!(refused(pg.undo_destroy(&id).await), ErrorKind::NotFound);
    pg.create(&home.stopped("two")).await.unwrap();
    pg.destroy(&name("two")).await.unwrap();
    assert!(!kept.exists() && !trash.join(format!("{id}.gone")).exists());
    assert!(!home.scratch.path().join("home/trash").join(&id).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_a_copy_is_in_no_log() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.create()).await.unwrap();
    run(
        &home.neon,
        "pgdata1",
        "alter system set log_transaction_sample_rate = 1",
    )
    .await;
    let found = take(&home.neon, "pgdata1", "a").await;
    let how = RestoreChoice::default();
    pg.create_from(&home.create(), &found, &how).await.unwrap();
    assert_eq!(sql(&home.neon, "pgdata2", "select 1").await, "1");
    let copy = folder(&home, "pgdata2");
    let line = fs::read_to_string(copy.join("pgpass")).unwrap();
    let password = line.trim_end().rsplit(':').next().unwrap().to_owned();
    let mut seen = false;
    for log in fs::read_dir(copy.join("log")).unwrap() {
        let text = fs::read_to_string(log.unwrap().path()).unwrap();
        seen |= text.contains("alter role");
        assert!(!text.contains(&password));
    }
    assert!(seen, "nothing was logged");
    for one in ["pgdata1", "pgdata2"] {
        pg.stop(&name(one)).await.unwrap();
    }
}

/// Two homes, each with an instance of the same name, and one storage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loses_the_name_of_a_head_to_another_home_changes_nothing_and_takes_the_next() {
    let (home, other) = (Fixture::new(), Fixture::new());
    let tank = home.scratch.path().join("tank");
    let locator = neon_pg::Locator::parse(tank.to_str().unwrap()).unwrap();
    let choice = CheckoutChoice::default();
    let mut plans = Vec::new();
    for (home, tag) in [(&home, "a"), (&other, "b")] {
        let storages = home.neon.storages();
        let storage = name("tank");
        let attached = storages.attach(&storage, &locator, BTreeMap::new());
        attached.await.unwrap();
        let mut create = home.stopped("p1");
        create.storage = Some(name("tank"));
        home.neon.pg().create(&create).await.unwrap();
        let found = take(&home.neon, "p1", tag).await;
        let plan = home
            .neon
            .pg()
            .plan_checkout(&name("p1"), &found, choice)
            .await;
        plans.push((plan.unwrap(), found));
    }
    let (theirs, _) = plans.pop().unwrap();
    let (ours, found) = plans.pop().unwrap();
    let (begun, wait) = mpsc::channel();
    let (done, go_on) = mpsc::channel::<()>();
    let (go_on, once) = (Mutex::new(go_on), AtomicBool::new(false));
    let slow = home.with(|options| {
        options.events = EventSink::new(move |event| {
            let copying = matches!(&event, Event::Step(text) if text.starts_with("Copying"));
            if copying && !once.swap(true, Ordering::Relaxed) {
                begun.send(()).unwrap();
                go_on.lock().unwrap().recv().unwrap();
            }
        });
    });
    let lost = tokio::spawn(async move { slow.pg().checkout(&ours).await });
    let waited = tokio::task::spawn_blocking(move || wait.recv().unwrap());
    waited.await.unwrap();
    let won = other.neon.pg().checkout(&theirs).await.unwrap();
    assert_eq!(won.head.to_string(), "p1@HEAD{0}");
    done.send(()).unwrap();
    assert_eq!(refused(lost.await.unwrap()), ErrorKind::Busy);
    let pg = home.neon.pg();
    let plan = pg.plan_checkout(&name("p1"), &found, choice).await.unwrap();
    let done = pg.checkout(&plan).await.unwrap();
    assert_eq!(done.head.to_string(), "p1@HEAD{1}");
    let (listed, _) = home
        .neon
        .snapshots()
        .list(Some(&name("tank")))
        .await
        .unwrap();
    assert_eq!(listed.len(), 4);
    let head = home
        .neon
        .snapshots()
        .find("p1@HEAD{0}", None)
        .await
        .unwrap();
    assert_eq!(head.id, won.head_id);
}

/// On the only thread there is.
#[tokio::test]
async fn a_creation_that_nobody_waits_for_keeps_no_thread_from_its_writer() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    let found = take(&home.neon, "one", "a").await;
    // A writer that is not done yet.
    let writing = home.scratch.path().join("home/state/pg/two.writing");
    let held = fs::File::create(writing).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let how = RestoreChoice::default();
    let two = home.stopped("two");
    let begun = pg.create_from(&two, &found, &how);
    drop(tokio::time::timeout(Duration::from_millis(500), begun).await);
    // It ends by itself, in this very runtime.
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(held);
    });
    pg.create(&two).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_recovery_replays_is_refused_before_it_is_restored() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.create()).await.unwrap();
    run(
        &home.neon,
        "pgdata1",
        "alter system set wal_level = minimal; alter system set max_wal_senders = 0",
    )
    .await;
    pg.restart(&name("pgdata1")).await.unwrap();
    run(&home.neon, "pgdata1", "create table t as select 1 i").await;
    home.crash("pgdata1");
    let found = take(&home.neon, "pgdata1", "crash").await;
    let how = RestoreChoice::default();
    let error = pg
        .create_from(&home.create(), &found, &how)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.reason().contains("wal_level=minimal"), "{error}");
    assert!(error.reason().contains("no recovery"), "{error}");
}
