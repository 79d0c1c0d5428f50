//! The bodies of the fuzz targets of change sources; see [`crate::fuzz_targets`].

use std::io::{self, Read};

use neon_pg_layout::wal::WalFormat;
use neon_pg_layout::{
    BlockSize, Lsn, SegmentName, TimelineHistory, TimelineId, WalLevel, WalSegmentSize,
};

use crate::changes::{ClusterFacts, LogFiles, LogTail, LogWalk};

/// A text that may be the end of a log.
///
/// # Panics
/// When it is read and not written back the same.
pub fn log_tail(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(tail) = text.parse::<LogTail>()
    {
        assert_eq!(tail.to_string(), text, "written as it was read");
    }
}

/// One segment, whatever is asked for.
struct One<'a>(&'a [u8]);

impl LogFiles for One<'_> {
    fn open(
        &mut self,
        _: SegmentName,
        offset: u64,
    ) -> io::Result<Option<Box<dyn Read + Send + '_>>> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(self
            .0
            .get(offset..)
            .map(|rest| -> Box<dyn Read + Send> { Box::new(rest) }))
    }
}

/// A segment that a walk of the log begins in; asked twice, it must not lose its place.
///
/// # Panics
/// When the walk goes backwards.
pub fn log_walk(bytes: &[u8]) {
    let Ok(format) = WalFormat::of_segment(bytes) else {
        return;
    };
    let Some(system) = format.system_identifier() else {
        return;
    };
    let size = format.segment_size();
    let Some(start) = bytes.get(8..16).and_then(|place| place.first_chunk()) else {
        return;
    };
    let start = Lsn(u64::from_le_bytes(*start)).start_of(WalSegmentSize::MIN.bytes());
    let start = start.saturating_add(40);
    let cluster = ClusterFacts {
        system,
        major: format.layout().major,
        catalog_version: format.layout().catalog_version,
        block_size: BlockSize::DEFAULT,
        segment_blocks: 131_072,
        wal_segment_size: size,
        wal_page_size: format.page_size(),
        checksums: true,
        wal_level: WalLevel::Replica,
        wal_log_hints: false,
        track_commit_timestamp: false,
    };
    let timelines = TimelineHistory::root(TimelineId::FIRST);
    let Ok(mut walk) = LogWalk::new(&cluster, &timelines, start) else {
        return;
    };
    let mut position = walk.position();
    for _ in 0..2 {
        let end = start.saturating_add(bytes.len() as u64);
        let go = &mut |_| std::ops::ControlFlow::Continue(());
        let _outcome = walk.advance(end, &mut One(bytes), go);
        assert!(walk.position() >= position, "the walk goes backwards");
        position = walk.position();
    }
}
