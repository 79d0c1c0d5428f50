//! How much of a repository nothing needs any more, after hundreds of snapshots that overwrote pages here and there: pages
//! chosen at random, each frame losing them one by one, which is the workload that is worst for it.

use std::collections::{HashSet, VecDeque};

use neon_pagestore::map::{At, Walk};
use neon_pagestore::read::{MapReader, Snapshot};
use neon_pagestore::restore::Restored;
use neon_pagestore::{CommitId, Repository};
use neon_snapshot_format::Wanted;
use neon_snapshot_format::pack::Codec;
use neon_storage::StorageExt;

use crate::clocked::Clocked;
use crate::files::{Files, Selection, make_as, noise, reader, restored};
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
    /// Of packs.
    packs: u64,
    /// Plain bytes of the pages that snapshots show, each once.
    pages: u64,
    /// Bytes that a collection says are needed: shown pages as they are stored, and maps.
    live: u64,
}

/// Plain bytes of the pages that these snapshots show.
async fn shown(repository: &Repository, maps: &MapReader, kept: &[CommitId]) -> u64 {
    let mut pages = HashSet::new();
    for id in kept {
        let snapshot = Snapshot::open(repository, *id, maps).await.unwrap();
        let mut walk = Walk::new(snapshot.view(), false);
        while let Some(file) = maps.run(&mut walk).await.unwrap() {
            for extent in &file.extents {
                let At::Frame { frame, offset } = &extent.at else {
                    continue;
                };
                let own = (0..extent.count).map(|page| offset + page * PAGE as u32);
                pages.extend(own.map(|offset| (frame.pack.id, frame.frame, offset)));
            }
        }
    }
    (pages.len() * PAGE) as u64
}

async fn measure(
    storage: &Clocked,
    repository: &Repository,
    maps: &MapReader,
    kept: &[CommitId],
) -> Held {
    let objects = storage.list_all("").await.unwrap();
    let packs = storage.list_all("packs/").await.unwrap();
    Held {
        stored: objects.iter().map(|object| object.size).sum(),
        packs: packs.iter().map(|object| object.size).sum(),
        pages: shown(repository, maps, kept).await,
        live: repository.plan_collection().await.unwrap().live,
    }
}

/// Content of a page: half of it, or none, is compressed away.
fn page(seed: u64, codec: Codec) -> Vec<u8> {
    let mut bytes = noise(PAGE, seed);
    if codec != Codec::None {
        bytes[PAGE / 2..].fill(7);
    }
    bytes
}

/// Two hundred snapshots of which so many are kept: what is held after the last, and what restoring that reads.
async fn overwritten(keep: usize, codec: Codec) -> (Held, Restored) {
    let storage = Clocked::new();
    let repository = init(&storage).await;
    let maps = reader(&repository);
    let control = ("global/pg_control".to_owned(), noise(PAGE, 5));
    let content = (0..PAGES as u64).flat_map(|number| page(number, codec));
    let content = (NAME.to_owned(), content.collect());
    let folders = ["base/", "base/5/", "global/"].map(|name| (name.to_owned(), Vec::new()));
    let mut files: Files = [control, content].into_iter().chain(folders).collect();
    let mut made = make_as(&repository, files.clone(), Selection::new(), None, codec)
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
        for number in changed {
            let seed = turn << 32 | number as u64;
            bytes[number * PAGE..][..PAGE].copy_from_slice(&page(seed, codec));
        }
        made = make_as(&repository, files.clone(), selection, Some(&parent), codec)
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
        if turn % 50 == 0 {
            settle(&storage, &repository).await;
            let held = measure(&storage, &repository, &maps, kept.make_contiguous()).await;
            bounded(held, codec, &format!("{keep} kept, after {turn}"));
        }
    }
    settle(&storage, &repository).await;
    assert!(repository.plan_collection().await.unwrap().is_empty());
    let held = measure(&storage, &repository, &maps, kept.make_contiguous()).await;
    let snapshot = Snapshot::open(&repository, made.id, &reader(&repository))
        .await
        .unwrap();
    let (found, restored) = restored(&snapshot).await;
    assert!(found == files);
    (held, restored)
}

/// Collects until there is nothing to do.
async fn settle(storage: &Clocked, repository: &Repository) {
    for _ in 0..10 {
        if repository.collect().await.unwrap().next.is_none() {
            return;
        }
        storage.advance(GRACE * 2);
    }
    panic!("what is rewritten is rewritten again and again");
}

/// What directories, heads of packs and small objects take at most, here.
const OVERHEAD: u64 = 100_000;

fn bounded(held: Held, codec: Codec, about: &str) {
    assert!(
        held.packs <= held.live * 3 / 2 + OVERHEAD,
        "{about}: {held:?}"
    );
    assert!(
        held.stored <= held.pages * 3 / 2 + OVERHEAD,
        "{about}: {held:?}"
    );
    if codec != Codec::None {
        // The half that is left of pages when they are compressed.
        assert!(
            held.live <= held.pages * 6 / 10 + OVERHEAD,
            "{about}: {held:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_pages_overwritten_at_random_little_more_is_held_than_those_that_are_shown() {
    for (keep, codec) in [
        (1, Codec::None),
        (20, Codec::None),
        (1, Codec::default()),
        (20, Codec::default()),
    ] {
        let (held, restored) = overwritten(keep, codec).await;
        let packs = held.packs as f64 / held.live as f64;
        let pages = held.stored as f64 / held.pages as f64;
        let read = restored.used.received as f64 / restored.live as f64;
        println!(
            "{codec:?}, {keep} kept: packs {packs:.2} of what is live, all {pages:.2} of plain pages; read {read:.2}, {} \
             requests",
            restored.used.requests
        );
        if codec == Codec::None {
            assert!(pages <= 1.5, "{keep} kept: {held:?}");
        }
        if keep == 1 {
            assert!(read <= 2.0, "{keep} kept: {read}");
        }
    }
}
