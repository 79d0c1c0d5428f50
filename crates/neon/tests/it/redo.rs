//! What replay of a snapshot's log would do outside of the copy, and who writes while one is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use neon_pg::{CheckoutChoice, ErrorKind, Event, EventSink, PgMajor, RestoreChoice};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Fixture, name, refused, run, sql, take};

fn space(home: &Fixture) -> std::path::PathBuf {
    let space = home.scratch.path().join("space");
    neon_testkit::OsUser::current().create_dir(&space);
    space
}

/// Tables in a tablespace that the log creates, of a server that was killed.
async fn crashed_with_a_tablespace(home: &Fixture) {
    let space = space(home);
    let place = format!("create tablespace s location '{}'", space.display());
    run(&home.neon, "pgdata1", &place).await;
    run(
        &home.neon,
        "pgdata1",
        "create table u tablespace s as select i from generate_series(1, 5000) i",
    )
    .await;
    home.crash("pgdata1");
}

async fn writes_nothing_into_its_origin(major: PgMajor) {
    let home = Fixture::of(major);
    let pg = home.neon.pg();
    pg.create(&home.create()).await.unwrap();
    let before = take(&home.neon, "pgdata1", "before").await;
    let how = RestoreChoice::default();
    let clone = pg.create_from(&home.create(), &before, &how).await.unwrap();
    crashed_with_a_tablespace(&home).await;
    let crash = take(&home.neon, "pgdata1", "crash").await;
    pg.start(&name("pgdata1")).await.unwrap();
    run(&home.neon, "pgdata1", "update u set i = -i").await;
    run(&home.neon, "pgdata1", "checkpoint").await;
    let sum = sql(&home.neon, "pgdata1", "select sum(i) from u").await;
    pg.stop(&name("pgdata1")).await.unwrap();

    let mut as_is = RestoreChoice::default();
    as_is.as_is = true;
    as_is.force = true;
    for how in [how, as_is] {
        let copied = pg.create_from(&home.create(), &crash, &how).await;
        let error = copied.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Failed, "{error:?}");
        assert!(error.reason().contains("/space"), "{error}");
        assert!(error.hint().unwrap().contains("checkpoint"));
    }
    assert_eq!(
        refused(home.neon.snapshots().open(&crash).await),
        ErrorKind::Failed
    );
    let choice = CheckoutChoice::default();
    let theirs = pg.plan_checkout(&clone.record.name, &crash, choice).await;
    assert_eq!(refused(theirs), ErrorKind::Failed);
    assert_eq!(pg.records().unwrap().len(), 2);

    pg.start(&name("pgdata1")).await.unwrap();
    assert_eq!(
        sql(&home.neon, "pgdata1", "select sum(i) from u").await,
        sum
    );
    // It is its own tablespace.
    let plan = pg.plan_checkout(&name("pgdata1"), &crash, choice).await;
    pg.checkout(&plan.unwrap()).await.unwrap();
    let back = sql(&home.neon, "pgdata1", "select sum(i) from u").await;
    assert_eq!(back, "12502500");
    for one in ["pgdata1", "pgdata2"] {
        pg.stop(&name(one)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_13_that_creates_a_tablespace_writes_nothing_into_its_origin() {
    writes_nothing_into_its_origin(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_18_that_creates_a_tablespace_writes_nothing_into_its_origin() {
    writes_nothing_into_its_origin(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gets_a_tablespace_while_it_is_copied_is_copied_once_more() {
    let home = Fixture::new();
    home.neon.pg().create(&home.create()).await.unwrap();
    let space = space(&home);
    let (other, done) = (home.again(), AtomicBool::new(false));
    let again = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&again);
    let neon = home.with(|options| {
        options.events = EventSink::new(move |event| match event {
            Event::Step(step)
                if step.starts_with("Copying") && !done.swap(true, Ordering::SeqCst) =>
            {
                let (other, space) = (other.clone(), space.clone());
                let created = std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = { runtime }.enable_all().build().unwrap();
                    let place = format!("create tablespace s location '{}'", space.display());
                    runtime.block_on(async {
                        run(&other, "pgdata1", &place).await;
                        run(
                            &other,
                            "pgdata1",
                            "create table u tablespace s as select 7 i",
                        )
                        .await;
                    });
                });
                created.join().unwrap();
            }
            Event::Note(note) if note.contains("copied once more") => {
                told.store(true, Ordering::SeqCst);
            }
            _ => {}
        });
    });
    let found = take(&neon, "pgdata1", "a").await;
    assert!(again.load(Ordering::SeqCst));
    let how = RestoreChoice::default();
    home.neon
        .pg()
        .create_from(&home.create(), &found, &how)
        .await
        .unwrap();
    assert_eq!(sql(&home.neon, "pgdata2", "select i from u").await, "7");
    for one in ["pgdata1", "pgdata2"] {
        home.neon.pg().stop(&name(one)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_is_copied_when_the_last_of_its_processes_is_gone() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    pg.create(&home.create()).await.unwrap();
    run(&home.neon, "pgdata1", "create table t (i int)").await;
    let instance = pg.instance(&name("pgdata1")).await.unwrap();
    let mut client = instance.connect("postgres").await.unwrap();
    let rows = client
        .simple_query("select pg_backend_pid()")
        .await
        .unwrap();
    let backend: i32 = rows[0].value(0, 0).unwrap().parse().unwrap();
    let busy = tokio::spawn(async move {
        let work = "do $$ declare x bigint := 0; begin \
            for i in 1..30000000 loop x := x + i; end loop; insert into t values (1); end $$";
        // Its server is killed meanwhile.
        drop(client.simple_query(work).await);
    });
    let active =
        "select count(*) from pg_stat_activity where query like 'do %' and state = 'active'";
    while sql(&home.neon, "pgdata1", active).await == "0" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let pid = std::fs::read_to_string(instance.data_dir().join("postmaster.pid")).unwrap();
    let pid = Pid::from_raw(pid.lines().next().unwrap().parse().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let lives =
        || std::fs::read(format!("/proc/{backend}/cmdline")).is_ok_and(|line| !line.is_empty());
    assert!(lives());
    let taken = take(&home.neon, "pgdata1", "crash").await;
    assert!(!lives());
    let snapshot = taken.repository.snapshot(taken.id).await.unwrap();
    assert_eq!(snapshot.facts().kind.name(), "crashed");
    busy.await.unwrap();
}
