//! Compares a directory with a snapshot: of each file what is to be written, by its content or, where that is known, by
//! what the maps of two snapshots say.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use neon_snapshot_format::pgdata::ExistingDirectory;
use neon_snapshot_format::{Entry, EntryKind, SnapshotPath, Wanted};

use crate::bridge::Bridge;
use crate::changes::NamedPages;
use crate::error::{Error, ErrorKind, Result};
use crate::map::{At, MappedFile, PageDigest};
use crate::read::Snapshot;
use crate::read::source::CONTROL;
use crate::restore::execute::RestoreOptions;
use crate::restore::files::{Files, Picked};
use crate::restore::plan::{Keep, RestorePlan};
use crate::restore::told::{Told, Verdict};
use crate::write::digest;

/// Bytes read from a disk at a time.
const WINDOW: usize = 1 << 20;

/// What is to be done to turn the directory into the snapshot; pages are read but for those of which the maps of `present`
/// and of the snapshot are believed.
pub(super) fn compare(
    snapshot: &Snapshot,
    directory: &ExistingDirectory,
    keep: Keep<'_>,
    options: &RestoreOptions,
    present: Option<(&Snapshot, Option<&NamedPages>)>,
) -> Result<RestorePlan> {
    let skipped = skipped(snapshot);
    let keep = &|path: &SnapshotPath| keep(path) || skipped.contains(path.to_string().as_str());
    let entries: BTreeMap<&SnapshotPath, &Entry> = directory
        .entries()
        .iter()
        .map(|entry| (&entry.path, entry))
        .collect();
    let comparison = Comparison {
        snapshot,
        directory,
        keep,
        present: &entries,
        cancel: &options.cancel,
        bridge: Bridge::current()?,
        found: Mutex::default(),
    };
    let files = Mutex::new(match present {
        None => Files::all(snapshot.view()),
        Some((present, named)) => comparison.told(present, named)?.into_files(snapshot.view()),
    });
    std::thread::scope(|scope| {
        let threads = 1..options.threads.max(1);
        let work = || comparison.work(&files);
        let others: Vec<_> = threads.map(|_| scope.spawn(work)).collect();
        let mut outcome = work();
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

fn skipped(snapshot: &Snapshot) -> BTreeSet<&str> {
    let skipped = snapshot.facts().skipped.iter();
    skipped.map(|noted| noted.path.as_str()).collect()
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
    found: Mutex<(RestorePlan, BTreeMap<SnapshotPath, Shape>)>,
}

impl<'a> Comparison<'a> {
    fn go_on(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "comparison",
                "was told to stop",
            ));
        }
        Ok(())
    }

    fn work(&self, files: &Mutex<Files>) -> Result<()> {
        let mut buffer = vec![0; WINDOW];
        loop {
            self.go_on()?;
            let next = {
                let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
                files.next(self.snapshot.maps(), &self.bridge)?
            };
            let Some(file) = next else { return Ok(()) };
            if let Some(here) = self.note(&file) {
                self.file(file, here, &mut buffer)?;
            }
        }
    }

    /// Takes what the maps tell, and says which files are to be compared by content.
    fn told(&self, present: &Snapshot, named: Option<&NamedPages>) -> Result<Picked> {
        let go_on = || self.go_on();
        let told = Told::of(self.snapshot, present, self.directory, &self.bridge, &go_on)?;
        let mut picked = Picked::default();
        let mut files = Files::named(self.snapshot.view());
        while let Some(file) = files.next(self.snapshot.maps(), &self.bridge)? {
            self.go_on()?;
            let Some(here) = self.note(&file) else {
                picked.pass(&file);
                continue;
            };
            let ranges = match told.verdict(&file, here, named) {
                Verdict::Same => Vec::new(),
                Verdict::Pages(ranges) => ranges,
                Verdict::Compare => {
                    picked.pick(&file);
                    continue;
                }
            };
            picked.pass(&file);
            let entry = file.attributes.entry(file.path.clone());
            let mut found = self.lock();
            found.0.told += here.size().min(entry.size());
            if !ranges.is_empty() || here.size() != entry.size() || here.mode != entry.mode {
                found.0.add(file.path, entry.size(), of_ranges(ranges));
            }
        }
        Ok(picked)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (RestorePlan, BTreeMap<SnapshotPath, Shape>)> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what needs no comparison. Otherwise, what the file is to be compared with.
    fn note(&self, file: &MappedFile) -> Option<&'a Entry> {
        let entry = file.attributes.entry(file.path.clone());
        let mut found = self.lock();
        found.1.insert(file.path.clone(), shape(&entry.kind));
        let here = self
            .present
            .get(&file.path)
            .filter(|here| shape(&here.kind) == shape(&entry.kind));
        if !entry.is_file() {
            if here.is_none() && matches!(entry.kind, EntryKind::Tablespace { .. }) {
                found.0.new_tablespaces.push(entry);
            }
            return None;
        }
        if here.is_some() && (self.keep)(&file.path) {
            return None;
        }
        if here.is_none() {
            found.0.add(file.path.clone(), entry.size(), Wanted::Whole);
        }
        here.copied()
    }

    fn file(&self, file: MappedFile, here: &Entry, buffer: &mut [u8]) -> Result<()> {
        let entry = file.attributes.entry(file.path.clone());
        let ranges = self.compare(&file, &entry, buffer)?;
        let same = here.mode == entry.mode && here.modified == entry.modified;
        // A map that is there already is removed with the links that it made.
        let control = [CONTROL, b"tablespace_map"].contains(&file.path.as_bytes());
        let mut found = self.lock();
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
