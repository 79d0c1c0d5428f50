//! What is cloned, where it goes and what is told, whatever the method.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use neon_cowfs::{CloneOptions, ErrorKind, Event, Links, Method, Part, clone_tree};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::support::{FILES, assert_equal, make_source, move_apart, only, rubbish, tree};

#[test]
fn a_copy_equals_its_source_in_content_modes_times_and_holes() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    for threads in [1, 4] {
        let cloned = clone_tree(&source, &target, &only(Method::Copy).threads(threads)).unwrap();
        assert_equal(&source, &target);
        assert_eq!(
            (cloned.method, cloned.files, cloned.shared_bytes),
            (Method::Copy, FILES, 0)
        );
        assert!(cloned.not_used.is_empty() && cloned.bytes > (35 << 20));
        let sparse = fs::metadata(target.join("base/5/sparse")).unwrap();
        assert!(
            sparse.blocks() * 512 < 4 << 20,
            "{} blocks",
            sparse.blocks()
        );
        assert_eq!(rubbish(scratch.path()), [] as [&Path; 0]);
        neon_cowfs::remove_tree(&target).unwrap();
    }
}

#[test]
fn tablespaces_and_log_go_to_the_places_given_and_the_links_lead_there() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    let (wal, space) = move_apart(&source, scratch.path());
    let to = scratch.path().join("places");
    fs::create_dir(&to).unwrap();

    let options = only(Method::Copy)
        .wal_directory(to.join("log"))
        .tablespace(16400, to.join("fast"));
    let cloned = clone_tree(&source, &target, &options).unwrap();
    assert_eq!(
        fs::read_link(target.join("pg_wal")).unwrap(),
        to.join("log")
    );
    assert_eq!(
        fs::read_link(target.join("pg_tblspc/16400")).unwrap(),
        to.join("fast")
    );
    assert_eq!(tree(&to.join("log")), tree(&wal));
    assert_eq!(tree(&to.join("fast")), tree(&space));
    assert!(
        target.join("pg_tblspc/16500/5/200").is_file(),
        "in place it stays in place"
    );
    let parts: Vec<_> = cloned
        .parts
        .iter()
        .map(|one| (one.part, one.place.clone()))
        .collect();
    let expected = [
        (Part::Data, target.clone()),
        (Part::Wal, to.join("log")),
        (Part::Tablespace(16400), to.join("fast")),
    ];
    assert_eq!(parts, expected);

    // A log that was apart comes into the clone when it is given no place; one that was inside can go apart.
    let again = scratch.path().join("again");
    let below = scratch.path().join("below");
    fs::create_dir(&below).unwrap();
    let cloned = clone_tree(
        &source,
        &again,
        &only(Method::Copy).tablespaces_below(&below),
    )
    .unwrap();
    assert!(fs::symlink_metadata(again.join("pg_wal")).unwrap().is_dir());
    assert_eq!(tree(&again.join("pg_wal")), tree(&wal));
    assert_eq!(
        fs::read_link(again.join("pg_tblspc/16400")).unwrap(),
        below.join("16400")
    );
    assert_eq!(cloned.parts[1].place, again.join("pg_wal"));
    let third = scratch.path().join("third");
    let exclude = |path: &Path| path.starts_with("pg_tblspc");
    let options = only(Method::Copy)
        .wal_directory(to.join("log3"))
        .exclude(exclude);
    clone_tree(&again, &third, &options).unwrap();
    assert_eq!(tree(&third.join("pg_wal/")), tree(&wal));
    assert_eq!(
        fs::read_link(third.join("pg_wal")).unwrap(),
        to.join("log3")
    );
    assert!(!third.join("pg_tblspc").exists());
}

#[test]
fn what_the_caller_excludes_is_left_out_by_its_path_in_the_cluster() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    move_apart(&source, scratch.path());
    // What must not be there does no harm when it is excluded.
    symlink("/etc", source.join("log")).unwrap();
    let options = only(Method::Copy)
        .tablespaces_below(scratch.path())
        .exclude(|path| {
            let below = |folder: &str| path.starts_with(folder) && path != Path::new(folder);
            path == Path::new("log")
                || below("pg_wal/archive_status")
                || below("base/1")
                || path.ends_with("300")
        });
    let cloned = clone_tree(&source, &target, &options).unwrap();
    assert!(
        fs::read_dir(target.join("base/1"))
            .unwrap()
            .next()
            .is_none()
    );
    assert!(
        fs::read_dir(target.join("pg_wal/archive_status"))
            .unwrap()
            .next()
            .is_none()
    );
    assert!(
        fs::read_dir(scratch.path().join("16400/PG_16_202307071/5"))
            .unwrap()
            .next()
            .is_none()
    );
    assert!(!target.join("log").exists() && target.join("base/5/large").exists());
    assert_eq!(cloned.files, FILES - 200 - 1);
}

#[test]
fn other_links_are_refused_by_name_or_kept_as_they_are_and_never_followed() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    symlink(
        "/etc/postgresql/postgresql.conf",
        source.join("postgresql.conf"),
    )
    .unwrap();
    symlink("/etc", source.join("base/7")).unwrap();
    let error = clone_tree(&source, &target, &only(Method::Copy)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsafe);
    assert!(error.subject().ends_with("postgresql.conf"), "{error}");
    assert!(!target.exists());
    let cloned = clone_tree(&source, &target, &only(Method::Copy).links(Links::Keep)).unwrap();
    assert_equal(&source, &target);
    assert_eq!(cloned.files, FILES);
}

#[test]
fn sockets_are_left_out_and_told_pipes_are_refused_and_hard_links_come_apart() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    let _socket = UnixListener::bind(source.join(".s.PGSQL.5432")).unwrap();
    fs::hard_link(
        source.join("base/5/large"),
        scratch.path().join("older cluster"),
    )
    .unwrap();
    fs::hard_link(source.join("base/1/1"), source.join("base/5/1")).unwrap();
    let cloned = clone_tree(&source, &target, &only(Method::Copy)).unwrap();
    assert_eq!(cloned.sockets, [Path::new(".s.PGSQL.5432")]);
    assert!(!target.join(".s.PGSQL.5432").exists());
    assert_eq!(cloned.hard_links, 3);
    assert_equal(&source, &target);
    assert_eq!(fs::metadata(target.join("base/5/1")).unwrap().nlink(), 1);

    let pipe = source.join("base/pipe");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let error =
        clone_tree(&source, &scratch.path().join("other"), &only(Method::Copy)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsafe);
    assert_eq!(error.subject(), pipe.display().to_string());
}

#[test]
fn events_count_up_to_what_was_listed() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let options =
        only(Method::Copy).on_event(move |event| heard.lock().unwrap().push(event.clone()));
    let cloned = clone_tree(&source, &target, &options).unwrap();
    let events = events.lock().unwrap();
    let (files, bytes) = (cloned.files, cloned.bytes);
    assert_eq!(events[0], Event::Listed { files, bytes });
    assert_eq!(
        events[1],
        Event::Using {
            part: Part::Data,
            method: Method::Copy
        }
    );
    assert_eq!(events.last(), Some(&Event::Flushing));
    assert!(events.contains(&Event::Done { files, bytes }));
    assert_eq!(events.len() as u64, 3 + files);
}

#[test]
fn a_clone_that_is_cancelled_at_any_event_leaves_nothing() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    move_apart(&source, scratch.path());
    let before = fs::read_dir(scratch.path()).unwrap().count();
    let mut at = 0;
    loop {
        let flag = Arc::new(AtomicBool::new(false));
        let (left, set) = (Mutex::new(at), Arc::clone(&flag));
        let options = only(Method::Copy)
            .threads(2)
            .tablespaces_below(scratch.path())
            .cancel(flag)
            .on_event(move |_| {
                let mut left = left.lock().unwrap();
                if *left == 0 {
                    set.store(true, Ordering::Relaxed);
                } else {
                    *left -= 1;
                }
            });
        match clone_tree(&source, &target, &options) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Cancelled),
            // Set when it was past stopping, or not at all.
            Ok(_) => break,
        }
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), before);
        at += if at < 5 { 1 } else { 23 };
    }
    assert!(at > 200, "it was cancelled only up to event {at}");
}

#[test]
fn the_default_options_clone_by_whatever_works_here() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    let cloned = clone_tree(&source, &target, &CloneOptions::new()).unwrap();
    assert_equal(&source, &target);
    let probe = neon_cowfs::probe(Some(&source), scratch.path()).unwrap();
    assert_eq!(
        probe.choose(neon_cowfs::Wanted::Best).unwrap().method,
        cloned.method
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_of_any_file_with_holes_is_equal_and_no_larger(
        pieces in prop::collection::vec((0u64..3 << 20, 1usize..200_000, any::<u8>()), 0..6),
        size in 0u64..4 << 20,
    ) {
        let scratch = tempdir().unwrap();
        let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
        fs::create_dir(&source).unwrap();
        let file = fs::File::create(source.join("file")).unwrap();
        for (at, length, byte) in pieces {
            file.write_all_at(&vec![byte; length], at).unwrap();
        }
        file.set_len(size).unwrap();
        clone_tree(&source, &target, &only(Method::Copy)).unwrap();
        let read = |folder: &Path| fs::read(folder.join("file")).unwrap();
        prop_assert!(read(&source) == read(&target));
        // Of both all is on disk now, so blocks are comparable.
        file.sync_all().unwrap();
        let blocks = |folder: &Path| fs::metadata(folder.join("file")).unwrap().blocks();
        prop_assert!(blocks(&target) <= blocks(&source) + 16);
    }
}
