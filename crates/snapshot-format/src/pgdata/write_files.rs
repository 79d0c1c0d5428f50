//! Writing the files of a data directory, in one thread of several.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Crc, MANIFEST};
use crate::path::SnapshotPath;
use crate::pgdata::place::failed;
use crate::pgdata::plan::CONTROL;
use crate::pgdata::write::{DirectoryWriter, State};
use crate::pgdata::write_options::Written;
use crate::stream::{Chunk, ChunkData, Entry, ExtentSink, Progress, is_zero};

/// Zero bytes are left out of files in pieces of this size.
const SPARSE: usize = 8192;
/// Files that one worker keeps open until it flushes them together: the first flush pays for the journal.
const FLUSH_TOGETHER: usize = 64;
/// Parts of files that are not smaller are flushed when they are written, so that the disk is busy meanwhile.
const FLUSH_ALONE: u64 = 1 << 20;
/// Files of which parts have come and others are to come, kept open.
const KEPT: usize = 128;
/// Files that are held in memory until the end.
const HELD_LIMIT: u64 = 16 << 20;

/// Writes in one thread.
pub(crate) struct Worker<'a> {
    writer: &'a DirectoryWriter,
    current: Option<Current>,
    /// The directory used last, which is likely the next one too.
    parent: Option<(SnapshotPath, OwnedFd)>,
    unflushed: Vec<Arc<File>>,
    progress: Progress,
    written: Written,
}

struct Current {
    entry: Entry,
    range: Range<u64>,
    target: Target,
    /// Whether something else may stand where it is written.
    over: bool,
    crc: Crc,
}

enum Target {
    File(Arc<File>),
    Held(Vec<u8>),
    Ignored,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(writer: &'a DirectoryWriter) -> Self {
        Self {
            writer,
            current: None,
            parent: None,
            unflushed: Vec::new(),
            progress: Progress::default(),
            written: Written::default(),
        }
    }

    fn open(&mut self, entry: &Entry, range: &Range<u64>) -> Result<Target> {
        let held = [CONTROL, "tablespace_map"];
        if held
            .iter()
            .any(|name| entry.path.as_bytes() == name.as_bytes())
        {
            if entry.size() > HELD_LIMIT {
                return Err(Error::new(
                    ErrorKind::Limit,
                    entry.path.to_string(),
                    "is too large",
                ));
            }
            if *range != (0..entry.size()) {
                return Err(Error::malformed(entry.path.to_string(), "comes in parts"));
            }
            return Ok(Target::Held(Vec::new()));
        }
        // Ours lists what is written here.
        if entry.path.as_bytes() == MANIFEST.as_bytes() {
            return Ok(Target::Ignored);
        }
        let parent = entry.path.parent().unwrap_or_else(SnapshotPath::root);
        if self
            .parent
            .as_ref()
            .is_none_or(|(known, _)| *known != parent)
        {
            self.parent = Some((parent, self.writer.parent(&entry.path)?));
        }
        let Some((_, directory)) = &self.parent else {
            return Err(Error::malformed(entry.path.to_string(), "has no directory"));
        };
        let fail = |error| failed(&entry.path, "cannot be made", error);
        let name = entry.path.name();
        let in_part = self.writer.update && self.writer.state().parts.contains_key(&entry.path);
        if *range == (0..entry.size()) && !in_part {
            self.writer.make_room(directory, entry)?;
            let file = File::from(create(directory, name).map_err(fail)?);
            return Ok(Target::File(Arc::new(file)));
        }
        let mut state = self.writer.state();
        let file = match state.parts.get(&entry.path) {
            Some(Parts {
                kept: Some(file), ..
            }) => return Ok(Target::File(Arc::clone(file))),
            Some(_) => {
                let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(directory, name, flags, Mode::empty()).map_err(fail)?;
                Arc::new(File::from(fd))
            }
            None => {
                self.writer.make_room(directory, entry)?;
                let file = File::from(create(directory, name).map_err(fail)?);
                file.set_len(entry.size())
                    .map_err(|error| Error::io(entry.path.to_string(), "cannot be made", error))?;
                state
                    .parts
                    .insert(entry.path.clone(), Parts::of(entry.size()));
                Arc::new(file)
            }
        };
        let given_up = state.keep(&entry.path, &file);
        drop(state);
        if let Some(file) = given_up {
            self.unflushed.push(file);
            self.flush()?;
        }
        Ok(Target::File(file))
    }

    fn flush(&mut self) -> Result<()> {
        let each = self.writer.flushes_files();
        // Writing begins for all before the first is waited for: the file system then places all of them
        // in one transaction of its journal instead of one each.
        for file in self.unflushed.iter().filter(|_| each) {
            start_writing(file);
        }
        for file in self.unflushed.drain(..).filter(|_| each) {
            file.sync_all().map_err(|error| {
                Error::io("files of the data directory", "cannot be flushed", error)
            })?;
        }
        Ok(())
    }
}

impl ExtentSink for Worker<'_> {
    fn begin(&mut self, entry: &Entry, range: Range<u64>) -> Result<()> {
        if !entry.is_file() || self.current.is_some() {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                entry.path.to_string(),
                "not a file, or inside another one",
            ));
        }
        self.progress.begin(entry, &range)?;
        self.writer.notice(entry);
        let over = self.writer.update && self.writer.state().parts.contains_key(&entry.path);
        let target = self.open(entry, &range)?;
        self.current = Some(Current {
            over,
            entry: entry.clone(),
            range,
            target,
            crc: Crc::default(),
        });
        Ok(())
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.progress.chunk(chunk)?;
        let Some(current) = &mut self.current else {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot stream",
                "data without a file",
            ));
        };
        // For the manifest, which who changes a directory does not make.
        if self.writer.options.manifest && !self.writer.update {
            current.crc.add(chunk.data);
        }
        match (&mut current.target, chunk.data) {
            (Target::File(file), data) if current.over => {
                write_over(file, data, chunk.offset).map_err(|error| {
                    Error::io(current.entry.path.to_string(), "cannot be written", error)
                })?;
            }
            (Target::File(file), ChunkData::Bytes(bytes)) => {
                let sparse = write_sparse(file, bytes, chunk.offset).map_err(|error| {
                    Error::io(current.entry.path.to_string(), "cannot be written", error)
                })?;
                self.written.sparse += sparse;
            }
            (Target::File(_), ChunkData::Zeros(count)) => self.written.sparse += count,
            (Target::Held(held), ChunkData::Bytes(bytes)) => held.extend_from_slice(bytes),
            // Bounded: progress lets no chunk pass the size, and that was checked.
            (Target::Held(held), ChunkData::Zeros(count)) => {
                held.resize(held.len() + usize::try_from(count).unwrap_or(0), 0);
            }
            (Target::Ignored, _) => {}
        }
        self.written.bytes += chunk.len();
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        self.progress.commit()?;
        let Some(Current {
            entry,
            range,
            target,
            over,
            crc,
        }) = self.current.take()
        else {
            return Ok(());
        };
        let mut state = self.writer.state();
        let file = match target {
            Target::Ignored => return Ok(()),
            Target::Held(bytes) if entry.path.as_bytes() == CONTROL.as_bytes() => {
                if state.control.replace((entry.clone(), bytes)).is_some() {
                    return Err(Error::new(ErrorKind::Exists, CONTROL, "comes twice"));
                }
                self.written.files += 1;
                return Ok(());
            }
            Target::Held(bytes) => {
                state.map = Some(bytes);
                return Ok(());
            }
            Target::File(file) => file,
        };
        let whole = range == (0..entry.size()) && !over;
        let mut kept = false;
        let crc = if whole {
            Some(crc)
        } else {
            match state.parts.get_mut(&entry.path) {
                Some(parts) => {
                    kept = parts
                        .kept
                        .as_ref()
                        .is_some_and(|kept| Arc::ptr_eq(kept, &file));
                    parts.add(&range, crc)
                }
                None => None,
            }
        };
        let Some(crc) = crc else {
            drop(state);
            // What is small is flushed with the last part, through the same handle, which so learns of
            // every failure.
            if kept && range.end - range.start < FLUSH_ALONE {
                return Ok(());
            }
            self.unflushed.push(file);
            return self.flush();
        };
        state.forget_parts(&entry.path);
        state.has_label |= entry.path.as_bytes() == b"backup_label";
        if self.writer.options.manifest && !self.writer.update {
            state.manifest.add(&entry, crc);
        }
        drop(state);
        self.written.files += 1;
        if whole {
            file.set_len(entry.size())
                .map_err(|error| Error::io(entry.path.to_string(), "cannot be written", error))?;
        }
        self.writer.attributes(&file, &entry)?;
        self.unflushed.push(file);
        if self.unflushed.len() >= FLUSH_TOGETHER || entry.size() >= 16 << 20 {
            self.flush()?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        let written = std::mem::take(&mut self.written);
        self.writer.state().written.add(written);
        Ok(())
    }
}

/// A file that comes in parts.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) left: u64,
    pub(crate) done: BTreeMap<u64, Crc>,
    /// Open, for the next part.
    pub(crate) kept: Option<Arc<File>>,
}

impl State {
    /// Keeps a file open of which parts have come, so that other parts find it so. Returns the one that was kept
    /// longest when there are too many: to be flushed, before it is forgotten.
    fn keep(&mut self, path: &SnapshotPath, file: &Arc<File>) -> Option<Arc<File>> {
        if let Some(parts) = self.parts.get_mut(path) {
            parts.kept = Some(Arc::clone(file));
            self.kept.push_back(path.clone());
        }
        let oldest = (self.kept.len() > KEPT).then(|| self.kept.pop_front())??;
        self.parts.get_mut(&oldest)?.kept.take()
    }

    /// A file that came in parts is complete: it is in nobody's way any more.
    fn forget_parts(&mut self, path: &SnapshotPath) {
        let parts = self.parts.remove(path);
        if parts.is_some_and(|parts| parts.kept.is_some()) {
            self.kept.retain(|kept| kept != path);
        }
    }
}

impl Parts {
    pub(crate) fn of(left: u64) -> Self {
        Self {
            left,
            done: BTreeMap::new(),
            kept: None,
        }
    }

    /// Adds a part; the checksum of the whole once nothing is missing.
    fn add(&mut self, range: &Range<u64>, crc: Crc) -> Option<Crc> {
        self.left = self.left.saturating_sub(range.end - range.start);
        self.done.insert(range.start, crc);
        (self.left == 0).then(|| {
            let mut whole = Crc::default();
            self.done.values().for_each(|part| whole.join(*part));
            whole
        })
    }
}

/// Asks the system to write a file's pages soon. A hint: the flush that follows does not depend on it.
fn start_writing(file: &File) {
    #[cfg(target_os = "linux")]
    {
        let advice = rustix::fs::Advice::DontNeed;
        rustix::fs::fadvise(file, 0, None, advice).unwrap_or(());
    }
    #[cfg(not(target_os = "linux"))]
    let _: &File = file;
}

/// Writes also what is zero: something else may stand there.
fn write_over(file: &File, data: ChunkData<'_>, offset: u64) -> std::io::Result<()> {
    match data {
        ChunkData::Bytes(bytes) => file.write_all_at(bytes, offset),
        ChunkData::Zeros(count) => {
            let zeros = [0; SPARSE];
            let (mut at, end) = (offset, offset.saturating_add(count));
            while at < end {
                let length = usize::try_from(end - at).unwrap_or(SPARSE).min(SPARSE);
                file.write_all_at(zeros.get(..length).unwrap_or_default(), at)?;
                at += length as u64;
            }
            Ok(())
        }
    }
}

/// Writes all but zero pages and returns how many bytes were left out. The file's size is set elsewhere.
fn write_sparse(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<u64> {
    let mut sparse = 0;
    let mut from = 0;
    let mut at = 0;
    let write = |from: usize, to: usize| match bytes.get(from..to) {
        Some(run) if !run.is_empty() => file.write_all_at(run, offset + from as u64),
        _ => Ok(()),
    };
    for page in bytes.chunks(SPARSE) {
        if is_zero(page) {
            write(from, at)?;
            from = at + page.len();
            sparse += page.len() as u64;
        }
        at += page.len();
    }
    write(from, at)?;
    Ok(sparse)
}

pub(crate) fn create(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(number: usize) -> SnapshotPath {
        SnapshotPath::new(format!("base/5/{number}")).unwrap()
    }

    #[test]
    fn files_that_are_complete_close_none_that_is_not() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut state = State::default();
        let begin = |state: &mut State, number: usize| {
            state.parts.insert(path(number), Parts::of(1 << 20));
            state.keep(&path(number), &file)
        };
        assert!(begin(&mut state, 0).is_none());
        for number in 1..10 * KEPT {
            assert!(begin(&mut state, number).is_none(), "{number}");
            state.forget_parts(&path(number));
        }
        // As many as may be are open at once; then the oldest is closed.
        for number in 1..KEPT {
            assert!(begin(&mut state, number).is_none(), "{number}");
        }
        assert!(begin(&mut state, KEPT).is_some());
        assert!(state.parts[&path(0)].kept.is_none());
        // One that is closed and completed does not close another.
        state.forget_parts(&path(0));
        state.forget_parts(&path(1));
        assert!(begin(&mut state, KEPT + 1).is_none());
    }
}
