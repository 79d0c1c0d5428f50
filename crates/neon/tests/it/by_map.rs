//! Which pages a checkout rewrites: by the maps of two snapshots, where that is proven to be enough, and else by content.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use neon_pg::{CheckedOut, CheckoutChoice, Compare, ErrorKind, Found, Neon, PgMajor};

use crate::checkouts::{bare, whole};
use crate::killed::killed;
use crate::support::{Fixture, name, refused, run, sql, take};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Every file below `base` and `global`, byte by byte.
fn files(data: &Path) -> Files {
    let mut found = Files::new();
    let mut todo = vec![data.join("base"), data.join("global")];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                found.insert(path.strip_prefix(data).unwrap().to_owned(), content);
            }
        }
    }
    found
}

fn by(compare: Compare) -> CheckoutChoice {
    let mut choice = CheckoutChoice::default();
    choice.compare = compare;
    choice
}

/// The state before the first rollback.
async fn saved(neon: &Neon) -> Found {
    let snapshots = neon.snapshots();
    snapshots.find("pgdata1@HEAD{0}", None).await.unwrap()
}

async fn go_back(neon: &Neon, to: &Found, compare: Compare) -> neon_pg::Result<CheckedOut> {
    let pg = name("pgdata1");
    let plan = neon.pg().plan_checkout(&pg, to, by(compare)).await.unwrap();
    neon.pg().checkout(&plan).await
}

/// Goes back, and holds what was rewritten, before a server touches it, to a restore of the whole snapshot.
async fn goes_back_exactly(home: &Fixture, to: &Found, compare: Compare) -> CheckedOut {
    let instance = home.neon.pg().instance(&name("pgdata1")).await.unwrap();
    let data = instance.data_dir().to_owned();
    let left = Arc::<Mutex<Files>>::default();
    let seen = Arc::clone(&left);
    let neon = home.with(|options| {
        options.at_step = Some(Arc::new(move |step| {
            if step == "checkout: rewritten" {
                *seen.lock().unwrap() = files(&data);
            }
        }));
    });
    let done = go_back(&neon, to, compare).await.unwrap();
    let copy = home.scratch.path().join("whole");
    whole(to, &copy).await;
    let (is, should) = (std::mem::take(&mut *left.lock().unwrap()), files(&copy));
    fs::remove_dir_all(copy).unwrap();
    assert!(is.keys().eq(should.keys()), "{compare}: other files");
    for (path, content) in &should {
        assert!(
            is.get(path) == Some(content),
            "{compare}: {}",
            path.display()
        );
    }
    done
}

fn is_long() -> bool {
    std::env::var_os("NEON_LONG_TESTS").is_some()
}

/// All in the long form.
fn majors(usually: PgMajor) -> Vec<PgMajor> {
    match is_long() {
        true => PgMajor::ALL.to_vec(),
        false => vec![usually],
    }
}

/// Tables and indexes of each kind whose pages are changed otherwise than by records, and one that is large.
const BEGIN: &str = "create table t as select i, point(i, i % 7) p, repeat('x', 100) filler from generate_series(1, 3000) i; \
     create index on t (i); create index on t using spgist (p); create index on t using gist (p); create index on t using hash (i); \
     create index on t using brin (i); create table words as select array[i, i % 9] w from generate_series(1, 2000) i; \
     create index on words using gin (w); create table cut as select 1 i from generate_series(1, 5000); create sequence s; select nextval('s'); \
     create unlogged table u as select 1 i; create table dropped as select 1 i; create table still as select 1 i; \
     create table large (filler text); alter table large alter filler set storage plain; \
     insert into large select repeat('x', 7000) from generate_series(1, 2000); \
     vacuum freeze large; checkpoint";
const LARGE: u64 = 2000 * 8192;
const GO_ON: &str = "delete from t where i % 3 = 0; \
     insert into t select i, point(i % 11, i), 'more' from generate_series(1, 5000) i; \
     select nextval('s'); update large set filler = 'y' where ctid = '(1000,1)'; drop table dropped; \
     update words set w = w || 4 where w[1] % 10 = 0; truncate cut; insert into cut values (7); alter table u set logged; \
     vacuum full still; create database another; \
     create table later as select 1 i; insert into u values (2); vacuum t; select count(*) from t; select count(*) from large";

async fn truth(major: PgMajor) {
    let home = Fixture::of(major);
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", BEGIN).await;
    let snap = take(neon, "pgdata1", "a").await;
    run(neon, "pgdata1", GO_ON).await;
    let first = goes_back_exactly(&home, &snap, Compare::Auto).await;
    assert_eq!((first.compared_by, &first.not_by_map), ("map", &None));
    let ask = async |text: &str| sql(neon, "pgdata1", text).await;
    assert_eq!(ask("select count(*) from t").await, "3000");
    // Of the large table nothing was read, neither for the state before nor to compare.
    let size = snap.repository.snapshot(snap.id).await.unwrap();
    let size = size.facts().cost.bytes;
    assert!(first.compared + LARGE < size, "{first:?} of {size}");
    let head = saved(neon).await;
    let cost = head.repository.snapshot(head.id).await.unwrap();
    let cost = cost.facts().cost.clone();
    assert!(
        cost.read_changed + cost.read_other + LARGE < size,
        "{cost:?}"
    );

    // Once more, from the lineage that began with it; then to the state before, which is of another one.
    run(neon, "pgdata1", GO_ON).await;
    let again = goes_back_exactly(&home, &snap, Compare::Map).await;
    assert_eq!(again.compared_by, "map", "{again:?}");
    run(
        neon,
        "pgdata1",
        "insert into t select from generate_series(1, 10)",
    )
    .await;
    let back = goes_back_exactly(&home, &head, Compare::Auto).await;
    assert_eq!((back.compared_by, &back.not_by_map), ("map", &None));
    assert_eq!(ask("select count(*) from t").await, "7000");
    assert_eq!(ask("select count(*) from later").await, "1");

    // And every page, if that is asked for.
    if major != PgMajor::V13 && !is_long() {
        return neon.pg().stop(&name("pgdata1")).await.unwrap();
    }
    run(neon, "pgdata1", "update t set i = -i").await;
    let read = goes_back_exactly(&home, &snap, Compare::Content).await;
    assert_eq!((read.compared_by, &read.not_by_map), ("content", &None));
    assert!(read.compared > LARGE, "{read:?}");
    // The index finds room where its cache says that there is some.
    run(
        neon,
        "pgdata1",
        "insert into t select i, point(i % 11, i), 'more' from generate_series(1, 9000) i",
    )
    .await;
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_maps_tell_of_13_leads_to_the_same_bytes_as_content() {
    truth(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_maps_tell_leads_to_the_same_bytes_as_content() {
    for major in majors(PgMajor::V18) {
        truth(major).await;
    }
}

/// Writes to a page of a file, which has this time then.
fn edited_by_hand(path: &Path, time: SystemTime) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(b"edited", 500_000).unwrap();
    file.set_modified(time).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_somebody_changed_removed_or_added_are_mended() {
    for major in majors(PgMajor::V13) {
        let home = Fixture::of(major);
        let neon = &home.neon;
        neon.pg().create(&home.create()).await.unwrap();
        run(neon, "pgdata1", BEGIN).await;
        let data = neon.pg().instance(&name("pgdata1")).await.unwrap();
        let data = data.data_dir().to_owned();
        let file = async |table: &str| {
            let asked = format!("select pg_relation_filepath('{table}')");
            data.join(sql(neon, "pgdata1", &asked).await)
        };
        let (edited, gone) = (file("large").await, file("still").await);
        let snap = take(neon, "pgdata1", "a").await;
        run(
            neon,
            "pgdata1",
            "insert into t select from generate_series(1, 10)",
        )
        .await;
        neon.pg().stop(&name("pgdata1")).await.unwrap();
        edited_by_hand(&edited, SystemTime::now() + Duration::from_secs(60));
        fs::remove_file(&gone).unwrap();
        fs::write(data.join("base/1/9999999"), [0; 8192]).unwrap();
        fs::write(data.join("global/stray"), b"1").unwrap();
        let done = goes_back_exactly(&home, &snap, Compare::Map).await;
        assert_eq!(done.compared_by, "map");
        neon.pg().start(&name("pgdata1")).await.unwrap();
        assert_eq!(sql(neon, "pgdata1", "select i from still").await, "1");
        neon.pg().stop(&name("pgdata1")).await.unwrap();
    }
}

async fn checksums(neon: &Neon, how: &str) {
    let instance = neon.pg().instance(&name("pgdata1")).await.unwrap();
    let done = neon_testkit::Installation::of(instance.major())
        .command("pg_checksums")
        .args([how, "-D"])
        .arg(instance.data_dir())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
}

/// A snapshot in which a transaction is open whose rows are on disk, committed since; and rows beside them that get written.
pub(crate) async fn open_transaction(neon: &Neon) -> Found {
    run(
        neon,
        "pgdata1",
        "create table t (i int) with (autovacuum_enabled = off)",
    )
    .await;
    let instance = neon.pg().instance(&name("pgdata1")).await.unwrap();
    let mut open = instance.connect("postgres").await.unwrap();
    open.simple_query("begin").await.unwrap();
    open.simple_query("insert into t select generate_series(1, 5000)")
        .await
        .unwrap();
    run(neon, "pgdata1", "checkpoint").await;
    let snap = take(neon, "pgdata1", "open").await;
    open.simple_query("commit").await.unwrap();
    open.close().await;
    snap
}

/// Every row gets its hint, and the last page another row, so that the file is written to by the log's account, too.
async fn hints(neon: &Neon) {
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "5000");
    run(neon, "pgdata1", "checkpoint").await;
}

async fn is_read(home: &Fixture, snap: &Found, why: &str) {
    let neon = &home.neon;
    let error = go_back(neon, snap, Compare::Map).await;
    assert_eq!(refused(error), ErrorKind::Invalid);
    let done = go_back(neon, snap, Compare::Auto).await.unwrap();
    assert_eq!(done.compared_by, "content");
    let said = done.not_by_map.unwrap();
    assert!(said.contains(why), "{said}");
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "0");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

/// Stopped, changed and started again.
async fn between_two_runs(neon: &Neon, how: &str) {
    neon.pg().stop(&name("pgdata1")).await.unwrap();
    checksums(neon, how).await;
    neon.pg().start(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checksums_that_were_off_for_a_while_are_noticed() {
    // Those that come with the program.
    let mut majors = majors(PgMajor::V18);
    majors.retain(|major| {
        let installation = neon_testkit::Installation::of(*major);
        installation.tool("pg_checksums").is_some()
    });
    for major in majors {
        let home = Fixture::of(major);
        let neon = &home.neon;
        neon.pg().create(&home.create()).await.unwrap();
        let snap = open_transaction(neon).await;
        between_two_runs(neon, "--disable").await;
        hints(neon).await;
        between_two_runs(neon, "--enable").await;
        run(neon, "pgdata1", "insert into t values (1)").await;
        is_read(&home, &snap, "checksums may have been off").await;
    }
}

/// Hints that were not logged before the snapshot to which maps led stay on disk: whoever goes back further has to read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_maps_led_to_is_not_believed_for_what_is_older() {
    let home = Fixture::of(PgMajor::V18);
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    let older = open_transaction(neon).await;
    between_two_runs(neon, "--disable").await;
    hints(neon).await;
    between_two_runs(neon, "--enable").await;
    run(neon, "pgdata1", "insert into t values (1)").await;
    let newer = take(neon, "pgdata1", "newer").await;
    run(neon, "pgdata1", "insert into t values (2)").await;
    let done = go_back(neon, &newer, Compare::Auto).await.unwrap();
    assert_eq!((done.compared_by, &done.not_by_map), ("map", &None));
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "5001");
    run(neon, "pgdata1", "insert into t values (3)").await;
    is_read(&home, &older, "another history").await;
}

fn copied(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp");
    let done = { done }.arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// Somebody puts an older copy of the files back, and leaves what the server summarised of the log since: the names of segments
/// come again, with another log in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn summaries_of_another_log_hide_nothing() {
    let home = Fixture::of(PgMajor::V18);
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", BEGIN).await;
    let snap = take(neon, "pgdata1", "a").await;
    neon.pg().stop(&pg).await.unwrap();
    let data = neon.pg().instance(&pg).await.unwrap();
    let data = data.data_dir().to_owned();
    let (copy, kept) = (
        home.scratch.path().join("copy"),
        home.scratch.path().join("kept"),
    );
    copied(&data, &copy);
    neon.pg().start(&pg).await.unwrap();
    run(
        neon,
        "pgdata1",
        "insert into t select i, point(i, i), 'abandoned' from generate_series(1, 20000) i; checkpoint",
    )
    .await;
    let until = sql(neon, "pgdata1", "select pg_current_wal_lsn()").await;
    run(neon, "pgdata1", "insert into u values (1); checkpoint").await;
    let summarised = format!("select max(end_lsn) >= '{until}' from pg_available_wal_summaries()");
    while sql(neon, "pgdata1", &summarised).await != "t" {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    neon.pg().stop(&pg).await.unwrap();
    copied(&data.join("pg_wal/summaries"), &kept);
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&copy, &data).unwrap();
    fs::remove_dir_all(data.join("pg_wal/summaries")).unwrap();
    copied(&kept, &data.join("pg_wal/summaries"));
    neon.pg().start(&pg).await.unwrap();
    run(
        neon,
        "pgdata1",
        "update large set filler = 'other' where ctid in ('(700,1)', '(1500,1)'); checkpoint",
    )
    .await;
    let done = goes_back_exactly(&home, &snap, Compare::Auto).await;
    assert_eq!((done.compared_by, &done.not_by_map), ("map", &None));
    // Nor from the state before.
    let head = saved(neon).await;
    go_back(neon, &head, Compare::Content).await.unwrap();
    let ask = async |text: &str| sql(neon, "pgdata1", text).await;
    let others = "select count(*) from large where filler = 'other'";
    assert_eq!(ask(others).await, "2");
    assert_eq!(
        ask("select count(*) from t where filler = 'abandoned'").await,
        "0"
    );
    neon.pg().stop(&pg).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checksums_that_were_switched_since_are_noticed() {
    for off_first in [false, true] {
        if off_first && !is_long() {
            continue;
        }
        let home = Fixture::of(PgMajor::V15);
        let neon = &home.neon;
        match off_first {
            true => bare(&home).await,
            false => drop(neon.pg().create(&home.create()).await.unwrap()),
        }
        let snap = open_transaction(neon).await;
        let how = match off_first {
            true => "--enable",
            false => "--disable",
        };
        hints(neon).await;
        between_two_runs(neon, how).await;
        run(neon, "pgdata1", "insert into t values (1)").await;
        let error = go_back_by_map(neon, &snap).await;
        assert_eq!(error, ErrorKind::Invalid);
        let done = go_back(neon, &snap, Compare::Auto).await.unwrap();
        assert_eq!(done.compared_by, "content", "{done:?}");
        assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "0");
        neon.pg().stop(&name("pgdata1")).await.unwrap();
    }
}

async fn go_back_by_map(neon: &Neon, to: &Found) -> ErrorKind {
    let pg = name("pgdata1");
    let plan = neon.pg().plan_checkout(&pg, to, by(Compare::Map)).await;
    match plan {
        Err(error) => error.kind(),
        Ok(plan) => refused(neon.pg().checkout(&plan).await),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_logged_hints_every_page_is_read_and_the_server_goes_on() {
    let home = Fixture::of(PgMajor::V15);
    let neon = &home.neon;
    bare(&home).await;
    let snap = open_transaction(neon).await;
    hints(neon).await;
    let error = go_back_by_map(neon, &snap).await;
    assert_eq!(error, ErrorKind::Invalid);
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "5000");
    let done = go_back(neon, &snap, Compare::Auto).await.unwrap();
    assert_eq!(done.compared_by, "content");
    assert!(done.not_by_map.unwrap().contains("not logged"));
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "0");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_that_were_not_logged_for_a_while_are_noticed() {
    for always in [true, false] {
        if always && !is_long() {
            continue;
        }
        let home = Fixture::of(PgMajor::V15);
        let neon = &home.neon;
        bare(&home).await;
        let log_hints = async |how: &str| {
            let set = format!("alter system set wal_log_hints = {how}");
            run(neon, "pgdata1", &set).await;
            neon.pg().restart(&name("pgdata1")).await.unwrap();
        };
        log_hints("on").await;
        let snap = open_transaction(neon).await;
        if always {
            neon.pg().restart(&name("pgdata1")).await.unwrap();
        } else {
            log_hints("off").await;
        }
        hints(neon).await;
        if always {
            neon.pg().restart(&name("pgdata1")).await.unwrap();
            let done = goes_back_exactly(&home, &snap, Compare::Auto).await;
            assert_eq!((done.compared_by, &done.not_by_map), ("map", &None));
            assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "0");
            neon.pg().stop(&name("pgdata1")).await.unwrap();
        } else {
            log_hints("on").await;
            is_read(&home, &snap, "nothing shows").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_show_that_they_log_hints_are_believed_and_others_not() {
    for major in majors(PgMajor::V18) {
        let home = Fixture::of(major);
        let neon = &home.neon;
        neon.pg().create(&home.create()).await.unwrap();
        let snap = open_transaction(neon).await;
        neon.pg().restart(&name("pgdata1")).await.unwrap();
        // An image of each page is logged for its hints.
        hints(neon).await;
        neon.pg().restart(&name("pgdata1")).await.unwrap();
        let done = goes_back_exactly(&home, &snap, Compare::Auto).await;
        assert_eq!((done.compared_by, &done.not_by_map), ("map", &None));
        assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "0");
        neon.pg().stop(&name("pgdata1")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_back_by_maps_to_what_it_was_made_of() {
    let home = Fixture::of(PgMajor::V15);
    let neon = &home.neon;
    let mut other = home.create();
    other.name = Some(name("other"));
    neon.pg().create(&other).await.unwrap();
    run(neon, "other", BEGIN).await;
    let snap = take(neon, "other", "a").await;
    neon.pg().stop(&name("other")).await.unwrap();
    let how = neon_pg::RestoreChoice::default();
    let mut copy = home.create();
    copy.name = Some(name("pgdata1"));
    neon.pg().create_from(&copy, &snap, &how).await.unwrap();
    run(neon, "pgdata1", GO_ON).await;
    let done = goes_back_exactly(&home, &snap, Compare::Auto).await;
    assert_eq!((done.compared_by, &done.not_by_map), ("map", &None));
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "3000");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_every_page_is_read() {
    let home = Fixture::of(PgMajor::V15);
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", BEGIN).await;
    let snap = take(neon, "pgdata1", "a").await;
    run(neon, "pgdata1", GO_ON).await;
    home.crash("pgdata1");
    let done = goes_back_exactly(&home, &snap, Compare::Auto).await;
    assert_eq!(done.compared_by, "content");
    assert!(done.not_by_map.unwrap().contains("not stopped cleanly"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_that_is_resumed_reads_every_page() {
    let home = Fixture::of(PgMajor::V15);
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", BEGIN).await;
    let data = neon.pg().instance(&name("pgdata1")).await.unwrap();
    let data = data.data_dir().to_owned();
    let path = sql(neon, "pgdata1", "select pg_relation_filepath('large')").await;
    take(neon, "pgdata1", "a").await;
    run(neon, "pgdata1", GO_ON).await;
    let place = home.scratch.path().join("home");
    killed(&place, "checkout", "checkout: changing", None);
    // Nothing but the content shows it.
    let path = data.join(path);
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    edited_by_hand(&path, time);
    let neon = home.again();
    take(&neon, "pgdata1", "later").await;
    let good = "select count(*) from large where filler = repeat('x', 7000)";
    assert_eq!(sql(&neon, "pgdata1", good).await, "2000");
    assert_eq!(
        sql(&neon, "pgdata1", "select count(*) from t").await,
        "3000"
    );
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_for_the_state_before_is_not_read_again() {
    let home = Fixture::of(PgMajor::V15);
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", BEGIN).await;
    let snap = take(neon, "pgdata1", "a").await;
    // The log since is gone.
    run(
        neon,
        "pgdata1",
        "alter system set wal_keep_size = 0; select pg_reload_conf()",
    )
    .await;
    run(neon, "pgdata1", GO_ON).await;
    for _ in 0..3 {
        run(
            neon,
            "pgdata1",
            "select pg_switch_wal(); create table if not exists more (); drop table more; checkpoint",
        )
        .await;
    }
    let done = goes_back_exactly(&home, &snap, Compare::Auto).await;
    assert_eq!((done.compared_by, &done.not_by_map), ("map", &None));
    let head = saved(neon).await;
    let facts = head.repository.snapshot(head.id).await.unwrap();
    assert_eq!(facts.facts().cost.source.as_deref(), Some("scan"));
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}
