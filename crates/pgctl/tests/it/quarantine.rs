//! Quarantine: a copy with everything set at once that could reach its origin or break here.

use std::fs;
use std::io::ErrorKind as IoErrorKind;
use std::net::TcpListener;
use std::path::Path;

use super::support::*;

macro_rules! on_every_major {
    ($body:path: $($name:ident $major:ident),+) => {
        $(#[test]
        fn $name() {
            run($body(PgMajor::$major));
        })+
    };
}

on_every_major!(everything_at_once:
    quarantine_holds_everything_back_on_13 V13, quarantine_holds_everything_back_on_14 V14,
    quarantine_holds_everything_back_on_15 V15, quarantine_holds_everything_back_on_16 V16,
    quarantine_holds_everything_back_on_17 V17, quarantine_holds_everything_back_on_18 V18);

/// Stands for the primary and the publisher: knows whether anybody came.
struct Upstream(TcpListener);

impl Upstream {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    fn somebody_came(&self) -> bool {
        match self.0.accept() {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), IoErrorKind::WouldBlock);
                false
            }
        }
    }
}

fn give(instance: &Instance, path: &Path) {
    let user = instance.os_user();
    std::os::unix::fs::chown(path, Some(user.uid()), Some(user.gid())).unwrap();
}

fn folder(fixture: &Fixture, name: &str) -> std::path::PathBuf {
    let path = fixture.scratch.path().join(name);
    fs::create_dir_all(&path).unwrap();
    give(&fixture.instance, &path);
    path
}

/// Every file of configuration, by content.
fn configuration(instance: &Instance) -> Vec<(String, Vec<u8>)> {
    let names = [
        "postgresql.conf",
        "postgresql.auto.conf",
        "pg_hba.conf",
        "pg_ident.conf",
        "neon.conf",
    ];
    names
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                fs::read(instance.data_dir().join(name)).unwrap(),
            )
        })
        .collect()
}

async fn everything_at_once(major: PgMajor) {
    let fixture = Fixture::new(major).await;
    let instance = &fixture.instance;
    let upstream = Upstream::new();
    let archive = folder(&fixture, "archive");
    let outside = folder(&fixture, "tablespace");

    // The origin: a subscription, a tablespace, then settings.
    instance.start(&start_options()).await.unwrap();
    let port = upstream.port();
    for sql in [
        "CREATE TABLE t (x int)",
        &format!("CREATE TABLESPACE far LOCATION '{}'", outside.display()),
        "CREATE TABLE in_far (x int) TABLESPACE far",
        &format!(
            "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={port} dbname=x connect_timeout=1' \
             PUBLICATION p WITH (connect = false, slot_name = 's')"
        ),
        "ALTER SYSTEM SET synchronous_standby_names = 'elsewhere'",
        &format!(
            "ALTER SYSTEM SET archive_command = 'cp %p {}/%f'",
            archive.display()
        ),
        "ALTER SUBSCRIPTION s ENABLE",
    ] {
        query(instance, sql).await;
    }
    // The trap works: an enabled subscription does call.
    until("the origin's subscription calls", || {
        upstream.somebody_came()
    })
    .await;
    instance.stop(&StopOptions::default()).await.unwrap();
    while upstream.somebody_came() {}

    let library = Path::new("auto_explain.so");
    let has_auto_explain = instance
        .installation()
        .extension_lib_dir()
        .unwrap()
        .join(library)
        .exists();
    let present = if has_auto_explain {
        "auto_explain, "
    } else {
        ""
    };
    fixture.configure(&format!(
        "archive_mode = on
         archive_timeout = 1
         primary_conninfo = 'host=127.0.0.1 port={port} connect_timeout=1'
         shared_preload_libraries = '{present}no_such_library'
         session_preload_libraries = 'no_such_library'
         shared_buffers = 64GB
         maintenance_work_mem = 64GB
         huge_pages = on
         max_connections = 5000
         superuser_reserved_connections = 500
         listen_addresses = '*'
         logging_collector = on
         log_directory = '/nonexistent/log'
         ssl = on
         ssl_cert_file = '/nonexistent/server.crt'
         ssl_key_file = '/nonexistent/server.key'
         hba_file = '/nonexistent/pg_hba.conf'
         ident_file = '/nonexistent/pg_ident.conf'
         external_pid_file = '/nonexistent/pid'
         unix_socket_group = 'nosuchgroup'
         lc_messages = 'xx_YY'
         lc_monetary = 'xx_YY'
         no_such_parameter = 1
         my.own = 'kept'
         work_mem = 5MB
         recovery_target_time = '2020-01-01 00:00:00+00'
         cron.database_name = 'postgres'
         include '/nonexistent/more.conf'"
    ));
    let before = configuration(instance);

    // As it is it cannot even start here.
    let refused = instance.start(&start_options().as_is()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BadSetting, "{refused:?}");

    // Its tablespace lies outside: refused, until there is a new place for it.
    let copy = instance.clone().with_quarantine(QuarantineOptions::new());
    let refused = copy.start(&start_options()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutsideClone, "{refused:?}");
    let links = fs::read_dir(copy.data_dir().join("pg_tblspc")).unwrap();
    let oid: u32 = links
        .flatten()
        .next()
        .unwrap()
        .file_name()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let place = fixture.dir().join("far");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(&outside)
        .arg(&place)
        .status();
    assert!(copied.unwrap().success());
    let options = QuarantineOptions::new().with_tablespace(oid, &place);
    let copy = instance.clone().with_quarantine(options);

    let started = copy.start(&start_options()).await.unwrap();
    check_changes(&started, has_auto_explain);
    // Usable: commits wait for nobody, the tablespace is the copy's, settings that harm nobody are kept.
    query(&copy, "INSERT INTO t VALUES (1)").await;
    query(&copy, "INSERT INTO in_far VALUES (1)").await;
    query(&copy, "CHECKPOINT").await;
    assert_eq!(query(&copy, "SHOW work_mem").await, "5MB");
    assert_eq!(query(&copy, "SHOW my.own").await, "kept");
    assert_eq!(query(&copy, "SHOW listen_addresses").await, "");
    query(&copy, "SELECT pg_switch_wal()").await;
    // What would have happened by now: the archiver within its timeout, the subscription at once.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(fs::read_dir(&archive).unwrap().count(), 0);
    assert!(!upstream.somebody_came());
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%' \
                   OR backend_type IN ('archiver', 'walreceiver')";
    assert_eq!(query(&copy, workers).await, "0");
    copy.stop(&StopOptions::default()).await.unwrap();

    // As a standby: nobody calls upstream either, and it stays one.
    let signal = copy.data_dir().join("standby.signal");
    fs::write(&signal, "").unwrap();
    give(&copy, &signal);
    let started = copy.start(&start_options()).await.unwrap();
    assert_eq!(query(&copy, "SELECT pg_is_in_recovery()").await, "t");
    // While it recovers it loads nobody's library.
    assert_eq!(query(&copy, "SHOW shared_preload_libraries").await, "");
    let listed = |change: &&Change| change.what == "shared_preload_libraries";
    let change = started.changes.iter().find(listed).unwrap();
    let why = match has_auto_explain {
        true => Why::Workers,
        false => Why::MissingLibrary,
    };
    assert_eq!((change.why, change.now.as_deref()), (why, Some("")));
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!upstream.somebody_came());
    copy.stop(&StopOptions::default()).await.unwrap();
    fs::remove_file(&signal).unwrap();

    // As something that was to be recovered from an archive: from what it has itself.
    let signal = copy.data_dir().join("recovery.signal");
    fs::write(&signal, "").unwrap();
    give(&copy, &signal);
    let started = copy.start(&start_options()).await.unwrap();
    let listed = |change: &&Change| change.what == "restore_command";
    let change = started.changes.iter().find(listed).unwrap();
    assert_eq!(change.now.as_deref(), Some("false"));
    until("it is recovered", || !signal.exists()).await;
    copy.stop(&StopOptions::default()).await.unwrap();
    copy.start(&start_options()).await.unwrap();
    assert_eq!(query(&copy, "SELECT count(*) FROM in_far").await, "1");
    assert_eq!(fs::read_dir(&archive).unwrap().count(), 0);
    assert!(!upstream.somebody_came());
    copy.stop(&StopOptions::default()).await.unwrap();

    // No file of the user's has changed, and nothing of ours is left but the log.
    assert_eq!(configuration(instance), before);
    assert_eq!(fs::read_dir(copy.socket_dir()).unwrap().count(), 0);
}

fn check_changes(started: &Started, has_auto_explain: bool) {
    let find = |what: &str| started.changes.iter().find(|change| change.what == what);
    for (what, why) in [
        ("archive_mode", Why::Archive),
        ("archive_command", Why::Archive),
        ("primary_conninfo", Why::Upstream),
        ("recovery_target_time", Why::Upstream),
        ("synchronous_standby_names", Why::SynchronousStandbys),
        ("shared_preload_libraries", Why::MissingLibrary),
        ("session_preload_libraries", Why::MissingLibrary),
        ("shared_buffers", Why::Resources),
        ("maintenance_work_mem", Why::Resources),
        ("huge_pages", Why::Resources),
        ("max_connections", Why::Resources),
        ("superuser_reserved_connections", Why::Resources),
        ("listen_addresses", Why::Access),
        ("unix_socket_group", Why::Access),
        ("logging_collector", Why::OriginPath),
        ("log_directory", Why::OriginPath),
        ("ssl", Why::OriginPath),
        ("ssl_cert_file", Why::OriginPath),
        ("ssl_key_file", Why::OriginPath),
        ("hba_file", Why::OriginPath),
        ("ident_file", Why::OriginPath),
        ("external_pid_file", Why::OriginPath),
        ("cron.launch_active_jobs", Why::Workers),
        ("lc_monetary", Why::Refused),
        ("no_such_parameter", Why::Refused),
        ("configuration files", Why::Unreadable),
    ] {
        let change =
            find(what).unwrap_or_else(|| panic!("{what} is not listed: {:#?}", started.changes));
        assert_eq!(change.why, why, "{change}");
    }
    assert!(find("work_mem").is_none() && find("my.own").is_none());
    let libraries = find("shared_preload_libraries")
        .unwrap()
        .now
        .clone()
        .unwrap();
    assert_eq!(libraries.contains("auto_explain"), has_auto_explain);
    let tablespace = started
        .changes
        .iter()
        .find(|change| change.what.starts_with("pg_tblspc/"))
        .unwrap();
    assert_eq!(tablespace.why, Why::OutsideClone);
}

/// A later start as it is finds what was there before, and does what quarantine held back.
#[test]
fn a_start_as_it_is_is_not_affected_by_an_earlier_quarantine() {
    run(async {
        let fixture = Fixture::new(PgMajor::V15).await;
        let instance = &fixture.instance;
        let archive = folder(&fixture, "archive");
        fixture.configure(&format!(
            "archive_mode = on\narchive_command = 'cp %p {}/%f'",
            archive.display()
        ));
        let before = configuration(instance);
        let quarantined = start_options().in_quarantine(QuarantineOptions::new());
        let started = instance.start(&quarantined).await.unwrap();
        assert!(
            started
                .changes
                .iter()
                .any(|change| change.what == "archive_mode")
        );
        query(instance, "CREATE TABLE t (x int); SELECT pg_switch_wal()").await;
        instance.stop(&StopOptions::default()).await.unwrap();
        assert_eq!(configuration(instance), before);

        let started = instance.start(&start_options()).await.unwrap();
        assert!(started.changes.is_empty());
        assert_eq!(query(instance, "SHOW archive_mode").await, "on");
        query(instance, "CREATE TABLE u (x int); SELECT pg_switch_wal()").await;
        until("the archiver works again", || {
            fs::read_dir(&archive).unwrap().count() > 0
        })
        .await;
        instance.stop(&StopOptions::default()).await.unwrap();
    });
}

/// The folder of WAL of a copy must not be its origin's.
#[test]
fn a_wal_directory_outside_the_copy_is_refused() {
    run(async {
        let fixture = Fixture::new(PgMajor::V16).await;
        let wal = fixture.instance.data_dir().join("pg_wal");
        let outside = fixture.scratch.path().join("wal");
        fs::rename(&wal, &outside).unwrap();
        std::os::unix::fs::symlink(&outside, &wal).unwrap();
        let quarantined = start_options().in_quarantine(QuarantineOptions::new());
        let error = fixture.instance.start(&quarantined).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutsideClone);
        assert!(error.reason().contains("pg_wal"), "{error}");
        // A root that holds it makes it part of the copy.
        let wider = fixture.instance.clone().with_root(fixture.scratch.path());
        wider.start(&quarantined).await.unwrap();
        wider.stop(&StopOptions::default()).await.unwrap();
    });
}

/// What runs in the background of a server, by what it is called.
fn workers(instance: &Instance) -> String {
    postgres_in(instance.data_dir())
        .into_iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
        .collect()
}

/// A library that starts a worker as soon as a standby is consistent.
#[test]
fn a_library_starts_no_worker_in_a_copy_that_recovers_unless_it_is_asked_for() {
    run(async {
        let fixture = Fixture::new(PgMajor::V15).await;
        let instance = &fixture.instance;
        fixture.configure("shared_preload_libraries = 'pg_prewarm'");
        instance.start(&start_options()).await.unwrap();
        instance.stop(&StopOptions::default()).await.unwrap();
        let signal = instance.data_dir().join("standby.signal");
        fs::write(&signal, "").unwrap();
        give(instance, &signal);
        // The trap works.
        let bare = start_options().as_is();
        instance.start(&bare).await.unwrap();
        until("the worker", || workers(instance).contains("autoprewarm")).await;
        instance.stop(&StopOptions::default()).await.unwrap();

        let options = QuarantineOptions::new();
        let quarantined = start_options().in_quarantine(options.clone());
        let started = instance.start(&quarantined).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert!(!workers(instance).contains("autoprewarm"));
        let named = |change: &&Change| change.what == "shared_preload_libraries";
        let change = started.changes.iter().find(named).unwrap();
        assert_eq!(change.why, Why::Workers);
        instance.stop(&StopOptions::default()).await.unwrap();

        let asked = start_options().in_quarantine(options.with_preload_library("pg_prewarm"));
        let started = instance.start(&asked).await.unwrap();
        until("the worker", || workers(instance).contains("autoprewarm")).await;
        assert!(started.changes.iter().find(named).is_none());
        instance.stop(&StopOptions::default()).await.unwrap();
    });
}

/// Whatever somebody has moved elsewhere is the origin's.
#[test]
fn links_anywhere_in_the_copy_and_new_places_outside_of_it_are_refused() {
    run(async {
        let fixture = Fixture::new(PgMajor::V15).await;
        let instance = &fixture.instance;
        let space = folder(&fixture, "pg/space");
        instance.start(&start_options()).await.unwrap();
        let sql = format!("CREATE TABLESPACE near LOCATION '{}'", space.display());
        query(instance, &sql).await;
        query(instance, "CREATE TABLE t TABLESPACE near AS SELECT 1 AS x").await;
        instance.stop(&StopOptions::default()).await.unwrap();
        let data = instance.data_dir();
        let links = fs::read_dir(data.join("pg_tblspc")).unwrap().flatten();
        let names: Vec<String> = links
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        let oid: u32 = names[0].parse().unwrap();
        let outside = folder(&fixture, "outside");
        let quarantined = start_options().in_quarantine(QuarantineOptions::new());

        for name in ["pg_stat_tmp", "pg_logical/snapshots", "base/1/PG_VERSION"] {
            let (path, moved) = (data.join(name), outside.join("moved"));
            fs::rename(&path, &moved).unwrap();
            std::os::unix::fs::symlink(&moved, &path).unwrap();
            let error = instance.start(&quarantined).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutsideClone, "{name}: {error:?}");
            assert!(error.reason().contains(name), "{error}");
            fs::remove_file(&path).unwrap();
            fs::rename(&moved, &path).unwrap();
        }
        // In a tablespace of the copy as well.
        let stray = space.join("stray");
        std::os::unix::fs::symlink(&outside, &stray).unwrap();
        let error = instance.start(&quarantined).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutsideClone, "{error:?}");
        fs::remove_file(&stray).unwrap();
        // A certificate may lie where the system keeps it.
        std::os::unix::fs::symlink("/etc/hostname", data.join("server.crt")).unwrap();

        // A place that is not the copy's, by name or by a link on the way.
        let detour = fixture.dir().join("detour");
        std::os::unix::fs::symlink(&outside, &detour).unwrap();
        for place in [outside.clone(), detour, "relative".into()] {
            let options = QuarantineOptions::new().with_tablespace(oid, &place);
            let remapped = start_options().in_quarantine(options);
            let error = instance.start(&remapped).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutsideClone, "{error:?}");
            let before = fs::read_link(data.join("pg_tblspc").join(&names[0])).unwrap();
            assert_eq!(before, space);
        }
        instance.start(&quarantined).await.unwrap();
        assert_eq!(query(instance, "SELECT x FROM t").await, "1");
        instance.stop(&StopOptions::default()).await.unwrap();
    });
}

#[test]
fn copies_that_share_the_folder_of_their_sockets_do_not_disturb_each_other() {
    run(async {
        let fixture = Fixture::new(PgMajor::V16).await;
        let sockets = fixture.dir().join("run");
        let mut copies = Vec::new();
        for (n, size) in [(0, "3MB"), (1, "4MB"), (2, "5MB")] {
            let data = fixture.scratch.path().join(format!("data{n}"));
            super::history::copy(fixture.instance.data_dir(), &data);
            let log = fixture.scratch.path().join(format!("log{n}"));
            let copy = Instance::at(&installation(PgMajor::V16), &data, log, &sockets).unwrap();
            let conf = data.join("postgresql.conf");
            let text = fs::read_to_string(&conf).unwrap();
            fs::write(&conf, format!("{text}\nwork_mem = {size}\n")).unwrap();
            let quarantined = QuarantineOptions::new();
            copies.push((copy.with_quarantine(quarantined), size));
        }
        let options = start_options();
        let (first, second, third) = tokio::join!(
            copies[0].0.start(&options),
            copies[1].0.start(&options),
            copies[2].0.start(&options),
        );
        let ports = [first, second, third].map(|started| started.unwrap().port);
        assert_eq!(
            std::collections::BTreeSet::from(ports).len(),
            3,
            "{ports:?}"
        );
        // Its end takes nothing of the others away: they read their files again.
        copies[0].0.stop(&StopOptions::default()).await.unwrap();
        for (copy, size) in &copies[1..] {
            copy.reload().unwrap();
            assert_eq!(
                query(copy, "SELECT pg_sleep(0.2); SHOW work_mem").await,
                *size
            );
            assert_eq!(
                query(copy, "SELECT count(*) > 0 FROM pg_hba_file_rules").await,
                "t"
            );
        }
        for (copy, _) in &copies[1..] {
            copy.stop(&StopOptions::default()).await.unwrap();
        }
        assert_eq!(fs::read_dir(&sockets).unwrap().count(), 0);
    });
}
