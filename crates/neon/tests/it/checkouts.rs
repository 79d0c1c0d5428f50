//! Going back to a snapshot, in place.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pg::{CheckoutChoice, CheckoutPlan, ErrorKind, Event, Found, Neon, PgMajor};
use neon_snapshot_format::pgdata::{DirectoryOptions, DirectoryWriter, TablespacePlaces};

use crate::by_map::open_transaction;
use crate::restored::listening;
use crate::support::{Fixture, name, refused, run, sql, take};

pub(crate) async fn plan(neon: &Neon, to: &Found) -> CheckoutPlan {
    let choice = CheckoutChoice::default();
    let pg = name("pgdata1");
    neon.pg().plan_checkout(&pg, to, choice).await.unwrap()
}

/// The files of relations, without hints and what recovery makes anew, by path.
fn relations(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(data.join("base")).unwrap() {
        let folder = entry.unwrap().path();
        for file in fs::read_dir(&folder).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            if name
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
            {
                let bytes = fs::read(file.path()).unwrap();
                let pages = bytes.chunks(8192);
                let masked = pages.flat_map(neon_testkit::mask::without_hints).collect();
                let path = file.path();
                let path = path.strip_prefix(data).unwrap().display().to_string();
                found.insert(path, masked);
            }
        }
    }
    found
}

/// All of a snapshot, restored as it is.
pub(crate) async fn whole(found: &Found, to: &Path) {
    let snapshot = found.repository.snapshot(found.id).await.unwrap();
    let options = DirectoryOptions {
        tablespaces: TablespacePlaces::InPlace,
        ..DirectoryOptions::default()
    };
    let writer = DirectoryWriter::create(to, options).unwrap();
    tokio::task::spawn_blocking(move || {
        restore(&snapshot, &writer, &RestoreOptions::default()).unwrap();
    })
    .await
    .unwrap();
}

async fn rolls_back(major: PgMajor) {
    let home = Fixture::of(major);
    let (neon, told) = listening(&home);
    let created = neon.pg().create(&home.create()).await.unwrap();
    run(
        &neon,
        "pgdata1",
        "create table t as select i, repeat('x', 200) filler from generate_series(1, 20000) i; \
         create table dropped as select 1 i; \
         create unlogged table u as select 1 i; \
         checkpoint",
    )
    .await;
    let snap = take(&neon, "pgdata1", "snap1").await;
    let endpoint = neon.pg().get(&name("pgdata1")).await.unwrap().endpoint();
    let instance = neon.pg().instance(&name("pgdata1")).await.unwrap();
    let hba = instance.data_dir().join("pg_hba.conf");
    fs::write(
        &hba,
        format!("{}# mine\n", fs::read_to_string(&hba).unwrap()),
    )
    .unwrap();
    run(
        &neon,
        "pgdata1",
        "delete from t where i % 3 = 0; drop table dropped; create table later as select 1 i; \
         alter system set work_mem = '5MB'; \
         select pg_create_physical_replication_slot('mine', true); \
         vacuum t",
    )
    .await;

    let first = plan(&neon, &snap).await;
    assert_eq!(first.head.to_string(), "pgdata1@HEAD{0}");
    assert_eq!((first.running, first.of_another), (true, false));
    assert_eq!(first.slots, ["mine"]);
    assert!(first.log_since.unwrap() > 0, "{first:?}");
    serde_json::to_string(&first).unwrap();
    told.lock().unwrap().clear();
    let done = neon.pg().checkout(&first).await.unwrap();
    let steps: Vec<String> = told
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            Event::Step(text) if !text.starts_with("Copying") => Some(text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        steps,
        [
            "Stopping postgres on pgdata1.",
            "Rolling back pgdata1@CURRENT to pgdata1@snap1.",
            "Starting postgres on pgdata1.",
        ]
    );
    assert_eq!(done.timeline, Some(2));
    assert!(done.rewritten > 0 && done.running, "{done:?}");
    let ask = async |text: &str| sql(&neon, "pgdata1", text).await;
    assert_eq!(ask("select count(*) from t").await, "20000");
    assert_eq!(ask("select count(*) from dropped").await, "1");
    assert_eq!(ask("select to_regclass('later') is null").await, "t");
    assert_eq!(ask("select count(*) from pg_replication_slots").await, "0");
    // The configuration is that of today.
    assert_eq!(ask("show work_mem").await, "5MB");
    assert!(fs::read_to_string(&hba).unwrap().ends_with("# mine\n"));
    let now = neon.pg().get(&name("pgdata1")).await.unwrap();
    assert_eq!(now.endpoint(), endpoint);
    assert_ne!(now.record.lineage, created.record.lineage);
    assert_eq!(now.record.base.as_ref().unwrap().snapshot, snap.id);

    // What it was before is in HEAD{0}, unlogged relations and all. The second checkout of one snapshot is on a timeline of
    // its own.
    run(&neon, "pgdata1", "insert into t values (0, '')").await;
    let again = neon.pg().checkout(&plan(&neon, &snap).await).await.unwrap();
    assert_eq!(again.head.to_string(), "pgdata1@HEAD{1}");
    assert_eq!(again.timeline, Some(3));
    assert_eq!(
        ask("select timeline_id from pg_control_checkpoint()").await,
        "3"
    );
    assert_eq!(ask("select count(*) from t").await, "20000");

    // Every page and row is as the stock programs want it.
    let installation = neon_testkit::Installation::of(major);
    let contrib = "select count(*) from pg_available_extensions where name = 'amcheck'";
    if installation.tool("pg_amcheck").is_some() && ask(contrib).await == "1" {
        let socket = instance.socket_dir().display().to_string();
        let port = endpoint.as_ref().unwrap().rsplit(':').next().unwrap();
        let done = installation
            .command("pg_amcheck")
            .args(["-h", &socket, "-p", port, "-U", "postgres", "--all"])
            .args(["--install-missing", "--heapallindexed"])
            .env("PGPASSFILE", instance.pass_file().unwrap())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    // Compared with all of the snapshot, stopped.
    neon.pg().stop(&name("pgdata1")).await.unwrap();
    let head = neon
        .snapshots()
        .find("pgdata1@HEAD{0}", None)
        .await
        .unwrap();
    let mut measured = CheckoutChoice::default();
    measured.measure = true;
    let pg = name("pgdata1");
    let back = neon.pg().plan_checkout(&pg, &head, measured).await.unwrap();
    assert!(back.rewrite.unwrap() > 0 && !back.running, "{back:?}");
    let done = neon.pg().checkout(&back).await.unwrap();
    assert!(!done.running);
    let copy = home.scratch.path().join("whole");
    whole(&head, &copy).await;
    if installation.tool("pg_checksums").is_some() {
        let done = installation
            .command("pg_checksums")
            .args(["--check", "-D"])
            .arg(instance.data_dir())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let (is, was) = (relations(instance.data_dir()), relations(&copy));
    assert!(is.keys().eq(was.keys()));
    for (path, pages) in &was {
        assert!(is.get(path) == Some(pages), "{path} differs");
    }
    neon.pg().start(&name("pgdata1")).await.unwrap();
    assert_eq!(ask("select count(*) from t").await, "13334");
    assert_eq!(ask("select count(*) from later").await, "1");
    assert_eq!(ask("select count(*) from u").await, "1");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_13_rolls_back() {
    rolls_back(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_15_rolls_back_as_amcheck_wants_it() {
    rolls_back(PgMajor::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_18_rolls_back() {
    rolls_back(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_cluster_is_refused() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    pg.create(&home.stopped("two")).await.unwrap();
    let other = take(&home.neon, "two", "a").await;
    let choice = CheckoutChoice::default();
    let error = pg
        .plan_checkout(&name("one"), &other, choice)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(error.hint(), Some("neon pg create --snapshot two@a"));
    let nobody = pg.plan_checkout(&name("none"), &other, choice).await;
    assert_eq!(refused(nobody), ErrorKind::NotFound);
}

/// An instance whose pages have no checksums.
pub(crate) async fn bare(home: &Fixture) {
    home.neon
        .pg()
        .create(&home.stopped("pgdata1"))
        .await
        .unwrap();
    let instance = home.neon.pg().instance(&name("pgdata1")).await.unwrap();
    let done = neon_testkit::Installation::of(instance.major())
        .command("pg_checksums")
        .args(["--disable", "-D"])
        .arg(instance.data_dir())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    assert!(!instance.control_file().unwrap().data_checksums);
    home.neon.pg().start(&name("pgdata1")).await.unwrap();
}

/// A page that says of a row that its transaction committed, newer than the snapshot in which it had not.
async fn hints_are_not_believed(major: PgMajor, checksums: bool) {
    let home = Fixture::of(major);
    let neon = &home.neon;
    if checksums {
        neon.pg().create(&home.create()).await.unwrap();
    } else {
        bare(&home).await;
    }
    let snap = open_transaction(neon).await;
    // Every row gets its hint, and the pages go to the disk.
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "5000");
    run(neon, "pgdata1", "checkpoint").await;
    neon.pg().checkout(&plan(neon, &snap).await).await.unwrap();
    let ask = async |text: &str| sql(neon, "pgdata1", text).await;
    assert_eq!(ask("select count(*) from t").await, "0");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
    let installation = neon_testkit::Installation::of(major);
    if checksums && installation.tool("pg_checksums").is_some() {
        let instance = neon.pg().instance(&name("pgdata1")).await.unwrap();
        let done = installation
            .command("pg_checksums")
            .args(["--check", "-D"])
            .arg(instance.data_dir())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_newer_than_the_snapshot_show_nothing_of_13() {
    hints_are_not_believed(PgMajor::V13, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_newer_than_the_snapshot_show_nothing_of_18() {
    hints_are_not_believed(PgMajor::V18, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_newer_than_the_snapshot_show_nothing_of_15_without_checksums() {
    hints_are_not_believed(PgMajor::V15, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_newer_than_the_snapshot_show_nothing_of_18_without_checksums() {
    hints_are_not_believed(PgMajor::V18, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_leaves_the_state_before_the_checkout() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    run(
        neon,
        "pgdata1",
        "create table t as select i, md5(i::text) m from generate_series(1, 50000) i",
    )
    .await;
    let snap = take(neon, "pgdata1", "a").await;
    run(
        neon,
        "pgdata1",
        "update t set i = -i; create table more as select 1 i",
    )
    .await;
    let packs = home.scratch.path().join("home/store/local/packs");
    let mut largest = (0, std::path::PathBuf::new());
    for folder in fs::read_dir(&packs).unwrap().flatten() {
        for pack in fs::read_dir(folder.path()).unwrap().flatten() {
            largest = largest.max((pack.metadata().unwrap().len(), pack.path()));
        }
    }
    let whole = fs::read(&largest.1).unwrap();
    let mut bytes = whole.clone();
    for at in (0..bytes.len() * 3 / 4).step_by(512) {
        bytes[at] ^= 0x55;
    }
    fs::write(&largest.1, bytes).unwrap();
    let (neon, told) = listening(&home);
    let found = neon.snapshots().find("pgdata1@a", None).await.unwrap();
    assert_eq!(found.id, snap.id);
    let error = neon
        .pg()
        .checkout(&plan(&neon, &found).await)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    let told = format!("{:?}", told.lock().unwrap());
    let pg = neon.pg().get(&name("pgdata1")).await.unwrap();
    assert_eq!(pg.role(), Some("primary"), "{told}");
    assert_eq!(
        sql(&neon, "pgdata1", "select count(*) from t where i < 0").await,
        "50000"
    );
    assert_eq!(
        sql(&neon, "pgdata1", "select count(*) from more").await,
        "1"
    );
    // And when it can be read again, it is gone to.
    fs::write(&largest.1, whole).unwrap();
    let neon = home.again();
    let found = neon.snapshots().find("pgdata1@a", None).await.unwrap();
    neon.pg()
        .checkout(&plan(&neon, &found).await)
        .await
        .unwrap();
    assert_eq!(
        sql(&neon, "pgdata1", "select count(*) from t where i < 0").await,
        "0"
    );
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_at_once_on_one_instance_wait_or_are_told() {
    let home = Fixture::new();
    home.neon.pg().create(&home.create()).await.unwrap();
    run(&home.neon, "pgdata1", "create table t as select 1 i").await;
    let snap = take(&home.neon, "pgdata1", "a").await;
    let plan = plan(&home.neon, &snap).await;
    let patient = home.with(|options| options.patience = std::time::Duration::from_secs(300));
    let hasty = home.with(|options| options.patience = std::time::Duration::ZERO);
    let first = {
        let (plan, patient) = (plan.clone(), patient.clone());
        tokio::spawn(async move { patient.pg().checkout(&plan).await })
    };
    while home
        .neon
        .pg()
        .record_of(&name("pgdata1"))
        .unwrap()
        .checkout
        .is_none()
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(refused(hasty.pg().checkout(&plan).await), ErrorKind::Busy);
    assert_eq!(
        refused(hasty.pg().stop(&name("pgdata1")).await),
        ErrorKind::Busy
    );
    assert_eq!(
        refused(hasty.pg().destroy(&name("pgdata1")).await),
        ErrorKind::Busy
    );
    let second = patient.pg().checkout(&plan).await.unwrap();
    let first = first.await.unwrap().unwrap();
    assert_eq!((first.timeline, second.timeline), (Some(2), Some(3)));
    assert_ne!(first.head, second.head);
    assert_eq!(
        sql(&home.neon, "pgdata1", "select count(*) from t").await,
        "1"
    );
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_to_stop_finds_everything_as_it_was() {
    let home = Fixture::new();
    home.neon.pg().create(&home.create()).await.unwrap();
    run(&home.neon, "pgdata1", "create table t as select 1 i").await;
    let snap = take(&home.neon, "pgdata1", "a").await;
    run(&home.neon, "pgdata1", "insert into t values (2)").await;
    for step in ["Stopping", "Copying", "Rolling back", "Restoring"] {
        let cancel = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let neon = home.with(|options| {
            options.cancel = std::sync::Arc::clone(&cancel);
            options.events = neon_pg::EventSink::new(move |event| {
                if matches!(&event, Event::Step(text) if text.starts_with(step)) {
                    cancel.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            });
        });
        let outcome = if step == "Restoring" {
            let how = neon_pg::RestoreChoice::default();
            let copy = home.stopped("copy");
            neon.pg().create_from(&copy, &snap, &how).await.map(|_| ())
        } else {
            neon.pg()
                .checkout(&plan(&home.neon, &snap).await)
                .await
                .map(|_| ())
        };
        assert_eq!(refused(outcome), ErrorKind::Cancelled, "{step}");
        let pg = home.neon.pg().get(&name("pgdata1")).await.unwrap();
        assert_eq!(pg.role(), Some("primary"), "{step}");
        assert_eq!(
            sql(&home.neon, "pgdata1", "select count(*) from t").await,
            "2"
        );
        let copy = home.neon.pg().get(&name("copy")).await;
        assert_eq!(refused(copy), ErrorKind::NotFound);
    }
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_start_afterwards_is_told_and_the_checkout_can_be_undone() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", "create table t as select 1 i").await;
    let snap = take(neon, "pgdata1", "a").await;
    run(neon, "pgdata1", "insert into t values (2)").await;
    let instance = neon.pg().instance(&name("pgdata1")).await.unwrap();
    let conf = instance.data_dir().join("postgresql.conf");
    let before = fs::read_to_string(&conf).unwrap();
    fs::write(
        &conf,
        format!("{before}shared_preload_libraries = 'no_such_library'\n"),
    )
    .unwrap();
    let error = neon
        .pg()
        .checkout(&plan(neon, &snap).await)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Partial);
    assert!(error.hint().unwrap().contains("pgdata1@HEAD{0}"));
    fs::write(&conf, before).unwrap();
    neon.pg().start(&name("pgdata1")).await.unwrap();
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "1");
    neon.undo().await.unwrap();
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "2");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}
