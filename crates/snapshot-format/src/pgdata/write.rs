//! Writing a data directory that starts.
//!
//! Order: directories, tablespaces and files as they come, each flushed; then the manifest, then the
//! attributes of directories and their flushes; **`global/pg_control` last**, by a rename. Until that
//! rename the server refuses the directory, whatever stopped us, so a remainder can never be taken for a
//! cluster; it can only be removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, FileTimes};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use neon_pg_layout::{ControlFile, Oid, TablespaceMap};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Uid, chownat, fchmod, fchown, fsync, mkdirat, openat, renameat,
    symlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::kind::SnapshotKind;
use crate::manifest::{Collected, Crc, MANIFEST};
use crate::path::SnapshotPath;
use crate::pgdata::place::{Root, Roots, failed, names};
use crate::pgdata::plan::CONTROL;
use crate::stream::{
    Chunk, ChunkData, End, Entry, EntryKind, ExtentSink, Owner, ParallelSink, Progress, is_zero,
};

/// Zero bytes are left out of files in pieces of this size.
const SPARSE: usize = 8192;
/// Files that one worker keeps open until it flushes them together: the first flush pays for the journal.
const FLUSH_TOGETHER: usize = 64;
/// Files that are held in memory until the end.
const HELD_LIMIT: u64 = 16 << 20;

/// Who owns what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// The user this process runs as.
    #[default]
    Process,
    /// The one that the snapshot recorded, where it did.
    Recorded,
    /// This one.
    Fixed(Owner),
}

/// Where tablespaces are put that lay outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TablespacePlaces {
    /// Nowhere: a snapshot that has any is refused.
    Refuse,
    /// Into directories named by their OIDs below this absolute path, which is made if missing.
    Below(PathBuf),
    /// Each into its own absolute path; one that is not listed is an error.
    Listed(BTreeMap<Oid, PathBuf>),
    /// Into directories inside `pg_tblspc`.
    InPlace,
    /// Where the snapshot says they were.
    Original,
}

/// How to write a data directory.
#[derive(Debug, Clone)]
pub struct DirectoryOptions {
    /// Who owns it.
    pub ownership: Ownership,
    /// Where tablespaces go.
    pub tablespaces: TablespacePlaces,
    /// An absolute path that `pg_wal` becomes a link to.
    pub wal_directory: Option<PathBuf>,
    /// Whether a `backup_manifest` is written.
    pub manifest: bool,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            ownership: Ownership::Process,
            tablespaces: TablespacePlaces::Refuse,
            wal_directory: None,
            manifest: true,
        }
    }
}

/// How much was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Files.
    pub files: u64,
    /// Bytes they have.
    pub bytes: u64,
    /// Bytes of them that were zero and became holes.
    pub sparse: u64,
}

impl Written {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.sparse += other.sparse;
    }
}

/// Writes a data directory, its tablespaces and its log directory; nothing outside them.
///
/// When [`end`](ParallelSink::end) has returned, everything is durable and the server starts on it.
/// Dropped before, it leaves a directory without `global/pg_control`, which no server accepts.
#[derive(Debug)]
pub struct DirectoryWriter {
    options: DirectoryOptions,
    roots: RwLock<Roots>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    directories: Vec<Entry>,
    /// Made because something in them came first.
    implied: BTreeSet<SnapshotPath>,
    /// Files that several workers write parts of.
    parts: HashMap<SnapshotPath, Parts>,
    control: Option<(Entry, Vec<u8>)>,
    map: Option<Vec<u8>>,
    has_label: bool,
    /// The first that any entry came with: for directories that came without.
    owner: Option<Owner>,
    manifest: Collected,
    written: Written,
}

#[derive(Debug, Default)]
struct Parts {
    left: u64,
    done: BTreeMap<u64, Crc>,
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
            roots: RwLock::new(roots),
            state: Mutex::default(),
        })
    }

    /// How much has been written so far.
    #[must_use]
    pub fn written(&self) -> Written {
        self.state().written
    }

    fn state(&self) -> MutexGuard<'_, State> {
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
    fn attributes(&self, fd: OwnedFd, entry: &Entry) -> Result<File> {
        let fail = |error| failed(&entry.path, "attributes cannot be set", error);
        self.own(&fd, entry).map_err(fail)?;
        fchmod(&fd, Mode::from_raw_mode(entry.mode & 0o777)).map_err(fail)?;
        let file = File::from(fd);
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
        Ok(file)
    }

    /// Opens the directory of a path, and makes it if nothing has.
    fn parent(&self, path: &SnapshotPath) -> Result<OwnedFd> {
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

    fn notice(&self, entry: &Entry) {
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
        let refuse = |reason| Err(Error::new(ErrorKind::Unsupported, path.to_string(), reason));
        let place = match &self.options.tablespaces {
            TablespacePlaces::Refuse => {
                return refuse("the snapshot has tablespaces and no place was given for them");
            }
            TablespacePlaces::InPlace => return self.directory(entry),
            TablespacePlaces::Below(directory) => {
                std::fs::create_dir_all(absolute(directory)?).map_err(|error| {
                    Error::io(directory.display().to_string(), "cannot be made", error)
                })?;
                directory.join(oid.to_string())
            }
            TablespacePlaces::Listed(places) => match places.get(&oid) {
                Some(place) => place.clone(),
                None => return refuse("no place was given for this tablespace"),
            },
            TablespacePlaces::Original => match location {
                Some(location) => PathBuf::from(std::ffi::OsStr::from_bytes(location)),
                None => return refuse("the snapshot does not say where this tablespace was"),
            },
        };
        let root = empty_directory(absolute(&place)?)?;
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
        let parent = self.parent(&entry.path)?;
        let fail = |error| Error::io(entry.path.to_string(), "cannot be written", error);
        let fd =
            create(&parent, name).map_err(|error| failed(&entry.path, "cannot be made", error))?;
        let file = File::from(fd);
        file.write_all_at(content, 0).map_err(fail)?;
        let file = self.attributes(OwnedFd::from(file), entry)?;
        file.sync_all().map_err(fail)?;
        Ok(parent)
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
        if needs_label && !state.has_label {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot",
                "copied from a running server and without backup_label: started, it would be corrupt without a word",
            ));
        }
        if end.kind == Some(SnapshotKind::Cold) && state.has_label {
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

    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(Worker {
            writer: self,
            current: None,
            parent: None,
            unflushed: Vec::new(),
            progress: Progress::default(),
            written: Written::default(),
        }))
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
        let manifest = std::mem::take(&mut state.manifest).into_bytes(&control, end)?;
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

        if self.options.manifest {
            let manifest_entry = Entry {
                path: SnapshotPath::new(MANIFEST)?,
                ..entry.clone()
            };
            drop(self.small_file(&manifest_entry, MANIFEST.as_bytes(), &manifest)?);
        }
        const NEW: &[u8] = b"pg_control.new";
        let global = self.small_file(&entry, NEW, &bytes)?;
        // Deepest first: what a directory holds is durable before the directory is.
        directories.sort_by(|a, b| b.path.cmp(&a.path));
        for directory in &directories {
            let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
            let fd = roots.directory(&directory.path)?;
            let file = self.attributes(fd, directory)?;
            file.sync_all().map_err(|error| {
                Error::io(directory.path.to_string(), "cannot be flushed", error)
            })?;
        }
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        for root in [&roots.data]
            .into_iter()
            .chain(&roots.wal)
            .chain(roots.tablespaces.values())
        {
            flush_with_parent(root)?;
        }
        let fail = |error| failed(&entry.path, "cannot be put into place", error);
        renameat(&global, NEW, &global, entry.path.name()).map_err(fail)?;
        fsync(&global).map_err(fail)
    }
}

/// Writes in one thread.
struct Worker<'a> {
    writer: &'a DirectoryWriter,
    current: Option<Current>,
    /// The directory used last, which is likely the next one too.
    parent: Option<(SnapshotPath, OwnedFd)>,
    unflushed: Vec<File>,
    progress: Progress,
    written: Written,
}

struct Current {
    entry: Entry,
    range: Range<u64>,
    target: Target,
    crc: Crc,
}

enum Target {
    File(File),
    Held(Vec<u8>),
    Ignored,
}

impl Worker<'_> {
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
        if *range == (0..entry.size()) {
            return Ok(Target::File(File::from(
                create(directory, name).map_err(fail)?,
            )));
        }
        let mut state = self.writer.state();
        if state.parts.contains_key(&entry.path) {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = openat(directory, name, flags, Mode::empty()).map_err(fail)?;
            return Ok(Target::File(File::from(fd)));
        }
        let file = File::from(create(directory, name).map_err(fail)?);
        file.set_len(entry.size())
            .map_err(|error| Error::io(entry.path.to_string(), "cannot be made", error))?;
        let parts = Parts {
            left: entry.size(),
            done: BTreeMap::new(),
        };
        state.parts.insert(entry.path.clone(), parts);
        Ok(Target::File(file))
    }

    fn flush(&mut self) -> Result<()> {
        for file in self.unflushed.drain(..) {
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
        let target = self.open(entry, &range)?;
        self.current = Some(Current {
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
        current.crc.add(chunk.data);
        match (&mut current.target, chunk.data) {
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
        let whole = range == (0..entry.size());
        let crc = if whole {
            Some(crc)
        } else {
            match state.parts.get_mut(&entry.path) {
                Some(parts) => parts.add(&range, crc),
                None => None,
            }
        };
        let Some(crc) = crc else {
            drop(state);
            self.unflushed.push(file);
            return self.flush();
        };
        state.parts.remove(&entry.path);
        state.has_label |= entry.path.as_bytes() == b"backup_label";
        state.manifest.add(&entry, crc);
        drop(state);
        self.written.files += 1;
        if whole {
            file.set_len(entry.size())
                .map_err(|error| Error::io(entry.path.to_string(), "cannot be written", error))?;
        }
        let file = self.writer.attributes(OwnedFd::from(file), &entry)?;
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

impl Parts {
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

fn create(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
}

fn absolute(path: &Path) -> Result<&Path> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        path.display().to_string(),
        "a link in a data directory needs an absolute path",
    ))
}

fn empty_directory(path: &Path) -> Result<Root> {
    let fail = |doing, error| Error::io(path.display().to_string(), doing, error);
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(fail("cannot be made", error)),
    }
    let root = Root::open(path)?;
    let names = names(root.fd()).map_err(|error| fail("cannot be listed", error))?;
    if names.is_empty() {
        return Ok(root);
    }
    Err(Error::new(
        ErrorKind::Exists,
        path.display().to_string(),
        "is not empty",
    ))
}

/// Makes a root, and its name in the directory above it, durable.
fn flush_with_parent(root: &Root) -> Result<()> {
    let fail = |error| Error::io(root.path.display().to_string(), "cannot be flushed", error);
    fsync(root.fd()).map_err(fail)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat(root.fd(), c"..", flags, Mode::empty());
    match parent {
        Ok(parent) => fsync(&parent).map_err(fail),
        // Not ours to read: whoever made it made it durable.
        Err(Errno::ACCESS | Errno::PERM) => Ok(()),
        Err(error) => Err(fail(error)),
    }
}
