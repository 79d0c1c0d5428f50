//! Do, undo, state equal.

use std::collections::BTreeMap;

use neon_pg::{ErrorKind, Locator, RestoreChoice};

use crate::checkouts::plan;
use crate::support::{Fixture, name, refused, run, sql, take};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creations_destructions_and_detachments_are_undone_in_their_order() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = neon.pg();
    assert_eq!(refused(neon.undo().await), ErrorKind::NotFound);
    pg.create(&home.stopped("one")).await.unwrap();
    let made = pg.record_of(&name("one")).unwrap();
    let found = take(neon, "one", "a").await;
    let how = RestoreChoice::default();
    pg.create_from(&home.stopped("two"), &found, &how)
        .await
        .unwrap();
    pg.destroy(&name("one")).await.unwrap();
    let locator = Locator::parse(&home.scratch.path().join("away").display().to_string()).unwrap();
    let options = BTreeMap::from([("compression".to_owned(), "lz4".to_owned())]);
    let away = name("away");
    neon.storages()
        .attach(&away, &locator, options)
        .await
        .unwrap();
    let attached = neon.storages().get(&away).unwrap();
    neon.storages().detach(&away).await.unwrap();

    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.operation.verb, "storage detach");
    assert_eq!(undone.what, "storage away is attached");
    assert_eq!(neon.storages().get(&away).unwrap(), attached);

    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.what, "pg one is back");
    let back = pg.record_of(&name("one")).unwrap();
    assert_eq!((back.id, back.timelines.len()), (made.id, 1));

    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.what, "pg two is in the trash");
    assert_eq!(refused(pg.get(&name("two")).await), ErrorKind::NotFound);
    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.what, "pg one is in the trash");
    assert_eq!(refused(neon.undo().await), ErrorKind::NotFound);
    assert!(pg.list().await.unwrap().is_empty());
    // What is in the trash comes back by its id, too, and that can be destroyed again.
    let id = back_id(&home);
    pg.undo_destroy(&id).await.unwrap();
    assert_eq!(pg.records().unwrap().len(), 1);
}

fn back_id(home: &Fixture) -> String {
    let trash = home.scratch.path().join("home/state/trash");
    let entry = std::fs::read_dir(trash).unwrap().next().unwrap().unwrap();
    let file = entry.file_name().into_string().unwrap();
    file.strip_suffix(".json").unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_is_undone_to_the_state_before() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    run(
        neon,
        "pgdata1",
        "create table t as select 1 i; create unlogged table u as select 1 i",
    )
    .await;
    let found = take(neon, "pgdata1", "a").await;
    run(
        neon,
        "pgdata1",
        "insert into t select i from generate_series(2, 1000) i; insert into u select 2",
    )
    .await;
    neon.pg().checkout(&plan(neon, &found).await).await.unwrap();
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "1");
    let plan = neon
        .snapshots()
        .plan_destroy("pgdata1@a", None)
        .await
        .unwrap();
    neon.snapshots().destroy(&plan).await.unwrap();
    let gone = neon.snapshots().find("pgdata1@a", None).await;
    assert_eq!(refused(gone), ErrorKind::NotFound);
    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.what, "snapshot pgdata1@a is back");
    let back = neon.snapshots().find("pgdata1@a", None).await.unwrap();
    assert_eq!(back.id, found.id);
    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.operation.verb, "pg checkout");
    assert_eq!(
        undone.what,
        "pg pgdata1 is at pgdata1@HEAD{0}; what it was is pgdata1@HEAD{1}"
    );
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "1000");
    assert_eq!(sql(neon, "pgdata1", "select count(*) from u").await, "2");
    assert_eq!(
        neon.pg().get(&name("pgdata1")).await.unwrap().role(),
        Some("primary")
    );

    // Not the undo is undone next, but what was done before.
    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.what, "pg pgdata1 is in the trash");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_when_it_was_destroyed_runs_when_that_is_undone() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    let before = neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", "create table t as select 7 i").await;
    neon.pg().destroy(&pg).await.unwrap();
    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.what, "pg pgdata1 is back, and its server runs");
    let back = neon.pg().get(&pg).await.unwrap();
    assert_eq!(back.endpoint(), before.endpoint());
    assert_eq!(back.record, neon.pg().record_of(&pg).unwrap());
    assert_eq!(sql(neon, "pgdata1", "select i from t").await, "7");

    // What keeps it from that is told, and it is back.
    neon.pg().destroy(&pg).await.unwrap();
    let port = back.record.port.unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert_eq!(refused(neon.undo().await), ErrorKind::Partial);
    assert_eq!(neon.pg().get(&pg).await.unwrap().role(), None);
    drop(taken);
    neon.pg().start(&pg).await.unwrap();
    // Which is done, and not tried again.
    assert_eq!(neon.undoable().unwrap().verb, "pg create");
    neon.pg().stop(&pg).await.unwrap();
    neon.pg().destroy(&pg).await.unwrap();
    assert_eq!(neon.undo().await.unwrap().what, "pg pgdata1 is back");
}

#[tokio::test]
async fn an_undo_that_cannot_be_names_the_others_which_can_be_asked_for() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = neon.pg();
    for one in ["one", "two"] {
        pg.create(&home.stopped(one)).await.unwrap();
    }
    let id = pg.destroy(&name("one")).await.unwrap();
    // The trash has kept it long enough.
    let trash = home.scratch.path().join("home");
    std::fs::remove_file(trash.join(format!("state/trash/{id}.json"))).unwrap();
    let last = neon.undoable().unwrap();
    assert_eq!(
        (last.verb.as_str(), last.subject.as_str()),
        ("pg destroy", "one")
    );
    for _ in 0..2 {
        let error = neon.undo().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.subject().contains("pg destroy one"), "{error}");
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains("is not in the trash"), "{why}");
        assert!(
            error.hint().unwrap().contains("(pg create two)"),
            "{error:?}"
        );
    }
    let others = neon.undoables().unwrap();
    let other = others.iter().find(|one| one.subject == "two").unwrap();
    let undone = neon.undo_of(&other.id[..12]).await.unwrap();
    assert_eq!(undone.what, "pg two is in the trash");
    let again = neon.undo_of(&other.id).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Invalid);
    assert!(again.reason().contains("already"), "{again}");
    assert_eq!(refused(neon.undo_of("zzzz").await), ErrorKind::NotFound);
    assert_eq!(refused(neon.undo_of("").await), ErrorKind::NotFound);

    // One undo too many is undone by its own id.
    let undo = neon.operations().unwrap();
    let undo = undo
        .iter()
        .rev()
        .find(|one| one.verb == "undo" && one.subject == "two");
    let back = neon.undo_of(&undo.unwrap().id).await.unwrap();
    assert_eq!(back.what, "pg two is back");
    assert_eq!(pg.records().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tablespace_is_where_it_was_when_a_checkout_is_undone() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    let found = take(neon, "pgdata1", "a").await;
    let space = home.scratch.path().join("space");
    neon_testkit::OsUser::current().create_dir(&space);
    let place = format!("create tablespace s location '{}'", space.display());
    run(neon, "pgdata1", &place).await;
    run(
        neon,
        "pgdata1",
        "create table t tablespace s as select 7 i; checkpoint",
    )
    .await;
    let choice = neon_pg::CheckoutChoice::default();
    let planned = neon
        .pg()
        .plan_checkout(&name("pgdata1"), &found, choice)
        .await;
    neon.pg().checkout(&planned.unwrap()).await.unwrap();
    let spaces = "select count(*) from pg_tablespace where spcname = 's'";
    assert_eq!(sql(neon, "pgdata1", spaces).await, "0");
    neon.undo().await.unwrap();
    let location = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 's'";
    assert_eq!(
        sql(neon, "pgdata1", location).await,
        space.display().to_string()
    );
    assert_eq!(sql(neon, "pgdata1", "select i from t").await, "7");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_is_undone_where_its_state_is_though_snapshots_go_elsewhere_since() {
    let home = Fixture::new();
    let neon = &home.neon;
    let first = neon.snapshot_first();
    first.init(&neon_pg::InitOptions::default()).await.unwrap();
    let none = BTreeMap::new();
    first.start(None, &none).await.unwrap();
    run(neon, "main", "create table t as select 7 i").await;
    let found = neon.snapshots().find("main@init", None).await.unwrap();
    let choice = neon_pg::CheckoutChoice::default();
    let planned = neon.pg().plan_checkout(&name("main"), &found, choice).await;
    neon.pg().checkout(&planned.unwrap()).await.unwrap();
    neon.pg().stop(&name("main")).await.unwrap();
    let other = home.scratch.path().join("other");
    first.start(other.to_str(), &none).await.unwrap();
    assert_eq!(
        neon.pg().record_of(&name("main")).unwrap().storage,
        name("dest")
    );
    neon.undo().await.unwrap();
    assert_eq!(sql(neon, "main", "select i from t").await, "7");
    neon.pg().stop(&name("main")).await.unwrap();
}

/// Something else that was destroyed so many days ago.
fn destroyed_before(home: &Fixture, like: &str, id: &str, days: u64) {
    let place = home.scratch.path().join("home");
    let record = place.join(format!("state/trash/{like}.json"));
    let record = std::fs::read_to_string(record).unwrap().replace(like, id);
    let path = place.join(format!("state/trash/{id}.json"));
    std::fs::write(&path, record).unwrap();
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(days * 24 * 60 * 60);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(then).unwrap();
    std::fs::create_dir(place.join(format!("trash/{id}"))).unwrap();
}

#[tokio::test]
async fn the_trash_keeps_five_for_a_week() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    let id = pg.destroy(&name("one")).await.unwrap();
    for days in 1..=6 {
        destroyed_before(&home, &id, &format!("{days:016x}"), days);
    }
    pg.undo_destroy(&id).await.unwrap();
    let again = pg.destroy(&name("one")).await.unwrap();
    assert_eq!(again, id);
    let left = || {
        let trash = home.scratch.path().join("home/trash");
        let mut left: Vec<_> = std::fs::read_dir(trash)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        left
    };
    let day = |days: u64| format!("{days:016x}");
    assert_eq!(left(), [day(1), day(2), day(3), day(4), id.clone()]);
    destroyed_before(&home, &id, &day(8), 8);
    pg.undo_destroy(&id).await.unwrap();
    pg.destroy(&name("one")).await.unwrap();
    assert_eq!(left(), [day(1), day(2), day(3), day(4), id.clone()]);
    assert_eq!(refused(pg.undo_destroy(&day(5)).await), ErrorKind::NotFound);
}
