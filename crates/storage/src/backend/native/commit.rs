//! The steps that turn a finished temporary into an object, and those that delete objects.
//!
//! All of this blocks and runs on a blocking thread as one piece: a caller that goes away
//! meanwhile can't stop it half way.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::dirs::{DirError, Dirs};
use super::disk::Disk;
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
    prepared: AtomicBool,
    poisoned: AtomicBool,
}

impl Writer {
    pub(super) fn new(root: PathBuf, disk: Arc<dyn Disk>, options: NativeOptions) -> Self {
        Self {
            root,
            disk,
            options,
            dirs: Dirs::default(),
            prepared: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        }
    }

    pub(super) fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn temps(&self) -> PathBuf {
        self.root.join(RESERVED).join("tmp")
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join(RESERVED).join("lock")
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

    fn ensure_dir(&self, operation: Operation, subject: &str, directory: &Path) -> Result<()> {
        let mode = self.options.dir_mode;
        match self.dirs.ensure(&*self.disk, &self.root, directory, mode) {
            Ok(()) => Ok(()),
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
        let mode = self.options.file_mode;
        let first = !self.prepared.load(Ordering::Acquire);
        if first {
            self.prepare(Operation::Put, subject)?;
        }
        match Temp::create(&self.disk, &self.temps(), mode) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !first => {
                self.dirs.forget();
                self.prepare(Operation::Put, subject)?;
                Temp::create(&self.disk, &self.temps(), mode)
            }
            other => other,
        }
        .map_err(|error| from_io(Operation::Put, subject, error))
    }

    fn prepare(&self, operation: Operation, subject: &str) -> Result<()> {
        let temps = self.temps();
        self.ensure_dir(operation, subject, &temps)?;
        let now = self.clock();
        if let Some(now) = now {
            match temp::sweep(&temps, now) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed temporaries of dead writers"),
                Err(error) => tracing::warn!(%error, "could not sweep temporaries"),
            }
        }
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// What the file system would stamp a file with now.
    pub(super) fn clock(&self) -> Option<std::time::SystemTime> {
        use rustix::fs::{Mode, OFlags};
        #[cfg(target_os = "linux")]
        if let Ok(unnamed) = rustix::fs::open(
            &self.root,
            OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        ) {
            return File::from(unnamed)
                .metadata()
                .ok()
                .map(|meta| version::modified(&meta));
        }
        let path = self
            .temps()
            .join(format!("clock-{:016x}", fastrand::u64(..)));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).ok()?);
        let now = file.metadata().ok().map(|meta| version::modified(&meta));
        let _swept_later = std::fs::remove_file(&path);
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
        let failed = |error| from_io(Operation::Put, subject, error);
        self.check(Operation::Put, subject)?;
        if let Some(token) = &options.token {
            version::set_token(&temp.file, token);
        }
        version::stamp(&temp.file).map_err(failed)?;
        self.disk
            .sync_file(&temp.file, &temp.path)
            .map_err(|error| self.poison(Operation::Put, subject, error))?;
        let meta = version::object(key.clone(), &temp.file.metadata().map_err(failed)?);
        let target = self.path(key);
        let directory = target.parent().unwrap_or(&self.root);
        self.ensure_dir(Operation::Put, subject, directory)?;
        let existing = match self.name(key, &mut temp, &target, options) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Somebody removed the directory: make it again, and trust no memory of it.
                self.dirs.forget();
                self.ensure_dir(Operation::Put, subject, directory)?;
                self.name(key, &mut temp, &target, options)?
            }
            other => other?,
        };
        // Also when a put meets its own object: the first attempt may have died before this.
        self.disk
            .sync_dir(directory)
            .map_err(|error| self.poison(Operation::Put, subject, error))?;
        Ok(existing.unwrap_or(meta))
    }

    /// Step 4. Returns the object that is there already if this very put made it.
    fn name(
        &self,
        key: &Key,
        temp: &mut Temp,
        target: &Path,
        options: &PutOptions,
    ) -> Result<Option<ObjectMeta>> {
        let subject = key.as_str();
        match &options.mode {
            PutMode::Create => match self.disk.link(&temp.path, target) {
                Ok(()) => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if target.is_dir() {
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
                let present = std::fs::symlink_metadata(target)
                    .ok()
                    .filter(|meta| meta.is_file());
                if present.is_some_and(|meta| version::of(&meta) == *expected) {
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

    fn rename(&self, subject: &str, temp: &mut Temp, target: &Path) -> Result<()> {
        match self.disk.rename(&temp.path, target) {
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

    fn own(&self, key: &Key, target: &Path, options: &PutOptions) -> Option<ObjectMeta> {
        let token = options.token.as_ref()?;
        let file = open(target).ok()?;
        version::has_token(&file, token)
            .then(|| Some(version::object(key.clone(), &file.metadata().ok()?)))?
    }

    /// Locks out puts under a version (shared), or those and every overwrite and delete.
    fn lock(&self, operation: Operation, subject: &str, exclusive: bool) -> Result<File> {
        let failed = |error| from_io(operation, subject, error);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(self.options.file_mode)
            .open(self.lock_path())
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
        let mut touched = std::collections::BTreeSet::new();
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
        let mut outcomes: Vec<Result<Key>> = Vec::with_capacity(keys.len());
        for key in keys {
            let path = self.path(&key);
            match self.disk.unlink(&path) {
                Ok(()) => {
                    touched.insert(path.parent().unwrap_or(&self.root).to_owned());
                    outcomes.push(Ok(key));
                }
                Err(error) if nothing_there(&error) || path.is_dir() => outcomes.push(Ok(key)),
                Err(error) => {
                    outcomes.push(Err(from_io(Operation::Delete, key.as_str(), error)));
                }
            }
        }
        for directory in touched {
            match self.disk.sync_dir(&directory) {
                Err(error) if !nothing_there(&error) => {
                    let first = self.poison(Operation::Delete, &subject, error);
                    let (gone, failed): (Vec<_>, Vec<_>) =
                        outcomes.into_iter().partition(Result::is_ok);
                    let gone = gone.into_iter().flatten().collect();
                    return all_failed(gone, first).into_iter().chain(failed).collect();
                }
                _ => {}
            }
        }
        outcomes
    }
}

/// One error with its cause for the first key, the same kind for the others.
fn all_failed(keys: Vec<Key>, first: Error) -> Vec<Result<Key>> {
    let (kind, retry) = (first.kind(), first.retry_hint());
    let others = keys.into_iter().skip(1).map(move |key| {
        Err(Error::new(kind, Operation::Delete)
            .subject(key.to_string())
            .retry(retry))
    });
    std::iter::once(Err(first)).chain(others).collect()
}

fn nothing_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Opens an object for reading; links and directories are no objects.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(nofollow)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if nothing_there(&error) => return Err(io::ErrorKind::NotFound.into()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(io::ErrorKind::NotFound.into());
        }
        Err(error) => return Err(error),
    };
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn below_a_key(operation: Operation, subject: &str) -> Error {
    Error::new(ErrorKind::Unsupported, operation)
        .subject(subject)
        .detail("on a file system a key can't be both an object and the beginning of another key")
}
