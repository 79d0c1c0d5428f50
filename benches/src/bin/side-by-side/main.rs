//! Side by side with the peers: whole processes on one machine in one run, in turn, with every result verified.
//!
//! `cargo build --release -p neon-pg-cli -p neon-benches && target/release/side-by-side --quick`, as root, after
//! `scripts/setup` and `scripts/peers`. A peer that is missing fails the run unless `--without NAME` gives it up. Prints
//! tables, and with `--json` and `--svg` writes what `docs/performance.md` embeds; progress goes to the error stream.
//!
//! Everybody works on the same cluster, in turns whose order changes from round to round, and is done when the file
//! system is flushed (`syncfs` within the clock, whether the tool flushes or not). A checkpoint precedes every run; what
//! the tool itself makes the server checkpoint is read from the server's log and shown apart. Every result is restored,
//! started and compared by a sum over all rows of all tables before it counts.
//!
//! It runs in mount and process namespaces of its own: whatever ends it takes its servers, peers and mounts along.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement stops at the first failure, prints what it does and shows what it measured"
)]

mod changes;
mod clones;
mod contest;
mod copies;
mod data;
mod floors;
mod goals;
mod json;
mod machine;
mod measure;
mod options;
mod ours;
mod peers;
mod pg_basebackup;
mod pgbackrest;
mod repository;
mod requests;
mod restic;
mod rollback;
mod run;
mod server;
mod statistics;
mod supervise;
mod svg;
mod table;
mod tool;
mod verify;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let options = options::Options::parse();
    match &options.inside {
        None => supervise::run(&options),
        Some(folder) => {
            run::run(&options, folder);
            ExitCode::SUCCESS
        }
    }
}
