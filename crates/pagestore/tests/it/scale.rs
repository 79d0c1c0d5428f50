//! A million relations in bounded memory: taken, listed, compared, restored.
//!
//! By default with a reduced number; `NEON_LONG_TESTS=1` is the long form. Memory is that of the whole process, so
//! the test wants a process of its own, as nextest gives it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_pagestore::changes::Hints;
use neon_pagestore::map::{Diff, List};
use neon_pagestore::read::{FrameReaderOptions, MapReader, Snapshot};
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{CommitId, OpenOptions, Repository};
use neon_snapshot_format::{
    Change, Chunk, ChunkData, End, Entry, ExtentSink, ParallelSink, Result, SnapshotKind, Wanted,
};
use neon_storage::{Native, NativeOptions};

use crate::files::{entry, path};
use crate::support::empty_commit;

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
