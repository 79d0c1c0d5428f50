//! Snapshots offered to stock programs, and judged by a server on a copy.

use std::path::{Path, PathBuf};
use std::process::Command;

use neon_pg::{ErrorKind, PgMajor, ServeOptions, VerifyDepth};
use neon_testkit::{Cluster, OsUser, StopMode};

use crate::moving::{fill, found, holds_what_was_filled, import, source, target};
use crate::support::{Fixture, refused, take as snapshot_of};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Has a stock `pg_basebackup` take a snapshot; returns how it ended and what it said.
async fn take(
    home: &Fixture,
    named: &str,
    client: &Cluster,
    arguments: &[String],
    password: Option<&str>,
) -> (bool, String) {
    let from = found(home, named).await;
    let offer = home
        .neon
        .snapshots()
        .serve(&from, &ServeOptions::default())
        .await
        .unwrap();
    let about = offer.about().clone();
    assert!(about.command.contains(&about.address.port().to_string()));
    assert!(!about.command.contains(offer.token().expose()));
    assert!(about.address.ip().is_loopback());
    let mut command = client.tool("pg_basebackup");
    command
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            "neon",
            "--no-sync",
            "-c",
            "fast",
            "-w",
        ])
        .args(["-p", &about.address.port().to_string()])
        .args(arguments)
        .env("PGPASSWORD", password.unwrap_or(offer.token().expose()));
    let mut taking = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = tokio::select! {
        served = offer.run() => { served.unwrap(); taking.await.unwrap() }
        output = &mut taking => output.unwrap(),
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_that_others_can_reach_warns_and_one_that_nobody_can_take_ends() {
    let home = Fixture::of(PgMajor::V15);
    home.neon.pg().create(&home.stopped("one")).await.unwrap();
    let from = snapshot_of(&home.neon, "one", "a").await;
    let snapshots = home.neon.snapshots();
    let mut options = ServeOptions::default();
    let quiet = snapshots.serve(&from, &options).await.unwrap();
    assert_eq!(quiet.about().warnings, Vec::<String>::new());
    options.address = "0.0.0.0:0".parse().unwrap();
    let open = snapshots.serve(&from, &options).await.unwrap();
    assert_eq!(open.about().warnings.len(), 1);
    assert!(open.about().warnings[0].contains("nothing is encrypted"));
    assert!(open.about().command.contains(" -h HOST -p "));

    // Two log in and break off.
    let port = quiet.about().address.port();
    let uri = format!("host=127.0.0.1 port={port} user=neon replication=true");
    let client = Cluster::builder(PgMajor::V15).start();
    let token = quiet.token().expose().to_owned();
    let breaking = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            let mut psql = client.tool("psql");
            psql.args(["-XAtc", "IDENTIFY_SYSTEM", &uri])
                .env("PGPASSWORD", &token);
            let said = psql.output().unwrap();
            assert!(said.status.success(), "{said:?}");
        }
    });
    let ended = quiet.run().await;
    breaking.await.unwrap();
    assert_eq!(refused(ended), ErrorKind::Failed);
}

fn mapping(cluster: &Cluster, to: &Path) -> String {
    let place = cluster
        .psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'outside'");
    format!("-T{place}={}", to.display())
}

async fn is_taken(major: PgMajor, log: &str) {
    let home = Fixture::of(major);
    let cluster = Cluster::builder(major).checksums(true).tcp().start();
    fill(&cluster);
    let address = format!("basebackup://postgres@127.0.0.1:{}/", cluster.port());
    import(&home, &address, "online").await.unwrap();
    let mut copy = target(major);
    let spaces = copy.tablespace_dir("moved");
    let arguments = [
        "-D".to_owned(),
        text(&copy.data_dir()),
        "-X".to_owned(),
        log.to_owned(),
        mapping(&cluster, &spaces),
    ];
    let (good, said) = take(&home, "online", &copy, &arguments, None).await;
    assert!(good, "{said}");
    let own = copy.installation().tool("pg_verifybackup").is_some();
    let mut judged = vec![text(&copy.data_dir())];
    judged.extend((!own).then(|| "--no-parse-wal".to_owned()));
    copy.run_tool("pg_verifybackup", judged);
    copy.set("log_checkpoints", "on");
    copy.start();
    holds_what_was_filled(&copy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_program_takes_a_snapshot_of_13_with_streamed_log() {
    is_taken(PgMajor::V13, "stream").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_program_takes_a_snapshot_of_15_with_fetched_log() {
    is_taken(PgMajor::V15, "fetch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_program_takes_a_snapshot_of_16_with_streamed_log() {
    is_taken(PgMajor::V16, "stream").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_program_takes_a_snapshot_of_18_with_fetched_log() {
    is_taken(PgMajor::V18, "fetch").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_program_takes_a_snapshot_of_18_with_streamed_log() {
    is_taken(PgMajor::V18, "stream").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_snapshot_is_taken_as_archives_and_nobody_else_is_let_in() {
    let home = Fixture::of(PgMajor::V15);
    let cluster = source(PgMajor::V15);
    import(&home, &text(&cluster.data_dir()), "cold")
        .await
        .unwrap();
    let folder = cluster.scratch_dir().join("backups");
    OsUser::current().create_dir(&folder);
    let into = |named: &str| -> Vec<String> {
        ["-D", &text(&folder.join(named)), "-Ft", "-X", "stream"]
            .map(str::to_owned)
            .to_vec()
    };
    let (good, said) = take(&home, "cold", &cluster, &into("wrong"), Some("guess")).await;
    assert!(!good && said.contains("authentication failed"), "{said}");
    let (good, said) = take(&home, "cold", &cluster, &into("right"), None).await;
    assert!(good, "{said}");
    let imported = import(&home, &text(&folder.join("right")), "back")
        .await
        .unwrap();
    assert_eq!(imported.kind, "cold");
    let copy = crate::moving::boots(&home, &imported.found, PgMajor::V15).await;
    holds_what_was_filled(&copy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_snapshot_is_taken_and_recovers() {
    let home = Fixture::of(PgMajor::V15);
    let mut cluster = Cluster::builder(PgMajor::V15).start();
    cluster.psql("create table t as select generate_series(1, 1000) i");
    cluster.kill9();
    import(&home, &text(&cluster.data_dir()), "crashed")
        .await
        .unwrap();
    let mut copy = target(PgMajor::V15);
    let arguments = ["-D", &text(&copy.data_dir()), "-X", "stream"].map(str::to_owned);
    let (good, said) = take(&home, "crashed", &copy, &arguments, None).await;
    assert!(good, "{said}");
    copy.set("log_checkpoints", "on");
    copy.start();
    assert_eq!(copy.psql("select count(*) from t"), "1000");
}

async fn is_verified(major: PgMajor, amcheck: bool) {
    let home = Fixture::of(major);
    let mut cluster = Cluster::builder(major).checksums(true).tcp().start();
    fill(&cluster);
    let address = format!("basebackup://postgres@127.0.0.1:{}/", cluster.port());
    import(&home, &address, "online").await.unwrap();
    cluster.stop(StopMode::Fast);
    let snapshots = home.neon.snapshots();
    let online = found(&home, "online").await;
    assert!(snapshots.check(&online).await.unwrap().is_sound());
    let verified = snapshots
        .verify(&online, VerifyDepth::Server)
        .await
        .unwrap();
    verified.require_sound().unwrap();
    assert!(verified.digests.pages > 1000 && verified.digests.with_data);
    let server = verified.server.as_ref().unwrap();
    assert_eq!(
        (server.major.as_str(), server.amcheck),
        (&*major.to_string(), amcheck)
    );
    assert_eq!(server.databases, ["postgres", "template1"]);
    assert!(
        server
            .left_out
            .iter()
            .any(|left| left.contains("template0"))
    );
    if !amcheck {
        assert!(server.tables > 60 && server.rows > 11_000, "{server:?}");
        assert!(server.left_out.iter().any(|left| left.contains("indexes")));
    }
    // Nothing is left of the copy.
    let left = |folder: &str| -> Vec<PathBuf> {
        std::fs::read_dir(home.scratch.path().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| text(path).contains(".open-"))
            .collect()
    };
    assert_eq!(left("home/pg").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_13_is_verified_by_reading_every_row() {
    is_verified(PgMajor::V13, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_15_is_verified_by_the_stock_program() {
    is_verified(PgMajor::V15, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_lies_is_found_by_a_server_and_a_byte_that_flipped_by_its_digest() {
    let home = Fixture::of(PgMajor::V15);
    // Without checksums nothing but a look at the rows tells.
    let mut cluster = Cluster::builder(PgMajor::V15).checksums(false).start();
    cluster.psql("create table t as select i, repeat('x', 100) v from generate_series(1, 1000) i");
    let file = cluster.psql("select pg_relation_filepath('t')");
    cluster.stop(StopMode::Fast);
    let place = cluster.data_dir().join(file);
    let mut bytes = std::fs::read(&place).unwrap();
    // The line pointer of the first row leads behind the page: offset 32000, in use, 100 bytes.
    let pointer: u32 = 32_000 | 1 << 15 | 100 << 17;
    bytes[24..28].copy_from_slice(&pointer.to_le_bytes());
    std::fs::write(&place, bytes).unwrap();
    import(&home, &text(&cluster.data_dir()), "lies")
        .await
        .unwrap();
    let snapshots = home.neon.snapshots();
    let lies = found(&home, "lies").await;
    let shallow = snapshots.verify(&lies, VerifyDepth::Digests).await.unwrap();
    assert!(shallow.is_sound() && shallow.server.is_none());
    let verified = snapshots.verify(&lies, VerifyDepth::Server).await.unwrap();
    let error = verified.require_sound().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.reason().contains('t'), "{error:?}");

    let pack = Command::new("find")
        .arg(home.scratch.path().join("home/store/local/packs"))
        .args(["-type", "f", "-size", "+100k"])
        .output()
        .unwrap();
    let pack = String::from_utf8(pack.stdout).unwrap();
    let pack = pack.lines().next().unwrap();
    let mut bytes = std::fs::read(pack).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(pack, bytes).unwrap();
    let again = home.again();
    let lies = found(&home, "lies").await;
    let verified = again
        .snapshots()
        .verify(&lies, VerifyDepth::Server)
        .await
        .unwrap();
    assert!(
        verified.server.is_none(),
        "no server is started on what is damaged"
    );
    assert_eq!(refused(verified.require_sound()), ErrorKind::Damaged);
    assert!(
        verified.digests.findings[0].object.contains("frame"),
        "{verified:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stock_program_takes_of_an_instance_names_nothing_of_its_home() {
    let home = Fixture::new();
    let pg = home.neon.pg();
    let mut create = home.create();
    create.name = Some(crate::support::name("origin"));
    pg.create(&create).await.unwrap();
    snapshot_of(&home.neon, "origin", "one").await;
    let copy = target(PgMajor::V15);
    let arguments = ["-D", &text(&copy.data_dir()), "-X", "fetch"].map(str::to_owned);
    let (good, said) = take(&home, "origin@one", &copy, &arguments, None).await;
    assert!(good, "{said}");
    copy.run_tool("pg_verifybackup", [text(&copy.data_dir())]);
    let settings = std::fs::read_to_string(copy.data_dir().join("neon.conf")).unwrap();
    assert!(settings.contains("listen_addresses"), "{settings}");
    for of_the_home in ["port", "unix_socket_directories", "log_directory"] {
        assert!(
            !settings.contains(&format!("\n{of_the_home}")),
            "{settings}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relation_whose_file_is_missing_is_found_also_where_only_rows_are_read() {
    let home = Fixture::of(PgMajor::V13);
    let mut cluster = Cluster::builder(PgMajor::V13).start();
    cluster.psql("create table t as select generate_series(1, 1000) i");
    cluster.psql("create view broken as select 1 / i from t; create materialized view m as select 1 i with no data");
    let file = cluster.psql("select pg_relation_filepath('t')");
    cluster.stop(StopMode::Fast);
    let whole = text(&cluster.data_dir());
    import(&home, &whole, "whole").await.unwrap();
    std::fs::remove_file(cluster.data_dir().join(file)).unwrap();
    import(&home, &whole, "lacks").await.unwrap();
    let snapshots = home.neon.snapshots();
    let whole = found(&home, "whole").await;
    let verified = snapshots.verify(&whole, VerifyDepth::Server).await.unwrap();
    verified.require_sound().unwrap();
    assert_eq!(verified.server.unwrap().unread, [""; 0]);
    let lacks = found(&home, "lacks").await;
    let verified = snapshots.verify(&lacks, VerifyDepth::Server).await.unwrap();
    let error = verified.require_sound().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.reason().contains("could not open file"), "{error:?}");
}
