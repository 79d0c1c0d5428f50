//! The main job in one sitting: a database, a snapshot, damage, and back.
//!
//! ```text
//! quickstart [BIN_DIR] [FOLDER]
//! ```
//!
//! Takes the newest PostgreSQL that is installed, or the one in `BIN_DIR`; makes a home in a new folder below `FOLDER`
//! (default `/tmp`) and removes it in the end.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use neon_examples::{home, program};
use neon_pg::{CheckoutChoice, CreatePg, CreateSnapshot, Neon};

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    home::run("quickstart [BIN_DIR] [FOLDER]", |neon| {
        Box::pin(async move { quickstart(&neon).await })
    })
}

async fn quickstart(neon: &Neon) -> Result<(), Failure> {
    let mut out = program::stdout();
    let pg = neon.pg().create(&CreatePg::default()).await?;
    let name = pg.record.name.clone();
    writeln!(out, "{name}: PostgreSQL {}", pg.record.major)?;

    let instance = neon.pg().instance(&name).await?;
    home::ask(
        &instance,
        "CREATE TABLE films AS SELECT i AS id, 'film ' || i AS title FROM generate_series(1, 10000) i",
    )
    .await?;

    let before = format!("{name}@before");
    let taken = neon
        .snapshots()
        .create(&CreateSnapshot::new(before.parse()?))
        .await?;
    writeln!(out, "{before}: {} bytes stored", taken.added)?;

    // Somebody forgets the WHERE.
    home::ask(&instance, "DELETE FROM films").await?;
    let left = home::ask(&instance, "SELECT count(*) FROM films").await?;
    writeln!(out, "after the damage: {left} films")?;

    // A plan first: it says what would be lost.
    let found = neon.snapshots().find(&before, None).await?;
    let choice = CheckoutChoice::default();
    let plan = neon.pg().plan_checkout(&name, &found, choice).await?;
    writeln!(out, "the damage will be kept as {}", plan.head)?;
    let done = neon.pg().checkout(&plan).await?;
    let instance = neon.pg().instance(&name).await?;
    let back = home::ask(&instance, "SELECT count(*) FROM films").await?;
    writeln!(
        out,
        "rolled back: {back} films, {} of {} bytes rewritten",
        done.rewritten, done.compared
    )?;
    Ok(())
}
