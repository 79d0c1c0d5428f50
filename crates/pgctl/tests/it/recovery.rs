//! Recoveries to every kind of target, reached and not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neon_pg_layout::{ClusterState, Lsn, TimelineId};
use neon_pgctl::{
    Recovered, RecoveryEnd, RecoveryEvent, RecoveryPlan, RecoveryTarget, RecoveryTimeline,
    StopPoint, WalSource,
};

use crate::dropping::drop_after;
use crate::history::*;
use crate::support::*;

fn recover(instance: &Instance, plan: &RecoveryPlan) -> neon_pgctl::Result<Recovered> {
    runtime().block_on(instance.recover(plan, |_| {}))
}

fn plan(archive: &Path, target: RecoveryTarget) -> RecoveryPlan {
    RecoveryPlan::new(WalSource::Directory(archive.to_owned()), target).with_durability(false)
}

/// Every target that can be reached, on one base; then one directory rolled forward from target to target.
fn every_target_is_reached(major: PgMajor) {
    let history = History::write(major);
    let at_lsn = |inclusive| RecoveryTarget::Lsn {
        lsn: history.lsn_after_2,
        inclusive,
    };
    let at_time = RecoveryTarget::Time {
        time: history.time_after_3,
        inclusive: true,
    };
    let at_point = RecoveryTarget::RestorePoint(history.point_after_4.to_owned());
    let at_xid = |inclusive| RecoveryTarget::Transaction {
        xid: history.xid_of_5,
        inclusive,
    };
    let mut used = vec![TimelineId::FIRST];
    for (name, target, expected) in [
        ("immediate", RecoveryTarget::Immediate, "1"),
        ("lsn", at_lsn(true), "1 2"),
        ("before-xid", at_xid(false), "1 2 3 4"),
        ("latest", RecoveryTarget::Latest, "1 2 3 4 5 6"),
    ] {
        let instance = history.fresh(name);
        let plan = plan(&history.archive, target)
            .with_end(RecoveryEnd::Promoted)
            .with_used_timelines(used.iter().copied());
        let recovered = recover(&instance, &plan).unwrap();
        assert_eq!(recovered.state, ClusterState::ShutDown);
        // None of the others was archived, and still no number is used twice.
        assert!(
            used.iter().all(|timeline| *timeline < recovered.timeline),
            "{name}: {recovered:?}"
        );
        used.push(recovered.timeline);
        assert!(!instance.data_dir().join("recovery.signal").exists());
        assert!(!instance.data_dir().join("standby.signal").exists());
        assert_eq!(numbers(&instance), expected, "{name}");
        fs::remove_dir_all(instance.data_dir()).unwrap();
        // The instance archived the history when it was started; as if that had been lost.
        fs::remove_file(
            history
                .archive
                .join(format!("{:08X}.history", recovered.timeline.get())),
        )
        .unwrap();
    }
    branches_can_be_followed(&history, &used);

    let instance = history.fresh("rolled");
    let configuration = spoil_configuration(&history, &instance);
    let mut events = Vec::new();
    for target in [
        at_lsn(false),
        at_time,
        at_point,
        at_xid(true),
        RecoveryTarget::Latest,
    ] {
        let plan = plan(&history.archive, target.clone());
        let recovered = runtime()
            .block_on(instance.recover(&plan, |event| events.push(event)))
            .unwrap();
        assert_eq!(recovered.state, ClusterState::ShutDownInRecovery);
        assert_eq!(recovered.timeline, TimelineId::FIRST);
        match (&target, &recovered.stopped) {
            (
                RecoveryTarget::Lsn { lsn, .. },
                Some(StopPoint::Lsn {
                    after: false,
                    lsn: at,
                }),
            ) => assert!(at >= lsn),
            (
                RecoveryTarget::Time { time, .. },
                Some(StopPoint::Transaction {
                    after: false,
                    committed: true,
                    time: Some(at),
                    ..
                }),
            ) => {
                assert!(at > time);
            }
            (
                RecoveryTarget::RestorePoint(name),
                Some(StopPoint::RestorePoint { name: at, .. }),
            ) => assert_eq!(at, name),
            (
                RecoveryTarget::Transaction { xid, .. },
                Some(StopPoint::Transaction {
                    after: true,
                    xid: at,
                    ..
                }),
            ) => {
                assert_eq!(u64::from(*at), *xid);
            }
            (RecoveryTarget::Latest, None) => {}
            (target, stopped) => panic!("{target}: {stopped:?}"),
        }
        assert!(instance.data_dir().join("recovery.signal").exists());
        assert!(!instance.data_dir().join("standby.signal").exists());
    }
    assert!(events.contains(&RecoveryEvent::EndOfWal));
    let replayed: Vec<Lsn> = events
        .iter()
        .filter_map(|event| match event {
            RecoveryEvent::Replayed(lsn) => Some(*lsn),
            _ => None,
        })
        .collect();
    assert!(!replayed.is_empty());
    let archived = fs::read_dir(&history.archive).unwrap().count();
    let end = plan(&history.archive, RecoveryTarget::Latest).with_end(RecoveryEnd::Promoted);
    assert!(recover(&instance, &end).unwrap().timeline > TimelineId::FIRST);
    assert_eq!(fs::read_dir(&history.archive).unwrap().count(), archived);
    let path = instance.data_dir().join("postgresql.conf");
    assert_eq!(fs::read_to_string(&path).unwrap(), configuration.1);
    fs::write(path, configuration.0).unwrap();
    fs::write(instance.data_dir().join("postgresql.auto.conf"), "").unwrap();
    assert_eq!(numbers(&instance), "1 2 3 4 5 6");
    nothing_is_left(&instance);
}

/// One branch leaves after 2 and goes on to 100; then the base is taken along it.
fn branches_can_be_followed(history: &History, used: &[TimelineId]) {
    let branch = history.fresh("branch");
    let target = RecoveryTarget::Lsn {
        lsn: history.lsn_after_2,
        inclusive: true,
    };
    let away = plan(&history.archive, target)
        .with_end(RecoveryEnd::Promoted)
        .with_used_timelines(used.iter().copied());
    let away = recover(&branch, &away).unwrap();
    let sql = "insert into t values (100); select pg_switch_wal()";
    assert_eq!(numbers_after(&branch, sql), "1 2 100");

    let followed = history.fresh("followed");
    let command = format!("cp '{}/%f' '%p'", history.archive.display());
    for (source, timeline) in [
        (
            WalSource::Directory(history.archive.clone()),
            RecoveryTimeline::Number(away.timeline),
        ),
        // Numbers between were used and left nothing in the archive.
        (WalSource::Command(command), RecoveryTimeline::Latest),
    ] {
        let along = RecoveryPlan::new(source, RecoveryTarget::Latest)
            .with_timeline(timeline)
            .with_used_timelines(used.iter().copied())
            .with_durability(false);
        let recovered = recover(&followed, &along).unwrap();
        assert_eq!(recovered.timeline, away.timeline);
    }
    let last = plan(&history.archive, RecoveryTarget::Latest)
        .with_timeline(RecoveryTimeline::Latest)
        .with_end(RecoveryEnd::Promoted);
    let last = recover(&followed, &last).unwrap();
    assert!(last.timeline > away.timeline);
    assert_eq!(numbers(&followed), "1 2 100");
    for instance in [branch, followed] {
        fs::remove_dir_all(instance.data_dir()).unwrap();
    }
}

/// Gives a copy the worst configuration its origin could have had; returns the good and the bad one.
fn spoil_configuration(history: &History, instance: &Instance) -> (String, String) {
    let path = instance.data_dir().join("postgresql.conf");
    let good = fs::read_to_string(&path).unwrap();
    let mut bad = good.clone();
    for (name, value) in [
        (
            "data_directory",
            history.cluster.data_dir().to_str().unwrap(),
        ),
        ("hba_file", "/nonexistent/hba"),
        ("ident_file", "/nonexistent/ident"),
        ("external_pid_file", "/nonexistent/pid"),
        ("unix_socket_directories", "/nonexistent"),
        ("listen_addresses", "*"),
        ("port", "1"),
        ("ssl", "on"),
        ("logging_collector", "on"),
        ("log_directory", "/nonexistent/log"),
        ("log_min_messages", "panic"),
        ("log_error_verbosity", "verbose"),
        ("max_connections", "5"),
        ("max_worker_processes", "1"),
        ("shared_buffers", "64GB"),
        ("hot_standby", "on"),
        ("recovery_target_name", "elsewhere"),
        ("recovery_target_action", "pause"),
        ("recovery_target_timeline", "77"),
        ("restore_command", "exit 255"),
        ("recovery_end_command", "exit 255"),
        ("archive_cleanup_command", "rm -rf \"%p\""),
        ("recovery_min_apply_delay", "1h"),
        ("primary_conninfo", "host=/nonexistent"),
        ("synchronous_standby_names", "nobody"),
    ] {
        bad.push_str(&format!("{name} = '{value}'\n"));
    }
    // This one the server reads whatever we do.
    let auto = instance.data_dir().join("postgresql.auto.conf");
    let readable: String = bad
        .lines()
        .filter(|line| !line.starts_with("ssl"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&auto, readable).unwrap();
    bad.push_str("no_such_setting = 1\nlc_messages = 'xx_XX'\nthis is no line\n");
    fs::write(&path, &bad).unwrap();
    (good, bad)
}

/// The folders of runs are gone, and no socket is left.
fn nothing_is_left(instance: &Instance) {
    let left: Vec<PathBuf> = fs::read_dir(instance.socket_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!instance.data_dir().join("promote").exists());
    assert!(!instance.data_dir().join("postmaster.pid").exists());
}

/// One directory through every failure, and to its target in the end.
fn every_way_to_miss_a_target_has_its_kind(major: PgMajor) {
    let history = History::write(major);
    let instance = history.fresh("missed");
    let kind = |plan: &RecoveryPlan| {
        let plan = plan.clone().with_durability(false);
        let error = recover(&instance, &plan).unwrap_err();
        let message = format!("{error} {error:?}");
        (error.kind(), message)
    };
    let archive = &history.archive;
    let lsn = |lsn| RecoveryTarget::Lsn {
        lsn,
        inclusive: true,
    };
    let late = lsn(Lsn(history.lsn_after_2.0 + (1 << 40)));
    let control = || fs::read(instance.data_dir().join("global/pg_control")).unwrap();
    let untouched = control();

    let before = plan(archive, lsn(Lsn(history.backup.start.start.0 - 8)));
    assert_eq!(kind(&before).0, ErrorKind::TargetTooEarly);
    let before = plan(
        archive,
        RecoveryTarget::Time {
            time: history.last - Duration::from_secs(3600),
            inclusive: true,
        },
    );
    assert_eq!(kind(&before).0, ErrorKind::TargetTooEarly);
    let senseless = plan(archive, RecoveryTarget::RestorePoint(String::new()));
    assert_eq!(kind(&senseless).0, ErrorKind::Invalid);
    let garbled = RecoveryPlan::new(
        WalSource::Command("cp 'x".to_owned()),
        RecoveryTarget::Latest,
    );
    assert_eq!(kind(&garbled).0, ErrorKind::Invalid);
    // Replay would write to the tablespaces of the origin.
    let link = instance.data_dir().join("pg_tblspc/99999");
    std::os::unix::fs::symlink("/var/lib/origin", &link).unwrap();
    let (found, message) = kind(&plan(archive, RecoveryTarget::Latest));
    assert_eq!(found, ErrorKind::OutsideClone, "{message}");
    fs::remove_file(link).unwrap();
    assert_eq!(control(), untouched);
    assert!(!instance.data_dir().join("recovery.signal").exists());

    // The server says so itself: after the start of the backup, before its end.
    let early = plan(archive, lsn(Lsn(history.backup.start.start.0)));
    let (found, message) = kind(&early);
    assert_eq!(found, ErrorKind::TargetTooEarly, "{message}");
    assert!(instance.data_dir().join("recovery.signal").exists());

    let number = |number| RecoveryTimeline::Number(TimelineId::new(number).unwrap());
    let (found, message) = kind(&plan(archive, RecoveryTarget::Latest).with_timeline(number(7)));
    assert_eq!(found, ErrorKind::WrongTimeline, "{message}");
    let stray = archive.join("00000009.history");
    fs::write(&stray, "1\t0/100028\tbefore the base\n").unwrap();
    let (found, message) =
        kind(&plan(archive, late.clone()).with_timeline(RecoveryTimeline::Latest));
    assert_eq!(found, ErrorKind::WrongTimeline, "{message}");
    fs::remove_file(stray).unwrap();

    let broken = RecoveryPlan::new(WalSource::Command("exit 200".to_owned()), late.clone());
    let (found, message) = kind(&broken);
    assert_eq!(found, ErrorKind::WalSource, "{message}");
    let broken = RecoveryPlan::new(
        WalSource::Directory(archive.join("gone")),
        RecoveryTarget::Latest,
    );
    assert!(matches!(kind(&broken).0, ErrorKind::WalSource));

    let segment = neon_pg_layout::SegmentName::containing(
        TimelineId::FIRST,
        history.lsn_after_2,
        history.backup.start.wal_segment_size,
    );
    let hidden = archive.join(segment.to_string());
    let away = archive.parent().unwrap().join("hidden");
    fs::rename(&hidden, &away).unwrap();
    for target in [late.clone(), RecoveryTarget::Latest] {
        for end in [RecoveryEnd::InRecovery, RecoveryEnd::Promoted] {
            let (found, message) = kind(&plan(archive, target.clone()).with_end(end));
            assert_eq!(found, ErrorKind::MissingWal, "{message}");
            assert!(message.contains(&segment.to_string()), "{message}");
        }
    }
    // The same segment with its second half lost.
    let mut broken = fs::read(&away).unwrap();
    let half = broken.len() / 2;
    let torn = usize::try_from(history.lsn_after_2.0).unwrap() % broken.len();
    broken[torn.min(half)..].fill(0);
    fs::write(&hidden, broken).unwrap();
    for target in [late.clone(), RecoveryTarget::Latest] {
        let (found, message) = kind(&plan(archive, target));
        assert_eq!(found, ErrorKind::Corrupt, "{message}");
        assert!(message.contains(&segment.to_string()), "{message}");
    }
    fs::remove_file(&hidden).unwrap();
    let command = format!("cp '{}/%f' '%p'", archive.display());
    let by_command = RecoveryPlan::new(WalSource::Command(command.clone()), late.clone());
    assert_eq!(kind(&by_command).0, ErrorKind::MissingWal);
    fs::rename(&away, &hidden).unwrap();

    // Nothing that has missed its target is promoted.
    let promoted = |target: &RecoveryTarget| {
        let state = || instance.control_file().unwrap().state;
        let promote = plan(archive, target.clone()).with_end(RecoveryEnd::Promoted);
        let (found, _) = kind(&promote);
        assert!(instance.data_dir().join("recovery.signal").exists());
        assert!(matches!(
            state(),
            ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery
        ));
        found
    };
    assert_eq!(promoted(&late), ErrorKind::TargetTooLate);
    let (found, message) = kind(&plan(archive, late));
    assert_eq!(found, ErrorKind::TargetTooLate, "{message}");
    let idle = RecoveryTarget::Time {
        time: history.last + Duration::from_secs(3600),
        inclusive: true,
    };
    assert_eq!(promoted(&idle), ErrorKind::NoLaterTransaction);
    let (found, message) = kind(&plan(archive, idle));
    assert_eq!(found, ErrorKind::NoLaterTransaction, "{message}");
    let (found, message) = kind(&plan(
        archive,
        RecoveryTarget::Transaction {
            xid: 1_000_000,
            inclusive: true,
        },
    ));
    assert_eq!(found, ErrorKind::UnknownTransaction, "{message}");
    let (found, message) = kind(&plan(
        archive,
        RecoveryTarget::RestorePoint("nowhere".to_owned()),
    ));
    assert_eq!(found, ErrorKind::UnknownRestorePoint, "{message}");

    let end = RecoveryPlan::new(WalSource::Command(command), RecoveryTarget::Latest)
        .with_end(RecoveryEnd::Promoted);
    recover(&instance, &end).unwrap();
    assert_eq!(numbers(&instance), "1 2 3 4 5 6");
    nothing_is_left(&instance);
}

/// A copy of a stopped cluster has nothing to replay; a moment later its origin has archived more.
fn nothing_is_replayed_beyond_the_first_consistent_state(major: PgMajor) {
    let history = History::write(major);
    let scratch = history.cluster.scratch_dir().to_owned();
    copy(&history.cluster.data_dir(), &scratch.join("cold"));
    let instance = history.instance("cold");
    let (archive, used) = (history.archive.clone(), history.backup.start.timeline);
    let mut cluster = history.cluster;
    cluster.start();
    cluster.psql("insert into t values (7); select pg_switch_wal(); insert into t values (8)");
    cluster.stop(neon_testkit::StopMode::Fast);
    // The first server that asks finds nothing, every later one all of it.
    let command = format!(
        "read -r server <postmaster.pid; [ -e '{0}' ] || echo $server >'{0}'; \
         [ \"$(cat '{0}')\" != $server ] || exit 1; cp '{1}/%f' '%p'",
        scratch.join("cold.run").join("first").display(),
        archive.display()
    );
    let plan = RecoveryPlan::new(WalSource::Command(command), RecoveryTarget::Immediate)
        .with_end(RecoveryEnd::Promoted)
        .with_used_timelines([used])
        .with_durability(false);
    let recovered = recover(&instance, &plan).unwrap();
    assert_eq!(recovered.state, ClusterState::ShutDown);
    assert_eq!(numbers(&instance), "1 2 3 4 5 6");
}

/// WAL of a time with wal_level=minimal lies between the base and the target.
fn wal_of_level_minimal_is_not_recovered_over(major: PgMajor) {
    let history = History::write(major);
    let instance = history.fresh("minimal");
    let raised = history.fresh("raised");
    let mut cluster = history.cluster;
    // Settings raised on the way stop nothing.
    cluster.set("max_connections", 60);
    cluster.set("max_worker_processes", 9);
    cluster.start();
    cluster.psql("insert into t values (7); select pg_switch_wal()");
    cluster.stop(neon_testkit::StopMode::Fast);
    let plan = plan(&history.archive, RecoveryTarget::Latest).with_end(RecoveryEnd::Promoted);
    recover(&raised, &plan).unwrap();
    assert_eq!(numbers(&raised), "1 2 3 4 5 6 7");
    for (level, mode, senders) in [("minimal", "off", 0), ("replica", "on", 10)] {
        cluster.set("wal_level", level);
        cluster.set("archive_mode", mode);
        cluster.set("max_wal_senders", senders);
        cluster.set("min_wal_size", "256MB");
        cluster.start();
        cluster.psql("insert into t values (8)");
        cluster.stop(neon_testkit::StopMode::Fast);
    }
    // What was not archived in between is still in pg_wal.
    let wal = cluster.data_dir().join("pg_wal");
    let command = format!(
        "cp '{}/%f' '%p' || cp '{}/%f' '%p'",
        history.archive.display(),
        wal.display()
    );
    for target in [
        RecoveryTarget::Latest,
        RecoveryTarget::RestorePoint("nowhere".to_owned()),
    ] {
        let plan =
            RecoveryPlan::new(WalSource::Command(command.clone()), target).with_durability(false);
        let error = recover(&instance, &plan).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WalLevelMinimal, "{error:?}");
        assert!(error.hint().is_some());
    }
    nothing_is_left(&instance);
}

/// Given up anywhere, a run leaves no server and no file of its own, and another one gets to the target.
fn every_await_point_can_be_the_last(major: PgMajor) {
    let history = History::write(major);
    for (name, timeline, end) in [
        ("shut", RecoveryTimeline::Current, RecoveryEnd::InRecovery),
        ("promoted", RecoveryTimeline::Latest, RecoveryEnd::Promoted),
    ] {
        let instance = history.fresh(name);
        let control = || fs::read(instance.data_dir().join("global/pg_control")).unwrap();
        let command = format!("cp '{}/%f' '%p'", history.archive.display());
        let plan = RecoveryPlan::new(WalSource::Command(command), RecoveryTarget::Latest)
            .with_timeline(timeline)
            .with_end(end)
            .with_durability(false);
        let untouched = control();
        let mut polls = 0;
        loop {
            let done = runtime().block_on(drop_after(polls, instance.recover(&plan, |_| {})));
            if polls > 0 {
                nothing_is_left(&instance);
            }
            let state = instance.control_file().unwrap().state;
            let signal = instance.data_dir().join("recovery.signal").exists();
            assert!(!instance.data_dir().join("standby.signal").exists());
            if let Some(recovered) = done {
                recovered.unwrap();
                assert_eq!(signal, end == RecoveryEnd::InRecovery);
                break;
            }
            // Dropped between promotion and the stop: a primary that crashed.
            if matches!(state, ClusterState::InProduction | ClusterState::ShutDown)
                && control() != untouched
            {
                assert_eq!(end, RecoveryEnd::Promoted);
                break;
            }
            assert_eq!(signal, control() != untouched, "{polls}");
            polls = (polls + 1).max(polls * 2);
        }
        if end == RecoveryEnd::Promoted {
            assert_eq!(numbers(&instance), "1 2 3 4 5 6");
        }
    }
}

/// The whole way with this crate alone, by whoever runs it: an instance, a base, a recovery of it.
fn a_copy_of_an_instance_recovers(major: PgMajor) {
    run(async {
        let fixture = Fixture::new(major).await;
        let instance = &fixture.instance;
        instance.start(&start_options()).await.unwrap();
        query(instance, "create table t as select 1 as i").await;
        let client = instance.connect("postgres").await.unwrap();
        let options = BracketOptions::new("base");
        let mut bracket = BackupBracket::start(client, &options).await.unwrap();
        let folder = fixture.scratch.path().join("copy");
        let copied = async { copy_files(instance.data_dir(), &folder.join("data")) };
        std::fs::create_dir(&folder).unwrap();
        let user = OsUser::owner_of(fixture.scratch.path()).unwrap();
        std::os::unix::fs::chown(&folder, Some(user.uid()), Some(user.gid())).unwrap();
        bracket.during(copied).await.unwrap();
        let backup = bracket.stop().await.unwrap();
        let label = folder.join("data/backup_label");
        fs::write(&label, &backup.label_file).unwrap();
        std::os::unix::fs::chown(label, Some(user.uid()), Some(user.gid())).unwrap();
        query(instance, "insert into t values (2)").await;
        query(instance, "select pg_create_restore_point('here')").await;
        query(instance, "insert into t values (3)").await;
        instance.stop(&StopOptions::default()).await.unwrap();
        let wal = WalSource::Directory(instance.data_dir().join("pg_wal"));
        let plan = RecoveryPlan::new(wal, RecoveryTarget::RestorePoint("here".to_owned()))
            .with_end(RecoveryEnd::Promoted)
            .with_durability(false);
        let installation = installation(major);
        let at = |name| folder.join(name);
        let copy = Instance::at(&installation, at("data"), at("log"), at("run")).unwrap();
        copy.recover(&plan, |_| {}).await.unwrap();
        copy.start(
            &start_options()
                .with_setting("port", "5432")
                .with_setting("listen_addresses", ""),
        )
        .await
        .unwrap();
        let copy = copy.with_pass_file(instance.pass_file().unwrap());
        assert_eq!(
            query(&copy, "select string_agg(i::text, ' ') from t").await,
            "1 2"
        );
        copy.stop(&StopOptions::default()).await.unwrap();
    });
}

const RECOVERING: &str = "NEON_TEST_RECOVERING";

/// What [`a_recovery_ends_when_its_host_is_killed`] kills.
#[test]
fn a_process_that_recovers() {
    let Some(folder) = std::env::var_os(RECOVERING).map(PathBuf::from) else {
        return;
    };
    let installation = installation(PgMajor::V16);
    let at = |name| folder.join(name);
    let instance =
        Instance::at(&installation, at("stuck"), at("stuck.log"), at("stuck.run")).unwrap();
    let source = WalSource::Command("echo >begun; sleep 600".to_owned());
    let plan = RecoveryPlan::new(source, RecoveryTarget::Immediate).with_durability(false);
    drop(recover(&instance, &plan));
}

#[test]
fn a_recovery_ends_when_its_host_is_killed() {
    let history = History::write(PgMajor::V16);
    let instance = history.fresh("stuck");
    let folder = history.cluster.scratch_dir();
    let mut host = this_program("recovery::a_process_that_recovers")
        .env(RECOVERING, folder)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    run(until("the command runs", || {
        instance.data_dir().join("begun").exists()
    }));
    host.kill().unwrap();
    host.wait().unwrap();
    run(until("the server is gone", || {
        postgres_in(instance.data_dir()).is_empty()
    }));
    run(until("the folder is gone", || {
        fs::read_dir(instance.socket_dir()).unwrap().count() == 0
    }));
    recover(
        &instance,
        &plan(&history.archive, RecoveryTarget::Immediate),
    )
    .unwrap();
}

/// Whoever visits the server at its end works on the new timeline, before it is gone.
fn a_visit_is_made_once_and_lasts(major: PgMajor) {
    let history = History::write(major);
    let instance = history.fresh("visited");
    // What would keep a visitor from its work.
    let auto = instance.data_dir().join("postgresql.auto.conf");
    let mut text = fs::read_to_string(&auto).unwrap();
    text.push_str("default_transaction_read_only = on\nsession_preload_libraries = 'not_there'\n");
    fs::write(&auto, text).unwrap();
    let ended = plan(&history.archive, RecoveryTarget::Immediate);
    let visit = async {
        let mut client = instance.connect("postgres").await.unwrap();
        let said = client
            .simple_query("create table visited (); select pg_is_in_recovery()")
            .await
            .unwrap();
        client.close().await;
        said.last()
            .and_then(|set| set.value(0, 0))
            .map(str::to_owned)
    };
    let promoted = ended.clone().with_end(RecoveryEnd::Promoted);
    let (recovered, came) = runtime()
        .block_on(instance.recover_and(&promoted, |_| {}, visit))
        .unwrap();
    assert_eq!(recovered.state, ClusterState::ShutDown);
    assert_eq!(came.flatten().as_deref(), Some("f"));
    fs::write(&auto, "").unwrap();
    assert_eq!(numbers_after(&instance, "table visited"), "1");

    // One that stays in recovery has no visitors.
    let instance = history.fresh("not-visited");
    let nobody = async { panic!("somebody came") };
    let (recovered, came) = runtime()
        .block_on(instance.recover_and::<()>(&ended, |_| {}, nobody))
        .unwrap();
    assert_eq!(recovered.state, ClusterState::ShutDownInRecovery);
    assert_eq!(came, None);
}

#[test]
fn a_visit_is_made_once_and_lasts_13() {
    a_visit_is_made_once_and_lasts(PgMajor::V13);
}

#[test]
fn a_visit_is_made_once_and_lasts_18() {
    a_visit_is_made_once_and_lasts(PgMajor::V18);
}

/// Visits that do not go well: one that is refused, one whose session dies and takes the server along, one that is dropped.
#[test]
fn a_visit_that_goes_wrong_is_judged_by_what_becomes_of_the_server() {
    let history = History::write(PgMajor::V18);
    let promoted =
        plan(&history.archive, RecoveryTarget::Immediate).with_end(RecoveryEnd::Promoted);

    let instance = history.fresh("refused");
    let refused = async {
        let nobody = instance
            .clone()
            .without_pass_file()
            .with_superuser("nobody");
        nobody.connect("postgres").await.is_err()
    };
    let (recovered, came) = runtime()
        .block_on(instance.recover_and(&promoted, |_| {}, refused))
        .unwrap();
    assert_eq!(recovered.state, ClusterState::ShutDown);
    assert_eq!(came, Some(true));

    let instance = history.fresh("crashed");
    let crashing = async {
        let mut client = instance.connect("postgres").await.unwrap();
        let said = client
            .simple_query("select pg_backend_pid()")
            .await
            .unwrap();
        let pid = said[0].value(0, 0).unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        client.simple_query("select 1").await.is_err()
    };
    let outcome = runtime().block_on(instance.recover_and(&promoted, |_| {}, crashing));
    assert!(outcome.is_err(), "{outcome:?}");
    assert!(postgres_in(instance.data_dir()).is_empty());

    let instance = history.fresh("dropped");
    let (say, said) = tokio::sync::oneshot::channel();
    let endless = async {
        let _client = instance.connect("postgres").await.unwrap();
        say.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    runtime().block_on(async {
        tokio::select! {
            _ = instance.recover_and(&promoted, |_| {}, endless) => panic!("it came to an end"),
            begun = said => begun.unwrap(),
        }
    });
    assert!(postgres_in(instance.data_dir()).is_empty());
    assert_eq!(fs::read_dir(instance.socket_dir()).unwrap().count(), 0);
    assert_eq!(numbers(&instance), "1");
}

macro_rules! per_major {
    ($($module:ident $major:ident)*) => {$(
        mod $module {
            use neon_testkit::PgMajor;

            #[test]
            fn every_target_is_reached() {
                super::every_target_is_reached(PgMajor::$major);
            }

            #[test]
            fn every_way_to_miss_a_target_has_its_kind() {
                super::every_way_to_miss_a_target_has_its_kind(PgMajor::$major);
            }

            #[test]
            fn wal_of_level_minimal_is_not_recovered_over() {
                super::wal_of_level_minimal_is_not_recovered_over(PgMajor::$major);
            }

            #[test]
            fn nothing_is_replayed_beyond_the_first_consistent_state() {
                super::nothing_is_replayed_beyond_the_first_consistent_state(PgMajor::$major);
            }

            #[test]
            fn a_copy_of_an_instance_recovers() {
                super::a_copy_of_an_instance_recovers(PgMajor::$major);
            }

            #[test]
            fn every_await_point_can_be_the_last() {
                super::every_await_point_can_be_the_last(PgMajor::$major);
            }
        }
    )*};
}

per_major!(v13 V13 v14 V14 v15 V15 v16 V16 v17 V17 v18 V18);
