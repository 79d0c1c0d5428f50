//! File operations that fail when planned: the n-th change, once or from then on.
//!
//! A full disk, a failing one, a failed sync. Run an engine with `fail_at` 1, 2, 3… until it gets
//! through; after each run nothing may be lost or half done.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::files::{Files, OpenFile};

/// Which changes fail, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    /// The first change that fails, counted from 1 over all files.
    pub fail_at: u64,
    /// Whether every later change fails too, as on a full disk; else only that one.
    pub from_then_on: bool,
    /// What it fails with.
    pub kind: io::ErrorKind,
}

/// The file operations of `F`, some of which fail. Reading and listing never do.
///
/// A write that fails has written its first half; every other operation that fails did nothing.
#[derive(Debug)]
pub struct Failing<F> {
    files: F,
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Plan {
    faults: Faults,
    changes: AtomicU64,
}

impl Plan {
    fn change(&self) -> io::Result<()> {
        let number = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        let fails = if self.faults.from_then_on {
            number >= self.faults.fail_at
        } else {
            number == self.faults.fail_at
        };
        if fails {
            return Err(io::Error::new(
                self.faults.kind,
                format!("change {number}, planned to fail"),
            ));
        }
        Ok(())
    }
}

impl<F: Files> Failing<F> {
    /// Makes operations on `files` fail as planned.
    pub fn new(files: F, faults: Faults) -> Self {
        let plan = Plan {
            faults,
            changes: AtomicU64::new(0),
        };
        Self {
            files,
            plan: Arc::new(plan),
        }
    }

    /// How many changes were asked for, those that failed included.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.plan.changes.load(Ordering::SeqCst)
    }

    fn wrap(&self, file: Box<dyn OpenFile>) -> Box<dyn OpenFile> {
        Box::new(FailingFile {
            file,
            plan: Arc::clone(&self.plan),
        })
    }
}

impl<F: Files> Files for Failing<F> {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        self.plan.change()?;
        Ok(self.wrap(self.files.create_new(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        Ok(self.wrap(self.files.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.plan.change()?;
        self.files.rename(from, to)
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.plan.change()?;
        self.files.link(existing, new)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.plan.change()?;
        self.files.unlink(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.change()?;
        self.files.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.change()?;
        self.files.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.plan.change()?;
        self.files.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.files.list(path)
    }
}

#[derive(Debug)]
struct FailingFile {
    file: Box<dyn OpenFile>,
    plan: Arc<Plan>,
}

impl OpenFile for FailingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(fault) = self.plan.change() {
            self.file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(fault);
        }
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.plan.change()?;
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn sync(&self) -> io::Result<()> {
        self.plan.change()?;
        self.file.sync()
    }
}
