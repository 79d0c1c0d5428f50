//! How much of a repository nothing needs any more, after hundreds of snapshots that overwrote pages here and there.
//!
//! A frame stays whole as long as any snapshot shows one of its pages: what a collection can promise is about frames. What
//! that means for pages is measured here, for the workload that is worst for it: pages chosen at random, each frame
//! losing them one by one.

use std::collections::{HashMap, HashSet, VecDeque};

use neon_pagestore::map::{At, FrameRef, Walk};
use neon_pagestore::read::{MapReader, Snapshot};
use neon_pagestore::restore::Restored;
use neon_pagestore::{CommitId, Repository};
use neon_snapshot_format::Wanted;
use neon_storage::StorageExt;

use crate::clocked::Clocked;
use crate::files::{Files, Selection, make, noise, reader, restored};
use crate::support::{GRACE, init};

const PAGE: usize = 8192;
const PAGES: usize = 512;
/// Pages that each snapshot overwrites, of those.
const CHANGED: usize = 12;
const SNAPSHOTS: u64 = 200;
const NAME: &str = "base/5/20000";

/// What the repository holds, and why.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Bytes of all objects.
    stored: u64,
    /// Of frames with a page that a snapshot shows.
    frames: u64,
    /// Of the pages that snapshots show, as their frames store them, and of maps.
    pages: u64,
}

/// Stored bytes of the pages that these snapshots show, and of the frames they lie in.
async fn shown(repository: &Repository, maps: &MapReader, kept: &[CommitId]) -> (u64, u64) {
    let mut frames: HashMap<_, (FrameRef, HashSet<u32>)> = HashMap::new();
    for id in kept {
        let snapshot = Snapshot::open(repository, *id, maps).await.unwrap();
        let mut walk = Walk::new(snapshot.view(), false);
        while let Some(file) = maps.run(&mut walk).await.unwrap() {
            for extent in &file.extents {
                let At::Frame { frame, offset } = &extent.at else {
                    continue;
                };
                let pages = (0..extent.count).map(|page| offset + page * PAGE as u32);
                let address = (frame.pack.id, frame.frame);
                let known = frames.entry(address).or_insert((*frame, HashSet::new()));
                known.1.extend(pages);
            }
        }
    }
    let all = frames
        .values()
        .map(|(frame, _)| u64::from(frame.stored_length));
    let part = frames.values().map(|(frame, pages)| {
        let plain = u64::from(frame.plain_length);
        let bytes = (pages.len() * PAGE) as u64;
        u64::from(frame.stored_length) * bytes.min(plain) / plain
    });
    (all.sum(), part.sum())
}

async fn measure(
    storage: &Clocked,
    repository: &Repository,
    maps: &MapReader,
    kept: &[CommitId],
) -> Held {
    let objects = storage.list_all("").await.unwrap();
    let live = repository.plan_collection().await.unwrap().live;
    let (frames, pages) = shown(repository, maps, kept).await;
    Held {
        stored: objects.iter().map(|object| object.size).sum(),
        frames: live,
        pages: live - frames + pages,
    }
}

/// Two hundred snapshots of which so many are kept: what is held after the last, and what restoring that reads.
async fn overwritten(keep: usize) -> (Held, Restored) {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let maps = reader(&repository);
    let control = ("global/pg_control".to_owned(), noise(PAGE, 5));
    let content = (NAME.to_owned(), noise(PAGES * PAGE, 1));
    let folders = ["base/", "base/5/", "global/"].map(|name| (name.to_owned(), Vec::new()));
    let mut files: Files = [control, content].into_iter().chain(folders).collect();
    let mut made = make(&repository, files.clone(), Selection::new(), None)
        .await
        .unwrap();
    let mut kept = VecDeque::from([made.id]);
    let mut random = 1_u64;
    for turn in 1..=SNAPSHOTS {
        let parent = Snapshot::open(&repository, made.id, &maps).await.unwrap();
        let mut changed: Vec<usize> = (0..CHANGED as u64)
            .map(|_| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(turn | 1);
                usize::try_from(random >> 33).unwrap() % PAGES
            })
            .collect();
        changed.sort_unstable();
        changed.dedup();
        let ranges = changed
            .iter()
            .map(|page| (page * PAGE) as u64..((page + 1) * PAGE) as u64);
        let mut selection = Selection::new();
        selection.insert(NAME.to_owned(), Wanted::Ranges(ranges.collect()));
        let bytes = files.get_mut(NAME).unwrap();
        for page in changed {
            let seed = turn << 32 | page as u64;
            bytes[page * PAGE..][..PAGE].copy_from_slice(&noise(PAGE, seed));
        }
        made = make(&repository, files.clone(), selection, Some(&parent))
            .await
            .unwrap();
        kept.push_back(made.id);
        if kept.len() > keep {
            repository.destroy(kept.pop_front().unwrap()).await.unwrap();
        }
        if turn % 10 == 0 {
            repository.collect().await.unwrap();
            storage.advance(GRACE * 2);
        }
    }
    for _ in 0..10 {
        if repository.collect().await.unwrap().next.is_none() {
            break;
        }
        storage.advance(GRACE * 2);
    }
    assert!(repository.plan_collection().await.unwrap().is_empty());
    let held = measure(&storage, &repository, &maps, kept.make_contiguous()).await;
    let snapshot = Snapshot::open(&repository, made.id, &reader(&repository))
        .await
        .unwrap();
    let (found, restored) = restored(&snapshot).await;
    assert!(found == files);
    (held, restored)
}

/// The sixteenth harmonic number: what frames of sixteen pages that lose them one by one take, in all stages of that, for
/// each page of them that is shown.
const SPARSE_FRAMES: f64 = 3.381;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_pages_overwritten_at_random_little_more_is_held_than_frames_that_are_shown() {
    for keep in [1, 20] {
        let (held, restored) = overwritten(keep).await;
        let of_frames = held.stored as f64 / held.frames as f64;
        let of_pages = held.stored as f64 / held.pages as f64;
        let read = restored.used.received as f64 / restored.live as f64;
        println!(
            "{keep} kept: stored {of_frames:.2} of frames, {of_pages:.2} of pages; read {read:.2}"
        );
        assert!(of_frames <= 1.5, "{keep} kept: {held:?}");
        assert!(of_pages <= 1.5 * SPARSE_FRAMES, "{keep} kept: {held:?}");
        assert!(read <= 1.1 * SPARSE_FRAMES, "{keep} kept: {read}");
    }
}
