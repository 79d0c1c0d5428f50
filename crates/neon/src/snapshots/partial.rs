//! Names under which an export is written before it gets its own: `.NAME-<id>.partial`, beside it.
//!
//! Who writes holds a lock on what has the name, which goes with the process. So what a killed export left is told
//! from what another one writes, and the next export to the same path removes it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};
use crate::home::random_id;
use crate::record::held_if_free;

const ENDING: &str = ".partial";

/// A file or folder under such a name, ours as long as this lives.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    _lock: File,
}

impl Partial {
    /// An empty file, for nobody else to read.
    pub(super) fn file(to: &Path) -> Result<Self> {
        Self::make(to, |path| {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options.open(path).map(drop)
        })
    }

    /// An empty folder, for nobody else to read.
    pub(super) fn folder(to: &Path) -> Result<Self> {
        Self::make(to, |path| DirBuilder::new().mode(0o700).create(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn make(to: &Path, make: impl Fn(&Path) -> io::Result<()>) -> Result<Self> {
        let failed = |error| Error::io(to, "cannot be written", error);
        sweep(to);
        loop {
            let path = to.with_file_name(format!("{}{}{ENDING}", beginning(to), random_id()?));
            make(&path).map_err(failed)?;
            let lock = match File::open(&path) {
                // Swept before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(failed)?,
            };
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|error| failed(io::Error::from(error)))?;
            // Who sweeps may have taken it for a left one before it was locked.
            let ours = lock.metadata().map_err(failed)?;
            if fs::symlink_metadata(&path).is_ok_and(|now| now.ino() == ours.ino()) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

/// What such names begin with.
fn beginning(to: &Path) -> String {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}-")
}

/// Removes what killed exports to this path left. What cannot be removed is in nobody's way.
fn sweep(to: &Path) {
    let (Some(parent), beginning) = (to.parent(), beginning(to)) else {
        return;
    };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_prefix(&*beginning)?.strip_suffix(ENDING));
        let ours =
            id.is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let path = entry.path();
        if !ours {
            continue;
        }
        let Some(_held) = held_if_free(&path) else {
            continue;
        };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => drop(fs::remove_dir_all(&path)),
            Ok(kind) if kind.is_file() => drop(fs::remove_file(&path)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_writes_any_more_goes_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("a.neon");
        let writing = Partial::file(&to).unwrap();
        let left = [Partial::file(&to).unwrap(), Partial::folder(&to).unwrap()];
        let left = left.map(|left| left.path().to_owned());
        let other = Partial::file(&folder.path().join("b.neon")).unwrap().path;
        let theirs = folder.path().join(".a.neon-notes.partial");
        fs::write(&theirs, "").unwrap();
        drop(Partial::folder(&to).unwrap());
        let there = left.iter().filter(|path| path.exists()).count();
        assert_eq!(there, 0);
        assert!(writing.path().exists() && other.exists() && theirs.exists());
    }
}
