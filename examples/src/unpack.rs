//! Unpacking the archives of a base backup into a data directory: a tar reader that is fed, and that
//! writes nowhere but below the directories it was given.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

const BLOCK: usize = 512;

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

/// Where the next bytes of an archive belong.
#[derive(Debug)]
enum State {
    Header(Vec<u8>),
    File { file: File, left: u64, padding: u64 },
    Padding(u64),
}

/// One archive that is being unpacked.
#[derive(Debug)]
pub struct Unpacker<'a> {
    root: PathBuf,
    mappings: &'a [Mapping],
    written: &'a mut Written,
    links: BTreeSet<PathBuf>,
    state: State,
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
            links: BTreeSet::new(),
            state: State::Header(Vec::new()),
        }
    }

    /// Takes the next bytes of the archive, however they are cut.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header(header) => {
                    let take = (BLOCK - header.len()).min(bytes.len());
                    let (head, rest) = bytes.split_at(take);
                    header.extend_from_slice(head);
                    bytes = rest;
                    if header.len() == BLOCK {
                        let header = std::mem::take(header);
                        self.state = self.begin(&header)?;
                    }
                }
                State::File {
                    file,
                    left,
                    padding,
                } => {
                    let take = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    let (head, rest) = bytes.split_at(take);
                    file.write_all(head)?;
                    bytes = rest;
                    *left -= u64::try_from(take).unwrap_or(0);
                    if *left == 0 {
                        self.state = State::Padding(*padding);
                    }
                }
                State::Padding(left) => {
                    let take = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    bytes = bytes.split_at(take).1;
                    *left -= u64::try_from(take).unwrap_or(0);
                }
            }
            if matches!(self.state, State::Padding(0)) {
                self.state = State::Header(Vec::with_capacity(BLOCK));
            }
        }
        Ok(())
    }

    /// The archive is over; it must not break off.
    pub fn finish(self) -> io::Result<()> {
        match self.state {
            State::Header(header) if header.is_empty() => Ok(()),
            _ => Err(invalid("an archive breaks off")),
        }
    }

    /// Begins a member.
    fn begin(&mut self, header: &[u8]) -> io::Result<State> {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(State::Padding(0));
        }
        let text = |from: usize, to: usize| {
            let field = header.get(from..to).unwrap_or_default();
            let field = field.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8(field.to_vec()).map_err(|_| invalid("a name is not UTF-8"))
        };
        let name = text(0, 100)?;
        let mode = number(header.get(100..108).unwrap_or_default())? & 0o777;
        let mode = u32::try_from(mode).unwrap_or(0o600);
        let size = number(header.get(124..136).unwrap_or_default())?;
        let relative = self.safe(&name)?;
        let path = self.root.join(&relative);
        match header.get(156) {
            Some(0 | b'0') => {
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
                self.written.file(path);
                let padding = size.next_multiple_of(512) - size;
                Ok(match size {
                    0 => State::Padding(0),
                    left => State::File {
                        file,
                        left,
                        padding,
                    },
                })
            }
            Some(b'5') => {
                let modes = Modes {
                    directory: mode,
                    file: mode,
                };
                modes.create_dir(&path)?;
                self.written.directory(path);
                Ok(State::Padding(0))
            }
            Some(b'2') => {
                let target = PathBuf::from(text(157, 257)?);
                let is_tablespace = relative.parent() == Some(Path::new("pg_tblspc"));
                if !is_tablespace || !target.is_absolute() {
                    return Err(invalid(format!("{name} is a link that is no tablespace")));
                }
                symlink(mapped(self.mappings, &target), &path)?;
                self.links.insert(relative);
                Ok(State::Padding(0))
            }
            _ => Err(invalid(format!("{name} is no file, directory or link"))),
        }
    }

    /// The name as a path that stays below the root and goes through no link.
    fn safe(&self, name: &str) -> io::Result<PathBuf> {
        let mut path = PathBuf::new();
        for component in Path::new(name).components() {
            match component {
                Component::CurDir => {}
                Component::Normal(part) => path.push(part),
                _ => return Err(invalid(format!("{name:?} leads out of the archive"))),
            }
        }
        if path.as_os_str().is_empty() {
            return Err(invalid("a member without a name"));
        }
        if path.ancestors().any(|parent| self.links.contains(parent)) {
            return Err(invalid(format!("{name:?} goes through a link")));
        }
        Ok(path)
    }
}

/// Where a tablespace shall be.
pub fn mapped(mappings: &[Mapping], from: &Path) -> PathBuf {
    let found = mappings.iter().find(|mapping| mapping.from == from);
    found.map_or_else(|| from.to_owned(), |mapping| mapping.to.clone())
}

/// Octal digits, or base 256 for what they cannot say.
fn number(field: &[u8]) -> io::Result<u64> {
    let value = match field {
        [0x80, rest @ ..] => rest.iter().try_fold(0_u64, |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        }),
        _ => {
            let digits = field.iter().skip_while(|byte| **byte == b' ');
            digits
                .take_while(|byte| !matches!(**byte, 0 | b' '))
                .try_fold(0_u64, |sum, byte| {
                    let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
                    sum.checked_mul(8)?.checked_add(u64::from(digit))
                })
        }
    };
    value
        .filter(|value| *value <= 1 << 50)
        .ok_or_else(|| invalid("a header has no number"))
}
