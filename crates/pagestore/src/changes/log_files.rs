//! The segments of a log, and the order in which a history reads them.

use std::fs::File;
use std::io::{self, ErrorKind as IoKind, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::PathBuf;

use neon_pg_layout::{Lsn, SegmentName, TimelineHistory, WalSegmentSize};

use crate::changes::reason::CannotSay;
use crate::changes::tail::LogTail;

/// How much is read of a segment at once.
pub(super) const PIECE: usize = 256 << 10;

/// The segments of a log, wherever they are.
pub trait LogFiles: Send {
    /// The bytes of a segment from `offset` on; none when it is not there.
    ///
    /// # Errors
    /// When it cannot be read though it is there.
    fn open(
        &mut self,
        segment: SegmentName,
        offset: u64,
    ) -> io::Result<Option<Box<dyn Read + Send + '_>>>;
}

/// The segments in one directory: `pg_wal`, or a folder of archived ones.
#[derive(Debug, Clone)]
pub struct SegmentDirectory(PathBuf);

impl SegmentDirectory {
    /// That directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl LogFiles for SegmentDirectory {
    fn open(
        &mut self,
        segment: SegmentName,
        offset: u64,
    ) -> io::Result<Option<Box<dyn Read + Send + '_>>> {
        let mut file = match File::open(self.0.join(segment.to_string())) {
            Ok(file) => file,
            Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(offset))?;
        Ok(Some(Box::new(file)))
    }
}

/// The bytes of a history's log, in order.
#[derive(Debug, Clone, Copy)]
pub(super) struct History<'a> {
    pub(super) timelines: &'a TimelineHistory,
    pub(super) segment_size: WalSegmentSize,
}

impl History<'_> {
    /// The segments that may hold the byte at `position`, with the position after the last byte that
    /// counts in each: that of the newest timeline first, which begins with a copy of what came before.
    fn holding(&self, position: Lsn) -> Vec<(SegmentName, Lsn)> {
        let size = self.segment_size;
        let number = size.number_of(position);
        let after = number
            .checked_add(1)
            .and_then(|next| size.start_of(next))
            .unwrap_or(Lsn::MAX);
        self.timelines
            .ranges()
            .rev()
            .filter(|range| size.number_of(range.start) <= number && position < range.end)
            .map(|range| {
                let name = SegmentName::containing(range.timeline, position, size);
                (name, range.end.min(after))
            })
            .collect()
    }

    /// Feeds bytes from `position` on, at most to the end of one segment file, until `take` wants no more.
    pub(super) fn feed(
        &self,
        files: &mut dyn LogFiles,
        position: Lsn,
        buffer: &mut [u8],
        mut take: impl FnMut(&[u8]) -> Result<ControlFlow<()>, CannotSay>,
    ) -> Result<Fed, CannotSay> {
        let offset = position.offset_in(self.segment_size.bytes());
        let candidates = self.holding(position);
        for (name, end) in &candidates {
            let unreadable = |error: io::Error| CannotSay::Unreadable {
                what: format!("segment {name} of the log"),
                why: error.to_string(),
            };
            let Some(file) = files.open(*name, offset).map_err(unreadable)? else {
                continue;
            };
            let mut file = file.take(end.0.saturating_sub(position.0));
            let mut any = false;
            loop {
                let count = match file.read(buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == IoKind::Interrupted => continue,
                    Err(error) => return Err(unreadable(error)),
                };
                any = true;
                if take(buffer.get(..count).unwrap_or_default())?.is_break() {
                    return Ok(Fed::Stopped);
                }
            }
            if any {
                return Ok(Fed::All);
            }
        }
        match candidates.first() {
            Some((segment, _)) => Ok(Fed::Missing(*segment)),
            None => Err(CannotSay::LogEnds {
                at: position,
                wanted: Lsn::MAX,
            }),
        }
    }
}

pub(super) enum Fed {
    /// To the end of the file.
    All,
    Stopped,
    /// There is no such byte; the segment that should hold it.
    Missing(SegmentName),
}

/// Reads how the log ends before `end`, to be recorded with a snapshot that ends there, or compared with
/// what an earlier one recorded.
///
/// # Errors
/// When the log is not there or cannot be read.
pub fn read_tail(
    segment_size: WalSegmentSize,
    timelines: &TimelineHistory,
    end: Lsn,
    files: &mut dyn LogFiles,
) -> Result<LogTail, CannotSay> {
    let history = History {
        timelines,
        segment_size,
    };
    let start = LogTail::start_for(end, segment_size);
    let mut bytes = Vec::new();
    let wanted = usize::try_from(end.0.saturating_sub(start.0)).unwrap_or(usize::MAX);
    let mut buffer = vec![0; PIECE];
    while bytes.len() < wanted {
        let position = start.saturating_add(bytes.len() as u64);
        let fed = history.feed(files, position, &mut buffer, |piece| {
            let left = wanted - bytes.len();
            bytes.extend_from_slice(piece.get(..left).unwrap_or(piece));
            Ok(if bytes.len() < wanted {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        if let Fed::Missing(segment) = fed {
            return Err(CannotSay::LogMissing {
                segment,
                at: position,
            });
        }
    }
    Ok(LogTail::of(start, &bytes))
}
