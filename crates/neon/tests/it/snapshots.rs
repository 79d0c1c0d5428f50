//! Snapshots taken of instances in every state.

use neon_pg::{CreateSnapshot, ErrorKind, Neon, PgMajor, SnapshotName, TakenSnapshot};

use crate::support::{Fixture, name, refused, sql};

fn wanted(text: &str) -> CreateSnapshot {
    CreateSnapshot::new(text.parse::<SnapshotName>().unwrap())
}

async fn take(neon: &Neon, text: &str) -> TakenSnapshot {
    neon.snapshots().create(&wanted(text)).await.unwrap()
}

const LOAD: &str =
    "insert into t select i, repeat(md5(i::text), 20) from generate_series(1, 60000) i";

/// The second snapshot of a running instance, as it is made, costs what changed, also after load and checkpoints.
async fn the_second_costs_what_changed(major: PgMajor) {
    let home = Fixture::of(major);
    let mut create = home.create();
    create.name = Some(name("p1"));
    home.neon.pg().create(&create).await.unwrap();
    sql(&home.neon, "p1", "create table t (i int, filler text)").await;
    for _ in 0..3 {
        sql(&home.neon, "p1", LOAD).await;
        sql(&home.neon, "p1", "checkpoint").await;
    }
    // The first to read a row says on its page that it is committed, which is a change too.
    sql(&home.neon, "p1", "vacuum (freeze, analyze) t").await;
    let first = take(&home.neon, "p1@before").await;
    assert_eq!((first.kind, first.parent), ("online", None));
    assert_eq!(first.source, None);
    assert!(first.size > 100 << 20, "{first:?}");

    sql(
        &home.neon,
        "p1",
        "create table other as select i, md5(i::text) from generate_series(1, 20000) i",
    )
    .await;
    for round in 0..3 {
        let change = format!("update t set i = -i where i = {}", 100 + round);
        sql(&home.neon, "p1", &change).await;
        sql(&home.neon, "p1", "checkpoint").await;
    }
    let second = take(&home.neon, "p1@after").await;
    assert_eq!(second.parent, Some(first.id));
    let expected = match major >= PgMajor::V17 {
        true => "server-summaries",
        false => "log",
    };
    assert_eq!(
        second.source.as_deref(),
        Some(expected),
        "{:?}",
        second.passed_over
    );
    assert!(
        second.changed_pages < first.changed_pages / 5,
        "{first:?} {second:?}"
    );
    assert!(second.read < first.read / 3, "{first:?} {second:?}");
    assert!(second.added < first.added / 3, "{first:?} {second:?}");
    assert_eq!(second.bad_pages, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_snapshot_of_13_costs_what_changed() {
    the_second_costs_what_changed(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_snapshot_of_18_costs_what_changed() {
    the_second_costs_what_changed(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_and_a_crashed_instance_are_copied_as_they_are() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.stopped("one")).await.unwrap();
    let cold = take(&home.neon, "one@cold").await;
    assert_eq!((cold.kind, cold.checkpoint), ("cold", 0.0));

    let again = take(&home.neon, "one@again").await;
    assert_eq!((again.kind, again.parent), ("cold", Some(cold.id)));
    assert!(again.read < cold.read / 2, "{cold:?} {again:?}");

    pg.start(&name("one")).await.unwrap();
    sql(
        &home.neon,
        "one",
        "create table t as select generate_series(1, 1000) i",
    )
    .await;
    home.crash("one");
    let crashed = take(&home.neon, "one@crashed").await;
    assert_eq!(crashed.kind, "crashed");
    // Two of the same state in the same second are as good as each other.
    assert!([Some(cold.id), Some(again.id)].contains(&crashed.parent));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_cannot_be_given_are_refused_before_anything_is_copied() {
    let home = Fixture::new();
    home.neon.pg().create(&home.stopped("one")).await.unwrap();
    let create =
        async |wanted: CreateSnapshot| refused(home.neon.snapshots().create(&wanted).await);
    for reserved in ["one@CURRENT", "one@HEAD{1}"] {
        assert_eq!(create(wanted(reserved)).await, ErrorKind::Invalid);
    }
    assert_eq!(create(wanted("bare")).await, ErrorKind::Invalid);
    assert_eq!(create(wanted("two@x")).await, ErrorKind::NotFound);
    let mut other = wanted("two@x");
    other.pg = Some(name("one"));
    assert_eq!(create(other).await, ErrorKind::Invalid);
    let mut elsewhere = wanted("one@x");
    elsewhere.storage = Some(name("nowhere"));
    assert_eq!(create(elsewhere).await, ErrorKind::NotFound);

    let mut bare = wanted("bare");
    bare.pg = Some(name("one"));
    let taken = home.neon.snapshots().create(&bare).await.unwrap();
    assert_eq!(taken.name, Some("bare".parse().unwrap()));
    assert_eq!(create(bare).await, ErrorKind::Exists);
    let (listed, failed) = home.neon.snapshots().list(None).await.unwrap();
    assert_eq!((listed.len(), failed.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_state_comes_from_its_own_history_and_not_from_what_is_like_it() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.stopped("one")).await.unwrap();
    let first = crate::support::take(neon, "one", "a").await;
    let how = neon_pg::RestoreChoice::default();
    let copy = home.stopped("two");
    neon.pg().create_from(&copy, &first, &how).await.unwrap();
    let second = crate::support::take(neon, "one", "b").await;
    let parents = async || {
        let (listed, _) = neon.snapshots().list(None).await.unwrap();
        let current = neon.snapshots().current(&listed).await.unwrap();
        current
            .into_iter()
            .map(|one| one.parent)
            .collect::<Vec<_>>()
    };
    assert_eq!(parents().await, [Some(second.id), Some(first.id)]);
    let plan = neon.snapshots().plan_destroy("one@a", None).await.unwrap();
    neon.snapshots().destroy(&plan).await.unwrap();
    // The next snapshot of it is compared with the other one; it does not come from there.
    assert_eq!(parents().await, [Some(second.id), None]);
}
