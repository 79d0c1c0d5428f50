//! Reading a data directory into the stream.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use neon_pg_layout::wal::{WalFormat, end_of_log};
use neon_pg_layout::{ClusterState, ControlFile, DataFile, Fork, Lsn, ReplayedLog, SegmentName};
use rustix::fs::{AtFlags, statat};

use crate::error::{Error, ErrorKind, Result};
use crate::extents::{DEFAULT_EXTENT, MIN_EXTENT};
use crate::kind::SnapshotKind;
use crate::path::SnapshotPath;
use crate::pgdata::bracket::Bracket;
use crate::pgdata::control::{has_file, read_control, read_up_to};
use crate::pgdata::copied::{Copied, Tally};
use crate::pgdata::place::{Root, Roots};
use crate::pgdata::plan::{self, CONTROL, Plan};
use crate::pgdata::relation_pages::{RelationPages, refuse};
use crate::pgdata::rules::WalNeeded;
use crate::stream::{CHUNK_SIZE, Chunk, ChunkData, End, Entry, EntryKind, Sink, Source, is_zero};

/// Longer than any checkpoint record with the page headers it may cross.
const CHECKPOINT_RECORD: u64 = 1024;

/// A data directory to be copied, in a known state.
///
/// Copying is bounded in memory by the list of files and a chunk per thread, and reads nothing outside the
/// data directory, the target of a `pg_wal` link and the tablespaces.
#[derive(Debug)]
pub struct PgData {
    root: Root,
    kind: SnapshotKind,
    bracket: Option<Bracket>,
    control: ControlFile,
    control_bytes: Vec<u8>,
    crash_log_end: OnceLock<Lsn>,
    allow_bad_pages: bool,
    pub(crate) extent: u64,
}

impl PgData {
    /// A cluster that was stopped cleanly.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when its control file says otherwise or
    /// `postmaster.pid` is there; as for the control file itself, which is tried again for a second
    /// before it is called damaged.
    pub fn cold(path: &Path) -> Result<Self> {
        Self::open(path, SnapshotKind::Cold, None)
    }

    /// A standby or a recovery that was stopped cleanly.
    ///
    /// # Errors
    /// As [`cold`](Self::cold).
    pub fn recovery(path: &Path) -> Result<Self> {
        Self::open(path, SnapshotKind::Recovery, None)
    }

    /// A cluster that does not run and was not stopped cleanly. The caller knows that no server runs.
    ///
    /// # Errors
    /// As [`cold`](Self::cold), but a `postmaster.pid` left behind is normal.
    pub fn crashed(path: &Path) -> Result<Self> {
        Self::open(path, SnapshotKind::Crashed, None)
    }

    /// A running primary with an open backup.
    ///
    /// # Errors
    /// As [`cold`](Self::cold).
    pub fn online(path: &Path, bracket: Bracket) -> Result<Self> {
        Self::open(path, SnapshotKind::Online, Some(bracket))
    }

    /// A running standby with an open backup.
    ///
    /// # Errors
    /// As [`cold`](Self::cold).
    pub fn standby(path: &Path, bracket: Bracket) -> Result<Self> {
        Self::open(path, SnapshotKind::Standby, Some(bracket))
    }

    fn open(path: &Path, kind: SnapshotKind, bracket: Option<Bracket>) -> Result<Self> {
        let root = Root::open(path)?;
        let (control_bytes, control) = read_control(&root)?;
        let fits = match kind {
            SnapshotKind::Cold => control.state == ClusterState::ShutDown,
            SnapshotKind::Recovery => control.state == ClusterState::ShutDownInRecovery,
            SnapshotKind::Crashed => !control.state.is_clean(),
            SnapshotKind::Online => control.state == ClusterState::InProduction,
            SnapshotKind::Standby => control.state == ClusterState::InArchiveRecovery,
        };
        let subject = || path.display().to_string();
        if !fits {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                subject(),
                format!(
                    "not to be copied as {kind}: its control file says \"{}\"",
                    control.state
                ),
            ));
        }
        let stopped = matches!(kind, SnapshotKind::Cold | SnapshotKind::Recovery);
        if stopped && has_file(&root, "postmaster.pid") {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                subject(),
                "has a postmaster.pid, so a server runs on it or is just starting",
            ));
        }
        if kind == SnapshotKind::Cold && has_file(&root, "backup_label") {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                subject(),
                "has a backup_label: it is a base backup that was never started, not a stopped cluster",
            ));
        }
        Ok(Self {
            root,
            kind,
            bracket,
            control,
            control_bytes,
            crash_log_end: OnceLock::new(),
            allow_bad_pages: false,
            extent: DEFAULT_EXTENT,
        })
    }

    /// Whether damaged pages are copied and reported instead of refused. Off by default.
    #[must_use]
    pub fn allow_bad_pages(mut self, allow: bool) -> Self {
        self.allow_bad_pages = allow;
        self
    }

    /// How much of one file a thread takes at a time; at least 8 MiB, rounded up to whole chunks.
    #[must_use]
    pub fn extent_size(mut self, bytes: u64) -> Self {
        self.extent = bytes
            .clamp(MIN_EXTENT, 1 << 40)
            .next_multiple_of(CHUNK_SIZE as u64);
        self
    }

    /// The control file as it was when the directory was opened.
    #[must_use]
    pub fn control(&self) -> &ControlFile {
        &self.control
    }

    /// The kind of snapshot it is copied as.
    #[must_use]
    pub fn kind(&self) -> SnapshotKind {
        self.kind
    }

    /// Copies everything, the control file last, except what comes when a backup stops; see
    /// [`Copied::finish`].
    ///
    /// # Errors
    /// - [`Damaged`](ErrorKind::Damaged) when pages are damaged and that was not allowed;
    /// - [`Inconsistent`](ErrorKind::Inconsistent) when a stopped cluster changes meanwhile;
    /// - [`Io`](ErrorKind::Io), and what the sink returns.
    pub fn copy(&self, sink: &mut dyn Sink) -> Result<Copied> {
        let plan = self.plan()?;
        for entry in &plan.directories {
            sink.entry(entry)?;
        }
        let mut tally = Tally::default();
        let mut buffer = vec![0; CHUNK_SIZE];
        for planned in &plan.files {
            if self.became_unlogged(&plan.roots, planned) {
                continue;
            }
            let Some((file, stat)) = plan.roots.open_file(&planned.path)? else {
                self.vanished(planned, &mut tally)?;
                continue;
            };
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            self.check_unchanged(planned, size)?;
            let entry = plan::entry(planned.path.clone(), EntryKind::File { size }, &stat);
            sink.entry(&entry)?;
            let mut send = |chunk: &Chunk<'_>| sink.chunk(chunk);
            let ended = self.read(&file, &entry, 0..size, &mut buffer, &mut tally, &mut send)?;
            tally.files += 1;
            tally.shrunk += u64::from(ended.is_some());
        }
        let (entry, bytes) = self.control_last(&plan.roots)?;
        sink.entry(&entry)?;
        sink.chunk(&Chunk {
            offset: 0,
            data: ChunkData::Bytes(&bytes),
        })?;
        self.copied(plan, tally)
    }

    pub(crate) fn plan(&self) -> Result<Plan> {
        let root = Root::open(&self.root.path)?;
        let clean = self.kind == SnapshotKind::Cold;
        let behind = self
            .control
            .checkpoint_location
            .saturating_add(CHECKPOINT_RECORD);
        let wal = WalNeeded {
            size: self.control.build.wal_segment_size,
            redo: self.control.checkpoint.redo,
            end: clean.then_some((self.control.checkpoint.timeline, behind)),
        };
        plan::walk(root, self.kind, self.control.major.layout(), &wal)
    }

    /// Whether the file belongs to an unlogged relation that was being created when its directory was
    /// listed: its main fork was there, its init fork not yet. Copied, it would stop recovery, which makes
    /// the main fork from the init fork and does not expect it.
    pub(crate) fn became_unlogged(&self, roots: &Roots, entry: &Entry) -> bool {
        if !self.kind.is_bracketed() {
            return false;
        }
        let layout = self.control.major.layout();
        let file = entry.path.as_str().map(|path| DataFile::of(path, layout));
        let (Some(DataFile::Relation(relation)), Some(parent)) = (file, entry.path.parent()) else {
            return false;
        };
        let init = format!("{}_init", relation.locator.number);
        relation.fork != Fork::Init
            && roots.directory(&parent).is_ok_and(|directory| {
                statat(&directory, init.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
            })
    }

    pub(crate) fn check_unchanged(&self, planned: &Entry, size: u64) -> Result<()> {
        if self.kind.is_bracketed() || planned.size() == size {
            return Ok(());
        }
        Err(self.changing(&planned.path))
    }

    fn changing(&self, path: &SnapshotPath) -> Error {
        Error::new(
            ErrorKind::Inconsistent,
            path.to_string(),
            format!("changed while it was copied as {}", self.kind),
        )
    }

    pub(crate) fn vanished(&self, entry: &Entry, tally: &mut Tally) -> Result<()> {
        if !self.kind.is_bracketed() {
            return Err(self.changing(&entry.path));
        }
        tally.vanished += 1;
        Ok(())
    }

    /// Sends a part of a file: what lies beyond its end by now as zeros, what it has grown by not. Returns
    /// where the file ended, if before the end of the part: there, or earlier still.
    pub(crate) fn read(
        &self,
        file: &File,
        entry: &Entry,
        range: Range<u64>,
        buffer: &mut [u8],
        tally: &mut Tally,
        send: &mut dyn FnMut(&Chunk<'_>) -> Result<()>,
    ) -> Result<Option<u64>> {
        let pages = RelationPages::of(self, entry);
        let page = self.page_size();
        let mut offset = range.start;
        while offset < range.end {
            // Chunks end at multiples of their size, also where a part begins between two.
            let room = CHUNK_SIZE as u64 - offset % CHUNK_SIZE as u64;
            let wanted = usize::try_from(room.min(range.end - offset)).unwrap_or(CHUNK_SIZE);
            let (bytes, _) = buffer
                .split_at_mut_checked(wanted)
                .unwrap_or((&mut [], &mut []));
            let read = read_up_to(file, bytes, offset)
                .map_err(|error| Error::io(entry.path.to_string(), "cannot be read", error))?;
            tally.bytes += read as u64;
            if pages.is_some() {
                tally.pages += (read as u64).div_ceil(page);
            }
            if read < wanted {
                if !self.kind.is_bracketed() {
                    return Err(self.changing(&entry.path));
                }
                if let Some(missing) = bytes.get_mut(read..) {
                    missing.fill(0);
                }
            }
            let zero = is_zero(bytes);
            if !zero && let Some(pages) = &pages {
                let kept = if read < wanted { read } else { bytes.len() };
                if let Some(whole) = bytes.get_mut(..kept) {
                    tally.settled_by_log +=
                        pages.judge(file, offset, whole, &mut tally.bad_pages)?;
                }
            }
            let data = if zero {
                ChunkData::Zeros(wanted as u64)
            } else {
                ChunkData::Bytes(bytes)
            };
            send(&Chunk { offset, data })?;
            offset += wanted as u64;
            if read < wanted {
                if offset < range.end {
                    // The file ended: what is left of the part is zeros too.
                    send(&Chunk {
                        offset,
                        data: ChunkData::Zeros(range.end - offset),
                    })?;
                }
                return Ok(Some(offset - (wanted - read) as u64));
            }
        }
        Ok(None)
    }

    /// Bytes of a page of this cluster.
    pub(crate) fn page_size(&self) -> u64 {
        self.control.build.block_size.bytes() as u64
    }

    /// The control file as it is now: for a stopped cluster, it must be what it was.
    pub(crate) fn control_last(&self, roots: &Roots) -> Result<(Entry, Vec<u8>)> {
        let path = SnapshotPath::new(CONTROL)?;
        let (bytes, control) = read_control(&self.root)?;
        let stopped = !self.kind.is_bracketed();
        if stopped && bytes != self.control_bytes
            || control.system_identifier != self.control.system_identifier
        {
            return Err(self.changing(&path));
        }
        let Some((_, stat)) = roots.open_file(&path)? else {
            return Err(self.changing(&path));
        };
        let kind = EntryKind::File {
            size: bytes.len() as u64,
        };
        Ok((plan::entry(path, kind, &stat), bytes))
    }

    pub(crate) fn copied(&self, plan: Plan, tally: Tally) -> Result<Copied> {
        if !self.allow_bad_pages {
            refuse(&tally.bad_pages)?;
        }
        let mut end = End {
            kind: Some(self.kind),
            major: Some(self.control.major),
            system_identifier: Some(self.control.system_identifier),
            wal: Vec::new(),
            skipped: plan.skipped,
            bad_pages: tally.bad_pages,
        };
        end.bad_pages
            .sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
        let owner = plan.directories.first().and_then(|root| root.owner);
        let paths = plan.directories.iter().map(|entry| entry.path.tablespace());
        let tablespaces = paths.flatten().map(|(oid, _)| oid);
        Ok(Copied {
            end,
            files: tally.files,
            bytes: tally.bytes,
            pages: tally.pages,
            vanished: tally.vanished,
            shrunk: tally.shrunk,
            settled_by_log: tally.settled_by_log,
            owner,
            control: self.control.clone(),
            tablespaces: tablespaces.collect(),
        })
    }

    /// The log that recovery replays over the copy, as far as it is known. None where none is replayed.
    pub(crate) fn replayed_log(&self) -> Result<Option<ReplayedLog>> {
        match (&self.bracket, self.kind) {
            (Some(bracket), _) => {
                let end = (bracket.insert_position)().map_err(|error| {
                    Error::new(
                        ErrorKind::Io,
                        "the server's insert position",
                        "cannot be had",
                    )
                    .caused_by(error)
                })?;
                Ok(Some(ReplayedLog {
                    start: bracket.start,
                    end,
                }))
            }
            (None, SnapshotKind::Crashed) => Ok(Some(ReplayedLog {
                start: self.control.checkpoint.redo,
                end: self.crash_log_end()?,
            })),
            (None, _) => Ok(None),
        }
    }
    /// Where the log of a crash ends, read once when the first page needs an excuse. A standby may have
    /// had more of the log than it kept.
    fn crash_log_end(&self) -> Result<Lsn> {
        if let Some(end) = self.crash_log_end.get() {
            return Ok(*end);
        }
        let folder = self.root.path.join("pg_wal");
        let failed = |error| Error::io("pg_wal", "cannot be read", error);
        let format =
            WalFormat::of_control(&self.control).map_err(|error| Error::layout(CONTROL, error))?;
        let mut segments: Vec<SegmentName> = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            segments.extend(
                name.to_str()
                    .and_then(|name| name.parse::<SegmentName>().ok()),
            );
        }
        let redo = self.control.checkpoint.redo;
        let end = end_of_log(format, redo, &segments, |name| {
            File::open(folder.join(name.to_string()))
        })
        .map_err(failed)?;
        let end = end.max(self.control.min_recovery_point);
        Ok(*self.crash_log_end.get_or_init(|| end))
    }
}

impl Source for PgData {
    /// For kinds that need no backup to be stopped.
    fn send(&mut self, sink: &mut dyn Sink) -> Result<()> {
        self.copy(sink)?.finish(sink, None).map(drop)
    }
}
