//! What snapshots are shown as, differ by, and leave when they go.

use std::collections::BTreeMap;

use neon_pg::{CreateSnapshot, ErrorKind, Locator, Outcome, PgMajor, SnapshotDiff};

use crate::support::{Fixture, name, refused, sql};

fn wanted(text: &str) -> CreateSnapshot {
    CreateSnapshot::new(text.parse().unwrap())
}

/// What is said of a relation of the database `postgres`, by name.
fn said<'a>(diff: &'a SnapshotDiff, relation: &str) -> Option<(&'a str, u64)> {
    diff.relations
        .iter()
        .find(|found| {
            found.database.as_deref() == Some("postgres")
                && found.schema.as_deref() == Some("public")
                && found.name.as_deref() == Some(relation)
        })
        .map(|found| (found.what, found.pages))
}

async fn differences_are_told_by_relation(major: PgMajor) {
    let home = Fixture::of(major);
    let mut create = home.create();
    create.name = Some(name("p1"));
    let pg = home.neon.pg();
    let snapshots = home.neon.snapshots();
    pg.create(&create).await.unwrap();
    let fill = "create table t as select i, repeat('x', 100) as filler from generate_series(1, 50000) i; \
                create table rests as select * from t; create table goes as select 1 as i; \
                create table wide (i int, long text); alter table wide alter long set storage external; \
                insert into wide select i, repeat('y', 9000) from generate_series(1, 20) i; \
                vacuum (freeze, analyze)";
    for statement in fill.split("; ") {
        sql(&home.neon, "p1", statement).await;
    }
    snapshots.create(&wanted("p1@a")).await.unwrap();
    let change = "update t set i = -i where i between 100 and 2000; drop table goes; \
                  update wide set long = repeat('z', 9000) where i = 1; \
                  create table comes as select i from generate_series(1, 1000) i; alter table rests rename to rested";
    for statement in change.split("; ") {
        sql(&home.neon, "p1", statement).await;
    }

    // The log tells before anything is written.
    let live = snapshots.diff("p1@a", "p1@CURRENT", None).await.unwrap();
    assert_eq!((live.by, live.because.as_deref()), ("log", None));
    let (what, pages) = said(&live, "t").unwrap();
    assert!(what == "changed" && (30..400).contains(&pages), "{live:?}");

    snapshots.create(&wanted("p1@b")).await.unwrap();
    let diff = snapshots.diff("p1@a", "p1@b", None).await.unwrap();
    assert_eq!(diff.by, "maps");
    let (what, pages) = said(&diff, "t").unwrap();
    assert!(what == "changed" && (30..400).contains(&pages), "{diff:?}");
    assert_eq!(said(&diff, "comes").unwrap().0, "added");
    assert_eq!(said(&diff, "goes").unwrap().0, "removed");
    assert_eq!((said(&diff, "rests"), said(&diff, "rested")), (None, None));
    let mut toast = diff.relations.iter();
    assert!(
        toast.any(|found| found.toast_of.as_deref() == Some("public.wide")),
        "{diff:?}"
    );
    assert!(
        diff.files
            .iter()
            .any(|file| file.path.starts_with("pg_wal/"))
    );
    assert!(
        diff.relations.iter().all(|found| found.name.is_some()),
        "{diff:#?}"
    );
    let back = snapshots.diff("p1@b", "p1@a", None).await.unwrap();
    assert_eq!(
        (back.pages, said(&back, "comes").unwrap().0),
        (diff.pages, "removed")
    );

    // Where the log is gone, the files tell.
    sql(&home.neon, "p1", "alter system set wal_keep_size = 0").await;
    sql(&home.neon, "p1", "select pg_reload_conf()").await;
    for _ in 0..3 {
        sql(&home.neon, "p1", "create table if not exists more (i int)").await;
        sql(
            &home.neon,
            "p1",
            "insert into more select generate_series(1, 100000)",
        )
        .await;
        sql(&home.neon, "p1", "select pg_switch_wal()").await;
        sql(&home.neon, "p1", "checkpoint").await;
    }
    pg.stop(&name("p1")).await.unwrap();
    let read = snapshots.diff("p1@b", "p1@CURRENT", None).await.unwrap();
    assert_eq!(read.by, "content");
    assert!(read.because.is_some());
    assert_eq!(said(&read, "more").unwrap().0, "added");
    assert_eq!(said(&read, "t"), None, "{read:?}");
    let two = snapshots.diff("p1@CURRENT", "p1@CURRENT", None).await;
    assert_eq!(refused(two), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_of_13_are_told_by_relation() {
    differences_are_told_by_relation(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_of_18_are_told_by_relation() {
    differences_are_told_by_relation(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_shown_destroyed_and_brought_back() {
    let home = Fixture::of(PgMajor::V16);
    let pg = home.neon.pg();
    let snapshots = home.neon.snapshots();
    pg.create(&home.stopped("one")).await.unwrap();
    let first = snapshots.create(&wanted("one@a")).await.unwrap();
    let second = snapshots.create(&wanted("one@b")).await.unwrap();
    let shown = snapshots.show("one@a", None).await.unwrap();
    assert_eq!((shown.id, shown.children), (first.id, vec![second.id]));
    assert_eq!(shown.names, ["one@a".parse().unwrap()]);
    assert_eq!(shown.pg.as_deref(), Some("one"));
    assert!(
        shown.retained < shown.stored,
        "what is shared is not its own"
    );
    assert!(shown.added > 0 && shown.size == first.size);
    let facts = &shown.facts;
    assert_eq!(
        facts.instance.as_ref(),
        Some(&pg.record_of(&name("one")).unwrap().id)
    );
    assert!(facts.lineage.is_some() && facts.log.redo.is_some() && facts.log.end_digest.is_some());
    assert!(facts.needs.architecture.is_some() && facts.needs.libc.is_some());
    assert_eq!(facts.cluster.checksum_version, 1);
    let text = serde_json::to_value(snapshots.show("one@b", None).await.unwrap()).unwrap();
    assert_eq!(text["facts"]["cost"]["source"], "log");

    // The live state stands between them.
    let (listed, _) = snapshots.list(None).await.unwrap();
    let current = snapshots.current(&listed).await.unwrap();
    let current = current.first().unwrap();
    assert_eq!(current.name.to_string(), "one@CURRENT");
    assert_eq!(current.parent, Some(second.id));
    assert!(current.size > 20 << 20);

    let plan = snapshots.plan_destroy("one@b", None).await.unwrap();
    assert_eq!(plan.names, ["one@b".parse().unwrap()]);
    assert_eq!(plan.parent_of_next, [name("one")]);
    assert!(plan.children.is_empty());
    snapshots.destroy(&plan).await.unwrap();
    assert_eq!(
        refused(snapshots.find("one@b", None).await),
        ErrorKind::NotFound
    );
    assert_eq!(refused(snapshots.destroy(&plan).await), ErrorKind::NotFound);
    // Its name is free. In the same second, the same state would be the same snapshot.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let again = snapshots.create(&wanted("one@b")).await.unwrap();
    assert_eq!(again.parent, Some(first.id));
    let names = snapshots
        .undo_destroy(second.id, &name("local"))
        .await
        .unwrap();
    assert_eq!(names, []);
    assert_eq!(snapshots.find("one@b", None).await.unwrap().id, again.id);
    let plan = snapshots
        .plan_destroy(&second.id.to_string(), None)
        .await
        .unwrap();
    snapshots.destroy(&plan).await.unwrap();
    let plan = snapshots.plan_destroy("one@b", None).await.unwrap();
    snapshots.destroy(&plan).await.unwrap();
    let names = snapshots
        .undo_destroy(again.id, &name("local"))
        .await
        .unwrap();
    assert_eq!(names, ["one@b".parse().unwrap()]);
    let twice = snapshots.undo_destroy(again.id, &name("local")).await;
    assert_eq!(refused(twice), ErrorKind::NotFound);
    let verbs = home.neon.operations().unwrap();
    let destroyed = verbs
        .iter()
        .find(|operation| operation.verb == "snapshot destroy")
        .unwrap();
    assert_eq!(destroyed.outcome, Outcome::Done);
    assert_eq!(destroyed.details["id"], second.id.to_string());
    assert_eq!(destroyed.details["storage"], "local");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_two_storages_are_compared_by_digests() {
    let home = Fixture::of(PgMajor::V16);
    let pg = home.neon.pg();
    let snapshots = home.neon.snapshots();
    let tank = home.scratch.path().join("tank");
    let locator = Locator::parse(tank.to_str().unwrap()).unwrap();
    let tank = name("tank");
    let storages = home.neon.storages();
    storages
        .attach(&tank, &locator, BTreeMap::new())
        .await
        .unwrap();
    let mut create = home.create();
    create.name = Some(name("p1"));
    pg.create(&create).await.unwrap();
    sql(
        &home.neon,
        "p1",
        "create table rests as select i from generate_series(1, 20000) i",
    )
    .await;
    sql(&home.neon, "p1", "vacuum (freeze) rests").await;
    snapshots.create(&wanted("p1@a")).await.unwrap();
    sql(
        &home.neon,
        "p1",
        "create table comes as select i from generate_series(1, 1000) i",
    )
    .await;
    // A database that everybody expects may be gone.
    let instance = pg.instance(&name("p1")).await.unwrap();
    let mut client = instance.connect("template1").await.unwrap();
    client
        .simple_query("alter database postgres rename to shop")
        .await
        .unwrap();
    client.close().await;
    let mut elsewhere = wanted("p1@b");
    elsewhere.storage = Some(tank);
    let whole = snapshots.create(&elsewhere).await.unwrap();
    assert_eq!((whole.kind, whole.parent), ("online", None));
    let diff = snapshots.diff("p1@a", "p1@b", None).await.unwrap();
    assert_eq!(diff.by, "digests");
    let of = |relation: &str| {
        diff.relations
            .iter()
            .find(|found| found.name.as_deref() == Some(relation))
    };
    let comes = of("comes").unwrap();
    assert_eq!(
        (comes.what, comes.database.as_deref()),
        ("added", Some("shop"))
    );
    assert_eq!(of("rests"), None);
}
