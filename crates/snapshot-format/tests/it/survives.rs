//! Readers survive whatever bytes they are given, and damaged copies of valid ones.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use neon_snapshot_format::basebackup::{BaseBackupWriter, TarOptions};
use neon_snapshot_format::fuzz_targets::ALL;
use neon_snapshot_format::pgdata::PgData;
use neon_snapshot_format::{Compression, Source};
use neon_testkit::{Cluster, PgMajor};
use proptest::prelude::*;

/// Valid bytes of every format: golden packs, and the first members of a real archive, ended.
fn valid() -> &'static Vec<Vec<u8>> {
    static VALID: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    VALID.get_or_init(|| {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut all: Vec<_> = ["v1-none.neon", "v1-lz4.neon", "v1-zstd.neon"]
            .into_iter()
            .map(|name| fs::read(golden.join(name)).unwrap())
            .collect();
        let cluster = Cluster::builder(PgMajor::V13).init();
        let mut tar = Vec::new();
        let mut writer = BaseBackupWriter::in_stream(&mut tar, TarOptions::default());
        PgData::cold(&cluster.data_dir())
            .unwrap()
            .send(&mut writer)
            .unwrap();
        drop(writer);
        tar.truncate(200 << 10);
        for compression in [Compression::Gzip(1), Compression::Lz4, Compression::Zstd(1)] {
            let mut packed = Vec::new();
            let how = TarOptions {
                compression,
                ..TarOptions::default()
            };
            let mut writer = BaseBackupWriter::in_stream(&mut packed, how);
            PgData::cold(&cluster.data_dir())
                .unwrap()
                .send(&mut writer)
                .unwrap();
            drop(writer);
            packed.truncate(60 << 10);
            all.push(packed);
        }
        all.push(tar);
        all
    })
}

#[test]
fn every_target_has_its_program() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in ALL {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&path), "{path}");
        let program = fs::read_to_string(fuzz.join(&path)).unwrap();
        let body = format!("neon_snapshot_format::fuzz_targets::{name}(bytes)");
        assert!(program.contains(&body), "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn readers_survive_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        for (_, target) in ALL {
            target(&bytes);
        }
    }

    #[test]
    fn readers_survive_damaged_files(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = which.get(valid()).clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        for (_, target) in ALL {
            target(&bytes);
        }
    }
}
