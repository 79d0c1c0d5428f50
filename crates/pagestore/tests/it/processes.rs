//! Real processes on one directory, or one bucket over HTTP: killed, and stopped past lease and grace, beside a collection in another one.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use neon_pagestore::{ErrorKind, OpenOptions, Repository};
use neon_storage::{Native, NativeOptions, Storage};
use neon_testkit::s3::{S3Server, S3ServerOptions};

use crate::files::{several, try_make};
use crate::stopped;
use crate::support::{read, try_write, write};

const ROLE: &str = "NEON_PAGESTORE_ROLE";
const PLACE: &str = "NEON_PAGESTORE_PLACE";
const GRACE: Duration = Duration::from_millis(800);

/// A directory, or the address of an S3 server.
#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Server(String),
}

impl Place {
    fn of(text: &str) -> Self {
        match text.starts_with("http://") {
            true => Self::Server(text.to_owned()),
            false => Self::Directory(text.into()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Directory(path) => path.to_str().unwrap().to_owned(),
            Self::Server(endpoint) => endpoint.clone(),
        }
    }

    async fn storage(&self) -> Arc<dyn Storage> {
        match self {
            Self::Directory(path) => {
                Arc::new(Native::open(path, NativeOptions::default()).unwrap())
            }
            Self::Server(endpoint) => stopped::bucket(endpoint).await,
        }
    }

    fn options(&self) -> OpenOptions {
        match self {
            Self::Directory(_) => OpenOptions::new().grace(GRACE),
            Self::Server(_) => stopped::options(),
        }
    }
}

async fn open(place: &Place) -> Repository {
    let storage = place.storage().await;
    Repository::open(storage, place.options()).await.unwrap()
}

/// A process of this test binary that runs [`acting_as_another_process`] in a role.
struct Process(Child);

impl Process {
    fn start(role: &str, place: &Place) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "processes::acting_as_another_process",
                "--nocapture",
            ])
            .env(ROLE, role)
            .env(PLACE, place.text())
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
    let repository = open(&Place::of(&place)).await;
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
                    // By the writer that programs use, and by one whose every call is known.
                    let committed = if number % 2 == 0 {
                        try_make(&repository, parent, &several(seed), &[&name]).await
                    } else {
                        try_write(&repository, parent, some, &[&name]).await
                    };
                    let Ok(committed) = committed else {
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
async fn all_is_whole(place: &Place) -> usize {
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

async fn make(place: &Place) {
    let storage = place.storage().await;
    let repository = Repository::init(storage, place.options()).await.unwrap();
    write(&repository, None, &[("kept", 1)], &["kept"]).await;
}

async fn directory() -> (tempfile::TempDir, Place) {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::Directory(directory.path().to_owned());
    make(&place).await;
    (directory, place)
}

/// Nobody works there any more; `pass` lets a grace pass twice.
async fn at_rest(place: &Place, pass: impl AsyncFn()) {
    let repository = open(place).await;
    for _ in 0..4 {
        // A machine that starves this one for longer than its lease sends it back to the beginning.
        while let Err(error) = repository.collect().await {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
        }
        pass().await;
    }
    let checked = repository.check(true).await.unwrap();
    assert!(checked.is_sound(), "{:?}", checked.findings);
    assert!(all_is_whole(place).await >= 1);
    let kept = repository.resolve("kept").await.unwrap();
    assert_eq!(read(&repository, kept).await.unwrap(), ["kept"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_collectors_are_killed_beside_each_other() {
    let (_directory, place) = directory().await;
    are_killed(&place, || ()).await;
    at_rest(&place, async || tokio::time::sleep(GRACE * 2).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_collectors_on_s3_are_killed_beside_each_other() {
    let server = S3Server::start(S3ServerOptions::default());
    let place = Place::Server(server.endpoint());
    make(&place).await;
    // Not for ever: a quarter of an hour hence, the server takes no requests of now.
    let rounds = AtomicU32::new(0);
    let pass = || {
        if rounds.fetch_add(1, Ordering::Relaxed) < 5 {
            server.advance(stopped::LATER);
        }
    };
    are_killed(&place, pass).await;
    at_rest(&place, async || server.advance(stopped::LATER)).await;
}

/// Whether to go on: for so long, and until some writer came to anything, however slow the machine is.
fn goes_on(begun: Instant, least: Duration, most: usize) -> bool {
    let elapsed = begun.elapsed();
    assert!(
        most > 1 || elapsed < Duration::from_secs(240),
        "no writer came to anything"
    );
    elapsed < least || most < 2
}

/// Kills all for a while, again and again; `pass` lets time pass while nobody works.
async fn are_killed(place: &Place, pass: impl Fn()) {
    let begun = Instant::now();
    let (mut dice, mut most, mut patience) = (7_u64, 0, 1);
    while goes_on(begun, Duration::from_secs(6), most) {
        let processes =
            ["writer", "writer", "collector", "collector"].map(|role| Process::start(role, place));
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(700 + (dice >> 33) % 700) * patience).await;
        drop(processes);
        most = most.max(all_is_whole(place).await);
        if most < 2 {
            // They were killed before they had begun.
            patience += 1;
        }
        pass();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_and_collectors_sleep_past_lease_and_grace_at_any_step() {
    use rustix::process::Signal;
    let (_directory, place) = directory().await;
    let processes =
        ["writer", "writer", "collector", "collector"].map(|role| Process::start(role, &place));
    let begun = Instant::now();
    let (mut dice, mut most) = (3_u64, 0);
    while goes_on(begun, Duration::from_secs(8), most) {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let sleeper = &processes[(dice >> 33) as usize % processes.len()];
        tokio::time::sleep(Duration::from_millis(50 + (dice >> 40) % 200)).await;
        sleeper.signal(Signal::STOP);
        tokio::time::sleep(GRACE * 2 + GRACE / 2).await;
        sleeper.signal(Signal::CONT);
        most = most.max(all_is_whole(&place).await);
    }
    drop(processes);
    at_rest(&place, async || tokio::time::sleep(GRACE * 2).await).await;
}
