//! A directory of segments, read whole.

use std::path::Path;

use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::wal::{EndOfWal, Record, Step, WalFormat, WalReader};
use neon_pg_layout::{Error, Fork, Lsn, SegmentName, TimelineHistory, TimelineId};

/// What a record says of itself, without borrowing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) lsn: Lsn,
    pub(crate) previous: Lsn,
    pub(crate) rmgr: String,
    pub(crate) xid: u32,
    pub(crate) total_len: u32,
    pub(crate) blocks: Vec<SeenBlock>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenBlock {
    pub(crate) id: u8,
    pub(crate) relation: String,
    pub(crate) fork: Fork,
    pub(crate) block: u32,
    /// With an image, whether replay restores it.
    pub(crate) image: Option<bool>,
}

impl Seen {
    pub(crate) fn of(record: &Record<'_>) -> Self {
        let header = record.header();
        Self {
            lsn: record.lsn(),
            previous: header.previous,
            rmgr: header.rmgr.to_string(),
            xid: header.xid,
            total_len: header.total_len,
            blocks: record
                .blocks()
                .map(|block| SeenBlock {
                    id: block.id,
                    relation: block.relation.to_string(),
                    fork: block.fork,
                    block: block.block,
                    image: block.image.map(|image| image.restores),
                })
                .collect(),
        }
    }
}

/// How a walk ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// There are no more segments; where the record began that was cut by that.
    NoMoreFiles(Option<Lsn>),
    End(EndOfWal),
    Failed(Error),
}

/// The names of the segments in `dir`, ascending.
pub(crate) fn segments(dir: &Path) -> Vec<SegmentName> {
    let mut names: Vec<SegmentName> = std::fs::read_dir(dir)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().ok())
        .collect();
    names.sort();
    names
}

/// The format of the log in `dir`, from its first segment.
pub(crate) fn format_of(dir: &Path) -> WalFormat {
    let first = segments(dir)[0].to_string();
    WalFormat::of_segment(&std::fs::read(dir.join(first)).unwrap()).unwrap()
}

/// Where the log in `dir` begins.
pub(crate) fn start_of(dir: &Path) -> Lsn {
    segments(dir)[0]
        .start(format_of(dir).segment_size())
        .unwrap()
}

/// Walks the log in `dir` along one timeline, from the first record at or after `from` (or of all), feeding
/// pieces of `piece` bytes, and shows every record.
pub(crate) fn walk(
    dir: &Path,
    timeline: u32,
    from: Option<Lsn>,
    piece: usize,
    mut visit: impl FnMut(&Record<'_>),
) -> Stop {
    let format = format_of(dir);
    let size = format.segment_size();
    let timeline = TimelineId::new(timeline).unwrap();
    let mut history = TimelineHistory::root(timeline);
    if timeline != TimelineId::FIRST {
        let content = std::fs::read(dir.join(history.file_name().to_string())).unwrap();
        history = TimelineHistory::parse(timeline, &content).unwrap();
    }
    let from = from.unwrap_or_else(|| start_of(dir));
    let mut reader = WalReader::first_after(format.up_to_timeline(timeline), from);
    loop {
        let position = reader.position();
        // A timeline begins with a copy of the segment in which its parent was left.
        let ranges = history.ranges().rev();
        let found = ranges
            .filter(|range| position < range.end)
            .map(|range| {
                let name = SegmentName::containing(range.timeline, position, size);
                (dir.join(name.to_string()), range.end)
            })
            .find(|(path, _)| path.exists());
        let Some((path, end)) = found else {
            return Stop::NoMoreFiles(reader.pending());
        };
        let bytes = std::fs::read(path).unwrap();
        let start = Lsn(position.0 - position.offset_in(size.bytes()));
        let end = usize::try_from((end.0 - start.0).min(bytes.len() as u64)).unwrap();
        let offset = usize::try_from(position.offset_in(size.bytes())).unwrap();
        for mut input in bytes[offset..end].chunks(piece) {
            loop {
                match reader.read(&mut input) {
                    Ok(Step::Record(record)) => visit(&record),
                    Ok(Step::NeedMore) => break,
                    Ok(Step::End(end)) => return Stop::End(end),
                    Err(error) => return Stop::Failed(error),
                }
            }
        }
    }
}

/// All records from `from` on and how the walk ended.
pub(crate) fn records(dir: &Path, timeline: u32, from: Option<Lsn>) -> (Vec<Seen>, Stop) {
    let mut seen = Vec::new();
    let stop = walk(dir, timeline, from, usize::MAX, |record| {
        seen.push(Seen::of(record));
    });
    (seen, stop)
}

/// All changes from `from` on, printed, and how the walk ended.
pub(crate) fn changes(
    dir: &Path,
    timeline: u32,
    from: Option<Lsn>,
    mut visit: impl FnMut(Lsn, Change<'_>),
) -> Stop {
    walk(dir, timeline, from, usize::MAX, |record| {
        record
            .changes(|change| visit(record.lsn(), change))
            .unwrap();
    })
}
