//! Prints one page of a relation out of a snapshot in a repository, wherever that is, without restoring anything.
//!
//! ```text
//! page_at LOCATOR SNAPSHOT FILE PAGE
//! ```
//!
//! LOCATOR is a directory, `s3://bucket/prefix?endpoint=…`, `ssh://host/path` and so on; settings come from the
//! environment as the AWS tools take them. SNAPSHOT is a name such as `pgdata@tag`, or the beginning of an id. FILE is
//! the path of a relation's file as `pg_relation_filepath` says it, PAGE the number of the page in that file. Prints
//! the page's header, whether the server would accept it, its bytes in hexadecimal, and how many requests that took.
//!
//! Exit codes: 0 done; 1 failed; 2 usage; 3 there is no such repository, snapshot, file or page; 5 what is stored is
//! damaged.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_examples::program;
use neon_pagestore::read::{MapReader, Snapshot};
use neon_pagestore::{ErrorKind, OpenOptions, Repository};
use neon_pg_layout::{DataFile, PageCheck, PageHeader};
use neon_snapshot_format::SnapshotPath;
use neon_storage::{Context, Locator, Meter, Registry, RetryLayer, RetryPolicy};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What the exit code says.
const NOT_FOUND: u8 = 3;
const INTEGRITY: u8 = 5;

#[tokio::main]
async fn main() -> ExitCode {
    let usage = "page_at LOCATOR SNAPSHOT FILE PAGE";
    let words = match program::arguments(usage) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let words: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
    let Some([locator, name, file, page]) = words.as_deref() else {
        return program::wrong_usage("", usage);
    };
    let Ok(page) = page.parse() else {
        return program::wrong_usage("PAGE is a number", usage);
    };
    match page_at(locator, name, file, page).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let failed = program::failed(error.as_ref());
            match error.downcast_ref().map(neon_pagestore::Error::kind) {
                Some(ErrorKind::NotFound) => ExitCode::from(NOT_FOUND),
                Some(ErrorKind::Damaged) => ExitCode::from(INTEGRITY),
                _ => failed,
            }
        }
    }
}

async fn page_at(locator: &str, name: &str, file: &str, page: u32) -> Result<()> {
    // The application reads the environment; the library takes what it is given.
    let mut context = Context::default();
    let variables = std::env::vars_os();
    context.variables = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let place = Registry::default()
        .open(&Locator::parse(locator)?, &context)
        .await?;
    let requests = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&requests);
    let metered = Arc::new(Meter::new(place, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    let storage = Arc::new(RetryLayer::new(metered, RetryPolicy::default()));

    let repository = Repository::open(storage, OpenOptions::new()).await?;
    let id = repository.resolve(name).await?;
    let maps = MapReader::new(repository.frames(), 16 << 20);
    let snapshot = Snapshot::open(&repository, id, &maps).await?;
    let path = SnapshotPath::new(file)?;
    let before = requests.load(Ordering::Relaxed);
    let Some(bytes) = snapshot.read_page(&path, page).await? else {
        return Err(Box::new(neon_pagestore::Error::new(
            ErrorKind::NotFound,
            file,
            format!("ends before page {page}"),
        )));
    };

    let mut out = io::BufWriter::new(program::stdout());
    writeln!(out, "{file}, page {page} of snapshot {id}")?;
    let cluster = &snapshot.facts().cluster;
    let relation = match DataFile::of(file, cluster.major.layout()) {
        DataFile::Relation(relation) => relation.first_block(cluster.segment_blocks),
        _ => None,
    };
    if let Some(first) = relation.and_then(|first| first.checked_add(page)) {
        let header = PageHeader::decode(&bytes)?;
        writeln!(
            out,
            "position {}, checksum {:04x}, flags {:04x}, lower {}, upper {}, special {}",
            header.lsn, header.checksum, header.flags, header.lower, header.upper, header.special
        )?;
        let check = PageCheck {
            checksums: cluster.checksum_version != 0,
            replayed: None,
        };
        writeln!(out, "{:?}", check.judge(&bytes, first)?)?;
    }
    for (line, bytes) in bytes.chunks(32).enumerate() {
        write!(out, "{:04x} ", line * 32)?;
        for byte in bytes {
            write!(out, " {byte:02x}")?;
        }
        writeln!(out)?;
    }
    let took = requests.load(Ordering::Relaxed);
    writeln!(
        out,
        "{took} requests, {} of them for the page and its map",
        took - before
    )?;
    Ok(out.flush()?)
}
