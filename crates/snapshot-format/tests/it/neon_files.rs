//! `.neon` files: through pipes, by ranges, of a terabyte, encrypted, damaged, of other versions.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use neon_snapshot_format::pack::{
    Codec, FrameCipher, FrameContext, NeonFile, NeonWriter, PackId, PackOptions,
};
use neon_snapshot_format::pgdata::PgData;
use neon_snapshot_format::{
    BadPage, Chunk, ChunkData, End, Entry, EntryKind, Error, ErrorKind, Owner, Result, Sink,
    SnapshotKind, SnapshotPath, Source,
};
use neon_testkit::{Cluster, PgMajor, StopMode, tree};

use crate::clusters::{contents, start, unpack, varied, verify};
use crate::for_every_major;
use crate::http::Served;

pub(crate) fn path(text: &str) -> SnapshotPath {
    SnapshotPath::new(text).unwrap()
}

pub(crate) fn packed(codec: Codec) -> PackOptions {
    PackOptions {
        codec,
        ..PackOptions::new(PackId(*b"golden pack id 1"))
    }
}

fn a_neon_file_goes_through_a_pipe_and_back(major: PgMajor) {
    let mut cluster = varied(major, true);
    let before = contents(&cluster);
    let table = cluster.psql("select pg_relation_filepath('kept')");
    cluster.stop(StopMode::Fast);
    let codec = match major.number() % 3 {
        0 => Codec::Lz4,
        1 => Codec::Zstd(1),
        _ => Codec::None,
    };
    let neon = cluster.scratch_dir().join("snapshot.neon");
    let (mut reader, pipe) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = NeonWriter::new(pipe, packed(codec)).unwrap();
            PgData::cold(&cluster.data_dir())
                .unwrap()
                .send(&mut writer)
                .unwrap();
            drop(writer.into_inner().unwrap());
        });
        std::io::copy(&mut reader, &mut fs::File::create(&neon).unwrap()).unwrap();
    });

    // Any range of any file, in place.
    let mut file = NeonFile::open(fs::File::open(&neon).unwrap(), None).unwrap();
    assert_eq!(
        (file.snapshot().kind, file.snapshot().major),
        (Some(SnapshotKind::Cold), Some(major))
    );
    let bytes = fs::read(cluster.data_dir().join(&table)).unwrap();
    assert!(bytes.len() > 8 << 20);
    for (offset, length) in [
        (0, 8192),
        (8192 * 17, 8192),
        (131_000, 300_000),
        (bytes.len() - 5, 100),
    ] {
        let read = file.read(&path(&table), offset as u64, length).unwrap();
        assert!(
            read == bytes[offset..(offset + length).min(bytes.len())],
            "{offset}+{length}"
        );
    }
    assert!(
        file.read(&path(&table), bytes.len() as u64 + 1, 10)
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        file.read(&path("nothing"), 0, 1).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        file.entry(&path("pg_tblspc")).unwrap().unwrap().kind,
        EntryKind::Directory
    );
    file.check().unwrap();

    // What starts a server stands in the first frames: all of it is reached without a later one.
    let start_up: u64 = file.index().start_up_frames();
    assert!(start_up > 10 && start_up < file.index().frame_count());

    let straight = Cluster::without_data(major);
    unpack(&mut PgData::cold(&cluster.data_dir()).unwrap(), &straight);
    let mut copy = Cluster::without_data(major);
    unpack(&mut file, &copy);
    verify(&copy.data_dir(), major);
    assert!(tree(&straight.data_dir()) == tree(&copy.data_dir()));
    start(&mut copy);
    assert_eq!(contents(&copy), before);
    copy.check_running();
}

for_every_major!(a_neon_file_goes_through_a_pipe_and_back:
    a_neon_file_of_13_goes_through_a_pipe_and_back = V13,
    a_neon_file_of_18_goes_through_a_pipe_and_back = V18,
);

pub(crate) fn entry(name: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path(name),
        kind,
        mode: 0o600,
        owner: Some(Owner { uid: 26, gid: 26 }),
        modified: 1_795_167_818,
    }
}

/// A terabyte of table, as far as the directory is concerned: frames of zeros have records like others.
#[test]
fn opening_a_terabyte_over_http_reads_less_than_a_mebibyte_and_a_page_little_more() {
    let mut file = tempfile::tempfile().unwrap();
    let stream = std::io::BufWriter::with_capacity(1 << 20, file.try_clone().unwrap());
    let mut writer = NeonWriter::new(stream, packed(Codec::None)).unwrap();
    let segments = 1024;
    for segment in 0..segments {
        let name = format!("base/5/16400.{segment}");
        writer
            .entry(&entry(&name, EntryKind::File { size: 1 << 30 }))
            .unwrap();
        let middle = 1 << 29;
        let page = [segment as u8 | 1; 8192];
        for (offset, data) in [
            (0, ChunkData::Zeros(middle)),
            (middle, ChunkData::Bytes(&page)),
            (middle + 8192, ChunkData::Zeros(middle - 8192)),
        ] {
            writer.chunk(&Chunk { offset, data }).unwrap();
        }
    }
    writer.end(&End::default()).unwrap();
    drop(writer.into_inner().unwrap().into_inner().unwrap());
    std::io::Seek::rewind(&mut file).unwrap();

    let served = Served::new(file);
    let neon = NeonFile::open(served.client(), None).unwrap();
    assert_eq!(
        neon.index().frame_count() >> 20,
        8,
        "8 Mi frames of 128 KiB"
    );
    let (requests, opened) = served.counts();
    assert!(opened < 1 << 20, "{opened} bytes");
    assert!(requests <= 5, "{requests} requests, one for the length");
    let page = neon.read(&path("base/5/16400.777"), 1 << 29, 8192).unwrap();
    assert_eq!(page, [777_usize as u8 | 1; 8192]);
    let (requests, all) = served.counts();
    assert!(all < 1 << 20, "{all} bytes with one page");
    assert!(requests <= 9, "{requests} requests");
    // Its map is known now: another page of the neighbourhood costs one read.
    neon.read(&path("base/5/16400.777"), (1 << 29) + (1 << 20), 8192)
        .unwrap();
    assert!(served.counts().0 <= requests + 1);
}

/// A small snapshot with every kind of entry and of place.
fn send_sample(sink: &mut dyn Sink) {
    sink.entry(&entry("", EntryKind::Directory)).unwrap();
    sink.entry(&entry("pg_tblspc", EntryKind::Directory))
        .unwrap();
    let location = Some(b"/srv/fast".to_vec());
    sink.entry(&entry(
        "pg_tblspc/16400",
        EntryKind::Tablespace {
            oid: 16400,
            location,
        },
    ))
    .unwrap();
    let mut file = |name: &str, content: &[u8]| {
        sink.entry(&entry(
            name,
            EntryKind::File {
                size: content.len() as u64,
            },
        ))
        .unwrap();
        for (index, piece) in (0..).zip(content.chunks(128 << 10)) {
            sink.chunk(&Chunk {
                offset: index * (128 << 10),
                data: ChunkData::Bytes(piece),
            })
            .unwrap();
        }
    };
    for (name, content) in sample_files() {
        file(name, &content);
    }
    let end = End {
        kind: Some(SnapshotKind::Cold),
        major: Some(PgMajor::V17),
        ..End::default()
    };
    sink.end(&end).unwrap();
}

pub(crate) fn sample_files() -> Vec<(&'static str, Vec<u8>)> {
    let pages: Vec<u8> = (0..40_000_u32).map(|n| (n / 100) as u8).collect();
    let mut sparse = vec![0; 140_000];
    sparse[139_999] = 1;
    vec![
        ("PG_VERSION", b"17\n".to_vec()),
        ("empty", Vec::new()),
        ("base/5/1259", pages),
        ("base/5/16400", sparse),
        ("postgresql.auto.conf", b"# settings\n".to_vec()),
    ]
}

pub(crate) fn sample(options: PackOptions) -> Vec<u8> {
    let mut writer = NeonWriter::new(Vec::new(), options).unwrap();
    send_sample(&mut writer);
    writer.into_inner().unwrap()
}

fn assert_sample(file: &NeonFile<Vec<u8>>) {
    for (name, content) in sample_files() {
        assert!(
            file.read(&path(name), 0, 1 << 20).unwrap() == content,
            "{name}"
        );
    }
    let entries = file.entries(0).unwrap();
    assert_eq!(entries.len(), 8);
    assert_eq!(entries[0], entry("", EntryKind::Directory));
    let location = Some(b"/srv/fast".to_vec());
    assert!(entries.contains(&entry(
        "pg_tblspc/16400",
        EntryKind::Tablespace {
            oid: 16400,
            location
        }
    )));
    assert_eq!(file.snapshot().major, Some(PgMajor::V17));
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

#[test]
fn files_of_version_1_stay_readable_and_are_written_the_same() {
    for (name, codec) in [
        ("v1-none.neon", Codec::None),
        ("v1-lz4.neon", Codec::Lz4),
        ("v1-zstd.neon", Codec::Zstd(3)),
    ] {
        let bytes = fs::read(golden(name)).unwrap();
        let file = NeonFile::open(bytes.clone(), None).unwrap();
        file.check().unwrap();
        assert_sample(&file);
        // What codecs make of the same bytes may change with their versions.
        let now = sample(packed(codec));
        if codec == Codec::None {
            assert!(now == bytes, "{name}");
        }
        assert_sample(&NeonFile::open(now, None).unwrap());
    }
}

/// Changes the footer and makes its digest right again.
fn with_footer(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = fs::read(golden("v1-none.neon")).unwrap();
    let at = bytes.len() - 144;
    change(&mut bytes[at..]);
    let digest = blake3::hash(&bytes[at..at + 120]);
    bytes[at + 120..at + 136].copy_from_slice(&digest.as_bytes()[..16]);
    bytes
}

/// Changes the bytes of a file without compression as somebody would who knows the format: every digest is
/// right afterwards.
pub(crate) fn forged(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = sample(packed(Codec::None));
    let u32_at = |bytes: &[u8], at: usize| {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    };
    let footer = bytes.len() - 144;
    change(&mut bytes[..footer]);
    let root = u32_at(&bytes, footer + 16);
    let half =
        |bytes: &[u8]| -> [u8; 16] { blake3::hash(bytes).as_bytes()[..16].try_into().unwrap() };
    for number in 0..u32_at(&bytes, root) {
        let listed = root + 8 + 24 * number;
        let table = u32_at(&bytes, listed);
        let mut at = u32_at(&bytes, table + 8);
        let records = u32_at(&bytes, table + 16);
        for record in (0..records).map(|number| table + 24 + 28 * number) {
            let length = u32_at(&bytes, record);
            let digest = half(&bytes[at..at + length]);
            bytes[record + 12..record + 28].copy_from_slice(&digest);
            at += length;
        }
        let digest = half(&bytes[table..table + 24 + 28 * records]);
        bytes[listed + 8..listed + 24].copy_from_slice(&digest);
    }
    let digest = *blake3::hash(&bytes[root..footer]).as_bytes();
    bytes[footer + 88..footer + 120].copy_from_slice(&digest);
    let digest = half(&bytes[footer..footer + 120]);
    bytes[footer + 120..footer + 136].copy_from_slice(&digest);
    bytes
}

#[test]
fn newer_versions_and_unknown_additions_are_refused_by_class() {
    let refused = |bytes: Vec<u8>| NeonFile::open(bytes, None).unwrap_err();
    let newer = refused(with_footer(|footer| footer[68] = 2));
    assert_eq!(newer.kind(), ErrorKind::Unsupported);
    assert!(newer.reason().contains("version 2"), "{newer}");
    assert_eq!(
        refused(with_footer(|footer| footer[80] = 1)).kind(),
        ErrorKind::Unsupported
    );
    let read_only = NeonFile::open(with_footer(|footer| footer[76] = 1), None).unwrap();
    assert_sample(&read_only);
    assert!(!read_only.index().flags().writable());
    let ignorable = NeonFile::open(with_footer(|footer| footer[72] = 1), None).unwrap();
    assert!(ignorable.index().flags().writable());
}

#[test]
fn every_flipped_byte_is_found_and_none_is_read_as_data() {
    let whole = sample(packed(Codec::Zstd(3)));
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        let found = match NeonFile::open(bytes, None) {
            Err(_) => true,
            Ok(file) => {
                for (name, content) in sample_files() {
                    if let Ok(read) = file.read(&path(name), 0, 1 << 20) {
                        assert!(
                            read == content,
                            "byte {at} of {} reads wrong in {name}",
                            whole.len()
                        );
                    }
                }
                file.check().is_err()
            }
        };
        assert!(found, "byte {at} of {}", whole.len());
    }
    for length in (0..whole.len()).step_by(7) {
        assert!(
            NeonFile::open(whole[..length].to_vec(), None).is_err(),
            "cut at {length}"
        );
    }
}

/// Not for use: adds a keystream and a keyed digest.
#[derive(Debug)]
pub(crate) struct Toy(pub(crate) [u8; 32]);

impl Toy {
    fn tag(&self, frame: FrameContext, bytes: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&frame.associated_data()).update(bytes);
        *hasher.finalize().as_bytes()
    }

    fn stream(&self, frame: FrameContext, bytes: &[u8]) -> Vec<u8> {
        let mut stream = vec![0; bytes.len()];
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"stream").update(&frame.associated_data());
        hasher.finalize_xof().fill(&mut stream);
        stream.iter().zip(bytes).map(|(a, b)| a ^ b).collect()
    }
}

impl FrameCipher for Toy {
    fn seal(&self, frame: FrameContext, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut sealed = self.stream(frame, bytes);
        sealed.extend_from_slice(&self.tag(frame, &sealed));
        Ok(sealed)
    }

    fn open(&self, frame: FrameContext, sealed: &[u8]) -> Result<Vec<u8>> {
        let (bytes, tag) = sealed.split_at(sealed.len() - 32);
        if self.tag(frame, bytes) != tag {
            return Err(Error::new(ErrorKind::Damaged, "frame", "not authentic"));
        }
        Ok(self.stream(frame, bytes))
    }
}

#[test]
fn encrypted_frames_show_nothing_and_are_checked_without_a_key() {
    let cipher = |key: u8| -> Option<Arc<dyn FrameCipher>> { Some(Arc::new(Toy([key; 32]))) };
    let options = PackOptions {
        cipher: cipher(7),
        ..packed(Codec::None)
    };
    let bytes = sample(options);
    for secret in [&b"# settings"[..], b"postgresql.auto.conf", b"/srv/fast"] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
    assert_sample(&NeonFile::open(bytes.clone(), cipher(7)).unwrap());
    assert_eq!(
        NeonFile::open(bytes.clone(), None).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(
        NeonFile::open(bytes.clone(), cipher(8)).unwrap_err().kind(),
        ErrorKind::Damaged
    );
    NeonFile::open(bytes, cipher(7)).unwrap().check().unwrap();
}

#[test]
fn threads_change_no_byte_of_a_file_and_their_errors_are_the_callers() {
    let cipher: Arc<dyn FrameCipher> = Arc::new(Toy([7; 32]));
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd(1)] {
        for cipher in [None, Some(Arc::clone(&cipher))] {
            let options = PackOptions {
                cipher,
                ..packed(codec)
            };
            let alone = sample(options.clone());
            for threads in [1, 3] {
                let writer = NeonWriter::new(Vec::new(), options.clone()).unwrap();
                let mut writer = writer.threads(threads);
                send_sample(&mut writer);
                assert!(writer.into_inner().unwrap() == alone, "{codec:?} {threads}");
            }
        }
    }
    /// Fails, or panics.
    #[derive(Debug)]
    struct Broken(bool);
    impl FrameCipher for Broken {
        fn seal(&self, _: FrameContext, _: &[u8]) -> Result<Vec<u8>> {
            assert!(!self.0, "meant");
            Err(Error::new(ErrorKind::Unsupported, "key", "is gone"))
        }
        fn open(&self, _: FrameContext, sealed: &[u8]) -> Result<Vec<u8>> {
            Ok(sealed.to_vec())
        }
    }
    for (panics, kind) in [
        (false, ErrorKind::Unsupported),
        (true, ErrorKind::Inconsistent),
    ] {
        let options = PackOptions {
            cipher: Some(Arc::new(Broken(panics))),
            ..packed(Codec::None)
        };
        let mut writer = NeonWriter::new(Vec::new(), options).unwrap().threads(2);
        let size = 64 << 20;
        writer.entry(&entry("x", EntryKind::File { size })).unwrap();
        let bytes = [1; 128 << 10];
        let outcome = (0..size >> 17).try_for_each(|index| {
            let (offset, data) = (index << 17, ChunkData::Bytes(&bytes));
            writer.chunk(&Chunk { offset, data })
        });
        assert_eq!(outcome.unwrap_err().kind(), kind);
        assert!(writer.end(&End::default()).is_err());
        assert!(writer.into_inner().is_none());
    }
}

#[test]
fn a_stream_that_names_a_file_twice_makes_no_file() {
    let mut writer = NeonWriter::new(Vec::new(), packed(Codec::None)).unwrap();
    for _ in 0..2 {
        writer
            .entry(&entry("x", EntryKind::File { size: 0 }))
            .unwrap();
    }
    assert_eq!(
        writer.end(&End::default()).unwrap_err().kind(),
        ErrorKind::Exists
    );
    assert!(writer.into_inner().is_none());
}

#[test]
fn what_could_not_be_opened_is_not_written() {
    let described = |damaged: u64| {
        let bad = |block| BadPage {
            path: path("base/5/16384"),
            block,
            reason: "x".repeat(60_000),
        };
        let mut writer = NeonWriter::new(Vec::new(), packed(Codec::None)).unwrap();
        let end = End {
            bad_pages: (0..damaged).map(bad).collect(),
            ..End::default()
        };
        writer.end(&end)?;
        Ok::<_, Error>(writer.into_inner().unwrap())
    };
    let bytes = described(1000).unwrap();
    let file = NeonFile::open(bytes, None).unwrap();
    assert_eq!(file.snapshot().bad_pages.len(), 1000);
    assert_eq!(described(1200).unwrap_err().kind(), ErrorKind::Limit);
}
