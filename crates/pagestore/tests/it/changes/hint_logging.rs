//! Logs made to order of servers that logged hints, or did not for a while.

use std::ops::ControlFlow;

use neon_pagestore::ErrorKind;
use neon_pagestore::changes::{CannotSay, ClusterFacts, HintLogging, NotLogged};
use neon_pg_layout::wal::ResourceManager;
use neon_pg_layout::{Lsn, TimelineHistory, TimelineId};
use neon_testkit::forge::{Forge, main_data};

use super::forged::{Memory, change, first, first_timeline, forge, parameters, relation, words};
use super::validity::cluster;

/// A shutdown checkpoint.
fn stop(forge: &mut Forge) -> Lsn {
    let mut checkpoint = vec![0; 22];
    // Timeline, the one before, full-page writes, wal_level.
    checkpoint[2..6].fill(1);
    forge.record(ResourceManager::XLOG.0, 0x00, &words(&checkpoint))
}

/// The image of a page that got a hint.
fn image(forge: &mut Forge) {
    forge.record(ResourceManager::XLOG.0, 0xA0, &main_data(&[0; 8]));
}

fn work(forge: &mut Forge) -> Lsn {
    change(forge, relation(16400), 7)
}

fn logging(end: Lsn) -> HintLogging {
    HintLogging::new(cluster(), first_timeline(), first(), end)
}

fn asked(logging: &HintLogging, forge: &Forge) -> Option<NotLogged> {
    let mut log = Memory::of(forge, 1);
    logging
        .check(&mut log, || ControlFlow::Continue(()))
        .unwrap()
        .err()
}

#[test]
fn each_run_of_a_server_has_to_show_that_it_logs_hints() {
    let mut forge = forge();
    stop(&mut forge);
    work(&mut forge);
    image(&mut forge);
    let first_stop = stop(&mut forge);
    work(&mut forge);
    let second_stop = stop(&mut forge);
    image(&mut forge);
    let end = stop(&mut forge);
    let silent = Some(NotLogged::Run {
        from: first_stop,
        to: second_stop,
    });
    assert_eq!(asked(&logging(first_stop), &forge), None);
    assert_eq!(asked(&logging(second_stop), &forge), silent);
    // What other runs show, and what was seen of them, says nothing of this one.
    let seen = logging(end).seen_at(first()).seen_at(second_stop);
    assert_eq!(asked(&seen, &forge), silent);
    for position in [first_stop, Lsn(second_stop.0 - 1)] {
        assert_eq!(asked(&logging(end).seen_at(position), &forge), None);
    }
    assert_eq!(silent.unwrap().code(), "hint-logging-not-shown");
    assert_eq!(logging(end).bytes(), end.0 - first().0);
}

#[test]
fn the_end_of_a_recovery_is_the_end_of_a_run() {
    let mut forge = forge();
    stop(&mut forge);
    image(&mut forge);
    // When, the new timeline and the one before, wal_level.
    let recovered = words(&[0, 0, 1, 1, 1]);
    let at = forge.record(ResourceManager::XLOG.0, 0x90, &recovered);
    work(&mut forge);
    let end = stop(&mut forge);
    let silent = NotLogged::Run { from: at, to: end };
    assert_eq!(asked(&logging(end), &forge), Some(silent));
}

#[test]
fn where_no_server_ran_nothing_has_to_be_shown() {
    let mut forge = forge();
    let only = stop(&mut forge);
    assert_eq!(only, first());
    assert_eq!(asked(&logging(only), &forge), None);
}

#[test]
fn the_setting_counts_from_where_the_log_says_so() {
    let off = |hints: bool| ClusterFacts {
        checksums: false,
        wal_log_hints: hints,
        ..cluster()
    };
    let mut forge = forge();
    stop(&mut forge);
    parameters(&mut forge, 1, true, false);
    work(&mut forge);
    let on = stop(&mut forge);
    work(&mut forge);
    let still = stop(&mut forge);
    parameters(&mut forge, 1, false, false);
    work(&mut forge);
    let end = stop(&mut forge);
    for facts in [off(false), off(true), cluster()] {
        let of = |end| HintLogging::new(facts.clone(), first_timeline(), first(), end);
        assert_eq!(asked(&of(on), &forge), None);
        assert_eq!(asked(&of(still), &forge), None);
        let silent = NotLogged::Run {
            from: still,
            to: end,
        };
        assert_eq!(asked(&of(end), &forge), Some(silent));
    }
}

#[test]
fn a_log_that_cannot_be_followed_shows_nothing() {
    let mut forge = forge();
    stop(&mut forge);
    image(&mut forge);
    let inside = work(&mut forge);
    let end = stop(&mut forge);
    let shown = |logging: &HintLogging| match asked(logging, &forge) {
        Some(NotLogged::Log(reason)) => reason,
        other => panic!("{other:?}"),
    };
    // No checkpoint there, no record there, or nothing there.
    let reason = shown(&logging(inside));
    assert_eq!(reason, CannotSay::NoShutdownAt { at: inside });
    let reason = shown(&logging(Lsn(inside.0 + 8)));
    let at = Lsn(inside.0 + 8);
    assert_eq!(reason, CannotSay::NoRecordAt { at });
    let reason = shown(&logging(Lsn(end.0 + 800)));
    assert!(
        matches!(reason.code(), "log-ends" | "log-missing"),
        "{reason}"
    );
    let mut none = Memory::default();
    let missing = logging(end).check(&mut none, || ControlFlow::Continue(()));
    let missing = missing.unwrap().unwrap_err();
    assert_eq!(missing.code(), "log-missing");
    // Of another timeline.
    let next = TimelineId::new(2).unwrap();
    let history = TimelineHistory::root(TimelineId::FIRST);
    let history = history.branch(next, inside, "").unwrap();
    let logging_of_both = HintLogging::new(cluster(), history, first(), end);
    assert_eq!(asked(&logging_of_both, &forge), Some(NotLogged::Timelines));
    let stopped = logging(end).check(&mut Memory::of(&forge, 1), || ControlFlow::Break(()));
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
}
