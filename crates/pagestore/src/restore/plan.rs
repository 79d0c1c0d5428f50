//! What a restore over something that is there would change: decided first, executed after.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use neon_pg_layout::{Fork, RelationPath};
use neon_snapshot_format::pgdata::{DirectoryOptions, ExistingDirectory};
use neon_snapshot_format::{Entry, EntryKind, SnapshotPath, Wanted};

use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::id::CommitId;
use crate::map::{At, Diff, FileKind, MappedFile, PageDigest, Walk};
use crate::read::Snapshot;
use crate::read::feed::is_held_whole;
use crate::read::source::CONTROL;
use crate::restore::execute::{RestoreOptions, Restored, run};
use crate::write::digest;

/// Bytes read from a disk at a time.
const WINDOW: usize = 1 << 20;
/// More bytes than a control file has.
const MOST_OF_CONTROL: u64 = 64 << 10;

/// What is to be done to turn a directory into a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestorePlan {
    /// What of each file is to be written; of a file that is not listed, nothing. Nothing wanted of a listed one
    /// means that its attributes or its length are set.
    pub files: BTreeMap<SnapshotPath, Wanted>,
    /// What is to be removed, the content of a directory before it.
    pub removed: Vec<Entry>,
    /// Bytes that are to be written.
    pub bytes: u64,
    /// Bytes that were read and compared.
    pub compared: u64,
    /// Tablespaces that are not there.
    new_tablespaces: Vec<Entry>,
    /// Which snapshot it leads to.
    snapshot: Option<CommitId>,
    /// What the directory was when it was compared.
    basis: Option<[u8; 32]>,
}

/// Decides what stays as it is on disk, whatever the snapshot says.
pub type Keep<'a> = &'a (dyn Fn(&SnapshotPath) -> bool + Sync);

impl RestorePlan {
    /// Compares everything in a directory with a snapshot, page by page: right whatever happened to the directory.
    /// Waits for the storage; see [`restore`](crate::restore::restore).
    ///
    /// What the snapshot says was left out when it was taken ([`Facts::skipped`](crate::Facts::skipped), such as a link
    /// at a configuration file) is kept, too.
    ///
    /// # Errors
    /// As [`restore`](crate::restore::restore), and [`Io`](ErrorKind::Io) when the directory cannot be read.
    pub fn by_content(
        snapshot: &Snapshot,
        directory: &ExistingDirectory,
        keep: Keep<'_>,
        options: &RestoreOptions,
    ) -> Result<Self> {
        let skipped = skipped(snapshot);
        let keep = &|path: &SnapshotPath| keep(path) || skipped.contains(path.to_string().as_str());
        let present: BTreeMap<&SnapshotPath, &Entry> = directory
            .entries()
            .iter()
            .map(|entry| (&entry.path, entry))
            .collect();
        let comparison = Comparison {
            snapshot,
            directory,
            keep,
            present: &present,
            cancel: &options.cancel,
            bridge: Bridge::current()?,
            walk: Mutex::new(Walk::new(snapshot.view(), true)),
            found: Mutex::default(),
        };
        std::thread::scope(|scope| {
            let threads = 1..options.threads.max(1);
            let others: Vec<_> = threads.map(|_| scope.spawn(|| comparison.work())).collect();
            let mut outcome = comparison.work();
            for other in others {
                let other = other.join().unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Io, "a comparing thread", "panicked"))
                });
                outcome = outcome.and(other);
            }
            outcome
        })?;
        let (mut plan, wanted) = comparison
            .found
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        plan.removed = directory
            .entries()
            .iter()
            .rev()
            .filter(|entry| wanted.get(&entry.path) != Some(&shape(&entry.kind)))
            .filter(|entry| !entry.path.is_root() && !keep(&entry.path))
            .cloned()
            .collect();
        // A directory stays if something in it does.
        let mut kept: BTreeSet<SnapshotPath> = BTreeSet::new();
        for entry in directory.entries().iter().filter(|entry| keep(&entry.path)) {
            let mut above = entry.path.parent();
            while let Some(directory) = above {
                above = directory.parent();
                kept.insert(directory);
            }
        }
        plan.removed.retain(|entry| !kept.contains(&entry.path));
        plan.of(snapshot, directory)
    }

    /// Compares two maps: right only for a directory that is known to hold exactly the other snapshot, which the caller
    /// has to know; here only its control file is compared. Reads no page. Free space and visibility maps are
    /// written anew. Waits for the storage; see [`restore`](crate::restore::restore).
    ///
    /// # Errors
    /// - [`Inconsistent`](ErrorKind::Inconsistent) when the directory has another control file than the snapshot that it
    ///   is said to hold;
    /// - [`Unsupported`](ErrorKind::Unsupported) when hints on pages are in no log (without checksums and
    ///   `wal_log_hints`, or when a snapshot [may lack some](crate::Facts::hints_may_be_older)): a page that no map
    ///   names could keep a hint that is newer than the snapshot. Compare by content;
    /// - as [`MapReader::run`](crate::read::MapReader::run).
    pub fn by_map(
        snapshot: &Snapshot,
        present: &Snapshot,
        directory: &ExistingDirectory,
    ) -> Result<Self> {
        let bridge = Bridge::current()?;
        for snapshot in [snapshot, present] {
            let facts = snapshot.facts();
            let logged = facts.cluster.checksum_version != 0 || facts.cluster.wal_log_hints;
            if facts.hints_may_be_older || !logged {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("snapshot {}", snapshot.id()),
                    "hints on its pages are not in the log; compare by content",
                ));
            }
        }
        let expected = bridge.wait(present.read_range(&control()?, 0..MOST_OF_CONTROL))?;
        if directory.control() != Some(expected.as_ref()) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("snapshot {}", present.id()),
                "is not what the directory holds; compare by content",
            ));
        }
        let skipped = skipped(snapshot);
        let major = snapshot.facts().cluster.major;
        let anew = |path: &SnapshotPath| {
            path.as_bytes() == CONTROL || {
                let path = path.as_str();
                let relation = path.and_then(|path| RelationPath::parse(path, major.layout()));
                relation.is_some_and(|relation| {
                    matches!(relation.fork, Fork::FreeSpaceMap | Fork::VisibilityMap)
                })
            }
        };
        let page_size = u64::from(snapshot.view().page_size);
        let mut diff = Diff::new(present.view(), snapshot.view(), true);
        let mut plan = Self::default();
        while let Some(file) = snapshot.maps().wait(&bridge, &mut diff)? {
            let before = file.before.as_ref().map(|before| &before.kind);
            let Some(after) = file.after else {
                if !skipped.contains(file.path.to_string().as_str()) {
                    let before = file.before.map(|before| before.entry(file.path));
                    plan.removed.extend(before);
                }
                continue;
            };
            let FileKind::File { size } = after.kind else {
                plan.note_tablespace(before, after.entry(file.path));
                continue;
            };
            if anew(&file.path) {
                continue;
            }
            let wanted = if matches!(before, Some(FileKind::File { .. })) {
                let pages = file.pages.iter();
                let ranges = pages
                    .map(|pages| {
                        let end = u64::from(pages.end).saturating_mul(page_size).min(size);
                        u64::from(pages.start).saturating_mul(page_size)..end
                    })
                    .filter(|range| range.start < range.end);
                of_ranges(ranges.collect())
            } else {
                Wanted::Whole
            };
            plan.add(file.path, size, wanted);
        }
        plan.removed.sort_by(|a, b| b.path.cmp(&a.path));
        let mut walk = Walk::new(snapshot.view(), false);
        while let Some(file) = snapshot.maps().wait(&bridge, &mut walk)? {
            if let FileKind::File { size } = file.attributes.kind
                && anew(&file.path)
            {
                plan.add(file.path, size, Wanted::Whole);
            }
        }
        plan.of(snapshot, directory)
    }

    fn of(mut self, snapshot: &Snapshot, directory: &ExistingDirectory) -> Result<Self> {
        self.snapshot = Some(snapshot.id());
        self.basis = Some(fingerprint(directory)?);
        Ok(self)
    }

    /// Tablespaces that are not there, and will be made.
    #[must_use]
    pub fn new_tablespaces(&self) -> &[Entry] {
        &self.new_tablespaces
    }

    fn note_tablespace(&mut self, here: Option<&FileKind>, entry: Entry) {
        if here.is_none() && matches!(entry.kind, EntryKind::Tablespace { .. }) {
            self.new_tablespaces.push(entry);
        }
    }

    fn add(&mut self, path: SnapshotPath, size: u64, wanted: Wanted) {
        // These are held, or left out, as a whole.
        let wanted = if is_held_whole(&path) || path.as_bytes() == b"backup_manifest" {
            Wanted::Whole
        } else {
            wanted
        };
        self.bytes += match &wanted {
            Wanted::Whole => size,
            Wanted::Nothing => 0,
            Wanted::Ranges(ranges) => ranges.iter().map(|range| range.end - range.start).sum(),
        };
        self.files.insert(path, wanted);
    }

    /// Carries it out. Before the first change the directory stops being one that a server accepts; when this
    /// returns, it is the snapshot (but for what was to be kept), durably.
    ///
    /// What can be known to fail is found before the first change: files that cannot be written or have a second name, a
    /// place of a tablespace that is missing or not empty.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent), with nothing changed, when the plan was made for another snapshot or
    /// directory, or the directory changed since it was compared; as [`restore`](crate::restore::restore). The
    /// directory can then be compared and restored over again.
    pub fn execute(
        &self,
        snapshot: &Snapshot,
        directory: ExistingDirectory,
        writing: DirectoryOptions,
        options: &RestoreOptions,
    ) -> Result<Restored> {
        if self.snapshot != Some(snapshot.id()) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("snapshot {}", snapshot.id()),
                "is not the one that the directory was compared with",
            ));
        }
        if self.basis != Some(fingerprint(&directory)?) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "restore",
                "the directory changed since it was compared; compare again",
            ));
        }
        for (path, wanted) in &self.files {
            if *wanted != Wanted::Whole {
                directory
                    .check_parts(path)
                    .map_err(|error| Error::format(path.to_string(), error))?;
            }
        }
        for entry in &self.new_tablespaces {
            directory
                .check_place(entry, &writing)
                .map_err(|error| Error::format(entry.path.to_string(), error))?;
        }
        let writer = directory
            .change(writing)
            .map_err(|error| Error::format("restore", error))?;
        for entry in &self.removed {
            writer
                .remove(entry)
                .map_err(|error| Error::format(entry.path.to_string(), error))?;
        }
        run(snapshot, &writer, options, Some(self))
    }
}

fn fingerprint(directory: &ExistingDirectory) -> Result<[u8; 32]> {
    directory
        .fingerprint()
        .map_err(|error| Error::format("restore", error))
}

fn skipped(snapshot: &Snapshot) -> BTreeSet<&str> {
    let skipped = snapshot.facts().skipped.iter();
    skipped.map(|noted| noted.path.as_str()).collect()
}

fn control() -> Result<SnapshotPath> {
    SnapshotPath::new(CONTROL).map_err(|error| Error::format("restore", error))
}

fn of_ranges(ranges: Vec<Range<u64>>) -> Wanted {
    if ranges.is_empty() {
        Wanted::Nothing
    } else {
        Wanted::Ranges(ranges)
    }
}

/// What two things of one path must share for one to become the other. A tablespace stays where it is, behind a link
/// or inside of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    File,
    Directory,
}

fn shape(kind: &EntryKind) -> Shape {
    match kind {
        EntryKind::File { .. } => Shape::File,
        _ => Shape::Directory,
    }
}

struct Comparison<'a> {
    snapshot: &'a Snapshot,
    directory: &'a ExistingDirectory,
    keep: Keep<'a>,
    present: &'a BTreeMap<&'a SnapshotPath, &'a Entry>,
    cancel: &'a Arc<AtomicBool>,
    bridge: Bridge,
    walk: Mutex<Walk>,
    found: Mutex<(RestorePlan, BTreeMap<SnapshotPath, Shape>)>,
}

impl Comparison<'_> {
    fn work(&self) -> Result<()> {
        let mut buffer = vec![0; WINDOW];
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    "comparison",
                    "was told to stop",
                ));
            }
            let next = {
                let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
                self.snapshot.maps().wait(&self.bridge, &mut *walk)?
            };
            let Some(file) = next else { return Ok(()) };
            self.file(file, &mut buffer)?;
        }
    }

    fn file(&self, file: MappedFile, buffer: &mut [u8]) -> Result<()> {
        let entry = file.attributes.entry(file.path.clone());
        let lock = || self.found.lock().unwrap_or_else(PoisonError::into_inner);
        lock().1.insert(file.path.clone(), shape(&entry.kind));
        let here = self
            .present
            .get(&file.path)
            .filter(|here| shape(&here.kind) == shape(&entry.kind));
        if !entry.is_file() {
            if here.is_none() && matches!(entry.kind, EntryKind::Tablespace { .. }) {
                lock().0.new_tablespaces.push(entry);
            }
            return Ok(());
        }
        if here.is_some() && (self.keep)(&file.path) {
            return Ok(());
        }
        let Some(here) = here else {
            lock().0.add(file.path, entry.size(), Wanted::Whole);
            return Ok(());
        };
        let ranges = self.compare(&file, &entry, buffer)?;
        let same = here.mode == entry.mode && here.modified == entry.modified;
        // A map that is there already is removed with the links that it made.
        let control = [CONTROL, b"tablespace_map"].contains(&file.path.as_bytes());
        let mut found = lock();
        found.0.compared += here.size().min(entry.size());
        if !ranges.is_empty() || here.size() != entry.size() || !same || control {
            found.0.add(file.path, entry.size(), of_ranges(ranges));
        }
        Ok(())
    }

    /// The pages that are not on disk what they are in the snapshot, as bytes.
    fn compare(
        &self,
        file: &MappedFile,
        entry: &Entry,
        buffer: &mut [u8],
    ) -> Result<Vec<Range<u64>>> {
        let size = entry.size();
        let page_size = self.snapshot.view().page_size as usize;
        let mut differing: Vec<Range<u64>> = Vec::new();
        let mut differs = |start: u64| {
            let end = size.min(start + page_size as u64);
            match differing.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => differing.push(start..end),
            }
        };
        let opened = self
            .directory
            .file(&file.path)
            .map_err(|error| Error::format(file.path.to_string(), error))?;
        let mut expected = Expected::new(file);
        let mut offset = 0;
        while offset < size {
            let length = usize::try_from(size - offset)
                .unwrap_or(WINDOW)
                .min(WINDOW / page_size * page_size);
            let target = buffer.get_mut(..length).unwrap_or_default();
            let mut read = 0;
            if let Some(opened) = &opened {
                while let Some(rest) = target.get_mut(read..).filter(|rest| !rest.is_empty()) {
                    let count = opened
                        .read_at(rest, offset + read as u64)
                        .map_err(|error| {
                            Error::new(ErrorKind::Io, file.path.to_string(), "cannot be read")
                                .caused_by(error)
                        })?;
                    if count == 0 {
                        break;
                    }
                    read += count;
                }
            }
            let mut at = offset;
            for page in target.chunks(page_size) {
                let there = usize::try_from(at - offset).unwrap_or(0) + page.len() <= read;
                let wanted = expected.next();
                if !there || wanted != Some(digest(page)) {
                    differs(at);
                }
                at += page.len() as u64;
            }
            offset = at;
        }
        Ok(differing)
    }
}

/// The digests of a file's pages in order; none for zeros.
struct Expected<'a> {
    file: &'a MappedFile,
    extent: usize,
    page: u32,
    digest: usize,
}

impl<'a> Expected<'a> {
    fn new(file: &'a MappedFile) -> Self {
        Self {
            file,
            extent: 0,
            page: 0,
            digest: 0,
        }
    }

    fn next(&mut self) -> Option<Option<PageDigest>> {
        let mut extent = self.file.extents.get(self.extent)?;
        while self.page >= extent.end() {
            self.extent += 1;
            extent = self.file.extents.get(self.extent)?;
        }
        self.page += 1;
        match extent.at {
            At::Zeros => Some(None),
            At::Frame { .. } => {
                let digest = self.file.digests.get(self.digest)?;
                self.digest += 1;
                Some(Some(*digest))
            }
        }
    }
}
