//! A million relations in bounded memory: taken, listed, compared, restored.
//!
//! By default with a reduced number; `NEON_LONG_TESTS=1` is the long form, and `NEON_SCALE_FILES` chooses another number of files
//! in a directory. Memory is that of the whole process, so
//! the test wants a process of its own, as nextest gives it.

use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_pagestore::changes::Hints;
use neon_pagestore::map::{Diff, List};
use neon_pagestore::read::{FrameReaderOptions, MapReader, Snapshot};
use neon_pagestore::restore::{RestoreOptions, RestorePlan, restore};
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{CommitId, OpenOptions, Repository};
use neon_snapshot_format::pgdata::ExistingDirectory;
use neon_snapshot_format::{
    Change, Chunk, ChunkData, End, Entry, ExtentSink, ParallelSink, Result, SnapshotKind,
    SnapshotPath, Wanted,
};
use neon_storage::{Native, NativeOptions};
use neon_testkit::{Cluster, PgMajor};

use crate::clusters::{beside, copy_cold, repository, restore_into};
use crate::files::{entry, path};
use crate::support::empty_commit;
use crate::thinned::open;

/// The promise, in KiB.
const MOST: u64 = 512 << 10;
const CHANGED: u64 = 1000;

fn relations() -> u64 {
    match std::env::var_os("NEON_LONG_TESTS") {
        Some(_) => 1_000_000,
        None => 20_000,
    }
}

/// The most memory this process ever had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.unwrap().split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

fn relation(number: u64) -> Entry {
    entry(&format!("base/16384/{}", 100_000 + number), 8192)
}

fn page(number: u64, round: u64) -> [u8; 8192] {
    let mut page = [0; 8192];
    page[..8].copy_from_slice(&number.to_le_bytes());
    page[8..16].copy_from_slice(&round.to_le_bytes());
    page[4096..4104].copy_from_slice(&(number * 31 + 1).to_le_bytes());
    page
}

fn send(sink: &dyn ParallelSink, round: u64) -> Result<()> {
    for directory in ["base/", "base/16384/"] {
        sink.entry(&entry(directory, 0))?;
    }
    let every = relations() / CHANGED;
    let comes = |number: u64| round == 0 || number % every == 3;
    for number in 0..relations() {
        let wanted = if comes(number) {
            Wanted::Whole
        } else {
            Wanted::Nothing
        };
        sink.file(&relation(number), &wanted)?;
    }
    let mut worker = sink.worker()?;
    for number in (0..relations()).filter(|number| comes(*number)) {
        worker.begin(&relation(number), 0..8192)?;
        worker.chunk(&Chunk {
            offset: 0,
            data: ChunkData::Bytes(&page(number, round)),
        })?;
        worker.commit()?;
    }
    worker.finish()?;
    sink.end(&End {
        kind: Some(SnapshotKind::Cold),
        ..End::default()
    })
}

async fn take(repository: &Repository, parent: Option<&Snapshot>, round: u64) -> CommitId {
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer, parent) = (repository.clone(), writing.writer(), parent.map(Parent::of));
    let stored = tokio::task::spawn_blocking(move || {
        let scratch = neon_testkit::Scratch::new();
        let options = SnapshotOptions {
            scratch: Some(scratch.path().to_owned()),
            ..SnapshotOptions::default()
        };
        let mut sink = SnapshotWriter::new(&to, writer, options).unwrap();
        if let Some(parent) = parent {
            sink = sink.with_parent(parent).with_hints(Hints::Exact);
        }
        send(&sink, round).unwrap();
        sink.complete().unwrap()
    });
    let commit = stored
        .await
        .unwrap()
        .commit(empty_commit(&[]).facts)
        .unwrap();
    writing.commit(&commit).await.unwrap().id
}

/// Checks that each page is what it should be, and counts them.
#[derive(Debug, Default)]
struct Checked(AtomicU64);

impl ParallelSink for Checked {
    fn entry(&self, _: &Entry) -> Result<()> {
        Ok(())
    }
    fn file(&self, _: &Entry, _: &Wanted) -> Result<()> {
        Ok(())
    }
    fn changed(&self, _: &Entry, _: Change) -> Result<()> {
        Ok(())
    }
    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(Checker {
            checked: self,
            number: 0,
        }))
    }
    fn end(&self, _: &End) -> Result<()> {
        Ok(())
    }
}

struct Checker<'a> {
    checked: &'a Checked,
    number: u64,
}

impl ExtentSink for Checker<'_> {
    fn begin(&mut self, entry: &Entry, _: Range<u64>) -> Result<()> {
        let name = std::str::from_utf8(entry.path.name()).unwrap();
        self.number = name.parse::<u64>().unwrap() - 100_000;
        Ok(())
    }
    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        let round = u64::from(self.number % (relations() / CHANGED) == 3);
        assert_eq!(chunk.data, ChunkData::Bytes(&page(self.number, round)));
        self.checked.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn commit(&mut self) -> Result<()> {
        Ok(())
    }
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_relations_are_taken_listed_compared_and_restored_in_bounded_memory() {
    let place = neon_testkit::Scratch::new();
    let folder = place.path().join("repository");
    let native = tokio::task::spawn_blocking(|| Native::open(folder, NativeOptions::default()));
    let native = native.await.unwrap().unwrap();
    let repository = Repository::init(Arc::new(native), OpenOptions::new())
        .await
        .unwrap();
    let frames = repository.frames_with(FrameReaderOptions {
        memory: 32 << 20,
        ..FrameReaderOptions::default()
    });
    let maps = MapReader::new(frames, 32 << 20);
    let said = |what: &str| eprintln!("{what}: at most {} MiB so far", peak() / 1024);
    let first = take(&repository, None, 0).await;
    said("taken");
    let first = Snapshot::open(&repository, first, &maps).await.unwrap();
    let second = take(&repository, Some(&first), 1).await;
    said("taken again");
    let second = Snapshot::open(&repository, second, &maps).await.unwrap();

    let mut list = List::new(second.view(), &path("base/16384"));
    let mut listed = 0;
    while maps.run(&mut list).await.unwrap().is_some() {
        listed += 1;
    }
    assert_eq!(listed, relations());
    said("listed");
    let mut diff = Diff::new(first.view(), second.view(), false);
    let mut differing = 0;
    while let Some(file) = maps.run(&mut diff).await.unwrap() {
        assert_eq!(file.pages.len(), 1);
        differing += 1;
    }
    assert_eq!(differing, CHANGED);
    said("compared");
    let restored = tokio::task::spawn_blocking(move || {
        let checked = Checked::default();
        let options = RestoreOptions {
            check_pages: false,
            ..RestoreOptions::default()
        };
        let restored = restore(&second, &checked, &options).unwrap();
        assert_eq!(checked.0.into_inner(), relations());
        restored
    });
    let restored = restored.await.unwrap();
    assert!(restored.used.received < 2 * restored.live);
    said("restored");
    assert!(peak() < MOST, "{} MiB", peak() / 1024);
}

/// Files of a cluster's directory: so many more relations, all zeros but for some.
fn planted(data: &Path, count: u64) {
    let folder = data.join("base/5");
    // A page that is as it should be as the first of any relation.
    let page = fs::read(data.join("base/5/1259")).unwrap()[..8192].to_vec();
    for number in 0..count {
        let file = fs::File::create(folder.join((100_000 + number).to_string())).unwrap();
        match number % 1000 {
            3 => (&file).write_all(&page).unwrap(),
            _ => file.set_len(8192).unwrap(),
        }
    }
}

/// The directory itself, with a file for each: what reads it, writes it and compares it holds no more either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_with_a_million_files_is_taken_written_and_compared_in_bounded_memory() {
    let count = match std::env::var("NEON_SCALE_FILES") {
        Ok(count) => count.parse().unwrap(),
        Err(_) if std::env::var_os("NEON_LONG_TESTS").is_some() => 1_000_000,
        Err(_) => 2000,
    };
    let cluster = Cluster::builder(PgMajor::V17).init();
    let data = cluster.data_dir();
    planted(&data, count);
    let place = neon_testkit::Scratch::new();
    let repository = repository(&place.path().join("repository")).await;
    let said = |what: &str| eprintln!("{what}: at most {} MiB so far", peak() / 1024);
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer, from) = (repository.clone(), writing.writer(), data.clone());
    let scratch = place.path().to_owned();
    let commit = beside(move || {
        let options = SnapshotOptions {
            scratch: Some(scratch),
            ..SnapshotOptions::default()
        };
        let sink = SnapshotWriter::new(&to, writer, options).unwrap();
        let facts = copy_cold(from)(&sink);
        sink.complete().unwrap().commit(facts).unwrap()
    });
    let commit = commit.await;
    assert_eq!(commit.facts.bad_pages, []);
    let id = writing.commit(&commit).await.unwrap().id;
    said("taken");
    let snapshot = open(&repository, id).await;
    let copy = Cluster::without_data(PgMajor::V17);
    restore_into(&snapshot, &copy).await;
    said("written");
    let folder = copy.data_dir().join("base/5");
    for number in (0..count).step_by(997).chain([3, 1003]) {
        let name = (100_000 + number).to_string();
        let (was, is) = (data.join("base/5").join(&name), folder.join(&name));
        assert!(fs::read(was).unwrap() == fs::read(is).unwrap(), "{name}");
    }
    let listed = fs::read_dir(&folder).unwrap().count() as u64;
    assert!(listed > count, "{listed}");
    fs::write(folder.join("100003"), "changed").unwrap();
    let plan = beside(move || {
        let directory = ExistingDirectory::open(&copy.data_dir(), copy.major()).unwrap();
        let keep = |_: &SnapshotPath| false;
        let options = RestoreOptions::default();
        RestorePlan::by_content(&snapshot, &directory, &keep, &options).unwrap()
    });
    let changed = plan.await.files;
    said("compared");
    assert!(changed.contains_key(&path("base/5/100003")), "{changed:?}");
    assert!(peak() < MOST, "{} MiB", peak() / 1024);
}
