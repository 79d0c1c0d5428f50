//! Every decoder survives whatever bytes it is given, and damaged copies of valid ones.

use std::path::Path;

use neon_pg_layout::fuzz_targets::ALL;
use neon_testkit::{Cluster, PgMajor};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_decoder_survives_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        for (_, target) in ALL {
            target(&bytes);
        }
    }

    #[test]
    fn every_decoder_survives_arbitrary_text(text in "\\PC{0,400}") {
        for (_, target) in ALL {
            target(text.as_bytes());
        }
    }
}

#[test]
fn every_fuzz_target_has_its_program() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let listed = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let programs = std::fs::read_dir(fuzz.join("fuzz_targets")).unwrap();
    let ours = programs.filter(|program| {
        let program = std::fs::read_to_string(program.as_ref().unwrap().path()).unwrap();
        program.contains("neon_pg_layout::")
    });
    assert_eq!(ours.count(), ALL.len());
    for (name, _) in ALL {
        let path = format!("fuzz_targets/{name}.rs");
        let program = std::fs::read_to_string(fuzz.join(&path)).unwrap();
        assert!(
            program.contains(&format!("fuzz_targets::{name}(bytes)")),
            "{path}"
        );
        assert!(listed.contains(&format!("path = \"{path}\"")), "{path}");
    }
}

/// Something that damages bytes.
#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    /// A line of the text away, doubled, or exchanged with the next.
    Line(prop::sample::Index, u8),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    let byte = prop_oneof![
        any::<u8>(),
        prop::sample::select(&b"\0\n \\/\"09AFx{}[],:"[..])
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        (at(), byte).prop_map(|(at, byte)| Damage::Set(at, byte)),
        at().prop_map(Damage::Cut),
        (at(), 1..40_usize).prop_map(|(at, len)| Damage::Remove(at, len)),
        (at(), 1..40_usize).prop_map(|(at, len)| Damage::Repeat(at, len)),
        (at(), 0..3_u8).prop_map(|(at, what)| Damage::Line(at, what)),
    ]
}

fn apply(damage: &Damage, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    match damage {
        Damage::Flip(at, mask) => *at.get_mut(bytes) ^= mask,
        Damage::Set(at, byte) => *at.get_mut(bytes) = *byte,
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Damage::Remove(at, len) => {
            let start = at.index(bytes.len());
            let end = (start + len).min(bytes.len());
            bytes.drain(start..end);
        }
        Damage::Repeat(at, len) => {
            let start = at.index(bytes.len());
            let end = (start + len).min(bytes.len());
            let again = bytes[start..end].to_vec();
            bytes.splice(start..start, again);
        }
        Damage::Line(at, what) => {
            let mut lines: Vec<Vec<u8>> = bytes
                .split_inclusive(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect();
            let at = at.index(lines.len());
            match what {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                _ if at + 1 < lines.len() => lines.swap(at, at + 1),
                _ => {}
            }
            *bytes = lines.concat();
        }
    }
}

/// Valid bytes of every kind, of one cluster.
fn samples(major: PgMajor) -> Vec<Vec<u8>> {
    let mut builder = Cluster::builder(major).setting("archive_mode", "on");
    builder = builder.setting("archive_command", "false");
    if major.layout().has_wal_summaries {
        builder = builder.setting("summarize_wal", "on");
    }
    let cluster = crate::files::furnished(builder);
    let target = cluster.scratch_dir().join("backup");
    // With `-X none` it would wait for the archive that never takes anything.
    cluster.run_tool(
        "pg_basebackup",
        [
            "-c",
            "fast",
            "--no-sync",
            "-X",
            "fetch",
            "-Ft",
            "-D",
            target.to_str().unwrap(),
        ],
    );
    let data = cluster.data_dir();
    let mut samples: Vec<Vec<u8>> = [
        data.join("global/pg_control"),
        data.join("global/pg_filenode.map"),
        data.join("postmaster.pid"),
    ]
    .iter()
    .map(|path| std::fs::read(path).unwrap())
    .collect();
    // A whole manifest is long; a short one reaches the same code and far more often.
    let manifest = std::fs::read(target.join("backup_manifest")).unwrap();
    let mut manifest = neon_pg_layout::Manifest::parse(&manifest).unwrap();
    manifest.files.truncate(3);
    samples.push(manifest.to_bytes());
    let big = cluster.psql("select pg_relation_filepath('big')");
    let pages = std::fs::read(data.join(&big)).unwrap();
    samples.extend(pages.chunks(8192).take(2).map(<[u8]>::to_vec));
    for folder in ["pg_wal", "pg_wal/summaries"] {
        samples.extend(small_files(&data.join(folder)));
    }
    let history = samples.iter().find_map(|bytes| {
        let history = neon_pg_layout::BackupHistory::parse(bytes).ok()?;
        Some(history.label.to_bytes())
    });
    samples.push(history.expect("the backup left its history file"));
    samples.push(b"16400 /srv/fast disk\n16401 /srv/\\\\back\n".to_vec());
    samples.push(b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tmore\n".to_vec());
    samples.push(big.into_bytes());
    samples.push(b"000000010000000A000000FE.00000028.backup".to_vec());
    samples.push(b"0000000100000000010000280000000001532530.summary".to_vec());
    samples
}

fn small_files(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    let small = paths.filter(|path| {
        path.metadata()
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() < 1 << 16)
    });
    small.map(|path| std::fs::read(path).unwrap()).collect()
}

fn damaged_real_bytes(major: PgMajor) {
    let samples = samples(major);
    for sample in &samples {
        for (_, target) in ALL {
            target(sample);
        }
    }
    let strategy = (
        any::<prop::sample::Index>(),
        prop::collection::vec(damage(), 1..5),
    );
    let mut runner = TestRunner::new(ProptestConfig::with_cases(1500));
    let outcome = runner.run(&strategy, |(sample, damages)| {
        let mut bytes = samples[sample.index(samples.len())].clone();
        for damage in &damages {
            apply(damage, &mut bytes);
        }
        for (_, target) in ALL {
            target(&bytes);
        }
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn every_decoder_survives_damaged_files_of_13() {
    damaged_real_bytes(PgMajor::V13);
}

#[test]
fn every_decoder_survives_damaged_files_of_18() {
    damaged_real_bytes(PgMajor::V18);
}
