//! Unpacking the archives of a base backup into a data directory, and nowhere but below the directories given.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use neon_pgwire::{ArchiveItem, ArchiveMember, ArchiveReader, MemberKind};

/// A pair of directories: where a tablespace was, and where it shall be.
#[derive(Debug, Clone)]
pub struct Mapping {
    /// On the server.
    pub from: PathBuf,
    /// Here.
    pub to: PathBuf,
}

/// Who may read what is not in an archive with permissions of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// Of directories.
    pub directory: u32,
    /// Of files.
    pub file: u32,
}

impl Modes {
    /// Those of a cluster whose `data_directory_mode` is this: only its owner, or its group as well.
    pub fn of(data_directory_mode: &str) -> Self {
        let mode = u32::from_str_radix(data_directory_mode, 8).unwrap_or(0o700);
        match mode & 0o050 {
            0o050 => Self {
                directory: 0o750,
                file: 0o640,
            },
            _ => Self {
                directory: 0o700,
                file: 0o600,
            },
        }
    }

    /// Creates a directory in one that exists, unless it is there.
    pub fn create_dir(self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(self.directory).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            // Whatever the umask says.
            _ => fs::set_permissions(path, Permissions::from_mode(self.directory)),
        }
    }

    /// Creates a file that is not there yet.
    pub fn create_file(self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(self.file)
            .open(path)?;
        file.set_permissions(Permissions::from_mode(self.file))?;
        Ok(file)
    }
}

/// Everything that was written, to be made durable together.
#[derive(Debug, Default)]
pub struct Written {
    files: Vec<PathBuf>,
    directories: BTreeSet<PathBuf>,
}

impl Written {
    /// Notes a file that somebody else wrote.
    pub fn file(&mut self, path: PathBuf) {
        self.files.push(path);
    }

    /// Notes a directory.
    pub fn directory(&mut self, path: PathBuf) {
        self.directories.insert(path);
    }

    /// Makes everything durable, several files at a time: directories after what they hold.
    pub fn sync(&self) -> io::Result<()> {
        let sync = |path: &PathBuf| File::open(path).and_then(|file| file.sync_all());
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            match self.files.get(index) {
                                Some(path) => sync(path)?,
                                None => return Ok(()),
                            }
                        }
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread died")))
            })
        })?;
        self.directories.iter().rev().try_for_each(sync)
    }
}

/// One archive that is being unpacked.
#[derive(Debug)]
pub struct Unpacker<'a> {
    root: PathBuf,
    mappings: &'a [Mapping],
    written: &'a mut Written,
    reader: ArchiveReader,
    file: Option<File>,
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Creates a directory, unless there is an empty one.
pub fn create_empty(path: &Path, modes: Modes, written: &mut Written) -> io::Result<()> {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                let reason = format!("{} is not empty", path.display());
                return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, reason));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        }
        Err(error) => return Err(error),
    }
    fs::set_permissions(path, Permissions::from_mode(modes.directory))?;
    written.directory(path.to_owned());
    Ok(())
}

impl<'a> Unpacker<'a> {
    /// Unpacks into `root`, which exists.
    pub fn new(root: PathBuf, mappings: &'a [Mapping], written: &'a mut Written) -> Self {
        Self {
            root,
            mappings,
            written,
            reader: ArchiveReader::new(),
            file: None,
        }
    }

    /// Takes the next bytes of the archive, however they are cut.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self {
            root,
            mappings,
            written,
            reader,
            file,
        } = self;
        reader.push(bytes, |item| match (item, &mut *file) {
            (ArchiveItem::Data(bytes), Some(file)) => file.write_all(bytes),
            (ArchiveItem::Data(_), None) => Err(invalid("data without a file")),
            (ArchiveItem::Member(member), _) => {
                *file = begin(root, mappings, written, member)?;
                Ok(())
            }
        })
    }

    /// The archive is over; it must not break off.
    pub fn finish(self) -> io::Result<()> {
        self.reader.finish()
    }
}

/// Makes a member; gives the file that data will follow for.
fn begin(
    root: &Path,
    mappings: &[Mapping],
    written: &mut Written,
    member: ArchiveMember,
) -> io::Result<Option<File>> {
    let (path, mode) = (root.join(&member.path), member.mode);
    match member.kind {
        MemberKind::File { .. } => {
            // A file that is there already, and a link, are never written to.
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)?;
            if mode & 0o077 != 0 {
                // What the archive grants to others is granted, whatever the umask says.
                file.set_permissions(Permissions::from_mode(mode))?;
            }
            written.file(path);
            Ok(Some(file))
        }
        MemberKind::Directory => {
            let modes = Modes {
                directory: mode,
                file: mode,
            };
            modes.create_dir(&path)?;
            written.directory(path);
            Ok(None)
        }
        MemberKind::Link { target } => {
            let is_tablespace = member.path.parent() == Some(Path::new("pg_tblspc"));
            if !is_tablespace || !target.is_absolute() {
                return Err(invalid(format!(
                    "{:?} is a link that is no tablespace",
                    member.path
                )));
            }
            symlink(mapped(mappings, &target), &path)?;
            Ok(None)
        }
    }
}

/// Where a tablespace shall be.
pub fn mapped(mappings: &[Mapping], from: &Path) -> PathBuf {
    let found = mappings.iter().find(|mapping| mapping.from == from);
    found.map_or_else(|| from.to_owned(), |mapping| mapping.to.clone())
}
