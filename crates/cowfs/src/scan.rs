//! What a source consists of: the data directory, and what its known links lead to.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::fill::changed;
use crate::options::{CloneOptions, Links, Watch};
use crate::place::{self, Facts};
use crate::probe::open_sample;

/// A part of a cluster that has a directory of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The data directory, with everything that does not lie behind a link.
    Data,
    /// The log, where it lies apart in the source or in the clone.
    Wal,
    /// The tablespace of this oid.
    Tablespace(u32),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data => f.write_str("data directory"),
            Self::Wal => f.write_str("log directory"),
            Self::Tablespace(oid) => write!(f, "tablespace {oid}"),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Folder {
    /// Relative to the part; empty for its top.
    pub(crate) path: PathBuf,
    pub(crate) facts: Facts,
}

#[derive(Debug)]
pub(crate) struct FileEntry {
    /// Its folder, as a number of [`Tree::folders`].
    pub(crate) folder: usize,
    pub(crate) name: OsString,
    pub(crate) facts: Facts,
}

#[derive(Debug)]
pub(crate) struct KeptLink {
    pub(crate) path: PathBuf,
    pub(crate) text: OsString,
    pub(crate) facts: Facts,
}

/// One part, listed.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) part: Part,
    pub(crate) fd: OwnedFd,
    /// Where it is, for messages.
    pub(crate) path: PathBuf,
    /// Parents before children.
    pub(crate) folders: Vec<Folder>,
    /// Those of one folder together.
    pub(crate) files: Vec<FileEntry>,
    pub(crate) links: Vec<KeptLink>,
    /// What a snapshot of the whole would hold too much, relative to the part.
    pub(crate) left_out: Vec<PathBuf>,
    /// Sockets, as paths relative to the data directory.
    pub(crate) sockets: Vec<PathBuf>,
    /// Something inside that lies in another subvolume or file system.
    pub(crate) nested: Option<PathBuf>,
    pub(crate) bytes: u64,
    /// Bytes of blocks.
    pub(crate) allocated: u64,
    pub(crate) hard_links: u64,
    /// A file of each file system or subvolume.
    pub(crate) samples: Vec<File>,
    /// The log lies apart, in the source or in the clone.
    pub(crate) wal_apart: bool,
    /// Tablespaces that are links.
    pub(crate) tablespaces: Vec<u32>,
}

impl Tree {
    /// Path relative to the data directory of the cluster.
    pub(crate) fn logical(&self, path: &Path) -> PathBuf {
        logical(self.part, path)
    }

    pub(crate) fn folder(&self, file: &FileEntry) -> &Path {
        self.folders
            .get(file.folder)
            .map_or(Path::new(""), |folder| &folder.path)
    }

    /// Lists what is below an open directory.
    pub(crate) fn list(
        part: Part,
        fd: OwnedFd,
        path: &Path,
        options: &CloneOptions,
        watch: &Watch<'_>,
    ) -> Result<Self> {
        let top = fstat(&fd).map_err(|error| Error::io(path, "cannot be looked at", error))?;
        let mut tree = Self {
            part,
            fd,
            path: path.to_owned(),
            folders: vec![Folder {
                path: PathBuf::new(),
                facts: Facts::of(&top),
            }],
            files: Vec::new(),
            links: Vec::new(),
            left_out: Vec::new(),
            sockets: Vec::new(),
            nested: None,
            bytes: 0,
            allocated: 0,
            hard_links: 0,
            samples: Vec::new(),
            wal_apart: false,
            tablespaces: Vec::new(),
        };
        let mut sampled = BTreeSet::new();
        let mut at = 0;
        while let Some(folder) = tree.folders.get(at) {
            watch.check()?;
            let relative = folder.path.clone();
            let shown = tree.path.join(&relative);
            let failed = |error| match error {
                Errno::NOENT => changed(&shown),
                other => Error::io(&shown, "cannot be listed", other),
            };
            let directory = place::below(&tree.fd, &relative).map_err(failed)?;
            if at > 0 && tree.nested.is_none() && place::is_mount(&directory) == Some(true) {
                tree.nested = Some(shown.clone());
            }
            for name in place::names(&directory).map_err(failed)? {
                let stat = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                let before = tree.files.len();
                tree.entry(at, &directory, &relative, &name, &stat, options)?;
                if tree.files.len() > before
                    && !sampled.contains(&stat.st_dev)
                    && let Some(file) = open_sample(&directory, &name)
                {
                    sampled.insert(stat.st_dev);
                    tree.samples.push(file);
                }
            }
            at += 1;
        }
        Ok(tree)
    }

    fn entry(
        &mut self,
        folder: usize,
        directory: &OwnedFd,
        relative: &Path,
        name: &OsStr,
        stat: &Stat,
        options: &CloneOptions,
    ) -> Result<()> {
        let path = relative.join(name);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if options.excludes(&self.logical(&path)) {
            self.left_out.push(path);
            return Ok(());
        }
        if self.part == Part::Data && self.is_known(&path, kind, options) {
            self.left_out.push(path);
            return Ok(());
        }
        let refuse = |reason: &'static str| {
            Err(Error::new(ErrorKind::Unsafe, self.path.join(&path), reason))
        };
        match kind {
            FileType::Directory => {
                let facts = Facts::of(stat);
                let above = self.folders.first().map(|top| top.facts.device);
                if above != Some(facts.device) && self.nested.is_none() {
                    self.nested = Some(self.path.join(&path));
                }
                self.folders.push(Folder { path, facts });
            }
            FileType::RegularFile => {
                let facts = Facts::of(stat);
                self.bytes += facts.size;
                self.allocated += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                self.hard_links += u64::from(stat.st_nlink > 1);
                self.files.push(FileEntry {
                    folder,
                    name: name.to_owned(),
                    facts,
                });
            }
            FileType::Symlink => {
                if options.links == Links::Refuse {
                    return refuse("is a link that is not one of PostgreSQL's own");
                }
                use std::os::unix::ffi::OsStringExt;
                let text = readlinkat(directory, name, Vec::new()).map_err(|error| {
                    Error::io(self.path.join(&path), "cannot be read as a link", error)
                })?;
                self.links.push(KeptLink {
                    path,
                    text: OsString::from_vec(text.into_bytes()),
                    facts: Facts::of(stat),
                });
            }
            FileType::Socket => {
                self.sockets.push(self.logical(&path));
                self.left_out.push(path);
            }
            _ => return refuse("is a device or a pipe, which no data directory has"),
        }
        Ok(())
    }

    /// What is not cloned as it stands: files of a server process, and the links that are made anew.
    fn is_known(&mut self, path: &Path, kind: FileType, options: &CloneOptions) -> bool {
        if path == "postmaster.pid" || path == "postmaster.opts" {
            return kind == FileType::RegularFile;
        }
        if path == "pg_wal" {
            self.wal_apart = kind == FileType::Symlink || options.wal_directory.is_some();
            return self.wal_apart;
        }
        let oid = path
            .strip_prefix("pg_tblspc")
            .ok()
            .and_then(|rest| rest.to_str()?.parse().ok());
        if let (Some(oid), FileType::Symlink) = (oid, kind) {
            self.tablespaces.push(oid);
            return true;
        }
        false
    }
}

fn logical(part: Part, path: &Path) -> PathBuf {
    match part {
        Part::Data => path.to_owned(),
        Part::Wal => Path::new("pg_wal").join(path),
        Part::Tablespace(oid) => Path::new("pg_tblspc").join(oid.to_string()).join(path),
    }
}

/// Lists the source: the data directory first, then what lies apart.
pub(crate) fn scan(source: &Path, options: &CloneOptions, watch: &Watch<'_>) -> Result<Vec<Tree>> {
    let fd = place::root(source).map_err(|error| Error::io(source, "cannot be opened", error))?;
    let data = Tree::list(Part::Data, fd, source, options, watch)?;
    let mut apart = Vec::new();
    if data.wal_apart {
        apart.push((Part::Wal, PathBuf::from("pg_wal")));
    }
    for oid in &data.tablespaces {
        let part = Part::Tablespace(*oid);
        apart.push((part, logical(part, Path::new(""))));
    }
    let mut trees = vec![data];
    for (part, link) in apart {
        let Some(data) = trees.first() else { break };
        let path = source.join(&link);
        let failed = |error| Error::io(&path, "leads to what cannot be opened", error);
        let parent = link.parent().unwrap_or(Path::new(""));
        let directory = place::below(&data.fd, parent).map_err(failed)?;
        let name = link.file_name().unwrap_or(OsStr::new("."));
        let fd = place::follow(&directory, name).map_err(failed)?;
        let real = std::fs::canonicalize(&path).map_err(failed_io(&path))?;
        trees.push(Tree::list(part, fd, &real, options, watch)?);
    }
    Ok(trees)
}

fn failed_io(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |error| Error::io(path, "cannot be resolved", error)
}
