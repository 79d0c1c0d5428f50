//! Scoped servers: they end with their guard, and with the process that holds it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::lifecycle::kill;
use super::support::*;

/// Where the processes that this test starts and kills put their instances.
const FOLDER: &str = "NEON_PGCTL_SCOPE_FOLDER";

#[test]
fn a_scoped_server_ends_with_its_guard_and_a_temporary_one_leaves_nothing() {
    run(async {
        for major in PgMajor::ALL {
            let scratch = Scratch::new();
            let installation = installation(major);
            let server = ScopedServer::temporary(
                &installation,
                scratch.path(),
                &create_options(),
                &start_options(),
            )
            .await
            .unwrap();
            let pid = server.started().pid;
            assert!(server.is_alive());
            assert_eq!(server.password().unwrap().len(), 32);
            assert_eq!(query(server.instance(), "SELECT 1").await, "1");
            drop(server);
            assert!(!is_alive(pid));
            assert!(postgres_in(scratch.path()).is_empty());
            assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
    });
}

#[test]
fn a_scoped_server_that_keeps_its_data_is_shut_down_cleanly_and_restarts_after_a_crash() {
    run(async {
        let fixture = Fixture::new(PgMajor::V17).await;
        let instance = &fixture.instance;
        let mut server = instance.start_scoped(&start_options()).await.unwrap();
        query(instance, "CREATE UNLOGGED TABLE t AS SELECT 1 AS x").await;
        server.restart(StopMode::Fast).await.unwrap();
        assert_eq!(query(instance, "SELECT count(*) FROM t").await, "1");
        kill(server.started().pid);
        until("the crash is seen", || !server.is_alive()).await;
        server.restart(StopMode::Fast).await.unwrap();
        assert_eq!(query(instance, "SELECT count(*) FROM t").await, "0");
        drop(server);
        assert_eq!(instance.status().await.unwrap().state, ServerState::Stopped);
        let server = instance.start_scoped(&start_options()).await.unwrap();
        server.stop(StopMode::Immediate);
        assert_eq!(instance.status().await.unwrap().state, ServerState::Crashed);
    });
}

/// Started by the next test in a process of its own, which is killed. Alone it holds a server for a moment.
#[test]
fn a_process_that_holds_a_temporary_server() {
    run(async {
        let scratch;
        let folder = match std::env::var_os(FOLDER) {
            Some(folder) => std::path::PathBuf::from(folder),
            None => {
                scratch = Scratch::new();
                scratch.path().to_owned()
            }
        };
        let held = std::env::var_os(FOLDER).is_some();
        let installation = installation(PgMajor::V16);
        let options = create_options();
        let start = start_options();
        let server = ScopedServer::temporary(&installation, &folder, &options, &start)
            .await
            .unwrap();
        println!("\nholding {}", server.started().pid);
        if held {
            // Until it is killed; a test run that was abandoned does not hold it for ever.
            std::thread::sleep(PATIENCE);
        }
    });
}

#[test]
fn a_scoped_server_ends_when_its_host_is_killed() {
    run(async {
        let scratch = Scratch::new();
        let mut command = this_program("scope::a_process_that_holds_a_temporary_server");
        let mut host = command
            .env(FOLDER, scratch.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
        let pid = lines.find_map(|line| {
            line.unwrap()
                .strip_prefix("holding ")
                .and_then(|pid| pid.parse::<i32>().ok())
        });
        let pid = pid.expect("the process tells its server");
        assert!(is_alive(pid));
        host.kill().unwrap();
        host.wait().unwrap();
        until("the server is gone", || !is_alive(pid)).await;
        until("all its processes are gone", || {
            postgres_in(scratch.path()).is_empty()
        })
        .await;
        until("its folder is gone", || {
            std::fs::read_dir(scratch.path()).unwrap().count() == 0
        })
        .await;
    });
}

/// The process that a server is the child of.
fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after) = stat.rsplit_once(')').unwrap();
    after.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_scoped_server_ends_with_its_guard_also_when_its_guardian_was_killed() {
    run(async {
        let scratch = Scratch::new();
        let installation = installation(PgMajor::V15);
        let server = ScopedServer::temporary(
            &installation,
            scratch.path(),
            &create_options(),
            &start_options(),
        )
        .await
        .unwrap();
        let pid = server.started().pid;
        kill(parent_of(pid));
        until("it has lost its guardian", || {
            !command_of(parent_of(pid)).contains("guardian")
        })
        .await;
        assert_eq!(query(server.instance(), "SELECT 1").await, "1");
        drop(server);
        assert!(!is_alive(pid));
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);

        let fixture = Fixture::new(PgMajor::V15).await;
        let instance = &fixture.instance;
        let mut server = instance.start_scoped(&start_options()).await.unwrap();
        kill(parent_of(server.started().pid));
        server.restart(StopMode::Fast).await.unwrap();
        kill(parent_of(server.started().pid));
        drop(server);
        let status = instance.status().await.unwrap();
        assert_eq!(status.state, ServerState::Stopped, "not shut down cleanly");
    });
}

fn command_of(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Everything at once, as when a container is ended: only the server lives on, in no case for ever.
#[test]
fn what_a_killed_host_and_guardian_left_goes_at_the_next_use_and_what_is_held_stays() {
    run(async {
        let scratch = Scratch::new();
        let mut hosts = Vec::new();
        for _ in 0..2 {
            let mut command = this_program("scope::a_process_that_holds_a_temporary_server");
            let mut host = command
                .env(FOLDER, scratch.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(host.stdout.take().unwrap()).lines();
            let pid = lines.find_map(|line| {
                let line = line.unwrap();
                line.strip_prefix("holding ")?.parse::<i32>().ok()
            });
            hosts.push((host, pid.unwrap(), lines));
        }
        // Neither of the two took the other's folder away.
        let folders = || std::fs::read_dir(scratch.path()).unwrap().count();
        assert_eq!(folders(), 2);
        let (mut host, pid, _) = hosts.remove(0);
        kill(parent_of(pid));
        host.kill().unwrap();
        host.wait().unwrap();
        assert!(is_alive(pid));
        // What is no instance of ours stays as well.
        std::fs::write(scratch.path().join("neon-temporary-file"), "").unwrap();

        let server = ScopedServer::temporary(
            &installation(PgMajor::V16),
            scratch.path(),
            &create_options(),
            &start_options(),
        )
        .await
        .unwrap();
        assert!(!is_alive(pid), "the orphan is ended");
        assert_eq!(folders(), 3);
        assert_eq!(query(server.instance(), "SELECT 1").await, "1");
        drop(server);
        let (mut host, pid, _) = hosts.remove(0);
        assert!(is_alive(pid), "the server of a host that lives");
        assert_eq!(folders(), 2);
        host.kill().unwrap();
        host.wait().unwrap();
        until("its folder is gone", || folders() == 1).await;
    });
}
