//! Parents are judged as an observer would who has seen every byte of every log.

use neon_pagestore::changes::{Child, ClusterFacts, Invalid, LogTail, Parent, Span};
use neon_pagestore::{CommitId, LineageId};
use neon_pg_layout::{
    BlockSize, Lsn, PgMajor, SystemIdentifier, TimelineHistory, TimelineId, WalLevel,
    WalSegmentSize,
};
use proptest::prelude::*;

pub(crate) fn cluster() -> ClusterFacts {
    ClusterFacts {
        system: SystemIdentifier::new(77).unwrap(),
        major: PgMajor::V17,
        catalog_version: PgMajor::V17.layout().catalog_version,
        block_size: BlockSize::DEFAULT,
        segment_blocks: 131_072,
        wal_segment_size: WalSegmentSize::MIN,
        wal_page_size: 8192,
        checksums: true,
        wal_level: WalLevel::Replica,
        wal_log_hints: false,
        track_commit_timestamp: false,
    }
}

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

/// One instance: all of its log, and what is known of it.
#[derive(Debug, Clone)]
struct Instance {
    log: Vec<u8>,
    history: TimelineHistory,
    lineage: LineageId,
    base: Option<CommitId>,
}

#[derive(Debug, Clone)]
struct Shot {
    parent: Parent,
    /// What the log was.
    log: Vec<u8>,
    history: TimelineHistory,
}

#[derive(Debug, Clone)]
enum Step {
    /// So many bytes of log, with this seed.
    Write(u8, u8),
    /// A snapshot, its redo so many bytes before its end.
    Snapshot(u8),
    /// A new timeline: promotion, or recovery from an archive.
    NewTimeline,
    /// The directory is set back, behind our back, to what it was at an earlier snapshot.
    SetBack(prop::sample::Index),
    /// Set back, and on a timeline of a number that was used before.
    SetBackAndPromoted(prop::sample::Index),
    /// We restore an earlier snapshot: a new lineage, a new timeline.
    Restore(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = any::<prop::sample::Index>;
    let step = prop_oneof![
        4 => (1..60_u8, 0..3_u8).prop_map(|(count, seed)| Step::Write(count, seed)),
        4 => (0..50_u8).prop_map(Step::Snapshot),
        1 => Just(Step::NewTimeline),
        1 => at().prop_map(Step::SetBack),
        1 => at().prop_map(Step::SetBackAndPromoted),
        1 => at().prop_map(Step::Restore),
    ];
    prop::collection::vec(step, 2..30)
}

/// The end of a log is all of it here, so that what it proves is all that can be proven.
fn tail(log: &[u8], end: usize) -> Option<LogTail> {
    (end > 0).then(|| LogTail::of(Lsn(0), &log[..end]))
}

fn promoted(history: &TimelineHistory, at: usize, number: u32) -> TimelineHistory {
    history
        .branch(timeline(number), Lsn(at as u64), "promoted")
        .unwrap()
}

fn run(steps: &[Step]) -> (Instance, Vec<Shot>) {
    let mut now = Instance {
        log: vec![1; 16],
        history: TimelineHistory::root(TimelineId::FIRST),
        lineage: LineageId([0; 16]),
        base: None,
    };
    let mut shots: Vec<Shot> = Vec::new();
    let mut highest = 1;
    for (number, step) in (0_u8..).zip(steps) {
        match step {
            // Few different bytes, so that logs that parted may come to look alike.
            Step::Write(count, seed) => now.log.extend(std::iter::repeat_n(*seed, (*count).into())),
            Step::Snapshot(before) => {
                let stop = now.log.len();
                shots.push(Shot {
                    parent: Parent {
                        id: CommitId::of(&[number]),
                        lineage: now.lineage,
                        cluster: cluster(),
                        history: now.history.clone(),
                        redo: Lsn(stop.saturating_sub((*before).into()) as u64),
                        stop: Lsn(stop as u64),
                        tail: tail(&now.log, stop),
                    },
                    log: now.log.clone(),
                    history: now.history.clone(),
                });
            }
            Step::NewTimeline => {
                highest = highest.max(now.history.timeline().get()) + 1;
                now.history = promoted(&now.history, now.log.len(), highest);
            }
            Step::SetBack(at) | Step::SetBackAndPromoted(at) if !shots.is_empty() => {
                let shot = at.get(&shots);
                now.log = shot.log.clone();
                now.history = shot.history.clone();
                if matches!(step, Step::SetBackAndPromoted(_)) {
                    // Without the history files of the others it takes the next number.
                    let number = now.history.timeline().get() + 1;
                    now.history = promoted(&now.history, now.log.len(), number);
                }
            }
            Step::Restore(at) if !shots.is_empty() => {
                let shot = at.get(&shots);
                highest = highest.max(shot.history.timeline().get()) + 1;
                now = Instance {
                    log: shot.log.clone(),
                    history: promoted(&shot.history, shot.log.len(), highest),
                    lineage: LineageId([number + 1; 16]),
                    base: Some(shot.parent.id),
                };
            }
            _ => {}
        }
    }
    (now, shots)
}

/// The judgement of one who sees everything.
fn oracle(now: &Instance, shot: &Shot) -> bool {
    let stop = shot.log.len();
    let ours = shot.parent.lineage == now.lineage || now.base == Some(shot.parent.id);
    let same_log = now.log.len() >= stop && now.log[..stop] == shot.log[..];
    // The same bytes under other timelines, after a second promotion, are another history.
    let there = now
        .history
        .contains(shot.history.timeline(), shot.parent.stop);
    ours && same_log && there && shares_timelines(now, shot)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_parent_is_valid_only_if_the_log_goes_on_from_it(steps in steps()) {
        let (now, shots) = run(&steps);
        let redo = Lsn(now.log.len() as u64);
        for shot in &shots {
            let stop = shot.log.len();
            let child = Child {
                lineage: now.lineage,
                base: now.base,
                cluster: cluster(),
                history: now.history.clone(),
                redo,
                clean_stop: true,
                tail: (now.log.len() >= stop).then(|| tail(&now.log, stop)).flatten(),
            };
            let judged = Span::between(&shot.parent, &child);
            let truth = oracle(&now, shot);
            if let Ok(span) = &judged {
                prop_assert!(truth, "{judged:?}");
                prop_assert_eq!(span.start(), shot.parent.redo);
                prop_assert_eq!(span.end(), redo);
                let mut at = span.start();
                for range in span.path() {
                    prop_assert_eq!(range.start, at);
                    prop_assert_eq!(now.history.timeline_of(range.start), range.timeline);
                    at = range.end;
                }
                prop_assert_eq!(at, span.end());
            } else {
                prop_assert!(!truth, "refused: {:?}", judged.err());
            }
        }
    }
}

/// Whether the instance's history is the shot's up to the shot's end.
fn shares_timelines(now: &Instance, shot: &Shot) -> bool {
    (0..shot.log.len() as u64)
        .all(|at| now.history.timeline_of(Lsn(at)) == shot.history.timeline_of(Lsn(at)))
}

fn pair() -> (Parent, Child) {
    let log = [1; 64];
    let parent = Parent {
        id: CommitId::of(b"S"),
        lineage: LineageId([1; 16]),
        cluster: cluster(),
        history: TimelineHistory::root(TimelineId::FIRST),
        redo: Lsn(32),
        stop: Lsn(48),
        tail: tail(&log, 48),
    };
    let child = Child {
        lineage: parent.lineage,
        base: None,
        cluster: cluster(),
        history: parent.history.clone(),
        redo: Lsn(60),
        clean_stop: true,
        tail: parent.tail,
    };
    (parent, child)
}

#[test]
fn the_next_snapshot_of_the_same_instance_is_valid() {
    let (parent, child) = pair();
    let span = Span::between(&parent, &child).unwrap();
    assert_eq!((span.start(), span.end()), (Lsn(32), Lsn(60)));
    assert!(span.ends_in_shutdown());
}

/// Changes one thing about a valid pair and tells the reason's code.
fn refused(change: impl FnOnce(&mut Parent, &mut Child)) -> &'static str {
    let (mut parent, mut child) = pair();
    change(&mut parent, &mut child);
    let reason = Span::between(&parent, &child).unwrap_err();
    assert!(!reason.to_string().is_empty());
    reason.code()
}

#[test]
fn another_cluster_is_no_parent() {
    let other = "parent-of-another-cluster";
    assert_eq!(
        refused(|parent, _| parent.cluster.system = SystemIdentifier::new(78).unwrap()),
        other
    );
    assert_eq!(
        refused(|parent, _| parent.cluster.catalog_version += 1),
        other
    );
    assert_eq!(
        refused(|parent, _| parent.cluster.block_size = BlockSize::new(16384).unwrap()),
        other
    );
    assert_eq!(
        refused(|parent, _| parent.cluster.segment_blocks = 1),
        other
    );
    assert_eq!(
        refused(|parent, _| parent.cluster.wal_segment_size = WalSegmentSize::MAX),
        other
    );
    assert_eq!(
        refused(|parent, _| parent.cluster.wal_page_size = 16384),
        other
    );
    assert_eq!(refused(|parent, _| parent.cluster.checksums = false), other);
}

#[test]
fn what_the_log_leaves_out_rules_a_parent_out() {
    let minimal = "wal-level-minimal";
    assert_eq!(
        refused(|parent, _| parent.cluster.wal_level = WalLevel::Minimal),
        minimal
    );
    assert_eq!(
        refused(|_, child| child.cluster.wal_level = WalLevel::Minimal),
        minimal
    );
    assert_eq!(
        refused(|parent, child| {
            parent.cluster.checksums = false;
            child.cluster.checksums = false;
            child.cluster.wal_log_hints = true;
        }),
        "hint-logging-changed"
    );
    // With checksums hints are logged in any case.
    let (parent, mut child) = pair();
    child.cluster.wal_log_hints = true;
    Span::between(&parent, &child).unwrap();
}

#[test]
fn after_a_restore_only_its_own_snapshot_is_a_parent() {
    let restored = |base: &[u8]| {
        let base = CommitId::of(base);
        move |_: &mut Parent, child: &mut Child| {
            child.lineage = LineageId([2; 16]);
            child.base = Some(base);
        }
    };
    assert_eq!(refused(restored(b"another")), "parent-of-another-lineage");
    assert_eq!(
        refused(|_, child| child.lineage = LineageId([2; 16])),
        "parent-of-another-lineage"
    );
    let (mut parent, mut child) = pair();
    restored(b"S")(&mut parent, &mut child);
    Span::between(&parent, &child).unwrap();
}

#[test]
fn a_parent_stands_on_the_history_that_leads_here() {
    let branch = |at: u64, child: &mut Child| {
        child.history = child.history.branch(timeline(2), Lsn(at), "x").unwrap();
    };
    assert_eq!(
        refused(|_, child| branch(47, child)),
        "parent-off-the-timeline"
    );
    let (parent, mut child) = pair();
    branch(48, &mut child);
    let span = Span::between(&parent, &child).unwrap();
    assert_eq!(span.path().len(), 2);
    // Two timelines of one number that begin at different places.
    assert_eq!(
        refused(|parent, child| {
            parent.history = parent.history.branch(timeline(2), Lsn(20), "x").unwrap();
            branch(24, child);
        }),
        "parent-off-the-timeline"
    );
    assert_eq!(
        refused(|parent, _| parent.redo = Lsn(61)),
        "parent-is-later"
    );
}

#[test]
fn the_log_before_the_parents_end_must_be_there_and_the_same() {
    assert_eq!(
        refused(|parent, _| parent.tail = None),
        "parent-without-log-tail"
    );
    assert_eq!(
        refused(|parent, _| parent.stop = Lsn(47)),
        "parent-without-log-tail"
    );
    assert_eq!(refused(|_, child| child.tail = None), "log-of-parent-gone");
    assert_eq!(
        refused(|_, child| child.tail = tail(&[2; 64], 48)),
        "log-of-parent-differs"
    );
}

#[test]
fn the_end_of_a_log_is_read_as_it_is_written() {
    let tail = tail(&[3; 64], 48).unwrap();
    let text = tail.to_string();
    assert_eq!(text.parse::<LogTail>().unwrap(), tail);
    let json = serde_json::to_string(&tail).unwrap();
    assert_eq!(json, format!("\"{text}\""));
    assert_eq!(serde_json::from_str::<LogTail>(&json).unwrap(), tail);
    for bad in [
        "",
        "0/28-0/30",
        "0/30-0/28:00",
        &text.to_uppercase(),
        &text[1..],
        &text.replacen('0', "00", 1),
    ] {
        assert!(bad.parse::<LogTail>().is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_an_end_of_a_log_or_refused(text in "[0-9A-Fa-f/:-]{0,90}") {
        if let Ok(tail) = text.parse::<LogTail>() {
            prop_assert_eq!(tail.to_string(), text);
        }
    }
}

#[test]
fn the_end_of_a_log_lies_in_one_segment_and_is_no_longer_than_needed() {
    let size = WalSegmentSize::DEFAULT;
    let segment = size.bytes();
    for (end, start) in [
        (segment + 100, segment),
        (2 * segment, 2 * segment - LogTail::LENGTH),
        (2 * segment + LogTail::LENGTH + 5, 2 * segment + 5),
    ] {
        assert_eq!(LogTail::start_for(Lsn(end), size), Lsn(start));
    }
}

#[test]
fn every_reason_says_what_is_wrong() {
    let reason = Invalid::TailGone { at: Lsn(48) };
    assert_eq!(
        reason.to_string(),
        "the log before 0/30, where the parent ends, is not there any more"
    );
}
