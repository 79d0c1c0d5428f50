//! Frames without the pages that nothing shows: thinned more than once, in several packs, in other repositories, damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use neon_pagestore::crypt::KeySource;
use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::{CommitId, OpenOptions, Repository};
use neon_snapshot_format::pack::Codec;
use neon_storage::{Fault, Faulty, Key, Memory, Operation, StorageExt};

use crate::clocked::Clocked;
use crate::files::{Files, Kept, Selection, make, make_as, noise, path, reader, restored, sent};
use crate::support::{GRACE, init, options};

const PAGE: usize = 8192;

fn key() -> KeySource {
    KeySource::passphrase("x").with_cost(64, 1)
}

fn sealed() -> OpenOptions {
    options().key(key())
}

pub(crate) async fn encrypted(storage: &Clocked) -> Repository {
    Repository::init(Arc::new(storage.clone()), sealed())
        .await
        .unwrap()
}

/// Collects until there is nothing to do.
pub(crate) async fn settle(storage: &Clocked, repository: &Repository) {
    for _ in 0..10 {
        if repository.collect().await.unwrap().next.is_none() {
            return;
        }
        storage.advance(GRACE * 2);
    }
    panic!("no end");
}

pub(crate) async fn open(repository: &Repository, id: CommitId) -> Snapshot {
    Snapshot::open(repository, id, &reader(repository))
        .await
        .unwrap()
}

/// Files whose pages have these contents.
pub(crate) fn files(pages: &[u64], content: impl Fn(u64) -> Vec<u8>) -> Files {
    let mut files = Files::new();
    files.insert("/".to_owned(), Vec::new());
    let bytes = pages.iter().flat_map(|seed| content(*seed)).collect();
    files.insert("large".to_owned(), bytes);
    files
}

fn loud(seed: u64) -> Vec<u8> {
    noise(PAGE, seed)
}

/// All that is in a repository is what was taken, whichever way it is read.
pub(crate) async fn is_whole(
    repository: &Repository,
    taken: &BTreeMap<CommitId, Files>,
    about: &str,
) {
    let checked = repository.check(true).await.unwrap();
    assert!(checked.is_sound(), "{about}: {:?}", checked.findings);
    for id in repository.snapshot_ids().await.unwrap() {
        let snapshot = open(repository, id).await;
        assert!(restored(&snapshot).await.0 == taken[&id], "{about}");
        let large = &taken[&id]["large"];
        let fresh = open(repository, id).await;
        for page in [0, 3, 15, 16, 40] {
            let found = fresh.read_page(&path("large"), page).await.unwrap();
            let expected = large.chunks(PAGE).nth(page as usize).map(<[u8]>::to_vec);
            assert_eq!(found.map(|bytes| bytes.to_vec()), expected, "{about}");
        }
    }
    let packs = repository.plan_collection().await.unwrap();
    assert!(packs.live <= packs.stored, "{about}: {packs:?}");
}

/// Packs whose frames lie in several others.
async fn in_several(storage: &Clocked) -> usize {
    let moves = storage.list_all("moves/").await.unwrap();
    let mut homes: BTreeMap<&str, usize> = BTreeMap::new();
    for object in &moves {
        let old = object.key.segments().nth(1).unwrap();
        *homes.entry(old).or_default() += 1;
    }
    homes.values().filter(|count| **count > 1).count()
}

/// Any turn of events in three repositories, one of them encrypted.
async fn at_random(seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let codec = [Codec::None, Codec::Lz4, Codec::default()][random.usize(0..3)];
    let stores: [Clocked; 3] = std::array::from_fn(|_| Clocked::new());
    let repositories = [
        init(&stores[0]).await,
        encrypted(&stores[1]).await,
        init(&stores[2]).await,
    ];
    let mut taken: BTreeMap<CommitId, Files> = BTreeMap::new();
    let mut pages: BTreeMap<CommitId, Vec<u64>> = BTreeMap::new();
    let content = |seed: u64| {
        let mut bytes = noise(PAGE, seed);
        bytes[PAGE / 4..].fill(seed as u8);
        bytes
    };
    let (mut next, mut several) = (1_u64, 0);
    for step in 0..40 {
        let which = random.usize(0..3);
        let (storage, repository) = (&stores[which], &repositories[which]);
        let ids = repository.snapshot_ids().await.unwrap();
        let any = match ids.len() {
            0 => None,
            count => Some(ids[random.usize(0..count)]),
        };
        match random.u32(0..10) {
            0..4 => {
                let mut changed = match any {
                    Some(id) => pages[&id].clone(),
                    None => (0..random.u64(20..44)).map(|page| next + page).collect(),
                };
                next += 44;
                for page in &mut changed {
                    if random.u32(0..3) == 0 {
                        (*page, next) = (next, next + 1);
                    }
                }
                let parent = match any {
                    Some(id) => Some(open(repository, id).await),
                    None => None,
                };
                let files = files(&changed, content);
                let none = Selection::new();
                let made = make_as(repository, files.clone(), none, parent.as_ref(), codec).await;
                let id = made.unwrap().id;
                taken.insert(id, files);
                pages.insert(id, changed);
            }
            4..6 => {
                if let (Some(id), true) = (any, ids.len() > 1) {
                    repository.destroy(id).await.unwrap();
                }
            }
            6..8 => {
                if let Some(id) = any {
                    let to = (which + random.usize(1..3)) % 3;
                    // What is on its way out there is brought again later.
                    drop(repository.copy_to(&repositories[to], id).await);
                }
            }
            _ => settle(storage, repository).await,
        }
        for storage in &stores {
            several = several.max(in_several(storage).await);
        }
        if step % 8 == 7 {
            let about = format!("seed {seed}, step {step}");
            for repository in &repositories {
                is_whole(repository, &taken, &about).await;
            }
        }
    }
    for (storage, repository) in stores.iter().zip(&repositories) {
        settle(storage, repository).await;
        is_whole(repository, &taken, &format!("seed {seed}, at the end")).await;
    }
    several
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_overwritten_destroyed_copied_and_thinned_all_snapshots_stay_what_they_are() {
    let seeds = match std::env::var_os("NEON_LONG_TESTS") {
        Some(_) => 1..400,
        None => 1..7,
    };
    let mut several = 0;
    for seed in seeds {
        several += at_random(seed).await;
    }
    println!("{several} packs whose frames lie in several others");
    assert!(several > 0);
}

/// Stored bytes of packs.
async fn packs(storage: &Clocked) -> u64 {
    let objects = storage.list_all("packs/").await.unwrap();
    objects.iter().map(|object| object.size).sum()
}

/// Overwrites the next pages each time, until one of the first is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_is_thinned_again_and_again_whatever_compression_makes_of_it() {
    let quiet = |_| vec![b'x'; PAGE];
    for (codec, content) in [
        (Codec::None, loud as fn(u64) -> Vec<u8>),
        (Codec::default(), loud),
        (Codec::default(), quiet),
    ] {
        let storage = Clocked::new();
        let repository = encrypted(&storage).await;
        let mut pages: Vec<u64> = (0..64).collect();
        let mut taken = BTreeMap::new();
        let mut last: Option<CommitId> = None;
        for turn in 0..8_u64 {
            for page in pages.iter_mut().filter(|page| **page < 64) {
                // An eighth of each frame goes at each turn.
                if *page % 8 == turn && turn > 0 {
                    *page += 1000 * turn;
                }
            }
            let parent = match last {
                Some(id) => Some(open(&repository, id).await),
                None => None,
            };
            let files = files(&pages, content);
            let none = Selection::new();
            let made = make_as(&repository, files.clone(), none, parent.as_ref(), codec).await;
            let id = made.unwrap().id;
            taken.insert(id, files);
            if let Some(last) = last.replace(id) {
                repository.destroy(last).await.unwrap();
            }
            settle(&storage, &repository).await;
            is_whole(&repository, &taken, &format!("{codec:?}, turn {turn}")).await;
            let plan = repository.plan_collection().await.unwrap();
            let (stored, live) = (packs(&storage).await, plan.live);
            assert!(stored <= live * 3 / 2 + 40_000, "{stored} of {live}");
        }
        let read = sent(&open(&repository, last.unwrap()).await).await.0;
        assert!(read == taken[&last.unwrap()]);
    }
}

/// Four pages in one frame, of which others need this and that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_in_several_packs_is_put_together_here_and_there() {
    let source = init(&Memory::new()).await;
    let mut taken = BTreeMap::new();
    let mut take = async |parent: Option<CommitId>, pages: &[u64]| {
        let parent = match parent {
            Some(id) => Some(open(&source, id).await),
            None => None,
        };
        let files = files(pages, loud);
        let made = make(&source, files.clone(), Selection::new(), parent.as_ref()).await;
        let id = made.unwrap().id;
        taken.insert(id, files);
        id
    };
    let all = take(None, &[1, 2, 3, 4]).await;
    let first = take(Some(all), &[1, 12, 13, 14]).await;
    let second = take(Some(all), &[21, 2, 23, 24]).await;
    let both = take(Some(all), &[1, 2, 33, 34]).await;
    // One page of the frame is in one place, another one in another.
    let (ones, twos) = (Clocked::new(), Clocked::new());
    let (one, two) = (init(&ones).await, encrypted(&twos).await);
    for (storage, repository, id) in [(&ones, &one, first), (&twos, &two, second)] {
        source.copy_to(repository, all).await.unwrap();
        source.copy_to(repository, id).await.unwrap();
        repository.destroy(all).await.unwrap();
        settle(storage, repository).await;
        is_whole(repository, &taken, "thinned").await;
        assert!(packs(storage).await < 5 * 8192 + 6000);
    }
    // Brought together they are what a third needs; nothing of that frame is sent again.
    let stores: [Clocked; 4] = std::array::from_fn(|_| Clocked::new());
    let (plain, sealed) = (init(&stores[0]).await, encrypted(&stores[1]).await);
    for (storage, target) in stores.iter().zip([&plain, &sealed]) {
        one.copy_to(target, first).await.unwrap();
        two.copy_to(target, second).await.unwrap();
        let copied = source.copy_to(target, both).await.unwrap();
        assert!(copied.bytes < 3 * 8192, "{copied:?}");
        is_whole(target, &taken, "brought together").await;
        for id in [first, second] {
            target.destroy(id).await.unwrap();
        }
        settle(storage, target).await;
        is_whole(target, &taken, "left alone").await;
    }
    // And go on, in one piece each, to where they are opened and to where they are sealed.
    let (third, fourth) = (init(&stores[2]).await, encrypted(&stores[3]).await);
    for (from, to) in [
        (&sealed, &third),
        (&plain, &fourth),
        (&fourth, &one),
        (&third, &two),
    ] {
        from.copy_to(to, both).await.unwrap();
        is_whole(to, &taken, "brought on").await;
    }
    // Where frames are thinned, what another snapshot needs of them comes again; both stay whole, also when the one goes.
    for (storage, target) in [(&ones, &one), (&twos, &two)] {
        source.copy_to(target, all).await.unwrap();
        is_whole(target, &taken, "whole again").await;
        settle(storage, target).await;
        is_whole(target, &taken, "whole again and collected").await;
        target.destroy(all).await.unwrap();
        settle(storage, target).await;
        is_whole(target, &taken, "thinned again").await;
    }
    // What somebody has only thinned takes nothing from who has it whole.
    source.destroy(both).await.unwrap();
    for (repository, id) in [(&third, both), (&one, first), (&two, second)] {
        repository.copy_to(&source, id).await.unwrap();
    }
    is_whole(&source, &taken, "at home").await;
}

/// Two cells of a frame lie together in a pack that was announced, and each alone in one that was stored later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_takes_frames_from_where_they_stay_whatever_has_more_of_them() {
    let source = init(&Memory::new()).await;
    let mut taken = BTreeMap::new();
    let mut take = async |parent: Option<CommitId>, pages: &[u64]| {
        let parent = match parent {
            Some(id) => Some(open(&source, id).await),
            None => None,
        };
        let files = files(pages, loud);
        let made = make(&source, files.clone(), Selection::new(), parent.as_ref()).await;
        let id = made.unwrap().id;
        taken.insert(id, files);
        id
    };
    let all = take(None, &[1, 2, 3, 4]).await;
    let first = take(Some(all), &[1, 12, 13, 14]).await;
    let second = take(Some(all), &[21, 2, 23, 24]).await;
    let both = take(Some(all), &[1, 2, 33, 34]).await;
    let storage = Clocked::new();
    let target = init(&storage).await;
    for id in [both, first, second] {
        let thinned = Clocked::new();
        let repository = init(&thinned).await;
        source.copy_to(&repository, all).await.unwrap();
        source.copy_to(&repository, id).await.unwrap();
        repository.destroy(all).await.unwrap();
        settle(&thinned, &repository).await;
        repository.copy_to(&target, id).await.unwrap();
        if id == both {
            target.destroy(both).await.unwrap();
            target.collect().await.unwrap();
        }
        storage.advance(Duration::from_secs(1));
    }
    source.copy_to(&target, both).await.unwrap();
    let dead = target.plan_collection().await.unwrap().packs;
    let dead: Vec<Key> = dead
        .iter()
        .map(|(id, _)| Repository::pack_key(*id).unwrap())
        .collect();
    let moves = storage.list_all("moves/").await.unwrap();
    let is_dead = |key: &Key| {
        dead.iter()
            .any(|dead| dead.segments().last() == key.segments().last())
    };
    assert!(moves.iter().any(|object| is_dead(&object.key)));
    // Each was there when it was looked for, and is gone when it is read.
    let going = Faulty::planned(Arc::new(storage), move |_, operation, key| {
        let reads = !matches!(operation, Operation::Head | Operation::List);
        let gone = reads && key.is_some_and(|key| dead.contains(key));
        gone.then_some(Fault::Fail(neon_storage::ErrorKind::NotFound))
    });
    let target = Repository::open(Arc::new(going), options()).await.unwrap();
    for id in [both, first, second] {
        assert!(restored(&open(&target, id).await).await.0 == taken[&id]);
    }
}

/// What a restore comes to, with all that an error says.
async fn try_restored(storage: &Clocked, key: bool, id: CommitId) -> Result<Files, String> {
    let work = async {
        let options = if key { sealed() } else { options() };
        let repository = Repository::open(Arc::new(storage.clone()), options).await?;
        let snapshot = Snapshot::open(&repository, id, &reader(&repository)).await?;
        let work = move || {
            let kept = Kept::default();
            restore(&snapshot, &kept, &RestoreOptions::default())?;
            Ok(kept.into_files())
        };
        tokio::task::spawn_blocking(work).await.unwrap()
    };
    work.await.map_err(|error: neon_pagestore::Error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(source) = cause {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        text
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_changed_byte_of_thinned_packs_and_their_moves_is_found_and_the_object_named() {
    let content = |seed| {
        let mut bytes = vec![seed as u8; PAGE];
        bytes[..250].copy_from_slice(&noise(250, seed));
        bytes
    };
    for key in [false, true] {
        let storage = Clocked::new();
        let repository = match key {
            true => encrypted(&storage).await,
            false => init(&storage).await,
        };
        let all: Vec<u64> = (1..16).collect();
        let first = make(&repository, files(&all, content), Selection::new(), None).await;
        let first = first.unwrap().id;
        let mut some = all.clone();
        some.iter_mut()
            .filter(|page| ![3, 4, 9].contains(*page))
            .for_each(|page| *page += 50);
        let taken = files(&some, content);
        let parent = open(&repository, first).await;
        let made = make(&repository, taken.clone(), Selection::new(), Some(&parent)).await;
        let id = made.unwrap().id;
        repository.destroy(first).await.unwrap();
        settle(&storage, &repository).await;
        let moves = storage.list_all("moves/").await.unwrap();
        let new: BTreeSet<&str> = moves
            .iter()
            .map(|object| object.key.segments().last().unwrap())
            .collect();
        assert!(!new.is_empty());
        let (mut met, mut tried) = (0, 0);
        for object in storage.list_all("").await.unwrap() {
            let name = object.key.segments().last().unwrap();
            if !new.contains(name) {
                continue;
            }
            let whole = storage.read(&object.key).await.unwrap();
            for at in 0..whole.len() {
                let mut changed = whole.to_vec();
                changed[at] ^= 1 << (at % 8);
                storage.overwrite(&object.key, changed).await.unwrap();
                let about = format!("byte {at} of {}", object.key);
                let found = repository.check(true).await.unwrap().findings;
                let named = found.iter().any(|finding| finding.object.contains(name));
                assert!(named, "{about}: {found:?}");
                match try_restored(&storage, key, id).await {
                    Ok(found) => assert!(found == taken, "{about}"),
                    Err(text) => {
                        assert!(text.contains(name), "{about}: {text}");
                        met += 1;
                    }
                }
                tried += 1;
            }
            storage.overwrite(&object.key, whole).await.unwrap();
        }
        println!("{tried} bytes, {met} of them used by the restore");
        assert!(met * 3 > tried, "{met} of {tried}");
        assert!(try_restored(&storage, key, id).await.unwrap() == taken);
    }
}
