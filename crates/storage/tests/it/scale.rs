//! Memory does not grow with what is stored: a million names, a stream of gigabytes.
//!
//! The client runs in a process of its own whose resident memory is measured; the server keeps
//! what it keeps in this one. By default with a reduced size; `NEON_LONG_TESTS=1` is the long form.

#![cfg(feature = "s3")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use neon_storage::{
    Body, GetOptions, ListOptions, Native, NativeOptions, S3, S3Config, S3Credentials, S3Keys,
    Storage, StorageExt,
};
use neon_testkit::s3::{S3Server, S3ServerOptions};

use crate::child::{self, key, say};

/// The promise, in KiB.
const MOST: u64 = 64 * 1024;

fn long() -> bool {
    std::env::var_os("NEON_LONG_TESTS").is_some()
}

fn names() -> u64 {
    if long() { 1_000_000 } else { 20_000 }
}

fn mebibytes() -> u64 {
    if long() { 3 * 1024 } else { 256 }
}

/// Runs a task in a client of its own and checks how much that grew.
fn measured(what: &str, at: &str, size: u64) {
    let began = Instant::now();
    let mut client = child::start(&format!("soak|{what}|{at}|{size}"));
    let said = child::lines(&mut client);
    assert!(client.wait().unwrap().success(), "{what}: {said:?}");
    let grown = said
        .iter()
        .find_map(|line| line.strip_prefix("grown "))
        .unwrap();
    let grown: u64 = grown.parse().unwrap();
    eprintln!(
        "{what} {size}: grew {} MiB in {:?}",
        grown / 1024,
        began.elapsed()
    );
    assert!(grown < MOST, "{what} grew by {grown} KiB");
}

#[test]
fn names_in_s3_are_listed_and_deleted_in_bounded_memory() {
    let server = S3Server::start(S3ServerOptions::default());
    server.preload(
        "bucket",
        (0..names()).map(|number| format!("names/{number:09}/of-an-object")),
    );
    measured("names", &server.endpoint(), names());
    assert_eq!(server.objects("bucket"), []);
}

#[test]
fn names_in_one_directory_are_listed_and_deleted_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let flat = dir.path().join("names");
    std::fs::create_dir(&flat).unwrap();
    for number in 0..names() {
        std::fs::File::create(flat.join(format!("{number:09}-of-an-object"))).unwrap();
    }
    measured("names", dir.path().to_str().unwrap(), names());
    assert_eq!(std::fs::read_dir(flat).unwrap().count(), 0);
}

#[test]
fn a_long_stream_is_put_to_s3_and_read_back_in_bounded_memory() {
    let server = S3Server::start(S3ServerOptions::default());
    measured("stream", &server.endpoint(), mebibytes());
    assert_eq!(server.objects("bucket")[0].size, mebibytes() << 20);
}

#[test]
fn a_long_stream_is_put_to_native_and_read_back_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    measured("stream", dir.path().to_str().unwrap(), mebibytes());
    assert_eq!(
        dir.path().join("long").metadata().unwrap().len(),
        mebibytes() << 20
    );
}

/// A line of `/proc/self/status` in KiB.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// The client's part, in its own process.
pub async fn soak(what: &str, at: &str, size: u64) {
    let storage: Arc<dyn Storage> = if at.starts_with("http") {
        let options = S3ServerOptions::default();
        let mut config = S3Config::new("bucket");
        config.endpoint = Some(at.to_owned());
        let keys = S3Keys::new(options.access_key, options.secret_key.as_str());
        config.credentials = S3Credentials::Static(keys);
        Arc::new(S3::open(config).await.unwrap())
    } else {
        Arc::new(Native::open(Path::new(at), NativeOptions::default()).unwrap())
    };
    let before = status("VmRSS");
    // The high-water mark begins here.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    match what {
        "names" => names_task(&*storage, size).await,
        _ => stream_task(&*storage, size).await,
    }
    say(&format!("grown {}", status("VmHWM").saturating_sub(before)));
}

async fn names_task(storage: &dyn Storage, count: u64) {
    let (listed, last) = storage
        .list(ListOptions::prefix("names/"))
        .try_fold((0u64, None), |(count, last), object| async move {
            assert!(last.is_none_or(|last| last < object.key), "out of order");
            Ok((count + 1, Some(object.key)))
        })
        .await
        .unwrap();
    assert_eq!(listed, count);
    let middle = last.unwrap().as_str().replace("999/", "/").to_string();
    let some = storage
        .list(ListOptions::prefix("names/").after(middle))
        .take(3);
    assert!(some.count().await <= 3);
    assert_eq!(storage.delete_prefix("names/").await.unwrap(), count);
    assert_eq!(storage.list_all("").await.unwrap().len(), 0);
}

async fn stream_task(storage: &dyn Storage, mebibytes: u64) {
    let chunk = Bytes::from(vec![0x5a_u8; 1 << 18]);
    let chunks = (0..mebibytes * 4).map(move |_| Ok(Bytes::copy_from_slice(&chunk)));
    let put = storage
        .create(&key("long"), Body::stream(stream::iter(chunks)))
        .await
        .unwrap();
    assert_eq!(put.size, mebibytes << 20);
    let mut got = storage.get(&key("long"), GetOptions::new()).await.unwrap();
    let mut seen = 0u64;
    while let Some(chunk) = got.body.next().await {
        let chunk = chunk.unwrap();
        assert!(chunk.first() == Some(&0x5a) && chunk.last() == Some(&0x5a));
        seen += chunk.len() as u64;
    }
    assert_eq!(seen, mebibytes << 20);
}
