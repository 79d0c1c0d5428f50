//! Real processes on one directory: killed, and stopped past lease and grace, beside a collection in another one.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use neon_pagestore::{OpenOptions, Repository};
use neon_storage::{Native, NativeOptions, Storage};

use crate::support::{read, try_write, write};

const ROLE: &str = "NEON_PAGESTORE_ROLE";
const PLACE: &str = "NEON_PAGESTORE_PLACE";
const GRACE: Duration = Duration::from_millis(800);

fn storage(place: &Path) -> Arc<dyn Storage> {
    Arc::new(Native::open(place, NativeOptions::default()).unwrap())
}

async fn open(place: &Path) -> Repository {
    let options = OpenOptions::new().grace(GRACE);
    Repository::open(storage(place), options).await.unwrap()
}

/// A process of this test binary that runs [`acting_as_another_process`] in a role.
struct Process(Child);

impl Process {
    fn start(role: &str, place: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "processes::acting_as_another_process",
                "--nocapture",
            ])
            .env(ROLE, role)
            .env(PLACE, place)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What the other processes do. Started by the tests of this module; by itself there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acting_as_another_process() {
    let (Ok(role), Ok(place)) = (std::env::var(ROLE), std::env::var(PLACE)) else {
        return;
    };
    let repository = open(Path::new(&place)).await;
    for number in 0.. {
        let pid = std::process::id();
        match role.as_str() {
            // Chains of three, each destroyed when the next is there.
            "writer" => {
                let mut parent = None;
                for step in 0..3 {
                    let name = format!("pg{pid}@{number}-{step}");
                    let seed = u64::from(pid) * 1000 + number * 3 + step;
                    let files = [("a", seed), ("b", seed + 500)];
                    let some = if parent.is_some() {
                        &files[..1]
                    } else {
                        &files[..]
                    };
                    let Ok(committed) = try_write(&repository, parent, some, &[&name]).await else {
                        break;
                    };
                    if let Some(parent) = parent {
                        repository.destroy(parent).await.ok();
                    }
                    parent = Some(committed.id);
                }
            }
            "collector" => drop(repository.collect().await),
            other => panic!("{other}"),
        }
    }
}

/// Whatever is listed is whole, and nothing but garbage is left of those that are gone.
async fn all_is_whole(place: &Path) -> usize {
    let repository = open(place).await;
    let listed = repository.list().await.unwrap();
    let mut whole = 0;
    for snapshot in &listed {
        match read(&repository, snapshot.id).await {
            Ok(_) => whole += 1,
            // Destroyed and collected since it was listed.
            Err(error) => {
                let still = open(place).await.list().await.unwrap();
                assert!(
                    !still.iter().any(|other| other.id == snapshot.id),
                    "{error:?}"
                );
            }
        }
    }
    whole
}

async fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let options = OpenOptions::new().grace(GRACE);
    let repository = Repository::init(storage(place.path()), options)
        .await
        .unwrap();
    write(&repository, None, &[("kept", 1)], &["kept"]).await;
    place
}

async fn at_rest(place: &Path) {
    let repository = open(place).await;
    for _ in 0..4 {
        repository.collect().await.unwrap();
        tokio::time::sleep(GRACE * 2).await;
    }
    let checked = repository.check(true).await.unwrap();
    assert!(checked.is_sound(), "{:?}", checked.findings);
    assert!(all_is_whole(place).await >= 1);
    let kept = repository.resolve("kept").await.unwrap();
    assert_eq!(read(&repository, kept).await.unwrap(), ["kept"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_collectors_are_killed_beside_each_other() {
    let place = place().await;
    let begun = Instant::now();
    let (mut dice, mut most) = (7_u64, 0);
    while begun.elapsed() < Duration::from_secs(6) {
        let processes = ["writer", "writer", "collector", "collector"]
            .map(|role| Process::start(role, place.path()));
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(700 + (dice >> 33) % 700)).await;
        drop(processes);
        most = most.max(all_is_whole(place.path()).await);
    }
    assert!(most > 1, "no writer came to anything");
    at_rest(place.path()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_collectors_sleep_past_lease_and_grace_at_any_step() {
    use rustix::process::Signal;
    let place = place().await;
    let processes = ["writer", "writer", "collector", "collector"]
        .map(|role| Process::start(role, place.path()));
    let begun = Instant::now();
    let (mut dice, mut most) = (3_u64, 0);
    while begun.elapsed() < Duration::from_secs(8) {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let sleeper = &processes[(dice >> 33) as usize % processes.len()];
        tokio::time::sleep(Duration::from_millis(50 + (dice >> 40) % 200)).await;
        sleeper.signal(Signal::STOP);
        tokio::time::sleep(GRACE * 2 + GRACE / 2).await;
        sleeper.signal(Signal::CONT);
        most = most.max(all_is_whole(place.path()).await);
    }
    drop(processes);
    assert!(most > 1, "no writer came to anything");
    at_rest(place.path()).await;
}
