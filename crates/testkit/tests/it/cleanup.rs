//! Nothing is left of a cluster, however its test ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use neon_testkit::{Cluster, PgMajor, Scratch};

/// Set in the copy of this test program that is to be killed.
const VICTIM: &str = "NEON_TESTKIT_VICTIM";

fn victim(test: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(VICTIM, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The scratch folders that a process holds: the last argument of its guardians.
fn scratch_folders_of(process: &Child) -> Vec<PathBuf> {
    let parent = format!("PPid:\t{}\n", process.id());
    let processes = std::fs::read_dir("/proc").unwrap();
    let guardians = processes.flatten().filter(|entry| {
        std::fs::read_to_string(entry.path().join("status"))
            .is_ok_and(|status| status.contains(&parent))
    });
    guardians
        .filter_map(|entry| {
            let command_line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let words: Vec<&str> = command_line.trim_end_matches('\0').split('\0').collect();
            words
                .contains(&"neon-testkit-guardian")
                .then(|| PathBuf::from(words[words.len() - 1]))
        })
        .collect()
}

fn someone_works_in(folder: &Path) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
    })
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn expect_nothing_left(folders: &[PathBuf]) {
    for folder in folders {
        wait_until("the folder of a killed test is gone", || !folder.exists());
        wait_until("nobody works in it", || !someone_works_in(folder));
    }
}

#[test]
fn a_killed_test_process_leaves_neither_server_nor_folder() {
    if std::env::var_os(VICTIM).is_some() {
        let cluster = Cluster::builder(PgMajor::V16).start();
        let mut session = cluster.session("postgres");
        session.run("create temp table busy as select generate_series(1, 1000)");
        session.run("select pg_sleep(100000)");
        unreachable!("killed before");
    }
    let mut victim = victim("cleanup::a_killed_test_process_leaves_neither_server_nor_folder");
    wait_until("the victim's session is busy", || {
        scratch_folders_of(&victim).iter().any(|folder| {
            // The session's temporary table has been created.
            std::fs::read_dir(folder.join("data/base")).is_ok_and(|databases| {
                databases.flatten().any(|database| {
                    std::fs::read_dir(database.path()).is_ok_and(|mut files| {
                        files.any(|file| {
                            file.unwrap().file_name().to_string_lossy().starts_with('t')
                        })
                    })
                })
            })
        })
    });
    let folders = scratch_folders_of(&victim);
    assert_eq!(folders.len(), 1);
    assert!(someone_works_in(&folders[0]));
    victim.kill().unwrap();
    victim.wait().unwrap();
    expect_nothing_left(&folders);
}

#[test]
fn a_test_process_killed_while_it_makes_a_cluster_leaves_nothing() {
    if std::env::var_os(VICTIM).is_some() {
        for _ in 0..1000 {
            drop(
                Cluster::builder(PgMajor::V13)
                    .fresh_system_identifier()
                    .start(),
            );
        }
        unreachable!("killed before");
    }
    for delay in [50, 200, 400, 800, 1600] {
        let mut victim =
            victim("cleanup::a_test_process_killed_while_it_makes_a_cluster_leaves_nothing");
        wait_until("the victim begins", || {
            !scratch_folders_of(&victim).is_empty()
        });
        std::thread::sleep(Duration::from_millis(delay));
        // Stopped, so that its folders do not change between looking and killing.
        let pid = rustix::process::Pid::from_child(&victim);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let folders = scratch_folders_of(&victim);
        victim.kill().unwrap();
        victim.wait().unwrap();
        expect_nothing_left(&folders);
    }
}

#[test]
fn a_panicking_test_leaves_neither_server_nor_folder() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let cluster = Cluster::builder(PgMajor::V14).start();
        sender.send(cluster.scratch_dir().to_owned()).unwrap();
        cluster.psql("select 1 / 0");
    })
    .join();
    let message = panicked.unwrap_err();
    let message = message.downcast_ref::<String>().unwrap();
    assert!(message.contains("division by zero"), "{message}");
    let folder = receiver.recv().unwrap();
    assert!(!folder.exists());
    assert!(!someone_works_in(&folder));
}

#[test]
fn a_killed_server_leaves_no_shared_memory_behind() {
    let segments = || std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    let mut cluster = Cluster::builder(PgMajor::V15).start();
    let pid_file = std::fs::read_to_string(cluster.data_dir().join("postmaster.pid")).unwrap();
    let id = pid_file
        .lines()
        .nth(6)
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .to_owned();
    let listed = |id: &str| {
        segments()
            .lines()
            .any(|line| line.split_whitespace().nth(1) == Some(id))
    };
    assert!(listed(&id));
    cluster.kill9();
    drop(cluster);
    assert!(!listed(&id));
}

#[test]
fn scratch_folders_are_short_private_and_distinct() {
    let (one, two) = (Scratch::new(), Scratch::new());
    assert_ne!(one.path(), two.path());
    assert!(one.path().as_os_str().len() + "/s/.s.PGSQL.65535".len() < 107);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(one.path()).unwrap());
    assert_eq!(mode & 0o777, 0o700);
}
