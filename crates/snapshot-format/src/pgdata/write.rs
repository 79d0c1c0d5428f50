//! Writing a data directory that starts.
//!
//! Order: directories, tablespaces and files as they come, each flushed; then the manifest, then the
//! attributes of directories and their flushes; **`global/pg_control` last**, by a rename. Until that
//! rename the server refuses the directory, whatever stopped us, so a remainder can never be taken for a
//! cluster; it can only be removed.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fs::{File, FileTimes};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use neon_pg_layout::{ControlFile, Oid, TablespaceMap};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Uid, chownat, fchmod, fchown, fsync, mkdirat, renameat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::kind::SnapshotKind;
use crate::manifest::{Collected, Crc, MANIFEST};
use crate::path::SnapshotPath;
use crate::pgdata::control::has_file;
use crate::pgdata::existing::open_parts;
use crate::pgdata::place::{Roots, empty_directory, failed, flush_with_parent};
use crate::pgdata::plan::CONTROL;
use crate::pgdata::write_files::{Parts, Worker, create};
use crate::pgdata::write_options::{
    DirectoryOptions, Flush, Ownership, TablespacePlaces, Written, absolute,
};
use crate::stream::{
    Change, ChunkData, End, Entry, EntryKind, ExtentSink, Owner, ParallelSink, Wanted,
};

/// Writes a data directory, its tablespaces and its log directory; nothing outside them.
///
/// The directory is new, or one that is there and is changed: see
/// [`ExistingDirectory`](crate::pgdata::ExistingDirectory).
///
/// When [`end`](ParallelSink::end) has returned, everything is durable and the server starts on it.
/// Dropped before, it leaves a directory without `global/pg_control`, which no server accepts.
#[derive(Debug)]
pub struct DirectoryWriter {
    pub(crate) options: DirectoryOptions,
    /// Whether it changes a directory that is there.
    pub(crate) update: bool,
    roots: RwLock<Roots>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) directories: Vec<Entry>,
    /// Made because something in them came first.
    pub(crate) implied: BTreeSet<SnapshotPath>,
    /// Files that several workers write parts of.
    pub(crate) parts: HashMap<SnapshotPath, Parts>,
    /// Those of them that are kept open, oldest first.
    pub(crate) kept: VecDeque<SnapshotPath>,
    pub(crate) control: Option<(Entry, Vec<u8>)>,
    pub(crate) map: Option<Vec<u8>>,
    pub(crate) has_label: bool,
    /// The first that any entry came with: for directories that came without.
    pub(crate) owner: Option<Owner>,
    pub(crate) manifest: Collected,
    pub(crate) written: Written,
}

impl DirectoryWriter {
    /// Prepares a target: a directory that is made, or one that is empty.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when it, or the log directory, is not empty;
    /// [`Unsupported`](ErrorKind::Unsupported) when the log directory's path is not absolute.
    pub fn create(path: &Path, options: DirectoryOptions) -> Result<Self> {
        let mut roots = Roots::new(empty_directory(path)?);
        if let Some(wal) = &options.wal_directory {
            roots.wal = Some(empty_directory(absolute(wal)?)?);
            let link = SnapshotPath::new("pg_wal")?;
            symlinkat(wal, roots.data.fd(), "pg_wal")
                .map_err(|error| failed(&link, "cannot be made", error))?;
        }
        Ok(Self {
            options,
            update: false,
            roots: RwLock::new(roots),
            state: Mutex::default(),
        })
    }

    /// Begins to change a directory that is there. From now on the server refuses it, until
    /// [`end`](ParallelSink::end) has returned.
    pub(crate) fn change(roots: Roots, options: DirectoryOptions) -> Result<Self> {
        let control = SnapshotPath::new(CONTROL)?;
        let global = roots.directory(&control.parent().unwrap_or_else(SnapshotPath::root));
        match global {
            Ok(global) => {
                let fail = |error| failed(&control, "cannot be removed", error);
                for name in [control.name(), NEW] {
                    match unlinkat(&global, name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(error) => return Err(fail(error)),
                    }
                }
                fsync(&global).map_err(fail)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            options,
            update: true,
            roots: RwLock::new(roots),
            state: Mutex::default(),
        })
    }

    /// Removes a file, an empty directory, or the link of a tablespace, of a directory that is changed. What lies
    /// behind a link stays.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for a directory that is made new; [`Io`](ErrorKind::Io).
    pub fn remove(&self, entry: &Entry) -> Result<()> {
        if !self.update || entry.path.is_root() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                entry.path.to_string(),
                "not to be removed by who makes a new directory",
            ));
        }
        let fail = |error| failed(&entry.path, "cannot be removed", error);
        let parent = self.parent(&entry.path)?;
        let flags = match entry.kind {
            EntryKind::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        match unlinkat(&parent, entry.path.name(), flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(fail(error)),
        }
    }

    /// Removes a file that will be made anew, so that no other name of the old one is written to.
    pub(crate) fn make_room(&self, directory: &OwnedFd, entry: &Entry) -> Result<()> {
        if !self.update {
            return Ok(());
        }
        match unlinkat(directory, entry.path.name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(&entry.path, "cannot be removed", error)),
        }
    }

    /// Opens a file of which parts are to be written anew, as long as it will be.
    fn open_part(&self, entry: &Entry) -> Result<File> {
        let fd = open_parts(&self.parent(&entry.path)?, &entry.path)?;
        let file = File::from(fd);
        file.set_len(entry.size())
            .map_err(|error| Error::io(entry.path.to_string(), "cannot be written", error))?;
        Ok(file)
    }

    /// A file of which nothing, or only parts, come.
    fn file_in_part(&self, entry: &Entry, ranges: &[Range<u64>]) -> Result<()> {
        self.notice(entry);
        let file = self.open_part(entry)?;
        let left: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        if left == 0 {
            self.attributes(&file, entry)?;
            if self.flushes_files() {
                file.sync_all().map_err(|error| {
                    Error::io(entry.path.to_string(), "cannot be flushed", error)
                })?;
            }
            return Ok(());
        }
        self.state()
            .parts
            .insert(entry.path.clone(), Parts::of(left));
        Ok(())
    }

    /// How much has been written so far.
    #[must_use]
    pub fn written(&self) -> Written {
        self.state().written
    }

    /// Whether files are flushed one by one, and not together at the end.
    pub(crate) fn flushes_files(&self) -> bool {
        self.options.flush == Flush::Files || !cfg!(target_os = "linux")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owner(&self, entry: &Entry) -> Option<Owner> {
        match self.options.ownership {
            Ownership::Process => None,
            Ownership::Recorded => entry.owner.or(self.state().owner),
            Ownership::Fixed(owner) => Some(owner),
        }
    }

    fn own(&self, fd: impl AsFd, entry: &Entry) -> rustix::io::Result<()> {
        match self.owner(entry) {
            Some(owner) => fchown(
                fd,
                Some(Uid::from_raw(owner.uid)),
                Some(Gid::from_raw(owner.gid)),
            ),
            None => Ok(()),
        }
    }

    /// Mode, owner and time of a file or directory.
    pub(crate) fn attributes(&self, file: &File, entry: &Entry) -> Result<()> {
        let fail = |error| failed(&entry.path, "attributes cannot be set", error);
        self.own(file, entry).map_err(fail)?;
        fchmod(file, Mode::from_raw_mode(entry.mode & 0o777)).map_err(fail)?;
        let since = Duration::from_secs(entry.modified.unsigned_abs());
        let time = if entry.modified < 0 {
            SystemTime::UNIX_EPOCH.checked_sub(since)
        } else {
            SystemTime::UNIX_EPOCH.checked_add(since)
        };
        if let Some(time) = time {
            file.set_times(FileTimes::new().set_modified(time))
                .map_err(|error| {
                    Error::io(entry.path.to_string(), "attributes cannot be set", error)
                })?;
        }
        Ok(())
    }

    /// Opens the directory of a path, and makes it if nothing has.
    pub(crate) fn parent(&self, path: &SnapshotPath) -> Result<OwnedFd> {
        let parent = path.parent().unwrap_or_else(SnapshotPath::root);
        let opened = self
            .roots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .directory(&parent);
        match opened {
            Err(error) if error.kind() == ErrorKind::NotFound && !parent.is_root() => {
                let entry = Entry {
                    path: parent.clone(),
                    kind: EntryKind::Directory,
                    mode: 0o700,
                    owner: None,
                    modified: 0,
                };
                let made = self.directory(&entry);
                match made {
                    Err(error) if error.kind() == ErrorKind::Exists => {}
                    other => {
                        other?;
                        self.state().implied.insert(parent.clone());
                    }
                }
                self.roots
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .directory(&parent)
            }
            other => other,
        }
    }

    pub(crate) fn notice(&self, entry: &Entry) {
        let mut state = self.state();
        state.owner = state.owner.or(entry.owner);
    }

    fn directory(&self, entry: &Entry) -> Result<()> {
        let path = &entry.path;
        let linked = self.options.wal_directory.is_some() && path.as_bytes() == b"pg_wal";
        self.notice(entry);
        if !path.is_root() && !linked {
            let parent = self.parent(path)?;
            match mkdirat(&parent, path.name(), Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) if self.update => {
                    let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
                    drop(roots.directory(path)?);
                }
                Err(Errno::EXIST) if self.state().implied.remove(path) => {
                    self.state().directories.retain(|known| known.path != *path);
                }
                Err(error) => return Err(failed(path, "cannot be made", error)),
            }
        }
        self.state().directories.push(entry.clone());
        Ok(())
    }

    fn tablespace(&self, entry: &Entry, oid: Oid, location: Option<&[u8]>) -> Result<()> {
        let path = &entry.path;
        if path.tablespace() != Some((oid, b"")) {
            return Err(Error::new(
                ErrorKind::Unsafe,
                path.to_string(),
                "not the place of a tablespace",
            ));
        }
        let known = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        if self.update && known.tablespaces.contains_key(&oid) {
            drop(known);
            self.state().directories.push(entry.clone());
            return Ok(());
        }
        drop(known);
        // One that lies in the directory stays there.
        let inside = self.update && self.is_directory(path)?;
        let place = self.options.tablespaces.place(path, oid, location);
        let Some(place) = (if inside { None } else { place? }) else {
            return self.directory(entry);
        };
        if let TablespacePlaces::Below(directory) = &self.options.tablespaces {
            std::fs::create_dir_all(directory).map_err(|error| {
                Error::io(directory.display().to_string(), "cannot be made", error)
            })?;
        }
        let root = empty_directory(&place)?;
        let parent = self.parent(path)?;
        symlinkat(&place, &parent, path.name())
            .map_err(|error| failed(path, "cannot be made", error))?;
        if let Some(owner) = self.owner(entry) {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            chownat(
                &parent,
                path.name(),
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|error| failed(path, "owner cannot be set", error))?;
        }
        let mut roots = self.roots.write().unwrap_or_else(PoisonError::into_inner);
        roots.tablespaces.insert(oid, root);
        drop(roots);
        self.state().directories.push(entry.clone());
        Ok(())
    }

    /// Creates a file of known content, with its attributes, flushed.
    fn small_file(&self, entry: &Entry, name: &[u8], content: &[u8]) -> Result<OwnedFd> {
        self.file_of(entry, name, |put| put(content))
    }

    /// As [`small_file`](Self::small_file), of content that is handed over piece by piece.
    fn file_of(
        &self,
        entry: &Entry,
        name: &[u8],
        content: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<OwnedFd> {
        let parent = self.parent(&entry.path)?;
        let fail = |error| Error::io(entry.path.to_string(), "cannot be written", error);
        let fd =
            create(&parent, name).map_err(|error| failed(&entry.path, "cannot be made", error))?;
        let file = File::from(fd);
        let mut at = 0;
        content(&mut |piece| {
            file.write_all_at(piece, at).map_err(fail)?;
            at += piece.len() as u64;
            Ok(())
        })?;
        self.attributes(&file, entry)?;
        file.sync_all().map_err(fail)?;
        Ok(parent)
    }

    /// Whether a directory, and no link, is there.
    fn is_directory(&self, path: &SnapshotPath) -> Result<bool> {
        let parent = self.parent(path)?;
        match statat(&parent, path.name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(failed(path, "cannot be examined", error)),
        }
    }

    /// Whether there is a label: one that came, or one that was right already.
    fn has_label(&self, state: &State) -> bool {
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        state.has_label || self.update && has_file(&roots.data, "backup_label")
    }

    /// Removes what never comes and would be believed: links are as they should be, and a server would make them as
    /// the map says; a manifest would list other files.
    fn remove_stale(&self) -> Result<()> {
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        for name in ["tablespace_map", MANIFEST] {
            match unlinkat(roots.data.fd(), name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => {
                    return Err(failed(
                        &SnapshotPath::new(name)?,
                        "cannot be removed",
                        error,
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_bootable(&self, state: &State, end: &End) -> Result<ControlFile> {
        let Some((_, bytes)) = &state.control else {
            return Err(Error::malformed("snapshot", "it has no global/pg_control"));
        };
        let control = ControlFile::decode(bytes).map_err(|error| Error::layout(CONTROL, error))?;
        let needs_label = match end.kind {
            Some(kind) => kind.is_bracketed(),
            None => !control.state.is_clean(),
        };
        let has_label = self.has_label(state);
        if needs_label && !has_label {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot",
                "copied from a running server and without backup_label: started, it would be corrupt without a word",
            ));
        }
        if end.kind == Some(SnapshotKind::Cold) && has_label {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot",
                "of a stopped server, and with a backup_label",
            ));
        }
        let map = state.map.as_deref().unwrap_or_default();
        let map =
            TablespaceMap::parse(map).map_err(|error| Error::layout("tablespace_map", error))?;
        for (oid, _) in &map.entries {
            let link = format!("pg_tblspc/{oid}");
            if !state
                .directories
                .iter()
                .any(|entry| entry.path.as_bytes() == link.as_bytes())
            {
                return Err(Error::new(
                    ErrorKind::Inconsistent,
                    "tablespace_map",
                    format!("tablespace {oid} is not in the snapshot"),
                ));
            }
        }
        Ok(control)
    }
}

impl ParallelSink for DirectoryWriter {
    fn entry(&self, entry: &Entry) -> Result<()> {
        match &entry.kind {
            EntryKind::Directory => self.directory(entry),
            EntryKind::Tablespace { oid, location } => {
                self.tablespace(entry, *oid, location.as_deref())
            }
            EntryKind::File { .. } => {
                let mut worker = self.worker()?;
                worker.begin(entry, 0..entry.size())?;
                worker.commit()?;
                worker.finish()
            }
        }
    }

    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()> {
        match wanted {
            Wanted::Whole => return Ok(()),
            Wanted::Nothing if self.update => return self.file_in_part(entry, &[]),
            Wanted::Ranges(ranges) if self.update => return self.file_in_part(entry, ranges),
            _ => {}
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            entry.path.to_string(),
            "comes in part, and a directory needs all of it",
        ))
    }

    fn changed(&self, _: &Entry, _: Change) -> Result<()> {
        Ok(())
    }

    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(Worker::new(self)))
    }

    fn end(&self, end: &End) -> Result<()> {
        let mut state = self.state();
        if let Some(path) = state.parts.keys().next() {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                path.to_string(),
                "parts of it are missing",
            ));
        }
        let control = self.check_bootable(&state, end)?;
        let Some((entry, bytes)) = state.control.take() else {
            return Err(Error::malformed("snapshot", "it has no global/pg_control"));
        };
        let mut crc = Crc::default();
        crc.add(ChunkData::Bytes(&bytes));
        state.manifest.add(&entry, crc);
        let manifest = std::mem::take(&mut state.manifest);
        let mut directories = std::mem::take(&mut state.directories);
        if !directories.iter().any(|entry| entry.path.is_root()) {
            // Tar archives have no entry for it. The server wants 0700, or 0750 with group access.
            let mode = if entry.mode & 0o040 == 0 {
                0o700
            } else {
                0o750
            };
            let kind = EntryKind::Directory;
            directories.push(Entry {
                path: SnapshotPath::root(),
                kind,
                mode,
                ..entry.clone()
            });
        }
        drop(state);

        if self.update {
            self.remove_stale()?;
        }
        if self.options.manifest && !self.update {
            let manifest_entry = Entry {
                path: SnapshotPath::new(MANIFEST)?,
                ..entry.clone()
            };
            let lines =
                |put: &mut dyn FnMut(&[u8]) -> Result<()>| manifest.pieces(&control, end, put);
            drop(self.file_of(&manifest_entry, MANIFEST.as_bytes(), lines)?);
        }
        let global = self.small_file(&entry, NEW, &bytes)?;
        // Deepest first: what a directory holds is durable before the directory is.
        directories.sort_by(|a, b| b.path.cmp(&a.path));
        for directory in &directories {
            let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
            let fd = roots.directory(&directory.path)?;
            let file = File::from(fd);
            self.attributes(&file, directory)?;
            if self.flushes_files() {
                file.sync_all().map_err(|error| {
                    Error::io(directory.path.to_string(), "cannot be flushed", error)
                })?;
            }
        }
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        for root in [&roots.data]
            .into_iter()
            .chain(&roots.wal)
            .chain(roots.tablespaces.values())
        {
            #[cfg(target_os = "linux")]
            if !self.flushes_files() {
                // The root was opened before anything was written: errors since then are reported.
                rustix::fs::syncfs(root.fd()).map_err(|error| {
                    Error::io(root.path.display().to_string(), "cannot be flushed", error)
                })?;
            }
            flush_with_parent(root)?;
        }
        let fail = |error| failed(&entry.path, "cannot be put into place", error);
        renameat(&global, NEW, &global, entry.path.name()).map_err(fail)?;
        fsync(&global).map_err(fail)
    }
}

/// The control file before it gets its name.
const NEW: &[u8] = b"pg_control.new";
