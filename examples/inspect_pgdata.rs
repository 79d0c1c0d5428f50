//! Prints what a data directory is and checks every page of it: `inspect_pgdata <directory>`.
//!
//! Reads the control file, walks the files of the cluster, and judges each page by its header and, if
//! the cluster has them, by its checksum. Memory stays small whatever the size of the cluster. For a
//! stopped cluster. After a crash, or beside a running server, pages may be torn: one that fails is excused
//! if its position lies between the last checkpoint and the end of the log in `pg_wal`, which is then read,
//! because replaying that log restores it. Exit code 0 when all is well, 1 when something cannot be read,
//! 2 for wrong usage, 3 when there is no cluster, 5 when a page or the control file is bad.

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_examples::program;
use neon_pg_layout::wal::{WalFormat, end_of_log};
use neon_pg_layout::{
    ControlFile, DataFile, Lsn, PageCheck, PageVerdict, RelationPath, ReplayedLog, SegmentName,
    VersionLayout, gmt,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How much of a file is in memory at a time.
const PIECE: usize = 1 << 20;

/// What the exit code says.
const NOT_FOUND: u8 = 3;
const INTEGRITY: u8 = 5;

fn main() -> ExitCode {
    let usage = "inspect_pgdata DATA_DIRECTORY";
    let words = match program::arguments(usage) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let [directory] = words.as_slice() else {
        return program::wrong_usage("", usage);
    };
    let mut out = io::BufWriter::new(program::stdout());
    let outcome = inspect(Path::new(directory), &mut out);
    let outcome = outcome.and_then(|counts| Ok(out.flush().map(|()| counts)?));
    match outcome {
        Ok(counts) if counts.bad == 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(INTEGRITY),
        Err(error) => {
            let failed = program::failed(error.as_ref());
            match error.downcast_ref::<io::Error>().map(io::Error::kind) {
                Some(io::ErrorKind::NotFound) => ExitCode::from(NOT_FOUND),
                None if error.is::<neon_pg_layout::Error>() => ExitCode::from(INTEGRITY),
                _ => failed,
            }
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

fn inspect(directory: &Path, out: &mut impl Write) -> Result<Counts> {
    let control = read_control(directory)?;
    print_facts(&control, out)?;
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
    for folder in folders(directory)? {
        for name in listed(&directory.join(&folder))? {
            let name = folder.join(name);
            if let Some(relation) = relation(&name, layout) {
                let pages = Pages {
                    control: &control,
                    check,
                    log: &mut log,
                };
                check_file(directory, &name, &relation, pages, &mut counts, out)?;
            }
        }
    }
    writeln!(
        out,
        "{} relation files: {} pages good, {} new, {} torn but restored by the log, {} bad",
        counts.relations, counts.good, counts.new, counts.unsettled, counts.bad
    )?;
    if !control.data_checksums {
        writeln!(out, "page checksums are off: only headers were checked")?;
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

/// The folders that hold relations. Only the links of tablespaces are followed: whatever else lies or
/// points somewhere is not the cluster's.
fn folders(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = vec![PathBuf::from("global")];
    let mut parents = vec![PathBuf::from("base")];
    for link in listed(&directory.join("pg_tblspc"))? {
        let link = Path::new("pg_tblspc").join(link);
        for version in listed(&directory.join(&link))? {
            // Those of other majors are told apart by the names of the files.
            if version.to_string_lossy().starts_with("PG_") {
                parents.push(link.join(version));
            }
        }
    }
    for parent in parents {
        let databases = listed(&directory.join(&parent))?.into_iter();
        let databases = databases.filter(|name| {
            let name = name.to_string_lossy();
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
        });
        folders.extend(databases.map(|database| parent.join(database)));
    }
    Ok(folders)
}

/// The names in a folder. None for one that is gone, as beside a running server a database may be,
/// and for what is no folder.
fn listed(folder: &Path) -> Result<Vec<OsString>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Vec::new()),
                _ => Err(at(folder, error)),
            };
        }
    };
    let names = entries.map(|entry| Ok(entry.map_err(|error| at(folder, error))?.file_name()));
    names.collect()
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

fn print_facts(control: &ControlFile, out: &mut impl Write) -> io::Result<()> {
    let checkpoint = &control.checkpoint;
    writeln!(out, "PostgreSQL {}", control.major)?;
    writeln!(out, "system identifier  {}", control.system_identifier)?;
    writeln!(out, "state              {}", control.state)?;
    writeln!(out, "last written       {}", gmt(control.time))?;
    writeln!(out, "timeline           {}", checkpoint.timeline)?;
    writeln!(
        out,
        "checkpoint         {} (redo from {})",
        control.checkpoint_location, checkpoint.redo
    )?;
    writeln!(
        out,
        "WAL                level {}, segments of {}",
        control.settings.wal_level, control.build.wal_segment_size
    )?;
    writeln!(
        out,
        "page checksums     {}",
        if control.data_checksums { "on" } else { "off" }
    )
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
    out: &mut impl Write,
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
        .ok_or_else(|| format!("{}: more segments than a relation can have", path.display()))?;
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
                writeln!(
                    out,
                    "bad: {} block {block}: only {} bytes",
                    name.display(),
                    page.len()
                )?;
                counts.bad += 1;
                continue;
            }
            match check.judge(page, block)? {
                PageVerdict::Good => counts.good += 1,
                PageVerdict::New => counts.new += 1,
                PageVerdict::Unsettled { lsn } if log.reaches(lsn)? => counts.unsettled += 1,
                PageVerdict::Unsettled { lsn } => {
                    writeln!(
                        out,
                        "bad: {} block {block}: damaged, and claims position {lsn}, behind the end of the log",
                        name.display()
                    )?;
                    counts.bad += 1;
                }
                verdict => {
                    writeln!(out, "bad: {} block {block}: {verdict:?}", name.display())?;
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

/// What the system says about a path, of the kind it was.
fn at(path: &Path, error: io::Error) -> Box<dyn Error> {
    io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}
