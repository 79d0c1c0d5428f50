//! A scan finds what differs and nothing else.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use neon_pagestore::changes::{
    Answer, ChangeSource, FileChange, FileFacts, Hints, ParentFile, ParentPage, ParentPages,
    ScanFile, ScanFiles, ScanSource, WholeReason,
};
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{ChangedSince, Parent};
use neon_pagestore::{CommitId, Error, ErrorKind, Result};
use neon_pg_layout::PgMajor;
use neon_snapshot_format::SnapshotPath;
use neon_snapshot_format::pgdata::Select;
use neon_storage::Memory;
use proptest::prelude::*;

use super::forged::ask;
use super::state::{Digests, Files, State};
use crate::files::{Selection, entry, make, noise, reader, restored};
use crate::support::init;

fn state(files: &[(&str, Vec<u8>)]) -> State {
    let files = files
        .iter()
        .map(|(path, content)| (SnapshotPath::new(*path).unwrap(), Arc::new(content.clone())));
    State(files.collect::<BTreeMap<_, _>>())
}

fn pages(numbers: &[u8], rest: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers
        .iter()
        .flat_map(|number| std::iter::repeat_n(*number, 8192))
        .collect();
    bytes.extend(std::iter::repeat_n(9, rest));
    bytes
}

fn file() -> impl Strategy<Value = Vec<u8>> {
    (
        prop::collection::vec(0..3_u8, 0..40),
        prop_oneof![3 => Just(0), 1 => 1..8192_usize],
        prop_oneof![Just(0), Just(9)],
    )
        .prop_map(|(numbers, rest, with)| {
            let mut bytes = pages(&numbers, 0);
            bytes.extend(std::iter::repeat_n(with, rest));
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_scan_leads_from_any_state_to_any_other(
        then in prop::collection::btree_map("[a-d]", file(), 0..4),
        now in prop::collection::btree_map("[a-d]", file(), 0..4),
    ) {
        let list = |files: &BTreeMap<String, Vec<u8>>| {
            let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), content.clone())).collect();
            state(&files)
        };
        let (then, now) = (list(&then), list(&now));
        let set = ask(&mut ScanSource::new(8192, &mut Files(now.0.iter()), &mut Digests(&then))).unwrap();
        prop_assert_eq!(set.hints(), Hints::Exact);
        let (made, read) = then.advanced(&now, &set, PgMajor::V16);
        prop_assert_eq!(&made.0, &now.0);
        // No page is read that is the same.
        let differ: u64 = now.0.iter().filter_map(|(path, content)| {
            let old = then.0.get(path)?;
            let old: Vec<_> = old.chunks(8192).collect();
            let same = |(number, page): (usize, &[u8])| old.get(number) == Some(&page);
            Some(content.chunks(8192).enumerate().filter(|page| !same(*page)).count() as u64)
        }).sum();
        prop_assert_eq!(read.pages, differ);
        for (path, content) in &now.0 {
            let change = set.of(&FileFacts {
                path,
                size: content.len() as u64,
                parent_size: then.0.get(path).map(|old| old.len() as u64),
                unlogged: true,
            });
            prop_assert_eq!(change == FileChange::Unchanged, then.0.get(path) == Some(content));
        }
    }
}

#[test]
fn pages_of_zeros_need_no_digest() {
    assert_eq!(ParentPage::of(&[0; 8192]), ParentPage::Zeros);
    assert!(ParentPage::Zeros.is(&[0; 100]));
    let mut page = [0; 8192];
    page[8191] = 1;
    let digest = ParentPage::of(&page);
    assert!(digest.is(&page) && !digest.is(&[0; 8192]) && !ParentPage::Zeros.is(&page));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_whose_length_changes_within_zeros_are_taken_again() {
    let repository = init(&Memory::new()).await;
    let sizes = [0, 1, 100, 8191, 8192, 8193, 8292, 16_383, 16_384, 20_000];
    let pairs = || {
        sizes
            .into_iter()
            .flat_map(|then| sizes.map(|now| (then, now)))
    };
    let content = |size: usize| {
        let mut bytes = noise(size, 3);
        let from = size.min(4096);
        bytes[from..].fill(0);
        bytes
    };
    let tree = |size: fn((usize, usize)) -> usize| -> crate::files::Files {
        let files = (20_000..).zip(pairs());
        let files = files.map(|(name, pair)| (format!("base/5/{name}"), content(size(pair))));
        let folders = ["base/", "base/5/"].map(|name| (name.to_owned(), Vec::new()));
        files.chain(folders).collect()
    };
    let (then, now) = (tree(|pair| pair.0), tree(|pair| pair.1));
    let first = make(&repository, then, Selection::new(), None)
        .await
        .unwrap();
    let maps = reader(&repository);
    let parent = Snapshot::open(&repository, first.id, &maps).await.unwrap();
    let (of, files) = (parent.clone(), now.clone());
    let selection = tokio::task::spawn_blocking(move || {
        let files = files.iter().filter(|(name, _)| !name.ends_with('/'));
        let files: Vec<_> = files
            .map(|(name, bytes)| (name.as_str(), bytes.clone()))
            .collect();
        let state = state(&files);
        let mut digests = of.parent_pages().unwrap();
        let set = ask(&mut ScanSource::new(
            8192,
            &mut Files(state.0.iter()),
            &mut digests,
        ));
        let set = set.unwrap();
        let select = ChangedSince::new(&set, Parent::of(&of)).unwrap();
        let wanted = |(name, bytes): &(&str, Vec<u8>)| {
            let wanted = select.wanted(&entry(name, bytes.len())).unwrap();
            ((*name).to_owned(), wanted)
        };
        files.iter().map(wanted).collect::<Selection>()
    });
    let selection = selection.await.unwrap();
    let second = make(&repository, now.clone(), selection, Some(&parent))
        .await
        .unwrap();
    let snapshot = Snapshot::open(&repository, second.id, &maps).await.unwrap();
    assert!(restored(&snapshot).await.0 == now);
}

#[test]
fn a_file_that_was_not_scanned_is_read_in_whole() {
    let then = state(&[("a", pages(&[1], 0)), ("b", pages(&[1], 0))]);
    let now = state(&[("a", pages(&[1], 0))]);
    let set = ask(&mut ScanSource::new(
        8192,
        &mut Files(now.0.iter()),
        &mut Digests(&then),
    ))
    .unwrap();
    let of = |path: &str, parent_size| {
        set.of(&FileFacts {
            path: &SnapshotPath::new(path).unwrap(),
            size: 8192,
            parent_size,
            unlogged: false,
        })
    };
    assert_eq!(of("a", Some(8192)), FileChange::Unchanged);
    assert_eq!(
        of("b", Some(8192)),
        FileChange::Whole(WholeReason::NotKnown)
    );
    assert_eq!(of("c", None), FileChange::Whole(WholeReason::New));
}

struct Failing;

impl ParentPages for Failing {
    fn snapshot(&self) -> CommitId {
        CommitId::of(b"nothing")
    }

    fn file(&mut self, _: &SnapshotPath) -> Result<Option<ParentFile<'_>>> {
        Ok(Some(ParentFile {
            size: 8192,
            pages: Box::new(std::iter::once_with(|| {
                Err(Error::new(ErrorKind::Damaged, "digests", "are not there"))
            })),
        }))
    }
}

impl ScanFiles for Failing {
    fn next(&mut self) -> Result<Option<ScanFile<'_>>> {
        Err(Error::new(ErrorKind::Io, "a file", "cannot be opened"))
    }
}

#[test]
fn digests_and_files_that_cannot_be_read_fail_the_scan() {
    let now = state(&[("a", pages(&[1], 0))]);
    let error = ScanSource::new(8192, &mut Files(now.0.iter()), &mut Failing)
        .changes()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let error = ScanSource::new(8192, &mut Failing, &mut Digests(&now))
        .changes()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn a_scan_that_was_stopped_leaves_the_file_it_was_in_to_be_read() {
    let then = state(&[
        ("a", pages(&[1; 40], 0)),
        ("b", pages(&[1; 40], 0)),
        ("c", pages(&[1], 0)),
    ]);
    let (mut files, mut digests) = (Files(then.0.iter()), Digests(&then));
    let mut asked = 0;
    let mut scan = ScanSource::new(8192, &mut files, &mut digests).watched(|_| {
        asked += 1;
        if asked == 5 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(scan.changes().unwrap_err().kind(), ErrorKind::Cancelled);
    let Answer::Exact(set) = scan.changes().unwrap() else {
        panic!("a scan always answers");
    };
    let of = |path: &str, count: u64| {
        set.of(&FileFacts {
            path: &SnapshotPath::new(path).unwrap(),
            size: count * 8192,
            parent_size: Some(count * 8192),
            unlogged: false,
        })
    };
    assert_eq!(of("a", 40), FileChange::Unchanged);
    assert_eq!(of("b", 40), FileChange::Whole(WholeReason::NotKnown));
    assert_eq!(of("c", 1), FileChange::Unchanged);
}
