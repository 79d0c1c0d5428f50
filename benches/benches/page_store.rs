//! The page repository against floors measured in the same run, both cores busy: a full snapshot against reading,
//! checking, summing and compressing the same bytes; a restore against decompressing, writing and flushing them; the
//! next snapshot from an exact list of changes against a full one; a page that is in memory.
//!
//! `cargo bench -p neon-benches --bench page_store [-- MEGABYTES ROUNDS CODEC… /DIRECTORY]`, or `-- listing [/DIRECTORY]` for the
//! lists alone; prints the best of each in turns and their
//! ratios, of processor time and of the clock: on a machine that others use, the first is the one to compare. The
//! repository is in memory, so that no disk is measured but the one that is restored to; the full snapshot that is
//! compared with the floor, which keeps nothing, goes to a storage that keeps no pack. What is restored goes below the
//! directory: one in memory tells what it costs without the file system (ext4 passes over inodes that were deleted in the
//! last five seconds, which on a machine that runs tests is most of the time a restore takes).
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_wrap,
    reason = "a bench stops at the first failure and prints what it measured"
)]

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use neon_pagestore::changes::Hints;
use neon_pagestore::read::{FrameReaderOptions, MapReader, Snapshot};
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{ClusterFacts, Commit, CommitId, Facts, OpenOptions, Repository};
use neon_pg_layout::{PageCheck, SystemIdentifier};
use neon_snapshot_format::pack::{Codec, EncodedFrame, Flags};
use neon_snapshot_format::pgdata::{DirectoryOptions, DirectoryWriter, Flush, PgData, Select};
use neon_snapshot_format::{Entry, Sequential, SnapshotKind, Wanted};
use neon_storage::{
    Body, Capabilities, GetOptions, GetResult, Head, Key, ListOptions, Memory, Native,
    NativeOptions, ObjectMeta, PutOptions, Storage, StorageExt,
};
use neon_testkit::{Cluster, PgMajor, StopMode};
use tokio::runtime::Runtime;

const CHUNK: usize = 128 << 10;
const CODECS: [(&str, Codec); 3] = [
    ("zstd:1", Codec::Zstd(1)),
    ("lz4", Codec::Lz4),
    ("none", Codec::None),
];

fn cluster(megabytes: u64) -> Cluster {
    let mut cluster = Cluster::builder(PgMajor::V16)
        .setting("max_wal_size", "8GB")
        .start();
    for table in 0..4 {
        let rows = megabytes * 1024 / 4 * 6;
        cluster.psql(&format!(
            "create table t{table} as select i, repeat(md5(i::text), 4) as text from generate_series(1, {rows}) as i"
        ));
    }
    cluster.stop(StopMode::Fast);
    cluster
}

/// Everything below a directory, in pieces of a chunk.
fn pieces(directory: &Path) -> (Vec<PathBuf>, Vec<(usize, u64, usize)>) {
    let (mut files, mut pieces, mut folders) = (Vec::new(), Vec::new(), vec![directory.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, facts) = (entry.path(), entry.metadata().unwrap());
            if facts.is_dir() {
                // The log of a stopped cluster is mostly not copied.
                if !path.ends_with("pg_wal") {
                    folders.push(path);
                }
                continue;
            }
            for start in (0..facts.len()).step_by(CHUNK) {
                let length = usize::try_from(facts.len() - start).unwrap().min(CHUNK);
                pieces.push((files.len(), start, length));
            }
            files.push(path);
        }
    }
    (files, pieces)
}

/// What something took: by the clock, and of the processors.
#[derive(Debug, Clone, Copy)]
struct Took {
    clock: Duration,
    processor: Duration,
}

impl Took {
    const MAX: Self = Self {
        clock: Duration::MAX,
        processor: Duration::MAX,
    };

    fn best(&mut self, other: Self) {
        self.clock = self.clock.min(other.clock);
        self.processor = self.processor.min(other.processor);
    }

    /// How often the other fits into this one.
    fn to(self, other: Self) -> String {
        let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
        format!(
            "{:.2} of processors, {:.2} by the clock",
            ratio(self.processor, other.processor),
            ratio(self.clock, other.clock)
        )
    }
}

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1?} ({:.1?})", self.processor, self.clock)
    }
}

#[derive(Debug)]
struct Watch(Instant, Duration);

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap(),
        time.tv_nsec.try_into().unwrap(),
    )
}

impl Watch {
    fn start() -> Self {
        Self(Instant::now(), processor_time())
    }

    fn stop(&self) -> Took {
        Took {
            clock: self.0.elapsed(),
            processor: processor_time() - self.1,
        }
    }
}

/// Does a piece of work for each number on both cores.
fn both(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    work(number);
                }
            });
        }
    });
}

/// Takes packs and forgets them.
#[derive(Debug)]
struct Forgetful(Memory);

#[async_trait]
impl Storage for Forgetful {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    async fn probe(&self) -> neon_storage::Result<Capabilities> {
        self.0.probe().await
    }
    fn location(&self) -> String {
        self.0.location()
    }
    async fn put(
        &self,
        key: &Key,
        body: Body,
        options: PutOptions,
    ) -> neon_storage::Result<ObjectMeta> {
        if !key.as_str().starts_with("packs/") {
            return self.0.put(key, body, options).await;
        }
        let mut size = 0;
        let mut stream = body.into_stream();
        while let Some(chunk) = stream.next().await {
            size += chunk.unwrap().len() as u64;
        }
        let mut stored = self.0.put(key, Body::from(Bytes::new()), options).await?;
        stored.size = size;
        Ok(stored)
    }
    async fn get(&self, key: &Key, options: GetOptions) -> neon_storage::Result<GetResult> {
        self.0.get(key, options).await
    }
    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> neon_storage::Result<Vec<Bytes>> {
        self.0.get_ranges(key, ranges, options).await
    }
    async fn head(&self, key: &Key) -> neon_storage::Result<Head> {
        self.0.head(key).await
    }
    fn list(&self, options: ListOptions) -> BoxStream<'static, neon_storage::Result<ObjectMeta>> {
        self.0.list(options)
    }
    fn delete_many(
        &self,
        keys: BoxStream<'static, neon_storage::Result<Key>>,
    ) -> BoxStream<'static, neon_storage::Result<Key>> {
        self.0.delete_many(keys)
    }
}

/// Reads, checks, sums and compresses everything; keeps nothing.
fn floor_of_snapshot(directory: &Path, codec: Codec) -> Took {
    let begun = Watch::start();
    let (files, pieces) = pieces(directory);
    let files: Vec<File> = files.iter().map(|path| File::open(path).unwrap()).collect();
    let check = PageCheck {
        checksums: true,
        replayed: None,
    };
    both(pieces.len(), |number| {
        let (file, start, length) = pieces[number];
        let mut bytes = vec![0; length];
        files[file].read_exact_at(&mut bytes, start).unwrap();
        for (block, page) in (0..).zip(bytes.chunks(8192)) {
            if page.len() == 8192 {
                std::hint::black_box(check.judge(page, block).ok());
            }
            std::hint::black_box(blake3::hash(page));
        }
        let frame = EncodedFrame::new(&bytes, codec).unwrap();
        std::hint::black_box(blake3::hash(frame.bytes()));
    });
    begun.stop()
}

async fn snapshot(
    repository: &Repository,
    data: &Path,
    codec: Codec,
    parent: Option<(&Snapshot, &'static (dyn Select + Send))>,
) -> (CommitId, Took) {
    let begun = Watch::start();
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer, data) = (repository.clone(), writing.writer(), data.to_owned());
    let parent = parent.map(|(parent, select)| (Parent::of(parent), select));
    let work = tokio::task::spawn_blocking(move || {
        let options = SnapshotOptions {
            codec,
            ..SnapshotOptions::default()
        };
        let mut sink = SnapshotWriter::new(&to, writer, options).unwrap();
        let source = PgData::cold(&data).unwrap();
        let copied = match parent {
            Some((parent, select)) => {
                sink = sink.with_parent(parent).with_hints(Hints::Exact);
                source.copy_selected(select, &sink, 2).unwrap()
            }
            None => source.copy_parallel(&sink, 2).unwrap(),
        };
        copied
            .finish(&mut Sequential::new(&sink).unwrap(), None)
            .unwrap();
        let facts = Facts::of_control(SnapshotKind::Cold, 0, source.control());
        sink.complete().unwrap().commit(facts).unwrap()
    });
    let commit = work.await.unwrap();
    let id = writing.commit(&commit).await.unwrap().id;
    (id, begun.stop())
}

/// Every thousandth page of relations, and nothing else: of the small ones nothing.
struct Sparse;

impl Select for Sparse {
    fn wanted(&self, entry: &Entry) -> neon_snapshot_format::Result<Wanted> {
        let pages = entry.size() / 8192;
        if !entry.path.as_bytes().starts_with(b"base/") || pages < 1000 {
            return Ok(Wanted::Nothing);
        }
        let ranges = (0..pages)
            .filter(|page| page % 1000 == 7)
            .map(|page| page * 8192..(page + 1) * 8192);
        Ok(Wanted::Ranges(ranges.collect()))
    }
}

fn flush(directory: &Path) {
    let status = Command::new("sync").arg("-f").arg(directory).status();
    assert!(status.unwrap().success());
}

/// Decompresses everything, writes it and flushes the file system.
fn floor_of_restore(data: &Path, codec: Codec, into: &Path) -> Took {
    let (files, pieces) = pieces(data);
    let frames: Vec<EncodedFrame<'static>> = pieces
        .iter()
        .map(|(file, start, length)| {
            let mut bytes = vec![0; *length];
            let file = File::open(&files[*file]).unwrap();
            file.read_exact_at(&mut bytes, *start).unwrap();
            EncodedFrame::new(&bytes, codec).unwrap().into_owned()
        })
        .collect();
    let frames: Vec<Mutex<Option<EncodedFrame<'_>>>> = frames
        .into_iter()
        .map(|frame| Mutex::new(Some(frame)))
        .collect();
    std::fs::create_dir(into).unwrap();
    let begun = Watch::start();
    let targets: Vec<File> = (0..files.len())
        .map(|number| File::create(into.join(number.to_string())).unwrap())
        .collect();
    both(pieces.len(), |number| {
        let (file, start, _) = pieces[number];
        let frame = frames[number].lock().unwrap().take().unwrap();
        targets[file]
            .write_all_at(&frame.decode().unwrap(), start)
            .unwrap();
    });
    flush(into);
    begun.stop()
}

/// Listing many snapshots, in memory and in a directory: by who sees the repository for the first time, and again.
async fn listing(count: i64, place: &Path) {
    let memory = Memory::new();
    let repository = Repository::init(Arc::new(memory.clone()), OpenOptions::new());
    let repository = repository.await.unwrap();
    let system = SystemIdentifier::new(7_710_187_071_172_605_999).unwrap();
    for number in 0..count {
        let cluster = ClusterFacts::new(system, neon_pg_layout::PgMajor::V17, 8192, 131_072);
        let mut facts = Facts::new(SnapshotKind::Cold, number, cluster);
        facts.names = vec![format!("pg@{number}").parse().unwrap()];
        let commit = Commit {
            flags: Flags::default(),
            facts,
            runs: Bytes::new(),
        };
        let writing = repository.begin_writing().await.unwrap();
        writing.commit(&commit).await.unwrap();
    }
    let scratch = tempfile::tempdir_in(place).unwrap();
    let native = Native::open(scratch.path(), NativeOptions::default()).unwrap();
    let (from, to) = (&memory, &native);
    let copied = stream::iter(memory.list_all("").await.unwrap()).map(|object| async move {
        let bytes = from.read(&object.key).await.unwrap();
        to.create(&object.key, bytes).await.unwrap();
    });
    copied.buffer_unordered(32).for_each(|()| async {}).await;
    for (name, storage) in [
        ("in memory", Arc::new(memory) as Arc<dyn Storage>),
        ("native", Arc::new(native)),
    ] {
        let open = || Repository::open(Arc::clone(&storage), OpenOptions::new());
        // Who lists first leaves a catalogue.
        open().await.unwrap().list().await.unwrap();
        let opened = open().await.unwrap();
        let begun = Watch::start();
        assert_eq!(opened.list().await.unwrap().len() as i64, count);
        let cold = begun.stop();
        let mut warm = Took::MAX;
        for _ in 0..10 {
            let begun = Watch::start();
            opened.list().await.unwrap();
            warm.best(begun.stop());
        }
        println!("{count} snapshots, {name}, are listed in {cold}, and again in {warm}");
    }
}

fn main() {
    let mut words = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let (megabytes, rounds) = (words.next().unwrap_or(256), words.next().unwrap_or(3));
    let runtime = Runtime::new().unwrap();
    let only: Vec<String> = std::env::args().skip(1).collect();
    let place = only.iter().find(|word| word.starts_with('/'));
    let place = place.map_or_else(std::env::temp_dir, PathBuf::from);
    if only.iter().any(|word| word == "listing") {
        return runtime.block_on(listing(10_000, &place));
    }
    let cluster = cluster(megabytes);
    let data = cluster.data_dir();
    let asked = |name: &str| only.iter().any(|word| word == name);
    let any = CODECS.iter().any(|(name, _)| asked(name));
    for (name, codec) in CODECS.into_iter().filter(|(name, _)| !any || asked(name)) {
        let [
            mut floor,
            mut full,
            mut kept,
            mut next,
            mut restoring,
            mut writing,
        ] = [Took::MAX; 6];
        for _ in 0..rounds {
            floor.best(floor_of_snapshot(&data, codec));
            runtime.block_on(async {
                let nowhere = Forgetful(Memory::new());
                let repository = Repository::init(Arc::new(nowhere), OpenOptions::new());
                let repository = repository.await.unwrap();
                full.best(snapshot(&repository, &data, codec, None).await.1);
                let repository = Repository::init(Arc::new(Memory::new()), OpenOptions::new());
                let repository = repository.await.unwrap();
                let maps = MapReader::new(repository.frames(), 64 << 20);
                let (id, took) = snapshot(&repository, &data, codec, None).await;
                kept.best(took);
                let first = Snapshot::open(&repository, id, &maps).await.unwrap();
                let (_, took) = snapshot(&repository, &data, codec, Some((&first, &Sparse))).await;
                next.best(took);
                let scratch = tempfile::tempdir_in(&place).unwrap();
                let target = scratch.path().join("restored");
                let took = tokio::task::spawn_blocking(move || {
                    let begun = Watch::start();
                    let options = DirectoryOptions {
                        manifest: false,
                        flush: Flush::FileSystem,
                        ..DirectoryOptions::default()
                    };
                    let writer = DirectoryWriter::create(&target, options).unwrap();
                    let how = RestoreOptions {
                        check_pages: false,
                        ..RestoreOptions::default()
                    };
                    restore(&first, &writer, &how).unwrap();
                    begun.stop()
                });
                restoring.best(took.await.unwrap());
            });
            let scratch = tempfile::tempdir_in(&place).unwrap();
            let into = scratch.path().join("floor");
            writing.best(floor_of_restore(&data, codec, &into));
        }
        println!(
            "{name}: full snapshot {full} (into memory {kept}), floor {floor}: {}",
            full.to(floor)
        );
        println!(
            "{name}: restore {restoring}, floor {writing}: {}",
            restoring.to(writing)
        );
        println!(
            "{name}: next at 0.1 % {next}; full is that times {}",
            full.to(next)
        );
    }
    runtime.block_on(async {
        let repository = Repository::init(Arc::new(Memory::new()), OpenOptions::new());
        let repository = repository.await.unwrap();
        let frames = repository.frames_with(FrameReaderOptions {
            memory: 4 << 30,
            ..FrameReaderOptions::default()
        });
        let maps = MapReader::new(frames, 256 << 20);
        let (id, _) = snapshot(&repository, &data, Codec::Lz4, None).await;
        let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();
        let directory = neon_snapshot_format::SnapshotPath::new("base/5").unwrap();
        let listed = snapshot.list(&directory).await.unwrap();
        let (path, pages) = listed
            .into_iter()
            .map(|(path, attributes)| {
                let size = attributes.entry(path.clone()).size();
                (path, u32::try_from(size / 8192).unwrap())
            })
            .max_by_key(|(_, pages)| *pages)
            .unwrap();
        for page in 0..pages {
            snapshot.read_page(&path, page).await.unwrap();
        }
        let mut state = 1_u64;
        let count = 200_000;
        let begun = Instant::now();
        for _ in 0..count {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let page = u32::try_from((state >> 33) % u64::from(pages)).unwrap();
            snapshot.read_page(&path, page).await.unwrap().unwrap();
        }
        println!(
            "a page of {pages} in memory: {:.2?}",
            begun.elapsed() / count
        );
    });
    runtime.block_on(listing(10_000, &place));
}
