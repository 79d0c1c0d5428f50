//! What is there when a call returns is there after the power went.

use std::fs;
use std::path::Path;

use neon_cowfs::{Method, clone_tree, create_dir, remove_tree};

use crate::mounts::{btrfs, ext4, power_cut, run, with_mounts, xfs};
use crate::support::{assert_equal, make_source, only, rubbish, tree};

fn a_clone_survives(kind: &str, disk: &Path, method: Method) {
    let (source, target) = (disk.join("source"), disk.join("clone"));
    create_dir(&source, 0o700).unwrap();
    make_source(&source);
    run("sync", &["-f", disk.to_str().unwrap()]);
    // Of this only memory knows yet; its clone must not depend on that.
    fs::write(source.join("base/5/late"), vec![5; 100_000]).unwrap();
    let options = only(method);
    clone_tree(&source, &target, &options).unwrap();
    let expected = tree(&target);

    power_cut(kind, disk);
    assert!(tree(&target) == expected, "something of the clone is lost");
    assert_eq!(
        fs::read(target.join("base/5/late")).unwrap(),
        vec![5; 100_000]
    );
    assert_eq!(rubbish(disk), [] as [&Path; 0]);

    remove_tree(&target).unwrap();
    power_cut(kind, disk);
    assert!(!target.exists(), "it came back");
    clone_tree(&source, &target, &options).unwrap();
    assert_equal(&source, &target);
}

#[test]
fn a_snapshot_on_btrfs_survives_a_power_cut() {
    with_mounts(|| a_clone_survives("btrfs", &btrfs(), Method::Subvolume));
}

#[test]
fn reflinks_on_xfs_survive_a_power_cut() {
    with_mounts(|| a_clone_survives("xfs", &xfs(), Method::Reflink));
}

#[test]
fn a_copy_on_ext4_survives_a_power_cut() {
    with_mounts(|| a_clone_survives("ext4", &ext4(), Method::Copy));
}
