//! Things are told by their content, and things we do not read by what they are.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use neon_pg_layout::ClusterState;
use neon_snapshot_format::basebackup::{BaseBackup, BaseBackupWriter, TarOptions};
use neon_snapshot_format::pack::{NeonWriter, PackId, PackOptions, PackWriter};
use neon_snapshot_format::pgdata::PgData;
use neon_snapshot_format::{Compression, Detected, ErrorKind, Source, detect, detect_start};
use neon_testkit::{Cluster, PgMajor, StopMode};

use crate::clusters::{copy_online, unpack};

#[test]
fn every_form_of_a_snapshot_is_told() {
    let major = PgMajor::V15;
    let mut cluster = Cluster::builder(major)
        .setting("wal_keep_size", "256MB")
        .start();
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let is = |name: &str| detect(&at(name)).unwrap();

    let state = ClusterState::InProduction;
    assert_eq!(
        detect(&cluster.data_dir()).unwrap(),
        Detected::DataDirectory { major, state }
    );
    let plain = at("set");
    copy_online(
        &cluster,
        &mut BaseBackupWriter::in_directory(&plain, TarOptions::default()).unwrap(),
    )
    .unwrap();
    assert_eq!(
        is("set"),
        Detected::TarSet {
            compression: Compression::None
        }
    );
    let copy = Cluster::without_data(major);
    unpack(&mut BaseBackup::in_directory(&plain).unwrap(), &copy);
    let unpacked = Detected::PlainBackup {
        major,
        incremental: false,
        manifest: true,
    };
    assert_eq!(detect(&copy.data_dir()).unwrap(), unpacked);
    assert_eq!(
        detect(&copy.data_dir().join("pg_wal")).unwrap(),
        Detected::WalDirectory
    );
    let stock = cluster
        .tool("pg_basebackup")
        .args([
            "-Ft",
            "-X",
            "fetch",
            "-c",
            "fast",
            "--compress=server-gzip",
            "--no-manifest",
            "-D",
            "-",
        ])
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let head = &stock.stdout[..stock.stdout.len().min(64 << 10)];
    assert!(matches!(
        detect_start(head),
        Detected::Tar {
            compression: Compression::Gzip(_)
        }
    ));
    cluster.stop(StopMode::Fast);

    let mut source = PgData::cold(&cluster.data_dir()).unwrap();
    for (name, compression) in [
        ("a", Compression::None),
        ("b", Compression::Gzip(6)),
        ("c", Compression::Lz4),
        ("d", Compression::Zstd(3)),
    ] {
        let how = TarOptions {
            compression,
            ..TarOptions::default()
        };
        let mut file = fs::File::create(at(name)).unwrap();
        source
            .send(&mut BaseBackupWriter::in_stream(&mut file, how))
            .unwrap();
        assert_eq!(is(name), Detected::Tar { compression }, "whatever its name");
    }
    let options = PackOptions::new(PackId([1; 16]));
    let mut writer =
        NeonWriter::new(fs::File::create(at("n.tar")).unwrap(), options.clone()).unwrap();
    source.send(&mut writer).unwrap();
    assert_eq!(is("n.tar"), Detected::Neon);
    drop(
        PackWriter::new(fs::File::create(at("p")).unwrap(), options)
            .unwrap()
            .finish(0, None)
            .unwrap(),
    );
    assert_eq!(is("p"), Detected::Pack);
    let segment = fs::read_dir(cluster.data_dir().join("pg_wal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_file() && path.file_name().unwrap().len() == 24)
        .unwrap();
    fs::create_dir(at("wal")).unwrap();
    fs::copy(&segment, at("wal").join(segment.file_name().unwrap())).unwrap();
    assert_eq!(is("wal"), Detected::WalDirectory);
    assert_eq!(detect(&segment).unwrap(), Detected::WalSegment { major });
}

#[test]
fn what_is_not_read_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let why = |name: &str| match detect(&at(name)).unwrap() {
        Detected::Unknown { why } => why,
        other => panic!("{name} is {other}"),
    };
    let file = |name: &str, content: &[u8]| {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::File::create(at(name))
            .unwrap()
            .write_all(content)
            .unwrap();
    };
    file("dump", b"PGDMP\x01\x0e\x00");
    assert!(why("dump").contains("pg_restore"));
    file("sql", b"--\n-- PostgreSQL database dump\n--\n");
    assert!(why("sql").contains("psql"));
    file("text", b"hello");
    assert!(why("text").contains("nothing that is known"));
    file("nothing", b"");
    assert!(why("nothing").contains("nothing that is known"));
    file("gz", &[0x1F, 0x8B, 8, 0, 0]);
    assert!(why("gz").contains("gzip"), "{}", why("gz"));
    let packed = zstd::bulk::compress(&[b'x'; 4000], 3).unwrap();
    file("zst", &packed);
    assert!(why("zst").contains("no tar archive"));
    file("half/PG_VERSION", b"15\n");
    fs::create_dir(at("half/base")).unwrap();
    assert!(why("half").contains("not finished"));
    file("broken/global/pg_control", b"zero");
    assert!(why("broken").contains("control file"));
    file("repo/backup/backup.info", b"");
    fs::create_dir(at("repo/archive")).unwrap();
    assert!(why("repo").contains("pgBackRest"));
    file("probackup/backups/x", b"");
    fs::create_dir(at("probackup/wal")).unwrap();
    assert!(why("probackup").contains("pg_probackup"));
    file("other/file", b"");
    assert!(why("other").contains("something else"));
    file("set/base.tar", b"no tar");
    assert!(why("set").contains("base.tar"));
    file("walg/basebackups_005/x", b"");
    assert_eq!(detect(&at("walg")).unwrap(), Detected::WalG);
    fs::create_dir(at("empty")).unwrap();
    assert_eq!(detect(&at("empty")).unwrap(), Detected::EmptyDirectory);
    assert_eq!(
        detect(&at("missing")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert!(
        detect(std::path::Path::new("/dev/null"))
            .unwrap()
            .to_string()
            .contains("neither")
    );
}
