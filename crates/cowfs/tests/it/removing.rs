//! Removing trees, and what killed processes left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use neon_cowfs::{CloneOptions, ErrorKind, clone_tree, create_dir, remove_tree, sweep};
use tempfile::tempdir;

use crate::mounts::{btrfs, disk, run, tmpfs, with_mounts};
use crate::support::{make_source, move_apart, rubbish};

#[test]
fn a_tree_goes_and_what_its_links_lead_to_stays() {
    let scratch = tempdir().unwrap();
    let source = scratch.path().join("source");
    make_source(&source);
    let (wal, space) = move_apart(&source, scratch.path());
    remove_tree(&source).unwrap();
    assert!(!source.exists() && wal.join("archive_status").is_dir() && space.is_dir());
    assert_eq!(
        remove_tree(&source).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    symlink(&wal, &source).unwrap();
    assert_eq!(remove_tree(&source).unwrap_err().kind(), ErrorKind::Unsafe);
    assert!(wal.join("archive_status").is_dir());
    assert_eq!(rubbish(scratch.path()), [] as [&Path; 0]);
}

#[test]
fn subvolumes_inside_subvolumes_go_too_read_only_or_not() {
    with_mounts(|| {
        let disk = btrfs();
        let (outer, kept) = (disk.join("outer"), disk.join("plain/kept"));
        fs::create_dir(disk.join("plain")).unwrap();
        create_dir(&outer, 0o700).unwrap();
        make_source(&outer);
        clone_tree(&outer, &kept, &CloneOptions::new().read_only()).unwrap();
        create_dir(&outer.join("inner"), 0o700).unwrap();
        make_source(&outer.join("inner"));
        create_dir(&outer.join("inner/base/innermost"), 0o700).unwrap();
        remove_tree(&outer).unwrap();
        remove_tree(&disk.join("plain")).unwrap();
        assert_eq!(fs::read_dir(&disk).unwrap().count(), 0);
        run("btrfs", &["filesystem", "sync", disk.to_str().unwrap()]);
        let list = run("btrfs", &["subvolume", "list", disk.to_str().unwrap()]);
        assert_eq!(list, "");
    });
}

#[test]
fn nothing_is_removed_from_a_file_system_that_is_mounted_inside() {
    with_mounts(|| {
        let disk = tmpfs("disk", "64m");
        let tree = disk.join("tree");
        fs::create_dir(&tree).unwrap();
        let inside = tmpfs("disk/tree/inside", "1m");
        fs::write(inside.join("precious"), "data").unwrap();
        let error = remove_tree(&tree).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsafe);
        let left = rubbish(&disk);
        assert_eq!(
            fs::read_to_string(left[0].join("inside/precious")).unwrap(),
            "data"
        );
    });
}

/// Neither has another device number that would tell: the one has the same, the other looks like a subvolume.
#[test]
fn nothing_is_removed_through_a_bind_mount_or_from_another_btrfs_that_is_mounted_inside() {
    with_mounts(|| {
        let (disk, other) = (btrfs(), disk("other", "btrfs", &[], "defaults"));
        for (name, kind) in [("bound", "same"), ("mounted", "other")] {
            let tree = disk.join(name);
            fs::create_dir_all(tree.join("inside")).unwrap();
            let precious = match kind {
                "same" => disk.join("precious"),
                _ => other.clone(),
            };
            fs::create_dir_all(precious.join("folder")).unwrap();
            fs::write(precious.join("folder/file"), "data").unwrap();
            let inside = tree.join("inside");
            run(
                "mount",
                &[
                    "--bind",
                    precious.to_str().unwrap(),
                    inside.to_str().unwrap(),
                ],
            );
            let error = remove_tree(&tree).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsafe, "{kind}");
            let kept = fs::read_to_string(precious.join("folder/file")).unwrap();
            assert_eq!(kept, "data", "{kind}");
        }
    });
}

#[test]
fn only_what_nobody_works_on_is_swept() {
    let scratch = tempdir().unwrap();
    for name in [
        ".neon-clone.1",
        ".neon-remove.2",
        ".neon-probe.3",
        ".neon-clone.busy",
        "mine",
        ".neon",
    ] {
        fs::create_dir(scratch.path().join(name)).unwrap();
        fs::write(scratch.path().join(name).join("file"), "x").unwrap();
    }
    let busy = fs::File::open(scratch.path().join(".neon-clone.busy")).unwrap();
    busy.lock().unwrap();
    let mut swept = sweep(scratch.path()).unwrap();
    swept.sort();
    let expected = [".neon-clone.1", ".neon-probe.3", ".neon-remove.2"];
    assert_eq!(swept, expected.map(|name| scratch.path().join(name)));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 3);
}
