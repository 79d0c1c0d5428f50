//! What a range of the write-ahead log changed, by relation.
//!
//! ```text
//! wal_changes [--start LSN] [--end LSN] [--timeline N] PG_WAL_DIRECTORY | SEGMENT...
//! ```
//!
//! Follows one timeline (the newest there is) and those it descends from, as its history file beside
//! the segments says, prints events as they come and a table of relations at the end. Without `--end`
//! it reads until the log ends. Memory is a buffer, the record at hand, and the table.
//!
//! Exit codes: 0 done; 1 reading failed; 2 usage; 3 a segment, a history file or a path is missing;
//! 5 the log is damaged, has a hole, or ends before `--end`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_examples::program;
use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::wal::{Record, Step, WalFormat, WalPageHeader, WalReader};
use neon_pg_layout::{
    Fork, Lsn, RelFileLocator, SegmentName, TimelineHistory, TimelineId, TimelineRange,
    WalFileName, WalSegmentSize,
};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

const WORDS: &str =
    "wal_changes [--start LSN] [--end LSN] [--timeline N] PG_WAL_DIRECTORY | SEGMENT...";

fn main() -> ExitCode {
    let words = match program::arguments(WORDS) {
        Ok(words) => words,
        Err(code) => return code,
    };
    let options = match Options::parse(words) {
        Ok(options) => options,
        Err(reason) => return program::wrong_usage(&reason, WORDS),
    };
    let mut out = io::BufWriter::new(program::stdout());
    let result = run(&options, &mut out).and_then(|()| out.flush().map_err(Failure::from));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // What was printed before stands.
            drop(out.flush());
            program::complain(format_args!("error: {failure}"));
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

    /// What the system says about a file.
    fn at(path: &Path, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            _ => FAILED,
        };
        Self::new(code, format_args!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Of writing the answer: whatever is read says where.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(FAILED, format_args!("standard output: {error}"))
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
    fn parse(words: Vec<OsString>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(name) = word.to_str().filter(|word| word.starts_with("--")) else {
                options.paths.push(word.into());
                continue;
            };
            let mut value = || {
                let value = words.next().ok_or(format!("{name} needs a value"))?;
                let value = value.into_string();
                value.map_err(|value| format!("{name}: {} is no value", value.display()))
            };
            match name {
                "--start" | "--end" => {
                    let lsn: Lsn = value()?.parse().map_err(|error| format!("{error}"))?;
                    let option = if name == "--start" {
                        &mut options.start
                    } else {
                        &mut options.end
                    };
                    *option = Some(lsn);
                }
                "--timeline" => {
                    let text = value()?;
                    let number = text.parse().ok().and_then(|n| TimelineId::new(n).ok());
                    options.timeline = Some(number.ok_or(format!("no timeline: {text}"))?);
                }
                _ => return Err(format!("unknown option {name}")),
            }
        }
        if options.paths.is_empty() {
            return Err("no directory or segments given".into());
        }
        if let (Some(start), Some(end)) = (options.start, options.end)
            && start >= end
        {
            return Err(format!("{start} is not before {end}"));
        }
        Ok(options)
    }
}

/// The segments on the way to the timeline that is followed.
#[derive(Debug)]
struct Segments {
    files: BTreeMap<SegmentName, PathBuf>,
    format: WalFormat,
    history: TimelineHistory,
}

/// A segment to read on from, and up to where it is of the line that is followed.
struct Part {
    path: PathBuf,
    end: Lsn,
}

impl Segments {
    fn find(options: &Options) -> Result<Self, Failure> {
        let (mut files, folders) = listed(&options.paths)?;
        let newest = files.keys().map(|name| name.timeline()).max();
        let (Some(newest), Some((_, first))) = (newest, files.first_key_value()) else {
            return Err(Failure::new(NOT_FOUND, "no WAL segments there"));
        };
        let timeline = options.timeline.unwrap_or(newest);
        let history = history_of(timeline, &folders)?;
        let mut header = [0; WalPageHeader::LONG];
        File::open(first)
            .and_then(|mut file| file.read_exact(&mut header))
            .map_err(|error| Failure::at(first, &error))?;
        let format = WalFormat::of_segment(&header)
            .map_err(|error| Failure::new(INTEGRITY, format!("{}: {error}", first.display())))?
            .up_to_timeline(timeline);
        let size = format.segment_size();
        for name in files.keys() {
            name.number(size)
                .map_err(|error| Failure::new(INTEGRITY, error))?;
        }
        // Other children of the same ancestors, and what those wrote after they were left, are
        // another line of history.
        files.retain(|name, _| on_the_way(&history, *name, size));
        if files.is_empty() {
            let reason = format!("no WAL segments of timeline {timeline} there");
            return Err(Failure::new(NOT_FOUND, reason));
        }
        Ok(Self {
            files,
            format,
            history,
        })
    }

    fn size(&self) -> WalSegmentSize {
        self.format.segment_size()
    }

    /// Where a segment begins.
    fn start(&self, name: SegmentName) -> Lsn {
        let number = name.number(self.size()).ok();
        let start = number.and_then(|number| self.size().start_of(number));
        start.unwrap_or(Lsn::MAX)
    }

    fn first(&self) -> Lsn {
        let starts = self.files.keys().map(|name| self.start(*name));
        starts.min().unwrap_or_default()
    }

    /// The segment that holds `lsn`; `None` behind the last. A timeline begins with a copy of the
    /// segment in which its parent was left, so the newest that is on the way is taken.
    fn holding(&self, lsn: Lsn) -> Result<Option<Part>, Failure> {
        let size = self.size();
        let found = self.history.ranges().rev().find_map(|range| {
            let name = SegmentName::containing(range.timeline, lsn, size);
            let path = self.files.get(&name).filter(|_| lsn < range.end)?;
            Some((path.clone(), range))
        });
        if let Some((path, TimelineRange { end, .. })) = found {
            return Ok(Some(Part { path, end }));
        }
        let goes_on = self.files.keys().any(|name| self.start(*name) > lsn);
        let entered = self.history.ranges().next_back();
        if goes_on || entered.is_some_and(|range| lsn <= range.start) {
            return Err(self.missing(lsn));
        }
        Ok(None)
    }

    fn missing(&self, lsn: Lsn) -> Failure {
        let timeline = self.history.timeline_of(lsn);
        let name = SegmentName::containing(timeline, lsn, self.size());
        Failure::new(NOT_FOUND, format!("segment {name} is missing"))
    }

    /// A segment after the one that holds `lsn` in which the log goes on: its first page says that it
    /// is where its name says. One that is kept for later use says something else, or nothing.
    fn written_after(&self, lsn: Lsn) -> Result<Option<SegmentName>, Failure> {
        let number = self.size().number_of(lsn);
        for (name, path) in &self.files {
            let start = self.start(*name);
            if self.size().number_of(start) <= number {
                continue;
            }
            let mut header = Vec::with_capacity(WalPageHeader::LONG);
            File::open(path)
                .and_then(|file| {
                    let mut head = file.take(WalPageHeader::LONG as u64);
                    head.read_to_end(&mut header)
                })
                .map_err(|error| Failure::at(path, &error))?;
            if WalPageHeader::decode(&header).is_ok_and(|header| header.address == start) {
                return Ok(Some(*name));
            }
        }
        Ok(None)
    }
}

/// The segments in the paths given, and the folders in which their timelines' histories may be.
fn listed(
    paths: &[PathBuf],
) -> Result<(BTreeMap<SegmentName, PathBuf>, BTreeSet<PathBuf>), Failure> {
    let (mut files, mut folders) = (BTreeMap::new(), BTreeSet::new());
    for path in paths {
        let at = |error| Failure::at(path, &error);
        if std::fs::metadata(path).map_err(at)?.is_dir() {
            folders.insert(path.clone());
            for entry in std::fs::read_dir(path).map_err(at)? {
                let path = entry.map_err(at)?.path();
                if let Some(name) = segment_name(&path) {
                    files.insert(name, path);
                }
            }
        } else {
            let name = segment_name(path).ok_or_else(|| {
                Failure::new(
                    USAGE,
                    format!("{}: not the name of a segment", path.display()),
                )
            })?;
            folders.extend(path.parent().map(Path::to_owned));
            files.insert(name, path.clone());
        }
    }
    Ok((files, folders))
}

/// What the timeline descends from. All but the first have a file that says it.
fn history_of(
    timeline: TimelineId,
    folders: &BTreeSet<PathBuf>,
) -> Result<TimelineHistory, Failure> {
    if timeline == TimelineId::FIRST {
        return Ok(TimelineHistory::root(timeline));
    }
    let name = WalFileName::History(timeline).to_string();
    for folder in folders {
        let path = folder.join(&name);
        match std::fs::read(&path) {
            Ok(content) => {
                return TimelineHistory::parse(timeline, &content).map_err(|error| {
                    Failure::new(INTEGRITY, format!("{}: {error}", path.display()))
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::at(&path, &error)),
        }
    }
    Err(Failure::new(
        NOT_FOUND,
        format!(
            "{name} is missing beside the segments: what timeline {timeline} descends from is not known"
        ),
    ))
}

/// Whether a segment holds log that leads to the timeline of the history.
fn on_the_way(history: &TimelineHistory, name: SegmentName, size: WalSegmentSize) -> bool {
    let (Some(range), Ok(number)) = (history.range_of(name.timeline()), name.number(size)) else {
        return false;
    };
    let last = Lsn(range.end.0.saturating_sub(1));
    range.start < range.end
        && (size.number_of(range.start)..=size.number_of(last)).contains(&number)
}

fn segment_name(path: &Path) -> Option<SegmentName> {
    path.file_name()?.to_str()?.parse().ok()
}

fn run(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    let segments = Segments::find(options)?;
    let start = options.start.unwrap_or_else(|| segments.first());
    let mut reader = WalReader::first_after(segments.format.clone(), start);
    let mut summary = Summary::default();
    let mut piece = vec![0; PIECE];
    let reached = 'log: loop {
        let position = reader.position();
        let Some(part) = segments.holding(position)? else {
            // A record may need the next segment, or nothing may be there at all.
            if reader.pending().is_some() || summary.end.is_none() || options.end.is_some() {
                return Err(segments.missing(position));
            }
            break summary.end.unwrap_or(position);
        };
        let at = |error| Failure::at(&part.path, &error);
        let mut file = File::open(&part.path).map_err(at)?;
        let size = segments.size();
        let offset = position.offset_in(size.bytes());
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset)).map_err(at)?;
        // What the timeline wrote after it was left is not read.
        let mut left = (size.bytes() - offset).min(part.end.0.saturating_sub(position.0));
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let count = file
                .read(piece.get_mut(..wanted).unwrap_or_default())
                .map_err(at)?;
            if count == 0 {
                let path = part.path.display();
                let reason = format!("{path} is too short for a segment of {size}");
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
                        if let Some(later) = segments.written_after(position)? {
                            let reason = format!(
                                "the log has a hole: it ends at {}, in {}, and goes on in {later}",
                                end.lsn,
                                part.path.display()
                            );
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
