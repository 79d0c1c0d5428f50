//! Damaged maps are refused or read as something else; no machine panics or asks for ever.

use std::path::Path;

use bytes::{BufMut, Bytes};
use neon_snapshot_format::SnapshotPath;
use neon_snapshot_format::pack::PackId;
use proptest::prelude::*;

use super::model::{Change, Cluster, change};
use super::store::Store;
use crate::ErrorKind;
use crate::crypt::DataKey;
use crate::fuzz_targets::{ALL, page_map_view};
use crate::map::run_writer::Limits;
use crate::map::{
    At, Attributes, Extent, FileKind, FileState, FrameRef, Group, Mark, PackRef, RunWriter, Spool,
    View, Walk, drive, encode_runs,
};

#[test]
fn every_target_has_its_program() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in ALL {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&path), "{path}");
        let program = std::fs::read_to_string(fuzz.join(&path)).unwrap();
        let body = format!("neon_pagestore::fuzz_targets::{name}(bytes)");
        assert!(program.contains(&body), "{path}");
    }
}

/// Of a page that is larger than the commit says cells would be dropped.
#[test]
fn a_map_of_pages_of_another_size_than_its_commit_says_is_refused() {
    let mut store = Store::default();
    store.next_pack();
    let frame = FrameRef {
        pack: PackRef {
            id: PackId([7; 16]),
            key: DataKey([0; 32]),
        },
        frame: 0,
        offset: 64,
        stored_length: 100_000,
        plain_length: 131_072,
        codec: 1,
        sealed: false,
        digest: [0; 16],
    };
    let state = FileState::Present {
        attributes: Attributes {
            kind: FileKind::File { size: 65536 },
            mode: 0o600,
            owner: None,
            modified: 0,
        },
        limit: 0,
    };
    let group = Group {
        path: SnapshotPath::new("large").unwrap(),
        state,
        extents: vec![Extent {
            page: 0,
            count: 2,
            at: At::Frame { frame, offset: 0 },
        }],
    };
    let mut writer = RunWriter::new(&mut store, 32768).unwrap();
    writer.push(&group, &[[1; 16]; 2]).unwrap();
    let (run, _) = writer.finish().unwrap();
    for page_size in [8192, 16384, 32768] {
        let view = View {
            runs: vec![run.clone()],
            page_size,
        };
        let mut mark = Mark::new();
        mark.add(view.clone());
        let marked = drive(&mut mark, |frame| store.get(frame));
        let walked = drive(&mut Walk::new(&view, false), |frame| store.get(frame));
        for problem in [marked.err(), walked.err()] {
            let expected = (page_size != 32768).then_some(ErrorKind::Malformed);
            assert_eq!(problem.map(|problem| problem.kind()), expected);
        }
    }
}

/// Two runs and their frames, as the target for views takes them.
fn texts(changes: &[Vec<Change>]) -> Vec<Vec<u8>> {
    let mut cluster = Cluster::new(8192);
    let limits = Limits {
        block: 1000,
        pages: 150,
        index: 400,
    };
    let (mut spool, mut runs) = (Spool::default(), Vec::new());
    for changes in changes {
        let (groups, digests) = cluster.snapshot(changes);
        let mut writer = RunWriter::with_limits(&mut spool, 8192, limits).unwrap();
        for (group, digests) in groups.iter().zip(&digests) {
            writer.push(group, digests).unwrap();
        }
        let (run, _) = writer.finish().unwrap();
        runs.insert(0, run);
    }
    let some = runs.iter().flat_map(|run| run.index_frames()).next();
    let some = some.map(|(_, frame)| *frame);
    let mut texts = vec![encode_runs(&runs)];
    let frames = (0..).map_while(|frame| spool.get(&FrameRef { frame, ..some? }));
    texts.extend(frames.map(|frame: Bytes| frame.to_vec()));
    texts
}

fn changes() -> impl Strategy<Value = Vec<Vec<Change>>> {
    let first = prop::collection::vec(change(), 20..40);
    let second = prop::collection::vec(change(), 1..10);
    (first, second).prop_map(|(first, second)| vec![first, second])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn readers_survive_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        for (_, target) in ALL {
            target(&bytes);
        }
    }

    #[test]
    fn readers_survive_damaged_maps(
        changes in changes(),
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()),
            1..4,
        ),
        swap in any::<Option<(prop::sample::Index, prop::sample::Index)>>(),
    ) {
        let mut texts = texts(&changes);
        for (text, at, value) in damage {
            let which = text.index(texts.len());
            let text = &mut texts[which];
            let at = at.index(text.len());
            text[at] = value;
        }
        if let Some((one, other)) = swap {
            let (one, other) = (one.index(texts.len()), other.index(texts.len()));
            texts.swap(one, other);
        }
        let mut bytes = Vec::new();
        for text in &texts {
            bytes.put_u16_le(text.len() as u16);
            bytes.extend_from_slice(text);
            let body = text.get(4..).unwrap_or_default();
            for (_, target) in ALL {
                target(text);
                target(body);
            }
        }
        page_map_view(&bytes);
    }
}
