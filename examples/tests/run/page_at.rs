//! `page_at`: one page out of a snapshot in a bucket.

use std::process::{Command, Output};
use std::sync::Arc;

use neon_pagestore::write::{SnapshotOptions, SnapshotWriter};
use neon_pagestore::{Facts, OpenOptions, Repository};
use neon_snapshot_format::pgdata::PgData;
use neon_snapshot_format::{Sequential, SnapshotKind};
use neon_storage::{Context, Locator, Registry, Storage, Variables};
use neon_testkit::s3::{S3Server, S3ServerOptions};
use neon_testkit::{Cluster, PgMajor, StopMode};

async fn snapshot(storage: Arc<dyn Storage>, cluster: &Cluster, name: &str) {
    let repository = Repository::init(storage, OpenOptions::new()).await.unwrap();
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer, data) = (repository.clone(), writing.writer(), cluster.data_dir());
    let commit = tokio::task::spawn_blocking(move || {
        let sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
        let source = PgData::cold(&data).unwrap();
        let copied = source.copy_parallel(&sink, 2).unwrap();
        copied
            .finish(&mut Sequential::new(&sink).unwrap(), None)
            .unwrap();
        let facts = Facts::of_control(SnapshotKind::Cold, 0, source.control());
        sink.complete().unwrap().commit(facts).unwrap()
    });
    let mut commit = commit.await.unwrap();
    commit.facts.names.push(name.parse().unwrap());
    writing.commit(&commit).await.unwrap();
}

#[test]
fn a_page_of_a_table_comes_out_of_a_bucket_as_the_server_wrote_it() {
    let mut cluster = Cluster::builder(PgMajor::V18).start();
    cluster.psql(
        "create table t as select i, repeat(md5(i::text), 10) from generate_series(1, 20000) i",
    );
    let file = cluster.psql("select pg_relation_filepath('t')");
    cluster.stop(StopMode::Fast);
    let server = S3Server::start(S3ServerOptions::default());
    let locator = format!("s3://bucket/some/prefix?endpoint={}", server.endpoint());
    let keys = [
        ("AWS_ACCESS_KEY_ID", server.options().access_key.clone()),
        ("AWS_SECRET_ACCESS_KEY", server.options().secret_key.clone()),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut context = Context::default();
        let named = keys.iter();
        context.variables = named
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect::<Variables>();
        let place = Locator::parse(&locator).unwrap();
        let storage = Registry::default().open(&place, &context).await.unwrap();
        snapshot(storage, &cluster, "pgdata@before").await;
    });

    let run = |snapshot: &str, file: &str, page: &str| -> Output {
        Command::new(env!("CARGO_BIN_EXE_page_at"))
            .args([&locator, snapshot, file, page])
            .env_clear()
            .envs(keys.clone())
            .output()
            .unwrap()
    };
    let bytes = std::fs::read(cluster.data_dir().join(&file)).unwrap();
    for page in [0, 1, 77, 800] {
        let output = run("pgdata@before", &file, &page.to_string());
        let printed = String::from_utf8(output.stdout).unwrap();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{printed}\n{complained}");
        assert!(printed.contains("\nGood\n"), "{printed}");
        let shown: Vec<u8> = printed
            .lines()
            .filter_map(|line| line.split_once("  "))
            .flat_map(|(_, bytes)| bytes.split(' '))
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        assert!(shown == bytes[page * 8192..(page + 1) * 8192], "{printed}");
        // The index of the map, its block, the frame.
        let last = printed.lines().last().unwrap();
        assert!(
            last.ends_with(" 3 of them for the page and its map"),
            "{last}"
        );
    }
    for (name, file, page) in [
        ("pgdata@after", file.as_str(), "0"),
        ("pgdata@before", "base/1/0", "0"),
        ("pgdata@before", file.as_str(), "1000000"),
    ] {
        let output = run(name, file, page);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
    assert_eq!(run("pgdata@before", &file, "first").status.code(), Some(2));
}
