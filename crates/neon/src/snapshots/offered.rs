//! A snapshot as a source of base backups: archives and log out of its repository, a manifest with the sums of what was
//! sent.

mod archive;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use neon_pagestore::Facts;
use neon_pagestore::read::Snapshot;
use neon_pg_layout::wal::{WalFormat, end_of_log};
use neon_pg_layout::{
    BackupLabel, ControlFile, Lsn, ManifestFile, ManifestWriter, PgMajor, SegmentName,
    TablespaceMap, TimelineId, TimelineRange, WalFileName, WalSegmentSize, gmt,
};
use neon_pgwire::{
    BackupRequest, BackupSource, ByteStream, SourceFacts, SourceTablespace, WalPiece,
};
use neon_snapshot_format::{EntryKind, SnapshotKind, SnapshotPath};
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use archive::{Archive, Known, LABEL, LOG, MAP, Sum, Sums, Target, Whole, lock};

/// Pieces that wait between the repository and the client.
const WAITING: usize = 8;
const CONTROL: &str = "global/pg_control";

/// See the module.
pub(crate) struct Offered {
    snapshot: Snapshot,
    facts: SourceFacts,
    ranges: Vec<TimelineRange>,
    label: Option<Bytes>,
    sums: Sums,
    whole: Whole,
    /// How many backups were taken to their end.
    pub(crate) taken: Arc<AtomicU32>,
}

impl fmt::Debug for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offered")
            .field("snapshot", &self.snapshot.id())
            .finish_non_exhaustive()
    }
}

fn path(text: &str) -> Result<SnapshotPath> {
    SnapshotPath::new(text).map_err(|error| Error::format(text, error))
}

impl Offered {
    pub(crate) async fn new(snapshot: &Snapshot, subject: &str) -> Result<Self> {
        let damaged = |reason: &'static str| Error::new(ErrorKind::Damaged, subject, reason);
        let read = async |name: &str| -> Result<Option<Bytes>> {
            let path = path(name)?;
            let failed = |error| Error::repository(subject, error);
            match snapshot.stat(&path).await.map_err(failed)? {
                None => Ok(None),
                Some(_) => {
                    let whole = snapshot.read_range(&path, 0..u64::MAX).await;
                    Ok(Some(whole.map_err(failed)?))
                }
            }
        };
        let control = read(CONTROL)
            .await?
            .ok_or_else(|| damaged("has no control file"))?;
        let control = ControlFile::decode(&control)
            .map_err(|error| damaged("has a control file of no use").caused_by(error))?;
        let facts = snapshot.facts();
        let label = match facts.kind.is_bracketed() {
            true => read(LABEL).await?,
            false => None,
        };
        let begun = label
            .as_ref()
            .map(|label| BackupLabel::parse(label))
            .transpose()
            .map_err(|error| damaged("has a label of no use").caused_by(error))?;
        let start = begun
            .as_ref()
            .map_or(control.checkpoint.redo, |label| label.start);
        let start_timeline = begun.as_ref().map_or(control.checkpoint.timeline, |label| {
            label.start_segment.timeline()
        });
        let stop = match facts.log.stop {
            Some(stop) => stop,
            None => end(snapshot, &control, start_timeline, subject).await?,
        };
        let mut ranges: Vec<TimelineRange> = facts
            .log
            .ranges
            .iter()
            .map(|range| TimelineRange {
                timeline: range.timeline,
                start: range.start,
                end: range.end,
            })
            .collect();
        if ranges.is_empty() {
            ranges.push(TimelineRange {
                timeline: start_timeline,
                start,
                end: stop,
            });
        }
        ranges.sort_by_key(|range| range.timeline);
        let stop_timeline = ranges.last().map_or(start_timeline, |last| last.timeline);
        let root = snapshot.stat(&SnapshotPath::root()).await;
        let root = root.map_err(|error| Error::repository(subject, error))?;
        let mode = root.map_or(0o700, |root| root.entry(SnapshotPath::root()).mode);
        Ok(Self {
            facts: SourceFacts {
                system_identifier: control.system_identifier.get(),
                timeline: stop_timeline,
                position: stop,
                start,
                start_timeline,
                stop,
                stop_timeline,
                wal_segment_size: control.build.wal_segment_size.bytes(),
                group_access: mode & 0o050 != 0,
                tablespaces: tablespaces(snapshot, read(MAP).await?, subject).await?,
                size: Some(facts.cost.bytes.div_ceil(1024)),
            },
            snapshot: snapshot.clone(),
            ranges,
            label,
            sums: Sums::default(),
            whole: Whole::default(),
            taken: Arc::default(),
        })
    }

    /// Where its tablespaces were.
    pub(crate) fn locations(&self) -> impl Iterator<Item = &str> {
        self.facts
            .tablespaces
            .iter()
            .map(|space| space.location.as_str())
            .filter(|location| location.starts_with('/'))
    }

    /// What to know before taking it.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let facts = self.snapshot.facts();
        match facts.kind {
            SnapshotKind::Cold => {
                notes.push("It starts as after a clean stop, without recovery.".to_owned());
            }
            SnapshotKind::Crashed => notes.push(
                "It was copied of a server that had crashed: it starts with crash recovery, for which its log must be taken along (-X stream or -X fetch)."
                    .to_owned(),
            ),
            SnapshotKind::Recovery => notes.push(
                "It was copied of a standby that was stopped: it goes on recovering, and needs an upstream or an archive to go far."
                    .to_owned(),
            ),
            SnapshotKind::Online | SnapshotKind::Standby => notes.push(
                "It starts with recovery, for which its log must be taken along (-X stream or -X fetch)."
                    .to_owned(),
            ),
        }
        if self.locations().next().is_some() {
            notes.push(
                "It has tablespaces: say with -T where each is to go, or take it as archives (-Ft)."
                    .to_owned(),
            );
        }
        notes
    }

    fn segment_size(&self) -> io::Result<WalSegmentSize> {
        WalSegmentSize::new(self.facts.wal_segment_size).map_err(io::Error::other)
    }

    /// Sends entries in a thread beside the runtime.
    fn send(&self, of: Option<u32>, request: &BackupRequest, to: Target) {
        let (snapshot, sums) = (self.snapshot.clone(), Arc::clone(&self.sums));
        let (label, whole) = (self.label.clone(), Arc::clone(&self.whole));
        let (spaces, map) = (self.facts.tablespaces.clone(), request.tablespace_map);
        tokio::task::spawn_blocking(move || {
            let known = Known {
                sums,
                whole,
                spaces,
                map,
            };
            Archive::new(of, to, known).write(&snapshot, label.as_deref());
        });
    }
}

/// Where the log of a snapshot ends that does not say it: of a stopped cluster from elsewhere.
async fn end(
    snapshot: &Snapshot,
    control: &ControlFile,
    timeline: TimelineId,
    subject: &str,
) -> Result<Lsn> {
    let size = control.build.wal_segment_size;
    let mut segments = BTreeMap::new();
    let mut number = size.number_of(control.checkpoint.redo);
    loop {
        let name = SegmentName::new(timeline, number, size).map_err(|error| {
            Error::new(ErrorKind::Damaged, subject, "has a log of no use").caused_by(error)
        })?;
        let path = path(&format!("{LOG}{name}"))?;
        let failed = |error| Error::repository(subject, error);
        if snapshot.stat(&path).await.map_err(failed)?.is_none() {
            break;
        }
        let bytes = snapshot.read_range(&path, 0..size.bytes()).await;
        segments.insert(name, bytes.map_err(failed)?);
        number = number.saturating_add(1);
        // A clean stop ends in the segment of its checkpoint, or the next.
        if segments.len() > 64 {
            break;
        }
    }
    let format = WalFormat::of_control(control).map_err(|error| {
        Error::new(ErrorKind::Damaged, subject, "has a log of no use").caused_by(error)
    })?;
    let names: Vec<SegmentName> = segments.keys().copied().collect();
    let end = end_of_log(format, control.checkpoint.redo, &names, |name| {
        let bytes = segments.get(&name).cloned().unwrap_or_default();
        Ok(io::Cursor::new(bytes))
    });
    end.map_err(|error| {
        Error::new(ErrorKind::Damaged, subject, "has a log of no use").caused_by(error)
    })
}

async fn tablespaces(
    snapshot: &Snapshot,
    map: Option<Bytes>,
    subject: &str,
) -> Result<Vec<SourceTablespace>> {
    let known = match &map {
        Some(map) => {
            TablespaceMap::parse(map)
                .map_err(|error| {
                    Error::new(
                        ErrorKind::Damaged,
                        subject,
                        "has a tablespace_map of no use",
                    )
                    .caused_by(error)
                })?
                .entries
        }
        None => Vec::new(),
    };
    let entries = snapshot.list(&path("pg_tblspc")?).await;
    let entries = entries.map_err(|error| Error::repository(subject, error))?;
    let mut found = Vec::new();
    for (path, attributes) in entries {
        let EntryKind::Tablespace { oid, location } = attributes.entry(path).kind else {
            continue;
        };
        let mapped = known.iter().find(|(known, _)| *known == oid);
        let location = location.or_else(|| mapped.map(|(_, place)| place.clone()));
        let location = location.and_then(|location| String::from_utf8(location).ok());
        found.push(SourceTablespace {
            oid,
            location: location.ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    subject,
                    format!("does not say where tablespace {oid} was"),
                )
            })?,
            size: None,
        });
    }
    Ok(found)
}

#[async_trait]
impl BackupSource for Offered {
    async fn facts(&self) -> io::Result<SourceFacts> {
        Ok(self.facts.clone())
    }

    async fn archive(&self, of: Option<u32>, request: &BackupRequest) -> io::Result<ByteStream> {
        let (sender, receiver) = mpsc::channel(WAITING);
        self.send(of, request, Target::Client(sender));
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        if of.is_some() || request.manifest {
            return Ok(stream.boxed());
        }
        Ok(self.counted(stream.boxed()))
    }

    async fn manifest(&self, request: &BackupRequest) -> io::Result<ByteStream> {
        let sums = Arc::clone(&self.sums);
        let archives = self.facts.tablespaces.len().saturating_add(1);
        if lock(&self.whole).len() < archives {
            // What no client has taken yet is read for its sums alone.
            let (done, waited) = tokio::sync::oneshot::channel();
            self.send(None, request, Target::Nobody(Some(done)));
            waited
                .await
                .map_err(|_| io::Error::other("the snapshot could not be read"))?;
        }
        let facts = self.snapshot.facts();
        let bytes = manifest(facts, &lock(&sums), &self.ranges, request);
        let stream = futures_util::stream::iter([Ok(Bytes::from(bytes))]);
        Ok(self.counted(stream.boxed()))
    }

    async fn wal(&self, timeline: TimelineId, from: Lsn, max: usize) -> io::Result<WalPiece> {
        let last = self.ranges.last().map(|range| range.timeline);
        let range = self.ranges.iter().find(|range| range.timeline == timeline);
        let Some(range) = range else {
            return Ok(WalPiece::Removed);
        };
        if from >= range.end {
            let next = self.ranges.iter().find(|next| next.timeline > timeline);
            return Ok(match next {
                Some(next) if Some(timeline) != last => WalPiece::TimelineEnd {
                    next: next.timeline,
                    at: range.end,
                },
                _ => WalPiece::CaughtUp,
            });
        }
        let size = self.segment_size()?;
        let name = SegmentName::containing(timeline, from, size);
        let path = SnapshotPath::new(format!("{LOG}{name}")).map_err(io::Error::other)?;
        let offset = from.offset_in(size.bytes());
        let left = range
            .end
            .0
            .saturating_sub(from.0)
            .min(size.bytes() - offset);
        let wanted = left.min(u64::try_from(max).unwrap_or(u64::MAX));
        let known = self.snapshot.stat(&path).await.map_err(io::Error::other)?;
        if known.is_none() {
            return Ok(WalPiece::Removed);
        }
        let bytes = self
            .snapshot
            .read_range(&path, offset..offset.saturating_add(wanted))
            .await
            .map_err(io::Error::other)?;
        Ok(WalPiece::Data(bytes))
    }

    async fn timeline_history(&self, timeline: TimelineId) -> io::Result<Option<Bytes>> {
        let name = WalFileName::History(timeline);
        let path = SnapshotPath::new(format!("{LOG}{name}")).map_err(io::Error::other)?;
        match self.snapshot.stat(&path).await.map_err(io::Error::other)? {
            None => Ok(None),
            Some(_) => {
                let whole = self.snapshot.read_range(&path, 0..1 << 20).await;
                whole.map(Some).map_err(io::Error::other)
            }
        }
    }
}

impl Offered {
    /// A stream at whose end a backup was taken.
    fn counted(&self, stream: ByteStream) -> ByteStream {
        let taken = Arc::clone(&self.taken);
        let end = futures_util::stream::poll_fn(move |_| {
            taken.fetch_add(1, Ordering::Relaxed);
            std::task::Poll::Ready(None)
        });
        stream.chain(end).boxed()
    }
}

fn manifest(
    facts: &Facts,
    sums: &BTreeMap<Vec<u8>, Sum>,
    ranges: &[TimelineRange],
    request: &BackupRequest,
) -> Vec<u8> {
    let system = (facts.cluster.major >= PgMajor::V17).then_some(facts.cluster.system);
    let mut writer = ManifestWriter::new(system);
    for (path, sum) in sums {
        // Either the map or the links went out.
        if path == MAP.as_bytes() && !request.tablespace_map {
            continue;
        }
        writer.file(&ManifestFile {
            path: path.clone(),
            size: sum.size,
            modified: Some(gmt(sum.modified)),
            checksum: sum.sum.clone(),
        });
    }
    // Nobody replays the log of a clean stop.
    let mut ranges = match facts.kind {
        SnapshotKind::Cold => Vec::new(),
        _ => ranges.to_vec(),
    };
    ranges.reverse();
    writer.finish(&ranges)
}
