//! Two processes on one S3 bucket over HTTP, with nothing in common but it: one stops itself before one of its storage
//! calls, whichever it is, and sleeps past lease and grace, while the other collects to the end and commits. Whoever wakes
//! up either fails and says so, or did what it reports; nothing is lost, and nothing half done can be seen.
//!
//! The server's clock goes ahead while the process is stopped, so that a long grace costs no time and what runs on a slow
//! machine does not lapse by itself.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use neon_pagestore::crypt::KeySource;
use neon_pagestore::read::{DiskCache, FrameReaderOptions, MapReader, Snapshot};
use neon_pagestore::{CommitId, ErrorKind, OpenOptions, Pin, Repository};
use neon_storage::{
    Conditional, Faulty, Native, NativeOptions, S3, S3Config, S3Credentials, S3Keys, Storage,
};
use neon_testkit::s3::{S3Server, S3ServerOptions};
use rustix::process::{Pid, Signal, kill_process};

use crate::files::{noise, reader, several, try_make, try_make_by, try_restored};
use crate::support::{read, try_write, write};

const TASK: &str = "NEON_PAGESTORE_STOPPED";
/// Who is silent for half of it gives up, also on a machine so slow that it only seems to sleep.
pub(crate) const GRACE: Duration = Duration::from_secs(84);
/// More than a grace: times of S3 are whole seconds. When its clock is a quarter of an hour off, it takes no requests: up to
/// nine of these, and all that is slow, have to fit.
pub(crate) const LATER: Duration = Duration::from_secs(84 + 4);

pub(crate) fn options() -> OpenOptions {
    OpenOptions::new().grace(GRACE)
}

/// The bucket of a server of the test kit.
pub(crate) async fn bucket(endpoint: &str) -> Arc<dyn Storage> {
    let server = S3ServerOptions::default();
    let mut config = S3Config::new("bucket");
    config.conditional = Conditional::Trusted;
    config.endpoint = Some(endpoint.to_owned());
    let keys = S3Keys::new(server.access_key.as_str(), server.secret_key.as_str());
    config.credentials = S3Credentials::Static(keys);
    Arc::new(S3::open(config).await.unwrap())
}

async fn open(server: &S3Server) -> Repository {
    let storage = bucket(&server.endpoint()).await;
    Repository::open(storage, options()).await.unwrap()
}

/// A repository in a directory, to push from.
async fn source(place: &Path) -> Repository {
    let storage = Arc::new(Native::open(place, NativeOptions::default()).unwrap());
    Repository::open(storage, options()).await.unwrap()
}

/// A passphrase that costs little.
fn phrase(text: &str) -> KeySource {
    KeySource::passphrase(text).with_cost(64, 1)
}

/// Reads maps and pages through a cache on disk.
fn cached(repository: &Repository, cache: &Path) -> MapReader {
    let options = FrameReaderOptions {
        disk: Some(DiskCache::open(cache, 64 << 20).unwrap()),
        ..FrameReaderOptions::default()
    };
    MapReader::new(repository.frames_with(options), 32 << 20)
}

/// What the other process does: one task, as its variable says. Started by the tests of this module; by itself there is
/// nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acting_as_the_process_that_stops() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let words: Vec<&str> = task.split('|').collect();
    let [endpoint, stop, ref work @ ..] = words[..] else {
        panic!("{task}");
    };
    let stop: u64 = stop.parse().unwrap();
    let storage = Faulty::planned(bucket(endpoint).await, move |call, _, _| {
        if call == stop {
            kill_process(rustix::process::getpid(), Signal::STOP).unwrap();
            // Until the signal has reached all threads.
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    });
    let mut options = options();
    if let ["rekey", ..] = work {
        options.key = Some(phrase("one"));
    }
    let outcome = async {
        let repository = Repository::open(Arc::new(storage), options).await?;
        match work {
            ["write", parent] => {
                let parent = parent.parse().unwrap();
                let files = [("b", 20), ("n", 21)];
                let done = try_write(&repository, Some(parent), &files, &["pg@new"]).await?;
                Ok(Some(done.id))
            }
            ["make", parent] => {
                let parent = parent.parse().unwrap();
                let done = try_make(&repository, Some(parent), &several(1), &["pg@new"]).await?;
                Ok(Some(done.id))
            }
            ["make-cached", cache, parent] => {
                let parent = parent.parse().unwrap();
                let maps = cached(&repository, Path::new(cache));
                // As one who reads does: nobody takes the parent away meanwhile. All of it is in the cache before anything is
                // built on it.
                repository.pin(parent, "who sleeps").await?;
                let snapshot = Snapshot::open(&repository, parent, &maps).await?;
                let (mut files, _) = try_restored(&snapshot).await?;
                files.insert("new".to_owned(), noise(9000, 7));
                let names = &["pg@new"];
                let done = try_make_by(&maps, &repository, Some(parent), &files, names).await?;
                Ok(Some(done.id))
            }
            ["push", place, id] => {
                let source = source(Path::new(place)).await;
                let done = source.copy_to(&repository, id.parse().unwrap()).await?;
                Ok(Some(done.id))
            }
            ["undo", id] => {
                let id = id.parse().unwrap();
                repository.undo_destroy(id).await?;
                Ok(Some(id))
            }
            ["collect"] => repository.collect().await.map(|_| None),
            ["destroy", id] => {
                repository.destroy(id.parse().unwrap()).await?;
                Ok(None)
            }
            ["pin", id] => {
                let pin = repository.pin(id.parse().unwrap(), "who sleeps").await?;
                Ok(Some(pin.commit))
            }
            ["rekey", new] => {
                let done = repository.rekey(vec![phrase(new)]).await;
                done.map(|_| None)
            }
            _ => panic!("{task}"),
        }
    };
    match outcome.await {
        Ok(Some(id)) => println!("@ did {id}"),
        Ok(None) => println!("@ did"),
        Err::<_, neon_pagestore::Error>(error) => {
            let busy = match error.kind() {
                ErrorKind::Busy | ErrorKind::NotFound => true,
                // Others renewed them.
                ErrorKind::Inconsistent | ErrorKind::Locked => work[0] == "rekey",
                _ => false,
            };
            println!("@ {} {error:?}", if busy { "refused" } else { "failed" });
        }
    }
}

/// A process that stops itself.
struct Stopping(Option<Child>);

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Did(Option<CommitId>),
    /// It was told, and says so, that it came too late.
    Refused(String),
}

impl Stopping {
    fn start(server: &S3Server, stop: u64, work: &str) -> Self {
        let task = format!("{}|{stop}|{work}", server.endpoint());
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "stopped::acting_as_the_process_that_stops",
                "--nocapture",
            ])
            .env(TASK, task)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self(Some(child))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.0.as_ref().unwrap())
    }

    /// Waits until it has stopped itself; false when it ended before.
    async fn stopped(&self) -> bool {
        let pid = self.pid();
        let wait = move || {
            // What has ended stays to be waited for by its handle.
            let options = rustix::process::WaitIdOptions::STOPPED
                | rustix::process::WaitIdOptions::EXITED
                | rustix::process::WaitIdOptions::NOWAIT;
            let status = rustix::process::waitid(rustix::process::WaitId::Pid(pid), options);
            status.unwrap().unwrap().stopped()
        };
        tokio::task::spawn_blocking(wait).await.unwrap()
    }

    /// Lets it go on, and waits for its end.
    async fn ended(mut self) -> Ended {
        let mut child = self.0.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::CONT).ok();
        let wait = move || {
            let mut text = String::new();
            let mut output = child.stdout.take().unwrap();
            output.read_to_string(&mut text).unwrap();
            child.wait().unwrap();
            text
        };
        let text = tokio::task::spawn_blocking(wait).await.unwrap();
        let said = text.lines().find_map(|line| line.split_once("@ "));
        let said = said.unwrap_or_else(|| panic!("it said nothing: {text}")).1;
        match said.split_once(' ') {
            None => Ended::Did(None),
            Some(("did", id)) => Ended::Did(Some(id.parse().unwrap())),
            Some(("refused", why)) => Ended::Refused(why.to_owned()),
            Some(_) => panic!("{said}"),
        }
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A bucket with snapshots that were pushed there, and the directory that they come from.
struct Scene {
    server: S3Server,
    repository: Repository,
    source: Repository,
    place: tempfile::TempDir,
    /// Five files, and four of them changed, so that most of the first one's pack is needed by the first alone.
    first: CommitId,
    second: CommitId,
    kept: CommitId,
}

const FILES: [(&str, u64); 5] = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)];

impl Scene {
    async fn new(options: OpenOptions) -> Self {
        let place = tempfile::tempdir().unwrap();
        let storage = Arc::new(Native::open(place.path(), NativeOptions::default()).unwrap());
        let source = Repository::init(storage, self::options()).await.unwrap();
        let first = write(&source, None, &FILES, &["pg@1"]).await;
        let newer = FILES.map(|(name, seed)| (name, seed + 10));
        let second = write(&source, Some(first), &newer[..4], &["pg@2"]).await;
        let server = S3Server::start(S3ServerOptions::default());
        let storage = bucket(&server.endpoint()).await;
        let repository = Repository::init(storage, options).await.unwrap();
        let kept = write(&repository, None, &[("kept", 30)], &["kept"]).await;
        source.copy_to(&repository, first).await.unwrap();
        Self {
            server,
            repository,
            source,
            place,
            first,
            second,
            kept,
        }
    }

    /// Collects what can be, and lets time pass.
    async fn collect(&self, times: usize) {
        for _ in 0..times {
            self.server.advance(LATER);
            self.repository.collect().await.unwrap();
        }
    }

    /// All that is shown is whole, also for who has read nothing yet, and these are among it.
    async fn is_whole(&self, there: &[CommitId], about: &str) {
        self.is_whole_in(&open(&self.server).await, there, about)
            .await;
    }

    async fn is_whole_in(&self, fresh: &Repository, there: &[CommitId], about: &str) {
        let checked = fresh.check(true).await.unwrap();
        assert!(checked.is_sound(), "{about}: {:?}", checked.findings);
        let shown = fresh.snapshot_ids().await.unwrap();
        for id in there {
            assert!(shown.contains(id), "{about}: {id} is lost");
        }
        for id in &shown {
            read(fresh, *id).await.unwrap();
        }
        for pin in fresh.pins().await.unwrap() {
            read(fresh, pin.commit).await.unwrap();
        }
    }
}

/// At which steps to try: all, or every third where they are `many`, and which third changes from day to day; with
/// `NEON_LONG_TESTS` always all.
pub(crate) fn steps(many: bool) -> (u64, usize) {
    if !many || std::env::var_os("NEON_LONG_TESTS").is_some() {
        return (0, 1);
    }
    let now = std::time::SystemTime::now();
    let seconds = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    (seconds / 86_400 % 3, 3)
}

/// Lets a process stop before its n-th call, for every n, and something happen meanwhile. Tells how often it did its
/// work all the same, and how often it was refused.
async fn at_every_step<M>(
    many: bool,
    work: impl AsyncFn(&Scene) -> String,
    meanwhile: impl AsyncFn(&Scene, u64) -> M,
    after: impl AsyncFn(&Scene, M, Ended, u64),
) {
    at_every_step_of(options, many, work, meanwhile, after).await;
}

/// As [`at_every_step`], in repositories that are made with these options.
#[expect(clippy::print_stdout, reason = "how much was tried is the result")]
async fn at_every_step_of<M>(
    options: impl Fn() -> OpenOptions,
    many: bool,
    work: impl AsyncFn(&Scene) -> String,
    meanwhile: impl AsyncFn(&Scene, u64) -> M,
    after: impl AsyncFn(&Scene, M, Ended, u64),
) {
    let (first, step) = steps(many);
    let (mut did, mut refused) = (0, 0);
    for stop in (first..).step_by(step) {
        let scene = Scene::new(options()).await;
        let work = work(&scene).await;
        let process = Stopping::start(&scene.server, stop, &work);
        if !process.stopped().await {
            // There are no more calls.
            assert!(matches!(process.ended().await, Ended::Did(_)));
            break;
        }
        let done = meanwhile(&scene, stop).await;
        let ended = process.ended().await;
        match &ended {
            Ended::Did(_) => did += 1,
            Ended::Refused(_) => refused += 1,
        }
        after(&scene, done, ended, stop).await;
    }
    println!("stopped at {}: did {did}, refused {refused}", did + refused);
    // Of short work a third of the steps may be all on one side.
    let (least, all) = (did.min(refused), did + refused);
    assert!(all > 0 && (step > 1 || least > 0), "{did} {refused}");
}

/// A writer of any sort: what it reported is there and stays.
async fn a_writer_stops(many: bool, work: impl AsyncFn(&Scene) -> String) {
    let meanwhile = async |scene: &Scene, stop: u64| {
        // What it builds on, relies on or brings back goes, or not.
        let destroyed =
            stop.is_multiple_of(2) && scene.repository.destroy(scene.first).await.is_ok();
        scene.collect(3).await;
        let other = write(&scene.repository, Some(scene.kept), &[("o", 40)], &["o"]).await;
        scene.collect(1).await;
        (other, destroyed)
    };
    let after = async |scene: &Scene, (other, destroyed), ended: Ended, stop: u64| {
        let mut there = vec![scene.kept, other];
        if let Ended::Did(Some(id)) = ended
            && !(destroyed && id == scene.first)
        {
            there.push(id);
        }
        let about = format!("stopped at {stop}");
        scene.is_whole(&there, &about).await;
        scene.collect(3).await;
        scene.is_whole(&there, &about).await;
    };
    at_every_step(many, work, meanwhile, after).await;
}

/// With the packs of two threads under way, and a map that is merged with the parent's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writer_itself_sleeps_at_any_step_and_fails_or_is_done() {
    a_writer_stops(true, async |scene| format!("make|{}", scene.first)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_sleeps_at_any_step_fails_or_is_done() {
    a_writer_stops(false, async |scene| format!("write|{}", scene.first)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_sleeps_at_any_step_fails_or_is_done() {
    let work =
        async |scene: &Scene| format!("push|{}|{}", scene.place.path().display(), scene.second);
    a_writer_stops(false, work).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_that_sleeps_at_any_step_fails_or_is_done() {
    let work = async |scene: &Scene| {
        scene.repository.destroy(scene.first).await.unwrap();
        format!("undo|{}", scene.first)
    };
    a_writer_stops(false, work).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_sleeps_at_any_step_takes_nothing_that_came_meanwhile() {
    let work = async |scene: &Scene| {
        let second = scene.source.copy_to(&scene.repository, scene.second).await;
        second.unwrap();
        scene.repository.destroy(scene.first).await.unwrap();
        scene.repository.collect().await.unwrap();
        scene.server.advance(LATER);
        "collect".to_owned()
    };
    let meanwhile = async |scene: &Scene, _| {
        scene.collect(2).await;
        let new = write(&scene.repository, Some(scene.second), &[("n", 50)], &["n"]).await;
        let pin = scene.repository.pin(scene.kept, "a mount").await.unwrap();
        let mut there = vec![scene.kept, scene.second, new];
        // What is being deleted comes again, or is refused.
        match scene.source.copy_to(&scene.repository, scene.first).await {
            Ok(_) => there.push(scene.first),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}"),
        }
        scene.collect(1).await;
        (there, pin)
    };
    let after =
        async |scene: &Scene, (mut there, pin): (Vec<CommitId>, Pin), _: Ended, stop: u64| {
            let about = format!("stopped at {stop}");
            assert_eq!(scene.repository.pins().await.unwrap(), [pin]);
            scene.is_whole(&there, &about).await;
            scene.collect(3).await;
            scene
                .source
                .copy_to(&scene.repository, scene.first)
                .await
                .unwrap();
            there.push(scene.first);
            scene.is_whole(&there, &about).await;
        };
    at_every_step(true, work, meanwhile, after).await;
}

/// Frames of the parent come from a cache on the process's own disk, wherever collections put them meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_with_a_cache_on_disk_sleeps_at_any_step_and_fails_or_is_done() {
    let work = async |scene: &Scene| {
        let second = scene.source.copy_to(&scene.repository, scene.second).await;
        second.unwrap();
        let cache = scene.place.path().join("cache");
        format!("make-cached|{}|{}", cache.display(), scene.second)
    };
    let meanwhile = async |scene: &Scene, stop: u64| {
        // Of a pack of the parent most goes, so that the rest moves to another one.
        let destroyed = stop.is_multiple_of(2);
        if destroyed {
            scene.repository.destroy(scene.first).await.unwrap();
        }
        scene.collect(3).await;
        destroyed
    };
    let after = async |scene: &Scene, destroyed: bool, ended: Ended, stop: u64| {
        let about = format!("stopped at {stop}");
        let mut there = vec![scene.kept, scene.second];
        there.extend((!destroyed).then_some(scene.first));
        if let Ended::Did(Some(id)) = ended {
            there.push(id);
        }
        for _ in 0..2 {
            scene.is_whole(&there, &about).await;
            // Through what the process left on its disk everything reads as it is stored.
            let fresh = open(&scene.server).await;
            let cache = scene.place.path().join("cache");
            for id in fresh.snapshot_ids().await.unwrap() {
                let mut found = Vec::new();
                for maps in [reader(&fresh), cached(&fresh, &cache)] {
                    let snapshot = Snapshot::open(&fresh, id, &maps).await.unwrap();
                    found.push(try_restored(&snapshot).await.unwrap().0);
                }
                assert!(found[0] == found[1], "{about}: {id}");
            }
            scene.collect(3).await;
        }
    };
    at_every_step(true, work, meanwhile, after).await;
}

/// A destroyed snapshot stays so, one that is brought again meanwhile is whole or destroyed, and all others stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn destroying_that_sleeps_at_any_step_fails_or_is_done() {
    let work = async |scene: &Scene| {
        let second = scene.source.copy_to(&scene.repository, scene.second).await;
        second.unwrap();
        format!("destroy|{}", scene.first)
    };
    let meanwhile = async |scene: &Scene, stop: u64| {
        // Others destroy it too, and it is brought again, or not: whichever third of the steps it is, all of that.
        let turn = stop / 3 % 3;
        if turn > 0 {
            scene.repository.destroy(scene.first).await.unwrap();
        }
        scene.collect(3).await;
        let again = turn == 2;
        if again {
            let again = scene.source.copy_to(&scene.repository, scene.first).await;
            again.unwrap();
        }
        again
    };
    let after = async |scene: &Scene, again: bool, ended: Ended, stop: u64| {
        let about = format!("stopped at {stop}");
        let there = [scene.kept, scene.second];
        for _ in 0..2 {
            scene.is_whole(&there, &about).await;
            let shown = scene.repository.snapshot_ids().await.unwrap();
            let first = shown.contains(&scene.first);
            assert!(again || !first, "{about}: {ended:?}");
            scene.collect(3).await;
        }
        // Nothing stands in the way of bringing it once more.
        let brought = scene.source.copy_to(&scene.repository, scene.first).await;
        brought.unwrap();
        let there = [scene.kept, scene.second, scene.first];
        scene.is_whole(&there, &about).await;
    };
    at_every_step(true, work, meanwhile, after).await;
}

/// What was pinned stays, and who was told that it could not be pinned left no pin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinning_that_sleeps_at_any_step_fails_or_is_done() {
    let work = async |scene: &Scene| format!("pin|{}", scene.first);
    let meanwhile = async |scene: &Scene, stop: u64| {
        if stop.is_multiple_of(2) {
            scene.repository.destroy(scene.first).await.unwrap();
        }
        scene.collect(3).await;
    };
    let after = async |scene: &Scene, (), ended: Ended, stop: u64| {
        let about = format!("stopped at {stop}");
        let pins = scene.repository.pins().await.unwrap();
        let pinned: Vec<CommitId> = pins.iter().map(|pin| pin.commit).collect();
        match ended {
            Ended::Did(_) => assert_eq!(pinned, [scene.first], "{about}"),
            Ended::Refused(why) => assert_eq!(pinned, [], "{about}: {why}"),
        }
        scene.is_whole(&[scene.kept], &about).await;
        // Not even who destroys it takes it from under the pin.
        scene.repository.destroy(scene.first).await.ok();
        scene.collect(3).await;
        scene.is_whole(&[scene.kept], &about).await;
    };
    at_every_step(true, work, meanwhile, after).await;
}

/// A snapshot that was taken with the old keys, and what came of renewing them, if somebody did.
type Renewed = (CommitId, Option<neon_pagestore::Result<Repository>>);

/// Whoever was told that keys are renewed gets in, and reads what was written with the old ones meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewing_keys_that_sleeps_at_any_step_fails_or_is_done() {
    let work = async |_: &Scene| "rekey|two".to_owned();
    let meanwhile = async |scene: &Scene, stop: u64| {
        let files = [("o", 40)];
        let other = write(&scene.repository, Some(scene.kept), &files, &["o"]).await;
        scene.collect(2).await;
        let renewed = match stop.is_multiple_of(2) {
            true => Some(scene.repository.rekey(vec![phrase("three")]).await),
            false => None,
        };
        (other, renewed)
    };
    let after = async |scene: &Scene, (other, renewed): Renewed, ended: Ended, stop: u64| {
        let about = format!("stopped at {stop}");
        let did = [
            !matches!(renewed, Some(Ok(_))) && matches!(ended, Ended::Refused(_)),
            ended == Ended::Did(None),
            matches!(renewed, Some(Ok(_))),
        ];
        if let Some(Err(error)) = renewed {
            let told = [ErrorKind::Busy, ErrorKind::Inconsistent];
            assert!(told.contains(&error.kind()), "{about}: {error:?}");
        }
        let there = [scene.kept, scene.first, other];
        let mut open = Vec::new();
        for key in ["one", "two", "three"] {
            let storage = bucket(&scene.server.endpoint()).await;
            match Repository::open(storage, options().key(phrase(key))).await {
                Ok(fresh) => {
                    scene.is_whole_in(&fresh, &there, &about).await;
                    open.push(true);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Locked, "{about}: {error:?}");
                    open.push(false);
                }
            }
        }
        assert_eq!(open, did, "{about}: {ended:?}");
    };
    let with_key = || options().key(phrase("one"));
    at_every_step_of(with_key, true, work, meanwhile, after).await;
}
