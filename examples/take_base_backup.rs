//! Takes a base backup of a running cluster into a new data directory, as `pg_basebackup -Fp` does:
//! unpacked safely, with the WAL it needs, durable, the manifest last.
//!
//! ```text
//! take_base_backup 'host=/run/postgresql user=postgres' /backups/monday [/old/space=/new/space ...]
//! ```

use std::io::Write;
use std::process::ExitCode;

use neon_examples::fetch::{Plan, Wal, fetch};
use neon_examples::unpack::Mapping;
use neon_examples::{program, surroundings};
use neon_pgwire::{BaseBackupOptions, Checkpoint, Config, Params};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let usage = "take_base_backup CONNECTION TARGET [OLD=NEW ...]";
    let words = match program::arguments(usage) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let [conninfo, target, pairs @ ..] = words.as_slice() else {
        return program::wrong_usage("", usage);
    };
    let Some(conninfo) = conninfo.to_str() else {
        return program::wrong_usage("a connection string is UTF-8", usage);
    };
    let mut mappings = Vec::new();
    for pair in pairs {
        let Some((from, to)) = pair.to_str().and_then(|pair| pair.split_once('=')) else {
            let reason = format!("{} is not OLD=NEW", pair.display());
            return program::wrong_usage(&reason, usage);
        };
        mappings.push(Mapping {
            from: from.into(),
            to: to.into(),
        });
    }
    let mut options = BaseBackupOptions::default();
    options.label = "take_base_backup".to_owned();
    options.checkpoint = Checkpoint::Fast;
    options.wait = false;
    let plan = Plan {
        target: target.into(),
        options,
        wal: Wal::Stream(None),
        mappings,
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
            let printed = writeln!(
                program::stdout(),
                "complete; consistent at {} on timeline {}",
                end.stop,
                end.timeline
            );
            if let Err(error) = printed {
                return program::failed(&error);
            }
            match end.suspect {
                None => ExitCode::SUCCESS,
                Some(error) => {
                    program::complain(format_args!("the backup is suspect: {error}"));
                    ExitCode::from(5)
                }
            }
        }
        Err(error) => program::failed(error.as_ref()),
    }
}
