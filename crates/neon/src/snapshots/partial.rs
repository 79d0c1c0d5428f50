//! Names under which an export is written before it gets its own: `.NAME-<id>.partial`, beside it.
//!
//! Who writes holds a lock on what has the name, which goes with the process. So what a killed export left is told
//! from what another one writes, and the next export to the same path removes it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::home::random_id;
use crate::record::{claimed, sweep_left};

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
        sweep(to);
        let name = || Ok(to.with_file_name(format!("{}{}{ENDING}", beginning(to), random_id()?)));
        let (path, lock) = claimed(to, name, make, |path| File::open(path))?;
        Ok(Self { path, _lock: lock })
    }
}

/// What such names begin with.
fn beginning(to: &Path) -> String {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}-")
}

/// Removes what killed exports to this path left.
fn sweep(to: &Path) {
    let beginning = beginning(to);
    if let Some(parent) = to.parent() {
        sweep_left(parent, |name| {
            name.strip_prefix(&*beginning)?.strip_suffix(ENDING)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
