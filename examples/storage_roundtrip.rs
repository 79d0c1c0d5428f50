//! Stores, reads, replaces, lists and deletes objects in any storage.
//!
//! ```text
//! storage_roundtrip LOCATOR
//! ```
//!
//! LOCATOR is a directory, `s3://bucket/prefix?endpoint=…`, `ssh://host/path` and so on; settings come from the
//! environment as the AWS tools take them. Works below a prefix of its own and leaves nothing behind.
//!
//! Exit codes: 0 done; 1 the storage failed or did not keep what it promises; 2 usage.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use neon_examples::program;
use neon_storage::{
    Body, Context, ErrorKind, Key, ListOptions, Locator, Meter, Prefix, Registry, RetryLayer,
    RetryPolicy, Storage, StorageExt,
};

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    let usage = "storage_roundtrip LOCATOR";
    let words = match program::arguments(usage) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let [locator] = words.as_slice() else {
        return program::wrong_usage("", usage);
    };
    let Some(locator) = locator.to_str() else {
        return program::wrong_usage("a locator is UTF-8", usage);
    };
    match round_trip(locator).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => program::failed(failure.as_ref()),
    }
}

async fn round_trip(locator: &str) -> Result<(), Failure> {
    let mut out = program::stdout();
    // The application reads the environment; the library takes what it is given.
    let mut context = Context::default();
    let variables = std::env::vars_os();
    context.variables = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let place = Registry::default()
        .open(&Locator::parse(locator)?, &context)
        .await?;
    // Asked, not only claimed: some S3-compatibles ignore conditions and report success.
    let can = place.probe().await?;
    writeln!(
        out,
        "{}: durability {:?}, create-only {}, compare-and-swap {}",
        place.location(),
        can.durability,
        can.create_only,
        can.compare_and_swap
    )?;

    // Layers: what fails for a while is tried again, everything is counted, and all of it happens
    // below a prefix.
    let retried = Arc::new(RetryLayer::new(place, RetryPolicy::default()));
    let metered = Arc::new(Meter::new(retried, |event| {
        let line = format!(
            "  {} {:?}: {} sent, {} received",
            event.operation, event.outcome, event.sent, event.received
        );
        drop(writeln!(program::stdout(), "{line}"));
    }));
    let prefix = Key::new(format!("roundtrip-{}", std::process::id()))?;
    let storage = Prefix::new(metered, prefix);

    // A stream of unknown length: three mebibytes that are never in memory together.
    let chunks = (0..48u8).map(|number| Ok(Bytes::from(vec![number; 64 * 1024])));
    let large = Key::new("large/object")?;
    let stored = storage
        .create(&large, Body::stream(stream::iter(chunks)))
        .await?;
    writeln!(out, "stored {} bytes", stored.size)?;

    // A create never replaces.
    match storage.create(&large, "something else").await {
        Err(error) if error.kind() == ErrorKind::Exists => writeln!(out, "refused: {error}")?,
        other => return Err(format!("a create replaced an object: {other:?}").into()),
    }

    // One page out of the middle costs one page.
    let page = storage.read_range(&large, 1_048_576..1_056_768).await?;
    if page != vec![16; 8192] {
        return Err("the page is not what was stored".into());
    }
    let head = storage.head(&large).await?;
    if head
        .age()
        .is_some_and(|age| age > Duration::from_secs(3600))
    {
        return Err("a new object is an hour old by the storage's clock".into());
    }

    // An object that is replaced only by whoever saw its last state.
    if can.compare_and_swap {
        let counter = Key::new("counter")?;
        let first = storage
            .create(&counter, "1")
            .await?
            .version
            .ok_or("no version")?;
        storage.replace(&counter, &first, "2").await?;
        match storage.replace(&counter, &first, "2 as well").await {
            Err(error) if error.kind() == ErrorKind::Precondition => {
                writeln!(out, "refused: {error}")?;
            }
            other => return Err(format!("an update was lost: {other:?}").into()),
        }
    }

    for number in 0..10 {
        storage
            .create(&Key::new(format!("many/{number}"))?, "x")
            .await?;
    }
    let listed: Vec<_> = storage
        .list(ListOptions::prefix("many/").after("many/6"))
        .map_ok(|object| object.key.to_string())
        .try_collect()
        .await?;
    writeln!(out, "listed {}", listed.join(" "))?;
    let keys = storage
        .list(ListOptions::all())
        .map_ok(|object| object.key)
        .boxed();
    let deleted = storage
        .delete_many(keys)
        .try_fold(0u32, |n, _| async move { Ok(n + 1) })
        .await?;
    writeln!(out, "deleted {deleted}")?;
    Ok(())
}
