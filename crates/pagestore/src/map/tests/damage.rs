//! Damaged maps are refused or read as something else; no machine panics or asks for ever.

use std::path::Path;

use bytes::{BufMut, Bytes};
use proptest::prelude::*;

use super::model::{Change, Cluster, change};
use crate::fuzz_targets::{ALL, page_map_view};
use crate::map::run_writer::Limits;
use crate::map::{FrameRef, RunWriter, Spool, encode_runs};

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
