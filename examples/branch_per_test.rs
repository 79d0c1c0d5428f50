//! A database of its own for every test of a program, with the same data in each.
//!
//! ```text
//! branch_per_test [BIN_DIR] [FOLDER]
//! ```
//!
//! The data is loaded once, and snapshotted. Then a test either gets a clone, which is destroyed afterwards, so that
//! tests run beside each other; or all tests share one instance, which is rolled back after each. Prints what a
//! branch costs each way.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use neon_examples::{home, program};
use neon_pg::{CheckoutChoice, CreatePg, CreateSnapshot, Found, Name, Neon, RestoreChoice};

type Failure = Box<dyn Error + Send + Sync>;

/// As many tests each way.
const TESTS: u32 = 3;

fn main() -> ExitCode {
    home::run("branch_per_test [BIN_DIR] [FOLDER]", |neon| {
        Box::pin(async move { branches(&neon).await })
    })
}

async fn branches(neon: &Neon) -> Result<(), Failure> {
    let mut out = program::stdout();
    let mut wanted = CreatePg::default();
    wanted.name = Some("seed".parse()?);
    let seed = neon.pg().create(&wanted).await?.record.name;
    let instance = neon.pg().instance(&seed).await?;
    home::ask(
        &instance,
        "CREATE TABLE accounts AS SELECT i AS id, 100 AS balance FROM generate_series(1, 1000) i",
    )
    .await?;
    // Taken of a stopped server it starts without recovery.
    neon.pg().stop(&seed).await?;
    neon.snapshots()
        .create(&CreateSnapshot::new("seed@loaded".parse()?))
        .await?;
    let loaded = neon.snapshots().find("seed@loaded", None).await?;

    let mut spent = Duration::ZERO;
    for number in 1..=TESTS {
        let begun = Instant::now();
        let branch = clone(neon, &loaded, number).await?;
        spent += begun.elapsed();
        check(neon, &branch).await?;
        let begun = Instant::now();
        neon.pg().destroy(&branch).await?;
        spent += begun.elapsed();
    }
    writeln!(
        out,
        "a clone for each: {TESTS} tests, {:?} a branch",
        spent / TESTS
    )?;

    neon.pg().start(&seed).await?;
    let mut spent = Duration::ZERO;
    for _ in 1..=TESTS {
        check(neon, &seed).await?;
        let begun = Instant::now();
        let choice = CheckoutChoice::default();
        let plan = neon.pg().plan_checkout(&seed, &loaded, choice).await?;
        neon.pg().checkout(&plan).await?;
        spent += begun.elapsed();
    }
    writeln!(
        out,
        "one, rolled back: {TESTS} tests, {:?} a branch",
        spent / TESTS
    )?;
    Ok(())
}

async fn clone(neon: &Neon, loaded: &Found, number: u32) -> Result<Name, Failure> {
    let mut wanted = CreatePg::default();
    wanted.name = Some(format!("test{number}").parse()?);
    let how = RestoreChoice::default();
    let pg = neon.pg().create_from(&wanted, loaded, &how).await?;
    Ok(pg.record.name)
}

/// What would be a test: it finds the data as it was loaded, and leaves it in a mess.
async fn check(neon: &Neon, name: &Name) -> Result<(), Failure> {
    let instance = neon.pg().instance(name).await?;
    let sum = home::ask(&instance, "SELECT sum(balance) FROM accounts").await?;
    if sum != "100000" {
        return Err(format!("{name} has {sum} in its accounts").into());
    }
    home::ask(&instance, "UPDATE accounts SET balance = balance - 1").await?;
    home::ask(&instance, "DROP TABLE accounts").await?;
    Ok(())
}
