//! What a checkout must not take along, and must not leave.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use neon_pg::{CheckoutChoice, CreatePg, ErrorKind, Event, Locator, Neon, PgMajor, Remote};

use crate::checkouts::plan;
use crate::restored::listening;
use crate::support::{Fixture, name, program, refused, run, sql, take, with_own_mounts};

/// The home, as of who is rolled back while somebody starts a server at a step, and perhaps stops it.
async fn with_a_server(home: &Fixture, at: &'static str, stop: bool) -> Neon {
    let instance = home.neon.pg().instance(&name("pgdata1")).await.unwrap();
    home.with(|options| {
        options.at_step = Some(std::sync::Arc::new(move |step: &str| {
            if step != at {
                return;
            }
            let instance = instance.clone();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(async {
                    let options = neon_pgctl::StartOptions::new();
                    instance.start(&options).await.unwrap();
                    let mut client = instance.connect("postgres").await.unwrap();
                    let made = client.simple_query("create table precious as select 7 i");
                    made.await.unwrap();
                    client.close().await;
                    if stop {
                        let options = neon_pgctl::StopOptions::new(neon_pgctl::StopMode::Fast);
                        instance.stop(&options).await.unwrap();
                    }
                });
            });
            thread.join().unwrap();
        }));
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archiver_goes_on_after_a_checkout_of_a_stopped_state() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    let archive = tempfile::tempdir_in("/tmp").unwrap();
    let place = archive.path().display().to_string();
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(archive.path(), fs::Permissions::from_mode(0o777)).unwrap();
    }
    run(neon, "pgdata1", "create table t as select 1 i").await;
    run(neon, "pgdata1", "alter system set archive_mode = on").await;
    run(
        neon,
        "pgdata1",
        &format!("alter system set archive_command = 'test ! -f {place}/%f && cp %p {place}/%f'"),
    )
    .await;
    neon.pg().stop(&pg).await.unwrap();
    let cold = take(neon, "pgdata1", "cold").await;
    neon.pg().start(&pg).await.unwrap();
    for _ in 0..3 {
        run(
            neon,
            "pgdata1",
            "insert into t select 2; select pg_switch_wal()",
        )
        .await;
    }
    neon.pg().checkout(&plan(neon, &cold).await).await.unwrap();
    for _ in 0..3 {
        run(
            neon,
            "pgdata1",
            "insert into t select 3; select pg_switch_wal(); checkpoint",
        )
        .await;
    }
    let ask = async |text: &str| sql(neon, "pgdata1", text).await;
    let begun = std::time::Instant::now();
    loop {
        let last = ask("select last_archived_wal from pg_stat_archiver").await;
        if last.starts_with("0000000200") {
            break;
        }
        let failed = ask("select last_failed_wal from pg_stat_archiver").await;
        assert_eq!(failed, "");
        assert!(begun.elapsed().as_secs() < 60, "{last}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(ask("select failed_count from pg_stat_archiver").await, "0");
    neon.pg().stop(&pg).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_instance_rolls_back() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", "create table t as select 1 i").await;
    let snap = take(neon, "pgdata1", "good").await;
    run(neon, "pgdata1", "insert into t values (2)").await;
    let data = neon.pg().instance(&name("pgdata1")).await.unwrap();
    let pid = fs::read_to_string(data.data_dir().join("postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let done = neon.pg().checkout(&plan(neon, &snap).await).await.unwrap();
    assert!(!done.running);
    neon.pg().start(&name("pgdata1")).await.unwrap();
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "1");
    neon.undo().await.unwrap();
    assert_eq!(sql(neon, "pgdata1", "select count(*) from t").await, "2");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_that_was_not_archived_is_kept_and_its_number_is_in_the_plan() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    run(neon, "pgdata1", "create table t as select 1 i").await;
    let snap = take(neon, "pgdata1", "a").await;
    run(neon, "pgdata1", "alter system set archive_mode = on").await;
    run(
        neon,
        "pgdata1",
        "alter system set archive_command = '/bin/false'",
    )
    .await;
    neon.pg().restart(&pg).await.unwrap();
    run(
        neon,
        "pgdata1",
        "insert into t select 2; select pg_switch_wal()",
    )
    .await;
    let lineage = neon.pg().record_of(&pg).unwrap().lineage.to_string();
    let planned = plan(neon, &snap).await;
    assert!(planned.unarchived > 0, "{planned:?}");
    neon.pg().checkout(&planned).await.unwrap();
    let kept = home
        .scratch
        .path()
        .join("home/pg/pgdata1/wal-kept")
        .join(lineage);
    let kept: Vec<_> = fs::read_dir(kept)
        .unwrap()
        .map(|entry| entry.unwrap())
        .collect();
    assert!(kept.len() as u64 >= planned.unarchived, "{kept:?}");
    assert_eq!(kept.first().unwrap().metadata().unwrap().len(), 16 << 20);
    let shown = neon.pg().kept_log(&neon.pg().record_of(&pg).unwrap());
    let heads: Vec<_> = shown.iter().map(|one| one.head.clone()).collect();
    assert_eq!(heads, [Some("pgdata1@HEAD{0}".parse().unwrap())]);
    assert!(shown[0].bytes >= 16 << 20, "{shown:?}");
    // It goes with the state before that checkout.
    let again = plan(neon, &snap).await;
    neon.pg().checkout(&again).await.unwrap();
    assert!(shown[0].path.exists());
    let snapshots = neon.snapshots();
    let head = snapshots.plan_destroy("pgdata1@HEAD{0}", None);
    let head = head.await.unwrap();
    assert_eq!(head.kept_log, shown[0].bytes);
    neon.snapshots().destroy(&head).await.unwrap();
    assert!(!shown[0].path.exists());
    neon.pg().stop(&pg).await.unwrap();
}

/// Where the log is that is kept with `HEAD{0}` of an instance that was rolled back once.
async fn kept_with_head(home: &Fixture, pg: &str) -> PathBuf {
    let neon = &home.neon;
    let snap = take(neon, pg, "a").await;
    let lineage = neon.pg().record_of(&name(pg)).unwrap().lineage.to_string();
    neon.pg().checkout(&plan(neon, &snap).await).await.unwrap();
    // As a checkout leaves it where an archiver is behind.
    let kept = home.scratch.path().join("home/pg").join(pg);
    let kept = kept.join("wal-kept").join(lineage);
    fs::create_dir_all(&kept).unwrap();
    fs::write(kept.join("000000010000000000000001"), "log").unwrap();
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_log_stays_when_a_copy_of_its_state_is_destroyed_elsewhere() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.stopped("pgdata1")).await.unwrap();
    let kept = kept_with_head(&home, "pgdata1").await;
    let other = name("other");
    let place = Locator::path_of(home.scratch.path().join("other"));
    neon.storages()
        .attach(&other, &place, BTreeMap::new())
        .await
        .unwrap();
    let snapshots = neon.snapshots();
    let asked = "pgdata1@HEAD{0}";
    let head = snapshots.find(asked, None).await.unwrap();
    let to = Remote::parse("other").unwrap();
    snapshots.push(&head, &to).await.unwrap();

    let copy = snapshots.plan_destroy(asked, Some(&other)).await.unwrap();
    assert_eq!((copy.id, copy.kept_log), (head.id, 0));
    snapshots.destroy(&copy).await.unwrap();
    assert!(kept.exists());

    let own = snapshots.plan_destroy(asked, None).await.unwrap();
    assert!(own.kept_log > 0);
    // The same place, named by another way to it.
    let link = home.scratch.path().join("link");
    std::os::unix::fs::symlink(home.scratch.path().join("home/store/local"), &link).unwrap();
    let linked = Locator::path_of(&link);
    let linked = neon.storages().repository_at(&linked).await.unwrap();
    assert_eq!(linked.unwrap().name, Some(name("local")));
    snapshots.destroy(&own).await.unwrap();
    assert!(!kept.exists());
}

const PLACE: &str = "NEON_PG_ROLLBACKS_MOUNTS";

#[test]
fn kept_log_needs_room_of_its_own_and_keeps_no_snapshot_from_being_destroyed() {
    let scratch = neon_testkit::Scratch::new();
    let place = scratch.path().to_str().unwrap();
    with_own_mounts("rollbacks::in_a_namespace", &[(PLACE, place)]);
}

/// Started by the test above; by itself there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_namespace() {
    let Ok(place) = std::env::var(PLACE) else {
        return;
    };
    program(
        "mount",
        &["-t", "tmpfs", "-o", "size=600m,mode=755", "none", &place],
    );
    let place = Path::new(&place);
    let neon = Fixture::at(PgMajor::V15, &place.join("home"));
    let mut create = CreatePg::default();
    create.name = Some(name("pgdata1"));
    create.no_start = true;
    neon.pg().create(&create).await.unwrap();
    let snap = take(&neon, "pgdata1", "a").await;

    // Much log that was not archived, and room for that or for the checkout, not for both.
    let all = place.join("home/pg/pgdata1/wal-kept");
    let wal = place.join("home/pg/pgdata1/data/pg_wal");
    let segment = "0000000100000000000000F0";
    let file = fs::File::create(wal.join(segment)).unwrap();
    file.set_len(80 << 20).unwrap();
    let ready = wal.join(format!("archive_status/{segment}.ready"));
    fs::write(&ready, "").unwrap();
    let disk = rustix::fs::statvfs(place).unwrap();
    let ballast = (disk.f_bavail * disk.f_frsize).checked_sub(110 << 20);
    let ballast = vec![1; usize::try_from(ballast.unwrap()).unwrap()];
    fs::write(place.join("ballast"), &ballast).unwrap();
    let outcome = neon.pg().checkout(&plan(&neon, &snap).await).await;
    assert_eq!(refused(outcome), ErrorKind::Environment);
    assert!(!all.exists() && wal.join(segment).exists());
    let record = neon.pg().record_of(&name("pgdata1")).unwrap();
    assert!(record.checkout.is_none() && record.heads.is_empty());
    fs::remove_file(place.join("ballast")).unwrap();

    // With room for all of it.
    neon.pg().checkout(&plan(&neon, &snap).await).await.unwrap();
    let kept = neon
        .pg()
        .kept_log(&neon.pg().record_of(&name("pgdata1")).unwrap());
    assert!(kept[0].bytes >= 80 << 20, "{kept:?}");
    // A folder that a disk is mounted in cannot be removed.
    let below = kept[0].path.join("mounted");
    fs::create_dir(&below).unwrap();
    let below = below.display().to_string();
    program("mount", &["-t", "tmpfs", "none", &below]);
    let asked = &kept[0].head.as_ref().unwrap().to_string();
    let head = neon.snapshots().plan_destroy(asked, None).await.unwrap();
    neon.snapshots().destroy(&head).await.unwrap();
    let gone = neon.snapshots().find(asked, None).await;
    assert_eq!(refused(gone), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_of_a_checkout_that_is_not_kept_any_more_goes_with_the_next() {
    let home = Fixture::new();
    let (neon, told) = listening(&home);
    let pg = name("pgdata1");
    neon.pg().create(&home.stopped("pgdata1")).await.unwrap();
    let snap = take(&neon, "pgdata1", "a").await;
    let all = home.scratch.path().join("home/pg/pgdata1/wal-kept");
    let lost = all.join("0123456789abcdef0123456789abcdef");
    fs::create_dir_all(&lost).unwrap();
    // Of a state that nobody keeps: it is told of.
    neon.pg().checkout(&plan(&neon, &snap).await).await.unwrap();
    assert!(!all.exists());
    let place = lost.display().to_string();
    let noted = |event: &Event| matches!(event, Event::Note(text) if text.contains(&place));
    assert!(told.lock().unwrap().iter().any(noted));
    let kept_log = || neon.pg().kept_log(&neon.pg().record_of(&pg).unwrap());
    assert_eq!(kept_log(), []);

    // As a removal leaves it that was killed.
    fs::create_dir_all(all.join(".neon-remove.0123456789abcdef/log")).unwrap();
    neon.pg().checkout(&plan(&neon, &snap).await).await.unwrap();
    assert!(!all.exists());

    // What somebody else put there is nobody's to remove.
    let theirs = ["0123", "copy.tar", "0123456789ABCDEF0123456789ABCDEF"];
    for name in theirs {
        fs::create_dir_all(all.join(name)).unwrap();
    }
    let file = all.join("fedcba9876543210fedcba9876543210");
    fs::write(&file, "precious").unwrap();
    neon.pg().checkout(&plan(&neon, &snap).await).await.unwrap();
    for name in theirs {
        assert!(all.join(name).exists(), "{name}");
    }
    assert!(file.exists());
    assert_eq!(kept_log(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_configuration_of_another_instance_is_refused_and_that_of_before_comes_back() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    let snap = take(neon, "pgdata1", "a").await;
    let how = neon_pg::RestoreChoice::default();
    neon.pg()
        .create_from(&home.stopped("copy"), &snap, &how)
        .await
        .unwrap();
    let mut choice = CheckoutChoice::default();
    choice.configuration = true;
    let planned = neon.pg().plan_checkout(&name("copy"), &snap, choice).await;
    assert_eq!(refused(planned), ErrorKind::Invalid);

    run(neon, "pgdata1", "alter system set work_mem = '77MB'").await;
    let planned = neon
        .pg()
        .plan_checkout(&name("pgdata1"), &snap, choice)
        .await
        .unwrap();
    neon.pg().checkout(&planned).await.unwrap();
    assert_eq!(sql(neon, "pgdata1", "show work_mem").await, "4MB");
    neon.undo().await.unwrap();
    assert_eq!(sql(neon, "pgdata1", "show work_mem").await, "77MB");
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_somebody_starts_before_the_first_change_keeps_what_it_wrote() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.create()).await.unwrap();
    let snap = take(neon, "pgdata1", "a").await;
    let hasty = with_a_server(&home, "checkout: compared", false).await;
    let outcome = hasty.pg().checkout(&plan(neon, &snap).await).await;
    assert!(outcome.is_err());
    assert_eq!(sql(neon, "pgdata1", "select i from precious").await, "7");
    let record = neon.pg().record_of(&name("pgdata1")).unwrap();
    assert!(record.checkout.is_none() && record.heads.is_empty());
    neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test]
async fn a_line_of_the_operation_log_that_was_cut_off_swallows_no_other() {
    let home = Fixture::new();
    let neon = &home.neon;
    neon.pg().create(&home.stopped("one")).await.unwrap();
    let log = home.scratch.path().join("home/state/operations.ndjson");
    let mut text = fs::read_to_string(&log).unwrap();
    text.push_str("{\"id\":\"cut");
    fs::write(&log, text).unwrap();
    neon.pg().destroy(&name("one")).await.unwrap();
    assert_eq!(neon.undo().await.unwrap().what, "pg one is back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_of_what_no_recovery_takes_is_refused_before_anything_is_changed() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    run(
        neon,
        "pgdata1",
        "alter system set wal_level = minimal; alter system set max_wal_senders = 0",
    )
    .await;
    neon.pg().restart(&pg).await.unwrap();
    neon.pg().stop(&pg).await.unwrap();
    let snap = take(neon, "pgdata1", "cold").await;
    let choice = CheckoutChoice::default();
    let planned = neon.pg().plan_checkout(&pg, &snap, choice).await;
    assert_eq!(refused(planned), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_that_nothing_could_take_back_is_refused() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    let snap = take(neon, "pgdata1", "a").await;
    run(
        neon,
        "pgdata1",
        "alter system set wal_level = minimal; alter system set max_wal_senders = 0",
    )
    .await;
    neon.pg().restart(&pg).await.unwrap();
    let choice = CheckoutChoice::default();
    let error = neon.pg().plan_checkout(&pg, &snap, choice).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.hint().unwrap().contains("wal_level"), "{error:?}");
    neon.pg().stop(&pg).await.unwrap();
}

/// The line of the pass file of an instance.
fn login(home: &Fixture) -> std::path::PathBuf {
    home.scratch.path().join("home/pg/pgdata1/pgpass")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_of_today_opens_what_is_rolled_back_to_before_it_was_changed() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    let snap = take(neon, "pgdata1", "a").await;
    run(neon, "pgdata1", "alter role postgres password 'another'").await;
    fs::write(login(&home), "*:*:*:postgres:another\n").unwrap();
    run(neon, "pgdata1", "create table t as select 7 i").await;
    neon.pg().checkout(&plan(neon, &snap).await).await.unwrap();
    let there = "select to_regclass('t') is not null";
    assert_eq!(sql(neon, "pgdata1", there).await, "f");
    assert!(
        fs::read_to_string(login(&home))
            .unwrap()
            .ends_with(":another\n")
    );
    neon.undo().await.unwrap();
    assert_eq!(sql(neon, "pgdata1", there).await, "t");

    // Another role, that was not there then.
    run(
        neon,
        "pgdata1",
        "create role boss superuser login password 'other'",
    )
    .await;
    fs::write(login(&home), "*:*:*:boss:other\n").unwrap();
    assert_eq!(sql(neon, "pgdata1", "select current_user").await, "boss");
    neon.pg().checkout(&plan(neon, &snap).await).await.unwrap();
    assert_eq!(
        sql(neon, "pgdata1", "select current_user").await,
        "postgres"
    );
    neon.undo().await.unwrap();
    assert_eq!(sql(neon, "pgdata1", there).await, "t");
    neon.pg().stop(&pg).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_stays_as_it_is_also_what_is_not_there_any_more() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    let data = home.scratch.path().join("home/pg/pgdata1/data");
    let owner = neon.pg().instance(&pg).await.unwrap();
    let owner = (owner.os_user().uid(), owner.os_user().gid());
    let put = |path: &str, text: &str| {
        let path = data.join(path);
        fs::write(&path, text).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).unwrap();
    };
    let folder = |path: &str| {
        let path = data.join(path);
        fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).unwrap();
    };
    folder("conf.d");
    put("conf.d/archive.conf", "work_mem = '77MB'\n");
    let snap = take(neon, "pgdata1", "a").await;
    // Revoked since; and what was added gives no setting, or is a list of names.
    fs::remove_file(data.join("conf.d/archive.conf")).unwrap();
    folder("site");
    put("site/local.cfg", "# nothing yet\n");
    put("site/people", "postgres\n");
    let append = |path: &str, text: &str| {
        let mut whole = fs::read_to_string(data.join(path)).unwrap();
        whole.push_str(text);
        put(path, &whole);
    };
    append("postgresql.conf", "\ninclude 'site/local.cfg'\n");
    let hba = fs::read_to_string(data.join("pg_hba.conf")).unwrap();
    put(
        "pg_hba.conf",
        &format!("local all @site/people scram-sha-256\n{hba}"),
    );
    neon.pg().restart(&pg).await.unwrap();
    neon.pg().checkout(&plan(neon, &snap).await).await.unwrap();
    assert!(!data.join("conf.d/archive.conf").exists());
    for kept in ["site/local.cfg", "site/people"] {
        assert!(data.join(kept).exists(), "{kept}");
    }
    assert_eq!(sql(neon, "pgdata1", "show work_mem").await, "4MB");
    neon.pg().restart(&pg).await.unwrap();
    neon.pg().stop(&pg).await.unwrap();
}

/// Whom the pass file names is whom the state has that the instance ends at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_whose_recovery_dies_after_the_password_was_given_leaves_the_login_of_before() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    let snap = take(neon, "pgdata1", "a").await;
    let instance = neon.pg().instance(&pg).await.unwrap();
    let pass_file = instance.pass_file().unwrap().to_owned();
    let password = fs::read_to_string(&pass_file).unwrap();
    let password = password.trim_end().rsplit(':').next().unwrap().to_owned();
    let boss = format!("create role boss superuser login password '{password}'");
    run(neon, "pgdata1", &boss).await;
    let login = format!("*:*:*:boss:{password}\n");
    fs::write(&pass_file, &login).unwrap();
    run(neon, "pgdata1", "alter role postgres rename to former").await;
    let pid_file = instance.data_dir().join("postmaster.pid");
    let once = std::sync::atomic::AtomicBool::new(false);
    let (seen, says) = (pass_file.clone(), login.clone());
    let hasty = home.with(|options| {
        options.at_step = Some(std::sync::Arc::new(move |step: &str| {
            if step == "checkout: visited" && !once.swap(true, std::sync::atomic::Ordering::SeqCst)
            {
                assert_eq!(fs::read_to_string(&seen).unwrap(), says);
                let text = fs::read_to_string(&pid_file).unwrap();
                let pid = text.lines().next().unwrap().parse().unwrap();
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        }));
    });
    let outcome = hasty.pg().checkout(&plan(neon, &snap).await).await;
    assert!(outcome.is_err());
    let record = neon.pg().record_of(&pg).unwrap();
    assert_eq!(record.checkout, None);
    // The server that died was ours: nothing of it is kept as a state of somebody.
    assert!(
        record.heads.iter().all(|head| head.lineage.is_some()),
        "{:?}",
        record.heads
    );
    assert_eq!(fs::read_to_string(&pass_file).unwrap(), login);
    assert_eq!(sql(neon, "pgdata1", "select current_user").await, "boss");
    // And once it comes to its end, it is the login of the snapshot.
    neon.pg().checkout(&plan(neon, &snap).await).await.unwrap();
    let user = sql(neon, "pgdata1", "select current_user").await;
    assert_eq!(user, "postgres");
    neon.pg().stop(&pg).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_wrote_before_a_failed_checkout_is_taken_back_is_kept() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    let snap = take(neon, "pgdata1", "a").await;
    // So that its password has to be given again. No server starts on the copy of the snapshot, also that of its recovery.
    run(neon, "pgdata1", "alter role postgres connection limit 50").await;
    let instance = neon.pg().instance(&pg).await.unwrap();
    let auto = instance.data_dir().join("postgresql.auto.conf");
    let once = std::sync::atomic::AtomicBool::new(false);
    let hasty = home.with(|options| {
        options.at_step = Some(std::sync::Arc::new(move |step: &str| match step {
            "checkout: rewritten" if !once.swap(true, std::sync::atomic::Ordering::SeqCst) => {
                fs::write(&auto, "no_such_setting = 1\n").unwrap();
            }
            "checkout: back" => {
                fs::write(&auto, "").unwrap();
                let instance = instance.clone();
                let thread = std::thread::spawn(move || {
                    let runtime = tokio::runtime::Runtime::new().unwrap();
                    runtime.block_on(async {
                        let options = neon_pgctl::StartOptions::new();
                        instance.start(&options).await.unwrap();
                        let mut client = instance.connect("postgres").await.unwrap();
                        let made = client
                            .simple_query("create table precious as select 7 i")
                            .await;
                        made.unwrap();
                        client.close().await;
                        let options = neon_pgctl::StopOptions::new(neon_pgctl::StopMode::Fast);
                        instance.stop(&options).await.unwrap();
                    });
                });
                thread.join().unwrap();
            }
            _ => {}
        }));
    });
    let outcome = hasty.pg().checkout(&plan(neon, &snap).await).await;
    assert!(outcome.is_err());
    let record = neon.pg().record_of(&pg).unwrap();
    assert!(record.checkout.is_none());
    let kept = record.heads.iter().max_by_key(|head| head.number).unwrap();
    let kept = format!("pgdata1@HEAD{{{}}}", kept.number);
    let kept = neon.snapshots().find(&kept, None).await.unwrap();
    neon.pg().checkout(&plan(neon, &kept).await).await.unwrap();
    assert_eq!(sql(neon, "pgdata1", "select i from precious").await, "7");
    neon.pg().stop(&pg).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_wrote_while_the_state_before_was_taken_is_not_rewritten() {
    let home = Fixture::new();
    let neon = &home.neon;
    let pg = name("pgdata1");
    neon.pg().create(&home.create()).await.unwrap();
    let snap = take(neon, "pgdata1", "a").await;
    let hasty = with_a_server(&home, "checkout: saved", true).await;
    let outcome = hasty.pg().checkout(&plan(neon, &snap).await).await;
    assert_eq!(refused(outcome), ErrorKind::Busy);
    assert_eq!(sql(neon, "pgdata1", "select i from precious").await, "7");
    neon.pg().stop(&pg).await.unwrap();
}
