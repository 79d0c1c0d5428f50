//! Create, start, stop, crash, restart, on every major.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::support::*;

/// One test a major, so that they run side by side.
macro_rules! on_every_major {
    ($body:path: $($name:ident $major:ident),+) => {
        $(#[test]
        fn $name() {
            run($body(PgMajor::$major));
        })+
    };
}

on_every_major!(life:
    an_instance_of_13_lives V13, an_instance_of_14_lives V14, an_instance_of_15_lives V15,
    an_instance_of_16_lives V16, an_instance_of_17_lives V17, an_instance_of_18_lives V18);

async fn life(major: PgMajor) {
    let fixture = Fixture::new(major).await;
    let instance = &fixture.instance;
    assert_eq!(instance.status().await.unwrap().state, ServerState::Stopped);
    check_layout(&fixture);

    let started = instance.start(&start_options()).await.unwrap();
    assert!(started.accepting && started.changes.is_empty());
    let status = instance.status().await.unwrap();
    assert_eq!(status.state, ServerState::Running);
    assert_eq!(
        (status.answer, status.pid),
        (Answer::Accepting, Some(started.pid))
    );
    assert_eq!(status.socket_dir.as_deref(), Some(instance.socket_dir()));
    let again = instance.start(&start_options()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyRunning);
    assert!(is_alive(started.pid));
    check_settings(instance, major).await;
    check_password(instance, &started).await;

    // Clean.
    let stopped = instance.stop(&StopOptions::default()).await.unwrap();
    assert_eq!((stopped.mode, stopped.clean), (StopMode::Fast, true));
    assert!(!is_alive(started.pid));
    let idle = instance.stop(&StopOptions::default()).await.unwrap_err();
    assert_eq!(idle.kind(), ErrorKind::NotRunning);
    assert_eq!(
        instance.uri("postgres").unwrap_err().kind(),
        ErrorKind::NotRunning
    );

    // Its port is its own from now on.
    let port = started.port;
    let started = instance.start(&start_options()).await.unwrap();
    assert_eq!(started.port, port);
    query(instance, "CREATE TABLE t AS SELECT 1 AS x").await;
    let restarted = instance
        .restart(&StopOptions::default(), &start_options())
        .await
        .unwrap();
    assert_ne!(restarted.pid, started.pid);

    // A crash of the server, told as one, and recovered from.
    let stopped = instance
        .stop(&StopOptions::new(StopMode::Immediate))
        .await
        .unwrap();
    assert!(!stopped.clean);
    assert_eq!(instance.status().await.unwrap().state, ServerState::Crashed);
    let started = instance.start(&start_options()).await.unwrap();
    assert_eq!(query(instance, "SELECT count(*) FROM t").await, "1");

    // The main process is killed; what it left behind (pid file, processes, shared memory) is in nobody's
    // way.
    kill(started.pid);
    until("the killed server is seen to be gone", || {
        !is_alive(started.pid)
    })
    .await;
    assert_eq!(instance.status().await.unwrap().state, ServerState::Crashed);
    let started = instance.start(&start_options()).await.unwrap();
    assert_eq!(query(instance, "SELECT count(*) FROM t").await, "1");

    // A setting of ours, by reload.
    instance.set_own(&[("work_mem", "7MB")]).await.unwrap();
    instance.reload().unwrap();
    let mut value = String::new();
    let begin = std::time::Instant::now();
    while value != "7MB" {
        assert!(begin.elapsed() < PATIENCE);
        value = query(instance, "SHOW work_mem").await;
    }
    let error = instance.set_own(&[("work_mem", "much")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadSetting);

    // The log is found, whoever writes it.
    assert!(instance.log_files().collected.is_some());
    let tail = instance.log_tail(5000).join("\n");
    assert!(
        tail.contains("database system is ready to accept connections"),
        "{tail}"
    );

    // A standby without upstream is promoted; a primary is not.
    let error = instance.promote(PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotInRecovery);
    instance.stop(&StopOptions::default()).await.unwrap();
    let signal = instance.data_dir().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    let user = instance.os_user();
    std::os::unix::fs::chown(&signal, Some(user.uid()), Some(user.gid())).unwrap();
    instance.start(&start_options()).await.unwrap();
    assert_eq!(instance.status().await.unwrap().state, ServerState::Standby);
    instance.promote(PATIENCE).await.unwrap();
    assert_eq!(query(instance, "SELECT pg_is_in_recovery()").await, "f");
    assert!(!signal.exists());
    let stopped = instance
        .stop(&StopOptions::new(StopMode::Smart))
        .await
        .unwrap();
    assert!(stopped.clean);
    assert!(postgres_in(fixture.scratch.path()).is_empty());
    drop(started);
}

fn check_layout(fixture: &Fixture) {
    let instance = &fixture.instance;
    let user = instance.os_user();
    assert!(!user.is_root());
    let mode = |path: &std::path::Path| {
        let meta = std::fs::metadata(path).unwrap();
        assert_eq!(meta.uid(), user.uid(), "{}", path.display());
        meta.permissions().mode() & 0o777
    };
    assert_eq!(mode(&fixture.dir()), 0o700);
    assert_eq!(mode(instance.data_dir()), 0o700);
    assert_eq!(mode(instance.pass_file().unwrap()), 0o600);
    assert_eq!(mode(&instance.data_dir().join("neon.conf")), 0o600);
    let hba = std::fs::read_to_string(instance.data_dir().join("pg_hba.conf")).unwrap();
    let rules = hba
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    for rule in rules {
        assert!(rule.ends_with("scram-sha-256"), "{rule}");
    }
    // Nothing but the instance is left in the folder.
    let names: Vec<_> = std::fs::read_dir(fixture.scratch.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(names, ["pg"]);
    assert_eq!(std::fs::read_dir(fixture.dir()).unwrap().count(), 4);
}

async fn check_settings(instance: &Instance, major: PgMajor) {
    let show = async |name: &str| query(instance, &format!("SHOW {name}")).await;
    assert_eq!(show("server_encoding").await, "UTF8");
    assert_eq!(show("data_checksums").await, "on");
    assert_eq!(show("wal_keep_size").await, "512MB");
    assert_eq!(show("archive_mode").await, "off");
    assert_eq!(show("password_encryption").await, "scram-sha-256");
    assert_eq!(query(instance, "SELECT upper('ä')").await, "Ä");
    if major >= PgMajor::V17 {
        assert_eq!(show("summarize_wal").await, "on");
    }
    let online = instance.online_settings().await.unwrap();
    let keep = online
        .iter()
        .find(|setting| setting.name == "wal_keep_size")
        .unwrap();
    assert_eq!(
        (keep.value.as_str(), keep.unit.as_deref()),
        ("512", Some("MB"))
    );
    assert!(
        keep.file.as_ref().unwrap().contains("neon.conf"),
        "{keep:?}"
    );
}

/// The password in the pass file is the right one, over TCP and over the socket, and no other is.
async fn check_password(instance: &Instance, started: &Started) {
    use neon_pgwire::{Client, Config, Params, Surroundings};
    let attempt = async |host: &str, password: &str| {
        let mut params = Params::new();
        for (name, value) in [
            ("host", host),
            ("port", &started.port.to_string()),
            ("user", "postgres"),
            ("dbname", "postgres"),
            ("sslmode", "disable"),
            ("password", password),
        ] {
            params.set(name, value).unwrap();
        }
        let config = Config::resolve(&params, &Surroundings::none()).unwrap();
        Client::connect(&config).await
    };
    let line = std::fs::read_to_string(instance.pass_file().unwrap()).unwrap();
    let password = line.trim_end().rsplit(':').next().unwrap();
    assert_eq!(password.len(), 32);
    let socket = instance.socket_dir().to_str().unwrap();
    for host in ["127.0.0.1", socket] {
        attempt(host, password).await.unwrap();
        let refused = attempt(host, "wrong").await.unwrap_err();
        assert_eq!(refused.sqlstate(), Some("28P01"), "{host}");
    }
}

pub(crate) fn kill(pid: i32) {
    let status = std::process::Command::new("/bin/kill")
        .args(["-KILL", &pid.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// The server has all groups of its user: a key may be readable for one of them only.
#[test]
fn a_server_has_the_groups_of_its_user() {
    run(async {
        let fixture = Fixture::new(PgMajor::V15).await;
        let started = fixture.instance.start(&start_options()).await.unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Groups:"))
            .unwrap();
        let mut groups: Vec<u32> = line
            .split_whitespace()
            .map(|gid| gid.parse().unwrap())
            .collect();
        let user = fixture.instance.os_user();
        groups.push(user.gid());
        let told = succeed(std::process::Command::new("id").args(["-G", user.name().unwrap()]));
        for gid in told.split_whitespace() {
            assert!(
                groups.contains(&gid.parse().unwrap()),
                "{gid} is missing in {groups:?}"
            );
        }
        fixture
            .instance
            .stop(&StopOptions::default())
            .await
            .unwrap();
    });
}
