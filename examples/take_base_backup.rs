//! Takes a base backup of a running cluster into a new data directory, as `pg_basebackup -Fp` does:
//! unpacked safely, with the WAL it needs, durable, the manifest last.
//!
//! ```text
//! take_base_backup 'host=/run/postgresql user=postgres' /backups/monday [/old/space=/new/space ...]
//! ```
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program talks to who runs it"
)]

use std::process::ExitCode;

use neon_examples::fetch::{Plan, Wal, fetch};
use neon_examples::surroundings;
use neon_examples::unpack::Mapping;
use neon_pgwire::{BaseBackupOptions, Checkpoint, Config, Params};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(conninfo), Some(target)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: take_base_backup CONNECTION TARGET [OLD=NEW ...]");
        return ExitCode::from(2);
    };
    let mappings = arguments.filter_map(|pair| {
        let (from, to) = pair.split_once('=')?;
        Some(Mapping {
            from: from.into(),
            to: to.into(),
        })
    });
    let mut options = BaseBackupOptions::default();
    options.label = "take_base_backup".to_owned();
    options.checkpoint = Checkpoint::Fast;
    options.wait = false;
    let plan = Plan {
        target: target.into(),
        options,
        wal: Wal::Stream(None),
        mappings: mappings.collect(),
        wal_directory: None,
        sync: true,
        earlier_manifest: None,
    };
    let run = async {
        let params: Params = conninfo.parse()?;
        let config = Config::resolve(&params, &surroundings::of_this_process())?;
        fetch(&config, plan).await
    };
    match run.await {
        Ok(end) => {
            println!(
                "complete; consistent at {} on timeline {}",
                end.stop, end.timeline
            );
            match end.suspect {
                None => ExitCode::SUCCESS,
                Some(error) => {
                    eprintln!("the backup is suspect: {error}");
                    ExitCode::from(5)
                }
            }
        }
        Err(error) => surroundings::failed(error.as_ref()),
    }
}
