//! Walking a data directory: what is there, by the rules of the kind of snapshot.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use neon_pg_layout::{DataFile, Fork, VersionLayout, tablespace_version_directory};
use rustix::fs::{AtFlags, FileType, Stat, fstat, readlinkat, statat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::kind::SnapshotKind;
use crate::path::{SnapshotPath, oid};
use crate::pgdata::place::{Root, Roots, failed, names};
use crate::pgdata::rules::{EMPTIED, Subject, WalNeeded, excluded, holds_data};
use crate::start_up::StartUpRank;
use crate::stream::{Entry, EntryKind, Owner, Skipped};

/// What is to be copied.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Directories and tablespaces, each after the one that holds it.
    pub(crate) directories: Vec<Entry>,
    /// Files in the order of their start-up rank, then by path; without the control file.
    pub(crate) files: Vec<Entry>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) roots: Roots,
}

/// The control file, which is copied last.
pub(crate) const CONTROL: &str = "global/pg_control";

pub(crate) fn walk(
    data: Root,
    kind: SnapshotKind,
    layout: &VersionLayout,
    wal: &WalNeeded,
) -> Result<Plan> {
    let stat = fstat(data.fd())
        .map_err(|error| Error::io(data.path.display().to_string(), "cannot be examined", error))?;
    let mut walk = Walk {
        kind,
        layout,
        wal,
        version_directory: tablespace_version_directory(layout).into_bytes(),
        plan: Plan {
            directories: vec![entry(SnapshotPath::root(), EntryKind::Directory, &stat)],
            files: Vec::new(),
            skipped: Vec::new(),
            roots: Roots::new(data),
        },
        todo: vec![SnapshotPath::root()],
    };
    while let Some(directory) = walk.todo.pop() {
        walk.directory(&directory)?;
    }
    let mut plan = walk.plan;
    plan.directories.sort_by(|a, b| a.path.cmp(&b.path));
    plan.files
        .sort_by_cached_key(|entry| (StartUpRank::of(&entry.path), entry.path.clone()));
    plan.skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(plan)
}

pub(crate) fn entry(path: SnapshotPath, kind: EntryKind, stat: &Stat) -> Entry {
    Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        owner: Some(Owner {
            uid: stat.st_uid,
            gid: stat.st_gid,
        }),
        modified: stat.st_mtime,
    }
}

struct Walk<'a> {
    kind: SnapshotKind,
    layout: &'a VersionLayout,
    wal: &'a WalNeeded,
    version_directory: Vec<u8>,
    plan: Plan,
    todo: Vec<SnapshotPath>,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &SnapshotPath) -> Result<()> {
        let fd = match self.plan.roots.directory(directory) {
            Ok(fd) => fd,
            // A database that was dropped since its parent was read.
            Err(error)
                if error.kind() == crate::ErrorKind::NotFound && self.kind.is_bracketed() =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let names = names(&fd).map_err(|error| failed(directory, "cannot be listed", error))?;
        let mut unlogged = BTreeSet::new();
        for name in &names {
            if let Some((number, Fork::Init)) = self.relation(&directory.join(name)?) {
                unlogged.insert(number);
            }
        }
        let tablespace_root = directory
            .tablespace()
            .is_some_and(|(_, inside)| inside.is_empty());
        for name in names {
            let path = directory.join(&name)?;
            if tablespace_root && name != self.version_directory {
                continue;
            }
            let stat = match statat(&fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed(&path, "cannot be examined", error)),
            };
            let of_unlogged = self
                .relation(&path)
                .is_some_and(|(number, _)| unlogged.contains(&number));
            if self.left_out(&path, of_unlogged) {
                continue;
            }
            self.add(path, &stat)?;
        }
        Ok(())
    }

    fn relation(&self, path: &SnapshotPath) -> Option<(u32, Fork)> {
        match DataFile::of(path.as_str()?, self.layout) {
            DataFile::Relation(relation) => Some((relation.locator.number, relation.fork)),
            _ => None,
        }
    }

    fn left_out(&self, path: &SnapshotPath, unlogged: bool) -> bool {
        path.as_str().is_some_and(|path| {
            let file = DataFile::of(path, self.layout);
            let subject = Subject {
                path,
                file,
                unlogged,
                wal: self.wal,
            };
            excluded(self.kind, &subject).is_some()
        })
    }

    fn add(&mut self, path: SnapshotPath, stat: &Stat) -> Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.plan
                    .directories
                    .push(entry(path.clone(), EntryKind::Directory, stat));
                self.todo.push(path);
            }
            FileType::RegularFile if path.as_bytes() == CONTROL.as_bytes() => {}
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                self.plan
                    .files
                    .push(entry(path, EntryKind::File { size }, stat));
            }
            FileType::Symlink => return self.link(path, stat),
            FileType::Socket => self.skip(path, "a socket"),
            FileType::Fifo => self.skip(path, "a FIFO"),
            _ => self.skip(path, "a device"),
        }
        Ok(())
    }

    fn skip(&mut self, path: SnapshotPath, reason: &'static str) {
        self.plan.skipped.push(Skipped { path, reason });
    }

    fn link(&mut self, path: SnapshotPath, stat: &Stat) -> Result<()> {
        if EMPTIED
            .iter()
            .any(|directory| path.as_bytes() == directory.as_bytes())
        {
            let mut entry = entry(path, EntryKind::Directory, stat);
            entry.mode = 0o700;
            self.plan.directories.push(entry);
            return Ok(());
        }
        let tablespace = path.as_bytes().strip_prefix(b"pg_tblspc/").and_then(oid);
        if tablespace.is_none() && path.as_bytes() != b"pg_wal" {
            if holds_data(&path) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    path.to_string(),
                    "is a symbolic link, which is not followed: data would be missing",
                ));
            }
            self.skip(path, "a symbolic link");
            return Ok(());
        }
        let Some(target) = self.target(&path)? else {
            // The tablespace was dropped.
            return Ok(());
        };
        // Relative to the directory of the link, as the operating system has it.
        let base = match tablespace {
            Some(_) => self.plan.roots.data.path.join("pg_tblspc"),
            None => self.plan.roots.data.path.clone(),
        };
        let root = match Root::open(&base.join(Path::new(OsStr::from_bytes(&target)))) {
            Err(_) if self.target(&path)?.is_none() => return Ok(()),
            root => root?,
        };
        let inside =
            fstat(root.fd()).map_err(|error| failed(&path, "cannot be examined", error))?;
        let kind = if let Some(oid) = tablespace {
            self.plan.roots.tablespaces.insert(oid, root);
            EntryKind::Tablespace {
                oid,
                location: Some(target),
            }
        } else {
            self.plan.roots.wal = Some(root);
            EntryKind::Directory
        };
        self.plan
            .directories
            .push(entry(path.clone(), kind, &inside));
        self.todo.push(path);
        Ok(())
    }

    /// What a link leads to; nothing when it is gone.
    fn target(&self, path: &SnapshotPath) -> Result<Option<Vec<u8>>> {
        let (root, rest) = self.plan.roots.resolve(path);
        match readlinkat(root.fd(), rest, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed(path, "cannot be read", error)),
        }
    }
}
