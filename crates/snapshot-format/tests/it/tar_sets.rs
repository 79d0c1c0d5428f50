//! Base backups in tar format: what `pg_basebackup` writes is read, what we write is read by others.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use neon_snapshot_format::basebackup::{BaseBackup, BaseBackupWriter, TarOptions};
use neon_snapshot_format::pgdata::{DirectoryWriter, PgData};
use neon_snapshot_format::{Compression, Sequential, SnapshotKind, Source};
use neon_testkit::{Cluster, OsUser, PgMajor, StopMode, own_all, tree};

use crate::clusters::{contents, copy_online, options, start, unpack, varied, varied_with, verify};
use crate::for_every_major;

/// What the packaged clients can compress with: only those of 15 are built with LZ4 and Zstandard.
fn stock_arguments(major: PgMajor) -> Vec<&'static str> {
    match major {
        PgMajor::V13 => vec!["-X", "fetch"],
        PgMajor::V14 => vec!["-X", "stream", "-z"],
        PgMajor::V15 => vec!["-X", "stream", "--compress=client-lz4"],
        PgMajor::V16 => vec!["-X", "fetch", "--compress=server-gzip"],
        PgMajor::V17 => vec!["-X", "stream"],
        _ => vec!["-X", "fetch", "-z"],
    }
}

fn read_stock(cluster: &Cluster, arguments: &[&str]) {
    let set = cluster.scratch_dir().join("set");
    let mut all = vec!["-Ft", "-c", "fast", "-D", set.to_str().unwrap()];
    all.extend(arguments);
    cluster.run_tool("pg_basebackup", all);
    let mut copy = Cluster::without_data(cluster.major());
    unpack(&mut BaseBackup::in_directory(&set).unwrap(), &copy);
    verify(&copy.data_dir(), cluster.major());
    start(&mut copy);
    assert_eq!(contents(&copy), contents(cluster));
    copy.check_running();
}

fn a_stock_tar_set_becomes_a_directory_that_starts(major: PgMajor) {
    let cluster = varied_with(major, true, major >= PgMajor::V16);
    read_stock(&cluster, &stock_arguments(major));
}

for_every_major!(a_stock_tar_set_becomes_a_directory_that_starts:
    a_tar_set_of_13_written_by_pg_basebackup_18_starts = V13,
    a_gzip_tar_set_of_14_written_by_pg_basebackup_18_starts = V14,
    an_lz4_tar_set_of_15_written_by_its_pg_basebackup_starts = V15,
    a_server_gzip_tar_set_of_16_written_by_its_pg_basebackup_starts = V16,
    a_tar_set_of_17_written_by_pg_basebackup_18_starts = V17,
    a_gzip_tar_set_of_18_written_by_its_pg_basebackup_starts = V18,
);

#[test]
fn a_server_zstd_tar_set_of_15_written_by_its_pg_basebackup_starts() {
    let cluster = varied_with(PgMajor::V15, true, false);
    read_stock(&cluster, &["-X", "fetch", "--compress=server-zstd:3"]);
}

#[test]
fn a_stock_stream_becomes_a_directory_that_starts() {
    let cluster = Cluster::builder(PgMajor::V18).start();
    cluster.psql("create table t as select generate_series(1, 1000) i");
    let mut child = cluster
        .tool("pg_basebackup")
        .args(["-Ft", "-X", "fetch", "-c", "fast", "-D", "-"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut copy = Cluster::without_data(PgMajor::V18);
    unpack(
        &mut BaseBackup::in_stream(child.stdout.take().unwrap()),
        &copy,
    );
    assert!(child.wait().unwrap().success());
    verify(&copy.data_dir(), PgMajor::V18);
    start(&mut copy);
    assert_eq!(copy.psql("select count(*) from t"), "1000");
}

fn our_options(major: PgMajor) -> TarOptions {
    let compression = match major {
        PgMajor::V14 => Compression::Gzip(1),
        PgMajor::V15 => Compression::Lz4,
        PgMajor::V16 => Compression::Zstd(1),
        _ => Compression::None,
    };
    TarOptions {
        compression,
        separate_wal: major == PgMajor::V17,
        ..TarOptions::default()
    }
}

/// Unpacks with GNU tar as the user of servers.
fn gnu_tar(archive: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    let mut command = Command::new("tar");
    if archive
        .extension()
        .is_some_and(|extension| extension == "lz4")
    {
        command.args(["-I", "lz4"]);
    }
    let status = command
        .arg("-xpf")
        .arg(archive)
        .arg("-C")
        .arg(into)
        .status()
        .unwrap();
    assert!(status.success());
}

fn our_tar_set_is_read_by_others_and_starts(major: PgMajor) {
    let cluster = varied(major, true);
    let set = cluster.scratch_dir().join("set");
    let how = our_options(major);
    let mut writer = BaseBackupWriter::in_directory(&set, how).unwrap();
    let end = copy_online(&cluster, &mut writer).unwrap();
    assert_eq!(end.kind, Some(SnapshotKind::Online));

    // Unpacked by GNU tar, tablespaces where the manifest's paths say.
    let mut others = Cluster::without_data(major);
    let data = others.data_dir();
    OsUser::current().create_dir(&data);
    for entry in fs::read_dir(&set).unwrap() {
        let archive = entry.unwrap().path();
        let name = archive.file_name().unwrap().to_str().unwrap().to_owned();
        match name.split('.').next().unwrap() {
            "base" => gnu_tar(&archive, &data),
            "pg_wal" => gnu_tar(&archive, &data.join("pg_wal")),
            "backup_manifest" => drop(fs::copy(&archive, data.join(&name)).unwrap()),
            oid => gnu_tar(&archive, &data.join("pg_tblspc").join(oid)),
        }
    }
    for path in ["pg_tblspc", "backup_manifest"] {
        own_all(&data.join(path));
    }
    verify(&data, major);
    fs::remove_file(data.join("tablespace_map")).unwrap();
    start(&mut others);
    assert_eq!(contents(&others), contents(&cluster));

    // And by ourselves, with tablespaces outside. What others wrote is read from every major above.
    if !matches!(major, PgMajor::V15 | PgMajor::V17) {
        return;
    }
    let mut ours = Cluster::without_data(major);
    unpack(&mut BaseBackup::in_directory(&set).unwrap(), &ours);
    verify(&ours.data_dir(), major);
    start(&mut ours);
    assert_eq!(contents(&ours), contents(&cluster));
    ours.check_running();
}

for_every_major!(our_tar_set_is_read_by_others_and_starts:
    our_tar_set_of_13_starts_and_verifies_by_15 = V13,
    our_gzip_tar_set_of_14_starts_and_verifies_by_15 = V14,
    our_lz4_tar_set_of_15_starts_and_verifies = V15,
    our_zstd_tar_set_of_16_starts_and_verifies = V16,
    our_tar_set_of_17_with_its_log_apart_starts_and_its_manifest_reads_back = V17,
    our_tar_set_of_18_starts_and_verifies = V18,
);

#[test]
fn a_cold_cluster_goes_through_a_compressed_stream_unchanged() {
    let mut cluster = Cluster::builder(PgMajor::V16).checksums(true).start();
    cluster.psql("create unlogged table t as select generate_series(1, 1000) i");
    cluster.stop(StopMode::Fast);
    let mut source = PgData::cold(&cluster.data_dir()).unwrap();
    let straight = Cluster::without_data(PgMajor::V16);
    unpack(&mut source, &straight);
    for compression in [Compression::Gzip(1), Compression::Zstd(1)] {
        let (reader, writer) = std::io::pipe().unwrap();
        let around = Cluster::without_data(PgMajor::V16);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let how = TarOptions {
                    compression,
                    ..TarOptions::default()
                };
                let mut writer = BaseBackupWriter::in_stream(writer, how);
                source.send(&mut writer).unwrap();
            });
            unpack(&mut BaseBackup::in_stream(reader), &around);
        });
        let (mut a, b) = (tree(&straight.data_dir()), tree(&around.data_dir()));
        a.retain(|path, _| path != "backup_manifest");
        for (path, facts) in &a {
            assert!(b.get(path) == Some(facts), "{compression}: {path}");
        }
        assert_eq!(b.len(), a.len() + 1);
    }
}

#[test]
fn tablespaces_do_not_fit_into_a_stream_and_bad_files_are_told_by_the_manifest() {
    let mut cluster = varied(PgMajor::V15, true);
    cluster.stop(StopMode::Fast);
    let mut source = PgData::cold(&cluster.data_dir()).unwrap();
    let mut stream = BaseBackupWriter::in_stream(std::io::sink(), TarOptions::default());
    let error = source.send(&mut stream).unwrap_err();
    assert_eq!(error.kind(), neon_snapshot_format::ErrorKind::Unsupported);

    // A cold set keeps its tablespaces as links.
    let set = cluster.scratch_dir().join("set");
    source
        .send(&mut BaseBackupWriter::in_directory(&set, TarOptions::default()).unwrap())
        .unwrap();
    let mut copy = Cluster::without_data(PgMajor::V15);
    unpack(&mut BaseBackup::in_directory(&set).unwrap(), &copy);
    start(&mut copy);
    assert_eq!(copy.psql("select sum(i) from far"), "12502500");

    let mut bytes = Vec::new();
    fs::File::open(set.join("base.tar"))
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    let at = bytes.len() * 2 / 3 / 512 * 512 + 100;
    bytes[at] ^= 0x10;
    fs::write(set.join("base.tar"), &bytes).unwrap();
    let damaged = Cluster::without_data(PgMajor::V15);
    let writer = DirectoryWriter::create(&damaged.data_dir(), options(&damaged)).unwrap();
    let error = BaseBackup::in_directory(&set)
        .unwrap()
        .send(&mut Sequential::new(&writer).unwrap())
        .unwrap_err();
    assert!(
        matches!(
            error.kind(),
            neon_snapshot_format::ErrorKind::Damaged | neon_snapshot_format::ErrorKind::Malformed
        ),
        "{error}"
    );
    assert!(!damaged.data_dir().join("global/pg_control").exists());
}
