//! Opening below the root without following a link.
//!
//! The root itself is the user's word and may be reached through links. Below it a link is no part
//! of the storage: what it leads to may lie anywhere, so no path through one is read, written or
//! deleted. Directories are held open while their names change, so swapping one for a link
//! meanwhile leads nowhere else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// How a directory is opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// A directory as it was given.
pub(super) fn root(path: &Path) -> io::Result<File> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    Ok(File::from(rustix::fs::open(
        path,
        DIRECTORY,
        Mode::empty(),
    )?))
}

/// A directory below another; that one itself if the path is empty. `NotADirectory` where a link
/// or something else stands in the way.
pub(super) fn directory(root: &File, below: &Path) -> io::Result<File> {
    let below = if below.as_os_str().is_empty() {
        Path::new(".")
    } else {
        below
    };
    match open(root, below, DIRECTORY, 0) {
        Err(error) if is_link(&error) => Err(io::ErrorKind::NotADirectory.into()),
        other => other,
    }
}

/// A file below a directory.
pub(super) fn open(root: &File, below: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(mode);
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{ResolveFlags, openat2};
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match openat2(root, below, flags, mode, resolve) {
            // Kernels before 5.6, and sandboxes that know no such call.
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => {}
            other => return Ok(File::from(other?)),
        }
    }
    Ok(File::from(by_segments(root.as_fd(), below, flags, mode)?))
}

/// The same one segment after the other.
fn by_segments(
    root: BorrowedFd<'_>,
    below: &Path,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let mut segments = below.components().peekable();
    let mut held: Option<OwnedFd> = None;
    loop {
        let segment = match segments.next() {
            Some(Component::Normal(name)) => name,
            Some(Component::CurDir) => ".".as_ref(),
            _ => return Err(Errno::XDEV),
        };
        let at = held.as_ref().map_or(root, AsFd::as_fd);
        if segments.peek().is_none() {
            return rustix::fs::openat(at, segment, flags, mode);
        }
        held = Some(rustix::fs::openat(
            at,
            segment,
            DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        )?);
    }
}

fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// Opens an object for reading; links and directories are no objects.
pub(super) fn object(root: &File, below: &Path) -> io::Result<File> {
    // A pipe somebody put there must not be waited for.
    let file = match open(root, below, OFlags::RDONLY | OFlags::NONBLOCK, 0) {
        Ok(file) => file,
        Err(error) if is_link(&error) || nothing_there(&error) => {
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

/// What stands under a name in a directory, a link being itself.
pub(super) fn stat(directory: &File, name: &Path) -> io::Result<Stat> {
    Ok(rustix::fs::statat(
        directory,
        name,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// That nothing can be there: the name or a directory above it is missing.
pub(super) fn nothing_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn neither_way_of_opening_follows_a_link() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        for file in ["root/a/b/x", "outside/x"] {
            std::fs::write(dir.path().join(file), "x").unwrap();
        }
        symlink(dir.path().join("outside"), dir.path().join("root/l")).unwrap();
        symlink("b", dir.path().join("root/a/l")).unwrap();
        symlink("x", dir.path().join("root/a/b/l")).unwrap();
        let root = root(&dir.path().join("root")).unwrap();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for (path, there) in [
            ("a/b/x", true),
            ("l/x", false),
            ("a/l/x", false),
            ("a/b/l", false),
            ("../outside/x", false),
            ("a/none/x", false),
        ] {
            let (path, none) = (Path::new(path), Mode::empty());
            let slowly = by_segments(root.as_fd(), path, flags, none);
            assert_eq!(slowly.is_ok(), there, "{path:?}: {slowly:?}");
            assert_eq!(object(&root, path).is_ok(), there, "{path:?}");
        }
        assert!(directory(&root, Path::new("a/b")).is_ok());
        for path in ["l", "a/l", "a/b/x"] {
            let error = directory(&root, Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{path}");
        }
    }
}
