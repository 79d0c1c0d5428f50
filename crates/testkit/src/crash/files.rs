//! The seam: the file operations of an engine.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// File operations below one directory. Paths are relative to it; errors are those of the file system.
pub trait Files: Debug + Send + Sync {
    /// Creates an empty file that must not exist yet, to write and read.
    ///
    /// # Errors
    /// Those of the file system.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Opens an existing file to write and read.
    ///
    /// # Errors
    /// Those of the file system.
    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>>;

    /// Gives a file or directory another name; a file of that name is replaced.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name, which must not exist yet.
    ///
    /// # Errors
    /// Those of the file system.
    fn link(&self, existing: &Path, new: &Path) -> io::Result<()>;

    /// Removes a file's name.
    ///
    /// # Errors
    /// Those of the file system.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory.
    ///
    /// # Errors
    /// Those of the file system.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable; the empty path is the directory of all.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// Those of the file system.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
}

/// An open file.
pub trait OpenFile: Debug + Send + Sync {
    /// Reads what is there from `offset` on, up to the buffer's length.
    ///
    /// # Errors
    /// Those of the file system.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Those of the file system; some of the bytes may then be written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts the file, or extends it by zeros.
    ///
    /// # Errors
    /// Those of the file system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&self) -> io::Result<u64>;

    /// Whether nothing is in the file.
    ///
    /// # Errors
    /// Those of the file system.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes bytes and length durable.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync(&self) -> io::Result<()>;
}

/// The file system, below one directory.
#[derive(Debug, Clone)]
pub struct RealFiles {
    root: PathBuf,
    durable: bool,
}

impl RealFiles {
    /// Works below `root`, and asks the file system to sync when told to.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            durable: true,
        }
    }

    /// Works below `root`, where nothing needs to survive a power cut: syncing does nothing.
    #[must_use]
    pub fn without_sync(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            durable: false,
        }
    }

    /// The directory it works below.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn wrap(&self, file: File) -> Box<dyn OpenFile> {
        Box::new(RealFile {
            file,
            durable: self.durable,
        })
    }
}

impl Files for RealFiles {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.root.join(path))?;
        Ok(self.wrap(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OpenFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.root.join(path))?;
        Ok(self.wrap(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        fs::hard_link(self.root.join(existing), self.root.join(new))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(self.root.join(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(self.root.join(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let directory = File::open(self.root.join(path))?;
        if self.durable {
            directory.sync_all()
        } else {
            Ok(())
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(path))? {
            let name = entry?.file_name().into_string();
            names.push(name.map_err(|name| io::Error::other(format!("{name:?} is not UTF-8")))?);
        }
        names.sort();
        Ok(names)
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    durable: bool,
}

impl OpenFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        if self.durable {
            self.file.sync_all()
        } else {
            Ok(())
        }
    }
}
