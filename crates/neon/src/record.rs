//! Records: the small JSON files that the home consists of, and the locks beside them.
//!
//! Every write goes to a temporary name, is synced, gets its name and the folder is synced: what a record says is
//! the old or the new, also after a loss of power. Files and folders beside them are made here, too.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use neon_pgctl::OsUser;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// The largest record that is read; far more than any is.
const LARGEST: u64 = 16 << 20;
const TEMPORARY: &str = ".new-";
/// So often a file may be gone by when it is locked: more often than that is no other command, but a file system on which no
/// file is found to be itself.
const TRIES: u32 = 100;

/// Reads a record; nothing when it is not there.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, "cannot be read", error)),
    };
    let mut text = Vec::new();
    file.take(LARGEST)
        .read_to_end(&mut text)
        .map_err(|error| Error::io(path, "cannot be read", error))?;
    let record = serde_json::from_slice(&text).map_err(|error| {
        Error::new(
            ErrorKind::Damaged,
            path.display().to_string(),
            "is no record of ours",
        )
        .caused_by(error)
        .hinted("neon doctor says what can be done about it")
    })?;
    Ok(Some(record))
}

/// Writes a record that must not be there yet. Durable when it returns.
pub(crate) fn create<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let (temporary, _held) = write(path, record)?;
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)
        .map_err(|error| Error::io(&temporary, "cannot be removed", error))?;
    match linked {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == IoKind::AlreadyExists => Err(Error::new(
            ErrorKind::Exists,
            path.display().to_string(),
            "is there already",
        )),
        Err(error) => Err(Error::io(path, "cannot be written", error)),
    }
}

/// Writes a record over what is there. Durable when it returns.
pub(crate) fn replace<T: Serialize>(path: &Path, record: &T) -> Result<()> {
    let (temporary, _held) = write(path, record)?;
    fs::rename(&temporary, path).map_err(|error| Error::io(path, "cannot be written", error))?;
    sync_parent(path)
}

/// Removes a record; one that is not there is removed. Durable when it returns.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == IoKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(path, "cannot be removed", error)),
    }
}

/// Moves a folder to a place that is free. Durable when it returns.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| Error::io(from, "cannot be moved", error))?;
    sync_parent(to)?;
    sync_parent(from)
}

/// The records of a folder by the name of their file, without its ending, in order.
pub(crate) fn list<T: DeserializeOwned>(folder: &Path) -> Result<Vec<(String, T)>> {
    let (records, unreadable) = list_readable(folder)?;
    match unreadable.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(records),
    }
}

/// Records with their names, and why others cannot be read.
pub(crate) type Readable<T> = (Vec<(String, T)>, Vec<Error>);

/// As [`list`], also if some cannot be read.
pub(crate) fn list_readable<T: DeserializeOwned>(folder: &Path) -> Result<Readable<T>> {
    let failed = |error| Error::io(folder, "cannot be listed", error);
    let mut names = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == IoKind::NotFound && is_before_the_home(folder) => {
            return Ok((Vec::new(), Vec::new()));
        }
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_str().filter(|name| !name.starts_with(TEMPORARY));
        names.extend(
            name.and_then(|name| name.strip_suffix(".json"))
                .map(str::to_owned),
        );
    }
    names.sort_unstable();
    let (mut records, mut unreadable) = (Vec::with_capacity(names.len()), Vec::new());
    for name in names {
        match read(&folder.join(format!("{name}.json"))) {
            Ok(Some(record)) => records.push((name, record)),
            // One that goes while we read was removed by somebody else.
            Ok(None) => {}
            Err(error) => unreadable.push(error),
        }
    }
    Ok((records, unreadable))
}

/// Whether this would be a folder of records in a home that was not made yet. In one that was, it is missed.
fn is_before_the_home(folder: &Path) -> bool {
    let home = folder.ancestors().nth(2);
    home.is_some_and(|home| !home.join(crate::home::ABOUT).exists())
}

/// Appends a line to a log. Durable when it returns.
pub(crate) fn append(path: &Path, line: &str) -> Result<()> {
    let failed = |error| Error::io(path, "cannot be written", error);
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let mut whole = String::with_capacity(line.len() + 2);
    // A line that a crash cut off does not swallow this one.
    if !ends_a_line(path).map_err(failed)? {
        whole.push('\n');
    }
    whole.push_str(line);
    whole.push('\n');
    file.write_all(whole.as_bytes()).map_err(failed)?;
    file.sync_data().map_err(failed)
}

/// Makes a folder of this mode, if it is not there.
pub(crate) fn folder(path: &Path, mode: u32) -> Result<()> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == IoKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(Error::io(path, "cannot be made", error)),
    }
}

/// Makes a folder that is not there yet, of exactly this mode, for the user that servers run as.
pub(crate) fn folder_of(path: &Path, mode: u32, owner: Option<&OsUser>) -> Result<()> {
    let failed = |error| Error::io(path, "cannot be made", error);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let made = File::open(path).map_err(failed)?;
    made.set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| give(&made, owner))
        .map_err(failed)?;
    sync_parent(path)
}

/// Puts a file in place of what is there, in a folder of the user that servers run as. Durable when it returns.
pub(crate) fn put(path: &Path, content: &[u8], mode: u32, owner: Option<&OsUser>) -> Result<()> {
    let (temporary, _held) = written(path, |file| {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        give(file, owner)?;
        file.write_all(content)
    })?;
    fs::rename(&temporary, path).map_err(|error| {
        drop(fs::remove_file(&temporary));
        Error::io(path, "cannot be written", error)
    })?;
    sync_parent(path)
}

/// Removes a folder with all that is in it; one that is not there is removed. Durable when it returns.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match neon_cowfs::remove_tree(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == neon_cowfs::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::new(
            ErrorKind::Failed,
            path.display().to_string(),
            "cannot be removed",
        )
        .caused_by(error)),
    }
}

/// Lets a link lead elsewhere. Durable when it returns.
pub(crate) fn relink(path: &Path, target: &Path, owner: Option<&OsUser>) -> Result<()> {
    let temporary = temporary(path)?;
    let failed = |error| Error::io(path, "cannot be linked", error);
    std::os::unix::fs::symlink(target, &temporary).map_err(failed)?;
    if let Some(owner) = owner {
        std::os::unix::fs::lchown(&temporary, Some(owner.uid()), Some(owner.gid()))
            .map_err(failed)?;
    }
    fs::rename(&temporary, path).map_err(failed)?;
    sync_parent(path)
}

fn give(file: &File, owner: Option<&OsUser>) -> std::io::Result<()> {
    match owner {
        Some(owner) => std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid())),
        None => Ok(()),
    }
}

fn no_randomness(error: getrandom::Error) -> Error {
    Error::new(
        ErrorKind::Environment,
        "randomness of the operating system",
        "cannot be had",
    )
    .caused_by(error)
}

fn write<T: Serialize>(path: &Path, record: &T) -> Result<(PathBuf, File)> {
    let mut text = serde_json::to_vec_pretty(record).map_err(|error| {
        Error::new(
            ErrorKind::Failed,
            path.display().to_string(),
            "cannot be written",
        )
        .caused_by(error)
    })?;
    text.push(b'\n');
    written(path, |file| file.write_all(&text))
}

/// A name beside that of a file, until it gets that.
fn temporary(path: &Path) -> Result<PathBuf> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(no_randomness)?;
    let name = format!("{TEMPORARY}{:016x}", u64::from_le_bytes(random));
    Ok(parent(path)?.join(name))
}

/// Writes a file beside another one, durably, that then gets its name: locked as long as it is at work, so that what a killed
/// command left is told from it, and goes with the next write. Nothing is left when that fails.
fn written(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
) -> Result<(PathBuf, File)> {
    sweep(parent(path)?);
    let failed = |error| Error::io(path, "cannot be written", error);
    let (temporary, mut file) = claimed(
        path,
        || temporary(path),
        |temporary| {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options.open(temporary).map(drop)
        },
        |temporary| OpenOptions::new().write(true).open(temporary),
    )?;
    if let Err(error) = write(&mut file).and_then(|()| file.sync_all()) {
        drop(fs::remove_file(&temporary));
        return Err(failed(error));
    }
    Ok((temporary, file))
}

/// Removes files that killed commands were about to give a name to.
fn sweep(folder: &Path) {
    sweep_left(folder, |name| name.strip_prefix(TEMPORARY));
}

/// Makes a file or folder under a name of the kind that nobody else gives, locked from then on: so what a killed command left is
/// told from what another one is at. In errors it is `to`.
pub(crate) fn claimed(
    to: &Path,
    name: impl Fn() -> Result<PathBuf>,
    make: impl Fn(&Path) -> std::io::Result<()>,
    open: impl Fn(&Path) -> std::io::Result<File>,
) -> Result<(PathBuf, File)> {
    let failed = |error| Error::io(to, "cannot be written", error);
    for _ in 0..TRIES {
        let path = name()?;
        make(&path).map_err(failed)?;
        let file = match open(&path) {
            // Swept before it was locked.
            Err(error) if error.kind() == IoKind::NotFound => continue,
            opened => opened.map_err(failed)?,
        };
        // Where nothing can be locked, nothing is swept.
        let _locked = locked(&file, FlockOperation::LockExclusive);
        // Who sweeps may have taken it for a left one before.
        if is_at(&file, &path) {
            return Ok((path, file));
        }
    }
    Err(never_itself(to))
}

/// Locks a file, whatever signals come.
fn locked(file: &File, how: FlockOperation) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| flock(file, how))
}

fn never_itself(path: &Path) -> Error {
    Error::new(
        ErrorKind::Environment,
        path.display().to_string(),
        "cannot be locked: on its file system an open file is never the one that has its name",
    )
    .hinted("use another file system")
}

/// Removes from a folder what killed commands left under such names, each with sixteen hexadecimal digits where `id` finds
/// them. What somebody is at stays; what cannot be removed is in nobody's way.
pub(crate) fn sweep_left(folder: &Path, id: impl Fn(&str) -> Option<&str>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let ours = name
            .to_str()
            .and_then(&id)
            .is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some(_held) = ours.then(|| held_if_free(&path)).flatten() else {
            continue;
        };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => drop(fs::remove_dir_all(&path)),
            Ok(kind) if kind.is_file() => drop(fs::remove_file(&path)),
            _ => {}
        }
    }
}

fn parent(path: &Path) -> Result<&Path> {
    path.parent().ok_or_else(|| {
        Error::new(
            ErrorKind::Invalid,
            path.display().to_string(),
            "is in no folder",
        )
    })
}

fn sync_parent(path: &Path) -> Result<()> {
    sync_folder(parent(path)?)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(folder, "cannot be synced", error))
}

/// A lock on a file. Held until it is dropped, or the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    unused: Option<Unused>,
}

/// What goes with a lock of something that is not there any more, or never was.
#[derive(Debug)]
struct Unused {
    lock: PathBuf,
    record: PathBuf,
    others: Vec<PathBuf>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let Some(unused) = self.unused.take() else {
            return;
        };
        if !matches!(fs::symlink_metadata(&unused.record), Err(error) if error.kind() == IoKind::NotFound)
        {
            return;
        }
        for other in &unused.others {
            if let Some(_held) = held_if_free(other) {
                drop(fs::remove_file(other));
            }
        }
        // Who waits for it sees that it is gone, and takes the next.
        drop(fs::remove_file(&unused.lock));
    }
}

impl Lock {
    fn of(file: File) -> Self {
        Self {
            _file: file,
            unused: None,
        }
    }

    /// Removes its file at its end, and those others that are free, if there is no such record then.
    pub(crate) fn only_with(mut self, lock: &Path, record: &Path, others: Vec<PathBuf>) -> Self {
        self.unused = Some(Unused {
            lock: lock.to_owned(),
            record: record.to_owned(),
            others,
        });
        self
    }

    /// Takes a lock that is held for moments only, and waits for it. For threads.
    pub(crate) fn wait(path: &Path) -> Result<Self> {
        for _ in 0..TRIES {
            let file = lockable(path)?;
            match locked(&file, FlockOperation::LockExclusive) {
                Ok(()) if is_at(&file, path) => return Ok(Self::of(file)),
                // Removed between being opened and being locked.
                Ok(()) => {}
                Err(error) => return Err(Error::io(path, "cannot be locked", error)),
            }
        }
        Err(never_itself(path))
    }

    /// Takes a lock unless somebody holds it.
    pub(crate) fn free(path: &Path) -> Option<Self> {
        let file = lockable(path).ok()?;
        locked(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        is_at(&file, path).then(|| Self::of(file))
    }

    /// Takes the lock, waiting this long for who holds it.
    ///
    /// Dropped: nothing is held.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) with `subject` when it is still held then.
    pub(crate) async fn take(path: &Path, subject: &str, patience: Duration) -> Result<Self> {
        let mut file = lockable(path)?;
        let begun = Instant::now();
        let mut pause = Duration::from_millis(5);
        let mut gone = 0;
        loop {
            match locked(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path) => return Ok(Self::of(file)),
                Ok(()) if gone == TRIES => return Err(never_itself(path)),
                // Removed between being opened and being locked.
                Ok(()) => {
                    gone += 1;
                    file = lockable(path)?;
                }
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < patience => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(100));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(
                        Error::new(ErrorKind::Busy, subject, "another command is at it")
                            .hinted("try again when it is done"),
                    );
                }
                Err(error) => return Err(Error::io(path, "cannot be locked", error)),
            }
        }
    }
}

/// A file to be locked, made if it is not there.
fn lockable(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::io(path, "cannot be opened", error))
}

/// Whether nobody has a file or folder locked.
pub(crate) fn is_free(path: &Path) -> bool {
    held_if_free(path).is_some()
}

/// A file or folder that nobody had locked, locked as long as this lives: who removes it keeps that until it is gone, so that
/// nobody begins to use it in between.
pub(crate) fn held_if_free(path: &Path) -> Option<File> {
    let file = there(path).ok()?;
    locked(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// A file to be locked that is there already, or a folder. Over NFS only what is open for writing can be locked: a folder never.
fn there(path: &Path) -> std::io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error)
            if matches!(
                error.kind(),
                IoKind::IsADirectory | IoKind::PermissionDenied | IoKind::ReadOnlyFilesystem
            ) =>
        {
            File::open(path)
        }
        opened => opened,
    }
}

/// As [`held_if_free`], waiting for who has it locked; nothing if it is not there then. Where nothing can be locked, it is
/// opened only. For threads.
pub(crate) fn held(path: &Path) -> Result<Option<File>> {
    use rustix::io::Errno;
    let file = match there(path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, "cannot be opened", error)),
    };
    match locked(&file, FlockOperation::LockExclusive) {
        Ok(()) | Err(Errno::BADF | Errno::NOLCK | Errno::OPNOTSUPP) => {
            Ok(is_at(&file, path).then_some(file))
        }
        Err(error) => Err(Error::io(path, "cannot be locked", error)),
    }
}

/// Whether an open file is the one that has this name.
fn is_at(file: &File, path: &Path) -> bool {
    let (ours, now) = (file.metadata(), fs::symlink_metadata(path));
    matches!((ours, now), (Ok(ours), Ok(now)) if (ours.dev(), ours.ino()) == (now.dev(), now.ino()))
}

/// Whether a file is empty or its last line is whole.
fn ends_a_line(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let Some(last) = size.checked_sub(1) else {
        return Ok(true);
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_write_left_goes_with_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(".new-0123456789abcdef");
        fs::write(&left, "{").unwrap();
        let place = folder.path().join("one.json");
        let (writing, held) = write(&place, &1).unwrap();
        assert!(!left.exists());
        // Not what somebody else is at, and nothing that is called otherwise.
        let other = folder.path().join(".new-something");
        fs::write(&other, "").unwrap();
        replace(&place, &2).unwrap();
        assert!(writing.exists() && other.exists());
        drop(held);
        replace(&place, &3).unwrap();
        assert!(!writing.exists() && other.exists());
        assert_eq!(read::<u8>(&place).unwrap(), Some(3));
    }

    #[test]
    fn what_is_locked_is_open_for_writing_as_locks_over_a_network_ask_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let writes = |file: &File| {
            let flags = rustix::fs::fcntl_getfl(file).unwrap();
            flags.contains(rustix::fs::OFlags::RDWR)
        };
        assert!(writes(&held(&file).unwrap().unwrap()));
        assert!(writes(&held_if_free(&file).unwrap()));
        // A folder can only be read.
        assert!(held_if_free(folder.path()).is_some());
        assert!(held(&folder.path().join("none")).unwrap().is_none());
    }
}
