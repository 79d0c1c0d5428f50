//! Files and folders that are there as a whole or not at all, and stay after a power cut.
//!
//! Root gives what it makes to the server's user, in folders that this user may write to: so mode and owner are
//! set through the descriptor of what was made, never by a name that may mean something else by then.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

use crate::error::{Error, ErrorKind, Result};
use crate::os_user::OsUser;

/// For opening a file that nobody has put a link in place of.
#[expect(
    clippy::cast_possible_wrap,
    reason = "a flag as the system call takes it"
)]
pub(crate) const NO_FOLLOW: i32 = OFlags::NOFOLLOW.bits() as i32;

/// Random lower-case hexadecimal digits, two for each byte, from the system's generator.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    let path = Path::new("/dev/urandom");
    let mut buffer = vec![0; bytes];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut buffer))
        .map_err(|error| Error::io(path, "gives no random bytes", error))?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes a new file of exactly this mode and owner and makes its content durable; its name is durable
/// after [`sync_dir`].
pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32, user: &OsUser) -> Result<()> {
    let attempt = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        // The mode at creation is cut by the umask of the process, which is not ours to change.
        file.set_permissions(Permissions::from_mode(mode))?;
        user.own(&file)?;
        file.write_all(content)?;
        file.sync_all()
    };
    attempt().map_err(|error| Error::io(path, "cannot be written", error))
}

/// Replaces a file as a whole; readers see the old one or the new one. Durable when it returns.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32, user: &OsUser) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = Scrap(folder.join(format!(".{name}.{}", random_hex(6)?)));
    write_new(&temporary.0, content, mode, user)?;
    fs::rename(&temporary.0, path).map_err(|error| Error::io(path, "cannot be replaced", error))?;
    sync_dir(folder)
}

/// Creates a folder of exactly this mode and owner.
pub(crate) fn create_dir(path: &Path, mode: u32, user: &OsUser) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::path(ErrorKind::Exists, path, "is there already")
            }
            _ => Error::io(path, "cannot be created", error),
        })?;
    let attempt = || -> std::io::Result<()> {
        let folder = open_dir(path)?;
        if folder.metadata()?.uid() != rustix::process::geteuid().as_raw() {
            return Err(std::io::Error::other(
                "somebody has put another in its place",
            ));
        }
        folder.set_permissions(Permissions::from_mode(mode))?;
        user.own(&folder)
    };
    attempt().map_err(|error| {
        drop(fs::remove_dir(path));
        Error::io(path, "cannot be given its mode and owner", error)
    })
}

/// Sets the mode of a folder that is no link.
pub(crate) fn set_dir_mode(path: &Path, mode: u32) -> Result<()> {
    open_dir(path)
        .and_then(|folder| folder.set_permissions(Permissions::from_mode(mode)))
        .map_err(|error| Error::io(path, "cannot be given its mode", error))
}

/// Opens a folder, not what a link leads to.
pub(crate) fn open_dir(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(open(path, flags, Mode::empty())?))
}

/// Creates a symbolic link of this owner; anybody may read what it says.
pub(crate) fn create_link(target: &Path, path: &Path, user: &OsUser) -> Result<()> {
    std::os::unix::fs::symlink(target, path)
        .and_then(|()| user.own_link(path))
        .map_err(|error| Error::io(path, "cannot be linked", error))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(path, "cannot be made durable", error))
}

/// A file or a folder that is removed when nobody keeps it.
#[derive(Debug)]
pub(crate) struct Scrap(pub(crate) PathBuf);

impl Scrap {
    /// Leaves it where it is.
    pub(crate) fn keep(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        let removed = match fs::symlink_metadata(&self.0) {
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(&self.0),
            Ok(_) => fs::remove_file(&self.0),
            Err(_) => return,
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.0.display(), %error, "a temporary file stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// In a folder that somebody else may write to, a name may mean something else a moment later.
    #[test]
    fn a_folder_that_is_exchanged_for_a_link_leaves_what_it_leads_to_as_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let victim = scratch.path().join("victim");
        DirBuilder::new().mode(0o700).create(&victim).unwrap();
        let path = scratch.path().join("new");
        let away = scratch.path().join("away");
        let user = OsUser::from_ids(
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if fs::rename(&path, &away).is_ok() {
                        drop(std::os::unix::fs::symlink(&victim, &path));
                        drop(fs::remove_dir(&away));
                    }
                }
            });
            for _ in 0..1000 {
                drop(create_dir(&path, 0o750, &user));
                drop(fs::remove_file(&path));
                drop(fs::remove_dir(&path));
            }
            done.store(true, Ordering::Relaxed);
        });
        let mode = fs::metadata(&victim).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_link_is_given_away_itself_and_not_what_it_leads_to() {
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("target");
        fs::write(&target, "").unwrap();
        let (uid, gid) = match rustix::process::geteuid().is_root() {
            true => (4242, 4243),
            false => (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
        };
        let link = scratch.path().join("link");
        create_link(&target, &link, &OsUser::from_ids(uid, gid)).unwrap();
        assert_eq!(fs::symlink_metadata(&link).unwrap().uid(), uid);
        let ours = rustix::process::geteuid().as_raw();
        assert_eq!(fs::metadata(&target).unwrap().uid(), ours);
        // A second name of somebody's file in the place of the link.
        let file = scratch.path().join("file");
        fs::hard_link(&target, &file).unwrap();
        let stranger = OsUser::from_ids(uid, gid);
        assert_eq!(stranger.own_link(&file).is_err(), ours != uid);
        assert_eq!(fs::metadata(&target).unwrap().uid(), ours);
    }
}
