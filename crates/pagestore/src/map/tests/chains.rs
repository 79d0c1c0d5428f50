//! Chains of snapshots: whatever was merged when, what the maps say is what the model says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use neon_snapshot_format::SnapshotPath;
use proptest::prelude::*;

use super::model::{Change, Cluster, File, Model, Page, change, paths};
use super::store::Store;
use crate::error::Result;
use crate::map::run_writer::Limits;
use crate::map::{
    At, Attributes, Cells, Diff, FileDiff, FrameRef, Group, List, LiveFrame, Lookup, MAX_RUNS,
    MapFrame, Mark, Merge, PageDigest, PageKey, PagePlace, RunRef, RunWriter, Spool, Stat, View,
    Walk, decode_runs, drive, encode_runs, policy,
};

/// Writes a delta and merges it with so many of the newest runs.
fn commit(
    store: &mut Store,
    parent: &View,
    groups: &[Group],
    digests: &[Vec<PageDigest>],
    limits: Limits,
    merged: Option<usize>,
) -> View {
    let mut writer = RunWriter::with_limits(Spool::default(), parent.page_size, limits).unwrap();
    for (group, digests) in groups.iter().zip(digests) {
        writer.push(group, digests).unwrap();
    }
    let (delta, spool) = writer.finish().unwrap();
    let sizes: Vec<_> = parent.runs.iter().map(RunRef::size).collect();
    let least = (parent.runs.len() + 1).saturating_sub(MAX_RUNS);
    let merged = match merged {
        Some(merged) => merged.clamp(least, parent.runs.len()),
        None => policy::plan(&sizes, delta.size()),
    };
    let (older, kept) = parent.runs.split_at(merged);
    store.next_pack();
    let known = store.frames.clone();
    let (page_size, bottom) = (parent.page_size, kept.is_empty());
    let mut merge =
        Merge::with_limits(&mut *store, page_size, &delta, older, bottom, limits).unwrap();
    let get = |frame: &FrameRef| match spool.get(frame) {
        Some(bytes) => MapFrame::decode(&bytes),
        None => Ok(known[&frame.id()].clone()),
    };
    let (run, _) = drive(&mut merge, get).unwrap().unwrap();
    drop(merge);
    let mut runs = vec![run];
    runs.extend_from_slice(kept);
    runs.retain(|run| !run.is_empty());
    assert!(runs.len() <= MAX_RUNS);
    assert_eq!(decode_runs(&encode_runs(&runs)).unwrap(), runs);
    View { runs, page_size }
}

fn pages_of(view: &View, file: &crate::map::MappedFile, with_digests: bool) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut digests = file.digests.iter();
    for extent in &file.extents {
        assert_eq!(
            extent.page as usize,
            pages.len(),
            "every page is in an extent"
        );
        for number in 0..extent.count {
            pages.push(match &extent.at {
                At::Zeros => None,
                At::Frame { frame, offset } => {
                    let digest = if with_digests {
                        *digests.next().unwrap()
                    } else {
                        [0; 16]
                    };
                    Some((*frame, offset + number * view.page_size, digest))
                }
            });
        }
    }
    assert_eq!(digests.next(), None);
    pages
}

fn walk(view: &View, get: &dyn Fn(&FrameRef) -> Result<MapFrame>, with_digests: bool) -> Model {
    let mut walk = Walk::new(view, with_digests);
    let mut model = Model::new();
    while let Some(file) = drive(&mut walk, get).unwrap() {
        let pages = pages_of(view, &file, with_digests);
        let attributes = file.attributes;
        assert!(
            model
                .last_key_value()
                .is_none_or(|(last, _)| *last < file.path)
        );
        model.insert(file.path, File { attributes, pages });
    }
    model
}

fn without_digests(model: &Model) -> Model {
    let mut model = model.clone();
    for file in model.values_mut() {
        for (.., digest) in file.pages.iter_mut().flatten() {
            *digest = [0; 16];
        }
    }
    model
}

/// Names the first difference only: a model is long.
fn assert_same(found: &Model, expected: &Model) {
    let paths = |model: &Model| model.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(found), paths(expected));
    for (path, file) in expected {
        let other = &found[path];
        assert_eq!(other.attributes, file.attributes, "{path}");
        assert_eq!(other.pages.len(), file.pages.len(), "{path}");
        for (number, (one, other)) in other.pages.iter().zip(&file.pages).enumerate() {
            assert_eq!(one, other, "{path} {number}");
        }
    }
}

fn check_view(view: &View, model: &Model, store: &Store) {
    let get = |frame: &FrameRef| store.get(frame);
    assert_same(&walk(view, &get, true), model);
    assert_same(&walk(view, &get, false), &without_digests(model));
    for path in paths() {
        let file = model.get(&path);
        let attributes = drive(&mut Stat::new(view, path.clone()), get).unwrap();
        assert_eq!(
            attributes.as_ref(),
            file.map(|file| &file.attributes),
            "{path}"
        );
        let count = file.map_or(0, |file| file.pages.len()) as u32;
        for page in (0..count)
            .step_by(7)
            .chain([count.wrapping_sub(1), count, u32::MAX])
        {
            let expected = match file.and_then(|file| file.pages.get(page as usize)) {
                None => PagePlace::NotThere,
                Some(None) => PagePlace::Zeros,
                Some(Some((frame, offset, digest))) => PagePlace::Frame {
                    frame: *frame,
                    offset: *offset,
                    digest: Some(*digest),
                },
            };
            store.reads();
            let key = PageKey {
                path: path.clone(),
                page,
            };
            let found = drive(&mut Lookup::new(view, key, true), get).unwrap();
            assert_eq!(found, expected, "{path} {page}");
            assert!(store.reads() <= 3 * view.runs.len() as u64);
        }
        check_listing(view, model, &path, &get);
    }
}

fn check_listing(
    view: &View,
    model: &Model,
    directory: &SnapshotPath,
    get: &dyn Fn(&FrameRef) -> Result<MapFrame>,
) {
    let mut prefix = directory.as_bytes().to_vec();
    if !prefix.is_empty() {
        prefix.push(b'/');
    }
    let below = |path: &SnapshotPath| path.as_bytes().starts_with(&prefix);
    let expected: Vec<(SnapshotPath, Attributes)> = model
        .iter()
        .filter(|(path, _)| below(path) && !path.is_root())
        .filter(|(path, _)| !path.as_bytes()[prefix.len()..].contains(&b'/'))
        .map(|(path, file)| (path.clone(), file.attributes.clone()))
        .collect();
    let mut list = List::new(view, directory);
    let listed: Vec<_> = std::iter::from_fn(|| drive(&mut list, get).unwrap()).collect();
    assert_eq!(listed, expected, "{directory}");

    let mut walk = Walk::new(view, false).below(directory);
    let walked: Vec<_> = std::iter::from_fn(|| drive(&mut walk, get).unwrap()).collect();
    let walked: Vec<_> = walked.iter().map(|file| &file.path).collect();
    let expected: Vec<_> = model.keys().filter(|path| below(path)).collect();
    assert_eq!(walked, expected, "{directory}");

    let mut walk = Walk::new(view, false).from(directory);
    let first = drive(&mut walk, get).unwrap().map(|file| file.path);
    assert_eq!(
        first.as_ref(),
        model.range(directory..).next().map(|(path, _)| path)
    );
}

fn check_diff(before: (&View, &Model), after: (&View, &Model), store: &Store, with_digests: bool) {
    let same = |one: &Page, other: &Page| match (one, other) {
        (None, None) => true,
        (Some((frame, offset, digest)), Some((other_frame, other_offset, other_digest))) => {
            (frame, offset) == (other_frame, other_offset) || with_digests && digest == other_digest
        }
        _ => false,
    };
    let paths: BTreeSet<_> = before.1.keys().chain(after.1.keys()).collect();
    let mut expected = Vec::new();
    for path in paths {
        let (one, other) = (before.1.get(path), after.1.get(path));
        let none = Vec::new();
        let left = one.map_or(&none, |file| &file.pages);
        let right = other.map_or(&none, |file| &file.pages);
        let mut pages: Vec<Range<u32>> = Vec::new();
        for page in 0..left.len().max(right.len()) {
            let equal = match (left.get(page), right.get(page)) {
                (Some(one), Some(other)) => same(one, other),
                _ => false,
            };
            match pages.last_mut() {
                _ if equal => {}
                Some(range) if range.end == page as u32 => range.end += 1,
                _ => pages.push(page as u32..page as u32 + 1),
            }
        }
        let (before, after) = (
            one.map(|file| file.attributes.clone()),
            other.map(|file| file.attributes.clone()),
        );
        if before != after || !pages.is_empty() {
            expected.push(FileDiff {
                path: path.clone(),
                before,
                after,
                pages,
            });
        }
    }
    let mut diff = Diff::new(before.0, after.0, with_digests);
    let get = |frame: &FrameRef| store.get(frame);
    let found: Vec<_> = std::iter::from_fn(|| drive(&mut diff, get).unwrap()).collect();
    assert_eq!(found, expected);
}

fn check_mark(snapshots: &[(View, Model)], store: &Store) {
    let mut expected: BTreeMap<_, (FrameRef, Cells)> = BTreeMap::new();
    for (view, model) in snapshots {
        let mut expect = |frame: &FrameRef, cells| {
            let known = expected.entry(frame.id());
            let (_, known) = known.or_insert((*frame, Cells::NONE));
            *known = known.and(cells);
        };
        for (frame, offset, ..) in model.values().flat_map(|file| file.pages.iter().flatten()) {
            expect(frame, frame.cells_of(*offset, 1, view.page_size));
        }
        for (_, frame) in view.runs.iter().flat_map(RunRef::index_frames) {
            expect(frame, frame.whole());
            for block in &store.get(frame).unwrap().index().unwrap().blocks {
                for frame in std::iter::once(&block.record).chain(&block.digests) {
                    expect(frame, frame.whole());
                }
            }
        }
    }
    let marked = |views: &mut dyn Iterator<Item = &View>| {
        let mut mark = Mark::new();
        for view in views {
            mark.add(view.clone());
            if view.runs.len() % 2 == 0 {
                drive(&mut mark, |frame| store.get(frame)).unwrap();
            }
        }
        drive(&mut mark, |frame| store.get(frame)).unwrap();
        mark.into_live()
    };
    // The oldest first, and the newest: what that one hides of a frame the others show.
    let live = marked(&mut snapshots.iter().map(|(view, _)| view));
    assert!(live == marked(&mut snapshots.iter().map(|(view, _)| view).rev()));
    let mut found = BTreeMap::new();
    for (pack, frames, bytes) in live.packs() {
        let of_pack: Vec<_> = live.frames(pack).collect();
        assert_eq!(of_pack.len() as u64, frames);
        assert_eq!(of_pack.iter().map(LiveFrame::bytes).sum::<u64>(), bytes);
        for frame in of_pack {
            assert_eq!(live.get((pack, frame.frame)), Some(frame));
            found.insert((pack, frame.frame), frame.cells);
            let (known, _) = &expected[&(pack, frame.frame)];
            assert_eq!(frame.whole, known.whole());
            assert_eq!(frame.stored_length, known.stored_length);
        }
    }
    let expected: BTreeMap<_, _> = expected
        .into_iter()
        .map(|(id, (_, cells))| (id, cells))
        .collect();
    assert_eq!(found, expected);
}

fn limits() -> impl Strategy<Value = Limits> {
    prop_oneof![
        Just(Limits {
            block: 400,
            pages: 200,
            index: 300
        }),
        Just(Limits {
            block: 1500,
            pages: 150,
            index: 1500
        }),
        Just(Limits {
            block: 10_000,
            pages: 8160,
            index: 400
        }),
        Just(Limits::default()),
    ]
}

type Step = (Vec<Change>, Option<usize>, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let merged = prop_oneof![1 => Just(None), 3 => (0..=4usize).prop_map(Some)];
    let step = (
        prop::collection::vec(change(), 0..12),
        merged,
        any::<bool>(),
    );
    let first = prop::collection::vec(change(), 30..60).prop_map(|first| (first, None, true));
    (first, prop::collection::vec(step, 1..9)).prop_map(|(first, mut steps)| {
        steps.insert(0, first);
        steps
    })
}

/// The long form takes many.
fn cases() -> u32 {
    match std::env::var_os("NEON_LONG_TESTS") {
        Some(_) => 1000,
        None => 32,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_merged_a_chain_of_snapshots_says_what_the_model_says(
        steps in steps(),
        limits in limits(),
        page_size in prop_oneof![Just(1024u32), Just(8192), Just(32768)],
        pick in any::<(prop::sample::Index, prop::sample::Index)>(),
    ) {
        let mut store = Store::default();
        let mut cluster = Cluster::new(page_size);
        let mut snapshots: Vec<(View, Model)> = Vec::new();
        let mut parent = View { runs: Vec::new(), page_size };
        for (changes, merged, branch) in &steps {
            // A snapshot need not be taken from the last one.
            if !*branch {
                let (view, model) = snapshots[pick.0.index(snapshots.len())].clone();
                parent = view;
                cluster.model = model;
            }
            let (groups, digests) = cluster.snapshot(changes);
            parent = commit(&mut store, &parent, &groups, &digests, limits, *merged);
            check_view(&parent, &cluster.model, &store);
            snapshots.push((parent.clone(), cluster.model.clone()));
        }
        let one = &snapshots[pick.0.index(snapshots.len())];
        let other = &snapshots[pick.1.index(snapshots.len())];
        let last = snapshots.last().unwrap();
        for (before, after) in [(one, other), (other, last), (last, one)] {
            for with_digests in [false, true] {
                check_diff((&before.0, &before.1), (&after.0, &after.1), &store, with_digests);
            }
        }
        check_mark(&snapshots, &store);
    }
}
