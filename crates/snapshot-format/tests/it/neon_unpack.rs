//! `.neon` files unpacked by several threads, from files and over HTTP ranges.

use std::fs;
use std::ops::Range;
use std::sync::Mutex;

use neon_snapshot_format::pack::{Codec, NeonFile, NeonWriter, ReadRange};
use neon_snapshot_format::pgdata::{DirectoryWriter, PgData};
use neon_snapshot_format::{
    Chunk, ChunkData, End, EntryKind, ErrorKind, Result, Sink, Source, StartUpRank, Wanted,
};
use neon_testkit::{Cluster, PgMajor, StopMode, tree};

use crate::clusters::{contents, options, start, unpack, varied, verify};
use crate::http::Served;
use crate::neon_files::{entry, packed, path, sample, sample_files};
use crate::pgdata_selected::Recorder;

/// Remembers what is read.
struct Recording<R>(R, Mutex<Vec<Range<u64>>>);

impl<R: ReadRange> ReadRange for Recording<R> {
    fn length(&self) -> Result<u64> {
        self.0.length()
    }
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        self.1.lock().unwrap().push(range.clone());
        self.0.read(range)
    }
}

#[test]
fn a_cluster_is_unpacked_by_several_threads_over_http_ranges() {
    let major = PgMajor::V16;
    let mut cluster = varied(major, true);
    let before = contents(&cluster);
    cluster.stop(StopMode::Fast);
    let neon = cluster.scratch_dir().join("snapshot.neon");
    let file = fs::File::create(&neon).unwrap();
    let mut writer = NeonWriter::new(file, packed(Codec::Lz4)).unwrap();
    PgData::cold(&cluster.data_dir())
        .unwrap()
        .send(&mut writer)
        .unwrap();
    drop(writer.into_inner().unwrap());
    let length = fs::metadata(&neon).unwrap().len();

    let served = Served::new(fs::File::open(&neon).unwrap());
    let remote = NeonFile::open(served.client(), None).unwrap();
    let (opening, _) = served.counts();
    let mut copy = Cluster::without_data(major);
    let writer = DirectoryWriter::create(&copy.data_dir(), options(&copy)).unwrap();
    remote.send_parallel(&writer, 3).unwrap();
    let (requests, bytes) = served.counts();
    // Ranges of four mebibytes, and one per piece of work at least; nothing is fetched twice but frames
    // that two pieces of work share.
    let pieces = length.div_ceil(4 << 20) + length.div_ceil(8 << 20) + 16;
    assert!(
        requests - opening < 2 * pieces,
        "{requests} requests for {length} bytes"
    );
    assert!(bytes < length + (8 << 20), "{bytes} of {length}");
    assert!(served.most_at_once() <= 3);

    // What a server reads to start lies in the first frames: none of it is fetched from behind them. Lists
    // and tables, at the end of a pack of this size, are.
    let reader = Recording(fs::read(&neon).unwrap(), Mutex::default());
    let early = NeonFile::open(&reader, None).unwrap();
    let start_of = |frame: u64| {
        let table = early.index().table_of(frame).unwrap();
        let bytes = reader.read(table.range.clone()).unwrap();
        let table = early.index().table(&table, &bytes).unwrap();
        table.frame(frame).unwrap().offset()
    };
    let behind = start_of(early.index().start_up_frames());
    let described = early.index().snapshot().unwrap().frame;
    let lists = start_of(described - early.entry_pages() as u64);
    let mut found = 0;
    for page in 0..early.entry_pages() {
        for file in early.entries(page).unwrap() {
            let is_late = StartUpRank::of(&file.path) == StartUpRank::Later;
            if is_late || file.size() == 0 || file.path.as_bytes() == b"global/pg_control" {
                continue;
            }
            reader.1.lock().unwrap().clear();
            early.read(&file.path, 0, usize::MAX).unwrap();
            for range in reader.1.lock().unwrap().iter() {
                let is_data = range.end <= behind;
                let is_list = range.start >= lists;
                assert!(is_data || is_list, "{}: {range:?}", file.path);
                found += usize::from(is_data);
            }
        }
    }
    assert!(found > 100 && behind < lists, "{found}");

    let straight = Cluster::without_data(major);
    let mut local = NeonFile::open(fs::File::open(&neon).unwrap(), None).unwrap();
    unpack(&mut local, &straight);
    assert!(tree(&straight.data_dir()) == tree(&copy.data_dir()));
    verify(&copy.data_dir(), major);
    start(&mut copy);
    assert_eq!(contents(&copy), before);
}

/// A file of what starts a server, small files, a large one with holes, and another.
fn laid_out() -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let noise = |seed: u8, length: usize| {
        let mut bytes = vec![0; length];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    let mut files = vec![
        ("PG_VERSION".to_owned(), b"16\n".to_vec()),
        ("global/1262".to_owned(), noise(1, 300_000)),
        ("pg_xact/0000".to_owned(), noise(2, 8192)),
        ("base/5/empty".to_owned(), Vec::new()),
    ];
    for number in 0..200 {
        files.push((format!("base/5/{number}"), noise(3, 100 * number)));
    }
    let mut sparse = noise(4, 40 << 20);
    sparse[3 << 20..20 << 20].fill(0);
    files.push(("base/5/90000".to_owned(), sparse));
    files.push(("base/5/10000".to_owned(), noise(5, 9 << 20)));
    let mut writer = NeonWriter::new(Vec::new(), packed(Codec::Zstd(1))).unwrap();
    for directory in ["", "base", "base/5", "global", "pg_xact"] {
        writer
            .entry(&entry(directory, EntryKind::Directory))
            .unwrap();
    }
    for (name, content) in &files {
        let size = content.len() as u64;
        writer
            .entry(&entry(name, EntryKind::File { size }))
            .unwrap();
        for (index, bytes) in content.chunks(128 << 10).enumerate() {
            let (offset, data) = ((index as u64) << 17, ChunkData::Bytes(bytes));
            writer.chunk(&Chunk { offset, data }).unwrap();
        }
    }
    writer.end(&End::default()).unwrap();
    (writer.into_inner().unwrap(), files)
}

#[test]
fn frames_are_read_in_the_order_they_lie_and_several_together() {
    let (bytes, files) = laid_out();
    for threads in [1, 4] {
        let reader = Recording(bytes.clone(), Mutex::default());
        let neon = NeonFile::open(&reader, None).unwrap();
        let opening = reader.1.lock().unwrap().len();
        let recorder = Recorder::default();
        neon.send_parallel(&recorder, threads).unwrap();
        assert_eq!(recorder.directories.lock().unwrap().len(), 5);
        for (_, wanted) in recorder.announced.lock().unwrap().iter() {
            assert_eq!(*wanted, Wanted::Whole);
        }
        let sent = recorder.over(&Default::default());
        assert_eq!(sent.len(), files.len());
        for (name, content) in &files {
            assert!(sent[name] == *content, "{name}");
        }
        let reads = reader.1.lock().unwrap().split_off(opening);
        let total: u64 = reads.iter().map(|range| range.end - range.start).sum();
        assert!(total < bytes.len() as u64 + (512 << 10));
        assert!(reads.len() < 24, "{reads:?}");
        if threads == 1 {
            // Pieces of work meet within a frame of small files, and tables are read when first needed.
            let frames = reads
                .iter()
                .filter(|range| range.end - range.start > 1 << 20);
            assert!(frames.is_sorted_by_key(|range| range.start), "{reads:?}");
        }
    }
    // Without threads, by path, and with few reads as well.
    let reader = Recording(bytes, Mutex::default());
    let mut neon = NeonFile::open(&reader, None).unwrap();
    neon.send(&mut crate::pgdata_refuses::Nothing).unwrap();
    assert!(reader.1.lock().unwrap().len() < 40);
}

#[test]
fn damage_and_forged_sizes_end_every_thread_and_cost_nothing() {
    let whole = sample(packed(Codec::Zstd(3)));
    let (mut failed, step) = (0, 3);
    for at in (0..whole.len()).step_by(step) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        let Ok(file) = NeonFile::open(bytes, None) else {
            continue;
        };
        let recorder = Recorder::default();
        match file.send_parallel(&recorder, 2) {
            Err(_) => failed += 1,
            Ok(()) => {
                let sent = recorder.over(&Default::default());
                for (name, content) in sample_files() {
                    assert!(sent[name] == content, "byte {at} reads wrong in {name}");
                }
            }
        }
    }
    assert!(failed > 100, "{failed}");

    // An entry that claims an exabyte: its size is found in the list, which says where the file is.
    let forged = crate::neon_files::forged(|list| {
        let name = b"base/5/16400";
        let at = list
            .windows(name.len())
            .position(|found| found == name)
            .unwrap();
        let size = at + name.len() + 1 + 1 + 2 + 4 + 4 + 8;
        assert_eq!(list[size..size + 8], 140_000_u64.to_le_bytes());
        list[size..size + 8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    });
    let mut file = NeonFile::open(forged, None).unwrap();
    assert_eq!(
        file.entry(&path("base/5/16400")).unwrap().unwrap().size(),
        1 << 60
    );
    let error = file.send_parallel(&Recorder::default(), 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
    assert!(file.send(&mut crate::pgdata_refuses::Nothing).is_err());
}
