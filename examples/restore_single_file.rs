//! Writes a cluster that was packed into one file as a data directory that a server starts on:
//! `restore_single_file <file> <new data directory>`.
//!
//! Tablespaces go into directories beside it, `<new data directory>.tablespaces/<oid>`. Everything is durable
//! when it ends; until then the directory has no `global/pg_control`, and no server accepts it.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_examples::program;
use neon_snapshot_format::pack::NeonFile;
use neon_snapshot_format::pgdata::{
    DirectoryOptions, DirectoryWriter, Ownership, TablespacePlaces,
};
use neon_snapshot_format::{Detected, detect};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let usage = "restore_single_file FILE NEW_DATA_DIRECTORY";
    let words = match program::arguments(usage) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let [from, to] = words.as_slice() else {
        return program::wrong_usage("", usage);
    };
    match restore(Path::new(from), Path::new(to)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => program::failed(error.as_ref()),
    }
}

fn restore(file: &Path, target: &Path) -> Result<()> {
    let mut out = program::stdout();
    let found = detect(file)?;
    if found != Detected::Neon {
        return Err(format!("{}: not a .neon file, but {found}", file.display()).into());
    }
    let snapshot = NeonFile::open(
        File::open(file).map_err(|error| format!("{}: {error}", file.display()))?,
        None,
    )?;
    if let Some(major) = snapshot.snapshot().major {
        writeln!(out, "PostgreSQL {major}")?;
    }
    let target = std::path::absolute(target)?;
    let mut tablespaces = target.clone().into_os_string();
    tablespaces.push(".tablespaces");
    let options = DirectoryOptions {
        // Owners can be given by root alone.
        ownership: if is_root()? {
            Ownership::Recorded
        } else {
            Ownership::Process
        },
        tablespaces: TablespacePlaces::Below(PathBuf::from(tablespaces)),
        ..DirectoryOptions::default()
    };
    let writer = DirectoryWriter::create(&target, options)?;
    let threads = std::thread::available_parallelism()?.get();
    snapshot.send_parallel(&writer, threads)?;
    let written = writer.written();
    writeln!(
        out,
        "{}: {} files, {} bytes",
        target.display(),
        written.files,
        written.bytes
    )?;
    Ok(())
}

/// Whether this process could give files away: `/proc/self` belongs to its user.
fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}
