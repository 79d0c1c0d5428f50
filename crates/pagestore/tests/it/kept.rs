//! Whole repositories of version 1, as they were stored once: whatever changes, their snapshots come back, and are built on.
//!
//! They stand as files below `tests/golden/repository-v1*`, one with everything encrypted; between them they have every kind of
//! object, frames of every codec, and frames that moved in every form. `NEON_GOLDEN` makes those that are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use neon_pagestore::changes::Hints;
use neon_pagestore::crypt::KeySource;
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{CommitId, ErrorKind, OpenOptions, Repository};
use neon_snapshot_format::pack::Codec;
use neon_storage::{Key, StorageExt};

use crate::clocked::Clocked;
use crate::files::{Files, Selection, noise, path, restored, send_all};
use crate::support::{empty_commit, init, options};
use crate::thinned::{open, settle};

const PAGE: usize = 8192;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

fn with_key() -> OpenOptions {
    options().key(KeySource::key_file(&[8; 40]).unwrap())
}

/// A page that says what it is, and compresses to little.
fn page(file: &str, page: usize, version: usize) -> Vec<u8> {
    let text = format!("page {page} of {file} in version {version}; ");
    text.bytes().cycle().take(PAGE).collect()
}

/// What a cluster had in each version. A third of the large file changes each time.
fn tree(version: usize) -> Files {
    let mut files = Files::new();
    for directory in ["/", "base/", "base/5/", "global/"] {
        files.insert(directory.to_owned(), Vec::new());
    }
    let mut put = |name: &str, bytes: Vec<u8>| files.insert(name.to_owned(), bytes);
    put("PG_VERSION", b"17\n".to_vec());
    put("base/5/empty", Vec::new());
    let large = (0..48).flat_map(|at| {
        let changed = (0..=version).rev().find(|then| then % 3 == at % 3);
        page("large", at, changed.unwrap_or(0))
    });
    put("base/5/large", large.collect());
    let mut sparse = vec![0; 20 * PAGE];
    for at in [3, 4, 17] {
        sparse[at * PAGE..][..PAGE].copy_from_slice(&page("sparse", at, version % 2));
    }
    put("base/5/sparse", sparse);
    // One that grows within its last page, and one that is cut off and grows again.
    put(
        "base/5/short",
        page("short", 0, 0)[..100 + version].to_vec(),
    );
    let pages = [6, 2, 5][version % 3];
    put(
        "base/5/long",
        (0..pages)
            .flat_map(|at| page("long", at, version / 2))
            .collect(),
    );
    put("base/5/noise", noise(3000, 5));
    put(&format!("base/5/only_{version}"), page("only", 0, version));
    put("global/pg_control", page("control", 0, version));
    files
}

async fn take(
    repository: &Repository,
    parent: Option<CommitId>,
    version: usize,
    codec: Codec,
    names: &[&str],
) -> CommitId {
    let writing = repository.begin_writing().await.unwrap();
    let parent = match parent {
        None => None,
        Some(id) => {
            writing.protect(id).await.unwrap();
            Some(open(repository, id).await)
        }
    };
    let (to, writer) = (repository.clone(), writing.writer());
    let stored = tokio::task::spawn_blocking(move || {
        let options = SnapshotOptions {
            compare: true,
            codec,
            ..SnapshotOptions::default()
        };
        let mut sink = SnapshotWriter::new(&to, writer, options)
            .unwrap()
            .with_hints(Hints::Exact);
        if let Some(parent) = &parent {
            sink = sink.with_parent(Parent::of(parent));
        }
        send_all(&sink, &tree(version), &Selection::new());
        sink.complete().unwrap()
    });
    let commit = stored.await.unwrap().commit(empty_commit(names).facts);
    writing.commit(&commit.unwrap()).await.unwrap().id
}

/// What is in each of the repositories, by name.
const HELD: [(&str, usize); 4] = [
    ("pgdata@two", 1),
    ("pgdata@HEAD{3}", 1),
    ("three", 3),
    ("lone", 9),
];

/// A repository in which everything occurs.
async fn busy(storage: &Clocked, repository: &Repository) {
    let zstd = Codec::default();
    let one = take(repository, None, 0, zstd, &["pgdata@one"]).await;
    let two = ["pgdata@two", "pgdata@HEAD{3}"];
    let two = take(repository, Some(one), 1, Codec::Lz4, &two).await;
    // The name is taken.
    let second = take(repository, Some(two), 2, Codec::None, &["pgdata@two"]).await;
    take(repository, Some(second), 3, zstd, &["three"]).await;
    // Comes from elsewhere, where nothing is encrypted.
    let elsewhere = init(&Clocked::new()).await;
    let lone = take(&elsewhere, None, 9, zstd, &["lone"]).await;
    elsewhere.copy_to(repository, lone).await.unwrap();
    repository.destroy(one).await.unwrap();
    settle(storage, repository).await;
    repository.destroy(two).await.unwrap();
    repository.undo_destroy(two).await.unwrap();
    repository.pin(two, "a mount").await.unwrap();
    repository.list().await.unwrap();
    let gone = take(repository, None, 5, zstd, &["gone"]).await;
    repository.destroy(gone).await.unwrap();
    // Announced, and a writer that died.
    repository.collect().await.unwrap();
    drop(repository.begin_writing().await.unwrap());
}

async fn store(storage: &Clocked, place: &Path) {
    for object in storage.list_all("").await.unwrap() {
        let file = place.join(object.key.as_str());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, storage.read(&object.key).await.unwrap()).unwrap();
    }
}

fn files_below(place: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(place).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => files_below(&entry.path(), &format!("{name}/"), found),
            false => drop(found.insert(name, fs::read(entry.path()).unwrap())),
        }
    }
}

/// The golden repository, in memory; made if it is to be.
async fn kept(name: &str, options: OpenOptions) -> (Clocked, BTreeMap<String, Vec<u8>>) {
    let place = golden(name);
    if std::env::var_os("NEON_GOLDEN").is_some() && !place.exists() {
        let storage = Clocked::new();
        let repository = Repository::init(Arc::new(storage.clone()), options);
        busy(&storage, &repository.await.unwrap()).await;
        store(&storage, &place).await;
    }
    let mut objects = BTreeMap::new();
    files_below(&place, "", &mut objects);
    let storage = Clocked::new();
    for (key, bytes) in &objects {
        let key = Key::new(key.as_str()).unwrap();
        storage.create(&key, bytes.clone()).await.unwrap();
    }
    (storage, objects)
}

/// All that it held is there, by every name and in every way to read it.
async fn is_held(repository: &Repository, added: &[(&str, usize)]) {
    let mut by_id: BTreeMap<CommitId, BTreeSet<String>> = BTreeMap::new();
    for (name, version) in HELD.iter().chain(added) {
        let id = repository.resolve(name).await.unwrap();
        by_id.entry(id).or_default().insert((*name).to_owned());
        let snapshot: Snapshot = open(repository, id).await;
        let expected = tree(*version);
        assert!(restored(&snapshot).await.0 == expected, "{name}");
        let (large, sparse) = (&expected["base/5/large"], &expected["base/5/sparse"]);
        let fresh = open(repository, id).await;
        for (file, bytes) in [("base/5/large", large), ("base/5/sparse", sparse)] {
            for (number, expected) in (0..).zip(bytes.chunks(PAGE)) {
                let page = fresh.read_page(&path(file), number).await.unwrap();
                assert_eq!(page.unwrap(), expected, "{name}: {file} {number}");
            }
        }
    }
    let mut unnamed = 0;
    for listed in repository.list().await.unwrap() {
        assert!(listed.summary.is_ok());
        let names: BTreeSet<String> = listed.names.iter().map(ToString::to_string).collect();
        match by_id.remove(&listed.id) {
            Some(expected) => assert_eq!(names, expected),
            // The one whose name was taken.
            None => {
                assert_eq!(names, BTreeSet::new());
                let snapshot = open(repository, listed.id).await;
                assert!(restored(&snapshot).await.0 == tree(2));
                unnamed += 1;
            }
        }
    }
    assert_eq!((by_id.len(), unnamed), (0, 1));
    for gone in ["pgdata@one", "gone"] {
        let error = repository.resolve(gone).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{gone}");
    }
    let checked = repository.check(true).await.unwrap();
    assert_eq!(checked.findings, []);
}

async fn is_read_as_ever(name: &str, options: OpenOptions, encrypted: bool) {
    let (storage, objects) = kept(name, options.clone()).await;
    let repository = Repository::open(Arc::new(storage.clone()), options);
    let repository = repository.await.unwrap();
    assert_eq!(repository.is_encrypted(), encrypted);
    // That it is worth keeping.
    let has = |prefix: &str, part: &str| {
        let mut keys = objects.keys();
        keys.any(|key| key.starts_with(prefix) && key[prefix.len()..].contains(part))
    };
    for (prefix, part) in [
        ("packs/", ""),
        ("moves/", ""),
        ("snapshots/", "-"),
        ("names/", "declined-"),
        ("catalog/", ""),
        ("leases/", ""),
        ("pins/", ""),
        ("tombstones/", ""),
        ("doomed/", ""),
    ] {
        assert!(has(prefix, part), "{prefix}…{part}");
    }
    assert_eq!(has("keys/", ""), encrypted);
    // The flag of moves of thinned frames.
    let thinned = |(key, object): (&String, &Vec<u8>)| key.starts_with("moves/") && object[20] == 1;
    assert!(objects.iter().any(thinned));

    is_held(&repository, &[]).await;
    assert_eq!(repository.pins().await.unwrap().len(), 1);
    // And it goes on.
    let three = repository.resolve("three").await.unwrap();
    take(&repository, Some(three), 4, Codec::default(), &["four"]).await;
    is_held(&repository, &[("four", 4)]).await;
    storage.advance(crate::support::GRACE * 2);
    settle(&storage, &repository).await;
    is_held(&repository, &[("four", 4)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_of_version_1_is_read_and_written_as_ever() {
    is_read_as_ever("repository-v1", options(), false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_repository_of_version_1_is_read_and_written_as_ever() {
    is_read_as_ever("repository-v1-encrypted", with_key(), true).await;
}
