//! Data directories as trees of files, to compare a copy with its source.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::os_user::OsUser;

/// Files and directories by their path: mode, and content of files.
pub type Tree = BTreeMap<String, (u32, Option<Vec<u8>>)>;

/// Every file and directory below a data directory; links of tablespaces and of the log are followed.
pub fn tree(data: &Path) -> Tree {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(data.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let full = data.join(&path);
            let facts = fs::metadata(&full).unwrap();
            let name = path.to_str().unwrap().to_owned();
            let mode = facts.permissions().mode() & 0o7777;
            if facts.is_dir() {
                found.insert(name, (mode, None));
                folders.push(path);
            } else if facts.is_file() {
                found.insert(name, (mode, Some(fs::read(full).unwrap())));
            }
        }
    }
    found
}

/// What a copy of a stopped cluster may lack, written down apart from any copier's own table.
pub fn cold_copy_may_lack(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap();
    let below = |directory: &str| path.starts_with(&format!("{directory}/"));
    path == "postmaster.opts"
        || name.starts_with("pg_internal.init")
        || path.split('/').any(|part| part.starts_with("pgsql_tmp"))
        || [
            "pg_stat_tmp",
            "pg_notify",
            "pg_subtrans",
            "pg_serial",
            "pg_snapshots",
            "pg_dynshmem",
            "pg_replslot",
        ]
        .into_iter()
        .any(below)
        || below("pg_wal/summaries")
        || (below("pg_wal") && name.len() == 24)
        || (below("pg_wal/archive_status") && name.len() > 24)
}

/// Panics unless a copy of a stopped cluster, with a manifest, is what its source is, but for what it may lack. Returns
/// the paths that both have.
pub fn assert_cold_copy(source: &Path, copy: &Path) -> Vec<String> {
    let (source, mut copy) = (tree(source), tree(copy));
    copy.remove("backup_manifest")
        .expect("a manifest is written");
    let mut both = Vec::new();
    for (path, facts) in source {
        match copy.remove(&path) {
            Some(copied) => {
                assert!(copied == facts, "{path} differs");
                both.push(path);
            }
            None => assert!(cold_copy_may_lack(&path), "{path} is missing"),
        }
    }
    assert!(copy.is_empty(), "not in the source: {:?}", copy.keys());
    both
}

/// Gives a file, or all of a directory, to the user that servers run as.
pub fn own_all(path: &Path) {
    OsUser::current().own(path);
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            own_all(&entry.unwrap().path());
        }
    }
}
