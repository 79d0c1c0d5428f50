//! Commands that are killed (SIGKILL) at each step of what they write in a journal, and while servers of theirs run: the
//! next command takes back what they did or finishes it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use neon_pg::{ErrorKind, Found, Neon, Operation, Options, Outcome, PgMajor, RestoreChoice};
use neon_testkit::Installation;

use crate::checkouts::plan;
use crate::support::{Fixture, name, no_slot_is_left, refused, run, sql, take};

const HOME: &str = "NEON_PG_HOME";
const VERB: &str = "NEON_PG_VERB";
const STEP: &str = "NEON_PG_STEP";
/// Before a step: the recovery fails for want of its log, and the step is one of the way back.
const WAY_BACK: &str = "way back: ";
const MAJOR: PgMajor = PgMajor::V15;

/// What the killed processes do. Started by the tests of this module; by itself there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acting_as_a_command() {
    let (Ok(home), Ok(verb), Ok(step)) = (
        std::env::var(HOME),
        std::env::var(VERB),
        std::env::var(STEP),
    ) else {
        return;
    };
    let mut options = Options::new();
    options.pg_bin = vec![Installation::of(MAJOR).bin_dir().to_owned()];
    // On its way back only, and for that the way there is barred once.
    let (way_back, step) = match step.strip_prefix(WAY_BACK) {
        Some(step) => (true, step.to_owned()),
        None => (false, step),
    };
    let log = Path::new(&home).join("pg/pgdata1/data/pg_wal");
    let turned = AtomicBool::new(!way_back);
    options.at_step = Some(Arc::new(move |at: &str| {
        if at == "checkout: back" {
            turned.store(true, Ordering::SeqCst);
        }
        let there = !turned.load(Ordering::SeqCst);
        if at == "checkout: rewritten" && there {
            for entry in fs::read_dir(&log).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        if at == step && !there {
            let this = rustix::process::getpid();
            rustix::process::kill_process(this, rustix::process::Signal::KILL).unwrap();
        }
    }));
    let neon = Neon::open(home, options).unwrap();
    if let Some(address) = verb.strip_prefix("create from ") {
        let mut create = neon_pg::CreatePg::default();
        create.name = Some(name("copy"));
        create.no_start = true;
        let how = RestoreChoice::default();
        let snapshots = neon.snapshots();
        snapshots
            .create_pg(&create, address, None, &how)
            .await
            .unwrap();
        return;
    }
    let found = neon.snapshots().find("pgdata1@a", None).await.unwrap();
    match verb.as_str() {
        "checkout" => {
            let plan = plan(&neon, &found).await;
            neon.pg().checkout(&plan).await.unwrap();
        }
        "create" => {
            let mut create = neon_pg::CreatePg::default();
            create.name = Some(name("copy"));
            create.no_start = true;
            let how = RestoreChoice::default();
            neon.pg().create_from(&create, &found, &how).await.unwrap();
        }
        "start" => {
            neon.pg().start(&name("pgdata1")).await.unwrap();
        }
        other => panic!("{other}"),
    }
}

/// Runs a command that is killed at this step, or after this time.
pub(crate) fn killed(home: &Path, verb: &str, step: &str, after: Option<Duration>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::acting_as_a_command", "--nocapture"])
        .env(HOME, home)
        .env(VERB, verb)
        .env(STEP, step)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    if let Some(after) = after {
        std::thread::sleep(after);
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    if after.is_none() {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(9), "{verb} {step}: {status}");
    }
}

/// Processes that work in a folder, by the arguments of their command.
fn servers_in(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains("postgres") && line.contains(&folder))
        .collect()
}

/// Waits for what guardians end by themselves.
fn none_but(folder: &Path, most: usize) {
    let begun = Instant::now();
    while servers_in(folder).len() > most {
        let left = servers_in(folder);
        assert!(begun.elapsed() < Duration::from_secs(60), "{left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn nothing_half_made(home: &Path) {
    for folder in ["pg", "state/pg", "trash", "state/trash"] {
        for entry in fs::read_dir(home.join(folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            // A record that never got its name is in nobody's way; the doctor removes it when it is old.
            let record = name.starts_with(".new-") && entry.file_type().unwrap().is_file();
            let sign = name.starts_with(".home-");
            assert!(record || sign || !name.starts_with('.'), "{folder}/{name}");
        }
    }
    let run = fs::read_dir(home.join("pg/pgdata1/run")).unwrap();
    let left: Vec<_> = run
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with(".s.PGSQL"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

pub(crate) async fn scene() -> Fixture {
    let home = Fixture::of(MAJOR);
    home.neon.pg().create(&home.create()).await.unwrap();
    run(
        &home.neon,
        "pgdata1",
        "create table t as select i from generate_series(1, 5000) i",
    )
    .await;
    take(&home.neon, "pgdata1", "a").await;
    run(&home.neon, "pgdata1", "insert into t select 1").await;
    home
}

/// What holds whenever a checkout that was killed is finished or taken back by this snapshot of the instance. With the timeline
/// that it is on, and what the log says of the last checkout.
async fn is_settled(home: &Path, neon: &Neon, taken: &Found) -> (String, Operation) {
    let pg = neon.pg().get(&name("pgdata1")).await.unwrap();
    assert_eq!((pg.role(), &pg.record.checkout), (Some("primary"), &None));
    no_slot_is_left(neon, "pgdata1").await;
    let snapshot = taken.repository.snapshot(taken.id).await.unwrap();
    assert_eq!(snapshot.facts().lineage, Some(pg.record.lineage));
    nothing_half_made(home);
    let operations = neon.operations().unwrap();
    let mut checkouts = operations.into_iter().rev();
    let last = checkouts.find(|one| one.verb == "pg checkout").unwrap();
    let line = "select timeline_id from pg_control_checkpoint()";
    (sql(neon, "pgdata1", line).await, last)
}

/// No two checkouts end on one timeline.
fn are_different(mut timelines: Vec<String>) {
    let count = timelines.len();
    timelines.sort();
    timelines.dedup();
    assert_eq!(timelines.len(), count, "{timelines:?}");
}

/// Stops the instance, which is then all that ran.
async fn nothing_runs_then(home: &Fixture) {
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
    none_but(&home.scratch.path().join("home"), 0);
}

async fn checkout_killed_at(steps: &[&str], rows: &str) {
    let home = scene().await;
    let place = home.scratch.path().join("home");
    let mut timelines = Vec::new();
    for step in steps {
        // With other roles than the snapshot has, its superuser is given the password anew.
        run(&home.again(), "pgdata1", "create role passing").await;
        killed(&place, "checkout", step, None);
        // The next command, whichever it is.
        let neon = home.again();
        let taken = take(&neon, "pgdata1", &format!("after-{}", &step[10..])).await;
        let (timeline, last) = is_settled(&place, &neon, &taken).await;
        let count = sql(&neon, "pgdata1", "select count(*) from t").await;
        assert_eq!(count, rows, "{step}");
        let passing = "select count(*) from pg_roles where rolname = 'passing'";
        let finished = rows == "5000";
        let left = if finished { "0" } else { "1" };
        assert_eq!(sql(&neon, "pgdata1", passing).await, left, "{step}");
        run(&neon, "pgdata1", "drop role if exists passing").await;
        timelines.push(timeline);
        assert_eq!(last.outcome == Outcome::Done, finished, "{last:?}");
        assert_eq!(last.details.contains_key("head-id"), finished, "{last:?}");
        // No server but ours was there, also that of a recovery which was killed.
        let heads = neon.pg().record_of(&name("pgdata1")).unwrap().heads;
        let most = if finished { timelines.len() } else { 0 };
        assert_eq!(heads.len(), most, "{step}");
        if finished {
            run(&neon, "pgdata1", "insert into t select 1").await;
        }
    }
    if rows == "5000" {
        are_different(timelines);
    } else {
        // None of it was: a checkout now is the first, under the next number that no state got.
        let neon = home.again();
        let found = neon.snapshots().find("pgdata1@a", None).await.unwrap();
        let done = neon
            .pg()
            .checkout(&plan(&neon, &found).await)
            .await
            .unwrap();
        let unsaved = ["checkout: begun", "checkout: stopped"];
        let number = steps.iter().filter(|step| !unsaved.contains(step)).count();
        assert_eq!(done.head.to_string(), format!("pgdata1@HEAD{{{number}}}"));
        for number in 0..number {
            let head = format!("pgdata1@HEAD{{{number}}}");
            let found = neon.snapshots().find(&head, None).await;
            assert_eq!(refused(found), ErrorKind::NotFound, "{head}");
        }
    }
    nothing_runs_then(&home).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_killed_before_its_first_change_is_taken_back() {
    let steps = [
        "checkout: begun",
        "checkout: stopped",
        "checkout: saved",
        "checkout: compared",
    ];
    checkout_killed_at(&steps, "5001").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_killed_after_its_first_change_is_finished() {
    let steps = [
        "checkout: changing",
        "checkout: rewritten",
        "checkout: visited",
        "checkout: recovered",
        "checkout: done",
    ];
    checkout_killed_at(&steps, "5000").await;
}

/// Its recovery fails, so that its state before is put back, and that is killed: the next command puts it back. The long form
/// kills it at each of its steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_killed_on_its_way_back_ends_at_the_state_before() {
    let home = scene().await;
    let place = home.scratch.path().join("home");
    let mut timelines = Vec::new();
    let steps = match std::env::var("NEON_LONG_TESTS") {
        Ok(_) => vec!["back", "changing", "rewritten", "recovered", "done"],
        Err(_) => vec!["back", "rewritten"],
    };
    for (round, step) in steps.iter().enumerate() {
        let at = format!("{WAY_BACK}checkout: {step}");
        killed(&place, "checkout", &at, None);
        let neon = home.again();
        // The next command, whichever it is.
        let taken = take(&neon, "pgdata1", &format!("after-{round}")).await;
        let (timeline, last) = is_settled(&place, &neon, &taken).await;
        timelines.push(timeline);
        let count = sql(&neon, "pgdata1", "select count(*) from t").await;
        assert_eq!(count, (5001 + round).to_string(), "{step}");
        assert_eq!(last.outcome, Outcome::Failed, "{last:?}");
        run(&neon, "pgdata1", "insert into t select 1").await;
    }
    are_different(timelines);
    // What nobody holds any more can be destroyed.
    let neon = home.again();
    let snapshots = neon.snapshots();
    let plan = snapshots.plan_destroy("pgdata1@a", None).await.unwrap();
    snapshots.destroy(&plan).await.unwrap();
    nothing_runs_then(&home).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_killed_at_any_time_is_whole_or_was_not() {
    let home = scene().await;
    let place = home.scratch.path().join("home");
    for after in [300, 900, 1500, 2100, 2700, 3300, 4500] {
        killed(&place, "checkout", "", Some(Duration::from_millis(after)));
        let neon = home.again();
        // The next command, whichever it is.
        let found = neon.snapshots().find("pgdata1@a", None).await.unwrap();
        plan(&neon, &found).await;
        let pg = neon.pg().get(&name("pgdata1")).await.unwrap();
        assert_eq!(pg.record.checkout, None);
        assert_eq!(pg.role(), Some("primary"), "{after}");
        let count = sql(&neon, "pgdata1", "select count(*) from t").await;
        assert!(
            ["5000", "5001"].contains(&count.as_str()),
            "{after}: {count}"
        );
        if count == "5000" {
            run(&neon, "pgdata1", "insert into t select 1").await;
        }
        nothing_half_made(&place);
    }
    nothing_runs_then(&home).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_killed_at_any_step_is_as_if_it_never_was_or_done() {
    let home = scene().await;
    let place = home.scratch.path().join("home");
    let pg = home.neon.pg();
    for step in [
        "create: begun",
        "create: written",
        "create: visited",
        "create: recovered",
        "create: isolated",
    ] {
        killed(&place, "create", step, None);
        assert_eq!(
            refused(pg.destroy(&name("copy")).await),
            ErrorKind::NotFound,
            "{step}"
        );
        nothing_half_made(&place);
        none_but(&place.join("pg/.new"), 0);
    }
    killed(&place, "create", "create: named", None);
    pg.start(&name("copy")).await.unwrap();
    assert_eq!(
        sql(&home.neon, "copy", "select count(*) from t").await,
        "5000"
    );
    pg.destroy(&name("copy")).await.unwrap();
    // In the middle of restoring, recovering and starting.
    for after in [700, 1500, 2500, 3500] {
        killed(&place, "create", "", Some(Duration::from_millis(after)));
        match pg.destroy(&name("copy")).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
        }
        nothing_half_made(&place);
        none_but(&place.join("pg/.new"), 0);
    }
    pg.stop(&name("pgdata1")).await.unwrap();
    none_but(&place, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_wrote_in_the_middle_of_a_checkout_is_kept() {
    let home = scene().await;
    let place = home.scratch.path().join("home");
    killed(&place, "checkout", "checkout: changing", None);
    let instance = home.neon.pg().instance(&name("pgdata1")).await.unwrap();
    let options = neon_pgctl::StartOptions::new();
    instance.start(&options).await.unwrap();
    run(&home.neon, "pgdata1", "create table precious as select 7 i").await;
    let neon = home.again();
    let found = neon.snapshots().find("pgdata1@a", None).await.unwrap();
    let choice = neon_pg::CheckoutChoice::default();
    let planned = neon
        .pg()
        .plan_checkout(&name("pgdata1"), &found, choice)
        .await;
    assert_eq!(refused(planned), ErrorKind::Busy);
    assert_eq!(sql(&neon, "pgdata1", "select i from precious").await, "7");
    let options = neon_pgctl::StopOptions::new(neon_pgctl::StopMode::Fast);
    instance.stop(&options).await.unwrap();
    plan(&neon, &found).await;
    assert_eq!(
        sql(&neon, "pgdata1", "select count(*) from t").await,
        "5000"
    );
    let heads = neon.pg().record_of(&name("pgdata1")).unwrap().heads;
    assert_eq!(heads.len(), 2);
    let kept = neon
        .snapshots()
        .find("pgdata1@HEAD{1}", None)
        .await
        .unwrap();
    neon.pg().checkout(&plan(&neon, &kept).await).await.unwrap();
    assert_eq!(sql(&neon, "pgdata1", "select i from precious").await, "7");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_whose_snapshot_is_gone_ends_at_the_state_before() {
    let home = scene().await;
    let place = home.scratch.path().join("home");
    killed(&place, "checkout", "checkout: changing", None);
    let neon = home.again();
    // One that a collection has taken.
    let record = place.join("state/pg/pgdata1.json");
    let text = fs::read_to_string(&record).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let gone = value["checkout"]["snapshot"].as_str().unwrap().len();
    value["checkout"]["snapshot"] = "0".repeat(gone).into();
    fs::write(&record, value.to_string()).unwrap();
    assert!(neon.pg().stop(&name("pgdata1")).await.is_err());
    let pg = neon.pg().record_of(&name("pgdata1")).unwrap();
    assert_eq!(pg.checkout, None);
    let up = neon
        .pg()
        .get(&name("pgdata1"))
        .await
        .unwrap()
        .role()
        .is_some();
    if !up {
        neon.pg().start(&name("pgdata1")).await.unwrap();
    }
    assert_eq!(
        sql(&neon, "pgdata1", "select count(*) from t").await,
        "5001"
    );
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_half_rolled_back_is_destroyed_and_comes_back_whole() {
    let home = scene().await;
    let place = home.scratch.path().join("home");
    killed(&place, "checkout", "checkout: rewritten", None);
    let neon = home.again();
    // Also when nothing of the snapshot can be had.
    let store = place.join("store/local");
    let aside = place.join("store/aside");
    fs::rename(&store, &aside).unwrap();
    neon.pg().destroy(&name("pgdata1")).await.unwrap();
    assert!(neon.pg().records().unwrap().is_empty());
    fs::remove_dir_all(&store).ok();
    fs::rename(&aside, &store).unwrap();
    // Which keeps no other instance from anything.
    fs::write(place.join("state/pg/other.json"), "{").unwrap();
    let undone = neon.undo().await.unwrap();
    assert_eq!(undone.operation.verb, "pg destroy");
    let pg = neon.pg().get(&name("pgdata1")).await.unwrap();
    assert_eq!((pg.role(), &pg.record.checkout), (Some("primary"), &None));
    let count = sql(&neon, "pgdata1", "select count(*) from t").await;
    assert_eq!(count, "5000");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
    none_but(&place, 0);
}

/// A server that is up and will not be: its start was given up with the command that began it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_start_was_killed_is_not_taken_for_one_that_runs() {
    let home = scene().await;
    let place = home.scratch.path().join("home");
    let pg = home.neon.pg();
    let pgdata1 = name("pgdata1");
    for after in (100..900).step_by(100) {
        pg.stop(&pgdata1).await.unwrap();
        killed(&place, "start", "", Some(Duration::from_millis(after)));
        // Just now it may be up.
        match home.again().pg().start(&pgdata1).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{after}: {error:?}"),
        }
        std::thread::sleep(Duration::from_millis(300));
        let role = pg.get(&pgdata1).await.unwrap().role();
        assert_eq!(role, Some("primary"), "{after}");
    }
    pg.stop(&pgdata1).await.unwrap();
    none_but(&place, 0);
}
