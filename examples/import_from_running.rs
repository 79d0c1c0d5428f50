//! A copy of a running server of somebody else, started beside it.
//!
//! ```text
//! import_from_running URL [BIN_DIR] [FOLDER]
//! ```
//!
//! `URL` is `basebackup://user@host:port/`: the server is asked for a base backup over the replication protocol, as
//! `pg_basebackup` would, which becomes a snapshot. An instance made from it acts neither in its origin's name nor in its
//! archive; what was changed for that is printed.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use neon_examples::{home, program};
use neon_pg::{CreatePg, ImportSnapshot, ImportSource, Neon, RestoreChoice};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let usage = "import_from_running URL [BIN_DIR] [FOLDER]";
    home::run_with(usage, |neon, url| {
        Box::pin(async move { import(&neon, &url).await })
    })
}

async fn import(neon: &Neon, url: &str) -> Result<(), Failure> {
    let mut out = program::stdout();
    let mut wanted = ImportSnapshot::new(ImportSource::parse(url)?);
    wanted.name = Some("origin".parse()?);
    let imported = neon.snapshots().import(&wanted).await?;
    writeln!(
        out,
        "{}: {} snapshot of {}, {} bytes in {} stored",
        imported.name, imported.kind, imported.source, imported.size, imported.stored
    )?;
    let mut copy = CreatePg::default();
    copy.name = Some("copy".parse()?);
    let how = RestoreChoice::default();
    let pg = neon.pg().create_from(&copy, &imported.found, &how).await?;
    let instance = neon.pg().instance(&pg.record.name).await?;
    let databases = home::ask(
        &instance,
        "SELECT string_agg(datname, ', ' ORDER BY datname) FROM pg_database WHERE NOT datistemplate",
    )
    .await?;
    writeln!(out, "{}: {databases}", pg.record.name)?;
    Ok(())
}
