//! A snapshot of a repository as a source: into a tar set, a `.neon` file, a data directory, or anything else that
//! takes snapshots.

use neon_snapshot_format::{
    BadPage, End, Sink, Skipped, SnapshotKind, SnapshotPath, Source, StartUpRank,
};

use crate::bridge::Bridge;
use crate::error::{Error, Result};
use crate::facts::Facts;
use crate::map::{FileKind, Walk};
use crate::read::feed::{Feed, Queue};
use crate::read::layout::Layout;
use crate::read::pages::Snapshot;

/// The control file comes last, whatever the order of the others.
pub(crate) const CONTROL: &[u8] = b"global/pg_control";

/// Sends a snapshot in order: directories first, then files by their start-up rank, `global/pg_control` last.
///
/// It waits for the storage, so it must be used in a thread outside of the runtime, such as `spawn_blocking` gives.
#[derive(Debug)]
pub struct SnapshotSource {
    snapshot: Snapshot,
    bridge: Bridge,
}

impl SnapshotSource {
    /// Must be called where the runtime is known: in it, or in one of its blocking threads.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) outside of a runtime.
    pub fn new(snapshot: &Snapshot) -> Result<Self> {
        Ok(Self {
            snapshot: snapshot.clone(),
            bridge: Bridge::current()?,
        })
    }

    fn directories(&self, sink: &mut dyn Sink) -> Result<()> {
        let mut walk = Walk::new(self.snapshot.view(), false);
        while let Some(file) = self.snapshot.maps().wait(&self.bridge, &mut walk)? {
            if !matches!(file.attributes.kind, FileKind::File { .. }) {
                sink.entry(&file.attributes.entry(file.path))
                    .map_err(|error| Error::format("export", error))?;
            }
        }
        Ok(())
    }

    fn files(&self, rank: StartUpRank, last: bool, sink: &mut dyn Sink) -> Result<()> {
        let queue = Queue::new(&self.snapshot, &self.bridge, Some(rank));
        let mut feed = Feed::new(&queue);
        let page_size = self.snapshot.view().page_size;
        while let Some((parts, mut frames)) = feed.next()? {
            for part in parts {
                if (part.file.path.as_bytes() == CONTROL) != last {
                    continue;
                }
                let fail = |error| Error::format(part.file.path.to_string(), error);
                if part.range.start == 0 {
                    let entry = part.file.attributes.entry(part.file.path.clone());
                    sink.entry(&entry).map_err(fail)?;
                }
                Layout::new(&part.file, page_size).chunks(
                    part.range.clone(),
                    |frame, range| frames.get(frame, range),
                    |chunk| sink.chunk(chunk).map_err(fail),
                )?;
            }
        }
        Ok(())
    }

    fn everything(&self, sink: &mut dyn Sink) -> Result<()> {
        self.directories(sink)?;
        let ranks = [
            StartUpRank::First,
            StartUpRank::Log,
            StartUpRank::Catalog,
            StartUpRank::Later,
        ];
        for rank in ranks {
            self.files(rank, false, sink)?;
        }
        self.files(StartUpRank::First, true, sink)?;
        let end = end_of(self.snapshot.facts())?;
        sink.end(&end)
            .map_err(|error| Error::format("export", error))
    }
}

impl Source for SnapshotSource {
    fn send(&mut self, sink: &mut dyn Sink) -> neon_snapshot_format::Result<()> {
        self.everything(sink).map_err(crate::write::passed)
    }
}

/// What a source says at the end, from what the commit says.
pub(crate) fn end_of(facts: &Facts) -> Result<End> {
    let path = |text: &str| {
        SnapshotPath::new(text).map_err(|error| Error::format("facts of a snapshot", error))
    };
    let mut end = End {
        kind: Some(facts.kind),
        major: Some(facts.cluster.major),
        system_identifier: Some(facts.cluster.system),
        ..End::default()
    };
    if facts.kind != SnapshotKind::Cold {
        end.wal = facts
            .log
            .ranges
            .iter()
            .map(|range| neon_pg_layout::TimelineRange {
                timeline: range.timeline,
                start: range.start,
                end: range.end,
            })
            .collect();
    }
    for skipped in &facts.skipped {
        end.skipped.push(Skipped {
            path: path(&skipped.path)?,
            reason: "left out when the snapshot was taken",
        });
    }
    for bad in &facts.bad_pages {
        end.bad_pages.push(BadPage {
            path: path(&bad.path)?,
            block: bad.block,
            reason: bad.reason.clone(),
        });
    }
    Ok(end)
}
