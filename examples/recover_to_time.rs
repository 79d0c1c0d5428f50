//! Takes a copy of a cluster to a point in time.
//!
//! ```text
//! recover_to_time [--bin BIN_DIR] BASE WAL_DIRECTORY TIME|latest
//! ```
//!
//! BASE is a data directory: a base backup with its `backup_label`, or a copy of a stopped cluster. It is
//! changed in place, promoted to a new timeline and left stopped, ready for `pg_ctl start`. TIME has an offset:
//! `2026-11-20T10:01:31+00:00`. Interrupted, it leaves a folder with a log in the temporary directory, and no server;
//! another run goes on from there.
//!
//! When no transaction ended after TIME, the server cannot know that it is reached: nothing is promoted, and the
//! exit code is 3. If WAL_DIRECTORY gets nothing more, its end is what was wanted: say `latest`. While it still
//! grows, what is there a moment later may have been committed after TIME, so that is not done unasked.
//!
//! Exit codes: 0 done; 1 failed; 2 usage; 3 nothing ended after the time, so it is not known to be reached; 4 the
//! time lies before the base; 5 WAL is missing or damaged.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_examples::program;
use neon_pgctl::{
    Discovery, Error, ErrorKind, Installation, Instance, OsUser, RecoveryEnd, RecoveryEvent,
    RecoveryPlan, RecoveryTarget, WalSource, blocking,
};

const USAGE: &str = "recover_to_time [--bin BIN_DIR] BASE WAL_DIRECTORY TIME|latest";

fn main() -> ExitCode {
    let words = match program::arguments(USAGE) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let mut out = program::stdout();
    let outcome = Options::parse(words.into_iter()).and_then(|options| run(&options, &mut out));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            program::complain(failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// Why it was not done, and the exit code that says so.
struct Failure {
    code: u8,
    text: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut text = format!("error: {error}");
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            text.push_str(&format!("\ncaused by: {next}"));
            cause = next.source();
        }
        if let Some(hint) = error.hint() {
            text.push_str(&format!("\nhint: {hint}"));
        }
        for line in error.log() {
            text.push_str(&format!("\nlog: {line}"));
        }
        let code = match error.kind() {
            ErrorKind::Invalid => 2,
            ErrorKind::NoLaterTransaction => 3,
            ErrorKind::TargetTooEarly => 4,
            ErrorKind::MissingWal | ErrorKind::Corrupt | ErrorKind::WalLevelMinimal => 5,
            _ => 1,
        };
        Self { code, text }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self {
            code: 1,
            text: format!("error: {error}"),
        }
    }
}

struct Options {
    bin_dir: Option<PathBuf>,
    base: PathBuf,
    wal: PathBuf,
    target: RecoveryTarget,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, Failure> {
        let usage = || Failure {
            code: 2,
            text: format!("usage: {USAGE}"),
        };
        let (mut bin_dir, mut words) = (None, Vec::new());
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("--bin") => bin_dir = Some(args.next().ok_or_else(usage)?.into()),
                Some(other) if other.starts_with("--") => return Err(usage()),
                _ => words.push(arg),
            }
        }
        let [base, wal, time] = <[OsString; 3]>::try_from(words).map_err(|_| usage())?;
        let time = time.into_string().map_err(|_| usage())?;
        Ok(Self {
            bin_dir,
            base: base.into(),
            wal: std::path::absolute(wal)?,
            target: match time.as_str() {
                "latest" => RecoveryTarget::Latest,
                time => RecoveryTarget::at_time(time)?,
            },
        })
    }
}

fn run(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    let installation = match &options.bin_dir {
        Some(bin_dir) => Installation::at(bin_dir)?,
        None => installation_for(&options.base)?,
    };
    // A short private folder for the log and the socket, the server's own.
    let private = PrivateFolder::create(&options.base)?;
    let instance = Instance::at(
        &installation,
        &options.base,
        private.0.join("log"),
        private.0.join("run"),
    )?;

    let source = WalSource::Directory(options.wal.clone());
    let plan = RecoveryPlan::new(source, options.target.clone()).with_end(RecoveryEnd::Promoted);
    let recovered = blocking::wait(instance.recover(&plan, |event| {
        if let RecoveryEvent::Replayed(lsn) = event {
            program::complain(format_args!("replayed up to {lsn}"));
        }
    }))??;
    writeln!(
        out,
        "{} is on timeline {} now",
        options.base.display(),
        recovered.timeline
    )?;
    Ok(())
}

/// The programs of the major version that the base belongs to, from the places where they are usually found.
fn installation_for(base: &Path) -> Result<Installation, Failure> {
    let version = std::fs::read_to_string(base.join("PG_VERSION"))?;
    let major = version
        .trim()
        .parse()
        .map_err(|error: neon_pg_layout::Error| Failure {
            code: 1,
            text: format!("error: {error}"),
        })?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = Discovery::new().with_path(path).run();
    Ok(found.of(major)?.clone())
}

/// A folder of the server's user, gone with this value.
struct PrivateFolder(PathBuf);

impl PrivateFolder {
    fn create(base: &Path) -> Result<Self, Failure> {
        let owner = OsUser::owner_of(base)?;
        let folder = std::env::temp_dir().join(format!("recover-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&folder)?;
        let folder = Self(folder);
        std::os::unix::fs::lchown(&folder.0, Some(owner.uid()), Some(owner.gid()))?;
        Ok(folder)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            program::complain(format_args!("{} stays behind: {error}", self.0.display()));
        }
    }
}
