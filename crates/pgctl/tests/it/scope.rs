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
