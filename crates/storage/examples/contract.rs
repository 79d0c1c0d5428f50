//! Takes the storage at LOCATOR through the contract suite and prints a line per case.
//!
//! ```sh
//! cargo run -p neon-storage --all-features --example contract -- 's3://bucket?endpoint=http://…'
//! ```
//!
//! Credentials come from the environment, as the AWS tools take them.
#![allow(clippy::print_stdout, reason = "a program whose output is its purpose")]

use std::process::ExitCode;

use neon_storage::contract::{self, Outcome};
use neon_storage::{Context, Locator, Registry};

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let locator = std::env::args().nth(1).ok_or("usage: contract LOCATOR")?;
    let mut context = Context::default();
    context.variables = std::env::vars().collect();
    let storage = Registry::default()
        .open(&Locator::parse(&locator)?, &context)
        .await?;
    println!("{}: {:?}", storage.location(), storage.probe().await?);
    let report = contract::run(storage).await;
    for (name, outcome) in &report.cases {
        match outcome {
            Outcome::Held => println!("held         {name}"),
            Outcome::NotClaimed => println!("not claimed  {name}"),
            Outcome::Broken(failure) => println!("BROKEN       {name}: {failure}"),
            _ => println!("?            {name}"),
        }
    }
    let broken = report.broken().count();
    println!(
        "{} held, {broken} broken, {} cases",
        report.held(),
        report.cases.len()
    );
    Ok(if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
