//! The end of a copy: label, tablespace map and log of a backup that was stopped.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use neon_pg_layout::wal::{Change, Step, WalFormat, WalReader};
use neon_pg_layout::{
    BackupLabel, Lsn, SegmentName, TablespaceMap, TimelineHistory, TimelineId, TimelineRange,
    WalFileName,
};

use crate::error::{Error, ErrorKind, Result};
use crate::path::SnapshotPath;
use crate::pgdata::copied::Copied;
use crate::pgdata::place::{Root, Roots, names};
use crate::stream::{
    CHUNK_SIZE, Chunk, ChunkData, End, Entry, EntryKind, Sink, is_zero, send_file,
};

/// What the server said when the backup was stopped, and where its log is.
#[derive(Debug, Clone, Copy)]
pub struct Stop<'a> {
    /// The label, to the byte.
    pub label: &'a [u8],
    /// The tablespace map, to the byte; empty when there are no tablespaces. Of tablespaces that were dropped before they
    /// could be copied the snapshot keeps no line: replay drops them, and needs no link for that.
    pub tablespace_map: &'a [u8],
    /// The position that stopping returned.
    pub position: Lsn,
    /// The timeline it ended on.
    pub timeline: TimelineId,
    /// Where the log is.
    pub wal: StopWal<'a>,
}

/// Where the log of a backup is.
#[derive(Debug, Clone, Copy)]
pub enum StopWal<'a> {
    /// In this directory, every segment whole. It is put into the snapshot, which can then start alone.
    Directory(&'a Path),
    /// In an archive. The snapshot records which part of it is needed.
    Elsewhere,
}

impl Copied {
    /// The facts known so far, as the end will carry them.
    #[must_use]
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Sends what belongs to the stopped backup, and the end. `stop` is given for a running server, and
    /// only for one.
    ///
    /// # Errors
    /// - [`Inconsistent`](ErrorKind::Inconsistent) when `stop` is missing or too much, or the label is
    ///   not of this backup;
    /// - [`NotFound`](ErrorKind::NotFound) when a segment of the log is missing or not whole;
    /// - [`Malformed`](ErrorKind::Malformed) for a label that the server did not write;
    /// - what the sink returns.
    pub fn finish(mut self, sink: &mut dyn Sink, stop: Option<Stop<'_>>) -> Result<End> {
        let bracketed = self.end.kind.is_some_and(crate::SnapshotKind::is_bracketed);
        match stop {
            Some(stop) if bracketed => self.stopped(sink, &stop)?,
            None if !bracketed => {}
            _ => {
                return Err(Error::new(
                    ErrorKind::Inconsistent,
                    "end of the copy",
                    "a copy of a running server, and no other, ends with a stopped backup",
                ));
            }
        }
        sink.end(&self.end)?;
        Ok(self.end)
    }

    fn stopped(&mut self, sink: &mut dyn Sink, stop: &Stop<'_>) -> Result<()> {
        let label =
            BackupLabel::parse(stop.label).map_err(|error| Error::layout("backup_label", error))?;
        let timeline = label.start_segment.timeline();
        let root = match stop.wal {
            StopWal::Directory(path) => Some(Roots::new(Root::open(path)?)),
            StopWal::Elsewhere => None,
        };
        self.end.wal = ranges(timeline, label.start, stop, root.as_ref())?;
        send_file(
            sink,
            &self.entry("backup_label", stop.label.len())?,
            stop.label,
        )?;
        let map = self.mapped(stop.tablespace_map)?;
        if !map.is_empty() {
            send_file(sink, &self.entry("tablespace_map", map.len())?, &map)?;
        }
        let Some(root) = root else { return Ok(()) };
        let size = self.control.build.wal_segment_size;
        for range in self.end.wal.iter().rev() {
            let first = size.number_of(range.start);
            for number in first..=size.number_before(range.end).max(first) {
                let name = SegmentName::new(range.timeline, number, size)
                    .map_err(|error| Error::layout("log of the backup", error))?;
                let stop = (size.number_of(stop.position) == number).then_some(stop.position);
                self.segment(sink, &root, &name.to_string(), size.bytes(), stop)?;
            }
        }
        let in_directory = names(root.data.fd()).map_err(|error| {
            Error::io(
                root.data.path.display().to_string(),
                "cannot be listed",
                error,
            )
        })?;
        for name in in_directory {
            let Some(text) = std::str::from_utf8(&name).ok() else {
                continue;
            };
            if let Ok(WalFileName::History(of)) = text.parse()
                && of <= stop.timeline
            {
                let content = small_file(&root, text)?;
                let entry = self.entry(&format!("pg_wal/{text}"), content.len())?;
                send_file(sink, &entry, &content)?;
                self.archived(sink, text)?;
            }
        }
        Ok(())
    }

    /// The lines of a tablespace map for what was sent; the map is of the beginning of the backup.
    fn mapped<'m>(&self, map: &'m [u8]) -> Result<Cow<'m, [u8]>> {
        let mut kept =
            TablespaceMap::parse(map).map_err(|error| Error::layout("tablespace_map", error))?;
        let before = kept.entries.len();
        kept.entries
            .retain(|(oid, _)| self.tablespaces.contains(oid));
        Ok(match kept.entries.len() == before {
            true => Cow::Borrowed(map),
            false => Cow::Owned(kept.to_bytes()),
        })
    }

    /// Sends a segment of the log; if given, with the position in it where the backup was stopped.
    fn segment(
        &self,
        sink: &mut dyn Sink,
        root: &Roots,
        name: &str,
        size: u64,
        stop: Option<Lsn>,
    ) -> Result<()> {
        let missing = |reason| Err(Error::new(ErrorKind::NotFound, name, reason));
        let Some((file, stat)) = root.open_file(&SnapshotPath::new(name)?)? else {
            return missing("the segment is not in the directory of the backup's log");
        };
        if u64::try_from(stat.st_size).ok() != Some(size) {
            return missing("the segment is not whole");
        }
        let path = format!("pg_wal/{name}");
        let mut entry = self.entry(&path, 0)?;
        entry.kind = EntryKind::File { size };
        sink.entry(&entry)?;
        let written = stop.and_then(|stop| self.written(&file, stop, size));
        let mut buffer = vec![0; CHUNK_SIZE];
        let mut offset = 0;
        while offset < size {
            if written.is_some_and(|written| offset >= written) {
                let data = ChunkData::Zeros(size - offset);
                sink.chunk(&Chunk { offset, data })?;
                break;
            }
            file.read_exact_at(&mut buffer, offset)
                .map_err(|error| Error::io(path.clone(), "cannot be read", error))?;
            let data = if is_zero(&buffer) {
                ChunkData::Zeros(buffer.len() as u64)
            } else {
                ChunkData::Bytes(&buffer)
            };
            sink.chunk(&Chunk { offset, data })?;
            offset += buffer.len() as u64;
        }
        self.archived(sink, name)
    }

    /// How much of a segment was written. A primary goes on in the next segment when a backup is stopped, and fills the rest of
    /// this one with zeros (`CopyXLogRecordToWAL`, `xlog.c`): up to 16 MiB that need not be read. Nothing where the record
    /// that says so is not found.
    fn written(&self, file: &File, stop: Lsn, size: u64) -> Option<u64> {
        if self.end.kind != Some(crate::SnapshotKind::Online) {
            return None;
        }
        let format = WalFormat::of_control(&self.control).ok()?;
        let mut page = vec![0; usize::try_from(format.page_size()).ok()?];
        let end = Lsn(stop.start_of(size).0.checked_add(size)?);
        let mut reader = WalReader::at_record(format, stop);
        while reader.position() < end {
            let at = reader.position().offset_in(size);
            file.read_exact_at(&mut page, at).ok()?;
            let mut input = page.as_slice();
            loop {
                let mut switched = false;
                match reader.read(&mut input).ok()? {
                    Step::Record(record) => record
                        .changes(|change| switched |= matches!(change, Change::SegmentSwitched))
                        .ok()?,
                    Step::NeedMore => break,
                    Step::End(_) => return None,
                }
                if switched {
                    return Some(at + page.len() as u64);
                }
            }
        }
        None
    }

    /// Marks a file of the log as archived: the origin archives it, not the copy.
    fn archived(&self, sink: &mut dyn Sink, name: &str) -> Result<()> {
        sink.entry(&self.entry(&format!("pg_wal/archive_status/{name}.done"), 0)?)
    }

    fn entry(&self, path: &str, size: usize) -> Result<Entry> {
        Ok(Entry {
            path: SnapshotPath::new(path)?,
            kind: EntryKind::File { size: size as u64 },
            mode: 0o600,
            owner: self.owner,
            modified: self.control.time,
        })
    }
}

/// The log from start to stop, by timeline, newest first.
fn ranges(
    timeline: TimelineId,
    start: Lsn,
    stop: &Stop<'_>,
    root: Option<&Roots>,
) -> Result<Vec<TimelineRange>> {
    let crossed = |error| Error::layout("log of the backup", error);
    let history = if timeline == stop.timeline {
        TimelineHistory::root(timeline)
    } else {
        let name = WalFileName::History(stop.timeline).to_string();
        let Some(root) = root else {
            return Err(Error::new(
                ErrorKind::NotFound,
                name,
                "the backup ended on another timeline, whose history is needed",
            ));
        };
        TimelineHistory::parse(stop.timeline, &small_file(root, &name)?).map_err(crossed)?
    };
    let mut ranges = if timeline == stop.timeline {
        vec![TimelineRange {
            timeline,
            start,
            end: stop.position,
        }]
    } else {
        history
            .path(timeline, start, stop.position)
            .map_err(crossed)?
    };
    if start > stop.position {
        return Err(Error::new(
            ErrorKind::Inconsistent,
            "backup_label",
            "the backup starts behind the position where it stopped",
        ));
    }
    ranges.sort_by_key(|range| std::cmp::Reverse(range.timeline));
    Ok(ranges)
}

fn small_file(root: &Roots, name: &str) -> Result<Vec<u8>> {
    const LIMIT: usize = 1 << 20;
    let Some((file, stat)) = root.open_file(&SnapshotPath::new(name)?)? else {
        return Err(Error::new(
            ErrorKind::NotFound,
            name,
            "is not in the directory of the backup's log",
        ));
    };
    let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    if size > LIMIT {
        return Err(Error::new(
            ErrorKind::Limit,
            name,
            "is larger than any history of timelines",
        ));
    }
    let mut content = vec![0; size];
    file.read_exact_at(&mut content, 0)
        .map_err(|error| Error::io(name, "cannot be read", error))?;
    Ok(content)
}
