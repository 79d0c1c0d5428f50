//! What a journal names is there as long as the journal is, whoever destroys and collects meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use neon_pg::{
    DoctorOptions, ErrorKind, Found, Locator, Neon, Remote, RestoreChoice, StorageRepository,
};

use crate::checkouts::plan;
use crate::killed::{killed, scene};
use crate::support::{Fixture, name, refused, run, sql};

/// A storage that two homes share, with a grace that is over soon.
async fn attach(home: &Fixture, neon: &Neon) {
    let tank = home.scratch.path().join("tank");
    let place = Locator::parse(tank.to_str().unwrap()).unwrap();
    let options = BTreeMap::from([("grace".to_owned(), "1s".to_owned())]);
    let (storages, tank) = (neon.storages(), name("tank"));
    storages.attach(&tank, &place, options).await.unwrap();
}

/// An instance whose snapshot is in the shared storage alone, and another home.
async fn shared() -> (Fixture, Neon, Found) {
    let home = scene().await;
    let neon = &home.neon;
    attach(&home, neon).await;
    let local = neon.snapshots().find("pgdata1@a", None).await.unwrap();
    let tank = Remote::Storage(name("tank"));
    neon.snapshots().push(&local, &tank).await.unwrap();
    let destroyed = neon.snapshots().plan_destroy("pgdata1@a", None).await;
    neon.snapshots().destroy(&destroyed.unwrap()).await.unwrap();
    let found = neon.snapshots().find("pgdata1@a", None).await.unwrap();
    assert_eq!(found.repository.name, Some(name("tank")));
    let other = Fixture::at(neon_pg::PgMajor::V15, &home.scratch.path().join("other"));
    attach(&home, &other).await;
    (home, other, found)
}

async fn open(neon: &Neon, storage: &str) -> StorageRepository {
    let found = neon.storages().existing_repository(&name(storage)).await;
    found.unwrap().unwrap()
}

async fn pins(neon: &Neon, storage: &str) -> usize {
    open(neon, storage)
        .await
        .repository
        .pins()
        .await
        .unwrap()
        .len()
}

/// Destroys as who does not ask, and collects until nothing more goes.
async fn collected(neon: &Neon, storage: &str, found: &Found) {
    let repository = open(neon, storage).await.repository;
    repository.destroy(found.id).await.unwrap();
    for _ in 0..3 {
        let plan = neon.storages().plan_gc(&name(storage)).await.unwrap();
        neon.storages().gc(&plan).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_interrupted_checkout_goes_to_is_neither_destroyed_nor_detached() {
    let (home, other, found) = shared().await;
    let place = home.scratch.path().join("home");
    for (step, rows) in [
        ("checkout: begun", "5001"),
        ("checkout: stopped", "5001"),
        ("checkout: saved", "5001"),
        ("checkout: compared", "5001"),
        ("checkout: changing", "5000"),
        ("checkout: rewritten", "5000"),
        ("checkout: recovered", "5000"),
        ("checkout: done", "5000"),
    ] {
        let before = home.neon.pg().record_of(&name("pgdata1")).unwrap();
        killed(&place, "checkout", step, None);
        // By neither home.
        for neon in [&home.again(), &other] {
            let planned = neon.snapshots().plan_destroy("pgdata1@a", None).await;
            assert_eq!(refused(planned), ErrorKind::Busy, "{step}");
        }
        let neon = home.again();
        let detached = neon.storages().detach(&name("tank")).await;
        assert_eq!(refused(detached), ErrorKind::Busy, "{step}");
        if !["checkout: begun", "checkout: stopped"].contains(&step) {
            // Nor the way back.
            let heads = neon.snapshots().list(Some(&name("local"))).await.unwrap().0;
            // Two of one second come in any order.
            let names = heads.iter().map(|head| head.listed.names[0].to_string());
            let heads = names.filter(|name| name.contains("@HEAD{"));
            let head = heads.max_by_key(|name| (name.len(), name.clone())).unwrap();
            let planned = neon.snapshots().plan_destroy(&head, None).await;
            assert_eq!(refused(planned), ErrorKind::Busy, "{step} {head}");
        }
        // The next command, whichever it is.
        plan(&neon, &found).await;
        assert_eq!(sql(&neon, "pgdata1", "select count(*) from t").await, rows);
        assert_eq!(pins(&neon, "tank").await, 0, "{step}");
        assert_eq!(pins(&neon, "local").await, 0, "{step}");
        // A number that nothing got is given again, and no other.
        let after = neon.pg().record_of(&name("pgdata1")).unwrap();
        let saved = !["checkout: begun", "checkout: stopped"].contains(&step);
        assert_eq!(after.checkouts, before.checkouts + u32::from(saved));
        if rows == "5000" {
            run(&neon, "pgdata1", "insert into t select 1").await;
        }
    }
    let planned = other.snapshots().plan_destroy("pgdata1@a", None).await;
    other.snapshots().destroy(&planned.unwrap()).await.unwrap();
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_leaves_what_an_interrupted_checkout_goes_to() {
    let (home, other, found) = shared().await;
    let place = home.scratch.path().join("home");
    for step in ["checkout: changing", "checkout: rewritten"] {
        killed(&place, "checkout", step, None);
        collected(&other, "tank", &found).await;
        let neon = home.again();
        neon.pg().start(&name("pgdata1")).await.unwrap();
        assert_eq!(
            sql(&neon, "pgdata1", "select count(*) from t").await,
            "5000"
        );
        assert_eq!(pins(&neon, "tank").await, 0, "{step}");
        run(&neon, "pgdata1", "insert into t select 1").await;
        let back = open(&neon, "tank").await.repository;
        back.undo_destroy(found.id).await.unwrap();
    }
    // Now nothing needs it.
    collected(&other, "tank", &found).await;
    assert!(found.repository.snapshot(found.id).await.is_err());
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_is_made_from_is_kept_and_what_a_kill_left_of_that_goes() {
    let (home, other, found) = shared().await;
    let place = home.scratch.path().join("home");
    let neon = home.again();
    for step in [
        "create: begun",
        "create: written",
        "create: recovered",
        "create: isolated",
    ] {
        killed(&place, "create", step, None);
        assert_eq!(pins(&neon, "tank").await, 1, "{step}");
        let planned = other.snapshots().plan_destroy("pgdata1@a", None).await;
        assert_eq!(refused(planned), ErrorKind::Busy, "{step}");
        let detached = neon.storages().detach(&name("tank")).await;
        assert_eq!(refused(detached), ErrorKind::Busy, "{step}");
        let mut fix = DoctorOptions::default();
        fix.fix = true;
        neon.doctor(&fix).await.unwrap();
        assert_eq!(pins(&neon, "tank").await, 0, "{step}");
    }
    // Also where the storage is not attached.
    let third = home.scratch.path().join("third");
    let unattached = Fixture::at(neon_pg::PgMajor::V15, &third);
    let address = home.scratch.path().join("tank/pgdata1@a");
    let verb = format!("create from {}", address.display());
    killed(&third, &verb, "create: written", None);
    assert_eq!(pins(&neon, "tank").await, 1);
    // The next command on it, whichever.
    let gone = unattached.pg().start(&name("copy")).await;
    assert_eq!(refused(gone), ErrorKind::NotFound);
    assert_eq!(pins(&neon, "tank").await, 0);
    // One that is at work while others destroy and collect.
    let (mut hook, tank, gone) = (Some(()), other.clone(), found.clone());
    let slow = home.with(|options| {
        let hook = std::sync::Mutex::new(hook.take());
        options.at_step = Some(std::sync::Arc::new(move |step: &str| {
            if step == "create: begun" && hook.lock().unwrap().take().is_some() {
                let (tank, gone) = (tank.clone(), gone.clone());
                let thread = std::thread::spawn(move || {
                    let runtime = tokio::runtime::Runtime::new().unwrap();
                    runtime.block_on(collected(&tank, "tank", &gone));
                });
                thread.join().unwrap();
            }
        }));
    });
    let how = RestoreChoice::default();
    let copy = home.stopped("copy");
    slow.pg().create_from(&copy, &found, &how).await.unwrap();
    neon.pg().start(&name("copy")).await.unwrap();
    assert_eq!(sql(&neon, "copy", "select count(*) from t").await, "5000");
    assert_eq!(pins(&neon, "tank").await, 0);
    for one in ["copy", "pgdata1"] {
        neon.pg().stop(&name(one)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_finds_what_is_kept_for_nobody() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.stopped("one")).await.unwrap();
    let found = crate::support::take(neon, "one", "a").await;
    let repository = &found.repository.repository;
    // Its storage did not answer when it could have been let go.
    let owner = format!(
        "home {}, pg one (0123456789abcdef): it is made from it",
        neon.home().id()
    );
    repository.pin(found.id, &owner).await.unwrap();
    // Of a home that nobody has heard of for long, and of one that is at work.
    let owner = "home fedcba9876543210, pg two (0123456789abcdef): it goes back to it";
    repository.pin(found.id, owner).await.unwrap();
    repository
        .pin(found.id, "a mount of somebody")
        .await
        .unwrap();
    let left = async |neon: &Neon| {
        let report = neon.doctor(&DoctorOptions::default()).await.unwrap();
        let left = report.findings.into_iter();
        left.filter(|one| one.code == "pin-left").count()
    };
    assert_eq!(left(neon).await, 1);
    let later = home.with(|options| {
        options.clock = std::sync::Arc::new(|| {
            std::time::SystemTime::now() + Duration::from_secs(8 * 24 * 60 * 60)
        });
    });
    assert_eq!(left(&later).await, 2);
    let mut fix = DoctorOptions::default();
    fix.fix = true;
    let report = neon.doctor(&fix).await.unwrap();
    assert_eq!(report.fixed.len(), 1, "{:?}", report.fixed);
    assert_eq!(pins(neon, "local").await, 2);
    let planned = neon.snapshots().plan_destroy("one@a", None).await;
    assert_eq!(refused(planned), ErrorKind::Busy);
    later.doctor(&fix).await.unwrap();
    assert_eq!(pins(neon, "local").await, 1);
}
