//! Snapshots of a repository as other formats, judged by the stock programs, and damaged pages on the way out.

use std::ffi::OsString;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use neon_pagestore::Facts;
use neon_pagestore::read::{Snapshot, SnapshotSource};
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::write::{SnapshotOptions, SnapshotWriter};
use neon_pg_layout::{ControlFile, Manifest};
use neon_snapshot_format::basebackup::{BaseBackupWriter, TarOptions};
use neon_snapshot_format::pack::{Codec, NeonFile, NeonWriter, PackId, PackOptions};
use neon_snapshot_format::pgdata::{DirectoryOptions, DirectoryWriter, PgData};
use neon_snapshot_format::{Sequential, SnapshotKind, Source};
use neon_storage::Memory;
use neon_testkit::{Cluster, Installation, OsUser, PgMajor, Scratch, StopMode, own_all, tree};

use crate::clusters::{beside, copy_online, prepare, repository, restore_into};
use crate::files::{Files, Kept, noise, path, reader, send_all, sent};
use crate::support::{empty_commit, init};

/// Has a stock program judge a backup: that of the same major where there is one. 13 and 14 are judged by the one of 15, but for
/// the log, which only the own one can read; so is 17, by the one of 16, with the same entries as manifests had them up to 16.
fn verify(data: &Path, major: PgMajor) {
    let scratch = Scratch::new();
    let mut arguments: Vec<OsString> = Vec::new();
    let judge = match major {
        PgMajor::V13 | PgMajor::V14 => PgMajor::V15,
        PgMajor::V17 => {
            let manifest = fs::read(data.join("backup_manifest")).unwrap();
            let mut manifest = Manifest::parse(&manifest).unwrap();
            let control = fs::read(data.join("global/pg_control")).unwrap();
            let control = ControlFile::decode(&control).unwrap();
            let of_cluster = manifest.system_identifier.take();
            assert_eq!(of_cluster, Some(control.system_identifier));
            let older = scratch.path().join("manifest");
            fs::write(&older, manifest.to_bytes()).unwrap();
            arguments.extend(["-m".into(), older.into()]);
            PgMajor::V16
        }
        own => own,
    };
    if judge != major {
        arguments.push("-n".into());
    }
    let mut command = Installation::of(judge).command("pg_verifybackup");
    command.args(arguments).arg(data).current_dir("/");
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{major} by pg_verifybackup of {judge}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn check(mut copy: Cluster) {
    prepare(&mut copy);
    copy.start();
    let found = copy.psql("select count(*) || ' ' || sum(length(text)) from kept");
    assert_eq!(found, "20000 640000");
    copy.stop(StopMode::Immediate);
}

async fn exports_start_and_verify(major: PgMajor) {
    let cluster = Cluster::builder(major)
        .checksums(true)
        .setting("wal_keep_size", "512MB")
        .start();
    cluster.psql(
        "create table kept as select i, md5(i::text) as text from generate_series(1, 20000) i; \
         create unlogged table scratch as select generate_series(1, 100) i",
    );
    let place = Scratch::new();
    let repository = repository(&place.path().join("repository")).await;
    let id = crate::clusters::snapshot(&repository, None, copy_online(&cluster)).await;
    let maps = reader(&repository);
    let snapshot = Snapshot::open(&repository, id, &maps).await.unwrap();

    // A tar set, unpacked by others.
    let (set, from) = (cluster.scratch_dir().join("set"), snapshot.clone());
    let to = set.clone();
    beside(move || {
        let mut writer = BaseBackupWriter::in_directory(&to, TarOptions::default()).unwrap();
        let mut source = SnapshotSource::new(&from).unwrap();
        source.send(&mut writer).unwrap();
    })
    .await;
    let others = Cluster::without_data(major);
    OsUser::current().create_dir(&others.data_dir());
    let status = Command::new("tar")
        .arg("-xpf")
        .arg(set.join("base.tar"))
        .arg("-C")
        .arg(others.data_dir())
        .status();
    assert!(status.unwrap().success());
    let manifest = others.data_dir().join("backup_manifest");
    fs::copy(set.join("backup_manifest"), &manifest).unwrap();
    own_all(&manifest);
    verify(&others.data_dir(), major);
    check(others);

    // One file, unpacked, is what a restore makes.
    let (file, from) = (
        cluster.scratch_dir().join("snapshot.neon"),
        snapshot.clone(),
    );
    let unpacked = Cluster::without_data(major);
    let into = unpacked.data_dir();
    beside(move || {
        let options = PackOptions {
            codec: Codec::Lz4,
            ..PackOptions::new(PackId([7; 16]))
        };
        let mut writer = NeonWriter::new(fs::File::create(&file).unwrap(), options).unwrap();
        let mut source = SnapshotSource::new(&from).unwrap();
        source.send(&mut writer).unwrap();
        drop(writer.into_inner().unwrap());
        let mut file = NeonFile::open(fs::File::open(&file).unwrap(), None).unwrap();
        assert_eq!(file.snapshot().kind, Some(SnapshotKind::Online));
        file.check().unwrap();
        let options = DirectoryOptions {
            ownership: neon_snapshot_format::pgdata::Ownership::Recorded,
            ..DirectoryOptions::default()
        };
        let writer = DirectoryWriter::create(&into, options).unwrap();
        file.send(&mut Sequential::new(&writer).unwrap()).unwrap();
    })
    .await;
    verify(&unpacked.data_dir(), major);
    let restored = Cluster::without_data(major);
    let report = restore_into(&snapshot, &restored).await;
    assert_eq!(report.bad_pages, []);
    verify(&restored.data_dir(), major);
    assert!(tree(&unpacked.data_dir()) == tree(&restored.data_dir()));
    check(unpacked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_of_13_start_and_verify_by_15() {
    exports_start_and_verify(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_of_14_start_and_verify_by_15() {
    exports_start_and_verify(PgMajor::V14).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_of_15_start_and_verify() {
    exports_start_and_verify(PgMajor::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_of_16_start_and_verify() {
    exports_start_and_verify(PgMajor::V16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_of_17_start_and_verify_by_16_with_an_older_manifest() {
    exports_start_and_verify(PgMajor::V17).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_of_18_start_and_verify() {
    exports_start_and_verify(PgMajor::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_of_a_cluster_is_in_the_commit_and_told_by_every_way_out() {
    let mut cluster = Cluster::builder(PgMajor::V16).checksums(true).start();
    cluster.psql("create table kept as select i, repeat('x', 500) from generate_series(1, 2000) i");
    let table = cluster.psql("select pg_relation_filepath('kept')");
    cluster.stop(StopMode::Fast);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(cluster.data_dir().join(&table))
        .unwrap();
    file.seek(SeekFrom::Start(3 * 8192 + 5000)).unwrap();
    file.write_all(b"damaged").unwrap();
    drop(file);

    let repository = init(&Memory::new()).await;
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer, data) = (repository.clone(), writing.writer(), cluster.data_dir());
    let commit = beside(move || {
        let sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
        let source = PgData::cold(&data).unwrap().allow_bad_pages(true);
        let copied = source.copy_parallel(&sink, 2).unwrap();
        copied
            .finish(&mut Sequential::new(&sink).unwrap(), None)
            .unwrap();
        let facts = Facts::of_control(SnapshotKind::Cold, 0, source.control());
        sink.complete().unwrap().commit(facts).unwrap()
    })
    .await;
    let known = &commit.facts.bad_pages;
    assert_eq!(known.len(), 1, "{known:?}");
    assert_eq!((known[0].path.as_str(), known[0].block), (&*table, 3));
    let id = writing.commit(&commit).await.unwrap().id;
    let snapshot = Snapshot::open(&repository, id, &reader(&repository))
        .await
        .unwrap();

    let copy = Cluster::without_data(PgMajor::V16);
    let restored = restore_into(&snapshot, &copy).await;
    let [bad] = restored.bad_pages.as_slice() else {
        panic!("{:?}", restored.bad_pages);
    };
    assert_eq!((&bad.path, bad.block), (&path(&table), 3));
    let bytes = |cluster: &Cluster| fs::read(cluster.data_dir().join(&table)).unwrap();
    assert!(bytes(&copy) == bytes(&cluster), "written as it was");
    let (_, _, end) = sent(&snapshot).await;
    assert_eq!(end.bad_pages.len(), 1);
    assert_eq!(
        (&end.bad_pages[0].path, end.bad_pages[0].block),
        (&path(&table), 3)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_that_no_commit_knows_is_found_on_the_way_out() {
    let repository = init(&Memory::new()).await;
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer) = (repository.clone(), writing.writer());
    let mut files = Files::from([
        ("base/5/16384.1".to_owned(), vec![0; 5 * 8192]),
        ("base/5/notes".to_owned(), noise(3 * 8192, 2)),
    ]);
    files.get_mut("base/5/16384.1").unwrap()[8192..24576].copy_from_slice(&noise(16384, 1));
    let content = files.clone();
    let stored = beside(move || {
        let sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
        send_all(&sink, &content, &crate::files::Selection::new());
        sink.complete().unwrap()
    })
    .await;
    let mut facts = empty_commit(&[]).facts;
    facts.cluster.checksum_version = 1;
    let commit = stored.commit(facts).unwrap();
    assert_eq!(commit.facts.bad_pages, []);
    let id = writing.commit(&commit).await.unwrap().id;
    let snapshot = Snapshot::open(&repository, id, &reader(&repository))
        .await
        .unwrap();
    for check_pages in [true, false] {
        let from = snapshot.clone();
        let (report, found) = beside(move || {
            let kept = Kept::default();
            let options = RestoreOptions {
                check_pages,
                ..RestoreOptions::default()
            };
            let report = restore(&from, &kept, &options).unwrap();
            (report, kept.into_files())
        })
        .await;
        assert!(found == files);
        let bad: Vec<_> = report
            .bad_pages
            .iter()
            .map(|bad| (bad.path.to_string(), bad.block))
            .collect();
        let expected = [1, 2].map(|block| ("base/5/16384.1".to_owned(), block));
        assert_eq!(bad, expected[..if check_pages { 2 } else { 0 }]);
    }
}
