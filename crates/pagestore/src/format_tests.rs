//! Golden files of the small objects (that of the repository itself is read beside it), and the fuzz targets over mutations of them.

use std::path::PathBuf;

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::catalog::Entry;
use crate::claim::ClaimBody;
use crate::commit_object::CommitObject;
use crate::crypt::{EpochKey, KeySource, Keyring};
use crate::doomed::{DoomedBody, Stage};
use crate::lease::LeaseBody;
use crate::map::Cells;
use crate::moves::{MovedFrame, decode, encode, flags};
use crate::pin::PinBody;
use crate::read::{Form, Thinned};
use crate::tombstone::TombstoneBody;
use neon_pg_layout::{PgMajor, SystemIdentifier, TimelineId};
use neon_snapshot_format::SnapshotKind;
use neon_snapshot_format::pack::PackId;
use neon_storage::Key;

const WRITER: WriterId = WriterId([3; 8]);
const COMMIT: CommitId = CommitId([5; 32]);

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn facts() -> Facts {
    let system = SystemIdentifier::new(7_710_187_071_172_605_999).unwrap();
    let cluster = ClusterFacts::new(system, PgMajor::V17, 8192, 131_072);
    let mut facts = Facts::new(SnapshotKind::Online, 1_795_000_000, cluster);
    facts.names = vec![
        "pgdata@golden".parse().unwrap(),
        "pgdata@HEAD{7}".parse().unwrap(),
    ];
    facts.parent = Some(COMMIT);
    facts.lineage = Some(LineageId([9; 16]));
    facts.instance = Some("i1".to_owned());
    facts.log.redo = Some("0/2000028".parse().unwrap());
    facts.log.stop = Some("0/2000158".parse().unwrap());
    facts.log.timelines = vec![TimelineStep {
        timeline: TimelineId::FIRST,
        end: None,
    }];
    facts.log.ranges = vec![LogRange {
        timeline: TimelineId::FIRST,
        start: "0/2000028".parse().unwrap(),
        end: "0/2000158".parse().unwrap(),
        place: LogPlace::Snapshot,
    }];
    facts.skipped = vec![Noted {
        path: "base/pgsql_tmp".to_owned(),
        reason: "temporary".to_owned(),
    }];
    facts.bad_pages = vec![BadPage {
        path: "base/5/1259".to_owned(),
        block: 3,
        reason: "wrong checksum".to_owned(),
    }];
    facts
}

/// Every small object: name of its golden file, key, kind and body.
fn objects() -> Vec<(&'static str, &'static str, ObjectKind, Vec<u8>)> {
    let commit = Commit {
        flags: neon_snapshot_format::pack::Flags::default(),
        facts: facts(),
        runs: bytes::Bytes::from_static(b"\x01\x00\x00"),
    };
    let json = |value: serde_json::Result<Vec<u8>>| value.unwrap();
    let claim = ClaimBody {
        name: "pgdata@golden".parse().unwrap(),
        commit: COMMIT,
    };
    let lease = LeaseBody {
        parents: vec![COMMIT],
        bringing: vec![PackId([7; 16])],
    };
    let pin = PinBody {
        commit: COMMIT,
        owner: "clone 1".to_owned(),
    };
    let tombstone = TombstoneBody {
        reason: "destroyed".to_owned(),
    };
    let doomed = DoomedBody {
        stage: Stage::Executing,
        packs: vec![PackId([7; 16])],
        commits: vec![CommitObject::first(COMMIT)],
    };
    let entry = Entry {
        id: COMMIT,
        writer: WRITER,
        again: false,
        stored: None,
        summary: Summary::of(&facts()),
        names: vec![
            ("pgdata@golden".parse().unwrap(), Some(0)),
            ("old".parse().unwrap(), None),
        ],
    };
    let moved = |frame, wrapped| MovedFrame {
        frame,
        offset: 64 + frame,
        length: 100,
        form: if wrapped { Form::Wrapped } else { Form::Same },
    };
    let thinned = |frame: u8, sealed| MovedFrame {
        form: Form::Thinned(Thinned {
            cells: Cells::from_bits(0b1000_0000_0001_0110),
            codec: 2,
            sealed,
            digest: [frame; 16],
        }),
        ..moved(frame.into(), false)
    };
    vec![
        (
            "object-v1.commit",
            "snapshots/golden",
            ObjectKind::Commit,
            commit.encode().unwrap(),
        ),
        (
            "object-v1.claim",
            "names/golden/00000000",
            ObjectKind::Claim,
            json(serde_json::to_vec(&claim)),
        ),
        (
            "object-v1.declined",
            "names/golden/declined",
            ObjectKind::Declined,
            json(serde_json::to_vec(&claim)),
        ),
        (
            "object-v1.lease",
            "leases/golden/00000000",
            ObjectKind::Lease,
            json(serde_json::to_vec(&lease)),
        ),
        (
            "object-v1.pin",
            "pins/golden",
            ObjectKind::Pin,
            json(serde_json::to_vec(&pin)),
        ),
        (
            "object-v1.tombstone",
            "tombstones/golden",
            ObjectKind::Tombstone,
            json(serde_json::to_vec(&tombstone)),
        ),
        (
            "object-v1.doomed",
            "doomed/golden",
            ObjectKind::Doomed,
            json(serde_json::to_vec(&doomed)),
        ),
        (
            "object-v1.catalog",
            "catalog/golden",
            ObjectKind::Catalog,
            json(serde_json::to_vec(&[entry])),
        ),
        (
            "object-v1.moves",
            "moves/golden",
            ObjectKind::Moves,
            encode(&[moved(1, false), moved(9, true)]),
        ),
        (
            "object-v1.moves-thinned",
            "moves/golden",
            ObjectKind::Moves,
            encode(&[
                moved(1, false),
                thinned(2, false),
                thinned(7, true),
                moved(9, true),
            ]),
        ),
    ]
}

fn epoch() -> EpochKey {
    EpochKey {
        epoch: 2,
        key: Zeroizing::new([4; 32]),
    }
}

fn keyring() -> Keyring {
    Keyring {
        epochs: vec![epoch()],
        name_key: Zeroizing::new([6; 32]),
    }
}

fn passphrase() -> KeySource {
    KeySource::passphrase("golden").with_cost(64, 1)
}

/// Writes golden files that are missing when `NEON_GOLDEN` is set: for a new version of a format.
pub(crate) fn keep(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = golden(name);
    if std::env::var_os("NEON_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::read(path).unwrap()
}

#[test]
fn objects_of_version_1_are_written_and_read_as_ever() {
    for (name, key, kind, body) in objects() {
        let key = Key::new(key).unwrap();
        let mut object = Object::new(kind, WRITER, body);
        if kind == ObjectKind::Moves {
            object.flags = flags(&decode(&key, &object.body).unwrap());
        }
        let bytes = object.encode(&key, None).unwrap();
        assert_eq!(bytes[20], u8::from(name == "object-v1.moves-thinned"));
        assert_eq!(keep(name, &bytes), bytes, "{name}");
        assert_eq!(Object::decode(&key, kind, &bytes, None).unwrap(), object);
        let sealed = keep(
            &format!("{name}-sealed"),
            &object.encode(&key, Some(&epoch())).unwrap(),
        );
        assert_eq!(
            Object::decode(&key, kind, &sealed, Some(&[epoch()])).unwrap(),
            object
        );
        let other = Key::new("elsewhere").unwrap();
        assert!(Object::decode(&other, kind, &sealed, Some(&[epoch()])).is_err());
        for wrong in ObjectKind::ALL.into_iter().filter(|wrong| *wrong != kind) {
            assert!(Object::decode(&key, wrong, &bytes, None).is_err());
        }
    }
    let commit = objects().swap_remove(0).3;
    assert_eq!(Commit::decode(&commit).unwrap().facts, facts());
    let moves = objects().pop().unwrap().3;
    assert_eq!(
        decode(&Key::new("moves/golden").unwrap(), &moves)
            .unwrap()
            .len(),
        4
    );
}

#[test]
fn every_fuzz_target_has_its_program() {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for (name, _) in crate::fuzz_targets::ALL {
        let path = format!("fuzz_targets/{name}.rs");
        assert!(manifest.contains(&path), "{path}");
        let program = std::fs::read_to_string(fuzz.join(&path)).unwrap();
        let body = format!("neon_pagestore::fuzz_targets::{name}(bytes)");
        assert!(program.contains(&body), "{path}");
    }
}

/// Who does not know what thinned frames are is told so, and not that they are damaged.
#[test]
fn additions_that_are_to_be_refused_are_refused_but_for_the_one_that_is_known() {
    for kind in ObjectKind::ALL {
        let key = Key::new("some/object").unwrap();
        for bit in 0..32 {
            let mut object = Object::new(kind, WRITER, Vec::new());
            object.flags.refuse = 1 << bit;
            for seal in [None, Some(epoch())] {
                let bytes = object.encode(&key, seal.as_ref()).unwrap();
                let keys = seal.as_ref().map(std::slice::from_ref);
                match Object::decode(&key, kind, &bytes, keys) {
                    Ok(read) => assert!(kind == ObjectKind::Moves && bit == 0 && read == object),
                    Err(error) => {
                        assert!(kind != ObjectKind::Moves || bit != 0);
                        assert_eq!(error.kind(), ErrorKind::Unsupported);
                    }
                }
            }
        }
    }
}

#[test]
fn key_envelopes_of_version_1_are_opened_as_ever() {
    let id = RepositoryId([1; 16]);
    let file = KeySource::key_file(&[8; 40]).unwrap();
    for (name, source) in [
        ("envelope-v1.passphrase", passphrase()),
        ("envelope-v1.key-file", file),
    ] {
        let body = keep(name, &keyring().enclose(id, &source).unwrap());
        assert_eq!(
            Keyring::open(&body, id, &source).unwrap().unwrap(),
            keyring()
        );
        assert!(
            Keyring::open(&body, RepositoryId([2; 16]), &source)
                .unwrap()
                .is_none()
        );
        for at in 16..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            // A cost that is not allowed is refused, a changed one opens nothing.
            assert!(
                !matches!(Keyring::open(&changed, id, &source), Ok(Some(_))),
                "{at}"
            );
        }
    }
}

/// Nobody stores so much of a frame, and who reads it would take room for it first.
#[test]
fn moves_of_more_bytes_than_a_frame_has_are_refused() {
    let key = Key::new("moves/some").unwrap();
    let most = 131_072 + 64;
    for (offset, length, fits) in [
        (0, most, true),
        (u64::MAX - u64::from(most), most, true),
        (0, most + 1, false),
        (0, u32::MAX, false),
        (u64::MAX, 1, false),
    ] {
        for form in [Form::Same, Form::Wrapped] {
            let moved = MovedFrame {
                frame: 1,
                offset,
                length,
                form,
            };
            assert_eq!(decode(&key, &encode(&[moved])).is_ok(), fits, "{moved:?}");
        }
    }
}

fn forms() -> impl Strategy<Value = Form> {
    let thinned = (1..=u16::MAX, 0..4_u8, any::<bool>(), any::<[u8; 16]>());
    let thinned = thinned.prop_map(|(cells, codec, sealed, digest)| {
        Form::Thinned(Thinned {
            cells: Cells::from_bits(cells),
            codec,
            sealed,
            digest,
        })
    });
    prop_oneof![Just(Form::Same), Just(Form::Wrapped), thinned]
}

proptest! {
    #[test]
    fn moves_are_read_as_they_were_written_and_not_when_cut_or_of_an_unknown_kind(
        frames in prop::collection::btree_map(any::<u64>(), (0..1_u64 << 63, 0..=131_136_u32, forms()), 0..20),
        cut in any::<prop::sample::Index>(),
        kind in 4..=u8::MAX,
    ) {
        let key = Key::new("moves/some").unwrap();
        let moved: Vec<MovedFrame> = frames
            .into_iter()
            .map(|(frame, (offset, length, form))| MovedFrame { frame, offset, length, form })
            .collect();
        let bytes = encode(&moved);
        prop_assert_eq!(&decode(&key, &bytes).unwrap()[..], &moved[..]);
        let whole = (0..=moved.len()).map(|count| encode(&moved[..count]).len());
        let whole: Vec<usize> = whole.collect();
        let at = cut.index(bytes.len() + 1);
        prop_assert_eq!(decode(&key, &bytes[..at]).is_ok(), whole.contains(&at));
        if !moved.is_empty() {
            let mut unknown = bytes.clone();
            unknown[20] = kind;
            prop_assert!(decode(&key, &unknown).is_err());
            // A mask or a codec with a kind that has none, or no mask with one that has.
            let mut odd = bytes;
            match moved[0].form {
                Form::Thinned(_) => odd[22..24].fill(0),
                _ => odd[21 + at % 3] = 1,
            }
            prop_assert!(decode(&key, &odd).is_err());
        }
    }

    #[test]
    fn fuzz_targets_take_mutated_objects(
        which in 0..10_usize,
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        resum in any::<bool>(),
    ) {
        let (_, key, kind, body) = objects().swap_remove(which);
        let mut inner = body.clone();
        for (at, byte) in &changes {
            let at = at.index(inner.len());
            inner[at] = *byte;
        }
        let object = Object::new(kind, WRITER, if resum { inner.clone() } else { body });
        let mut bytes = object.encode(&Key::new(key).unwrap(), None).unwrap();
        if !resum {
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        for (_, target) in crate::fuzz_targets::ALL {
            target(&bytes);
            target(&inner);
        }
    }
}
