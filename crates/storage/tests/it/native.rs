//! The native backend: contract, loss of power, failing disks, several processes, dead writers.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use neon_storage::{
    Body, ErrorKind, GetOptions, Key, Native, NativeOptions, Prefix, PutOptions, RetryLayer,
    RetryPolicy, Storage, StorageExt, contract,
};

use crate::child::{self, content, key};
use crate::disks::{Fate, Halting, Recorder, Step, power_loss};

fn open(root: &Path) -> Native {
    Native::open(root, NativeOptions::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn native_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let native = open(&dir.path().join("root"));
    let report = contract::run(Arc::new(native)).await;
    assert!(report.held() > 30, "{report:#?}");
    report.into_result().unwrap();
    let temps = dir.path().join("root/.neon-storage/tmp");
    assert_eq!(
        std::fs::read_dir(temps).unwrap().count(),
        0,
        "temporaries are left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn native_below_layers_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = Prefix::new(Arc::new(open(dir.path())), key("below/this"));
    let retry = RetryLayer::new(Arc::new(prefix), RetryPolicy::default());
    contract::run(Arc::new(retry)).await.into_result().unwrap();
}

/// What one operation of a script does to its key, and when.
struct Done {
    began: usize,
    acknowledged: usize,
    key: Key,
    content: Option<Vec<u8>>,
}

/// Puts and deletes in every mode, recorded.
async fn script(storage: &Native, disk: &Recorder) -> Vec<Done> {
    let mut done = Vec::new();
    let chunked = |content: Vec<u8>| {
        let chunks: Vec<_> = content
            .chunks(1_500_000)
            .map(|c| Ok(Bytes::copy_from_slice(c)))
            .collect();
        Body::stream(stream::iter(chunks))
    };
    let puts: Vec<(&str, Vec<u8>, bool)> = vec![
        ("a/b/one", vec![1; 10], false),
        ("a/b/two", vec![2; 3_000_001], false),
        ("c", vec![3; 100], true),
        ("c", vec![4; 5000], true),
        ("a/x", vec![5; 10], true),
        ("e/f/g/h", Vec::new(), false),
        ("a/b/one", vec![6; 20], true),
    ];
    for (name, content, overwrite) in puts {
        let (began, key) = (disk.len(), key(name));
        let options = if overwrite {
            PutOptions::overwrite()
        } else {
            PutOptions::create()
        };
        storage
            .put(&key, chunked(content.clone()), options)
            .await
            .unwrap();
        done.push(Done {
            began,
            acknowledged: disk.len(),
            key,
            content: Some(content),
        });
    }
    let (began, name) = (disk.len(), key("c"));
    let version = storage.head(&name).await.unwrap().meta.version.unwrap();
    storage
        .replace(&name, &version, vec![7; 300])
        .await
        .unwrap();
    let content = Some(vec![7; 300]);
    done.push(Done {
        began,
        acknowledged: disk.len(),
        key: name,
        content,
    });
    let began = disk.len();
    let keys = ["a/b/two", "e/f/g/h", "none"].map(|name| Ok(key(name)));
    let deleted: Vec<_> = storage
        .delete_many(stream::iter(keys).boxed())
        .collect()
        .await;
    assert!(deleted.iter().all(Result::is_ok));
    for name in ["a/b/two", "e/f/g/h"] {
        done.push(Done {
            began,
            acknowledged: disk.len(),
            key: key(name),
            content: None,
        });
    }
    let (began, name) = (disk.len(), key("a/b/two"));
    storage.create(&name, vec![8; 50]).await.unwrap();
    let content = Some(vec![8; 50]);
    done.push(Done {
        began,
        acknowledged: disk.len(),
        key: name,
        content,
    });
    done
}

/// What may be under each key after so many steps: what was acknowledged last, or anything begun
/// since.
fn allowed(done: &[Done], steps: usize) -> BTreeMap<Key, Vec<Option<Vec<u8>>>> {
    let mut allowed: BTreeMap<Key, Vec<Option<Vec<u8>>>> = BTreeMap::new();
    for operation in done {
        let states = allowed
            .entry(operation.key.clone())
            .or_insert_with(|| vec![None]);
        if operation.acknowledged <= steps {
            *states = vec![operation.content.clone()];
        } else if operation.began < steps {
            states.push(operation.content.clone());
        }
    }
    allowed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_of_power_at_any_step_loses_nothing_acknowledged_and_shows_nothing_half() {
    let dir = tempfile::tempdir().unwrap();
    let (root, disk) = (dir.path().join("root"), Recorder::new());
    let storage = Native::open_on(Arc::new(disk.clone()), &root, NativeOptions::default()).unwrap();
    let done = script(&storage, &disk).await;
    let steps = disk.steps();
    assert!(steps.len() > 50);
    let mut images = 0u64;
    for count in 0..=steps.len() {
        let seeds = (0..4).map(|seed| Fate::Chance(seed + 100 * count as u64));
        for fate in [Fate::Lost, Fate::Kept, Fate::NamesWithoutBytes]
            .into_iter()
            .chain(seeds)
        {
            let image = dir.path().join("image");
            std::fs::create_dir(&image).unwrap();
            power_loss(&steps[..count], &root, fate, &image);
            let after = open(&image);
            let what = || {
                format!(
                    "after {count} steps, {fate:?}, last {:?}",
                    steps[..count].last()
                )
            };
            let expected = allowed(&done, count);
            for (key, states) in &expected {
                let found = match after.read(key).await {
                    Ok(content) => Some(content.to_vec()),
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) => panic!("{}: {error:?}", what()),
                };
                assert!(states.contains(&found), "{}: {key}", what());
            }
            for object in after.list_all("").await.unwrap() {
                assert!(
                    expected.contains_key(&object.key),
                    "{}: {}",
                    what(),
                    object.key
                );
            }
            std::fs::remove_dir_all(&image).unwrap();
            images += 1;
        }
    }
    assert!(images > 350, "{images}");
}

#[test]
fn the_simulated_loss_of_power_would_notice_a_missing_sync() {
    // The same protocol without its syncs: some image must show a torn or missing object.
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let (temp, name) = (root.join("t"), root.join("k"));
    let steps = [
        Step::Create(temp.clone()),
        Step::Write(temp.clone(), vec![1; 10]),
        Step::Link(temp, name),
    ];
    let shown = |fate| {
        let image = tempfile::tempdir().unwrap();
        power_loss(&steps, &root, fate, image.path());
        std::fs::read(image.path().join("k")).ok()
    };
    assert_eq!(shown(Fate::Lost), None);
    assert_eq!(shown(Fate::Kept), Some(vec![1; 10]));
    assert_eq!(shown(Fate::NamesWithoutBytes), Some(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_any_step_leaves_the_object_whole_or_absent() {
    let mut poisoned = 0;
    for step in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        open(&root).create(&key("old"), "old").await.unwrap();
        let disk = Recorder::failing(step);
        let storage =
            Native::open_on(Arc::new(disk.clone()), &root, NativeOptions::default()).unwrap();
        let put = storage.create(&key("dir/new"), "new").await;
        let overwritten = storage.overwrite(&key("old"), "newer").await;
        let Some(failed) = disk.failed() else {
            assert!(put.is_ok() && overwritten.is_ok());
            break;
        };
        // Removing a temporary may fail unnoticed: it is swept later.
        let unnoticed = matches!(&failed, Step::Unlink(_));
        assert!(
            unnoticed || put.is_err() || overwritten.is_err(),
            "step {step}: {failed:?}"
        );
        for error in [&put, &overwritten]
            .into_iter()
            .flat_map(|result| result.as_ref().err())
        {
            assert_eq!(
                error.kind(),
                ErrorKind::Unavailable,
                "{failed:?}: {error:?}"
            );
        }
        if failed.is_sync() {
            poisoned += 1;
            // No further writes, not even after a pause; reads go on.
            for error in [
                storage.create(&key("later"), "x").await.unwrap_err(),
                storage.delete(&key("old")).await.unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                assert!(!error.is_retryable(), "{failed:?}: {error:?}");
            }
            assert!(storage.read(&key("old")).await.is_ok());
            assert!(!storage.exists(&key("later")).await.unwrap());
        }
        // The next process finds whole objects and goes on.
        let next = open(&root);
        let old = next.read(&key("old")).await.unwrap();
        assert!(old == "old" || old == "newer", "{failed:?}");
        match next.read(&key("dir/new")).await {
            Ok(new) => assert_eq!(new, "new"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
        }
        next.overwrite(&key("dir/new"), "again").await.unwrap();
    }
    assert!(poisoned >= 5, "{poisoned}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_ends_after_a_failed_fsync_of_another_vouches_for_nothing() {
    for deletes in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        open(&root).create(&key("slow/old"), "old").await.unwrap();
        let (reached, arrived) = std::sync::mpsc::channel();
        let (release, go) = std::sync::mpsc::channel();
        let disk = Halting {
            reached,
            go: Mutex::new(go),
        };
        let storage = Native::open_on(Arc::new(disk), &root, NativeOptions::default()).unwrap();
        let slow = storage.clone();
        let slow = tokio::spawn(async move {
            if deletes {
                slow.delete(&key("slow/old")).await.unwrap_err()
            } else {
                slow.create(&key("slow/new"), "new").await.unwrap_err()
            }
        });
        tokio::task::spawn_blocking(move || arrived.recv().unwrap())
            .await
            .unwrap();
        let failed = storage.create(&key("fast"), "1").await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Unavailable);
        release.send(()).unwrap();
        let failed = slow.await.unwrap();
        assert_eq!(failed.kind(), ErrorKind::Unavailable);
        assert!(
            !failed.is_retryable() && failed.outcome_unknown(),
            "{failed:?}"
        );
    }
}

#[test]
fn a_writer_that_is_killed_leaves_whole_objects_only() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut next, mut total) = (0u64, 0usize);
    for round in 0..8u64 {
        let mut writer = child::start(&format!("write|{}|{next}", root.display()));
        let killer = writer.id();
        let timer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(150 + 37 * round));
            let pid = rustix::process::Pid::from_raw(i32::try_from(killer).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        });
        let said = child::lines(&mut writer);
        timer.join().unwrap();
        writer.wait().unwrap();
        runtime.block_on(async {
            let storage = open(&root);
            let mut listed = BTreeSet::new();
            for object in storage.list_all("d").await.unwrap() {
                let (_, number) = object.key.as_str().rsplit_once('/').unwrap();
                let number: u64 = number.parse().unwrap();
                assert!(storage.read(&object.key).await.unwrap() == content(number));
                listed.insert(number);
            }
            let mut latest = None;
            for line in &said {
                let (what, number) = line.split_once(' ').unwrap();
                let number: u64 = number.parse().unwrap();
                match what {
                    "wrote" => assert!(listed.contains(&number), "{number} was acknowledged"),
                    _ => latest = Some(number),
                }
            }
            if let Some(latest) = latest {
                // The acknowledged one, or the one that was under way when the end came.
                let found = storage.read(&key("latest")).await.unwrap();
                assert!(found == content(latest) || found == content(latest + 3));
            }
            total += said.len();
            next = listed.last().map_or(next, |last| last + 1);
        });
    }
    assert!(total > 10, "{total}");
    // What the dead left behind is swept once it is old.
    let temps = root.join(".neon-storage/tmp");
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    std::fs::write(temps.join("999999-dead"), "half").unwrap();
    for temp in std::fs::read_dir(&temps).unwrap() {
        std::fs::File::open(temp.unwrap().path())
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
    }
    std::fs::write(temps.join("999999-young"), "half").unwrap();
    runtime.block_on(async { open(&root).create(&key("sweep"), "x").await.unwrap() });
    let left: Vec<_> = std::fs::read_dir(&temps)
        .unwrap()
        .map(|temp| temp.unwrap().file_name())
        .collect();
    assert_eq!(left, ["999999-young"]);
}

#[test]
fn of_several_processes_one_wins_every_claim() {
    let dir = tempfile::tempdir().unwrap();
    let mut racers: Vec<_> = (0..3)
        .map(|_| child::start(&format!("claim|{}|60", dir.path().display())))
        .collect();
    let mut won = Vec::new();
    for racer in &mut racers {
        won.extend(child::lines(racer));
        assert!(racer.wait().unwrap().success());
    }
    won.sort();
    let mut expected: Vec<String> = (0..60).map(|number| format!("won {number}")).collect();
    expected.sort();
    assert_eq!(won, expected);
}

#[test]
fn no_increment_of_several_processes_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let storage = open(dir.path());
    runtime
        .block_on(storage.create(&key("counter"), "0"))
        .unwrap();
    let mut racers: Vec<_> = (0..3)
        .map(|_| child::start(&format!("count|{}|15", dir.path().display())))
        .collect();
    for racer in &mut racers {
        assert_eq!(child::lines(racer), ["done"]);
        assert!(racer.wait().unwrap().success());
    }
    assert_eq!(
        runtime.block_on(storage.read(&key("counter"))).unwrap(),
        "45"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_directories_are_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    open(&root).create(&key("a/b"), "x").await.unwrap();
    let mode = |path: &str| root.join(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a/b"), mode("a"), mode("")), (0o600, 0o700, 0o700));
    let mut options = NativeOptions::default();
    options.file_mode = 0o640;
    let open_to_group = Native::open(&root, options).unwrap();
    open_to_group.create(&key("c"), "x").await.unwrap();
    assert_eq!(mode("c"), 0o640);
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_and_reading_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("k"), "x").unwrap();
    let storage = open(dir.path());
    assert_eq!(storage.read(&key("k")).await.unwrap(), "x");
    storage.head(&key("k")).await.unwrap();
    assert_eq!(storage.list_all("").await.unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_object_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    storage.create(&key("real"), "x").await.unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
    std::os::unix::fs::symlink("/etc", dir.path().join("linked")).unwrap();
    std::fs::create_dir_all(dir.path().join("deep/.neon-storage")).unwrap();
    std::fs::write(dir.path().join("deep/.neon-storage/x"), "x").unwrap();
    std::fs::write(dir.path().join("con\ntrol"), "x").unwrap();
    let names: Vec<_> = storage
        .list_all("")
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .collect();
    assert_eq!(names, [key("real")]);
    for name in ["link", "linked", "deep"] {
        assert_eq!(
            storage.read(&key(name)).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_verb_goes_through_a_link_in_the_middle_of_a_path() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let storage = open(dir.path());
    std::fs::create_dir(elsewhere.path().join("deep")).unwrap();
    for file in ["x", "deep/y"] {
        std::fs::write(elsewhere.path().join(file), "not ours").unwrap();
    }
    // One was a link from the beginning; the other was a directory that this handle knows.
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("linked")).unwrap();
    storage.create(&key("swapped/x"), "ours").await.unwrap();
    std::fs::remove_dir_all(dir.path().join("swapped")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("swapped")).unwrap();
    for name in ["linked/x", "linked/deep/y", "swapped/x", "swapped/deep/y"] {
        let name = key(name);
        let absent = |error: neon_storage::Error| {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        };
        absent(storage.read(&name).await.unwrap_err());
        absent(storage.read_range(&name, 0..2).await.unwrap_err());
        let several = storage.get_ranges(&name, &[0..1, 1..2], GetOptions::new());
        absent(several.await.unwrap_err());
        absent(storage.head(&name).await.unwrap_err());
        storage.delete(&name).await.unwrap();
        for options in [PutOptions::create(), PutOptions::overwrite()] {
            let error = storage.put(&name, "x".into(), options).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        }
    }
    let new = key("linked/new");
    assert!(storage.create(&new, "x").await.is_err());
    for prefix in ["", "linked", "linked/", "swapped/deep/"] {
        assert_eq!(storage.list_all(prefix).await.unwrap(), [], "{prefix}");
    }
    for file in ["x", "deep/y"] {
        let content = std::fs::read_to_string(elsewhere.path().join(file)).unwrap();
        assert_eq!(content, "not ours", "{file}");
    }
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 2);
    // The root itself is the user's word, links and all.
    let through = open(&dir.path().join("linked"));
    assert_eq!(through.read(&key("x")).await.unwrap(), "not ours");
    through.create(&key("new"), "x").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_under_a_key_is_no_object_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    storage.create(&key("real"), "x").await.unwrap();
    std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
    storage.delete(&key("link")).await.unwrap();
    assert!(dir.path().join("link").is_symlink());
    assert_eq!(storage.read(&key("real")).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_opened_is_no_failed_fsync() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Recorder::new();
    let options = NativeOptions::default();
    let storage = Native::open_on(Arc::new(disk.clone()), dir.path(), options).unwrap();
    storage.create(&key("d/a"), "1").await.unwrap();
    disk.exhausted.store(true, Ordering::SeqCst);
    for error in [
        storage.create(&key("d/b"), "2").await.unwrap_err(),
        storage.overwrite(&key("d/a"), "2").await.unwrap_err(),
        storage.delete(&key("d/a")).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(
            error.is_retryable() && !error.outcome_unknown(),
            "{error:?}"
        );
    }
    disk.exhausted.store(false, Ordering::SeqCst);
    assert_eq!(storage.read(&key("d/a")).await.unwrap(), "1");
    assert!(!storage.exists(&key("d/b")).await.unwrap());
    storage.create(&key("d/b"), "2").await.unwrap();
    storage.delete(&key("d/a")).await.unwrap();
    let temps = dir.path().join(".neon-storage/tmp");
    assert_eq!(std::fs::read_dir(temps).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_of_a_root_that_was_there_is_synced_before_anything_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let disk = Recorder::new();
    let options = NativeOptions::default();
    let storage = Native::open_on(Arc::new(disk.clone()), &root, options).unwrap();
    assert_eq!(disk.steps(), [], "opening and reading change nothing");
    storage.create(&key("k"), "x").await.unwrap();
    let synced = Step::SyncDir(dir.path().to_owned());
    assert_eq!(
        disk.steps().iter().filter(|step| **step == synced).count(),
        1
    );
    storage.create(&key("l"), "x").await.unwrap();
    assert_eq!(
        disk.steps().iter().filter(|step| **step == synced).count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn successive_objects_of_one_size_have_different_versions() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let mut versions = BTreeSet::new();
    for _ in 0..300 {
        let put = storage.overwrite(&key("k"), "same").await.unwrap();
        assert!(versions.insert(put.version.unwrap().as_str().to_owned()));
    }
    let head = storage.head(&key("k")).await.unwrap();
    assert!(head.age().unwrap() < Duration::from_secs(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_root_directory_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    storage.create(&key("a/b"), "x").await.unwrap();
    std::fs::remove_dir_all(dir.path().join("a")).unwrap();
    std::fs::remove_dir_all(dir.path().join(".neon-storage")).unwrap();
    storage.create(&key("a/b"), "y").await.unwrap();
    let got = storage.get(&key("a/b"), GetOptions::new()).await.unwrap();
    assert_eq!(got.bytes().await.unwrap(), "y");
}
