//! The file system, with a log of everything that changes it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::files::{Files, OpenFile, RealFiles};
use super::images::Images;
use super::tree::{Inode, Op, Tree};

/// Does what it is told to real files, and records it.
///
/// Clones record into the same log. Nothing is really synced: what the disk would hold is computed.
#[derive(Debug, Clone)]
pub struct Recorder {
    real: RealFiles,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    base: Tree,
    /// As it is now, with everything that was done.
    live: Tree,
    ops: Vec<Op>,
}

/// What was done up to a moment.
#[derive(Debug, Clone)]
pub struct Log {
    pub(super) base: Tree,
    pub(super) ops: Vec<Op>,
}

impl Recorder {
    /// Records what happens below `root` from now on. What is there already counts as durable.
    ///
    /// # Errors
    /// Those of reading `root`.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let real = RealFiles::without_sync(root);
        let base = Tree::load(real.root())?;
        let shared = Shared {
            live: base.clone(),
            base,
            ops: Vec::new(),
        };
        Ok(Self {
            real,
            shared: Arc::new(Mutex::new(shared)),
        })
    }

    /// What has been done so far. Its length, taken between steps of an engine, says at which power
    /// cuts a step had been acknowledged.
    ///
    /// # Panics
    /// When a thread panicked while it recorded.
    #[must_use]
    pub fn log(&self) -> Log {
        let shared = self.lock();
        Log {
            base: shared.base.clone(),
            ops: shared.ops.clone(),
        }
    }

    /// How many operations have been recorded.
    ///
    /// # Panics
    /// As [`log`](Self::log).
    #[must_use]
    pub fn position(&self) -> usize {
        self.lock().ops.len()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared
            .lock()
            .expect("no thread panicked while it recorded")
    }

    fn opened(&self, real: Box<dyn OpenFile>, inode: Inode) -> Box<dyn OpenFile> {
        Box::new(RecordedFile {
            real,
            inode,
            shared: Arc::clone(&self.shared),
        })
    }
}

impl Log {
    /// How many operations there are: the power can be cut before, between and after them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether nothing was done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// States the disk may be in after power cuts at every point: with all, with none, and with some of
    /// what was not synced, `random` times chosen and torn by `seed`. States met before at the same point are
    /// left out.
    #[must_use]
    pub fn images(&self, seed: u64, random: u32) -> Images<'_> {
        Images::new(self, seed, random)
    }
}

impl Shared {
    /// Directory and last name of a path.
    fn place(&self, path: &Path) -> io::Result<(Inode, String)> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((
            self.live.resolve(parent).ok_or(io::ErrorKind::NotFound)?,
            name.to_owned(),
        ))
    }

    fn inode(&self, path: &Path) -> io::Result<Inode> {
        self.live
            .resolve(path)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, path: &Path, is_dir: bool) -> io::Result<Inode> {
        let (dir, name) = self.place(path)?;
        let inode = self.live.next();
        self.live.make(inode, is_dir);
        self.live.set_entry(dir, &name, Some(inode));
        self.ops.push(Op::Create {
            dir,
            name,
            inode,
            is_dir,
        });
        Ok(inode)
    }

    fn unlink(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        self.live.set_entry(dir, &name, None);
        self.ops.push(Op::Unlink { dir, name });
        Ok(())
    }
}

impl Files for Recorder {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let mut shared = self.lock();
        let real = self.real.create_new(path)?;
        let inode = shared.create(path, false)?;
        Ok(self.opened(real, inode))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let shared = self.lock();
        let real = self.real.open(path)?;
        let inode = shared.inode(path)?;
        Ok(self.opened(real, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut shared = self.lock();
        self.real.rename(from, to)?;
        let (inode, replaced) = (shared.inode(from)?, shared.live.resolve(to));
        if replaced == Some(inode) {
            // Two names of one file: the system leaves both.
            return Ok(());
        }
        let (from, to) = (shared.place(from)?, shared.place(to)?);
        shared.live.set_entry(from.0, &from.1, None);
        shared.live.set_entry(to.0, &to.1, Some(inode));
        shared.ops.push(Op::Rename { from, to, inode });
        Ok(())
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        let mut shared = self.lock();
        self.real.link(existing, new)?;
        let inode = shared.inode(existing)?;
        let (dir, name) = shared.place(new)?;
        shared.live.set_entry(dir, &name, Some(inode));
        shared.ops.push(Op::Link { dir, name, inode });
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut shared = self.lock();
        self.real.unlink(path)?;
        shared.unlink(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut shared = self.lock();
        self.real.create_dir(path)?;
        shared.create(path, true).map(drop)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut shared = self.lock();
        self.real.remove_dir(path)?;
        shared.unlink(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut shared = self.lock();
        self.real.sync_dir(path)?;
        let dir = shared.inode(path)?;
        shared.ops.push(Op::SyncDir { dir });
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.real.list(path)
    }
}

#[derive(Debug)]
struct RecordedFile {
    real: Box<dyn OpenFile>,
    inode: Inode,
    shared: Arc<Mutex<Shared>>,
}

impl RecordedFile {
    fn record(&self, real: impl FnOnce() -> io::Result<()>, op: Op) -> io::Result<()> {
        let mut shared = self
            .shared
            .lock()
            .expect("no thread panicked while it recorded");
        real()?;
        shared.ops.push(op);
        Ok(())
    }
}

impl OpenFile for RecordedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.real.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let op = Op::Write {
            inode: self.inode,
            offset,
            bytes: bytes.into(),
        };
        self.record(|| self.real.write_all_at(bytes, offset), op)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.record(
            || self.real.set_len(len),
            Op::SetLen {
                inode: self.inode,
                len,
            },
        )
    }

    fn len(&self) -> io::Result<u64> {
        self.real.len()
    }

    fn sync(&self) -> io::Result<()> {
        self.record(|| self.real.sync(), Op::SyncFile { inode: self.inode })
    }
}
