//! What becomes of snapshots that are taken in trouble, and whether each kind of them lives.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use neon_pg::{
    AdoptPg, CheckoutChoice, CreateSnapshot, ErrorKind, Event, EventSink, Locator, Neon, PgMajor,
    RestoreChoice, TakenSnapshot,
};
use neon_pgctl::{
    Instance, PortChoice, StandbyOptions, StartOptions, StopMode, StopOptions, Upstream,
};
use neon_snapshot_format::SnapshotPath;
use neon_testkit::{Installation, OsUser};

use crate::support::{Fixture, end_server, name, refused, run, sql};

fn wanted(text: &str) -> CreateSnapshot {
    CreateSnapshot::new(text.parse().unwrap())
}

async fn take(neon: &Neon, text: &str) -> TakenSnapshot {
    neon.snapshots().create(&wanted(text)).await.unwrap()
}

/// Makes an instance from a snapshot; what it answers.
async fn ask_copy(home: &Fixture, snapshot: &str, copy: &str, query: &str) -> String {
    let mut create = home.create();
    create.name = Some(name(copy));
    let found = home.neon.snapshots().find(snapshot, None).await.unwrap();
    let how = RestoreChoice::default();
    home.neon
        .pg()
        .create_from(&create, &found, &how)
        .await
        .unwrap();
    sql(&home.neon, copy, query).await
}

struct Server(PathBuf);

impl Drop for Server {
    fn drop(&mut self) {
        end_server(&self.0);
    }
}

async fn a_standby_is_copied(major: PgMajor) {
    let home = Fixture::of(major);
    home.running("p1").await;
    run(
        &home.neon,
        "p1",
        "create table t as select i from generate_series(1, 20000) i",
    )
    .await;
    take(&home.neon, "p1@one").await;

    let primary = home.neon.pg().instance(&name("p1")).await.unwrap();
    let port = home.neon.pg().record_of(&name("p1")).unwrap().port.unwrap();
    let upstream = Upstream::new(primary.socket_dir().to_str().unwrap(), port, "postgres")
        .with_pass_file(primary.pass_file().unwrap());
    let options = StandbyOptions::new(upstream).without_sync();
    let user = OsUser::current();
    let place = home.scratch.path().join("standbys");
    user.create_dir(&place);
    let installation = neon_pgctl::Installation::at(Installation::of(major).bin_dir()).unwrap();
    let standby = Instance::create_standby(&installation, place.join("s1"), &options)
        .await
        .unwrap();
    let _server = Server(standby.data_dir().to_owned());
    let ports = PortChoice::Free {
        range: 40_000..=41_000,
        avoid: Vec::new(),
    };
    standby
        .start(&StartOptions::new().with_port(ports))
        .await
        .unwrap();
    let mut adopt = AdoptPg::new(standby.data_dir());
    adopt.name = Some(name("s1"));
    adopt.pass_file = standby.pass_file().map(Into::into);
    home.neon.pg().adopt(&adopt).await.unwrap();
    run(
        &home.neon,
        "p1",
        "insert into t select generate_series(1, 20000)",
    )
    .await;
    while sql(&home.neon, "s1", "select count(*) from t").await != "40000" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Another history of log than the primary's: compared with what is there of the same cluster.
    let running = take(&home.neon, "s1@running").await;
    assert_eq!(
        (running.kind, running.source.as_deref()),
        ("standby", Some("scan"))
    );
    assert!(
        running.parent.is_some() && running.added < running.size / 4,
        "{running:?}"
    );
    run(
        &home.neon,
        "p1",
        "insert into t select generate_series(1, 20000)",
    )
    .await;
    while sql(&home.neon, "s1", "select count(*) from t").await != "60000" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    standby
        .stop(&StopOptions::new(StopMode::Fast))
        .await
        .unwrap();
    let stopped = take(&home.neon, "s1@stopped").await;
    assert_eq!(
        (stopped.kind, stopped.parent),
        ("recovery", Some(running.id))
    );
    assert_ne!(stopped.source.as_deref(), Some("scan"), "{stopped:?}");
    let count = "select count(*) from t";
    assert_eq!(ask_copy(&home, "s1@running", "c1", count).await, "40000");
    let least: u32 = ask_copy(&home, "s1@stopped", "c2", count)
        .await
        .parse()
        .unwrap();
    assert!(least >= 40_000, "{least}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_of_13_is_copied_running_and_stopped() {
    a_standby_is_copied(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_of_18_is_copied_running_and_stopped() {
    a_standby_is_copied(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_instance_and_a_copy_of_it_go_on_from_what_they_began_with() {
    let home = Fixture::of(PgMajor::V17);
    home.running("p1").await;
    run(
        &home.neon,
        "p1",
        "create table t as select i from generate_series(1, 20000) i",
    )
    .await;
    take(&home.neon, "p1@one").await;
    run(
        &home.neon,
        "p1",
        "insert into t select generate_series(1, 10)",
    )
    .await;
    home.crash("p1");
    let crashed = take(&home.neon, "p1@crashed").await;
    assert_eq!(crashed.kind, "crashed");
    assert_eq!(
        ask_copy(&home, "p1@crashed", "c1", "select count(*) from t").await,
        "20010"
    );
    // A new lineage, whose first snapshot builds on what it was made from.
    let own = take(&home.neon, "c1@own").await;
    assert_eq!(own.parent, Some(crashed.id));
    assert_ne!(own.source.as_deref(), Some("scan"), "{own:?}");
    assert!(own.read < crashed.size / 2, "{own:?}");
    assert_eq!(
        ask_copy(&home, "c1@own", "c2", "select count(*) from t").await,
        "20010"
    );
    let next = take(&home.neon, "c1@next").await;
    assert_eq!(next.parent, Some(own.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_summaries_18_reads_the_log_and_says_why() {
    let home = Fixture::of(PgMajor::V18);
    home.running("p1").await;
    run(
        &home.neon,
        "p1",
        "alter system set summarize_wal = off; select pg_reload_conf()",
    )
    .await;
    let first = take(&home.neon, "p1@one").await;
    let summaries = home.scratch.path().join("home/pg/p1/data/pg_wal/summaries");
    while sql(
        &home.neon,
        "p1",
        "select summarizer_pid is null from pg_get_wal_summarizer_state()",
    )
    .await
        != "t"
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for summary in fs::read_dir(summaries).unwrap().flatten() {
        fs::remove_file(summary.path()).unwrap();
    }
    let second = take(&home.neon, "p1@two").await;
    assert_eq!(second.source.as_deref(), Some("log"));
    let why = second.passed_over.first().unwrap();
    assert_eq!(why.path, "server-summaries");
    assert!(!why.reason.is_empty());
    let facts = home
        .neon
        .snapshots()
        .show("p1@two", None)
        .await
        .unwrap()
        .facts;
    assert_eq!(facts.cost.refused_sources, second.passed_over);
    assert_eq!(facts.parent, Some(first.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_is_refused_or_recorded_and_stays_known() {
    let home = Fixture::of(PgMajor::V16);
    home.running("p1").await;
    run(
        &home.neon,
        "p1",
        "create table t as select i from generate_series(1, 20000) i",
    )
    .await;
    let path = sql(&home.neon, "p1", "select pg_relation_filepath('t')").await;
    home.neon.pg().stop(&name("p1")).await.unwrap();
    let file = home.scratch.path().join("home/pg/p1/data").join(&path);
    let file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&[7; 100], 3 * 8192 + 4000).unwrap();

    let error = home
        .neon
        .snapshots()
        .create(&wanted("p1@bad"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.hint().is_some());
    assert!(home.neon.snapshots().list(None).await.unwrap().0.is_empty());
    let mut allowed = wanted("p1@bad");
    allowed.allow_bad_pages = true;
    let taken = home.neon.snapshots().create(&allowed).await.unwrap();
    assert_eq!(taken.bad_pages, 1);
    let (listed, _) = home.neon.snapshots().list(None).await.unwrap();
    assert_eq!(
        listed
            .first()
            .unwrap()
            .listed
            .summary
            .as_ref()
            .unwrap()
            .bad_pages,
        1
    );
    let shown = home.neon.snapshots().show("p1@bad", None).await.unwrap();
    let bad = shown.facts.bad_pages.first().unwrap();
    assert_eq!((bad.path.as_str(), bad.block), (path.as_str(), 3));

    // The next one does not read that page, and says so all the same.
    let next = home.neon.snapshots().create(&wanted("p1@next")).await;
    assert_eq!(refused(next), ErrorKind::Damaged);
    let mut allowed = wanted("p1@next");
    allowed.allow_bad_pages = true;
    let next = home.neon.snapshots().create(&allowed).await.unwrap();
    assert_eq!((next.bad_pages, next.source.as_deref()), (1, Some("log")));
}

/// Two homes with one storage; the second takes the name while the first copies.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn who_loses_the_race_for_a_name_is_told_and_the_snapshot_is_safe() {
    let (home, other) = (Fixture::new(), Fixture::new());
    let tank = home.scratch.path().join("tank");
    let locator = Locator::parse(tank.to_str().unwrap()).unwrap();
    for home in [&home, &other] {
        home.neon
            .storages()
            .attach(&name("tank"), &locator, BTreeMap::new())
            .await
            .unwrap();
        let mut create = home.stopped("p1");
        create.storage = Some(name("tank"));
        home.neon.pg().create(&create).await.unwrap();
    }
    let (begun, wait) = mpsc::channel();
    let (done, go_on) = mpsc::channel::<()>();
    let (go_on, once) = (Mutex::new(go_on), AtomicBool::new(false));
    let warned = Arc::new(Mutex::new(Vec::new()));
    let warnings = Arc::clone(&warned);
    let slow = home.with(|options| {
        options.events = EventSink::new(move |event| match event {
            Event::Step(text)
                if text.starts_with("Copying") && !once.swap(true, Ordering::Relaxed) =>
            {
                begun.send(()).unwrap();
                go_on.lock().unwrap().recv().unwrap();
            }
            Event::Warning(text) => warnings.lock().unwrap().push(text),
            _ => {}
        });
    });
    let first = tokio::spawn(async move { slow.snapshots().create(&wanted("p1@x")).await });
    tokio::task::spawn_blocking(move || wait.recv().unwrap())
        .await
        .unwrap();
    let winner = take(&other.neon, "p1@x").await;
    done.send(()).unwrap();
    let loser = first.await.unwrap().unwrap();
    assert_eq!(
        (
            loser.name.as_ref(),
            winner.name.as_ref().map(ToString::to_string).as_deref()
        ),
        (None, Some("p1@x"))
    );
    assert_eq!(
        loser.name_lost.as_deref(),
        Some(winner.id.to_string().as_str())
    );
    assert!(
        warned
            .lock()
            .unwrap()
            .first()
            .unwrap()
            .contains(&loser.id.to_string())
    );
    let snapshots = home.neon.snapshots();
    assert_eq!(
        snapshots
            .find("p1@x", Some(&name("tank")))
            .await
            .unwrap()
            .id,
        winner.id
    );
    let safe = snapshots.show(&loser.id.to_string(), None).await.unwrap();
    assert_eq!(safe.names, []);
    let third = home.neon.snapshots().create(&wanted("p1@x")).await;
    assert_eq!(refused(third), ErrorKind::Exists);
}

async fn filled(home: &Fixture) {
    home.running("p1").await;
    run(
        &home.neon,
        "p1",
        "create table t as select i, repeat(md5(i::text), 30) from generate_series(1, 50000) i",
    )
    .await;
}

fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.path() {
            path if path.is_dir() => files(&path),
            _ => 1,
        })
        .sum()
}

/// No backup, no slot, no session of ours, no snapshot; and the next command works.
async fn nothing_is_left(home: &Fixture) {
    let held = "select (select count(*) from pg_replication_slots) + \
                (select count(*) from pg_stat_activity where application_name = 'neon' and pid <> pg_backend_pid())";
    let patience = Instant::now() + Duration::from_secs(120);
    while sql(&home.neon, "p1", held).await != "0" {
        assert!(Instant::now() < patience, "a session or a slot is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(home.neon.snapshots().list(None).await.unwrap().0.is_empty());
    let leases = home.scratch.path().join("home/store/local/leases");
    while files(&leases) > 0 {
        assert!(Instant::now() < patience, "a lease is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    take(&home.neon, "p1@next").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_stopped_leaves_nothing_behind() {
    let home = Fixture::new();
    filled(&home).await;
    let cancel = Arc::new(AtomicBool::new(false));
    let (set, seen) = (Arc::clone(&cancel), Arc::new(Mutex::new(Vec::new())));
    let told = Arc::clone(&seen);
    let neon = home.with(|options| {
        options.cancel = cancel;
        options.events = EventSink::new(move |event| {
            if let Event::Progress { done, total, .. } = event {
                told.lock().unwrap().push((done, total));
                set.store(true, Ordering::Relaxed);
            }
        });
    });
    let stopped = neon.snapshots().create(&wanted("p1@x")).await;
    assert_eq!(refused(stopped), ErrorKind::Cancelled);
    let (done, total) = *seen.lock().unwrap().first().unwrap();
    assert!(
        done > 0 && done < total && total > 50 << 20,
        "{done} of {total}"
    );
    nothing_is_left(&home).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_nobody_waits_for_leaves_nothing_behind() {
    let home = Fixture::new();
    filled(&home).await;
    let told = Arc::new(tokio::sync::Notify::new());
    let (notify, count) = (Arc::clone(&told), AtomicU32::new(0));
    let neon = home.with(|options| {
        options.events = EventSink::new(move |event| {
            if matches!(event, Event::Progress { .. }) && count.fetch_add(1, Ordering::Relaxed) == 1
            {
                notify.notify_one();
            }
        });
    });
    let task =
        tokio::spawn(async move { neon.snapshots().create(&wanted("p1@x")).await.map(drop) });
    told.notified().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    nothing_is_left(&home).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_fit_is_refused_before_it_is_copied() {
    let home = Fixture::new();
    home.neon.pg().create(&home.stopped("p1")).await.unwrap();
    let large = home.scratch.path().join("home/pg/p1/data/base/large");
    fs::File::create(large).unwrap().set_len(8 << 40).unwrap();
    let error = home
        .neon
        .snapshots()
        .create(&wanted("p1@x"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment);
    assert!(
        error.to_string().contains("MiB free") && error.hint().is_some(),
        "{error}"
    );
    let packs = home.scratch.path().join("home/store/local/packs");
    assert_eq!(fs::read_dir(packs).map_or(0, Iterator::count), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_a_slow_checkpoint_is_ended_when_somebody_asks() {
    let home = Fixture::new();
    filled(&home).await;
    let cancel = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&cancel);
    let neon = home.with(|options| {
        options.cancel = cancel;
        options.events = EventSink::new(move |event| {
            if matches!(&event, Event::Step(step) if step.starts_with("Waiting")) {
                let set = Arc::clone(&set);
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(500));
                    set.store(true, Ordering::Relaxed);
                });
            }
        });
    });
    run(&home.neon, "p1", "update t set i = -i").await;
    let mut slow = wanted("p1@x");
    slow.fast_checkpoint = false;
    assert_eq!(
        refused(neon.snapshots().create(&slow).await),
        ErrorKind::Cancelled
    );
    nothing_is_left(&home).await;
}

/// Money moves between accounts while snapshots are taken, and nothing is archived.
async fn a_snapshot_under_load_is_of_one_moment(major: PgMajor) {
    let home = Fixture::of(major);
    home.running("p1").await;
    run(
        &home.neon,
        "p1",
        "create table accounts as select i, 100 as money from generate_series(1, 20000) i; \
         alter system set archive_mode = on; alter system set archive_command = 'false'",
    )
    .await;
    home.neon.pg().restart(&name("p1")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (asked, neon) = (Arc::clone(&stop), home.again());
    let load = tokio::spawn(async move {
        let instance = neon.pg().instance(&name("p1")).await.unwrap();
        let mut client = instance.connect("postgres").await.unwrap();
        let mut moves = 0_u32;
        while !asked.load(Ordering::Relaxed) {
            let (from, to) = (moves * 7919 % 20_000 + 1, moves * 104_729 % 20_000 + 1);
            let transfer = format!(
                "begin; update accounts set money = money - 1 where i = {from}; \
                 update accounts set money = money + 1 where i = {to}; commit"
            );
            client.simple_query(&transfer).await.unwrap();
            moves += 1;
        }
        moves
    });
    let first = take(&home.neon, "p1@one").await;
    run(&home.neon, "p1", "checkpoint").await;
    let second = take(&home.neon, "p1@two").await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 0);
    assert_eq!(second.parent, Some(first.id));
    assert_ne!(second.source.as_deref(), Some("scan"), "{second:?}");
    let whole = "select sum(money) || ' of ' || count(*) from accounts";
    for (snapshot, copy) in [("p1@one", "c1"), ("p1@two", "c2")] {
        let answer = ask_copy(&home, snapshot, copy, whole).await;
        assert_eq!(answer, "2000000 of 20000", "{snapshot}");
    }
    let facts = home
        .neon
        .snapshots()
        .show("p1@two", None)
        .await
        .unwrap()
        .facts;
    assert_eq!(
        facts.needs.extensions.get("plpgsql").map(String::as_str),
        Some("1.0")
    );
    let origin = facts.labels.get("facts").unwrap();
    let origin: serde_json::Value = serde_json::from_str(origin).unwrap();
    assert_eq!(
        origin.pointer("/cluster/databases/0/encoding").unwrap(),
        "UTF8"
    );
    assert_eq!(facts.log.timelines.len(), 1);
    assert!(facts.log.start.is_some() && facts.log.stop > facts.log.start);
    assert!(!facts.log.ranges.is_empty() && facts.cost.read_changed > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_13_under_load_is_of_one_moment() {
    a_snapshot_under_load_is_of_one_moment(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_18_under_load_is_of_one_moment() {
    a_snapshot_under_load_is_of_one_moment(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_checkout_only_the_snapshot_it_went_to_is_a_parent() {
    let home = Fixture::of(PgMajor::V14);
    let mut create = home.create();
    create.name = Some(name("p1"));
    let pg = home.neon.pg();
    pg.create(&create).await.unwrap();
    run(
        &home.neon,
        "p1",
        "create table t as select i from generate_series(1, 20000) i",
    )
    .await;
    let a = take(&home.neon, "p1@a").await;
    run(
        &home.neon,
        "p1",
        "insert into t select generate_series(1, 20000)",
    )
    .await;
    take(&home.neon, "p1@b").await;
    let found = home.neon.snapshots().find("p1@a", None).await.unwrap();
    let choice = CheckoutChoice::default();
    let plan = pg.plan_checkout(&name("p1"), &found, choice).await.unwrap();
    pg.checkout(&plan).await.unwrap();
    let c = take(&home.neon, "p1@c").await;
    assert_eq!(
        (c.parent, c.source.as_deref()),
        (Some(a.id), Some("log")),
        "{:?}",
        c.passed_over
    );
    assert_eq!(
        ask_copy(&home, "p1@c", "c1", "select count(*) from t").await,
        "20000"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_snapshot_needs_of_a_machine_is_in_its_commit() {
    let home = Fixture::of(PgMajor::V15);
    home.running("p1").await;
    run(
        &home.neon,
        "p1",
        "create collation german (provider = icu, locale = 'de'); \
         create table words (word text collate german); create index on words (word)",
    )
    .await;
    let version = "select collversion from pg_collation where collname = 'german'";
    let version = sql(&home.neon, "p1", version).await;
    take(&home.neon, "p1@words").await;
    let shown = home.neon.snapshots().show("p1@words", None).await;
    let needs = shown.unwrap().facts.needs;
    assert_eq!(needs.architecture.as_deref(), Some(std::env::consts::ARCH));
    assert!(needs.libc.is_some() && needs.icu.is_some(), "{needs:?}");
    let german = needs
        .collations
        .iter()
        .find(|(name, _)| name.contains("german"));
    let (name, recorded) = german.unwrap();
    assert!(name.starts_with("postgres: "), "{needs:?}");
    assert_eq!(*recorded, version, "{needs:?}");
    home.neon
        .pg()
        .stop(&crate::support::name("p1"))
        .await
        .unwrap();
}

/// The rest of a segment behind a stopped backup is stored without being read: it is what the server wrote.
async fn the_log_is_stored_as_it_is(major: PgMajor) {
    let home = Fixture::of(major);
    home.running("p1").await;
    // A segment that was used before has other bytes where the server does not write zeros.
    run(
        &home.neon,
        "p1",
        "alter system set wal_keep_size = '128MB'; select pg_reload_conf(); create table t as select 1 as one; \
         insert into t select generate_series(1, 200000); select pg_switch_wal(); checkpoint; select pg_switch_wal(); checkpoint",
    )
    .await;
    take(&home.neon, "p1@a").await;
    run(&home.neon, "p1", "insert into t values (2)").await;
    take(&home.neon, "p1@b").await;
    let pg_wal = home.scratch.path().join("home/pg/p1/data/pg_wal");
    for taken in ["p1@a", "p1@b"] {
        let found = home.neon.snapshots().find(taken, None).await.unwrap();
        let snapshot = found.repository.snapshot(found.id).await.unwrap();
        let mut compared = 0;
        for range in &snapshot.facts().log.ranges {
            let size = neon_pg_layout::WalSegmentSize::DEFAULT;
            let last = size.number_before(range.end);
            for number in size.number_of(range.start)..=last {
                let segment = neon_pg_layout::SegmentName::new(range.timeline, number, size);
                let segment = segment.unwrap().to_string();
                let path = SnapshotPath::new(&*format!("pg_wal/{segment}")).unwrap();
                let stored = snapshot.read_range(&path, 0..size.bytes()).await.unwrap();
                let there = fs::read(pg_wal.join(&segment)).unwrap();
                assert!(stored == there, "{taken}: {segment}");
                compared += 1;
            }
        }
        assert!(compared > 0, "{taken}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_13_is_stored_as_it_is() {
    the_log_is_stored_as_it_is(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_of_18_is_stored_as_it_is() {
    the_log_is_stored_as_it_is(PgMajor::V18).await;
}
