//! How much of a file or a tree is shared, by the file system's own map of extents.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::ioctl::each_extent;

/// What files hold on disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Extents {
    /// Regular files looked at.
    pub files: u64,
    /// Bytes of written extents. A shared extent counts in each file that has it.
    pub written: u64,
    /// Bytes among them that are shared with another file or another place.
    pub shared: u64,
}

/// Measures a file, or every regular file of a tree. Links are not followed; what lies in other file systems or
/// subvolumes mounted inside is measured too.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) when the file system has no map of extents; [`Io`](ErrorKind::Io) and
/// its like.
pub fn extents(path: &Path) -> Result<Extents> {
    let mut total = Extents::default();
    let kind = std::fs::symlink_metadata(path)
        .map_err(|error| Error::io(path, "cannot be looked at", error))?;
    if kind.is_file() {
        measure(path, &mut total)?;
        return Ok(total);
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |error| Error::io(&folder, "cannot be listed", error);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                measure(&entry.path(), &mut total)?;
            }
        }
    }
    Ok(total)
}

fn measure(path: &Path, total: &mut Extents) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|error| Error::io(path, "cannot be opened", error))?;
    let size = file
        .metadata()
        .map_err(|error| Error::io(path, "cannot be looked at", error))?
        .size();
    total.files += 1;
    if size == 0 {
        return Ok(());
    }
    each_extent(&file, |extent| {
        if !extent.unwritten {
            total.written += extent.length;
            total.shared += if extent.shared { extent.length } else { 0 };
        }
    })
    .map_err(|error| match error {
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS => Error::new(
            ErrorKind::Unsupported,
            path,
            "its file system does not tell which extents are shared",
        ),
        other => Error::io(path, "cannot be mapped", other),
    })
}
