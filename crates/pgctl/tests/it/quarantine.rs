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
    copy.start(&start_options()).await.unwrap();
    assert_eq!(query(&copy, "SELECT pg_is_in_recovery()").await, "t");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!upstream.somebody_came());
    copy.stop(&StopOptions::default()).await.unwrap();
    fs::remove_file(&signal).unwrap();

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
