//! What a checkout must not take along, and must not leave.

use std::fs;

use neon_pg::{CheckoutChoice, ErrorKind};

use crate::checkouts::plan;
use crate::support::{Fixture, name, refused, run, sql, take};

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
    neon.pg().stop(&pg).await.unwrap();
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
    let instance = neon.pg().instance(&name("pgdata1")).await.unwrap();
    let hasty = home.with(|options| {
        options.at_step = Some(std::sync::Arc::new(move |step: &str| {
            if step != "checkout: compared" {
                return;
            }
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
                });
            });
            thread.join().unwrap();
        }));
    });
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
