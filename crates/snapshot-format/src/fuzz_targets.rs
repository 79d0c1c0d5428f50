//! The bodies of the fuzz targets: each takes any bytes and must neither panic, hang nor take memory out of
//! proportion.
//!
//! Public so that `fuzz/` and the property tests run the same code; not part of the crate's interface.

use crate::basebackup::{BaseBackup, Limits};
use crate::detect::detect_start;
use crate::error::Result;
use crate::pack::{NeonFile, Opening};
use crate::path::SnapshotPath;
use crate::stream::{Chunk, End, Entry, Sink, Source};

/// One fuzz target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate by name.
pub const ALL: &[Target] = &[
    ("tar_stream", tar_stream),
    ("neon_file", neon_file),
    ("pack_opening", pack_opening),
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
        if let Ok(path) = SnapshotPath::new("PG_VERSION") {
            drop(file.read(&path, 1, 100));
        }
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
