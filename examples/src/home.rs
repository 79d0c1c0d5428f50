//! A home for one run of a program: made, used, and gone with it.

use std::error::Error;
use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;

use neon_pg::{Event, EventSink, Neon, Options};
use neon_pgctl::Instance;

use crate::{program, surroundings};

type Failure = Box<dyn Error + Send + Sync>;
type Work = Pin<Box<dyn Future<Output = Result<(), Failure>>>>;

/// Runs this in a new home: `PROGRAM [BIN_DIR] [FOLDER]`.
pub fn run(usage: &str, work: impl FnOnce(Neon) -> Work) -> ExitCode {
    match program::arguments(usage) {
        Ok(words) if words.len() <= 2 => end(in_home(words, work)),
        Ok(_) => program::wrong_usage("too many words", usage),
        Err(code) => code,
    }
}

/// As [`run`], with a word of the program's own before the others.
pub fn run_with(usage: &str, work: impl FnOnce(Neon, String) -> Work) -> ExitCode {
    let mut words = match program::arguments(usage) {
        Ok(words) if words.len() <= 3 => words,
        Ok(_) => return program::wrong_usage("too many words", usage),
        Err(code) => return code,
    };
    if words.is_empty() {
        return program::wrong_usage("", usage);
    }
    match words.remove(0).into_string() {
        Ok(first) => end(in_home(words, |neon| work(neon, first))),
        Err(_) => program::wrong_usage("the first word is no text", usage),
    }
}

fn end(outcome: Result<(), Failure>) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    program::failed(error.as_ref());
    let Some(error) = error.downcast_ref::<neon_pg::Error>() else {
        return ExitCode::FAILURE;
    };
    if let Some(hint) = error.hint() {
        program::complain(format_args!("hint: {hint}"));
    }
    ExitCode::from(error.kind().exit_code())
}

fn in_home(words: Vec<OsString>, work: impl FnOnce(Neon) -> Work) -> Result<(), Failure> {
    let mut words = words.into_iter().map(PathBuf::from);
    let mut options = Options::new();
    // The library reads no environment: what it shall know it is told.
    match words.next() {
        Some(bin_dir) => options.pg_bin = vec![bin_dir],
        None => options.path = std::env::var_os("PATH").unwrap_or_default(),
    }
    options.connections = surroundings::of_this_process();
    options.events = EventSink::new(|event| {
        if let Event::Note(text) | Event::Warning(text) = event {
            program::complain(format_args!("note: {text}"));
        }
    });
    let folder = words.next().unwrap_or_else(|| PathBuf::from("/tmp"));
    let folder = folder.join(format!("neon-example-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let neon = Neon::open(&folder, options)?;
    let outcome = runtime.block_on(work(neon.clone()));
    let closed = runtime.block_on(close(&neon, &folder));
    outcome.and(closed)
}

/// Ends its servers and removes it.
async fn close(neon: &Neon, folder: &Path) -> Result<(), Failure> {
    for record in neon.pg().records()? {
        neon.pg().stop(&record.name).await?;
    }
    Ok(std::fs::remove_dir_all(folder)?)
}

/// What a server answers: the first value.
///
/// # Errors
/// What the server says.
pub async fn ask(instance: &Instance, query: &str) -> Result<String, Failure> {
    let mut client = instance.connect("postgres").await?;
    let results = client.simple_query(query).await;
    client.close().await;
    let results = results?;
    let value = results.first().and_then(|result| result.value(0, 0));
    Ok(value.unwrap_or_default().to_owned())
}
