//! A source with something of everything, and comparing trees.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use neon_cowfs::{CloneOptions, Method, Wanted};

pub(crate) fn only(method: Method) -> CloneOptions {
    CloneOptions::new().wanted(Wanted::Only(method))
}

/// Files of [`make_source`] that are cloned.
pub(crate) const FILES: u64 = 208;

/// A tree that looks like a data directory as far as clones care. `at` must be there and empty, or not be there.
pub(crate) fn make_source(at: &Path) {
    if !at.exists() {
        fs::create_dir(at).unwrap();
    }
    for folder in [
        "global",
        "base/1",
        "base/5",
        "pg_wal/archive_status",
        "pg_tblspc/16500/5",
        "empty",
    ] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    fs::write(at.join("PG_VERSION"), "16\n").unwrap();
    fs::write(at.join("postmaster.pid"), "1\n").unwrap();
    fs::write(at.join("postmaster.opts"), "postgres\n").unwrap();
    fs::write(at.join("empty/nothing"), "").unwrap();
    fs::write(at.join("global/pg_control"), vec![7; 8192]).unwrap();
    fs::write(at.join("pg_tblspc/16500/5/200"), vec![9; 8192]).unwrap();
    for number in 0..200u32 {
        let bytes: Vec<u8> = (0..8192u32).map(|i| (i ^ number) as u8).collect();
        fs::write(at.join(format!("base/1/{number}")), bytes).unwrap();
    }
    let large: Vec<u8> = (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(at.join("base/5/large"), &large).unwrap();
    let sparse = File::create(at.join("base/5/sparse")).unwrap();
    sparse.set_len(32 << 20).unwrap();
    sparse.write_all_at(&[1; 8192], 4 << 20).unwrap();
    sparse.write_all_at(&[2; 8192], 20 << 20).unwrap();
    fs::write(at.join("pg_wal/000000010000000000000001"), vec![3; 1 << 20]).unwrap();
    fs::write(
        at.join("pg_wal/archive_status/000000010000000000000001.done"),
        "",
    )
    .unwrap();
    fs::set_permissions(
        at.join("global/pg_control"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    for (path, mode) in [("base/5", 0o700), ("global", 0o750), ("", 0o700)] {
        fs::set_permissions(at.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (number, path) in ["PG_VERSION", "base/5/large", "base/5", "empty"]
        .iter()
        .enumerate()
    {
        let time = UNIX_EPOCH + Duration::new(1_600_000_000 + number as u64, 123_456_789);
        let times = FileTimes::new().set_accessed(time).set_modified(time);
        File::open(at.join(path)).unwrap().set_times(times).unwrap();
    }
}

/// Moves the log and a tablespace out of the source, behind links. Returns where they are.
pub(crate) fn move_apart(source: &Path, to: &Path) -> (PathBuf, PathBuf) {
    let (wal, space) = (to.join("log-of-source"), to.join("space-of-source"));
    // Perhaps to another file system.
    let moved = std::process::Command::new("mv")
        .arg(source.join("pg_wal"))
        .arg(&wal)
        .status()
        .unwrap();
    assert!(moved.success());
    symlink(&wal, source.join("pg_wal")).unwrap();
    fs::create_dir_all(space.join("PG_16_202307071/5")).unwrap();
    fs::write(space.join("PG_16_202307071/5/300"), vec![4; 65536]).unwrap();
    symlink(&space, source.join("pg_tblspc/16400")).unwrap();
    (wal, space)
}

/// Mode, user, group, time of change and content; of a link its text.
type Facts = (u32, u32, u32, (i64, i64), Vec<u8>);

/// What a tree holds below a path: mode, owner, time and content of each entry. Links are not followed.
pub(crate) fn tree(at: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = at.join(&folder);
        found.insert(folder.clone(), facts(&path, Vec::new()));
        for entry in fs::read_dir(&path).unwrap() {
            let name = folder.join(entry.unwrap().file_name());
            let kind = fs::symlink_metadata(at.join(&name)).unwrap();
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file() {
                let content = fs::read(at.join(&name)).unwrap();
                found.insert(name.clone(), facts(&at.join(&name), content));
            } else if kind.is_symlink() {
                let text = fs::read_link(at.join(&name)).unwrap();
                let text = text.into_os_string().into_encoded_bytes();
                found.insert(name, (0, kind.uid(), kind.gid(), (0, 0), text));
            }
        }
    }
    found
}

fn facts(path: &Path, content: Vec<u8>) -> Facts {
    let meta = fs::symlink_metadata(path).unwrap();
    let time = (meta.mtime(), meta.mtime_nsec());
    (meta.mode() & 0o7777, meta.uid(), meta.gid(), time, content)
}

/// That the clone equals its source but for what is never cloned. Folders those lay in keep their times too.
pub(crate) fn assert_equal(source: &Path, clone: &Path) {
    let mut expected = tree(source);
    expected.remove(Path::new("postmaster.pid"));
    expected.remove(Path::new("postmaster.opts"));
    let found = tree(clone);
    for (path, facts) in &expected {
        let clone = found
            .get(path)
            .unwrap_or_else(|| panic!("{} is missing", path.display()));
        assert!(
            clone == facts,
            "{}: {:?} is not {:?}",
            path.display(),
            about(clone),
            about(facts)
        );
    }
    let more: Vec<_> = found
        .keys()
        .filter(|path| !expected.contains_key(*path))
        .collect();
    assert!(more.is_empty(), "not in the source: {more:?}");
}

fn about(facts: &Facts) -> impl std::fmt::Debug {
    (facts.0, facts.1, facts.2, facts.3, facts.4.len())
}

/// Names in a folder that clones, removals or probes left.
pub(crate) fn rubbish(folder: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    names
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(".neon-")
        })
        .collect()
}

/// This program again, for one test of it.
pub(crate) fn this_test(name: &str) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command
}
