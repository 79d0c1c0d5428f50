//! The writes of the native backend, one method per system call that changes the disk.
//!
//! A seam for tests: a disk that records every step can rebuild what a loss of power would leave,
//! and one that fails the n-th step shows what an error leaves.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Every step by which the native backend changes a disk. Paths are absolute or as the storage's
/// root was given.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Makes a new, empty file; fails if the name is taken.
    fn create(&self, path: &Path, mode: u32) -> io::Result<File>;
    /// Appends to a file made by [`Self::create`] under `path`.
    fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes content and attributes of a file durable, its name not.
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()>;
    /// Gives a file a second name; fails if that is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Moves a name, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Makes one directory; fails if the name is taken.
    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// The disk itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
    }

    fn write(&self, file: &mut File, _: &Path, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync_file(&self, file: &File, _: &Path) -> io::Result<()> {
        file.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        fs::DirBuilder::new().mode(mode).create(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}
