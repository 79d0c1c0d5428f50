//! The bodies of the fuzz targets: each takes any bytes and must neither panic, hang nor take memory out of
//! proportion.
//!
//! Public so that `fuzz/` and the property tests run the same code; not part of the crate's interface.

use std::ops::Range;

use crate::basebackup::{BaseBackup, Limits};
use crate::detect::detect_start;
use crate::error::Result;
pub use crate::pack::fuzz::{pack_directory, pack_frame};
use crate::pack::{Codec, NeonFile, Opening, PackId, PackOptions, PackWriter, SnapshotRoot};
use crate::path::SnapshotPath;
use crate::stream::{Change, Chunk, End, Entry, ExtentSink, ParallelSink, Sink, Source, Wanted};

/// One fuzz target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate by name.
pub const ALL: &[Target] = &[
    ("tar_stream", tar_stream),
    ("neon_file", neon_file),
    ("neon_forged", neon_forged),
    ("pack_opening", pack_opening),
    ("pack_directory", pack_directory),
    ("pack_frame", pack_frame),
    ("detect", detect),
    ("snapshot_path", snapshot_path),
];

/// Takes everything, and holds sources to their promises.
#[derive(Debug, Default)]
struct Strict {
    left: u64,
}

impl Sink for Strict {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        assert_eq!(self.left, 0, "a file was left unfinished");
        self.left = entry.size();
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        assert!(chunk.len() <= self.left, "more data than the file has");
        self.left -= chunk.len();
        Ok(())
    }

    fn end(&mut self, _: &End) -> Result<()> {
        assert_eq!(self.left, 0, "a file was left unfinished");
        Ok(())
    }
}

/// Reads a base backup from a stream, compressed or not.
pub fn tar_stream(bytes: &[u8]) {
    let limits = Limits {
        members: 1000,
        bytes: 16 << 20,
    };
    drop(
        BaseBackup::in_stream(bytes)
            .limits(limits)
            .send(&mut Strict::default()),
    );
    drop(
        BaseBackup::in_stream(bytes)
            .limits(limits)
            .without_end_marks()
            .send(&mut Strict::default()),
    );
}

/// Opens and reads a `.neon` file.
pub fn neon_file(bytes: &[u8]) {
    if let Ok(mut file) = NeonFile::open(bytes.to_vec(), None) {
        drop(file.check());
        drop(file.send(&mut Strict::default()));
        drop(file.send_parallel(&StrictParts, 1));
        if let Ok(path) = SnapshotPath::new("PG_VERSION") {
            drop(file.read(&path, 1, 100));
        }
    }
}

/// Reads a `.neon` file whose every digest is right, by somebody who knows the format: the input is its
/// frames, each behind its length in 16 bits, the last of which describe the snapshot.
pub fn neon_forged(bytes: &[u8]) {
    let Some((last, mut rest)) = bytes.split_first() else {
        return;
    };
    let mut forge = || -> Result<Vec<u8>> {
        let id = PackId(*b"forged by a fuzz");
        let options = PackOptions {
            codec: Codec::None,
            ..PackOptions::new(id)
        };
        let mut pack = PackWriter::begin(Vec::new(), options, true)?;
        while let Some((length, behind)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes(*length)).clamp(1, behind.len().max(1));
            let (frame, behind) = behind.split_at_checked(length).unwrap_or((behind, &[]));
            pack.append(frame)?;
            rest = behind;
        }
        let count = u32::from(*last % 3) + 1;
        let frame = pack.next_frame().saturating_sub(count.into());
        pack.finish(0, Some(SnapshotRoot { frame, count }))
    };
    if let Ok(pack) = forge()
        && let Ok(mut file) = NeonFile::open(pack, None)
    {
        drop(file.send(&mut Strict::default()));
        drop(file.send_parallel(&StrictParts, 1));
        for page in 0..file.entry_pages() {
            for entry in file.entries(page).unwrap_or_default() {
                drop(file.read(&entry.path, entry.size() / 2, 10_000));
            }
        }
    }
}

/// As [`Strict`], for parts.
struct StrictParts;

struct StrictPart(Range<u64>);

impl ParallelSink for StrictParts {
    fn entry(&self, entry: &Entry) -> Result<()> {
        assert!(!entry.is_file());
        Ok(())
    }

    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()> {
        assert!(entry.is_file() && *wanted == Wanted::Whole);
        Ok(())
    }

    fn changed(&self, _: &Entry, _: Change) -> Result<()> {
        Ok(())
    }

    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(StrictPart(0..0)))
    }

    fn end(&self, _: &End) -> Result<()> {
        Ok(())
    }
}

impl ExtentSink for StrictPart {
    fn begin(&mut self, entry: &Entry, range: Range<u64>) -> Result<()> {
        assert!(range.end <= entry.size());
        self.0 = range;
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        assert!(chunk.offset == self.0.start && chunk.len() <= self.0.end - self.0.start);
        self.0.start += chunk.len();
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        assert!(self.0.is_empty());
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Feeds the opening of a pack whatever comes.
pub fn pack_opening(bytes: &[u8]) {
    if let Ok(mut opening) = Opening::new(bytes.len() as u64) {
        drop(opening.feed(bytes));
    }
}

/// Tells what a stream is.
pub fn detect(bytes: &[u8]) {
    drop(detect_start(bytes).to_string());
}

/// Checks a path.
pub fn snapshot_path(bytes: &[u8]) {
    if let Ok(path) = SnapshotPath::new(bytes) {
        assert_eq!(path.as_bytes(), bytes);
        let joined = path.split().map(|(parent, name)| [parent, name].concat());
        assert!(joined.is_none_or(|joined| joined.len() <= bytes.len()));
    }
}
