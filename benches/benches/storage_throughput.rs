//! What durability and parts cost: `native` against `cp` with fsync, an S3 upload in parts against
//! one plain put. Ratios to a floor measured in the same run.
//!
//! `native put / cp+fsync` is the time of a durable put over that of copying the same file and
//! syncing it; `native get / read` the time of reading an object over that of reading a file;
//! `s3 parts / s3 single` the time of a multipart upload over that of one put of the same bytes to
//! the same server in this machine, so it shows overhead and not what parallel parts win on a
//! network.

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::{StreamExt, stream};
use neon_storage::{
    Body, GetOptions, Key, Native, NativeOptions, S3, S3Config, S3Credentials, S3Keys, Storage,
    StorageExt,
};
use neon_testkit::s3::{S3Server, S3ServerOptions};
use tokio::runtime::Runtime;

const SIZE: usize = 64 << 20;
const CHUNK: usize = 256 << 10;

static NEXT: AtomicU64 = AtomicU64::new(0);

fn fresh(what: &str) -> Key {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Key::new(format!("{what}/{number}")).expect("a valid key")
}

fn body(content: &Bytes) -> Body {
    let content = content.clone();
    let chunks = (0..SIZE / CHUNK).map(move |at| Ok(content.slice(at * CHUNK..(at + 1) * CHUNK)));
    Body::stream(stream::iter(chunks))
}

fn copy_and_sync(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("a copy");
    File::open(to)
        .and_then(|file| file.sync_all())
        .expect("a sync");
    let parent = to.parent().expect("a parent");
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .expect("a sync");
}

async fn put(storage: &dyn Storage, body: Body) {
    let key = fresh("put");
    storage.create(&key, body).await.expect("a put");
    storage.delete(&key).await.expect("a delete");
}

async fn get(storage: &dyn Storage, key: &Key) {
    let mut got = storage
        .get(key, GetOptions::new())
        .await
        .expect("an object");
    while let Some(chunk) = got.body.next().await {
        black_box(chunk.expect("a chunk"));
    }
}

fn read(path: &Path) {
    let mut file = File::open(path).expect("a file");
    let mut buffer = vec![0u8; CHUNK];
    while file.read(&mut buffer).expect("bytes") > 0 {
        black_box(&buffer);
    }
}

fn s3(server: &S3Server, part_size: u64) -> S3Config {
    let mut config = S3Config::new("bucket");
    config.endpoint = Some(server.endpoint());
    let options = server.options();
    let keys = S3Keys::new(options.access_key.as_str(), options.secret_key.as_str());
    config.credentials = S3Credentials::Static(keys);
    config.part_size = part_size;
    config.max_part_size = part_size;
    config
}

/// The median of some runs.
fn time(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..7)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .collect();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn benches(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let content: Bytes = (0..SIZE)
        .map(|at| u8::try_from(at % 251).unwrap_or(0))
        .collect();
    let source = dir.path().join("source");
    std::fs::write(&source, &content).expect("a file");
    let copy = dir.path().join("copy");
    let native = Native::open(dir.path().join("native"), NativeOptions::default()).expect("native");
    let key = fresh("get");
    let server = S3Server::start(S3ServerOptions::default());
    let (parts, single) = runtime.block_on(async {
        native.create(&key, content.clone()).await.expect("a put");
        let parts = S3::open(s3(&server, 8 << 20)).await.expect("s3");
        let single = S3::open(s3(&server, 2 * SIZE as u64)).await.expect("s3");
        (parts, single)
    });

    let mut ratio =
        |name: &str, mut work: Box<dyn FnMut() + '_>, mut floor: Box<dyn FnMut() + '_>| {
            let (work, floor) = (time(&mut work), time(&mut floor));
            println!(
                "{name}: {:.2} ({work:.1?} over {floor:.1?})",
                work.as_secs_f64() / floor.as_secs_f64()
            );
        };
    ratio(
        "native put / cp+fsync",
        Box::new(|| runtime.block_on(put(&native, body(&content)))),
        Box::new(|| {
            copy_and_sync(&source, &copy);
            std::fs::remove_file(&copy).expect("a removal");
        }),
    );
    ratio(
        "native get / read",
        Box::new(|| runtime.block_on(get(&native, &key))),
        Box::new(|| read(&source)),
    );
    ratio(
        "s3 parts / s3 single",
        Box::new(|| runtime.block_on(put(&parts, body(&content)))),
        Box::new(|| runtime.block_on(put(&single, body(&content)))),
    );

    let mut group = criterion.benchmark_group("storage");
    group
        .throughput(Throughput::Bytes(SIZE as u64))
        .sample_size(10);
    group.bench_function("native put", |bencher| {
        bencher.iter(|| runtime.block_on(put(&native, body(&content))));
    });
    group.bench_function("native get", |bencher| {
        bencher.iter(|| runtime.block_on(get(&native, &key)));
    });
    group.bench_function("s3 put in parts", |bencher| {
        bencher.iter(|| runtime.block_on(put(&parts, body(&content))));
    });
    group.finish();
}

criterion_group!(storage, benches);
criterion_main!(storage);
