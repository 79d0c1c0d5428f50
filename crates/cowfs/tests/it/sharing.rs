//! File systems that share blocks: that they are shared, and that nothing else is.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use neon_cowfs::{
    CloneOptions, ErrorKind, Event, Made, Method, Reason, Wanted, clone_tree, create_dir, extents,
    probe, remove_tree,
};

use crate::mounts::{btrfs, run, tmpfs, with_mounts, xfs};
use crate::support::{assert_equal, make_source, move_apart, only, rubbish, this_test, tree};

/// That every file larger than what btrfs keeps beside its metadata is shared as a whole with its original.
fn assert_shared(clone: &Path) {
    let all = extents(clone).unwrap();
    assert!(all.written > 3 << 20, "{all:?}");
    for file in [
        "base/5/large",
        "base/5/sparse",
        "base/1/17",
        "global/pg_control",
    ] {
        let one = extents(&clone.join(file)).unwrap();
        assert!(
            one.written > 0 && one.shared == one.written,
            "{file}: {one:?}"
        );
    }
    assert!(all.shared >= all.written / 10 * 9, "{all:?}");
}

/// That what is written to the clone is not seen in the source, and unshares only itself.
fn assert_apart(source: &Path, clone: &Path) {
    let before = tree(source);
    let file = OpenOptions::new()
        .write(true)
        .open(clone.join("base/5/large"))
        .unwrap();
    file.write_all_at(&[0xff; 8192], 1 << 20).unwrap();
    file.sync_all().unwrap();
    let one = extents(&clone.join("base/5/large")).unwrap();
    assert!(
        one.shared < one.written && one.shared > one.written / 2,
        "{one:?}"
    );
    fs::remove_file(clone.join("base/1/3")).unwrap();
    fs::write(clone.join("base/1/new"), "new").unwrap();
    assert!(tree(source) == before, "the source changed with its clone");
}

#[test]
fn a_reflink_on_xfs_shares_every_block_until_one_is_written() {
    with_mounts(|| {
        let disk = xfs();
        let (source, target) = (disk.join("source"), disk.join("clone"));
        make_source(&source);
        assert_eq!(extents(&source).unwrap().shared, 0);
        let cloned = clone_tree(&source, &target, &CloneOptions::new()).unwrap();
        assert_eq!(cloned.method, Method::Reflink);
        assert_eq!(
            cloned.not_used[0].reason,
            Reason::NotBtrfs("xfs".to_owned())
        );
        assert_eq!(
            (cloned.shared_bytes, cloned.parts[0].read_only),
            (cloned.bytes, false)
        );
        assert_equal(&source, &target);
        assert_shared(&target);
        assert_apart(&source, &target);
        // A copy shares nothing, also where it could.
        let copy = disk.join("copy");
        clone_tree(&source, &copy, &only(Method::Copy)).unwrap();
        assert_equal(&source, &copy);
        assert_eq!(extents(&copy).unwrap().shared, 0);
        let sparse = fs::metadata(copy.join("base/5/sparse")).unwrap();
        assert!(sparse.blocks() * 512 < 4 << 20);
        assert_eq!(rubbish(&disk), [] as [&Path; 0]);
    });
}

#[test]
fn a_snapshot_on_btrfs_shares_every_block_and_leaves_out_what_is_not_cloned() {
    with_mounts(|| {
        let disk = btrfs();
        let (source, target) = (disk.join("source"), disk.join("clone"));
        assert_eq!(create_dir(&source, 0o700).unwrap(), Made::Subvolume);
        make_source(&source);
        let found = probe(Some(&source), &disk).unwrap();
        assert_eq!(found.works(Method::Subvolume), Ok(()));
        assert_eq!(found.file_system(), "btrfs");
        let cloned = clone_tree(&source, &target, &CloneOptions::new()).unwrap();
        assert_eq!(
            (cloned.method, cloned.not_used.len()),
            (Method::Subvolume, 0)
        );
        assert_equal(&source, &target);
        assert_shared(&target);
        assert_apart(&source, &target);
        run("btrfs", &["subvolume", "show", target.to_str().unwrap()]);
        // A clone of a clone, by the caller's rules, with what lies apart.
        let third = disk.join("third");
        move_apart(&target, &disk);
        let options = CloneOptions::new()
            .tablespaces_below(&disk)
            .exclude(|path| path == Path::new("base/1"));
        let cloned = clone_tree(&target, &third, &options).unwrap();
        let methods: Vec<_> = cloned.parts.iter().map(|part| part.method).collect();
        assert_eq!(
            methods,
            [Method::Subvolume, Method::Reflink, Method::Reflink]
        );
        assert_eq!(cloned.parts[1].not_used[0].reason, Reason::PlacedInside);
        assert_eq!(cloned.parts[2].not_used[0].reason, Reason::NotASubvolume);
        assert!(!third.join("base/1").exists());
        assert!(fs::symlink_metadata(third.join("pg_wal")).unwrap().is_dir());
        assert_eq!(tree(&third.join("pg_wal")), tree(&target.join("pg_wal/")));
        assert_eq!(
            tree(&disk.join("16400")),
            tree(&disk.join("space-of-source"))
        );
        let times = |path: &Path| fs::metadata(path.join("base")).unwrap().mtime_nsec();
        assert_eq!(
            times(&third),
            times(&target),
            "what was left out leaves no trace in times"
        );
        assert_eq!(rubbish(&disk), [] as [&Path; 0]);
    });
}

#[test]
fn on_btrfs_a_plain_directory_is_reflinked_into_a_subvolume_that_can_be_snapshotted_next() {
    with_mounts(|| {
        let disk = btrfs();
        let (source, target) = (disk.join("source"), disk.join("clone"));
        make_source(&source);
        let error = clone_tree(&source, &target, &only(Method::Subvolume)).unwrap_err();
        assert_eq!(error.not_used()[0].reason, Reason::NotASubvolume);
        let cloned = clone_tree(
            &source,
            &target,
            &CloneOptions::new().wanted(Wanted::CopyOnWrite),
        )
        .unwrap();
        assert_eq!(cloned.method, Method::Reflink);
        assert_eq!(cloned.not_used[0].reason, Reason::NotASubvolume);
        assert_equal(&source, &target);
        assert_shared(&target);
        let next = clone_tree(&target, &disk.join("next"), &only(Method::Subvolume)).unwrap();
        assert_eq!(next.method, Method::Subvolume);
        assert_equal(&source, &disk.join("next"));
    });
}

#[test]
fn what_a_snapshot_would_miss_is_reflinked_file_by_file() {
    with_mounts(|| {
        let disk = btrfs();
        let (source, target) = (disk.join("source"), disk.join("clone"));
        create_dir(&source, 0o700).unwrap();
        make_source(&source);
        // Where somebody has put the log into a subvolume of its own.
        let wal = source.join("pg_wal");
        fs::rename(&wal, source.join("old")).unwrap();
        create_dir(&wal, 0o700).unwrap();
        fs::write(wal.join("000000010000000000000001"), vec![3; 1 << 20]).unwrap();
        let cloned = clone_tree(&source, &target, &CloneOptions::new()).unwrap();
        assert_eq!(cloned.method, Method::Reflink);
        assert_eq!(cloned.not_used[0].reason, Reason::Nested(wal.clone()));
        assert_equal(&source, &target);
        let shared = extents(&target.join("pg_wal/000000010000000000000001")).unwrap();
        assert_eq!(shared.shared, 1 << 20);
        remove_tree(&source).unwrap();
        assert_shared_no_more(&target);
    });
}

#[test]
fn what_is_mounted_inside_belongs_to_the_source_and_no_method_misses_it() {
    with_mounts(|| {
        let disk = btrfs();
        let (source, wal) = (disk.join("source"), disk.join("wal"));
        create_dir(&source, 0o700).unwrap();
        make_source(&source);
        fs::create_dir(&wal).unwrap();
        fs::write(wal.join("000000010000000000000007"), vec![3; 1 << 20]).unwrap();
        let inside = source.join("pg_wal");
        let inside_text = inside.to_str().unwrap();
        // Of the same subvolume, so that no device number tells.
        let bound = source.join("base/1");
        run("mount", &["--bind", bound.to_str().unwrap(), inside_text]);
        let target = disk.join("same");
        let cloned = clone_tree(&source, &target, &CloneOptions::new()).unwrap();
        assert_eq!(cloned.not_used[0].reason, Reason::Nested(inside.clone()));
        assert_equal(&source, &target);
        run("umount", &[inside_text]);
        run("mount", &["--bind", wal.to_str().unwrap(), inside_text]);
        let target = disk.join("bound");
        let cloned = clone_tree(&source, &target, &CloneOptions::new()).unwrap();
        assert_eq!(cloned.not_used[0].reason, Reason::Nested(inside.clone()));
        assert_eq!(cloned.method, Method::Reflink);
        assert_equal(&source, &target);
        run("umount", &[inside_text]);
        run("mount", &["-t", "tmpfs", "none", inside_text]);
        fs::write(inside.join("000000010000000000000008"), "x").unwrap();
        let target = disk.join("elsewhere");
        let cloned = clone_tree(&source, &target, &CloneOptions::new()).unwrap();
        assert_eq!(cloned.method, Method::Copy);
        assert_eq!(cloned.not_used[1].reason, Reason::OtherFileSystem);
        assert_equal(&source, &target);
    });
}

/// Without its original nothing of the clone is shared, and all of it is there.
fn assert_shared_no_more(clone: &Path) {
    run("btrfs", &["filesystem", "sync", clone.to_str().unwrap()]);
    assert_eq!(fs::read(clone.join("base/1/9")).unwrap().len(), 8192);
}

#[test]
fn files_marked_against_copy_on_write_are_shared_and_keep_the_mark() {
    with_mounts(|| {
        let disk = btrfs();
        let (source, target) = (disk.join("source"), disk.join("clone"));
        fs::create_dir(&source).unwrap();
        run("chattr", &["+C", source.to_str().unwrap()]);
        make_source(&source);
        let cloned = clone_tree(&source, &target, &only(Method::Reflink)).unwrap();
        assert_eq!(cloned.shared_bytes, cloned.bytes);
        assert_equal(&source, &target);
        assert_shared(&target);
        fs::write(target.join("base/5/new"), "new").unwrap();
        for path in ["base/5/large", "base/5", "", "base/5/new"] {
            let path = target.join(path);
            let said = run("lsattr", &["-d", path.to_str().unwrap()]);
            assert!(said.split(' ').next().unwrap().contains('C'), "{said}");
        }
    });
}

#[test]
fn a_method_that_is_refused_when_it_comes_to_it_gives_way_to_the_next_unless_forced() {
    with_mounts(|| {
        let (disk, other) = (xfs(), tmpfs("other", "1m"));
        let (source, target) = (disk.join("source"), disk.join("clone"));
        make_source(&source);
        let (file, twin) = (source.join("base/1/7"), other.join("twin"));
        run(
            "cp",
            &["-p", file.to_str().unwrap(), twin.to_str().unwrap()],
        );
        let refused = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        // After the probe, a file of another file system takes the place of one: none that it could have tried.
        let options = || {
            let (heard, once) = (std::sync::Arc::clone(&refused), std::sync::Once::new());
            let args = [
                "--bind".to_owned(),
                twin.display().to_string(),
                file.display().to_string(),
            ];
            CloneOptions::new().on_event(move |event| match event {
                Event::Using { .. } => once.call_once(|| {
                    run("mount", &args.each_ref().map(String::as_str));
                }),
                Event::Refused { not_used, .. } => heard.lock().unwrap().push(not_used.clone()),
                _ => {}
            })
        };
        let forced = options().wanted(Wanted::Only(Method::Reflink));
        let error = clone_tree(&source, &target, &forced).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("base/1/7"), "{error}");
        assert!(!target.exists());
        run("umount", &[file.to_str().unwrap()]);
        refused.lock().unwrap().clear();
        let cloned = clone_tree(&source, &target, &options()).unwrap();
        assert_eq!((cloned.method, cloned.shared_bytes), (Method::Copy, 0));
        assert_eq!(refused.lock().unwrap().as_slice(), &cloned.not_used[1..]);
        assert_equal(&source, &target);
        assert_eq!(rubbish(&disk), [] as [&Path; 0]);
    });
}

#[test]
fn a_tree_that_is_kept_as_a_snapshot_cannot_be_written_and_clones_of_it_can() {
    with_mounts(|| {
        let disk = btrfs();
        let (source, kept, clone) = (disk.join("source"), disk.join("kept"), disk.join("clone"));
        create_dir(&source, 0o700).unwrap();
        make_source(&source);
        let cloned = clone_tree(&source, &kept, &CloneOptions::new().read_only()).unwrap();
        assert!(cloned.parts[0].read_only);
        assert_equal(&source, &kept);
        assert!(fs::write(kept.join("base/5/large"), "x").is_err());
        let again = clone_tree(&kept, &clone, &CloneOptions::new()).unwrap();
        assert_eq!(
            (again.method, again.parts[0].read_only),
            (Method::Subvolume, false)
        );
        assert_apart(&kept, &clone);
        remove_tree(&kept).unwrap();
        remove_tree(&clone).unwrap();
        assert_eq!(fs::read_dir(&disk).unwrap().count(), 1);
    });
}

const AS_USER: &str = "NEON_COWFS_AS_USER";

#[test]
fn somebody_who_is_not_root_clones_and_removes_subvolumes_and_reflinks() {
    if let Some(disk) = std::env::var_os(AS_USER) {
        for (disk, method) in [("btrfs", Method::Subvolume), ("xfs", Method::Reflink)]
            .map(|(name, method)| (Path::new(&disk).join(name).join("home"), method))
        {
            let (source, target) = (disk.join("source"), disk.join("clone"));
            create_dir(&source, 0o700).unwrap();
            make_source(&source);
            let cloned = clone_tree(&source, &target, &CloneOptions::new().read_only()).unwrap();
            assert_eq!(cloned.method, method, "{cloned}");
            assert_equal(&source, &target);
            assert_shared(&target);
            remove_tree(&target).unwrap();
            remove_tree(&source).unwrap();
            assert_eq!(fs::read_dir(&disk).unwrap().count(), 0);
        }
        return;
    }
    with_mounts(|| {
        let user = neon_testkit::OsUser::current();
        for disk in [btrfs(), xfs()] {
            user.create_dir(&disk.join("home"));
        }
        let mut command = this_test(
            "sharing::somebody_who_is_not_root_clones_and_removes_subvolumes_and_reflinks",
        );
        user.apply(&mut command);
        let output = command
            .env(AS_USER, "/mnt")
            .current_dir("/")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{said}"
        );
    });
}

#[test]
fn owners_are_kept_by_root() {
    with_mounts(|| {
        let disks = [xfs(), btrfs()];
        for (disk, method) in [
            (&disks[0], Method::Reflink),
            (&disks[0], Method::Copy),
            (&disks[1], Method::Subvolume),
        ] {
            let (source, target) = (disk.join("source"), disk.join(method.to_string()));
            if !source.exists() {
                create_dir(&source, 0o700).unwrap();
                make_source(&source);
                move_apart(&source, disk);
                run("chown", &["-Rh", "4242:4343", source.to_str().unwrap()]);
            }
            let places = disk.join(format!("places-{method}"));
            fs::create_dir(&places).unwrap();
            let mut options = only(method)
                .tablespaces_below(&places)
                .wal_directory(places.join("log"));
            if method == Method::Subvolume {
                options = options.wanted(Wanted::CopyOnWrite);
            }
            clone_tree(&source, &target, &options).unwrap();
            for path in ["", "base/5", "base/5/large", "pg_wal", "pg_tblspc/16400"] {
                let meta = fs::symlink_metadata(target.join(path)).unwrap();
                assert_eq!((meta.uid(), meta.gid()), (4242, 4343), "{method} {path}");
            }
        }
    });
}
