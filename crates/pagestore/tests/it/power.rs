//! The power goes at every write of a repository in a directory: what was reported is there and whole, what was destroyed
//! stays so, whatever else is seen is whole, and the rest is garbage that a collection takes.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use neon_pagestore::{CommitId, Repository};
use neon_storage::{Memory, Native, NativeOptions};

use crate::disks::{Fate, Recorder, remains, write_image};
use crate::files::{several, try_make};
use crate::support::{GRACE, init, options, read, write};

/// Something that was done to a snapshot, and at which steps of the disk.
struct Done {
    began: usize,
    acknowledged: usize,
    id: CommitId,
    there: bool,
}

/// What was recorded.
struct History {
    opened: usize,
    done: Vec<Done>,
}

/// Makes everything below a directory older.
fn age(path: &Path) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path);
            continue;
        }
        let file = File::options().write(true).open(path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(modified - GRACE * 2).unwrap();
    }
}

/// Collects until nothing is left to collect.
async fn collect(root: &Path, repository: &Repository) {
    for _ in 0..3 {
        age(root);
        repository.collect().await.unwrap();
    }
}

/// A place in memory where there is one: what is tried on an image need not survive anything.
fn fleeting() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Snapshots are taken, destroyed, brought back, copied here, collected and rewritten.
async fn work(root: &Path, disk: &Recorder) -> History {
    let source = init(&Memory::new()).await;
    let copied = write(&source, None, &[("x", 90), ("y", 91)], &["pg@3"]).await;
    let storage = Native::open_on(Arc::new(disk.clone()), root, NativeOptions::default()).unwrap();
    let repository = Repository::init(Arc::new(storage), options())
        .await
        .unwrap();
    let opened = disk.len();
    let mut done = Vec::new();
    let mut note = |began, id, there| {
        let acknowledged = disk.len();
        done.push(Done {
            began,
            acknowledged,
            id,
            there,
        });
    };
    let mut parent = None;
    let files = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)];
    let began = disk.len();
    let first = write(&repository, None, &files, &["pg@1"]).await;
    note(began, first, true);
    let newer = files.map(|(name, seed)| (name, seed + 10));
    let began = disk.len();
    let second = write(&repository, Some(first), &newer[..4], &["pg@2"]).await;
    note(began, second, true);
    let began = disk.len();
    repository.destroy(second).await.unwrap();
    note(began, second, false);
    let began = disk.len();
    repository.undo_destroy(second).await.unwrap();
    note(began, second, true);
    let began = disk.len();
    repository.destroy(first).await.unwrap();
    note(began, first, false);
    collect(root, &repository).await;
    let began = disk.len();
    source.copy_to(&repository, copied).await.unwrap();
    note(began, copied, true);
    // By the writer that programs use: packs that are written piece by piece, two of them at once.
    for seed in 1..3 {
        let began = disk.len();
        let made = try_make(&repository, parent, &several(seed), &["pg@4"]).await;
        let id = made.unwrap().id;
        note(began, id, true);
        parent = Some(id);
    }
    History { opened, done }
}

impl History {
    /// What must be there after so many steps, and what must not.
    fn known(&self, steps: usize) -> (Vec<CommitId>, Vec<CommitId>) {
        let (mut there, mut gone) = (Vec::new(), Vec::new());
        for done in &self.done {
            if done.began >= steps {
                break;
            }
            there.retain(|id| *id != done.id);
            gone.retain(|id| *id != done.id);
            if done.acknowledged <= steps {
                let list = if done.there { &mut there } else { &mut gone };
                list.push(done.id);
            }
        }
        (there, gone)
    }

    async fn check(&self, steps: usize, image: &Path) {
        let storage = Native::open(image, NativeOptions::default()).unwrap();
        let repository = match Repository::open(Arc::new(storage), options()).await {
            Ok(repository) => repository,
            Err(error) => {
                assert!(steps < self.opened, "{steps}: {error:?}");
                return;
            }
        };
        let (there, gone) = self.known(steps);
        for round in 0..2 {
            let checked = repository.check(true).await.unwrap();
            assert!(checked.is_sound(), "{steps}: {:?}", checked.findings);
            let shown = repository.snapshot_ids().await.unwrap();
            assert!(there.iter().all(|id| shown.contains(id)), "{steps}: lost");
            assert!(!gone.iter().any(|id| shown.contains(id)), "{steps}: back");
            for id in shown {
                read(&repository, id).await.unwrap();
            }
            if round == 0 {
                collect(image, &repository).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_is_whole_wherever_the_power_goes() {
    let place = fleeting();
    let all = std::env::var_os("NEON_LONG_TESTS").is_some();
    let (root, disk) = (place.path().join("repository"), Recorder::new());
    let history = work(&root, &disk).await;
    let steps = disk.steps();
    let mut met = HashSet::new();
    for count in 0..=steps.len() {
        let others = [
            Fate::Kept,
            Fate::NamesWithoutBytes,
            Fate::Chance(count as u64),
        ];
        // At each write what was not synced is lost, or one of the other fates, or all with `NEON_LONG_TESTS`.
        let other = others[count % others.len()];
        let some = if all { &others[..] } else { &[other][..] };
        for fate in [Fate::Lost].iter().chain(some) {
            let left = remains(&steps[..count], *fate);
            let mut hasher = DefaultHasher::new();
            (&left, history.known(count)).hash(&mut hasher);
            if !met.insert(hasher.finish()) {
                continue;
            }
            let image = fleeting();
            write_image(&left, &root, image.path());
            history.check(count, image.path()).await;
        }
    }
    println!("{} steps, {} images", steps.len(), met.len());
}
