//! A data directory that is there, to be compared with a snapshot and turned into it.
//!
//! It is walked as it is on disk, part by part from open directories, so that no link leads out of it. Before the
//! first change `global/pg_control` is removed, durably, and it comes back last: whatever stops the work between
//! leaves a directory that no server accepts.

use std::fs::File;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, fstat, readlinkat, statat};

use crate::error::{Error, ErrorKind, Result};
use crate::path::SnapshotPath;
use crate::pgdata::control::has_file;
use crate::pgdata::place::{Root, Roots, failed, names};
use crate::pgdata::plan::entry;
use crate::pgdata::write::DirectoryWriter;
use crate::pgdata::write_options::DirectoryOptions;
use crate::stream::{Entry, EntryKind};

/// A data directory that no server uses.
#[derive(Debug)]
pub struct ExistingDirectory {
    roots: Roots,
    entries: Vec<Entry>,
}

impl ExistingDirectory {
    /// Looks at everything that is there. Links at `pg_wal` and of tablespaces are followed, others are listed as
    /// files of no bytes.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when a `postmaster.pid` is there; [`Io`](ErrorKind::Io).
    pub fn open(path: &Path) -> Result<Self> {
        let mut existing = Self {
            roots: Roots::new(Root::open(path)?),
            entries: Vec::new(),
        };
        if has_file(&existing.roots.data, "postmaster.pid") {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                path.display().to_string(),
                "has a postmaster.pid, so a server may run on it",
            ));
        }
        let root = SnapshotPath::root();
        let stat = fstat(existing.roots.data.fd())
            .map_err(|error| failed(&root, "cannot be examined", error))?;
        existing
            .entries
            .push(entry(root.clone(), EntryKind::Directory, &stat));
        let mut todo = vec![root];
        while let Some(directory) = todo.pop() {
            existing.list(&directory, &mut todo)?;
        }
        existing.entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(existing)
    }

    /// What is there, by path.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Opens a file to read; none when there is none.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) for what is no file; [`Io`](ErrorKind::Io).
    pub fn file(&self, path: &SnapshotPath) -> Result<Option<File>> {
        Ok(self.roots.open_file(path)?.map(|(file, _)| file))
    }

    /// Begins to change it. From now on no server accepts it, until the writer has got its end. No manifest is
    /// written. Tablespaces stay where they are; the options say where new ones go.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub fn change(self, options: DirectoryOptions) -> Result<DirectoryWriter> {
        DirectoryWriter::change(self.roots, options)
    }

    fn list(&mut self, directory: &SnapshotPath, todo: &mut Vec<SnapshotPath>) -> Result<()> {
        let fd = self.roots.directory(directory)?;
        for name in names(&fd).map_err(|error| failed(directory, "cannot be listed", error))? {
            let path = directory.join(&name)?;
            let stat = statat(&fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| failed(&path, "cannot be examined", error))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    self.entries
                        .push(entry(path.clone(), EntryKind::Directory, &stat));
                    todo.push(path);
                }
                FileType::Symlink => {
                    let tablespace = path.tablespace().filter(|(_, rest)| rest.is_empty());
                    let kind = match tablespace {
                        None if path.as_bytes() != b"pg_wal" => EntryKind::File { size: 0 },
                        which => self.follow(&path, &fd, &name, which.map(|(oid, _)| oid))?,
                    };
                    if !matches!(kind, EntryKind::File { .. }) {
                        todo.push(path.clone());
                    }
                    self.entries.push(entry(path, kind, &stat));
                }
                _ => {
                    let size = u64::try_from(stat.st_size).unwrap_or(0);
                    self.entries
                        .push(entry(path, EntryKind::File { size }, &stat));
                }
            }
        }
        Ok(())
    }

    fn follow(
        &mut self,
        path: &SnapshotPath,
        directory: &std::os::fd::OwnedFd,
        name: &[u8],
        tablespace: Option<neon_pg_layout::Oid>,
    ) -> Result<EntryKind> {
        use std::os::unix::ffi::OsStrExt;
        let target = readlinkat(directory, name, Vec::new())
            .map_err(|error| failed(path, "cannot be read", error))?
            .into_bytes();
        let base = match tablespace {
            Some(_) => self.roots.data.path.join("pg_tblspc"),
            None => self.roots.data.path.clone(),
        };
        let root = Root::open(&base.join(Path::new(std::ffi::OsStr::from_bytes(&target))))?;
        Ok(match tablespace {
            Some(oid) => {
                self.roots.tablespaces.insert(oid, root);
                EntryKind::Tablespace {
                    oid,
                    location: Some(target),
                }
            }
            None => {
                self.roots.wal = Some(root);
                EntryKind::Directory
            }
        })
    }
}
