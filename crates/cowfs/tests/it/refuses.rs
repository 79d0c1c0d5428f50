//! What is refused, with its kind and with words that help.

use std::fs;
use std::path::Path;

use neon_cowfs::{CloneOptions, ErrorKind, Event, Method, Reason, Wanted, clone_tree, probe};
use tempfile::tempdir;

use crate::mounts::{disk, ext4, tmpfs, with_mounts, xfs};
use crate::support::{make_source, move_apart, only, rubbish};

fn kind_of(source: &Path, target: &Path, options: &CloneOptions) -> ErrorKind {
    let error = clone_tree(source, target, options).unwrap_err();
    assert!(!error.reason().is_empty() && !error.subject().is_empty());
    error.kind()
}

#[test]
fn without_blocks_to_share_a_forced_method_and_copy_on_write_fail_and_say_why() {
    with_mounts(|| {
        let disk = ext4();
        let (source, target) = (disk.join("source"), disk.join("clone"));
        make_source(&source);
        let found = probe(Some(&source), &disk).unwrap();
        assert_eq!(found.file_system(), "ext4");
        let reason = Reason::NoSharing("ext4".to_owned());
        assert_eq!(found.works(Method::Reflink), Err(&reason));
        assert_eq!(found, probe(None, &disk).unwrap());

        let error = clone_tree(
            &source,
            &target,
            &CloneOptions::new().wanted(Wanted::CopyOnWrite),
        )
        .unwrap_err();
        assert_eq!(
            (error.kind(), error.not_used().len()),
            (ErrorKind::Unsupported, 2)
        );
        let text = error.to_string();
        assert!(
            text.contains("ext4 does not let files share blocks"),
            "{text}"
        );
        assert!(
            text.contains("needs btrfs; the target lies on ext4"),
            "{text}"
        );
        for method in [Method::Reflink, Method::Subvolume] {
            assert_eq!(
                kind_of(&source, &target, &only(method)),
                ErrorKind::Unsupported
            );
        }
        assert!(!target.exists());
        let cloned = clone_tree(&source, &target, &CloneOptions::new()).unwrap();
        assert_eq!((cloned.method, cloned.shared_bytes), (Method::Copy, 0));
        assert_eq!(cloned.not_used[1].reason, reason);
        assert_eq!(
            cloned.to_string(),
            "copy (no subvolume: needs btrfs; the target lies on ext4; \
             no reflink: the target's ext4 does not let files share blocks)"
        );
        assert_eq!(rubbish(&disk), [] as [&Path; 0]);
    });
}

#[test]
fn another_file_system_and_one_made_without_reflinks_are_told_apart() {
    with_mounts(|| {
        let (able, plain) = (
            xfs(),
            disk("plain", "xfs", &["-m", "reflink=0"], "defaults"),
        );
        make_source(&able.join("source"));
        make_source(&plain.join("source"));
        let works = |source: &Path, target: &Path| {
            probe(Some(&source.join("source")), target)
                .unwrap()
                .works(Method::Reflink)
                .cloned_error()
        };
        assert_eq!(works(&able, &able), None);
        assert_eq!(works(&able, &plain), Some(Reason::OtherFileSystem));
        assert_eq!(works(&plain, &able), Some(Reason::OtherFileSystem));
        assert_eq!(
            works(&plain, &plain),
            Some(Reason::NoSharing("xfs".to_owned()))
        );
        // A tablespace elsewhere is a part of its own: what shares is told for each.
        move_apart(&able.join("source"), &plain);
        let options = CloneOptions::new().tablespaces_below(&able);
        let cloned = clone_tree(&able.join("source"), &able.join("clone"), &options).unwrap();
        assert_eq!(cloned.method, Method::Copy);
        let methods: Vec<_> = cloned.parts.iter().map(|part| part.method).collect();
        assert_eq!(methods, [Method::Reflink, Method::Copy, Method::Copy]);
        assert!(cloned.shared_bytes > 0 && cloned.shared_bytes < cloned.bytes);
        let other = able.join("other");
        fs::create_dir(&other).unwrap();
        let options = CloneOptions::new()
            .wanted(Wanted::CopyOnWrite)
            .tablespaces_below(&other);
        let error = clone_tree(&able.join("source"), &able.join("third"), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.to_string().contains("log directory cannot be cloned"),
            "{error}"
        );
    });
}

trait ClonedError {
    fn cloned_error(self) -> Option<Reason>;
}

impl ClonedError for Result<(), &Reason> {
    fn cloned_error(self) -> Option<Reason> {
        self.err().cloned()
    }
}

#[test]
fn a_copy_that_has_no_room_fails_before_it_begins_and_one_that_runs_out_leaves_nothing() {
    with_mounts(|| {
        let (roomy, tight) = (tmpfs("roomy", "64m"), tmpfs("tight", "2m"));
        let source = roomy.join("source");
        make_source(&source);
        let told = std::sync::Arc::new(std::sync::Mutex::new(0));
        let count = std::sync::Arc::clone(&told);
        let options = CloneOptions::new().on_event(move |event| {
            *count.lock().unwrap() += usize::from(matches!(event, Event::Using { .. }));
        });
        assert_eq!(
            kind_of(&source, &tight.join("clone"), &options),
            ErrorKind::DiskFull
        );
        assert_eq!(*told.lock().unwrap(), 0);
        // Somebody else takes the room while the copy runs.
        let nearly = tmpfs("nearly", "7m");
        let (thief, once) = (nearly.join("thief"), std::sync::Once::new());
        let options = CloneOptions::new().on_event(move |event| {
            if matches!(event, Event::Done { .. }) {
                once.call_once(|| fs::write(&thief, vec![0; 4 << 20]).unwrap());
            }
        });
        assert_eq!(
            kind_of(&source, &nearly.join("clone"), &options),
            ErrorKind::DiskFull
        );
        assert_eq!(fs::read_dir(&nearly).unwrap().count(), 1);
    });
}

#[test]
fn a_source_that_changes_is_noticed() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("a file grows", |source| {
            fs::write(source.join("base/5/large"), vec![0; 4_000_000]).unwrap();
        }),
        ("a file is written", |source| {
            fs::write(source.join("global/pg_control"), vec![8; 8192]).unwrap();
        }),
        ("a file comes", |source| {
            fs::write(source.join("base/5/new"), "").unwrap();
        }),
        ("a file goes", |source| {
            fs::remove_file(source.join("base/1/7")).unwrap();
        }),
    ];
    for (what, change) in changes {
        let scratch = tempdir().unwrap();
        let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
        make_source(&source);
        // Times of files have the steps of the kernel's clock.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let options = only(Method::Copy).on_event({
            let source = source.clone();
            move |event| {
                if matches!(event, Event::Listed { .. }) {
                    change(&source);
                }
            }
        });
        assert_eq!(
            kind_of(&source, &target, &options),
            ErrorKind::Changed,
            "{what}"
        );
        assert!(!target.exists(), "{what}");
        assert_eq!(rubbish(scratch.path()), [] as [&Path; 0], "{what}");
    }
}

#[test]
fn places_that_cannot_be_are_refused_before_anything_is_made() {
    let scratch = tempdir().unwrap();
    let source = scratch.path().join("source");
    make_source(&source);
    move_apart(&source, scratch.path());
    let target = scratch.path().join("clone");
    let copy = || only(Method::Copy);
    let invalid = [
        ("no place for a tablespace", target.clone(), copy()),
        (
            "a relative place",
            target.clone(),
            copy().tablespace(16400, "relative"),
        ),
        (
            "inside the source",
            source.join("clone"),
            copy().tablespaces_below(scratch.path()),
        ),
        (
            "a tablespace inside the source",
            target.clone(),
            copy().tablespaces_below(source.join("base")),
        ),
        (
            "inside its log",
            scratch.path().join("log-of-source/clone"),
            copy().tablespaces_below(scratch.path()),
        ),
        (
            "two parts at one place",
            target.clone(),
            copy().tablespace(16400, &target),
        ),
    ];
    for (what, target, options) in invalid {
        assert_eq!(
            kind_of(&source, &target, &options),
            ErrorKind::Invalid,
            "{what}"
        );
    }
    let options = copy().tablespaces_below(scratch.path());
    fs::write(&target, "").unwrap();
    assert_eq!(kind_of(&source, &target, &options), ErrorKind::Exists);
    fs::remove_file(&target).unwrap();
    fs::create_dir(scratch.path().join("16400")).unwrap();
    assert_eq!(kind_of(&source, &target, &options), ErrorKind::Exists);
    fs::remove_dir(scratch.path().join("16400")).unwrap();
    assert_eq!(
        kind_of(&source, &scratch.path().join("no/clone"), &options),
        ErrorKind::NotFound
    );
    assert_eq!(
        kind_of(&scratch.path().join("no"), &target, &options),
        ErrorKind::NotFound
    );
    fs::remove_dir_all(scratch.path().join("space-of-source")).unwrap();
    assert_eq!(
        kind_of(&source, &target, &options),
        ErrorKind::NotFound,
        "a link that leads nowhere"
    );
    assert!(!target.exists());
    assert_eq!(rubbish(scratch.path()), [] as [&Path; 0]);
}

#[test]
fn a_target_that_appears_meanwhile_stays_as_it_is_and_the_clone_goes() {
    let scratch = tempdir().unwrap();
    let (source, target) = (scratch.path().join("source"), scratch.path().join("clone"));
    make_source(&source);
    move_apart(&source, scratch.path());
    let options = only(Method::Copy)
        .tablespaces_below(scratch.path())
        .on_event({
            let target = target.clone();
            move |event| {
                if *event == Event::Flushing {
                    fs::write(&target, "mine").unwrap();
                }
            }
        });
    assert_eq!(kind_of(&source, &target, &options), ErrorKind::Exists);
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
    assert!(
        !scratch.path().join("16400").exists(),
        "the tablespace went with it"
    );
    assert_eq!(rubbish(scratch.path()), [] as [&Path; 0]);
}
