//! The life of instances.

use std::fs;

use neon_pg::{ErrorKind, Outcome, PgMajor, Stage};

use crate::support::{Fixture, name, refused};

async fn lives(major: PgMajor) {
    let home = Fixture::of(major);
    let pg = home.neon.pg().create(&home.create()).await.unwrap();
    assert_eq!(pg.record.name.as_str(), "pgdata1");
    assert_eq!(
        (pg.role(), pg.record.stage),
        (Some("primary"), Stage::Ready)
    );
    let endpoint = pg.endpoint().unwrap();

    // Another command sees the same, and its connection works.
    let other = home.again();
    let seen = other.pg().get(&name("pgdata1")).await.unwrap();
    assert_eq!(seen.endpoint().unwrap(), endpoint);
    let instance = other.pg().instance(&name("pgdata1")).await.unwrap();
    instance.connect("postgres").await.unwrap();
    assert_eq!(
        refused(other.pg().start(&name("pgdata1")).await),
        ErrorKind::Busy
    );

    other.pg().stop(&name("pgdata1")).await.unwrap();
    other.pg().stop(&name("pgdata1")).await.unwrap();
    let stopped = home.neon.pg().get(&name("pgdata1")).await.unwrap();
    assert_eq!((stopped.role(), stopped.endpoint()), (None, None));
    // The port stays its own, also for the next instance that looks for one.
    let second = home.neon.pg().create(&home.create()).await.unwrap();
    assert_eq!(second.record.name.as_str(), "pgdata2");
    assert_ne!(second.endpoint().unwrap(), endpoint);
    let started = home.neon.pg().start(&name("pgdata1")).await.unwrap();
    assert_eq!(format!("localhost:{}", started.port), endpoint);
    home.neon.pg().destroy(&name("pgdata1")).await.unwrap();
    home.neon.pg().destroy(&name("pgdata2")).await.unwrap();
    assert!(home.neon.pg().list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_13_is_created_found_stopped_and_started_on_its_port() {
    lives(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_18_is_created_found_stopped_and_started_on_its_port() {
    lives(PgMajor::V18).await;
}

#[tokio::test]
async fn a_destroyed_instance_frees_its_name_and_comes_back_from_the_trash() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    let id = pg.destroy(&name("one")).await.unwrap();
    assert_eq!(refused(pg.get(&name("one")).await), ErrorKind::NotFound);
    assert_eq!(refused(pg.destroy(&name("one")).await), ErrorKind::NotFound);

    let second = pg.create(&home.stopped("one")).await.unwrap();
    assert_ne!(second.record.id, id);
    assert_eq!(refused(pg.undo_destroy(&id).await), ErrorKind::Exists);
    let second = pg.destroy(&name("one")).await.unwrap();
    let back = pg.undo_destroy(&id).await.unwrap();
    assert_eq!((back.id, back.stage), (id.clone(), Stage::Ready));
    assert_eq!(refused(pg.undo_destroy(&id).await), ErrorKind::NotFound);
    assert_eq!(
        refused(pg.undo_destroy("../../etc/passwd").await),
        ErrorKind::NotFound
    );
    assert_ne!(second, id);

    let verbs: Vec<_> = home
        .neon
        .operations()
        .unwrap()
        .into_iter()
        .map(|operation| (operation.verb, operation.outcome))
        .collect();
    let done = |verb: &str| (verb.to_owned(), Outcome::Done);
    let failed = |verb: &str| (verb.to_owned(), Outcome::Failed);
    assert_eq!(
        verbs,
        [
            done("pg create"),
            done("pg destroy"),
            done("pg create"),
            failed("pg undo destroy"),
            done("pg destroy"),
            done("pg undo destroy"),
        ]
    );
}

#[tokio::test]
async fn what_a_crash_left_at_any_step_is_settled_by_the_next_verb() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    let record = home.scratch.path().join("home/state/pg/one.json");
    let folder = home.scratch.path().join("home/pg/one");
    let ready = fs::read_to_string(&record).unwrap();
    let with = |stage: &str| {
        fs::write(&record, ready.replace("\"ready\"", &format!("\"{stage}\""))).unwrap();
    };

    // Killed between the folder and the word that it is ready.
    with("creating");
    assert_eq!(
        refused(pg.create(&home.stopped("one")).await),
        ErrorKind::Exists
    );
    assert_eq!(fs::read_to_string(&record).unwrap(), ready);

    // Killed before the folder was there: the name is free.
    let aside = home.scratch.path().join("aside");
    fs::rename(&folder, &aside).unwrap();
    with("creating");
    assert_eq!(refused(pg.start(&name("one")).await), ErrorKind::NotFound);
    assert!(!record.exists());

    // Killed on the way to the trash, before and after the folder moved.
    fs::rename(&aside, &folder).unwrap();
    with("destroying");
    assert_eq!(refused(pg.stop(&name("one")).await), ErrorKind::NotFound);
    assert!(!record.exists() && !folder.exists());
    with("destroying");
    assert_eq!(refused(pg.stop(&name("one")).await), ErrorKind::NotFound);
    let id = serde_json::from_str::<serde_json::Value>(&ready).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    pg.undo_destroy(&id).await.unwrap();
    assert_eq!(pg.get(&name("one")).await.unwrap().record.id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_at_once_get_names_of_their_own() {
    let home = Fixture::new();
    let mut create = home.create();
    create.no_start = true;
    let (one, other) = (home.neon.clone(), home.again());
    let (first, second) = (one.pg(), other.pg());
    let (a, b) = tokio::join!(first.create(&create), second.create(&create));
    let mut names = [a.unwrap().record.name, b.unwrap().record.name];
    names.sort();
    assert_eq!(names.map(String::from), ["pgdata1", "pgdata2"]);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_leaves_nothing() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let mut nowhere = home.stopped("one");
    nowhere.storage = Some(name("nowhere"));
    assert_eq!(refused(pg.create(&nowhere).await), ErrorKind::NotFound);
    let in_the_way = home.scratch.path().join("home/pg/two");
    fs::create_dir(&in_the_way).unwrap();
    fs::write(in_the_way.join("file"), "mine").unwrap();
    assert_eq!(
        refused(pg.create(&home.stopped("two")).await),
        ErrorKind::Exists
    );
    assert_eq!(fs::read_to_string(in_the_way.join("file")).unwrap(), "mine");
    assert!(pg.records().unwrap().is_empty());
    for verb in [
        pg.stop(&name("none")).await,
        pg.start(&name("none")).await.map(drop),
    ] {
        assert_eq!(refused(verb), ErrorKind::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_before_a_reboot_is_started_again() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let mut running = home.create();
    running.name = Some(name("runs"));
    let before = pg.create(&running).await.unwrap();
    pg.create(&home.stopped("rests")).await.unwrap();
    let pid = before
        .status
        .as_ref()
        .and_then(|status| status.pid)
        .unwrap();
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::QUIT).unwrap();
    while rustix::process::test_kill_process(process).is_ok() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let started = pg.start_wanted().await.unwrap();
    let names: Vec<_> = started
        .iter()
        .map(|(name, outcome)| (name.as_str(), outcome.is_ok()))
        .collect();
    assert_eq!(names, [("runs", true)]);
    let after = pg.get(&name("runs")).await.unwrap();
    assert_eq!(after.endpoint(), before.endpoint());
}
