//! What a range of the write-ahead log changed, by relation.
//!
//! ```text
//! wal_changes [--start LSN] [--end LSN] [--timeline N] PG_WAL_DIRECTORY | SEGMENT...
//! ```
//!
//! Follows one timeline (the newest there is) through the segments given, prints events as they come
//! and a table of relations at the end. Without `--end` it reads until the log ends. Memory is a
//! buffer, the record at hand, and the table.
//!
//! Exit codes: 0 done; 1 reading failed; 2 usage; 3 a segment is missing; 5 the log is damaged or
//! ends before `--end`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::wal::{Record, Step, WalFormat, WalPageHeader, WalReader};
use neon_pg_layout::{Fork, Lsn, RelFileLocator, SegmentName, TimelineId, WalSegmentSize};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

fn main() -> ExitCode {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let result = Options::parse(std::env::args().skip(1))
        .and_then(|options| run(&options, &mut out))
        .and_then(|()| out.flush().map_err(Failure::from));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What was printed before stands; so does the failure when nobody reads it.
            drop(out.flush());
            drop(writeln!(io::stderr(), "error: {failure}"));
            ExitCode::from(failure.code)
        }
    }
}

/// Why there is no answer, and the exit code that says so.
#[derive(Debug)]
struct Failure {
    code: u8,
    reason: String,
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const INTEGRITY: u8 = 5;

impl Failure {
    fn new(code: u8, reason: impl fmt::Display) -> Self {
        Self {
            code,
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(FAILED, error)
    }
}

#[derive(Debug, Default)]
struct Options {
    start: Option<Lsn>,
    end: Option<Lsn>,
    timeline: Option<TimelineId>,
    paths: Vec<PathBuf>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let usage = |reason: String| {
            Failure::new(
                USAGE,
                format!(
                    "{reason}\nusage: wal_changes [--start LSN] [--end LSN] [--timeline N] \
                     PG_WAL_DIRECTORY | SEGMENT..."
                ),
            )
        };
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            let mut value = || {
                args.next()
                    .ok_or_else(|| usage(format!("{arg} needs a value")))
            };
            match arg.as_str() {
                "--start" | "--end" => {
                    let lsn: Lsn = value()?
                        .parse()
                        .map_err(|error| usage(format!("{error}")))?;
                    let option = if arg == "--start" {
                        &mut options.start
                    } else {
                        &mut options.end
                    };
                    *option = Some(lsn);
                }
                "--timeline" => {
                    let text = value()?;
                    let number = text.parse().ok().and_then(|n| TimelineId::new(n).ok());
                    let number = number.ok_or_else(|| usage(format!("no timeline: {text}")))?;
                    options.timeline = Some(number);
                }
                _ if arg.starts_with("--") => return Err(usage(format!("unknown option {arg}"))),
                _ => options.paths.push(arg.into()),
            }
        }
        if options.paths.is_empty() {
            return Err(usage("no directory or segments given".into()));
        }
        if let (Some(start), Some(end)) = (options.start, options.end)
            && start >= end
        {
            return Err(usage(format!("{start} is not before {end}")));
        }
        Ok(options)
    }
}

/// The segments that were given, and the path through them.
#[derive(Debug)]
struct Segments {
    files: BTreeMap<SegmentName, PathBuf>,
    format: WalFormat,
    timeline: TimelineId,
    /// Of the segment read last: there is no way back to an earlier one.
    reached: Option<TimelineId>,
}

impl Segments {
    fn find(options: &Options) -> Result<Self, Failure> {
        let mut files = BTreeMap::new();
        for path in &options.paths {
            if path.is_dir() {
                for entry in std::fs::read_dir(path)? {
                    let path = entry?.path();
                    if let Some(name) = segment_name(&path) {
                        files.insert(name, path);
                    }
                }
            } else {
                let name = segment_name(path).ok_or_else(|| {
                    Failure::new(USAGE, format!("{} is no segment's name", path.display()))
                })?;
                files.insert(name, path.clone());
            }
        }
        let newest = files.keys().map(|name| name.timeline()).max();
        let (Some(newest), Some((_, first))) = (newest, files.first_key_value()) else {
            return Err(Failure::new(NOT_FOUND, "no WAL segments there"));
        };
        let timeline = options.timeline.unwrap_or(newest);
        let mut header = [0; WalPageHeader::LONG];
        File::open(first)
            .and_then(|mut file| file.read_exact(&mut header))
            .map_err(|error| Failure::new(FAILED, format!("{}: {error}", first.display())))?;
        let format = WalFormat::of_segment(&header)
            .map_err(|error| Failure::new(INTEGRITY, format!("{}: {error}", first.display())))?
            .up_to_timeline(timeline);
        files.retain(|name, _| name.timeline() <= timeline);
        Ok(Self {
            files,
            format,
            timeline,
            reached: None,
        })
    }

    fn size(&self) -> WalSegmentSize {
        self.format.segment_size()
    }

    fn number(&self, name: SegmentName) -> Result<u64, Failure> {
        name.number(self.size())
            .map_err(|error| Failure::new(INTEGRITY, error))
    }

    fn first(&self) -> Result<Lsn, Failure> {
        let mut first = u64::MAX;
        for name in self.files.keys() {
            first = first.min(self.number(*name)?);
        }
        Ok(self.size().start_of(first).unwrap_or_default())
    }

    /// The segment that holds `lsn`, of the newest timeline that has one; `None` behind the last.
    fn holding(&mut self, lsn: Lsn) -> Result<Option<&Path>, Failure> {
        let size = self.size();
        let reached = self.reached.unwrap_or(TimelineId::FIRST).get();
        let found = (reached..=self.timeline.get()).rev().find_map(|timeline| {
            let timeline = TimelineId::new(timeline).ok()?;
            let name = SegmentName::containing(timeline, lsn, size);
            self.files.contains_key(&name).then_some(name)
        });
        if let Some(name) = found {
            self.reached = Some(name.timeline());
            return Ok(self.files.get(&name).map(PathBuf::as_path));
        }
        for name in self.files.keys() {
            if name.timeline().get() >= reached && self.number(*name)? > size.number_of(lsn) {
                return Err(self.missing(lsn));
            }
        }
        Ok(None)
    }

    fn missing(&self, lsn: Lsn) -> Failure {
        let timeline = self.reached.unwrap_or(self.timeline);
        let name = SegmentName::containing(timeline, lsn, self.size());
        Failure::new(NOT_FOUND, format!("segment {name} is missing"))
    }
}

fn segment_name(path: &Path) -> Option<SegmentName> {
    path.file_name()?.to_str()?.parse().ok()
}

fn run(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    let mut segments = Segments::find(options)?;
    let start = match options.start {
        Some(start) => start,
        None => segments.first()?,
    };
    let mut reader = WalReader::first_after(segments.format.clone(), start);
    let mut summary = Summary::default();
    let mut piece = vec![0; PIECE];
    let reached = 'log: loop {
        let position = reader.position();
        let Some(path) = segments.holding(position)?.map(Path::to_owned) else {
            // A record may need the next segment, or nothing may be there at all.
            if reader.pending().is_some() || summary.end.is_none() || options.end.is_some() {
                return Err(segments.missing(position));
            }
            break summary.end.unwrap_or(position);
        };
        let mut file = File::open(&path)
            .map_err(|error| Failure::new(FAILED, format!("{}: {error}", path.display())))?;
        let size = segments.size();
        let offset = position.offset_in(size.bytes());
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
        let mut left = size.bytes() - offset;
        while left > 0 {
            let count = file.read(&mut piece)?;
            if count == 0 {
                let reason = format!("{} is too short for a segment of {size}", path.display());
                return Err(Failure::new(INTEGRITY, reason));
            }
            left = left.saturating_sub(count as u64);
            let mut input = piece.get(..count).unwrap_or_default();
            loop {
                match reader.read(&mut input) {
                    Ok(Step::Record(record)) => {
                        if options.end.is_some_and(|end| record.lsn() >= end) {
                            break 'log record.lsn();
                        }
                        summary.add(&record, out)?;
                        if options.end.is_some_and(|end| record.end() >= end) {
                            break 'log record.end();
                        }
                    }
                    Ok(Step::NeedMore) => break,
                    Ok(Step::End(end)) => {
                        if let Some(wanted) = options.end {
                            let reason = format!("the log ends at {}, before {wanted}", end.lsn);
                            return Err(Failure::new(INTEGRITY, reason));
                        }
                        break 'log end.lsn;
                    }
                    Err(error) => return Err(Failure::new(INTEGRITY, error)),
                }
            }
        }
    };
    summary.print(start, reached, out)
}

/// Which blocks of a fork: a bit each, in groups of 512, so that memory follows what was named.
#[derive(Debug, Default)]
struct Blocks(BTreeMap<u32, [u64; 8]>);

impl Blocks {
    fn insert(&mut self, block: u32) {
        let group = self.0.entry(block / 512).or_default();
        let word = usize::try_from(block / 64 % 8).unwrap_or_default();
        if let Some(word) = group.get_mut(word) {
            *word |= 1 << (block % 64);
        }
    }

    fn len(&self) -> u64 {
        let words = self.0.values().flatten();
        words.map(|word| u64::from(word.count_ones())).sum()
    }
}

#[derive(Debug, Default)]
struct ForkChanges {
    blocks: Blocks,
    references: u64,
    images: u64,
    created: bool,
    truncated: Option<u32>,
    dropped: bool,
}

#[derive(Debug, Default)]
struct Summary {
    forks: BTreeMap<(RelFileLocator, Fork), ForkChanges>,
    records: u64,
    committed: u64,
    aborted: u64,
    /// Kinds of records whose effects cannot be known.
    unknown: BTreeSet<String>,
    end: Option<Lsn>,
}

impl Summary {
    fn add(&mut self, record: &Record<'_>, out: &mut impl Write) -> Result<(), Failure> {
        self.records += 1;
        self.end = Some(record.end());
        let mut printed = Ok(());
        record
            .changes(|change| {
                if let Some(line) = self.change(change)
                    && printed.is_ok()
                {
                    printed = writeln!(out, "{} {line}", record.lsn());
                }
            })
            .map_err(|error| Failure::new(INTEGRITY, error))?;
        Ok(printed?)
    }

    fn fork(&mut self, relation: RelFileLocator, fork: Fork) -> &mut ForkChanges {
        self.forks.entry((relation, fork)).or_default()
    }

    /// Counts a change; one that is not about a relation is a line of its own.
    fn change(&mut self, change: Change<'_>) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(match change {
            Change::Block(block) => {
                let fork = self.fork(block.relation, block.fork);
                fork.blocks.insert(block.block);
                fork.references += 1;
                fork.images += u64::from(block.image.is_some_and(|image| image.restores));
                return None;
            }
            Change::VisibilityMapCleared { relation, block } => {
                let fork = self.fork(relation, Fork::VisibilityMap);
                fork.blocks.insert(block);
                return None;
            }
            Change::ForkCreated { relation, fork } => {
                self.fork(relation, fork).created = true;
                return None;
            }
            Change::Truncated {
                relation,
                fork,
                blocks,
            } => {
                let limit = &mut self.fork(relation, fork).truncated;
                *limit = Some(limit.map_or(blocks, |before| before.min(blocks)));
                return None;
            }
            Change::RelationDropped { relation } => {
                self.fork(relation, Fork::Main).dropped = true;
                return None;
            }
            Change::Committed(_) => {
                self.committed += 1;
                return None;
            }
            Change::Aborted(_) => {
                self.aborted += 1;
                return None;
            }
            Change::SlruPages { .. } | Change::NextOid { .. } => return None,
            Change::DatabaseCopied {
                database,
                tablespace,
                source_database,
                ..
            } => format!(
                "database {database} copied from {source_database} in tablespace {tablespace}"
            ),
            Change::DatabaseCreated {
                database,
                tablespace,
            } => format!("database {database} created in tablespace {tablespace}"),
            Change::DatabaseDropped {
                database,
                tablespace,
            } => format!("database {database} dropped in tablespace {tablespace}"),
            Change::TablespaceCreated { tablespace, path } => {
                format!("tablespace {tablespace} created at {:?}", text(path))
            }
            Change::TablespaceDropped { tablespace } => format!("tablespace {tablespace} dropped"),
            Change::RelationMapUpdated { database, .. } => {
                format!("relation map of database {database} replaced")
            }
            Change::Prepared(prepared) => format!(
                "transaction {} prepared as {:?}",
                prepared.xid,
                text(prepared.gid)
            ),
            Change::RestorePoint { time, name } => {
                let (seconds, micros) = time.unix();
                format!("restore point {:?} at {seconds}.{micros:06}", text(name))
            }
            Change::Checkpoint {
                shutdown,
                checkpoint,
            } => {
                let kind = if shutdown { "shutdown" } else { "online" };
                format!("{kind} checkpoint, redo {}", checkpoint.redo)
            }
            Change::EndOfRecovery {
                timeline,
                previous_timeline,
                ..
            } => format!("timeline {timeline} begins after {previous_timeline}"),
            Change::ParametersChanged(parameters) => format!("parameters: {parameters:?}"),
            Change::FullPageWritesChanged { on } => format!("full_page_writes: {on}"),
            Change::BackupEnded { start } => format!("backup from {start} ended"),
            Change::CutRecordReplaced { lsn, .. } => format!("record at {lsn} was cut by a crash"),
            Change::Unknown { rmgr, code, .. } => {
                self.unknown.insert(format!("{rmgr} {code:02X}"));
                return None;
            }
            _ => return None,
        })
    }

    fn print(&self, start: Lsn, end: Lsn, out: &mut impl Write) -> Result<(), Failure> {
        writeln!(
            out,
            "\n{start} to {end}: {} records, {} commits, {} aborts\n",
            self.records, self.committed, self.aborted
        )?;
        writeln!(
            out,
            "{:<28} {:>4} {:>10} {:>10} {:>8}  notes",
            "relation", "fork", "blocks", "references", "images"
        )?;
        for ((relation, fork), changes) in &self.forks {
            let mut notes = Vec::new();
            if changes.created {
                notes.push("created".to_owned());
            }
            if let Some(blocks) = changes.truncated {
                notes.push(format!("truncated to {blocks}"));
            }
            if changes.dropped {
                notes.push("dropped".to_owned());
            }
            let line = format!(
                "{:<28} {:>4} {:>10} {:>10} {:>8}  {}",
                relation.to_string(),
                fork.name(),
                changes.blocks.len(),
                changes.references,
                changes.images,
                notes.join(", ")
            );
            writeln!(out, "{}", line.trim_end())?;
        }
        if self.unknown.is_empty() {
            return Ok(());
        }
        let kinds: Vec<&str> = self.unknown.iter().map(String::as_str).collect();
        Err(Failure::new(
            INTEGRITY,
            format!(
                "the list is not complete: records of unknown effect ({})",
                kinds.join(", ")
            ),
        ))
    }
}
