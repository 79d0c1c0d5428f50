//! Byte copies of data directories.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use neon_pg_layout::PgMajor;

use crate::os_user::OsUser;
use crate::scratch::Scratch;

/// Name of a data directory inside its scratch folder.
pub(crate) const DATA: &str = "data";
/// Name of the folder of tablespaces inside a scratch folder.
pub(crate) const TABLESPACES: &str = "tablespaces";

/// A copy of a stopped cluster's data directory with its tablespaces, in a scratch folder of its own.
#[derive(Debug)]
pub struct DataDirCopy {
    pub(crate) scratch: Scratch,
    pub(crate) major: PgMajor,
}

impl DataDirCopy {
    /// Copies the data directory `from` and every tablespace that its `pg_tblspc` links to.
    pub(crate) fn take(from: &Path, major: PgMajor) -> Self {
        let copy = Self {
            scratch: Scratch::new(),
            major,
        };
        let user = OsUser::current();
        copy_tree(from, &copy.path(), user);
        let tablespaces = copy.scratch.path().join(TABLESPACES);
        user.create_dir(&tablespaces);
        for entry in fs::read_dir(from.join("pg_tblspc")).expect("a data directory") {
            let entry = entry.expect("a data directory");
            if !entry.file_type().expect("a data directory").is_symlink() {
                continue;
            }
            let inside = tablespaces.join(entry.file_name());
            copy_tree(&fs::read_link(entry.path()).expect("a link"), &inside, user);
            let link = copy.path().join("pg_tblspc").join(entry.file_name());
            fs::remove_file(&link).expect("our own copy");
            symlink(&inside, &link).expect("our own copy");
            user.own(&link);
        }
        copy
    }

    /// The copied data directory. Links in its `pg_tblspc` lead to the copied tablespaces.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join(DATA)
    }

    /// The major version of the cluster it was taken of.
    #[must_use]
    pub fn major(&self) -> PgMajor {
        self.major
    }

    /// Every regular file of the copy, tablespaces included, as a path relative to the data
    /// directory (`pg_tblspc/16400/PG_15_202209061/5/16401`), sorted.
    ///
    /// # Panics
    /// When the copy cannot be read.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(self.path().join(&folder)).expect("our own copy") {
                let path = folder.join(entry.expect("our own copy").file_name());
                // Follows the links of tablespaces.
                if fs::metadata(self.path().join(&path))
                    .expect("our own copy")
                    .is_dir()
                {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }
}

/// Copies a folder with the modes of its files; symbolic links are copied as links. `to` and all in
/// it belong to `user`.
pub(crate) fn copy_tree(from: &Path, to: &Path, user: &OsUser) {
    let fail = |error: std::io::Error| -> ! {
        panic!("copying {} to {}: {error}", from.display(), to.display())
    };
    fs::create_dir(to).unwrap_or_else(|error| fail(error));
    for entry in fs::read_dir(from).unwrap_or_else(|error| fail(error)) {
        let entry = entry.unwrap_or_else(|error| fail(error));
        let kind = entry.file_type().unwrap_or_else(|error| fail(error));
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_tree(&entry.path(), &target, user);
        } else if kind.is_symlink() {
            symlink(
                fs::read_link(entry.path()).unwrap_or_else(|error| fail(error)),
                &target,
            )
            .unwrap_or_else(|error| fail(error));
            user.own(&target);
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).unwrap_or_else(|error| fail(error));
            user.own(&target);
        }
    }
    let mode = fs::metadata(from)
        .unwrap_or_else(|error| fail(error))
        .permissions()
        .mode();
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap_or_else(|error| fail(error));
    user.own(to);
}
