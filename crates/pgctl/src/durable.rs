//! Files and folders that are there as a whole or not at all, and stay after a power cut.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::os_user::OsUser;

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
        file.write_all(content)?;
        file.sync_all()
    };
    attempt().map_err(|error| Error::io(path, "cannot be written", error))?;
    user.own(path)
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
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::path(ErrorKind::Exists, path, "is there already")
            }
            _ => Error::io(path, "cannot be created", error),
        })?;
    user.own(path)
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
