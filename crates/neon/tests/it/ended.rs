//! Snapshots of servers that end meanwhile, or of which a database does not answer.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use neon_pg::{CreateSnapshot, ErrorKind, Event, EventSink, Neon, PgMajor};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Fixture, end_server, name, run, sql};

/// Ends the server as soon as one of these steps is told, as often as it is; what else was told.
fn ending(home: &Fixture, step: &'static str, how: Signal, most: u32) -> (Neon, Told) {
    let data = home.scratch.path().join("home/pg/p1/data");
    let told = Told::default();
    let (heard, ended) = (Arc::clone(&told), AtomicU32::new(0));
    let neon = home.with(|options| {
        options.events = EventSink::new(move |event| match event {
            Event::Step(text)
                if text.starts_with(step) && ended.fetch_add(1, Ordering::Relaxed) < most =>
            {
                let file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
                let pid = file.lines().next().unwrap().parse().unwrap();
                kill_process(Pid::from_raw(pid).unwrap(), how).unwrap();
                while data.join("postmaster.pid").exists()
                    && rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_ok()
                {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
            Event::Note(text) => heard.lock().unwrap().push(text),
            _ => {}
        });
    });
    (neon, told)
}

type Told = Arc<Mutex<Vec<String>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_between_two_steps_of_a_snapshot_is_copied_as_it_then_is() {
    let home = Fixture::new();
    home.running("p1").await;
    run(&home.neon, "p1", "create table t as select 7 as seven").await;
    // Before it is connected to, and in the middle of its copy; told to stop, and killed.
    let ends = [
        ("Waiting for a checkpoint", Signal::INT, "cold"),
        ("Copying", Signal::INT, "cold"),
        ("Waiting for a checkpoint", Signal::KILL, "crashed"),
        ("Copying", Signal::KILL, "crashed"),
    ];
    for (number, (step, how, kind)) in ends.into_iter().enumerate() {
        let (neon, told) = ending(&home, step, how, 1);
        let wanted = CreateSnapshot::new(format!("p1@s{number}").parse().unwrap());
        let taken = neon.snapshots().create(&wanted).await.unwrap();
        assert_eq!(taken.kind, kind, "{step} {how:?}");
        let told = told.lock().unwrap().clone();
        let why = told
            .iter()
            .find(|text| text.contains("ended while it was copied"));
        assert!(why.is_some(), "{told:?}");
        home.neon.pg().start(&name("p1")).await.unwrap();
        assert_eq!(sql(&home.neon, "p1", "select seven from t").await, "7");
    }
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(sql(&home.neon, "p1", slots).await, "0");
    end_server(&home.scratch.path().join("home/pg/p1/data"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_restarted_while_it_is_copied_is_copied_once_more() {
    let home = Fixture::new();
    home.running("p1").await;
    run(&home.neon, "p1", "create table t as select 7 as seven").await;
    let data = home.scratch.path().join("home/pg/p1/data");
    let restarts = Arc::new(Mutex::new(Vec::new()));
    let (begun, theirs) = (Arc::clone(&restarts), data.clone());
    let neon = home.with(|options| {
        options.events = EventSink::new(move |event| {
            let mut begun = begun.lock().unwrap();
            if !matches!(event, Event::Step(text) if text.starts_with("Copying"))
                || !begun.is_empty()
            {
                return;
            }
            let pg_ctl = |verb: &str| {
                let mut command = neon_testkit::Installation::of(PgMajor::V15).command("pg_ctl");
                command.args([verb, "-w", "-D"]).arg(&theirs);
                command.stdout(std::process::Stdio::null());
                command
            };
            // As it was started.
            let options = std::fs::read_to_string(theirs.join("postmaster.opts")).unwrap();
            let options = options
                .trim_end()
                .split_once(' ')
                .map(|(_, rest)| rest.to_owned());
            assert!(pg_ctl("stop").status().unwrap().success());
            let mut start = pg_ctl("start");
            start
                .arg("-o")
                .arg(options.unwrap())
                .arg("-l")
                .arg(theirs.join("their.log"));
            begun.push(std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(300));
                start.status().unwrap().success()
            }));
        });
    });
    let wanted = CreateSnapshot::new("p1@x".parse().unwrap());
    let taken = neon.snapshots().create(&wanted).await;
    let restarts = std::mem::take(&mut *restarts.lock().unwrap());
    let restarted: Vec<bool> = restarts
        .into_iter()
        .map(|one| one.join().unwrap())
        .collect();
    assert_eq!(restarted, [true]);
    // Cold where the copy was faster than the start.
    let taken = taken.unwrap();
    assert!(["online", "cold"].contains(&taken.kind), "{}", taken.kind);
    assert_eq!(sql(&home.neon, "p1", "select seven from t").await, "7");
    end_server(&data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_no_server_is_to_blame_for_is_told_at_once() {
    let home = Fixture::new();
    home.running("p1").await;
    let (neon, told) = ending(&home, "nothing", Signal::INT, 0);
    run(&home.neon, "p1", "alter role postgres nologin").await;
    let wanted = CreateSnapshot::new("p1@x".parse().unwrap());
    let error = neon.snapshots().create(&wanted).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "{error:?}");
    let told = told.lock().unwrap().clone();
    assert!(!told.iter().any(|text| text.contains("ended")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_answer_keeps_nobody_from_a_snapshot() {
    let home = Fixture::of(PgMajor::V18);
    home.running("p1").await;
    run(&home.neon, "p1", "create database shop").await;
    let instance = home.neon.pg().instance(&name("p1")).await.unwrap();
    let mut shop = instance.connect("shop").await.unwrap();
    // Whoever comes to that database waits until it is stopped.
    let trigger = "create function wait() returns event_trigger language plpgsql as \
                   $$ begin perform pg_sleep(3600); end $$; \
                   create event trigger wait on login execute function wait(); \
                   alter event trigger wait enable always";
    shop.simple_query(trigger).await.unwrap();
    shop.close().await;
    let told = Told::default();
    let heard = Arc::clone(&told);
    let neon = home.with(|options| {
        options.answers_within = std::time::Duration::from_millis(200);
        options.events = EventSink::new(move |event| {
            if let Event::Note(text) = event {
                heard.lock().unwrap().push(text);
            }
        });
    });
    let wanted = CreateSnapshot::new("p1@x".parse().unwrap());
    let taken = neon.snapshots().create(&wanted).await.unwrap();
    assert_eq!(taken.kind, "online");
    let told = told.lock().unwrap().clone();
    let said = "The databases of p1 did not answer for extensions and collations; the snapshot is without them.";
    assert!(told.iter().any(|text| text == said), "{told:?}");
    let found = neon.snapshots().find("p1@x", None).await.unwrap();
    let snapshot = found.repository.snapshot(found.id).await.unwrap();
    let needs = &snapshot.facts().needs;
    // What the machine itself says is there.
    assert!(
        needs.extensions.is_empty() && needs.architecture.is_some(),
        "{needs:?}"
    );
}
