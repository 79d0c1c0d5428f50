//! A restore over a directory that is there, killed before every system call with which it changes anything: what is left
//! cannot be started, or is what it was, or is done; and a second restore brings it to the exact snapshot.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, RestorePlan};
use neon_pagestore::{CommitId, OpenOptions, Repository};
use neon_pg_layout::PgMajor;
use neon_snapshot_format::pgdata::{DirectoryOptions, ExistingDirectory, Flush, Ownership};
use neon_storage::{Native, NativeOptions};
use neon_testkit::{Cluster, Scratch, StopMode, tree};

use crate::clusters::{beside, copy_cold, repository, snapshot};
use crate::files::reader;
use crate::stopped::steps;

const MAJOR: PgMajor = PgMajor::V16;
const CONTROL: &str = "global/pg_control";
const TASK: &str = "NEON_PAGESTORE_CUT";

/// Every system call that changes a file, a name or an attribute, or makes it durable.
const CALLS: [&str; 20] = [
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "ftruncate",
    "fallocate",
    "copy_file_range",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "utimensat",
    "fsync",
    "fdatasync",
    "syncfs",
    "mkdirat",
    "symlinkat",
    "renameat",
    "renameat2",
    "unlinkat",
];

/// How the child is to restore: after comparing content, or the map of what is there.
async fn turn(place: &Path, to: CommitId, from: Option<CommitId>, data: PathBuf) {
    let storage = Native::open(place, NativeOptions::default()).unwrap();
    let repository = Repository::open(Arc::new(storage), OpenOptions::new())
        .await
        .unwrap();
    let maps = reader(&repository);
    let to = Snapshot::open(&repository, to, &maps).await.unwrap();
    let from = match from {
        Some(id) => Some(Snapshot::open(&repository, id, &maps).await.unwrap()),
        None => None,
    };
    beside(move || {
        let directory = ExistingDirectory::open(&data, MAJOR).unwrap();
        // One thread, so that every run makes the same calls.
        let options = RestoreOptions {
            threads: 1,
            ..RestoreOptions::default()
        };
        let plan = match from {
            None => RestorePlan::by_content(&to, &directory, &|_| false, &options),
            Some(from) => RestorePlan::by_map(&to, &from, None, &directory, &|_| false, &options),
        };
        let writing = DirectoryOptions {
            ownership: Ownership::Recorded,
            flush: Flush::FileSystem,
            ..DirectoryOptions::default()
        };
        plan.unwrap()
            .execute(&to, directory, writing, &options)
            .unwrap();
    })
    .await;
}

/// What the process does that is killed. Started by the tests of this module; by itself there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn acting_as_the_process_that_is_cut() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let words: Vec<&str> = task.split('|').collect();
    let [place, to, from, data] = words[..] else {
        panic!("{task}");
    };
    turn(
        Path::new(place),
        to.parse().unwrap(),
        from.parse().ok(),
        data.into(),
    )
    .await;
}

fn copied(from: &Path, to: &Path) {
    let _there_or_not = fs::remove_dir_all(to);
    let done = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.unwrap().success());
}

/// A copy of a stopped cluster with only a few of its files, so that it can be restored very often.
fn trimmed(cluster: &Cluster, to: &Path) -> PathBuf {
    copied(&cluster.data_dir(), to);
    fs::remove_dir_all(to.join("base/4")).unwrap();
    for folder in ["global", "base/1", "base/5", "pg_wal"] {
        for entry in fs::read_dir(to.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let kept = [
                "PG_VERSION",
                "pg_control",
                "pg_filenode.map",
                "1259",
                "1259_fsm",
                "112",
            ];
            let made_later = name.len() == 5 && name.starts_with("16");
            if path.is_file() && !kept.contains(&name.as_str()) && !made_later {
                fs::remove_file(path).unwrap();
            }
        }
    }
    to.to_owned()
}

struct Scene {
    scratch: Scratch,
    first: CommitId,
    second: CommitId,
}

impl Scene {
    /// Two snapshots of a cluster, and a directory that holds each.
    async fn new() -> Self {
        let mut cluster = Cluster::builder(MAJOR).checksums(true).start();
        cluster.psql("create table gone as select 1 i; create table kept as select 1 i");
        cluster.stop(StopMode::Fast);
        let scratch = Scratch::new();
        let repository = repository(&scratch.path().join("repository")).await;
        let maps = reader(&repository);
        let before = trimmed(&cluster, &scratch.path().join("first"));
        let first = snapshot(&repository, None, copy_cold(before.clone())).await;
        cluster.start();
        cluster.psql("drop table gone; create table new as select generate_series(1, 2000) i");
        cluster.psql("insert into kept select generate_series(1, 1000)");
        cluster.stop(StopMode::Fast);
        let after = trimmed(&cluster, &scratch.path().join("second"));
        fs::create_dir(after.join("base/1/pgsql")).unwrap();
        fs::write(after.join("base/1/pgsql/more"), [3; 100]).unwrap();
        let parent = Snapshot::open(&repository, first, &maps).await.unwrap();
        let second = snapshot(&repository, Some(&parent), copy_cold(after)).await;
        let scene = Self {
            scratch,
            first,
            second,
        };
        // Exactly what the snapshots hold, and no more.
        for (name, id) in [("first", first), ("second", second)] {
            scene.turn(id, &scene.path(name)).await;
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    async fn turn(&self, to: CommitId, data: &Path) {
        turn(&self.path("repository"), to, None, data.to_owned()).await;
    }

    /// Runs the restore in a process that is killed before the n-th call of this sort; false when it came to its end.
    fn cut(&self, from: Option<CommitId>, data: &Path, call: &str, n: u64) -> bool {
        let from = from.map_or(String::new(), |id| id.to_string());
        let place = self.path("repository");
        let task = format!(
            "{}|{}|{from}|{}",
            place.display(),
            self.second,
            data.display()
        );
        let status = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "signal=none"])
            .args(["-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:signal=SIGKILL:when={n}")])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "cut::acting_as_the_process_that_is_cut"])
            .env(TASK, task)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        // strace ends as what it traced.
        assert!(
            status.success() || std::os::unix::process::ExitStatusExt::signal(&status) == Some(9),
            "{status}"
        );
        !status.success()
    }

    /// Cuts a restore over what `start` holds everywhere, or at a third of all places.
    #[expect(clippy::print_stdout, reason = "how much was tried is the result")]
    async fn cut_everywhere(&self, start: &Path, from: Option<CommitId>) {
        let data = self.path("data");
        let (first, step) = steps(true);
        let (initial, done) = (tree(start), tree(&self.path("second")));
        let (mut cuts, mut broken) = (0, 0);
        for call in CALLS {
            for n in (1 + first..).step_by(step) {
                copied(start, &data);
                if !self.cut(from, &data, call, n) {
                    assert!(tree(&data) == done, "{call} {n}");
                    break;
                }
                let left = tree(&data);
                let whole = left == initial || left.get(CONTROL) == done.get(CONTROL);
                assert!(
                    whole || !left.contains_key(CONTROL),
                    "{call} {n}: may start"
                );
                if left != initial && left != done {
                    broken += 1;
                }
                self.turn(self.second, &data).await;
                assert!(tree(&data) == done, "{call} {n}: is not the snapshot");
                cuts += 1;
            }
        }
        println!("cut {cuts} times, {broken} in the middle");
        assert!(broken > 10, "{broken}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_by_content_is_cut_at_every_write_and_repeated() {
    let scene = Scene::new().await;
    let start = scene.path("start");
    copied(&scene.path("first"), &start);
    // And whatever else may have happened to it.
    fs::write(start.join("left over"), [1; 10_000]).unwrap();
    fs::create_dir_all(start.join("base/77/more")).unwrap();
    fs::write(start.join("base/77/more/1"), [1; 100]).unwrap();
    fs::remove_file(start.join("base/1/112")).unwrap();
    fs::write(start.join("base/5/1259"), [9; 8192]).unwrap();
    let mode = fs::Permissions::from_mode(0o640);
    fs::set_permissions(start.join("base/1/1259"), mode).unwrap();
    scene.cut_everywhere(&start, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_by_maps_is_cut_at_every_write_and_repeated_by_content() {
    let scene = Scene::new().await;
    let start = scene.path("first");
    scene.cut_everywhere(&start, Some(scene.first)).await;
}
