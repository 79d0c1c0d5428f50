//! Walks along logs made to order: what stops them, and how they go on.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use neon_pagestore::ErrorKind;
use neon_pagestore::changes::{
    Answer, CannotSay, ChangeSet, ChangeSource, ClusterFacts, FileChange, Hints, LogFiles,
    LogSource, LogWalk, read_tail,
};
use neon_pg_layout::wal::ResourceManager;
use neon_pg_layout::{Fork, Lsn, PgMajor, SegmentName, TimelineId};
use neon_testkit::forge::{Forge, PAGE, SEGMENT, main_data};

use super::forged::{
    Memory, RELATION, ask, block, change, changes, first, first_timeline, forge, nothing, of,
    parameters, relation, span, span_of, told, words,
};
use super::validity::cluster;

#[test]
fn a_time_without_full_logging_is_noticed() {
    let mut minimal = forge();
    nothing(&mut minimal);
    let at = parameters(&mut minimal, 0, false, false);
    parameters(&mut minimal, 1, false, false);
    let end = nothing(&mut minimal);
    assert_eq!(
        changes(&minimal, end).unwrap_err(),
        CannotSay::WalLevelMinimal { at }
    );
    // From 17 on checkpoints tell as well.
    let mut minimal = forge();
    nothing(&mut minimal);
    let at = minimal.record(ResourceManager::XLOG.0, 0xE0, &words(&[0]));
    let end = nothing(&mut minimal);
    assert_eq!(
        changes(&minimal, end).unwrap_err(),
        CannotSay::WalLevelMinimal { at }
    );
}

#[test]
fn a_switch_of_hint_logging_is_noticed_unless_checksums_log_them_anyway() {
    let mut forge = forge();
    nothing(&mut forge);
    let at = parameters(&mut forge, 1, true, false);
    parameters(&mut forge, 1, false, false);
    let end = nothing(&mut forge);
    let plain = ClusterFacts {
        checksums: false,
        ..cluster()
    };
    let span = span_of((&plain, &plain), &first_timeline(), (first(), end), false);
    let asked = ask(&mut LogSource::new(span, &mut Memory::of(&forge, 1)));
    assert_eq!(asked.unwrap_err(), CannotSay::HintLogging { at });
    assert_eq!(changes(&forge, end).unwrap().hints(), Hints::Exact);
}

#[test]
fn a_record_that_may_have_changed_anything_is_noticed() {
    for (rmgr, info) in [
        (ResourceManager::GENERIC, 0x01),
        (ResourceManager::STORAGE, 0x71),
        (ResourceManager(200), 0x01),
    ] {
        let mut forge = forge();
        nothing(&mut forge);
        let at = forge.record(rmgr.0, info, &words(&[1, 2, 3]));
        let end = nothing(&mut forge);
        let reason = changes(&forge, end).unwrap_err();
        assert!(
            matches!(&reason, CannotSay::UnknownRecord { at: found, .. } if *found == at),
            "{reason}"
        );
        assert_eq!(reason.code(), "unknown-record");
    }
    // An extension that names its blocks is believed.
    let set = told(|forge| {
        block(forge, ResourceManager(200), RELATION, Fork::Main, 1);
    });
    assert_eq!(set.named_pages(), Some(1));
}

/// More than two segments of changes, ending with a record of no consequence.
fn long_log() -> (Forge, Lsn) {
    let mut forge = forge();
    nothing(&mut forge);
    for number in 0..400 {
        change(&mut forge, relation(16400 + number % 7), number);
        forge.record(
            ResourceManager::LOGICAL_MESSAGE.0,
            0,
            &main_data(&[7; 6000]),
        );
    }
    let end = nothing(&mut forge);
    nothing(&mut forge);
    assert!(forge.bytes.len() as u64 > 2 * SEGMENT);
    (forge, end)
}

#[test]
fn a_missing_segment_is_named_with_the_position() {
    let (forge, end) = long_log();
    let mut log = Memory::of(&forge, 1);
    let second = *log.0.keys().nth(1).unwrap();
    let removed = log.0.remove(&second).unwrap();
    let span = span(first(), end);
    let mut source = LogSource::new(span, &mut log);
    let reason = ask(&mut source).unwrap_err();
    let CannotSay::LogMissing { segment, at } = &reason else {
        panic!("{reason}");
    };
    assert_eq!(*segment, second);
    assert!(
        *at <= Lsn(2 * SEGMENT) && at.0 > 2 * SEGMENT - 2 * PAGE,
        "{at}"
    );
    assert_eq!(removed.len() as u64, SEGMENT);
}

#[test]
fn a_log_that_ends_early_is_told_and_followed_when_it_has_grown() {
    let (forge, end) = long_log();
    let whole = changes(&forge, end).unwrap();
    for cut in [
        PAGE as usize + 100,
        SEGMENT as usize,
        2 * SEGMENT as usize - 1,
    ] {
        let mut short = forge.clone();
        short.bytes.truncate(cut);
        // What is set aside for the log is zeros.
        short
            .bytes
            .resize(cut.next_multiple_of(SEGMENT as usize), 0);
        let mut walk = LogWalk::new(&cluster(), &first_timeline(), first()).unwrap();
        let go = &mut |_| ControlFlow::Continue(());
        let reason = walk
            .advance(end, &mut Memory::of(&short, 1), go)
            .unwrap_err();
        assert!(
            matches!(
                reason,
                CannotSay::LogEnds { .. }
                    | CannotSay::LogMissing { .. }
                    | CannotSay::LogDamaged { .. }
            ),
            "{reason}"
        );
        assert!(walk.position() > first());
        let mut log = Memory::of(&forge, 1);
        let mut source = LogSource::new(span(first(), end), &mut log)
            .going_on(walk)
            .unwrap();
        assert_eq!(ask(&mut source).unwrap().blocks(), whole.blocks());
    }
}

#[test]
fn a_damaged_log_is_told_with_the_position() {
    let (mut forge, end) = long_log();
    let at = forge.bytes.len() / 2;
    forge.bytes[at] ^= 1;
    let reason = changes(&forge, end).unwrap_err();
    let CannotSay::LogDamaged { at: found, .. } = &reason else {
        panic!("{reason}");
    };
    let flipped = neon_testkit::forge::START.0 + at as u64;
    assert!(
        found.0 <= flipped && flipped - found.0 < 2 * PAGE,
        "{found}"
    );
}

#[test]
fn a_log_must_begin_and_end_with_records_where_checkpoints_said() {
    let mut forge = forge();
    nothing(&mut forge);
    let inside = Lsn(nothing(&mut forge).0 + 8);
    let end = nothing(&mut forge);
    nothing(&mut forge);
    assert_eq!(
        changes(&forge, inside).unwrap_err(),
        CannotSay::NoRecordAt { at: inside }
    );
    let bad_start = span(inside, end);
    assert!(ask(&mut LogSource::new(bad_start, &mut Memory::of(&forge, 1))).is_err());
    // A cold snapshot ends in a shutdown checkpoint, not in any record.
    let clean = span_of(
        (&cluster(), &cluster()),
        &first_timeline(),
        (first(), end),
        true,
    );
    assert_eq!(
        ask(&mut LogSource::new(clean, &mut Memory::of(&forge, 1))).unwrap_err(),
        CannotSay::NoShutdownAt { at: end }
    );
}

#[test]
fn a_walk_that_was_stopped_goes_on_where_it_was() {
    let (forge, end) = long_log();
    let whole = changes(&forge, end).unwrap();
    let mut log = Memory::of(&forge, 1);
    let mut pieces = 0;
    let mut source = LogSource::new(span(first(), end), &mut log).watched(|_| {
        pieces += 1;
        if pieces % 2 == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let mut stops = 0;
    let set = loop {
        match source.changes() {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                stops += 1;
            }
            Ok(Answer::Exact(set)) => break set,
            Ok(other) => panic!("{other:?}"),
        }
    };
    assert!(stops > 2, "{stops}");
    assert_eq!(set.blocks(), whole.blocks());
}

#[test]
fn a_walk_that_went_further_names_more_and_belongs_to_one_log() {
    let (forge, end) = long_log();
    let mut middle = Forge::new(PgMajor::V17);
    nothing(&mut middle);
    change(&mut middle, relation(16400), 0);
    // The same beginning as the long log has: a record begins there too.
    let middle = middle.previous;
    let mut log = Memory::of(&forge, 1);
    let walked = |log: &mut Memory, to| {
        let mut walk = LogWalk::new(&cluster(), &first_timeline(), first()).unwrap();
        let go = &mut |_| ControlFlow::Continue(());
        assert!(walk.advance(to, log, go).unwrap().is_continue());
        walk
    };
    let walk = walked(&mut log, end);
    let mut source = LogSource::new(span(first(), middle), &mut log)
        .going_on(walk)
        .unwrap();
    let set = ask(&mut source).unwrap();
    assert_eq!(set.blocks(), changes(&forge, end).unwrap().blocks());
    drop(source);
    // A cold snapshot's log cannot go on behind it.
    let walk = walked(&mut log, end);
    let clean = span_of(
        (&cluster(), &cluster()),
        &first_timeline(),
        (first(), middle),
        true,
    );
    let mut source = LogSource::new(clean, &mut log).going_on(walk).unwrap();
    assert_eq!(
        ask(&mut source).unwrap_err(),
        CannotSay::NoRecordAt { at: middle }
    );
    drop(source);
    let walk = walked(&mut log, end);
    let refused = LogSource::new(span(middle, end), &mut log).going_on(walk);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Inconsistent);
}

#[test]
fn a_log_is_followed_over_timelines() {
    // The second timeline leaves the first in the middle of its second segment; the first went on.
    let mut old = forge();
    nothing(&mut old);
    while old.bytes.len() as u64 <= SEGMENT + PAGE {
        change(&mut old, RELATION, 1);
    }
    let switch = old.position().align_up(8).unwrap();
    let mut new = old.clone();
    new.timeline = 2;
    for _ in 0..2000 {
        change(&mut old, RELATION, 66);
        change(&mut new, RELATION, 2);
    }
    let end = nothing(&mut new);
    nothing(&mut new);
    let history = first_timeline()
        .branch(TimelineId::new(2).unwrap(), switch, "test")
        .unwrap();
    let span = span_of((&cluster(), &cluster()), &history, (first(), end), false);
    assert_eq!(span.path().len(), 2);
    let mut log = Memory::of(&old, 1);
    let keys: Vec<_> = log.0.keys().copied().collect();
    log.0.extend(Memory::of(&new, 2).0.into_iter().skip(1));
    let blocks = |set: &ChangeSet| -> Vec<u32> {
        set.blocks()
            .unwrap()
            .get(RELATION, Fork::Main)
            .unwrap()
            .blocks()
            .collect()
    };
    let set = ask(&mut LogSource::new(span.clone(), &mut log)).unwrap();
    assert_eq!(blocks(&set), [1, 2]);
    // The old timeline's copy of the shared segment may be gone; the first segment may not.
    log.0.remove(&keys[1]);
    let set = ask(&mut LogSource::new(span.clone(), &mut log)).unwrap();
    assert_eq!(blocks(&set), [1, 2]);
    // The new one's may not: what the old one has from the switch on is another history.
    let mut only_old = Memory::of(&old, 1);
    let reason = ask(&mut LogSource::new(span, &mut only_old)).unwrap_err();
    assert!(
        matches!(reason, CannotSay::LogMissing { segment, .. } if segment.timeline().get() == 2),
        "{reason}"
    );
    // The end of a log is the same bytes on either.
    let size = cluster().wal_segment_size;
    let of_old = read_tail(size, &first_timeline(), switch, &mut Memory::of(&old, 1)).unwrap();
    let of_new = read_tail(size, &history, switch, &mut Memory::of(&new, 2)).unwrap();
    assert_eq!(of_old, of_new);
    let later = Lsn(switch.0 + 5000);
    let other = read_tail(size, &first_timeline(), later, &mut Memory::of(&old, 1)).unwrap();
    assert_ne!(
        other,
        read_tail(size, &history, later, &mut Memory::of(&new, 2)).unwrap()
    );
    assert!(read_tail(size, &history, end, &mut Memory::default()).is_err());
}

#[test]
fn an_empty_span_tells_of_nothing() {
    let mut forge = forge();
    let only = nothing(&mut forge);
    let set = changes(&forge, only).unwrap();
    assert_eq!(set.named_pages(), Some(0));
    assert_eq!(of(&set, "base/5/16400", 5, 5), FileChange::Unchanged);
}

#[test]
fn any_change_of_a_log_is_survived() {
    use neon_pagestore::fuzz_targets::{log_tail, log_walk};
    let (forge, _) = long_log();
    let segment = &forge.bytes[..SEGMENT as usize];
    log_walk(segment);
    log_walk(&segment[..100]);
    log_walk(&[]);
    let mut damaged = segment.to_vec();
    for number in 0..60_usize {
        let at = (number * 7919) % (6 * PAGE as usize);
        damaged[at] ^= 1 << (number % 8);
        log_walk(&damaged);
        damaged[at] ^= 1 << (number % 8);
        log_tail(&damaged[..at]);
    }
}

/// Segments, and how much of them was read.
struct CountedFiles(Memory, Arc<AtomicU64>);

struct CountedRead<'a>(Box<dyn Read + Send + 'a>, Arc<AtomicU64>);

impl Read for CountedRead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl LogFiles for CountedFiles {
    fn open(
        &mut self,
        segment: SegmentName,
        offset: u64,
    ) -> io::Result<Option<Box<dyn Read + Send + '_>>> {
        let opened = self.0.open(segment, offset)?;
        let counter = Arc::clone(&self.1);
        Ok(opened.map(|file| -> Box<dyn Read + Send> { Box::new(CountedRead(file, counter)) }))
    }
}

#[test]
fn the_rest_of_a_segment_that_was_ended_early_is_not_read() {
    const ENDED: u64 = 4;
    let mut forge = forge();
    nothing(&mut forge);
    for number in 0..ENDED {
        change(&mut forge, relation(100), u32::try_from(number).unwrap());
        // XLOG_SWITCH: what follows in the segment is of no consequence, whatever it is.
        forge.record(ResourceManager::XLOG.0, 0x40, &[]);
        let next = forge.bytes.len().next_multiple_of(SEGMENT as usize);
        forge.bytes.resize(next, 0xAA);
    }
    change(&mut forge, relation(200), 7);
    let end = nothing(&mut forge);
    let read = Arc::new(AtomicU64::new(0));
    let mut files = CountedFiles(Memory::of(&forge, 1), Arc::clone(&read));
    let told = ask(&mut LogSource::new(span(first(), end), &mut files)).unwrap();
    let known = changes(&forge, end).unwrap();
    for (number, pages) in [(100, ENDED), (200, 8)] {
        let path = format!("base/5/{number}");
        let ours = of(&told, &path, pages, pages);
        assert!(matches!(ours, FileChange::Pages { .. }), "{ours:?}");
        assert_eq!(ours, of(&known, &path, pages, pages));
    }
    let read = read.load(Ordering::Relaxed);
    assert!(read <= (ENDED + 1) * SEGMENT / 4, "{read}");
}
