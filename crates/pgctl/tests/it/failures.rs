//! Starts that fail: each cause is its own kind, with the lines that tell it, and nothing is left running.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::lifecycle::kill;
use super::support::*;

/// Any major would do; these are spread over all of them.
async fn refused(instance: &Instance, kind: ErrorKind) -> Error {
    let error = instance
        .start(&start_options())
        .await
        .expect_err("a start that must fail");
    assert_eq!(error.kind(), kind, "{error:?}");
    let left = postgres_in(instance.data_dir());
    assert!(left.is_empty(), "{left:?} still run");
    error
}

#[test]
fn a_port_that_somebody_else_has_is_named_and_an_instance_without_one_takes_another() {
    run(async {
        for (n, major) in PgMajor::ALL.into_iter().enumerate() {
            for address in ["127.0.0.1:0", "[::1]:0"].into_iter().skip(n % 2).take(1) {
                let Ok(somebody) = TcpListener::bind(address) else {
                    continue;
                };
                let port = somebody.local_addr().unwrap().port();
                let fixture = Fixture::new(major).await;
                let instance = &fixture.instance;
                // No choice.
                let fixed = StartOptions::new().with_port(PortChoice::Fixed(port));
                let error = instance.start(&fixed).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PortInUse, "{error:?}");
                assert!(error.hint().is_some());
                assert!(postgres_in(instance.data_dir()).is_empty());
                // A choice, of which this port is the first.
                let free = PortChoice::Free {
                    range: port..=port.saturating_add(50),
                    avoid: Vec::new(),
                };
                let started = instance
                    .start(&StartOptions::new().with_port(free))
                    .await
                    .unwrap();
                assert_ne!(started.port, port);
                instance.stop(&StopOptions::default()).await.unwrap();
                // Its own now, so that it is not exchanged for another.
                let Ok(_taken) = TcpListener::bind(("127.0.0.1", started.port)) else {
                    continue;
                };
                refused(instance, ErrorKind::PortInUse).await;
            }
        }
    });
}

#[test]
fn a_wrong_mode_and_a_wrong_owner_are_told_before_anything_runs() {
    run(async {
        for major in PgMajor::ALL {
            wrong_modes_and_owners(major).await;
        }
    });
}

async fn wrong_modes_and_owners(major: PgMajor) {
    let fixture = Fixture::new(major).await;
    let instance = &fixture.instance;
    let mode = |mode| {
        fs::set_permissions(instance.data_dir(), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o755);
    let error = refused(instance, ErrorKind::Permissions).await;
    assert!(error.hint().unwrap().contains("chmod 0700"));
    mode(0o700);
    if we_are_root() {
        let user = instance.os_user().clone();
        std::os::unix::fs::chown(instance.data_dir(), Some(0), Some(0)).unwrap();
        let as_root = Instance::at(
            instance.installation(),
            instance.data_dir(),
            instance.log_dir(),
            instance.socket_dir(),
        )
        .unwrap();
        let error = refused(&as_root, ErrorKind::WrongOwner).await;
        assert!(error.reason().contains("root"), "{error}");
        std::os::unix::fs::chown(instance.data_dir(), Some(user.uid()), Some(user.gid())).unwrap();
        let control = instance.data_dir().join("global/pg_control");
        std::os::unix::fs::chown(&control, Some(0), Some(0)).unwrap();
        refused(instance, ErrorKind::WrongOwner).await;
        std::os::unix::fs::chown(&control, Some(user.uid()), Some(user.gid())).unwrap();
        // Something below that only the server finds out.
        let version = instance.data_dir().join("base/1");
        std::os::unix::fs::chown(&version, Some(0), Some(0)).unwrap();
        std::os::unix::fs::chown(
            instance.data_dir().join("postgresql.conf"),
            Some(0),
            Some(0),
        )
        .unwrap();
        refused(instance, ErrorKind::Permissions).await;
    }
}

#[test]
fn what_is_no_data_directory_or_another_majors_is_refused() {
    run(async {
        let fixture = Fixture::new(PgMajor::V14).await;
        let dir = fixture.dir();
        let newer = installation(PgMajor::V18);
        let error = Instance::open(&newer, &dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongMajor);
        assert!(error.hint().unwrap().contains("14"));
        let error = Instance::open(&newer, fixture.scratch.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotACluster);
        // It says 18 and is not: the control file tells.
        let version = fixture.instance.data_dir().join("PG_VERSION");
        fs::write(&version, "18\n").unwrap();
        let lying = Instance::open(&newer, &dir).unwrap();
        refused(&lying, ErrorKind::WrongMajor).await;
        fs::write(&version, "12\n").unwrap();
        let error = Instance::open(&newer, &dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongMajor);
        fs::write(&version, "14\n").unwrap();
        let control = fixture.instance.data_dir().join("global/pg_control");
        let mut bytes = fs::read(&control).unwrap();
        bytes[100] ^= 1;
        fs::write(&control, &bytes).unwrap();
        refused(&fixture.instance, ErrorKind::Corrupt).await;
        fs::remove_file(&control).unwrap();
        refused(&fixture.instance, ErrorKind::Corrupt).await;
    });
}

#[test]
fn bad_settings_and_missing_libraries_are_named() {
    run(async {
        for major in PgMajor::ALL {
            let fixture = Fixture::new(major).await;
            let instance = &fixture.instance;
            let conf = instance.data_dir().join("postgresql.conf");
            let good = fs::read_to_string(&conf).unwrap();
            for (line, kind, named) in [
                (
                    "no_such_parameter = 1",
                    ErrorKind::BadSetting,
                    "no_such_parameter",
                ),
                ("work_mem = much", ErrorKind::BadSetting, "work_mem"),
                ("work_mem = 'open", ErrorKind::BadSetting, "postgresql.conf"),
                (
                    "include '/nonexistent/x.conf'",
                    ErrorKind::BadSetting,
                    "/nonexistent/x.conf",
                ),
                (
                    "hba_file = '/nonexistent/hba'",
                    ErrorKind::BadSetting,
                    "hba",
                ),
                (
                    "shared_preload_libraries = 'no_such_library'",
                    ErrorKind::MissingLibrary,
                    "no_such_library",
                ),
                (
                    "shared_buffers = 60000GB\nhuge_pages = off",
                    ErrorKind::BadSetting,
                    "shared_buffers",
                ),
                (
                    "shared_buffers = 8000GB\nhuge_pages = off",
                    ErrorKind::OutOfMemory,
                    "memory",
                ),
                (
                    "log_directory = '/proc/nonexistent'",
                    ErrorKind::BadSetting,
                    "/proc/nonexistent",
                ),
            ] {
                fs::write(&conf, format!("{good}\n{line}\n")).unwrap();
                let error = refused(instance, kind).await;
                let told = error.log().join("\n");
                assert!(told.contains(named), "{line}: {error:?}");
            }
            fs::write(&conf, &good).unwrap();
            instance.start(&start_options()).await.unwrap();
            instance.stop(&StopOptions::default()).await.unwrap();
        }
    });
}

/// A number that another process has now: of the same user, where PostgreSQL itself refuses.
#[test]
fn a_pid_file_whose_number_was_taken_by_another_process_does_not_hinder() {
    run(async {
        for major in [PgMajor::V13, PgMajor::V15, PgMajor::V18] {
            let fixture = Fixture::new(major).await;
            let instance = &fixture.instance;
            let started = instance.start(&start_options()).await.unwrap();
            let pid_file = instance.data_dir().join("postmaster.pid");
            let text = fs::read_to_string(&pid_file).unwrap();
            kill(started.pid);
            until("it is gone", || !is_alive(started.pid)).await;
            let mut command = Command::new("sleep");
            command.arg("600");
            as_server_user(&mut command);
            let mut other = command.spawn().unwrap();
            let taken = text.replacen(&started.pid.to_string(), &other.id().to_string(), 1);
            fs::write(&pid_file, taken).unwrap();
            assert_eq!(instance.status().await.unwrap().state, ServerState::Crashed);
            let again = instance.start(&start_options()).await.unwrap();
            assert_ne!(again.pid, started.pid);
            assert!(
                other.try_wait().unwrap().is_none(),
                "the other process was ended"
            );
            other.kill().unwrap();
            other.wait().unwrap();
            // An empty one, as a crash of the machine leaves.
            instance.stop(&StopOptions::default()).await.unwrap();
            fs::write(&pid_file, "").unwrap();
            instance.start(&start_options()).await.unwrap();
            instance.stop(&StopOptions::default()).await.unwrap();
        }
    });
}

/// Two clusters whose servers were killed; then the number of the one is the other's server.
#[test]
fn a_pid_file_whose_number_another_server_has_now_does_not_hinder() {
    run(async {
        for major in [PgMajor::V15, PgMajor::V18] {
            let (first, second) = (Fixture::new(major).await, Fixture::new(major).await);
            let instance = &first.instance;
            let started = instance.start(&start_options()).await.unwrap();
            let pid_file = instance.data_dir().join("postmaster.pid");
            let text = fs::read_to_string(&pid_file).unwrap();
            kill(started.pid);
            until("it is gone", || !is_alive(started.pid)).await;
            let PortChoice::Free { range, .. } = own_ports() else {
                panic!("a range")
            };
            let elsewhere = PortChoice::Free {
                range,
                avoid: vec![started.port],
            };
            let options = StartOptions::new().with_port(elsewhere);
            let other = second.instance.start(&options).await.unwrap();
            let taken = text.replacen(&started.pid.to_string(), &other.pid.to_string(), 1);
            fs::write(&pid_file, taken).unwrap();
            assert_eq!(instance.status().await.unwrap().state, ServerState::Crashed);
            let error = instance.stop(&StopOptions::default()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotRunning);
            instance.start(&start_options()).await.unwrap();
            assert_eq!(query(&second.instance, "SELECT 1").await, "1");
            for instance in [instance, &second.instance] {
                instance.stop(&StopOptions::default()).await.unwrap();
            }
        }
    });
}

/// Root in a container: it may not look into processes of others.
fn again_without_the_right_to_look_into_processes(test: &str) {
    let program = this_program(test);
    let mut command = Command::new(program.get_program());
    if we_are_root() {
        command = Command::new("setpriv");
        command
            .args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--"])
            .arg(program.get_program());
    }
    command.args(program.get_args()).env_remove("NEXTEST");
    let text = succeed(&mut command);
    assert!(text.contains("1 passed"), "{test}: {text}");
}

#[test]
fn another_servers_number_is_recognised_without_the_right_to_look_into_processes() {
    again_without_the_right_to_look_into_processes(
        "failures::a_pid_file_whose_number_another_server_has_now_does_not_hinder",
    );
}

#[test]
fn another_processes_number_is_recognised_without_the_right_to_look_into_processes() {
    again_without_the_right_to_look_into_processes(
        "failures::a_pid_file_whose_number_was_taken_by_another_process_does_not_hinder",
    );
}

#[test]
fn an_instance_lives_without_the_right_to_look_into_processes() {
    again_without_the_right_to_look_into_processes("lifecycle::an_instance_of_15_lives");
}

const STARTED: &str = "NEON_PGCTL_STARTED";

/// What the next test runs ten of.
#[test]
fn a_process_that_starts_what_another_may_start_too() {
    let Some(dir) = std::env::var_os(STARTED) else {
        return;
    };
    run(async {
        let instance = Instance::open(&installation(PgMajor::V16), dir).unwrap();
        match instance.start(&start_options()).await {
            Ok(started) => println!("\nstarted {}", started.pid),
            Err(error) if error.kind() == ErrorKind::AlreadyRunning => println!("\nrunning"),
            Err(error) => panic!("{error:?}"),
        }
    });
}

#[test]
fn of_ten_processes_that_start_over_a_stale_pid_file_at_once_one_does() {
    run(async {
        let fixture = Fixture::new(PgMajor::V16).await;
        let instance = &fixture.instance;
        let pid_file = instance.data_dir().join("postmaster.pid");
        for round in 0..4 {
            let started = instance.start(&start_options()).await.unwrap();
            let text = fs::read_to_string(&pid_file).unwrap();
            kill(started.pid);
            until("it is gone", || postgres_in(instance.data_dir()).is_empty()).await;
            let mut command = Command::new("sleep");
            command.arg("600");
            as_server_user(&mut command);
            let mut other = command.spawn().unwrap();
            let taken = text.replacen(&started.pid.to_string(), &other.id().to_string(), 1);
            fs::write(&pid_file, taken).unwrap();

            let starters: Vec<_> = (0..10)
                .map(|_| {
                    this_program("failures::a_process_that_starts_what_another_may_start_too")
                        .env(STARTED, fixture.dir())
                        .stdout(std::process::Stdio::piped())
                        .stderr(std::process::Stdio::piped())
                        .spawn()
                        .unwrap()
                })
                .collect();
            let mut servers = Vec::new();
            for starter in starters {
                let output = starter.wait_with_output().unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "round {round}: {text}{errors}");
                servers.extend(
                    text.lines()
                        .filter_map(|line| line.strip_prefix("started ")?.parse::<i32>().ok()),
                );
            }
            assert_eq!(servers.len(), 1, "round {round}: {servers:?}");
            assert_eq!(instance.status().await.unwrap().pid, servers.pop());
            assert_eq!(query(instance, "SELECT 1").await, "1");
            other.kill().unwrap();
            other.wait().unwrap();
            instance.stop(&StopOptions::default()).await.unwrap();
        }
    });
}

/// While processes of a dead server still work in the directory, there is no second one.
#[test]
fn rests_of_a_dead_server_are_waited_for() {
    run(async {
        let fixture = Fixture::new(PgMajor::V17).await;
        let instance = &fixture.instance;
        let started = instance.start(&start_options()).await.unwrap();
        let backends = postgres_in(instance.data_dir());
        let stuck = *backends.iter().find(|pid| **pid != started.pid).unwrap();
        // A process that does not notice that its server has died.
        signal("-STOP", stuck);
        kill(started.pid);
        until("it is gone", || !is_alive(started.pid)).await;
        let start = std::time::Instant::now();
        let options = start_options();
        let mut second = Box::pin(instance.start(&options));
        // As long as the launcher of autovacuum of 13 and 14 may wait for statistics that nobody collects any more.
        let early = tokio::time::timeout(std::time::Duration::from_secs(17), &mut second).await;
        assert!(
            early.is_err(),
            "started beside a process of the dead server after {:?}",
            start.elapsed()
        );
        signal("-CONT", stuck);
        second.await.unwrap();
        assert!(!is_alive(stuck));
        instance.stop(&StopOptions::default()).await.unwrap();
    });
}

fn signal(name: &str, pid: i32) {
    assert!(
        Command::new("/bin/kill")
            .args([name, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_server_that_does_not_stop_is_told_and_escalated_when_asked() {
    run(async {
        let fixture = Fixture::new(PgMajor::V16).await;
        let instance = &fixture.instance;
        let started = instance.start(&start_options()).await.unwrap();
        let client = instance.connect("postgres").await.unwrap();
        let short = std::time::Duration::from_millis(300);
        let smart = StopOptions::new(StopMode::Smart).with_deadline(short);
        let error = instance.stop(&smart).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(is_alive(started.pid));
        let stopped = instance
            .stop(&smart.with_deadline(PATIENCE / 40).with_escalation())
            .await
            .unwrap();
        assert!(stopped.mode > StopMode::Smart);
        drop(client);
        // One that hears nothing at all.
        let started = instance.start(&start_options()).await.unwrap();
        signal("-STOP", started.pid);
        let stopped = instance
            .stop(
                &StopOptions::default()
                    .with_deadline(short)
                    .with_escalation(),
            )
            .await
            .unwrap();
        assert_eq!((stopped.mode, stopped.clean), (StopMode::Immediate, false));
        assert!(!is_alive(started.pid));
        until("its processes are gone", || {
            postgres_in(instance.data_dir()).is_empty()
        })
        .await;
    });
}

#[test]
fn a_start_that_takes_too_long_is_ended() {
    run(async {
        let fixture = Fixture::new(PgMajor::V18).await;
        let options = start_options().with_deadline(std::time::Duration::ZERO);
        let error = fixture.instance.start(&options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(postgres_in(fixture.instance.data_dir()).is_empty());
    });
}

#[test]
fn a_socket_folder_that_is_too_deep_or_somebody_elses_is_refused_and_a_deep_instance_gets_a_short_one()
 {
    run(async {
        let scratch = Scratch::new();
        let deep = scratch.path().join("d".repeat(120));
        let instance = Instance::create(&installation(PgMajor::V15), &deep, &create_options())
            .await
            .unwrap();
        let started = instance.start(&start_options()).await.unwrap();
        let socket_dir = started.socket_dir.unwrap();
        assert!(
            socket_dir.as_os_str().len() < 60,
            "{}",
            socket_dir.display()
        );
        assert_eq!(query(&instance, "SELECT 1").await, "1");
        // Emptied as by a reboot, it is made again.
        instance.stop(&StopOptions::default()).await.unwrap();
        fs::remove_dir_all(&socket_dir).unwrap();
        instance.start(&start_options()).await.unwrap();
        instance.stop(&StopOptions::default()).await.unwrap();
        // What somebody else put there is not used.
        fs::remove_dir_all(&socket_dir).unwrap();
        std::os::unix::fs::symlink("/", &socket_dir).unwrap();
        refused(&instance, ErrorKind::SocketPath).await;
        fs::remove_file(&socket_dir).unwrap();
        let own = Instance::at(
            instance.installation(),
            instance.data_dir(),
            instance.log_dir(),
            deep.join("run"),
        )
        .unwrap();
        refused(&own, ErrorKind::SocketPath).await;
    });
}
