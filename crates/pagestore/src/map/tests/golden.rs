//! Version 1 to the byte: what is written stays what it is, and what was written stays readable.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use neon_snapshot_format::pack::{FRAME_SIZE, PackId};
use neon_snapshot_format::{Owner, SnapshotPath};

use crate::crypt::DataKey;
use crate::map::{
    At, Attributes, Extent, FileKind, FileState, FrameRef, Group, KEEP_ALL, Machine, MapFrame,
    PackRef, PageDigest, RunWriter, Spool, Step, View, Walk, decode_runs, drive, encode_runs,
};

fn path(name: &str) -> SnapshotPath {
    SnapshotPath::new(name).unwrap()
}

fn frame(pack: u8, number: u64, offset: u64, stored: u32, plain: u32) -> FrameRef {
    FrameRef {
        pack: PackRef {
            id: PackId([pack; 16]),
            key: DataKey([pack + 1; 32]),
        },
        frame: number,
        offset,
        stored_length: stored,
        plain_length: plain,
        codec: 2,
        sealed: pack == 7,
        digest: [number as u8; 16],
    }
}

/// Every kind of state, attribute and extent.
fn groups() -> Vec<(Group, Vec<PageDigest>)> {
    let full = FRAME_SIZE as u32;
    let present = |kind: FileKind, mode: u32, owner, modified, limit| FileState::Present {
        attributes: Attributes {
            kind,
            mode,
            owner,
            modified,
        },
        limit,
    };
    let owner = Some(Owner { uid: 26, gid: 27 });
    let at = |page, count, frame, offset| Extent {
        page,
        count,
        at: At::Frame { frame, offset },
    };
    let zeros = |page, count| Extent {
        page,
        count,
        at: At::Zeros,
    };
    let first = frame(7, 10, 64, 50_000, full);
    let second = frame(7, 11, 50_064, 40_000, full);
    let other = frame(9, 300, 1 << 33, 900, 9000);
    let file = |size| FileKind::File { size };
    let group = |name: &str, state, extents: Vec<Extent>| {
        let pages: u32 = extents
            .iter()
            .filter(|extent| matches!(extent.at, At::Frame { .. }))
            .map(|extent| extent.count)
            .sum();
        let digests = (0..pages).map(|page| [page as u8 + 100; 16]).collect();
        let group = Group {
            path: path(name),
            state,
            extents,
        };
        (group, digests)
    };
    vec![
        group(
            "",
            present(FileKind::Directory, 0o700, owner, 1_700_000_000, 0),
            vec![],
        ),
        group(
            "base/5/1259",
            present(file(49 * 8192), 0o600, owner, 1_700_000_100, KEEP_ALL),
            vec![
                at(0, 16, first, 0),
                at(16, 4, second, 0),
                zeros(20, 12),
                at(40, 3, second, 4 * 8192),
                at(47, 1, first, 8192),
            ],
        ),
        group(
            "base/5/1259_fsm",
            present(file(9000), 0o600, owner, -5, 0),
            vec![at(0, 2, other, 0)],
        ),
        group(
            "base/5/1260",
            FileState::Same,
            vec![at(3, 1, second, 8192 * 9)],
        ),
        group("base/5/1261", FileState::Removed, vec![]),
        group(
            "base/5/PG_VERSION",
            present(file(3), 0o640, None, 1_700_000_100, 0),
            vec![at(0, 1, other, 8500)],
        ),
        group(
            "pg_tblspc/16400",
            present(
                FileKind::Tablespace {
                    oid: 16400,
                    location: Some(b"/srv/ts".to_vec()),
                },
                0o700,
                owner,
                0,
                0,
            ),
            vec![],
        ),
        group(
            "pg_tblspc/16401",
            present(
                FileKind::Tablespace {
                    oid: 16401,
                    location: None,
                },
                0o700,
                owner,
                0,
                0,
            ),
            vec![],
        ),
    ]
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("page-map-v1.{name}"))
}

fn written() -> Vec<(&'static str, Vec<u8>)> {
    let mut writer = RunWriter::new(Spool::default(), 8192).unwrap();
    for (group, digests) in groups() {
        writer.push(&group, &digests).unwrap();
    }
    let (run, spool) = writer.finish().unwrap();
    let frames: Vec<FrameRef> = run.index_frames().map(|(_, frame)| *frame).collect();
    let spooled = |number: u64| {
        let frame = FrameRef {
            frame: number,
            ..frames[0]
        };
        spool.get(&frame).unwrap().to_vec()
    };
    vec![
        ("block", spooled(0)),
        ("digests", spooled(1)),
        ("index", spooled(2)),
        ("runs", encode_runs(&[run])),
    ]
}

#[test]
fn what_is_written_is_version_1_to_the_byte() {
    for (name, bytes) in written() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = std::fs::read(golden(name)).unwrap_or_default();
        assert!(expected == bytes, "{name} is now {hex}");
    }
}

#[test]
fn version_1_stays_readable() {
    let read = |name: &str| std::fs::read(golden(name)).unwrap();
    let runs = decode_runs(&read("runs")).unwrap();
    let files = ["block", "digests", "index"].map(read);
    let get =
        |frame: &FrameRef| MapFrame::decode(&Bytes::copy_from_slice(&files[frame.frame as usize]));
    let mut merge = crate::map::Merge::new(Spool::default(), 8192, &runs[0], &[], false).unwrap();
    let (again, spool) = drive(&mut merge, get).unwrap().unwrap();
    assert_eq!(again.size().pages, runs[0].size().pages);
    assert_eq!(
        spool
            .get(&FrameRef {
                frame: 0,
                ..again.indexes[0].frame
            })
            .unwrap(),
        files[0]
    );

    let view = View {
        runs,
        page_size: 8192,
    };
    let mut walk = Walk::new(&view, true);
    let mut files = Vec::new();
    loop {
        match walk.step() {
            Ok(Step::Need(frames)) => {
                for frame in frames {
                    walk.feed(&frame, get(&frame).unwrap());
                }
            }
            Ok(Step::Ready(Some(file))) => files.push(file),
            // The file of which no run has the beginning.
            Err(error) => {
                assert_eq!(error.kind(), crate::ErrorKind::Malformed);
                break;
            }
            Ok(Step::Ready(None)) => panic!("a file without a beginning was accepted"),
        }
    }
    let groups = groups();
    assert_eq!(files.len(), 2);
    for (file, (group, digests)) in files.iter().zip(&groups) {
        assert_eq!(file.path, group.path);
        assert_eq!(file.extents, group.extents);
        assert_eq!(&file.digests, digests);
        let FileState::Present { attributes, .. } = &group.state else {
            panic!("a file without attributes");
        };
        assert_eq!(&file.attributes, attributes);
    }
}

#[test]
fn other_versions_and_foreign_bytes_are_refused() {
    let mut runs = written().pop().unwrap().1;
    runs[0] = 2;
    assert_eq!(
        decode_runs(&runs).unwrap_err().kind(),
        crate::ErrorKind::Unsupported
    );
    for bytes in [&b""[..], b"NMB", b"NMB2....", b"NMD1123", b"NEONPACK"] {
        let refused = MapFrame::decode(&Bytes::from_static(bytes)).unwrap_err();
        assert_eq!(refused.kind(), crate::ErrorKind::Malformed);
    }
}
