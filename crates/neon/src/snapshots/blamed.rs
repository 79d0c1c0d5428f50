//! Whose fault it was that a copy failed: of what is copied, or of the place it goes to.

use neon_snapshot_format::{Chunk, End, Entry, Sink};

/// Knows whether it was the place where a copy goes that failed, and not what is copied.
pub(super) struct Blamed<'a> {
    sink: &'a mut dyn Sink,
    failed: bool,
}

impl<'a> Blamed<'a> {
    pub(super) fn new(sink: &'a mut dyn Sink) -> Self {
        Self {
            sink,
            failed: false,
        }
    }

    pub(super) fn failed(&self) -> bool {
        self.failed
    }

    fn blame<T, E>(&mut self, done: std::result::Result<T, E>) -> std::result::Result<T, E> {
        self.failed |= done.is_err();
        done
    }
}

impl Sink for Blamed<'_> {
    fn entry(&mut self, entry: &Entry) -> neon_snapshot_format::Result<()> {
        let done = self.sink.entry(entry);
        self.blame(done)
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> neon_snapshot_format::Result<()> {
        let done = self.sink.chunk(chunk);
        self.blame(done)
    }

    fn end(&mut self, end: &End) -> neon_snapshot_format::Result<()> {
        let done = self.sink.end(end);
        self.blame(done)
    }
}
