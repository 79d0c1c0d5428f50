//! Logs made to order, kept in memory, and spans of them.

use std::collections::BTreeMap;
use std::io::{self, Read};

use neon_pagestore::changes::{
    Answer, CannotSay, ChangeSet, ChangeSource, Child, ClusterFacts, FileChange, FileFacts,
    LogFiles, LogSource, LogTail, Parent, Span,
};
use neon_pagestore::{CommitId, LineageId};
use neon_pg_layout::wal::ResourceManager;
use neon_pg_layout::{
    Fork, Lsn, PgMajor, RelFileLocator, SegmentName, TimelineHistory, TimelineId,
};
use neon_snapshot_format::SnapshotPath;
use neon_testkit::forge::{Forge, PAGE, SEGMENT, START, main_data};

use super::validity::cluster;

pub(crate) const RELATION: RelFileLocator = relation(16400);

pub(crate) const fn relation(number: u32) -> RelFileLocator {
    RelFileLocator {
        tablespace: 1663,
        database: 5,
        number,
    }
}

/// Segments by name; also counts what is read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory(pub(crate) BTreeMap<SegmentName, Vec<u8>>);

impl Memory {
    /// The segments of a forged log, named after one timeline.
    pub(crate) fn of(forge: &Forge, timeline: u32) -> Self {
        let timeline = TimelineId::new(timeline).unwrap();
        let segments = forge.bytes.chunks(SEGMENT as usize).zip(0_u64..);
        Self(
            segments
                .map(|(bytes, number)| {
                    let start = Lsn(START.0 + number * SEGMENT);
                    let size = cluster().wal_segment_size;
                    (
                        SegmentName::containing(timeline, start, size),
                        bytes.to_vec(),
                    )
                })
                .collect(),
        )
    }
}

impl LogFiles for Memory {
    fn open(
        &mut self,
        segment: SegmentName,
        offset: u64,
    ) -> io::Result<Option<Box<dyn Read + Send + '_>>> {
        Ok(self.0.get(&segment).map(|bytes| -> Box<dyn Read + Send> {
            Box::new(bytes.get(offset as usize..).unwrap_or_default())
        }))
    }
}

/// A valid span of a cluster on this history.
pub(crate) fn span_of(
    facts: (&ClusterFacts, &ClusterFacts),
    history: &TimelineHistory,
    (start, end): (Lsn, Lsn),
    clean_stop: bool,
) -> Span {
    let first = history.ranges().find(|range| start < range.end).unwrap();
    let tail = Some(LogTail::of(Lsn(start.0 - 8), &[1; 8]));
    let parent = Parent {
        id: CommitId::of(b"parent"),
        lineage: LineageId([0; 16]),
        cluster: facts.0.clone(),
        history: TimelineHistory::root(first.timeline),
        redo: start,
        stop: start,
        tail,
    };
    let child = Child {
        lineage: parent.lineage,
        base: None,
        cluster: facts.1.clone(),
        history: history.clone(),
        redo: end,
        clean_stop,
        tail,
    };
    Span::between(&parent, &child).unwrap()
}

pub(crate) fn first_timeline() -> TimelineHistory {
    TimelineHistory::root(TimelineId::FIRST)
}

pub(crate) fn span(start: Lsn, end: Lsn) -> Span {
    span_of(
        (&cluster(), &cluster()),
        &first_timeline(),
        (start, end),
        false,
    )
}

/// A record that names a block and nothing else.
pub(crate) fn block(
    forge: &mut Forge,
    rmgr: ResourceManager,
    relation: RelFileLocator,
    fork: Fork,
    block: u32,
) -> Lsn {
    let mut body = vec![0, fork.number(), 0, 0];
    for word in [
        relation.tablespace,
        relation.database,
        relation.number,
        block,
    ] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    forge.record(rmgr.0, 0, &body)
}

/// A change of a block of the main fork that says nothing else.
pub(crate) fn change(forge: &mut Forge, relation: RelFileLocator, number: u32) -> Lsn {
    block(
        forge,
        ResourceManager::GENERIC,
        relation,
        Fork::Main,
        number,
    )
}

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    main_data(
        &words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<_>>(),
    )
}

/// A record that is of no consequence; a span can end there.
pub(crate) fn nothing(forge: &mut Forge) -> Lsn {
    forge.record(ResourceManager::LOGICAL_MESSAGE.0, 0, &main_data(&[0; 40]))
}

/// `XLOG_PARAMETER_CHANGE`
pub(crate) fn parameters(forge: &mut Forge, level: u32, hints: bool, times: bool) -> Lsn {
    let mut data: Vec<u8> = [40, 4, 10, 10, 64, level]
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect();
    data.extend([u8::from(hints), u8::from(times), 0, 0]);
    forge.record(ResourceManager::XLOG.0, 0x60, &main_data(&data))
}

/// What the log says, or why it does not.
pub(crate) fn ask(source: &mut dyn ChangeSource) -> Result<ChangeSet, CannotSay> {
    match source.changes().unwrap() {
        Answer::Exact(set) => Ok(set),
        Answer::CannotSay(reason) => Err(reason),
    }
}

/// What a log of the first timeline says from its first record to the one at `end`.
pub(crate) fn changes(forge: &Forge, end: Lsn) -> Result<ChangeSet, CannotSay> {
    ask(&mut LogSource::new(
        span(first(), end),
        &mut Memory::of(forge, 1),
    ))
}

/// Where the first record of a forged log begins.
pub(crate) fn first() -> Lsn {
    Lsn(START.0 + 40)
}

/// What is to be read of a file that had and has so many pages.
pub(crate) fn of(set: &ChangeSet, path: &str, then: u64, now: u64) -> FileChange {
    of_bytes(set, path, then * PAGE, now * PAGE)
}

pub(crate) fn of_bytes(set: &ChangeSet, path: &str, then: u64, now: u64) -> FileChange {
    set.of(&FileFacts {
        path: &SnapshotPath::new(path).unwrap(),
        size: now,
        parent_size: Some(then),
        unlogged: false,
    })
}

pub(crate) fn forge() -> Forge {
    Forge::new(PgMajor::V17)
}

/// What this record says, alone.
pub(crate) fn told(make: impl FnOnce(&mut Forge)) -> ChangeSet {
    let mut forge = forge();
    nothing(&mut forge);
    make(&mut forge);
    let end = nothing(&mut forge);
    changes(&forge, end).unwrap()
}
