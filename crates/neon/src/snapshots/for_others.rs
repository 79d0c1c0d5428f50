//! Of our own settings (`neon.conf`) in a data directory or base backup that leaves the home: without those that only this
//! home's server can have. Its port and the folder of its socket are the origin's, which may run; the folder of its log is
//! beside the data directory, where an instance has one and nobody else. In the snapshot itself they stay.

use std::ops::Range;
use std::sync::Arc;

use neon_pagestore::read::Snapshot;
use neon_pgctl::OWN_SETTINGS_FILE;
use neon_snapshot_format::{
    CHUNK_SIZE, Change, Chunk, ChunkData, End, Entry, EntryKind, ExtentSink, ParallelSink, Result,
    Sink, SnapshotPath, Wanted,
};

use crate::error::Error;

/// Given anew to every server.
const LEFT_OUT: [&str; 4] = [
    "port",
    "unix_socket_directories",
    "logging_collector",
    "log_directory",
];
const NOTE: &str = "# Left out for this copy, as they were those of its origin: ";
/// No such file is larger.
const LIMIT: u64 = 1 << 20;

/// What `neon.conf` is in a copy for others.
#[derive(Debug, Clone)]
pub(crate) struct ForOthers(Option<Arc<[u8]>>);

impl ForOthers {
    /// Reads what a snapshot has.
    pub(crate) async fn of(snapshot: &Snapshot, subject: &str) -> crate::Result<Self> {
        let path = SnapshotPath::new(OWN_SETTINGS_FILE)
            .map_err(|error| Error::format(OWN_SETTINGS_FILE, error))?;
        let failed = |error| Error::repository(subject, error);
        let there = snapshot.stat(&path).await.map_err(failed)?;
        let Some(entry) = there.map(|there| there.entry(path.clone())) else {
            return Ok(Self(None));
        };
        if !entry.is_file() || entry.size() > LIMIT {
            return Ok(Self(None));
        }
        let content = snapshot.read_range(&path, 0..entry.size()).await;
        Ok(Self(without(&content.map_err(failed)?).map(Arc::from)))
    }

    /// Before a sink that is sent to by several threads.
    pub(crate) fn before<'a>(&'a self, sink: &'a dyn ParallelSink) -> Replacing<'a> {
        Replacing {
            content: self.0.as_deref(),
            sink,
        }
    }

    /// Before a sink that is sent to in order.
    pub(crate) fn before_in_order<'a>(&'a self, sink: &'a mut dyn Sink) -> ReplacingInOrder<'a> {
        ReplacingInOrder {
            content: self.0.as_deref(),
            sink,
            aside: false,
        }
    }
}

/// The file without the settings; nothing if it has none of them.
fn without(content: &[u8]) -> Option<Vec<u8>> {
    let mut kept = Vec::with_capacity(content.len());
    let mut gone: Vec<&str> = Vec::new();
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        let text = line.trim_ascii_start();
        let end = text
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
        let name = text.get(..end.unwrap_or(text.len())).unwrap_or_default();
        let known = LEFT_OUT
            .iter()
            .find(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        match known {
            Some(known) => gone.push(known),
            None => kept.extend_from_slice(line),
        }
    }
    if gone.is_empty() {
        return None;
    }
    if !kept.is_empty() && !kept.ends_with(b"\n") {
        kept.push(b'\n');
    }
    kept.extend_from_slice(format!("{NOTE}{}\n", gone.join(", ")).as_bytes());
    Some(kept)
}

fn is_ours(entry: &Entry) -> bool {
    entry.path.as_bytes() == OWN_SETTINGS_FILE.as_bytes() && entry.is_file()
}

fn resized(entry: &Entry, content: &[u8]) -> Entry {
    Entry {
        kind: EntryKind::File {
            size: content.len() as u64,
        },
        ..entry.clone()
    }
}

fn each_chunk(content: &[u8], mut take: impl FnMut(&Chunk<'_>) -> Result<()>) -> Result<()> {
    let mut offset = 0_u64;
    for piece in content.chunks(CHUNK_SIZE) {
        let data = ChunkData::Bytes(piece);
        take(&Chunk { offset, data })?;
        offset = offset.saturating_add(piece.len() as u64);
    }
    Ok(())
}

/// See [`ForOthers::before`].
pub(crate) struct Replacing<'a> {
    content: Option<&'a [u8]>,
    sink: &'a dyn ParallelSink,
}

impl Replacing<'_> {
    fn instead_of(&self, entry: &Entry) -> Option<&[u8]> {
        self.content.filter(|_| is_ours(entry))
    }
}

impl ParallelSink for Replacing<'_> {
    fn entry(&self, entry: &Entry) -> Result<()> {
        self.sink.entry(entry)
    }

    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()> {
        match self.instead_of(entry) {
            Some(content) => self.sink.file(&resized(entry, content), wanted),
            None => self.sink.file(entry, wanted),
        }
    }

    fn changed(&self, entry: &Entry, change: Change) -> Result<()> {
        self.sink.changed(entry, change)
    }

    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(Worker {
            of: self,
            worker: self.sink.worker()?,
            aside: None,
        }))
    }

    fn end(&self, end: &End) -> Result<()> {
        self.sink.end(end)
    }
}

struct Worker<'a> {
    of: &'a Replacing<'a>,
    worker: Box<dyn ExtentSink + 'a>,
    /// What comes is not passed on; whether its end is.
    aside: Option<bool>,
}

impl ExtentSink for Worker<'_> {
    fn begin(&mut self, entry: &Entry, range: Range<u64>) -> Result<()> {
        let Some(content) = self.of.instead_of(entry) else {
            self.aside = None;
            return self.worker.begin(entry, range);
        };
        // All of it goes in place of its first part.
        let first = range.start == 0;
        self.aside = Some(first);
        if first {
            let entry = resized(entry, content);
            self.worker.begin(&entry, 0..entry.size())?;
            each_chunk(content, |chunk| self.worker.chunk(chunk))?;
        }
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        match self.aside {
            Some(_) => Ok(()),
            None => self.worker.chunk(chunk),
        }
    }

    fn commit(&mut self) -> Result<()> {
        match self.aside.take() {
            Some(false) => Ok(()),
            _ => self.worker.commit(),
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.worker.finish()
    }
}

/// See [`ForOthers::before_in_order`].
pub(crate) struct ReplacingInOrder<'a> {
    content: Option<&'a [u8]>,
    sink: &'a mut dyn Sink,
    aside: bool,
}

impl Sink for ReplacingInOrder<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let content = self.content.filter(|_| is_ours(entry));
        self.aside = content.is_some();
        match content {
            None => self.sink.entry(entry),
            Some(content) => {
                self.sink.entry(&resized(entry, content))?;
                each_chunk(content, |chunk| self.sink.chunk(chunk))
            }
        }
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        if self.aside {
            return Ok(());
        }
        self.sink.chunk(chunk)
    }

    fn end(&mut self, end: &End) -> Result<()> {
        self.sink.end(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_belongs_to_the_origin_is_left_out() {
        let content = b"# port = 1\nlisten_addresses = 'localhost'\n port=7200\nPort_x = 1\nLOG_DIRECTORY '../log'";
        let kept = String::from_utf8(without(content).unwrap()).unwrap();
        assert_eq!(
            kept,
            format!(
                "# port = 1\nlisten_addresses = 'localhost'\nPort_x = 1\n{NOTE}port, log_directory\n"
            )
        );
        assert_eq!(without(kept.as_bytes()), None);
        assert_eq!(without(b""), None);
    }
}
