//! Prints what a data directory is and checks every page of it: `inspect_pgdata <directory>`.
//!
//! Reads the control file, walks the files of the cluster, and judges each page by its header and, if
//! the cluster has them, by its checksum. Memory stays small whatever the size of the cluster. For a
//! stopped cluster. After a crash, or beside a running server, pages may be torn: one that fails is excused
//! if its position lies between the last checkpoint and the end of the log in `pg_wal`, which is then read,
//! because replaying that log restores it. Exit code 1 when a page is bad or something cannot be read.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of the command line"
)]

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_pg_layout::wal::{WalFormat, end_of_log};
use neon_pg_layout::{
    ControlFile, DataFile, Lsn, PageCheck, PageVerdict, RelationPath, ReplayedLog, SegmentName,
    VersionLayout, gmt,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How much of a file is in memory at a time.
const PIECE: usize = 1 << 20;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: inspect_pgdata <data directory>");
        return ExitCode::from(2);
    };
    match inspect(Path::new(&directory)) {
        Ok(counts) if counts.bad == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
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

#[derive(Default)]
struct Counts {
    relations: u64,
    good: u64,
    new: u64,
    unsettled: u64,
    bad: u64,
}

fn inspect(directory: &Path) -> Result<Counts> {
    let control = read_control(directory)?;
    print_facts(&control);
    // The end of the log is looked for when a page needs it.
    let any = ReplayedLog {
        start: control.checkpoint.redo,
        end: Lsn::MAX,
    };
    let check = PageCheck {
        checksums: control.data_checksums,
        replayed: (!control.state.is_clean()).then_some(any),
    };
    let mut log = Log {
        folder: directory.join("pg_wal"),
        format: WalFormat::of_control(&control)?,
        end: control.checkpoint.redo,
        standby: control.min_recovery_point,
    };
    let layout = control.major.layout();
    let mut counts = Counts::default();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = directory.join(&folder);
        let entries = std::fs::read_dir(&path).map_err(|error| at(&path, error))?;
        for entry in entries {
            let name = folder.join(entry.map_err(|error| at(&path, error))?.file_name());
            // Tablespaces are links; those of other majors are not this cluster's.
            if directory.join(&name).is_dir() {
                folders.push(name);
            } else if let Some(relation) = relation(&name, layout) {
                let pages = Pages {
                    control: &control,
                    check,
                    log: &mut log,
                };
                check_file(directory, &name, &relation, pages, &mut counts)?;
            }
        }
    }
    println!(
        "{} relation files: {} pages good, {} new, {} torn but restored by the log, {} bad",
        counts.relations, counts.good, counts.new, counts.unsettled, counts.bad
    );
    if !control.data_checksums {
        println!("page checksums are off: only headers were checked");
    }
    Ok(counts)
}

/// The log that goes with the pages.
struct Log {
    folder: PathBuf,
    format: WalFormat,
    /// How far it was read.
    end: Lsn,
    /// How far a standby had replayed its log, which it may not have kept.
    standby: Lsn,
}

impl Log {
    /// Whether the log reaches this far. A running server may have written more since it was last read.
    fn reaches(&mut self, lsn: Lsn) -> Result<bool> {
        if lsn > self.end.max(self.standby) {
            let mut segments = Vec::new();
            for entry in std::fs::read_dir(&self.folder).map_err(|error| at(&self.folder, error))? {
                let name = entry.map_err(|error| at(&self.folder, error))?.file_name();
                segments.extend(
                    name.to_str()
                        .and_then(|name| name.parse::<SegmentName>().ok()),
                );
            }
            self.end = end_of_log(self.format.clone(), self.end, &segments, |name| {
                File::open(self.folder.join(name.to_string()))
            })
            .map_err(|error| at(&self.folder, error))?;
        }
        Ok(lsn <= self.end.max(self.standby))
    }
}

/// What pages are judged by.
struct Pages<'a> {
    control: &'a ControlFile,
    check: PageCheck,
    log: &'a mut Log,
}

fn read_control(directory: &Path) -> Result<ControlFile> {
    let path = directory.join("global/pg_control");
    let mut file = Vec::new();
    // One byte more than there can be: a longer file is noticed without being read.
    let limit = ControlFile::FILE_SIZE as u64 + 1;
    let opened = File::open(&path).map_err(|error| at(&path, error))?;
    opened
        .take(limit)
        .read_to_end(&mut file)
        .map_err(|error| at(&path, error))?;
    Ok(ControlFile::decode(&file)?)
}

fn print_facts(control: &ControlFile) {
    let checkpoint = &control.checkpoint;
    println!("PostgreSQL {}", control.major);
    println!("system identifier  {}", control.system_identifier);
    println!("state              {}", control.state);
    println!("last written       {}", gmt(control.time));
    println!("timeline           {}", checkpoint.timeline);
    println!(
        "checkpoint         {} (redo from {})",
        control.checkpoint_location, checkpoint.redo
    );
    println!(
        "WAL                level {}, segments of {}",
        control.settings.wal_level, control.build.wal_segment_size
    );
    println!(
        "page checksums     {}",
        if control.data_checksums { "on" } else { "off" }
    );
}

fn relation(path: &Path, layout: &VersionLayout) -> Option<RelationPath> {
    match DataFile::of(path.to_str()?, layout) {
        DataFile::Relation(relation) => Some(relation),
        _ => None,
    }
}

fn check_file(
    directory: &Path,
    name: &Path,
    relation: &RelationPath,
    pages_of: Pages<'_>,
    counts: &mut Counts,
) -> Result<()> {
    let Pages {
        control,
        check,
        log,
    } = pages_of;
    let path = directory.join(name);
    let size = control.build.block_size.bytes();
    let mut block = relation
        .first_block(control.build.segment_blocks)
        .ok_or_else(|| at(&path, "more segments than a relation can have"))?;
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // Beside a running server files come and go.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(&path, error)),
    };
    counts.relations += 1;
    let mut pages = Vec::with_capacity(PIECE);
    loop {
        pages.clear();
        let mut piece = (&mut file).take((PIECE / size * size) as u64);
        piece
            .read_to_end(&mut pages)
            .map_err(|error| at(&path, error))?;
        for page in pages.chunks(size) {
            if page.len() < size {
                println!(
                    "bad: {} block {block}: only {} bytes",
                    name.display(),
                    page.len()
                );
                counts.bad += 1;
                continue;
            }
            match check.judge(page, block)? {
                PageVerdict::Good => counts.good += 1,
                PageVerdict::New => counts.new += 1,
                PageVerdict::Unsettled { lsn } if log.reaches(lsn)? => counts.unsettled += 1,
                PageVerdict::Unsettled { lsn } => {
                    println!(
                        "bad: {} block {block}: damaged, and claims position {lsn}, behind the end of the log",
                        name.display()
                    );
                    counts.bad += 1;
                }
                verdict => {
                    println!("bad: {} block {block}: {verdict:?}", name.display());
                    counts.bad += 1;
                }
            }
            block = block.saturating_add(1);
        }
        if pages.is_empty() {
            return Ok(());
        }
    }
}

fn at(path: &Path, error: impl std::fmt::Display) -> Box<dyn Error> {
    format!("{}: {error}", path.display()).into()
}
