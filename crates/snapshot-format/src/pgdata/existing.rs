//! A data directory that is there, to be compared with a snapshot and turned into it.
//!
//! It is walked as it is on disk, part by part from open directories, so that no link leads out of it. Before the
//! first change `global/pg_control` is removed, durably, and it comes back last: whatever stops the work between
//! leaves a directory that no server accepts.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use neon_pg_layout::{PgMajor, tablespace_version_directory};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};

use crate::error::{Error, ErrorKind, Result};
use crate::path::SnapshotPath;
use crate::pgdata::control::{has_file, read_up_to};
use crate::pgdata::place::{Root, Roots, empty_directory, failed, names};
use crate::pgdata::plan::{CONTROL, entry};
use crate::pgdata::write::DirectoryWriter;
use crate::pgdata::write_options::DirectoryOptions;
use crate::stream::{Entry, EntryKind};

/// A data directory that no server uses.
#[derive(Debug)]
pub struct ExistingDirectory {
    roots: Roots,
    entries: Vec<Entry>,
    /// What a tablespace has of a cluster of the version in question; the rest belongs to others.
    version_directory: Vec<u8>,
    /// The control file as it was when this was opened.
    control: Option<Vec<u8>>,
}

impl ExistingDirectory {
    /// Looks at everything that is there and may belong to a cluster of this major version. Links at `pg_wal` and of
    /// tablespaces are followed, others are listed as files of no bytes. Of a tablespace behind a link, which clusters
    /// of several versions may share, only the directory of this version is listed.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when a `postmaster.pid` is there; [`Io`](ErrorKind::Io).
    pub fn open(path: &Path, major: PgMajor) -> Result<Self> {
        let mut existing = Self {
            roots: Roots::new(Root::open(path)?),
            entries: Vec::new(),
            version_directory: tablespace_version_directory(major.layout()).into_bytes(),
            control: None,
        };
        existing.refuse_server()?;
        existing.control = existing.read_control()?;
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

    /// The control file as it was when this was opened; none when there was none, as after a restore that was
    /// interrupted.
    #[must_use]
    pub fn control(&self) -> Option<&[u8]> {
        self.control.as_deref()
    }

    /// A digest of which directory this is and what was seen in it: the control file, and each file's size and time. It
    /// is another one when a server ran on the directory, or it was changed otherwise.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        let stat = fstat(self.roots.data.fd())
            .map_err(|error| failed(&SnapshotPath::root(), "cannot be examined", error))?;
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(format!("{} {}", stat.st_dev, stat.st_ino).as_bytes());
        add(self.control.as_deref().unwrap_or_default());
        for entry in self.entries.iter().filter(|entry| entry.is_file()) {
            add(entry.path.as_bytes());
            add(&entry.size().to_le_bytes());
            add(&entry.modified.to_le_bytes());
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// Whether parts of a file can be written: it is there, can be opened for that, and has no second name.
    ///
    /// # Errors
    /// [`Unsafe`](ErrorKind::Unsafe) when it is no file or has another name; [`Io`](ErrorKind::Io).
    pub fn check_parts(&self, path: &SnapshotPath) -> Result<()> {
        let parent = path.parent().unwrap_or_else(SnapshotPath::root);
        open_parts(&self.roots.directory(&parent)?, path).map(drop)
    }

    /// Whether a tablespace that is not there could be made with these options.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when its place is not empty; [`Unsupported`](ErrorKind::Unsupported) when no place is
    /// known for it; [`Io`](ErrorKind::Io).
    pub fn check_place(&self, entry: &Entry, options: &DirectoryOptions) -> Result<()> {
        let EntryKind::Tablespace { oid, location } = &entry.kind else {
            return Ok(());
        };
        if self.entries.iter().any(|known| known.path == entry.path) {
            return Ok(());
        }
        let place = options
            .tablespaces
            .place(&entry.path, *oid, location.as_deref())?;
        match place {
            Some(place) if place.exists() => empty_directory(&place).map(drop),
            _ => Ok(()),
        }
    }

    /// Begins to change it. From now on no server accepts it, until the writer has got its end. No manifest is
    /// written. Tablespaces stay where they are, behind a link or not; the options say where new ones go.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when a `postmaster.pid` appeared or the control file changed since this
    /// was opened; [`Io`](ErrorKind::Io).
    pub fn change(self, options: DirectoryOptions) -> Result<DirectoryWriter> {
        self.refuse_server()?;
        if self.read_control()? != self.control {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                self.roots.data.path.display().to_string(),
                "the directory changed since it was compared; compare again",
            ));
        }
        DirectoryWriter::change(self.roots, options)
    }

    fn refuse_server(&self) -> Result<()> {
        if has_file(&self.roots.data, "postmaster.pid") {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                self.roots.data.path.display().to_string(),
                "has a postmaster.pid, so a server may run on it",
            ));
        }
        Ok(())
    }

    fn read_control(&self) -> Result<Option<Vec<u8>>> {
        let opened = match self.roots.open_file(&SnapshotPath::new(CONTROL)?) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            other => other?,
        };
        let Some((file, _)) = opened else {
            return Ok(None);
        };
        let mut bytes = vec![0; 64 << 10];
        let read = read_up_to(&file, &mut bytes, 0)
            .map_err(|error| Error::io(CONTROL, "cannot be read", error))?;
        bytes.truncate(read);
        Ok(Some(bytes))
    }

    fn list(&mut self, directory: &SnapshotPath, todo: &mut Vec<SnapshotPath>) -> Result<()> {
        let fd = self.roots.directory(directory)?;
        let shared = directory.tablespace().is_some_and(|(oid, rest)| {
            rest.is_empty() && self.roots.tablespaces.contains_key(&oid)
        });
        for name in names(&fd).map_err(|error| failed(directory, "cannot be listed", error))? {
            // Another cluster's.
            if shared && name != self.version_directory {
                continue;
            }
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
        directory: &OwnedFd,
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

/// Opens a file to write parts of it.
pub(crate) fn open_parts(directory: &OwnedFd, path: &SnapshotPath) -> Result<OwnedFd> {
    let fail = |error| failed(path, "cannot be opened", error);
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = openat(directory, path.name(), flags, Mode::empty()).map_err(fail)?;
    let stat = fstat(&fd).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink > 1 {
        return Err(Error::new(
            ErrorKind::Unsafe,
            path.to_string(),
            "not a file of its own: what is written to it would be written elsewhere too",
        ));
    }
    Ok(fd)
}
