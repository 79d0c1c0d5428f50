//! A process that is killed while it clones: the clone is there or not, and what is left can be swept.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use neon_cowfs::{Method, clone_tree, create_dir, sweep};
use tempfile::tempdir;

use crate::mounts::{btrfs, with_mounts};
use crate::support::{assert_equal, make_source, only, rubbish, this_test};

const DIE: &str = "NEON_COWFS_DIE";

/// Clones from `source` to `clone` in this folder and dies at the event of this number.
fn die(told: &str) {
    let mut told = told.split(',');
    let (folder, method) = (Path::new(told.next().unwrap()), told.next().unwrap());
    let at = Mutex::new(told.next().unwrap().parse::<u64>().unwrap());
    let options = only(method.parse().unwrap()).on_event(move |_| {
        let mut at = at.lock().unwrap();
        if *at == 0 {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
            loop {
                std::thread::park();
            }
        }
        *at -= 1;
    });
    clone_tree(&folder.join("source"), &folder.join("clone"), &options).unwrap();
}

fn kill_at_events(test: &str, folder: &Path, method: Method, events: &[u64]) {
    let (source, target) = (folder.join("source"), folder.join("clone"));
    create_dir(&source, 0o700).unwrap();
    make_source(&source);
    let mut survived = false;
    for at in events {
        let told = format!("{},{method},{at}", folder.display());
        let output = this_test(test).env(DIE, told).output().unwrap();
        survived = output.status.success();
        assert_eq!(target.exists(), survived, "event {at}");
        if !survived {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(
                output.status.signal(),
                Some(9),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let swept = sweep(folder).unwrap();
            // At the first event there was only a list.
            assert_eq!(swept.len(), usize::from(*at > 1), "event {at}: {swept:?}");
        }
        assert_eq!(rubbish(folder), [] as [&Path; 0]);
        assert_eq!(
            fs::read_dir(folder).unwrap().count(),
            if survived { 2 } else { 1 }
        );
    }
    assert!(survived, "no event was late enough");
    assert_equal(&source, &target);
}

#[test]
fn a_copy_that_is_killed_leaves_no_clone_and_is_swept() {
    if let Ok(told) = std::env::var(DIE) {
        return die(&told);
    }
    let scratch = tempdir().unwrap();
    let test = "killed::a_copy_that_is_killed_leaves_no_clone_and_is_swept";
    kill_at_events(
        test,
        scratch.path(),
        Method::Copy,
        &[0, 1, 2, 50, 150, 210, 1000],
    );
}

#[test]
fn a_snapshot_that_is_killed_leaves_no_clone_and_is_swept() {
    if let Ok(told) = std::env::var(DIE) {
        return die(&told);
    }
    with_mounts(|| {
        let test = "killed::a_snapshot_that_is_killed_leaves_no_clone_and_is_swept";
        kill_at_events(test, &btrfs(), Method::Subvolume, &[0, 1, 2, 3, 1000]);
    });
}
