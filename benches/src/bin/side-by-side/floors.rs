//! What the hardware takes for the least that has to be done, on all cores, in this process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use neon_pg_layout::PageCheck;
use neon_snapshot_format::pack::{Codec, EncodedFrame};

use crate::contest::{FIRST, RESTORE, Results, Sample};
use crate::machine::cores;
use crate::measure::{Counters, Usage, flush};
use crate::ours::{LZ4, ZSTD};
use crate::tool::{Place, remove};

/// What the floors are called.
pub(crate) const PACK_ZSTD: &str = "floor: read + checks + zstd:1";
pub(crate) const PACK_LZ4: &str = "floor: read + checks + lz4";
pub(crate) const WRITE: &str = "floor: write + flush";

/// What is read and compressed at a time.
const CHUNK: u64 = 128 << 10;

pub(crate) fn all(place: &Place, results: &mut Results, data: &str) {
    let files = files(&place.source.data);
    let chunks = chunks(&files);
    for _ in 0..place.options.rounds() {
        let mut add = |stage: &str, who: &str, of: &str, usage: Usage| {
            results.add(data, stage, who, of, Sample { usage, added: None });
        };
        let read = timed(|| each(&files, &chunks, |bytes| drop(std::hint::black_box(bytes))));
        add(FIRST, "floor: read", ZSTD, read);
        for (who, of, codec) in [
            (PACK_ZSTD, ZSTD, Codec::Zstd(1)),
            (PACK_LZ4, LZ4, Codec::Lz4),
        ] {
            let usage = timed(|| each(&files, &chunks, |bytes| encode(&bytes, codec)));
            add(FIRST, who, of, usage);
        }
        let into = place.folder.join("floor");
        std::fs::create_dir(&into).unwrap();
        flush(&place.folder);
        let write = timed(|| {
            write(&files, &into);
            flush(&place.folder);
        });
        add(RESTORE, WRITE, ZSTD, write);
        remove(&into);
    }
}

fn timed(work: impl FnOnce()) -> Usage {
    let own = || Counters::of(std::process::id()).unwrap_or_default();
    let (before, begun) = (own(), Instant::now());
    work();
    let wall = begun.elapsed().as_secs_f64();
    let after = own();
    Usage {
        wall,
        processor: (after.processor - before.processor).max(0.0),
        read: after.read.saturating_sub(before.read),
        written: after.written.saturating_sub(before.written),
        ..Usage::default()
    }
}

/// The files of relations and the like, with their sizes; without the log, of which nobody takes all.
fn files(data: &Path) -> Vec<(PathBuf, u64)> {
    let mut all = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else {
                continue;
            };
            if metadata.is_dir() && entry.file_name() != "pg_wal" {
                folders.push(entry.path());
            } else if metadata.is_file() {
                all.push((entry.path(), metadata.len()));
            }
        }
    }
    all
}

/// The number of a file, where in it, and how much.
fn chunks(files: &[(PathBuf, u64)]) -> Vec<(usize, u64, u64)> {
    let pieces = |(number, (_, size)): (usize, &(PathBuf, u64))| {
        let size = *size;
        (0..size.div_ceil(CHUNK)).map(move |at| (number, at * CHUNK, CHUNK.min(size - at * CHUNK)))
    };
    files.iter().enumerate().flat_map(pieces).collect()
}

fn parallel(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

fn each(files: &[(PathBuf, u64)], chunks: &[(usize, u64, u64)], work: impl Fn(Vec<u8>) + Sync) {
    let open: Vec<Option<File>> = files
        .iter()
        .map(|(path, _)| File::open(path).ok())
        .collect();
    parallel(chunks.len(), |number| {
        let (file, at, size) = chunks[number];
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        if let Some(file) = &open[file] {
            // A running server may have made it shorter.
            drop(file.read_exact_at(&mut bytes, at));
        }
        work(bytes);
    });
}

fn encode(bytes: &[u8], codec: Codec) {
    let check = PageCheck {
        checksums: true,
        replayed: None,
    };
    for (block, page) in (0..).zip(bytes.chunks_exact(8192)) {
        drop(std::hint::black_box(check.judge(page, block)));
    }
    let frame = EncodedFrame::new(bytes, codec).unwrap();
    std::hint::black_box(blake3::hash(frame.bytes()));
}

/// As many files of the same sizes, of bytes that are in memory.
fn write(files: &[(PathBuf, u64)], into: &Path) {
    let bytes = vec![7; usize::try_from(CHUNK).unwrap()];
    let failed = Mutex::new(None);
    parallel(files.len(), |number| {
        let write = || -> std::io::Result<()> {
            use std::io::Write;
            let mut file = File::create(into.join(number.to_string()))?;
            let mut left = files[number].1;
            while left > 0 {
                let piece = left.min(CHUNK);
                file.write_all(&bytes[..usize::try_from(piece).unwrap()])?;
                left -= piece;
            }
            Ok(())
        };
        if let Err(error) = write() {
            *failed.lock().unwrap() = Some(error);
        }
    });
    if let Some(error) = failed.into_inner().unwrap() {
        panic!("{}: {error}", into.display());
    }
}
