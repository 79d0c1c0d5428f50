//! Clusters that are made up: files in memory, sent to a repository and taken back.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use neon_pagestore::changes::Hints;
use neon_pagestore::read::{MapReader, Snapshot};
use neon_pagestore::restore::{RestoreOptions, Restored, restore};
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter, Stored};
use neon_pagestore::{CommitId, Committed, Error, Repository, Writing};
use neon_snapshot_format::pack::Codec;
use neon_snapshot_format::{
    CHUNK_SIZE, Change, Chunk, ChunkData, End, Entry, EntryKind, ExtentSink, ParallelSink, Result,
    Sink, SnapshotKind, SnapshotPath, Wanted,
};

use crate::support::empty_commit;

/// Files by path. A path that ends with a slash is a directory.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

pub(crate) fn path(text: &str) -> SnapshotPath {
    SnapshotPath::new(text).unwrap()
}

pub(crate) fn entry(text: &str, size: usize) -> Entry {
    let kind = match text.strip_suffix('/') {
        Some(_) => EntryKind::Directory,
        None => EntryKind::File { size: size as u64 },
    };
    Entry {
        path: path(text.strip_suffix('/').unwrap_or(text)),
        kind,
        mode: 0o600,
        owner: None,
        modified: 7,
    }
}

/// Bytes that no compression shortens.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// A tree with files of every size that matters, zero pages among the others.
pub(crate) fn varied() -> Files {
    let mut files = Files::new();
    for directory in ["/", "base/", "base/5/", "global/", "pg_wal/"] {
        files.insert(directory.to_owned(), Vec::new());
    }
    let sizes = [
        0, 1, 100, 8191, 8192, 8193, 16384, 32767, 32768, 32769, 40_000, 65_536, 131_071, 131_072,
        131_073, 200_000, 1_000_000, 3_000_000,
    ];
    for (number, size) in sizes.into_iter().enumerate() {
        let mut plain = noise(size, number as u64);
        files.insert(format!("base/5/{}", 16384 + number), plain.clone());
        // Zero pages at the beginning, in between, at the end.
        for (page, bytes) in plain.chunks_mut(8192).enumerate() {
            if page % 5 == number % 5 || page % 7 == 3 {
                bytes.fill(0);
            }
        }
        files.insert(format!("base/5/{}_vm", 16384 + number), plain);
        files.insert(format!("base/5/{}_fsm", 16384 + number), vec![0; size]);
    }
    for number in 0..300 {
        files.insert(
            format!("base/5/{}", 1000 + number),
            noise(number * 30, 77 + number as u64),
        );
    }
    files.insert("global/pg_control".to_owned(), noise(8192, 4));
    files
}

/// Sends part of a file.
pub(crate) fn send(worker: &mut dyn ExtentSink, entry: &Entry, bytes: &[u8], range: Range<usize>) {
    try_send(worker, entry, bytes, range).unwrap();
}

fn try_send(
    worker: &mut dyn ExtentSink,
    entry: &Entry,
    bytes: &[u8],
    range: Range<usize>,
) -> Result<()> {
    worker.begin(entry, range.start as u64..range.end as u64)?;
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min((at / CHUNK_SIZE + 1) * CHUNK_SIZE);
        let piece = &bytes[at..end];
        let data = if piece.iter().all(|byte| *byte == 0) {
            ChunkData::Zeros(piece.len() as u64)
        } else {
            ChunkData::Bytes(piece)
        };
        let offset = at as u64;
        worker.chunk(&Chunk { offset, data })?;
        at = end;
    }
    worker.commit()
}

/// What of each file is to be sent; all of it unless said.
pub(crate) type Selection = BTreeMap<String, Wanted>;

/// Sends files to a sink from two threads.
pub(crate) fn send_all(sink: &dyn ParallelSink, files: &Files, selection: &Selection) {
    try_send_all(sink, files, selection).unwrap();
}

/// As [`send_all`], of a sink that may fail.
fn try_send_all(sink: &dyn ParallelSink, files: &Files, selection: &Selection) -> Result<()> {
    for name in files.keys().filter(|name| name.ends_with('/')) {
        let mut root = entry(name, 0);
        if name == "/" {
            root.path = SnapshotPath::root();
        }
        sink.entry(&root)?;
    }
    let whole = Wanted::Whole;
    let mut parts = Vec::new();
    for (name, bytes) in files.iter().filter(|(name, _)| !name.ends_with('/')) {
        let entry = entry(name, bytes.len());
        let wanted = selection.get(name).unwrap_or(&whole);
        sink.file(&entry, wanted)?;
        match wanted {
            Wanted::Nothing => {}
            Wanted::Ranges(ranges) => {
                for range in ranges {
                    let range =
                        usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                    parts.push((entry.clone(), bytes, range));
                }
            }
            Wanted::Whole if bytes.is_empty() => parts.push((entry, bytes, 0..0)),
            Wanted::Whole => {
                for start in (0..bytes.len()).step_by(8 * CHUNK_SIZE) {
                    let end = bytes.len().min(start + 8 * CHUNK_SIZE);
                    parts.push((entry.clone(), bytes, start..end));
                }
            }
        }
    }
    let next = Mutex::new(parts.into_iter());
    let work = || {
        let mut worker = sink.worker()?;
        loop {
            let part = next.lock().unwrap().next();
            let Some((entry, bytes, range)) = part else {
                return worker.finish();
            };
            try_send(&mut *worker, &entry, bytes, range)?;
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work().and(other.join().unwrap())
    })?;
    let end = End {
        kind: Some(SnapshotKind::Cold),
        ..End::default()
    };
    sink.end(&end)
}

pub(crate) fn reader(repository: &Repository) -> MapReader {
    MapReader::new(repository.frames(), 32 << 20)
}

/// A snapshot that was made, and what it came to.
pub(crate) struct Made {
    pub(crate) id: CommitId,
    pub(crate) stored: Stored,
}

/// Makes a snapshot of files.
pub(crate) async fn make(
    repository: &Repository,
    files: Files,
    selection: Selection,
    parent: Option<&Snapshot>,
) -> neon_pagestore::Result<Made> {
    make_as(repository, files, selection, parent, Codec::default()).await
}

/// As [`make`], with frames that are compressed so.
pub(crate) async fn make_as(
    repository: &Repository,
    files: Files,
    selection: Selection,
    parent: Option<&Snapshot>,
    codec: Codec,
) -> neon_pagestore::Result<Made> {
    let writing = repository.begin_writing().await?;
    let writer = writing.writer();
    let (to, parent) = (repository.clone(), parent.cloned());
    let stored = tokio::task::spawn_blocking(move || {
        let options = SnapshotOptions {
            pack_size: 1 << 20,
            compare: true,
            codec,
            ..SnapshotOptions::default()
        };
        let mut sink = SnapshotWriter::new(&to, writer, options)?.with_hints(Hints::Exact);
        if let Some(parent) = &parent {
            sink = sink.with_parent(Parent::of(parent));
        }
        send_all(&sink, &files, &selection);
        sink.complete()
    })
    .await
    .unwrap()?;
    let commit = stored.commit(empty_commit(&[]).facts)?;
    let id = writing.commit(&commit).await?.id;
    Ok(Made { id, stored })
}

/// As a program takes a snapshot that may fail at any step: small packs, several of them under way at once. Every file is
/// read; what the parent has is found to be the same.
pub(crate) async fn try_make(
    repository: &Repository,
    parent: Option<CommitId>,
    files: &Files,
    names: &[&str],
) -> neon_pagestore::Result<Committed> {
    try_make_by(&reader(repository), repository, parent, files, names).await
}

/// As [`try_make`], with a reader of its own for the parent.
pub(crate) async fn try_make_by(
    maps: &MapReader,
    repository: &Repository,
    parent: Option<CommitId>,
    files: &Files,
    names: &[&str],
) -> neon_pagestore::Result<Committed> {
    let writing = repository.begin_writing().await?;
    let made = try_store(maps, repository, &writing, parent, files).await;
    let stored = match made {
        Ok(stored) => stored,
        Err(error) => {
            let heard = writing.require_heard().await;
            writing.abandon().await;
            return Err(heard.err().unwrap_or(error));
        }
    };
    writing
        .commit(&stored.commit(empty_commit(names).facts)?)
        .await
}

async fn try_store(
    maps: &MapReader,
    repository: &Repository,
    writing: &Writing,
    parent: Option<CommitId>,
    files: &Files,
) -> neon_pagestore::Result<Stored> {
    let parent = match parent {
        None => None,
        Some(id) => {
            writing.protect(id).await?;
            Some(Snapshot::open(repository, id, maps).await?)
        }
    };
    let (to, writer, files) = (repository.clone(), writing.writer(), files.clone());
    let work = move || {
        let options = SnapshotOptions {
            pack_size: 100_000,
            compare: true,
            codec: Codec::Lz4,
            ..SnapshotOptions::default()
        };
        let mut sink = SnapshotWriter::new(&to, writer, options)?.with_hints(Hints::Exact);
        if let Some(parent) = &parent {
            sink = sink.with_parent(Parent::of(parent));
        }
        try_send_all(&sink, &files, &Selection::new())
            .map_err(|error| Error::format("snapshot", error))?;
        sink.complete()
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Files of several pages, of two packs, that are no relations; those of another seed differ in the second.
pub(crate) fn several(seed: u64) -> Files {
    let mut files: Files = [
        ("large/1", noise(150_000, 1)),
        ("large/2", noise(100_000, 100 + seed)),
        ("large/3", noise(100, 1000 + seed)),
    ]
    .into_iter()
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .collect();
    files.insert("large/".to_owned(), Vec::new());
    files
}

/// As [`make`], from nothing and with other options.
pub(crate) async fn make_with(
    repository: &Repository,
    files: Files,
    options: SnapshotOptions,
) -> neon_pagestore::Result<CommitId> {
    let writing = repository.begin_writing().await?;
    let (writer, to) = (writing.writer(), repository.clone());
    let stored = tokio::task::spawn_blocking(move || {
        let sink = SnapshotWriter::new(&to, writer, options)?;
        send_all(&sink, &files, &Selection::new());
        sink.complete()
    })
    .await
    .unwrap()?;
    let commit = stored.commit(empty_commit(&[]).facts)?;
    Ok(writing.commit(&commit).await?.id)
}

/// Keeps what it is sent in memory.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    files: Mutex<Files>,
    ended: Mutex<Option<End>>,
}

impl Kept {
    pub(crate) fn into_files(self) -> Files {
        assert!(self.ended.into_inner().unwrap().is_some());
        self.files.into_inner().unwrap()
    }
}

fn name_of(entry: &Entry) -> String {
    let slash = if entry.is_file() { "" } else { "/" };
    format!("{}{slash}", entry.path.as_str().unwrap())
}

impl ParallelSink for Kept {
    fn entry(&self, entry: &Entry) -> Result<()> {
        let known = self
            .files
            .lock()
            .unwrap()
            .insert(name_of(entry), Vec::new());
        assert!(known.is_none(), "{} comes twice", entry.path);
        Ok(())
    }

    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()> {
        assert_eq!(*wanted, Wanted::Whole);
        let size = usize::try_from(entry.size()).unwrap();
        let known = self
            .files
            .lock()
            .unwrap()
            .insert(name_of(entry), vec![0xEE; size]);
        assert!(known.is_none(), "{} comes twice", entry.path);
        Ok(())
    }

    fn changed(&self, _: &Entry, _: Change) -> Result<()> {
        Ok(())
    }

    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(Keeper {
            kept: self,
            name: String::new(),
        }))
    }

    fn end(&self, end: &End) -> Result<()> {
        *self.ended.lock().unwrap() = Some(end.clone());
        Ok(())
    }
}

struct Keeper<'a> {
    kept: &'a Kept,
    name: String,
}

impl ExtentSink for Keeper<'_> {
    fn begin(&mut self, entry: &Entry, _: Range<u64>) -> Result<()> {
        self.name = name_of(entry);
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        let mut files = self.kept.files.lock().unwrap();
        let from = usize::try_from(chunk.offset).unwrap();
        let to = from + usize::try_from(chunk.len()).unwrap();
        let target = &mut files.get_mut(&self.name).unwrap()[from..to];
        match chunk.data {
            ChunkData::Bytes(bytes) => target.copy_from_slice(bytes),
            ChunkData::Zeros(_) => target.fill(0),
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Takes a snapshot back with several threads.
pub(crate) async fn restored(snapshot: &Snapshot) -> (Files, Restored) {
    try_restored(snapshot).await.unwrap()
}

/// As [`restored`], of a snapshot that may not be readable.
pub(crate) async fn try_restored(snapshot: &Snapshot) -> neon_pagestore::Result<(Files, Restored)> {
    let snapshot = snapshot.clone();
    let work = move || {
        let kept = Kept::default();
        let options = RestoreOptions {
            check_pages: false,
            ..RestoreOptions::default()
        };
        let restored = restore(&snapshot, &kept, &options)?;
        Ok((kept.into_files(), restored))
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Takes a snapshot back in order.
pub(crate) async fn sent(snapshot: &Snapshot) -> (Files, Vec<String>, End) {
    struct InOrder {
        kept: Arc<Kept>,
        order: Vec<String>,
    }
    impl Sink for InOrder {
        fn entry(&mut self, entry: &Entry) -> Result<()> {
            self.order.push(name_of(entry));
            if entry.is_file() {
                self.kept.file(entry, &Wanted::Whole)
            } else {
                self.kept.entry(entry)
            }
        }
        fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
            let mut keeper = Keeper {
                kept: &self.kept,
                name: self.order.last().unwrap().clone(),
            };
            keeper.chunk(chunk)
        }
        fn end(&mut self, end: &End) -> Result<()> {
            self.kept.end(end)
        }
    }
    let snapshot = snapshot.clone();
    tokio::task::spawn_blocking(move || {
        use neon_snapshot_format::Source;
        let mut sink = InOrder {
            kept: Arc::default(),
            order: Vec::new(),
        };
        let mut source = neon_pagestore::read::SnapshotSource::new(&snapshot).unwrap();
        source.send(&mut sink).unwrap();
        let InOrder { kept, order } = sink;
        let end = kept.ended.lock().unwrap().clone().unwrap();
        (Arc::try_unwrap(kept).unwrap().into_files(), order, end)
    })
    .await
    .unwrap()
}
