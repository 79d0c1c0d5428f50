//! Many processes at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::support::*;

/// What the processes of the test below create: a folder, and what their instance is called.
const JOB: &str = "NEON_PGCTL_CREATE";

const PROCESSES: usize = 20;

/// Run by the next test in twenty processes at once. Alone it does the same once.
#[test]
fn a_process_that_creates_and_starts_an_instance() {
    run(async {
        let scratch;
        let dir = match std::env::var_os(JOB) {
            Some(dir) => std::path::PathBuf::from(dir),
            None => {
                scratch = Scratch::new();
                scratch.path().join("pg")
            }
        };
        let major = PgMajor::ALL[std::process::id() as usize % PgMajor::ALL.len()];
        let instance = Instance::create(&installation(major), &dir, &create_options()).await;
        let instance = match instance {
            Ok(instance) => instance,
            // Several processes want the same folder: one of them gets it.
            Err(error) if error.kind() == ErrorKind::Exists => {
                println!("\nexists");
                return;
            }
            Err(error) => panic!("{error:?}"),
        };
        // All of them look from the same port on.
        let ports = PortChoice::Free {
            range: 9_000..=9_199,
            avoid: Vec::new(),
        };
        let started = instance
            .start(&StartOptions::new().with_port(ports))
            .await
            .unwrap();
        assert_eq!(query(&instance, "SELECT 1").await, "1");
        println!("\nport {}", started.port);
        if std::env::var_os(JOB).is_none() {
            instance.stop(&StopOptions::default()).await.unwrap();
        }
    });
}

fn start(dir: &Path) -> Child {
    let mut command: Command =
        this_program("concurrency::a_process_that_creates_and_starts_an_instance");
    command
        .env(JOB, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: Child) -> Option<u16> {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.lines()
        .find_map(|line| line.strip_prefix("port ")?.parse().ok())
}

#[test]
fn twenty_processes_create_and_start_instances_in_one_folder_at_once() {
    let scratch = Scratch::new();
    let children: Vec<Child> = (0..PROCESSES)
        .map(|n| start(&scratch.path().join(format!("pg{n}"))))
        .collect();
    let ports: BTreeSet<u16> = children.into_iter().filter_map(finish).collect();
    assert_eq!(
        ports.len(),
        PROCESSES,
        "every instance has a port of its own: {ports:?}"
    );
    let names = std::fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(names, PROCESSES, "nothing else is in the folder");
    stop_all(scratch.path());
}

#[test]
fn twenty_processes_that_create_the_same_instance_get_it_once() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("pg");
    let children: Vec<Child> = (0..PROCESSES).map(|_| start(&dir)).collect();
    let started = children.into_iter().filter_map(finish).count();
    assert_eq!(started, 1);
    let names = std::fs::read_dir(scratch.path()).unwrap().count();
    assert_eq!(names, 1, "nothing else is in the folder");
    stop_all(scratch.path());
}

#[test]
fn processes_create_instances_in_folders_of_their_own_at_once() {
    let scratches: Vec<Scratch> = (0..PROCESSES).map(|_| Scratch::new()).collect();
    let children: Vec<Child> = scratches
        .iter()
        .map(|scratch| start(&scratch.path().join("pg")))
        .collect();
    let ports: BTreeSet<u16> = children.into_iter().filter_map(finish).collect();
    assert_eq!(ports.len(), PROCESSES);
    for scratch in &scratches {
        stop_all(scratch.path());
    }
}

fn stop_all(folder: &Path) {
    run(async {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let version = std::fs::read_to_string(entry.path().join("data/PG_VERSION")).unwrap();
            let installation = installation(version.parse().unwrap());
            let instance = Instance::open(&installation, entry.path()).unwrap();
            let quick = StopOptions::new(StopMode::Immediate);
            instance.stop(&quick).await.unwrap();
        }
    });
}

/// The façade works from many threads of one process, inside and outside of a runtime.
#[test]
fn threads_create_and_start_instances_side_by_side_without_a_runtime() {
    let scratch = Scratch::new();
    std::thread::scope(|scope| {
        for n in 0..4_u16 {
            let dir = scratch.path().join(format!("pg{n}"));
            scope.spawn(move || {
                let installation = installation(PgMajor::V18);
                let instance =
                    blocking::Instance::create(&installation, dir, &create_options()).unwrap();
                let ports = PortChoice::Free {
                    // A stopped one must find its port free again.
                    range: 9_200 + n * 50..=9_249 + n * 50,
                    avoid: Vec::new(),
                };
                let started = instance
                    .start(&StartOptions::new().with_port(ports))
                    .unwrap();
                assert_eq!(instance.status().unwrap().pid, Some(started.pid));
                instance.reload().unwrap();
                let stop = StopOptions::default();
                instance.restart(&stop, &StartOptions::new()).unwrap();
                assert!(instance.stop(&stop).unwrap().clean);
                let server = instance.start_scoped(&StartOptions::new()).unwrap();
                // Inside of a runtime, where waiting is refused to ordinary code.
                run(async { assert!(instance.status().unwrap().is_up()) });
                server.stop(StopMode::Fast);
            });
        }
    });
}

#[test]
fn who_copies_a_stopped_cluster_is_refused_a_running_one_and_keeps_starters_out() {
    run(async {
        let fixture = Fixture::new(PgMajor::V18).await;
        let instance = &fixture.instance;
        let data = instance.data_dir();
        let quiet = Quiet::hold(data, PATIENCE).await.unwrap();
        quiet.check().unwrap();
        let options = StartOptions::new().with_deadline(std::time::Duration::from_secs(1));
        let started = instance.start(&options).await;
        assert_eq!(started.unwrap_err().kind(), ErrorKind::AlreadyRunning);
        drop(quiet);
        instance.start(&StartOptions::new()).await.unwrap();
        let refused = Quiet::hold(data, PATIENCE).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::AlreadyRunning);
        instance.stop(&StopOptions::default()).await.unwrap();
        Quiet::hold(data, PATIENCE).await.unwrap();
    });
}
