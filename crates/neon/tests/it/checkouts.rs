//! Going back to a snapshot, in place.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pg::{CheckoutChoice, CheckoutPlan, ErrorKind, Event, Found, Neon, PgMajor};
use neon_snapshot_format::pgdata::{DirectoryOptions, DirectoryWriter, TablespacePlaces};

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
async fn whole(found: &Found, to: &Path) {
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

    // Compared with all of the snapshot, stopped.
    neon.pg().stop(&name("pgdata1")).await.unwrap();
    let head = neon
        .snapshots()
        .find("pgdata1@HEAD{0}", None)
        .await
        .unwrap();
    let back = plan(&neon, &head).await;
    assert!(back.rewrite.unwrap() > 0 && !back.running, "{back:?}");
    let done = neon.pg().checkout(&back).await.unwrap();
    assert!(!done.running);
    let copy = home.scratch.path().join("whole");
    whole(&head, &copy).await;
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
