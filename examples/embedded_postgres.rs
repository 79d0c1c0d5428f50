//! A PostgreSQL server inside of a program or a test, gone with it.
//!
//! ```text
//! embedded_postgres [BIN_DIR] [FOLDER]
//! ```
//!
//! Takes the newest server that is installed, or the one in `BIN_DIR`; makes a temporary instance below
//! `FOLDER` (default `/tmp`), once without a runtime and once with one, and asks it something. The server
//! and its files are gone when the guard is dropped, and also when this program is killed.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_examples::program;
use neon_pgctl::{
    CreateOptions, Discovery, Installation, Instance, ScopedServer, StartOptions, blocking,
};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let usage = "embedded_postgres [BIN_DIR] [FOLDER]";
    let words = match program::arguments(usage) {
        Ok(words) if words.len() <= 2 => words,
        Ok(_) => return program::wrong_usage("too many words", usage),
        Err(code) => return code,
    };
    match run(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = program::failed(error.as_ref());
            if let Some(hint) = error
                .downcast_ref::<neon_pgctl::Error>()
                .and_then(|e| e.hint())
            {
                program::complain(format_args!("hint: {hint}"));
            }
            code
        }
    }
}

fn run(words: Vec<OsString>) -> Result<(), Failure> {
    let mut arguments = words.into_iter();
    let mut out = program::stdout();
    // The library looks at no variable of the environment: what it shall know it is told.
    let mut discovery = Discovery::new().with_path(std::env::var_os("PATH").unwrap_or_default());
    if let Some(bin_dir) = arguments.next() {
        discovery = Discovery::new().without_distributions().with_dir(bin_dir);
    }
    let folder = arguments
        .next()
        .map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let found = discovery.run();
    let installation = found.newest()?;
    writeln!(
        out,
        "PostgreSQL {} in {}",
        installation.version(),
        installation.bin_dir().display()
    )?;

    without_a_runtime(installation, &folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(with_a_runtime(installation, &folder))
}

/// What a test of an ordinary program does.
fn without_a_runtime(installation: &Installation, folder: &Path) -> Result<(), Failure> {
    let server = blocking::ScopedServer::temporary(
        installation,
        folder,
        &CreateOptions::new().without_sync(),
        &StartOptions::new(),
    )?;
    // Give this to the client library of your choice.
    let uri = server.instance().uri("postgres")?;
    let mut out = program::stdout();
    writeln!(
        out,
        "blocking: {}",
        uri.replace(&server.password().unwrap_or_default(), "…")
    )?;
    let answer = blocking::wait(ask(server.instance()))??;
    writeln!(out, "blocking: {answer}")?;
    Ok(())
}

/// The same in an asynchronous program.
async fn with_a_runtime(installation: &Installation, folder: &PathBuf) -> Result<(), Failure> {
    let server = ScopedServer::temporary(
        installation,
        folder,
        // Whatever matters to the program is set from the start.
        &CreateOptions::new()
            .without_sync()
            .with_setting("work_mem", "9MB"),
        &StartOptions::new(),
    )
    .await?;
    let answer = ask(server.instance()).await?;
    writeln!(program::stdout(), "async: {answer}")?;
    Ok(())
}

async fn ask(instance: &Instance) -> Result<String, Failure> {
    let mut client = instance.connect("postgres").await?;
    let results = client
        .simple_query("SELECT 'work_mem ' || current_setting('work_mem') || ', ' || current_setting('server_version')")
        .await?;
    let answer = results.first().and_then(|result| result.value(0, 0));
    Ok(answer.unwrap_or("nothing").to_owned())
}
