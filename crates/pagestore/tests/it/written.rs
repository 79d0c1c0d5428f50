//! What was written comes back, by every way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_pagestore::ErrorKind;
use neon_pagestore::changes::Hints;
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter};
use neon_snapshot_format::Wanted;
use neon_storage::{Memory, Meter, Operation, Storage};

use crate::files::{Files, Selection, make, noise, path, reader, restored, send_all, sent, varied};
use crate::support::{empty_commit, init, options};

fn without_root(mut files: Files) -> Files {
    files.remove("/");
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_comes_back_page_by_page_in_order_and_in_parallel() {
    let repository = init(&Memory::new()).await;
    let files = varied();
    let made = make(&repository, files.clone(), Selection::new(), None)
        .await
        .unwrap();
    let snapshot = Snapshot::open(&repository, made.id, &reader(&repository))
        .await
        .unwrap();
    for (name, bytes) in files.iter().filter(|(name, _)| !name.ends_with('/')) {
        let path = path(name);
        for (page, expected) in (0..).zip(bytes.chunks(8192)) {
            let found = snapshot.read_page(&path, page).await.unwrap().unwrap();
            assert!(found == expected, "{name} page {page}");
        }
        let behind = u32::try_from(bytes.len().div_ceil(8192)).unwrap();
        assert!(snapshot.read_page(&path, behind).await.unwrap().is_none());
        let size = bytes.len() as u64;
        for range in [0..size, 5..size + 9, size / 3..size / 2, size..size + 1] {
            let found = snapshot.read_range(&path, range.clone()).await.unwrap();
            let from = usize::try_from(range.start).unwrap().min(bytes.len());
            let to = usize::try_from(range.end)
                .unwrap()
                .min(bytes.len())
                .max(from);
            assert!(found == bytes[from..to], "{name} {range:?}");
        }
    }
    let (in_order, order, _) = sent(&snapshot).await;
    let first_file = order.iter().position(|name| !name.ends_with('/')).unwrap();
    assert!(order[first_file..].iter().all(|name| !name.ends_with('/')));
    assert_eq!(order.last().unwrap(), "global/pg_control");
    let (in_parallel, report) = restored(&snapshot).await;
    let mut expected = files.clone();
    let root = expected.remove("/").unwrap();
    expected.insert("/".to_owned(), root);
    assert!(in_order == expected && in_parallel == expected);
    let sizes: usize = files.values().map(Vec::len).sum();
    assert_eq!(report.bytes, sizes as u64);
    assert!(
        report.used.received < 2 * report.live,
        "{} received for {} live",
        report.used.received,
        report.live
    );

    let listed = snapshot.list(&path("base/5")).await.unwrap();
    let names: Vec<String> = listed.iter().map(|(path, _)| path.to_string()).collect();
    let expected: Vec<String> = without_root(files)
        .into_keys()
        .filter(|name| name.starts_with("base/5/") && *name != "base/5/")
        .collect();
    assert_eq!(names, expected);
    let error = snapshot.read_page(&path("base/6"), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_with_a_parent_has_what_came_and_the_rest_of_the_parent() {
    let repository = init(&Memory::new()).await;
    let maps = reader(&repository);
    let mut files = varied();
    let made = make(&repository, files.clone(), Selection::new(), None)
        .await
        .unwrap();
    let mut parent = Snapshot::open(&repository, made.id, &maps).await.unwrap();
    for round in 0..12_u64 {
        let mut selection: Selection = files
            .keys()
            .map(|name| (name.clone(), Wanted::Nothing))
            .collect();
        // Pages here and there.
        let mut changed = 0;
        for (number, (name, bytes)) in (0_u64..).zip(files.iter_mut()) {
            if name.ends_with('/') || bytes.is_empty() || (number + round) % 4 != 0 {
                continue;
            }
            let mut ranges = Vec::new();
            let size = bytes.len();
            for (page, content) in bytes.chunks_mut(8192).enumerate() {
                if (page as u64 * 31 + round) % 9 < 2 {
                    let fresh = noise(content.len(), round * 1000 + number + page as u64);
                    content.copy_from_slice(&fresh);
                    if (page as u64 + round).is_multiple_of(6) {
                        content.fill(0);
                    }
                    let start = page as u64 * 8192;
                    ranges.push(start..(start + 8192).min(size as u64));
                    changed += 1;
                }
            }
            selection.insert(name.clone(), Wanted::Ranges(ranges));
        }
        // One grows, one shrinks, one is new, one goes, one is written anew.
        let grown = files.get_mut("base/5/16400").unwrap();
        let from = grown.len() as u64 / 8192 * 8192;
        grown.extend(noise(20_000, round));
        let to = grown.len() as u64;
        selection.insert(
            "base/5/16400".to_owned(),
            Wanted::Ranges(std::iter::once(from..to).collect()),
        );
        let shrunk = files.get_mut("base/5/16401").unwrap();
        shrunk.truncate(shrunk.len() - 40_000);
        selection.insert("base/5/16401".to_owned(), Wanted::Nothing);
        let size = shrunk.len() as u64;
        selection.insert(
            "base/5/16401".to_owned(),
            Wanted::Ranges(std::iter::once(size / 8192 * 8192..size).collect()),
        );
        files.insert(format!("base/5/new{round}"), noise(50_000, round));
        files.remove(&format!("base/5/{}", 1100 + round));
        files.insert("base/5/16399".to_owned(), noise(70_000, 5000 + round));
        selection.insert("base/5/16399".to_owned(), Wanted::Whole);

        let made = make(&repository, files.clone(), selection, Some(&parent))
            .await
            .unwrap();
        assert!(made.stored.view.runs.len() <= 4);
        assert!(made.stored.report.pages < changed + 40);
        parent = Snapshot::open(&repository, made.id, &maps).await.unwrap();
        let (found, report) = restored(&parent).await;
        for (name, bytes) in &files {
            assert!(found.get(name) == Some(bytes), "{name} in round {round}");
        }
        assert_eq!(found.len(), files.len());
        assert!(report.used.received < 2 * report.live);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_large_file_that_comes_whole_only_pages_that_changed_are_stored() {
    let repository = init(&Memory::new()).await;
    let mut files = Files::from([
        ("/".to_owned(), Vec::new()),
        ("base/".to_owned(), Vec::new()),
        ("base/1_fsm".to_owned(), noise(5_000_000, 1)),
        ("base/2".to_owned(), noise(5_000_000, 2)),
    ]);
    let made = make(&repository, files.clone(), Selection::new(), None)
        .await
        .unwrap();
    let parent = Snapshot::open(&repository, made.id, &reader(&repository))
        .await
        .unwrap();
    for name in ["base/1_fsm", "base/2"] {
        files.get_mut(name).unwrap()[3_000_000..3_000_010].fill(7);
    }
    let range = 3_000_000 / 8192 * 8192..3_000_000 / 8192 * 8192 + 3 * 8192;
    let selection = Selection::from([
        ("base/1_fsm".to_owned(), Wanted::Whole),
        ("base/2".to_owned(), Wanted::Ranges([range].into())),
    ]);
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer, sent_files) = (repository.clone(), writing.writer(), files.clone());
    let with = parent.clone();
    let stored = tokio::task::spawn_blocking(move || {
        let sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default())
            .unwrap()
            .with_hints(Hints::Exact)
            .with_parent(Parent::of(&with));
        send_all(&sink, &sent_files, &selection);
        sink.complete().unwrap()
    })
    .await
    .unwrap();
    // Of the ranges all that came, of the whole file what is new.
    let report = stored.report;
    assert_eq!((report.pages, report.same_pages), (4, 610), "{report:?}");
    let commit = stored.commit(empty_commit(&[]).facts).unwrap();
    let id = writing.commit(&commit).await.unwrap().id;
    let snapshot = Snapshot::open(&repository, id, &reader(&repository)).await;
    assert!(restored(&snapshot.unwrap()).await.0 == files);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_nobody_has_are_noticed() {
    let repository = init(&Memory::new()).await;
    let maps = reader(&repository);
    let files = Files::from([
        ("a".to_owned(), noise(50_000, 1)),
        ("/".to_owned(), Vec::new()),
    ]);
    let made = make(&repository, files.clone(), Selection::new(), None)
        .await
        .unwrap();
    let parent = Snapshot::open(&repository, made.id, &maps).await.unwrap();
    let nothing = |name: &str| BTreeMap::from([(name.to_owned(), Wanted::Nothing)]);
    let mut new = files.clone();
    new.insert("b".to_owned(), noise(10, 2));
    let mut grown = files.clone();
    grown.get_mut("a").unwrap().extend([1; 10_000]);
    let start: Wanted = Wanted::Ranges(std::iter::once(0..8192).collect());
    for (files, selection, parent) in [
        (new, nothing("b"), Some(&parent)),
        (grown.clone(), nothing("a"), Some(&parent)),
        (
            grown,
            BTreeMap::from([("a".to_owned(), start)]),
            Some(&parent),
        ),
        (files, nothing("a"), None),
    ] {
        let error = make(&repository, files, selection, parent).await.err();
        assert_eq!(
            error.map(|error| error.kind()),
            Some(ErrorKind::Inconsistent)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_page_costs_one_request_once_its_map_is_known_and_a_handful_before() {
    let large = "base/5/16401";
    // The base, and a run on top for each snapshot that changed some pages.
    for runs in 1..=4 {
        let memory = Memory::new();
        let repository = init(&memory).await;
        let mut files = varied();
        let base = make(&repository, files.clone(), Selection::new(), None);
        let mut made = base.await.unwrap();
        for run in 1..runs {
            let parent = Snapshot::open(&repository, made.id, &reader(&repository)).await;
            let nothing = files.keys().map(|name| (name.clone(), Wanted::Nothing));
            let mut selection: Selection = nothing.collect();
            let pages = [20 * run, 200 + run].map(|page| page * 8192..(page + 1) * 8192);
            let content = files.get_mut(large).unwrap();
            for page in pages.clone() {
                let fresh = noise(8192, 1000 + page.start as u64);
                content[page].copy_from_slice(&fresh);
            }
            let pages = pages.map(|page| page.start as u64..page.end as u64);
            selection.insert(large.to_owned(), Wanted::Ranges(pages.into()));
            made = make(
                &repository,
                files.clone(),
                selection,
                Some(&parent.unwrap()),
            )
            .await
            .unwrap();
        }
        assert_eq!(made.stored.view.runs.len(), runs);

        let requests = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&requests);
        let metered: Arc<dyn Storage> = Arc::new(Meter::new(Arc::new(memory), move |event| {
            if event.operation != Operation::Open {
                counter.fetch_add(1, Ordering::SeqCst);
            }
        }));
        let repository = neon_pagestore::Repository::open(metered, options())
            .await
            .unwrap();
        let taken = |since: u64| requests.load(Ordering::SeqCst) - since;
        let start = taken(0);
        let snapshot = Snapshot::open(&repository, made.id, &reader(&repository))
            .await
            .unwrap();
        snapshot.read_page(&path(large), 77).await.unwrap();
        // Of each run its index and a block.
        let most = 4 + 2 * runs as u64;
        assert!(taken(start) <= most, "{runs} runs: {}", taken(start));
        // Of the base, and of every run on top, each in another frame.
        let newer = (1..runs as u32).map(|run| 20 * run);
        for page in [3, 345, 190, 250].into_iter().chain(newer) {
            let before = taken(0);
            let found = snapshot.read_page(&path(large), page).await;
            let from = page as usize * 8192;
            assert_eq!(found.unwrap().unwrap(), files[large][from..from + 8192]);
            assert_eq!(taken(before), 1, "{runs} runs, page {page}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_again_and_is_the_same_is_not_stored_again() {
    let repository = init(&Memory::new()).await;
    let maps = reader(&repository);
    let mut files = varied();
    let made = make(&repository, files.clone(), Selection::new(), None)
        .await
        .unwrap();
    let parent = Snapshot::open(&repository, made.id, &maps).await.unwrap();
    let again = make(&repository, files.clone(), Selection::new(), Some(&parent))
        .await
        .unwrap();
    let report = again.stored.report;
    assert!(report.same_pages > 700, "{report:?}");
    assert_eq!((report.pages, report.stored_data), (0, 0));
    assert_eq!(again.stored.view, made.stored.view);

    // Of what differs, the pages that differ are stored.
    let changed = files.get_mut("base/5/16401").unwrap();
    changed[100_000] ^= 1;
    changed[8192 * 7..8192 * 9].fill(0);
    let shrunk = files.get_mut("base/5/16400").unwrap();
    shrunk.truncate(500_000);
    let third = make(&repository, files.clone(), Selection::new(), Some(&parent))
        .await
        .unwrap();
    let report = third.stored.report;
    // The page with the byte, and the one that is cut off within.
    assert_eq!((report.pages, report.zero_pages), (2, 2));
    let snapshot = Snapshot::open(&repository, third.id, &maps).await.unwrap();
    assert!(restored(&snapshot).await.0 == files);
}

/// Merged maps are written while their parents are read, in more pieces than are sent at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maps_of_many_pieces_are_merged() {
    let repository = init(&Memory::new()).await;
    let maps = reader(&repository);
    let folders = ["/", "base/", "base/5/"].map(|name| (name.to_owned(), Vec::new()));
    let mut all: Files = folders.into_iter().collect();
    let mut parent: Option<Snapshot> = None;
    // The fifth finds four runs, and merges them.
    for round in 0..5_u64 {
        let known = all.keys().filter(|name| !name.ends_with('/'));
        let selection = known.map(|name| (name.clone(), Wanted::Nothing)).collect();
        all.extend((0..4000).map(|number| {
            let number = number * 5 + round;
            (format!("base/5/{number}"), noise(24, number))
        }));
        let made = make(&repository, all.clone(), selection, parent.as_ref()).await;
        let made = made.unwrap();
        if round == 4 {
            assert!(made.stored.view.runs.len() < 4);
            let stored = made.stored.report.stored_metadata;
            assert!(stored > 256 << 10, "{stored} bytes of maps");
        }
        let snapshot = Snapshot::open(&repository, made.id, &maps).await;
        parent = Some(snapshot.unwrap());
    }
    assert!(restored(&parent.unwrap()).await.0 == all);
}
