//! Writes a cluster that was packed into one file as a data directory that a server starts on:
//! `restore_single_file <file> <new data directory>`.
//!
//! Tablespaces go into directories beside it, `<new data directory>.tablespaces/<oid>`. Everything is durable
//! when it ends; until then the directory has no `global/pg_control`, and no server accepts it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of the command line"
)]

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_snapshot_format::pack::NeonFile;
use neon_snapshot_format::pgdata::{
    DirectoryOptions, DirectoryWriter, Ownership, TablespacePlaces,
};
use neon_snapshot_format::{Detected, Sequential, Source, detect};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(file), Some(target), None) = (args.next(), args.next(), args.next()) else {
        eprintln!("usage: restore_single_file <file> <new data directory>");
        return ExitCode::from(2);
    };
    match restore(Path::new(&file), Path::new(&target)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("caused by: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn restore(file: &Path, target: &Path) -> Result<()> {
    let found = detect(file)?;
    if found != Detected::Neon {
        return Err(format!("{}: not a .neon file, but {found}", file.display()).into());
    }
    let mut snapshot = NeonFile::open(File::open(file)?, None)?;
    if let Some(major) = snapshot.snapshot().major {
        println!("PostgreSQL {major}");
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
    snapshot.send(&mut Sequential::new(&writer)?)?;
    let written = writer.written();
    println!(
        "{}: {} files, {} bytes",
        target.display(),
        written.files,
        written.bytes
    );
    Ok(())
}

/// Whether this process could give files away: `/proc/self` belongs to its user.
fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}
