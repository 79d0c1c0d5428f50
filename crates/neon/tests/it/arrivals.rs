//! What comes from outside is not trusted: its pages, its links, and that there is room for it.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use neon_pg::{
    ErrorKind, Event, ExportFormat, ExportOptions, ImportSnapshot, ImportSource, Imported, Neon,
    PgMajor, SnapshotName,
};
use neon_testkit::{Cluster, OsUser, StopMode};

use crate::moving::import;
use crate::restored::listening;
use crate::support::{Fixture, name, refused};

/// Where a cluster's table `t` is, and its third page damaged.
fn damage(cluster: &mut Cluster) -> String {
    cluster.psql(
        "create table t as select i, repeat(md5(i::text), 20) v from generate_series(1, 3000) i",
    );
    let path = cluster.psql("select pg_relation_filepath('t')");
    cluster.stop(StopMode::Fast);
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(cluster.data_dir().join(&path))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3 * 8192 + 5000).unwrap();
    file.write_all_at(&[!byte[0]], 3 * 8192 + 5000).unwrap();
    path
}

/// A backup in this form, of what the server does not look at either.
fn backup(cluster: &Cluster, named: &str, arguments: &[&str]) -> PathBuf {
    let folder = cluster.scratch_dir().join("backups");
    if !folder.exists() {
        OsUser::current().create_dir(&folder);
    }
    let to = folder.join(named);
    let mut all = vec![
        "-D",
        to.to_str().unwrap(),
        "--no-sync",
        "-c",
        "fast",
        "--no-verify-checksums",
        "--no-manifest",
        "-X",
        "fetch",
    ];
    all.extend(arguments);
    cluster.run_tool("pg_basebackup", all);
    to
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn warned(told: &Mutex<Vec<Event>>, words: &[&str]) -> bool {
    told.lock().unwrap().iter().any(|event| match event {
        Event::Warning(text) => words.iter().all(|word| text.contains(word)),
        _ => false,
    })
}

async fn allowing(neon: &Neon, source: &str, named: &str) -> neon_pg::Result<Imported> {
    let mut wanted = ImportSnapshot::new(ImportSource::parse(source)?);
    wanted.name = Some(SnapshotName::to_give(named).unwrap());
    wanted.allow_bad_pages = true;
    neon.snapshots().import(&wanted).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_is_refused_from_every_source_or_noted_and_told() {
    let home = Fixture::of(PgMajor::V16);
    let mut cluster = Cluster::builder(PgMajor::V16).checksums(true).tcp().start();
    let path = damage(&mut cluster);
    let stopped = text(&cluster.data_dir());
    let mut sources = vec![("stopped", stopped.clone())];
    let check = async |named: &str, source: &str| {
        let error = import(&home, source, named).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{named}: {error:?}");
        let said = format!("{error}: {}", error.hint().unwrap());
        let words = [&*format!("page 3 of {path}"), "checksum", "allow bad pages"];
        for word in words {
            assert!(said.contains(word), "{named}: no {word:?} in {said}");
        }
        let (neon, told) = listening(&home);
        let imported = allowing(&neon, source, named).await.unwrap();
        assert_eq!(imported.bad_pages, 1, "{named}");
        assert!(warned(&told, &["Page 3", &path, "checksum"]), "{named}");
        let snapshot = imported.found.repository.snapshot(imported.found.id).await;
        let bad = snapshot.unwrap().facts().bad_pages.clone();
        assert_eq!((&*bad[0].path, bad[0].block), (&*path, 3), "{named}");
    };
    check("stopped", &stopped).await;
    cluster.start();
    for (named, arguments) in [
        ("plain", &["-Fp"][..]),
        ("tar", &["-Ft"]),
        ("gz", &["-Ft", "-z"]),
    ] {
        sources.push((named, text(&backup(&cluster, named, arguments))));
    }
    let port = cluster.port();
    sources.push(("server", format!("basebackup://postgres@127.0.0.1:{port}/")));
    for (named, source) in &sources[1..] {
        check(named, source).await;
    }
    // One file that says so itself is asked about all the same.
    let file = home.scratch.path().join("bad.neon");
    let from = home.neon.snapshots().find("gz", None).await.unwrap();
    let how = ExportOptions::new(ExportFormat::Neon);
    let snapshots = home.neon.snapshots();
    snapshots.export(&from, &file, &how).await.unwrap();
    check("file", &text(&file)).await;
    let listed = snapshots.list(None).await.unwrap().0;
    assert_eq!(listed.len(), 6);
    // It is known, and so no damage of the storage.
    let checked = home.neon.storages().check(&name("local"), true).await;
    assert!(checked.unwrap().is_sound());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_checksums_is_judged_by_the_headers_of_its_pages() {
    let home = Fixture::of(PgMajor::V15);
    let mut cluster = Cluster::builder(PgMajor::V15)
        .checksums(false)
        .tcp()
        .start();
    let path = damage(&mut cluster);
    cluster.start();
    let server = format!("basebackup://postgres@127.0.0.1:{}/", cluster.port());
    for (named, source) in [
        ("tar", text(&backup(&cluster, "tar", &["-Ft"]))),
        ("plain", text(&backup(&cluster, "plain", &["-Fp"]))),
        ("server", server.clone()),
    ] {
        let imported = import(&home, &source, named).await.unwrap();
        assert_eq!(imported.bad_pages, 0, "{named}");
    }
    cluster.stop(StopMode::Fast);
    let file = fs::File::options()
        .write(true)
        .open(cluster.data_dir().join(&path))
        .unwrap();
    file.write_all_at(&[0xFF; 8], 3 * 8192 + 10).unwrap();
    cluster.start();
    for (named, source) in [
        ("tar2", text(&backup(&cluster, "tar2", &["-Ft"]))),
        ("plain2", text(&backup(&cluster, "plain2", &["-Fp"]))),
        ("server2", server),
    ] {
        let error = import(&home, &source, named).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{named}: {error:?}");
        assert!(error.to_string().contains("header"), "{named}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_of_a_foreign_backup_lead_to_its_own_tablespaces_only() {
    let home = Fixture::of(PgMajor::V15);
    let cluster = Cluster::builder(PgMajor::V15).checksums(true).start();
    crate::moving::fill(&cluster);
    let place = cluster
        .psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'outside'");
    let oid = cluster.psql("select oid from pg_tablespace where spcname = 'outside'");
    let moved = cluster.scratch_dir().join("moved");
    let mapping = format!("--tablespace-mapping={place}={}", moved.display());
    let plain = backup(&cluster, "plain", &["-Fp", &mapping]);
    let from = text(&plain);
    // What lies beside the files of this version is nobody's tablespace.
    fs::write(moved.join("secret"), "of somebody else").unwrap();
    fs::create_dir(moved.join("PG_14_202107181")).unwrap();
    let imported = import(&home, &from, "good").await.unwrap();
    let snapshot = imported.found.repository.snapshot(imported.found.id).await;
    let inside = neon_snapshot_format::SnapshotPath::new(format!("pg_tblspc/{oid}")).unwrap();
    let listed = snapshot.unwrap().list(&inside).await.unwrap();
    let names: Vec<String> = listed.iter().map(|(path, _)| path.to_string()).collect();
    assert_eq!(names, [format!("pg_tblspc/{oid}/PG_15_202209061")]);
    // Elsewhere.
    let link = plain.join("pg_tblspc").join(&oid);
    let refuse = async |why: &str| {
        let error = import(&home, &from, "bad").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{why}: {error:?}");
        let mut said = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            said.push_str(&format!(": {next}"));
            cause = next.source();
        }
        assert!(said.contains(why), "no {why:?} in {said}");
    };
    fs::remove_file(&link).unwrap();
    symlink("/etc", &link).unwrap();
    refuse("leads to no tablespace").await;
    let trap = home.scratch.path().join("trap");
    fs::create_dir(&trap).unwrap();
    symlink("/etc", trap.join("PG_15_202209061")).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(&trap, &link).unwrap();
    refuse("leads to no tablespace").await;
    fs::remove_file(&link).unwrap();
    symlink(&moved, &link).unwrap();
    if rustix::process::geteuid().is_root() {
        let theirs = moved.join("PG_15_202209061");
        std::os::unix::fs::chown(&theirs, Some(12_345), None).unwrap();
        refuse("belongs to another user").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_behind_a_link_is_not_left_out_and_other_links_are_told() {
    let home = Fixture::of(PgMajor::V15);
    let mut cluster = Cluster::builder(PgMajor::V15).checksums(true).start();
    cluster.psql("create table t as select generate_series(1, 1000) i");
    let path = cluster.psql("select pg_relation_filepath('t')");
    let plain = backup(&cluster, "plain", &["-Fp"]);
    cluster.stop(StopMode::Fast);
    for (named, folder) in [("plain", &plain), ("stopped", &cluster.data_dir())] {
        symlink("/nonexistent/here.conf", folder.join("extra.conf")).unwrap();
        let (neon, told) = listening(&home);
        let mut wanted = ImportSnapshot::new(ImportSource::Path(folder.clone()));
        wanted.name = Some(SnapshotName::to_give(named).unwrap());
        neon.snapshots().import(&wanted).await.unwrap();
        assert!(
            warned(&told, &["extra.conf", "symbolic link"]),
            "{named}: {told:?}"
        );
        // On another disk, by hand.
        let away = home.scratch.path().join(named);
        fs::rename(folder.join(&path), &away).unwrap();
        symlink(&away, folder.join(&path)).unwrap();
        wanted.name = Some(SnapshotName::to_give("bad").unwrap());
        let error = neon.snapshots().import(&wanted).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{named}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_import_left_is_found_by_the_doctor_and_gone_with_the_next_import() {
    let home = Fixture::of(PgMajor::V15);
    let mut cluster = Cluster::builder(PgMajor::V15).start();
    cluster.stop(StopMode::Fast);
    let from = text(&cluster.data_dir());
    let state = home.scratch.path().join("home/state/import");
    let leave = async |id: &str| {
        import(&home, &from, &format!("temporary-{id}"))
            .await
            .unwrap();
        fs::create_dir_all(&state).unwrap();
        let note = format!(r#"{{"storage": "local", "snapshot": "temporary-{id}"}}"#);
        fs::write(state.join(format!("{id}.json")), note).unwrap();
    };
    let left = async || {
        let listed = home.neon.snapshots().list(None).await.unwrap().0;
        (listed.len(), fs::read_dir(&state).unwrap().count())
    };
    leave("0123456789abcdef").await;
    let mut options = neon_pg::DoctorOptions::default();
    let report = home.neon.doctor(&options).await.unwrap();
    let found = report.findings.iter().find(|one| one.code == "import-left");
    let found = found.unwrap();
    assert!(found.fixable && found.subject.contains("temporary-0123456789abcdef"));
    assert_eq!(left().await, (1, 1));
    options.fix = true;
    let report = home.neon.doctor(&options).await.unwrap();
    assert!(!report.findings.iter().any(|one| one.code == "import-left"));
    assert_eq!(left().await, (0, 0));
    leave("fedcba9876543210").await;
    import(&home, &from, "next").await.unwrap();
    assert_eq!(left().await, (1, 0));
    assert_eq!(
        refused(
            home.neon
                .snapshots()
                .find("temporary-fedcba9876543210", None)
                .await
        ),
        ErrorKind::NotFound
    );
}
