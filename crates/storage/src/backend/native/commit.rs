//! The steps that turn a finished temporary into an object, and those that delete objects.
//!
//! All of this blocks and runs on a blocking thread as one piece: a caller that goes away
//! meanwhile can't stop it half way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, OFlags};

use super::beneath::{self, kind, nothing_there};
use super::dirs::{DirError, Dirs};
use super::disk::{Disk, Place};
use super::storage::NativeOptions;
use super::temp::{self, Temp};
use super::version;
use crate::error::{Error, ErrorKind, Operation, Result, Retry, from_io};
use crate::key::{Key, RESERVED};
use crate::object::ObjectMeta;
use crate::options::{PutMode, PutOptions};

/// What the writing side of one handle shares.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) root: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: NativeOptions,
    dirs: Dirs,
    /// Whether the root's own name is known to be durable.
    rooted: AtomicBool,
    prepared: AtomicBool,
    poisoned: AtomicBool,
}

/// The place of temporaries, below the root.
fn temps() -> PathBuf {
    Path::new(RESERVED).join("tmp")
}

/// The directory of a key, below the root; empty for the root.
fn directory_of(key: &Key) -> &Path {
    Path::new(key.as_str()).parent().unwrap_or(Path::new(""))
}

impl Writer {
    pub(super) fn new(
        root: PathBuf,
        disk: Arc<dyn Disk>,
        options: NativeOptions,
        rooted: bool,
    ) -> Self {
        Self {
            root,
            disk,
            options,
            dirs: Dirs::default(),
            rooted: AtomicBool::new(rooted),
            prepared: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Opens an object.
    pub(super) fn open(&self, key: &Key) -> io::Result<File> {
        let root = beneath::root(&self.root)?;
        beneath::object(&root, Path::new(key.as_str()))
    }

    /// Refuses once a sync has failed.
    pub(super) fn check(&self, operation: Operation, subject: &str) -> Result<()> {
        if !self.poisoned.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, operation)
            .subject(subject)
            .detail("an earlier fsync failed; check the disk, then open the storage again")
            .retry(Retry::Never))
    }

    /// Lowers a failed sync and refuses writes from now on.
    fn poison(&self, operation: Operation, subject: &str, error: io::Error) -> Error {
        self.poisoned.store(true, Ordering::Release);
        tracing::error!(root = %self.root.display(), "fsync failed, refusing further writes");
        Error::new(ErrorKind::Unavailable, operation)
            .subject(subject)
            .detail("fsync failed; no further writes are accepted by this handle")
            .retry(Retry::Never)
            .because(error)
    }

    fn ensure_dir(&self, operation: Operation, subject: &str, below: &Path) -> Result<File> {
        let mode = self.options.dir_mode;
        match self.dirs.ensure(&*self.disk, &self.root, below, mode) {
            Ok(directory) => Ok(directory),
            Err(DirError::Sync(error)) => Err(self.poison(operation, subject, error)),
            Err(DirError::Make(error)) if error.kind() == io::ErrorKind::NotADirectory => {
                Err(below_a_key(operation, subject))
            }
            Err(DirError::Make(error)) => Err(from_io(operation, subject, error)),
        }
    }

    /// A new temporary, with everything it needs around it.
    pub(super) fn temp(&self, key: &Key) -> Result<Temp> {
        let subject = key.as_str();
        self.check(Operation::Put, subject)?;
        self.prepare(Operation::Put, subject)?;
        let directory = self.ensure_dir(Operation::Put, subject, &temps())?;
        let (above, mode) = (self.root.join(temps()), self.options.file_mode);
        Temp::create(&self.disk, directory, &above, mode)
            .map_err(|error| from_io(Operation::Put, subject, error))
    }

    /// Once per handle, before its first change.
    fn prepare(&self, operation: Operation, subject: &str) -> Result<()> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        self.sync_root(operation, subject)?;
        let temps = self.ensure_dir(operation, subject, &temps())?;
        if let Some(now) = self.clock() {
            match temp::sweep(&temps, now) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed temporaries of dead writers"),
                Err(error) => tracing::warn!(%error, "could not sweep temporaries"),
            }
        }
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Whoever made the root may not have synced its name.
    fn sync_root(&self, operation: Operation, subject: &str) -> Result<()> {
        if self.rooted.load(Ordering::Acquire) {
            return Ok(());
        }
        let parent = parent_of(&self.root);
        match self.disk.open_dir(&parent, Path::new("")) {
            Ok(directory) => self
                .disk
                .sync_dir(&directory, &parent)
                .map_err(|error| self.poison(operation, subject, error))?,
            // Who may not read the parent didn't make the root either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::debug!(root = %self.root.display(), "the root's name can't be synced");
            }
            Err(error) => return Err(from_io(operation, subject, error)),
        }
        self.rooted.store(true, Ordering::Release);
        Ok(())
    }

    /// What the file system would stamp a file with now.
    pub(super) fn clock(&self) -> Option<std::time::SystemTime> {
        #[cfg(target_os = "linux")]
        if let Ok(unnamed) = rustix::fs::open(
            &self.root,
            OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        ) {
            return File::from(unnamed)
                .metadata()
                .ok()
                .map(|meta| version::modified(&meta));
        }
        let root = beneath::root(&self.root).ok()?;
        let name = format!("clock-{:016x}", fastrand::u64(..));
        let directory = beneath::directory(&root, &temps()).ok()?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        let file = beneath::open(&directory, Path::new(&name), flags, 0o600).ok()?;
        let now = file.metadata().ok().map(|meta| version::modified(&meta));
        let none = rustix::fs::AtFlags::empty();
        let _swept_later = rustix::fs::unlinkat(&directory, &name, none);
        now
    }

    /// Steps 2 to 5: when this returns, the object is durable under its name.
    pub(super) fn commit(
        &self,
        key: &Key,
        mut temp: Temp,
        options: &PutOptions,
    ) -> Result<ObjectMeta> {
        let subject = key.as_str();
        let failed = |error| from_io(Operation::Put, subject, error).without_effect();
        self.check(Operation::Put, subject)?;
        if let Some(token) = &options.token {
            version::set_token(&temp.file, token);
        }
        version::stamp(&temp.file).map_err(failed)?;
        self.disk
            .sync_file(&temp.file, &temp.path)
            .map_err(|error| self.poison(Operation::Put, subject, error).without_effect())?;
        let meta = version::object(key.clone(), &temp.file.metadata().map_err(failed)?);
        let (target, below) = (self.root.join(key.as_str()), directory_of(key));
        // Opened before anything is named, so that a failure to open it leaves nothing behind.
        let mut directory = self
            .ensure_dir(Operation::Put, subject, below)
            .map_err(Error::without_effect)?;
        let mut named = self.name(key, &mut temp, Place::new(&directory, &target), options);
        if let Err(error) = &named
            && error.kind() == ErrorKind::NotFound
        {
            // Somebody removed the directory: make it again, and trust no memory of it.
            self.dirs.forget();
            directory = self
                .ensure_dir(Operation::Put, subject, below)
                .map_err(Error::without_effect)?;
            named = self.name(key, &mut temp, Place::new(&directory, &target), options);
        }
        let existing = named?;
        // Also when a put meets its own object: the first attempt may have died before this.
        self.disk
            .sync_dir(&directory, target.parent().unwrap_or(&self.root))
            .map_err(|error| {
                self.poison(Operation::Put, subject, error)
                    .with_unknown_outcome()
            })?;
        // The directories above may be among what another put failed to sync meanwhile.
        self.check(Operation::Put, subject)
            .map_err(Error::with_unknown_outcome)?;
        Ok(existing.unwrap_or(meta))
    }

    /// Step 4. Returns the object that is there already if this very put made it.
    fn name(
        &self,
        key: &Key,
        temp: &mut Temp,
        target: Place<'_>,
        options: &PutOptions,
    ) -> Result<Option<ObjectMeta>> {
        let subject = key.as_str();
        match &options.mode {
            PutMode::Create => match self.disk.link(temp.place(), target) {
                Ok(()) => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if is(target, FileType::Directory) {
                        return Err(below_a_key(Operation::Put, subject));
                    }
                    match self.own(key, target, options) {
                        Some(meta) => Ok(Some(meta)),
                        None => Err(from_io(Operation::Put, subject, error)),
                    }
                }
                Err(error) => Err(from_io(Operation::Put, subject, error)),
            },
            PutMode::Overwrite => {
                let _shared = self.lock(Operation::Put, subject, false)?;
                self.rename(subject, temp, target)?;
                Ok(None)
            }
            PutMode::IfVersion(expected) => {
                let _exclusive = self.lock(Operation::Put, subject, true)?;
                let present = beneath::stat(target.directory(), Path::new(target.name()))
                    .ok()
                    .filter(|stat| kind(stat) == FileType::RegularFile);
                if present.is_some_and(|stat| version::of(&stat) == *expected) {
                    self.rename(subject, temp, target)?;
                    return Ok(None);
                }
                match self.own(key, target, options) {
                    Some(meta) => Ok(Some(meta)),
                    None => {
                        Err(Error::new(ErrorKind::Precondition, Operation::Put).subject(subject))
                    }
                }
            }
        }
    }

    fn rename(&self, subject: &str, temp: &mut Temp, target: Place<'_>) -> Result<()> {
        match self.disk.rename(temp.place(), target) {
            Ok(()) => {
                temp.disarm();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                Err(below_a_key(Operation::Put, subject))
            }
            Err(error) => Err(from_io(Operation::Put, subject, error)),
        }
    }

    fn own(&self, key: &Key, target: Place<'_>, options: &PutOptions) -> Option<ObjectMeta> {
        let token = options.token.as_ref()?;
        let file = beneath::object(target.directory(), Path::new(target.name())).ok()?;
        version::has_token(&file, token)
            .then(|| Some(version::object(key.clone(), &file.metadata().ok()?)))?
    }

    /// Locks out puts under a version (shared), or those and every overwrite and delete.
    fn lock(&self, operation: Operation, subject: &str, exclusive: bool) -> Result<File> {
        let failed = |error| from_io(operation, subject, error);
        let (path, flags) = (
            Path::new(RESERVED).join("lock"),
            OFlags::CREATE | OFlags::RDWR,
        );
        let file = beneath::root(&self.root)
            .and_then(|root| beneath::open(&root, &path, flags, self.options.file_mode))
            .map_err(failed)?;
        if exclusive {
            file.lock()
        } else {
            file.lock_shared()
        }
        .map_err(failed)?;
        Ok(file)
    }

    /// Deletes a batch; every directory is synced once, after its names are gone.
    pub(super) fn delete(&self, keys: Vec<Key>) -> Vec<Result<Key>> {
        let subject = keys.first().map(Key::to_string).unwrap_or_default();
        let prepared = self.check(Operation::Delete, &subject).and_then(|()| {
            if !self.root.join(RESERVED).is_dir() {
                self.prepare(Operation::Delete, &subject)?;
            }
            self.lock(Operation::Delete, &subject, false)
        });
        let _shared = match prepared {
            Ok(lock) => lock,
            Err(first) => return all_failed(keys, first),
        };
        let mut by_directory: BTreeMap<PathBuf, Vec<Key>> = BTreeMap::new();
        for key in keys {
            let below = directory_of(&key).to_owned();
            by_directory.entry(below).or_default().push(key);
        }
        by_directory
            .into_iter()
            .flat_map(|(below, keys)| self.delete_in(&below, keys))
            .collect()
    }

    fn delete_in(&self, below: &Path, keys: Vec<Key>) -> Vec<Result<Key>> {
        let subject = keys.first().map(Key::to_string).unwrap_or_default();
        let opened = self
            .check(Operation::Delete, &subject)
            .map(|()| self.disk.open_dir(&self.root, below));
        let directory = match opened {
            Ok(Ok(directory)) => directory,
            // Also behind a link: what it leads to is no part of the storage.
            Ok(Err(error)) if nothing_there(&error) => return keys.into_iter().map(Ok).collect(),
            Ok(Err(error)) => {
                let error = from_io(Operation::Delete, &subject, error).without_effect();
                return all_failed(keys, error);
            }
            Err(refused) => return all_failed(keys, refused),
        };
        let mut outcomes: Vec<Result<Key>> = Vec::with_capacity(keys.len());
        let mut gone = Vec::new();
        for key in keys {
            let path = self.root.join(key.as_str());
            let place = Place::new(&directory, &path);
            match beneath::stat(&directory, Path::new(place.name())) {
                Ok(stat) if kind(&stat) == FileType::RegularFile => {}
                // A directory or a link is no object, and stays.
                Ok(_) => {
                    outcomes.push(Ok(key));
                    continue;
                }
                Err(error) if nothing_there(&error) => {
                    outcomes.push(Ok(key));
                    continue;
                }
                Err(error) => {
                    outcomes.push(Err(from_io(Operation::Delete, key.as_str(), error)));
                    continue;
                }
            }
            match self.disk.unlink(place) {
                Ok(()) => gone.push(key),
                Err(error) if nothing_there(&error) => outcomes.push(Ok(key)),
                Err(error) => {
                    outcomes.push(Err(from_io(Operation::Delete, key.as_str(), error)));
                }
            }
        }
        if !gone.is_empty()
            && let Err(error) = self.disk.sync_dir(&directory, &self.root.join(below))
        {
            let first = self
                .poison(Operation::Delete, &subject, error)
                .with_unknown_outcome();
            outcomes.extend(all_failed(gone, first));
            return outcomes;
        }
        if !gone.is_empty()
            && let Err(error) = self.check(Operation::Delete, &subject)
        {
            outcomes.extend(all_failed(gone, error.with_unknown_outcome()));
            return outcomes;
        }
        outcomes.extend(gone.into_iter().map(Ok));
        outcomes
    }
}

/// Where a root's own name stands.
pub(super) fn parent_of(root: &Path) -> PathBuf {
    match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) => PathBuf::from("."),
        None => root.to_owned(),
    }
}

fn is(place: Place<'_>, wanted: FileType) -> bool {
    beneath::stat(place.directory(), Path::new(place.name()))
        .is_ok_and(|stat| kind(&stat) == wanted)
}

/// One error with its cause for the first key, the same kind for the others.
fn all_failed(keys: Vec<Key>, first: Error) -> Vec<Result<Key>> {
    let (kind, retry) = (first.kind(), first.retry_hint());
    let keys_first = keys.first().map(Key::to_string);
    let others = keys.into_iter().skip(1).map(move |key| {
        Err(Error::new(kind, Operation::Delete)
            .subject(key.to_string())
            .retry(retry))
    });
    let first = match keys_first {
        Some(key) => first.subject(key),
        None => return Vec::new(),
    };
    std::iter::once(Err(first)).chain(others).collect()
}

fn below_a_key(operation: Operation, subject: &str) -> Error {
    Error::new(ErrorKind::Unsupported, operation)
        .subject(subject)
        .detail("on a file system a key can't be both an object and the beginning of another key")
}
