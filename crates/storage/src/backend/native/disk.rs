//! The writes of the native backend, one method per system call that changes the disk.
//!
//! A seam for tests: a disk that records every step can rebuild what a loss of power would leave,
//! and one that fails the n-th step shows what an error leaves.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::beneath;

/// A name: the directory that holds it, open, and its whole path for those who keep records.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    directory: &'a File,
    path: &'a Path,
}

impl<'a> Place<'a> {
    /// The last segment of `path`, in `directory`.
    pub(super) fn new(directory: &'a File, path: &'a Path) -> Self {
        Self { directory, path }
    }

    /// The directory that the name stands in.
    pub fn directory(&self) -> &'a File {
        self.directory
    }

    /// The name in that directory.
    pub fn name(&self) -> &'a OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// The whole path, absolute or as the storage's root was given.
    pub fn path(&self) -> &'a Path {
        self.path
    }
}

/// Every step by which the native backend changes a disk. Paths are absolute or as the storage's
/// root was given.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Makes a new, empty file; fails if the name is taken.
    fn create(&self, place: Place<'_>, mode: u32) -> io::Result<File>;
    /// Appends to a file made by [`Self::create`] under `path`.
    fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes content and attributes of a file durable, its name not.
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()>;
    /// Gives a file a second name; fails if that is taken.
    fn link(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()>;
    /// Moves a name, replacing what is there.
    fn rename(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()>;
    /// Removes a name.
    fn unlink(&self, place: Place<'_>) -> io::Result<()>;
    /// Makes one directory; fails if the name is taken.
    fn make_dir(&self, place: Place<'_>, mode: u32) -> io::Result<()>;
    /// Opens the directory `below` the root, the root itself if that is empty, through no link.
    /// Changes nothing; it is a step because it can fail by itself.
    fn open_dir(&self, root: &Path, below: &Path) -> io::Result<File>;
    /// Makes the names in an open directory durable.
    fn sync_dir(&self, directory: &File, path: &Path) -> io::Result<()>;
}

/// The disk itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, place: Place<'_>, mode: u32) -> io::Result<File> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let file = rustix::fs::openat(place.directory, place.name(), flags, mode)?;
        Ok(File::from(file))
    }

    fn write(&self, file: &mut File, _: &Path, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync_file(&self, file: &File, _: &Path) -> io::Result<()> {
        file.sync_all()
    }

    fn link(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        let none = AtFlags::empty();
        rustix::fs::linkat(from.directory, from.name(), to.directory, to.name(), none)?;
        Ok(())
    }

    fn rename(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        rustix::fs::renameat(from.directory, from.name(), to.directory, to.name())?;
        Ok(())
    }

    fn unlink(&self, place: Place<'_>) -> io::Result<()> {
        rustix::fs::unlinkat(place.directory, place.name(), AtFlags::empty())?;
        Ok(())
    }

    fn make_dir(&self, place: Place<'_>, mode: u32) -> io::Result<()> {
        rustix::fs::mkdirat(place.directory, place.name(), Mode::from_raw_mode(mode))?;
        Ok(())
    }

    fn open_dir(&self, root: &Path, below: &Path) -> io::Result<File> {
        let root = beneath::root(root)?;
        if below.as_os_str().is_empty() {
            return Ok(root);
        }
        beneath::directory(&root, below)
    }

    fn sync_dir(&self, directory: &File, _: &Path) -> io::Result<()> {
        directory.sync_all()
    }
}
