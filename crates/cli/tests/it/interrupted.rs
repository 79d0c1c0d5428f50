//! Commands that are stopped (SIGINT) or killed (SIGKILL) at random moments: the next command finishes or takes back
//! what they did, the doctor is content, and no process, folder, mount or slot is left.
//!
//! `NEON_INTERRUPTS` is how often each verb is hit; 50 is the long form.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::Home;

/// A verb: what is done before it is hit, the verb itself, and the next command with the codes that it may end with.
struct Verb {
    before: fn(&Home, &str),
    hit: fn(&str) -> Vec<String>,
    next: fn(&str) -> Vec<String>,
    may: &'static [i32],
    after: fn(&Home, &str),
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn nothing(_: &Home, _: &str) {}

/// Takes an instance away if it is there.
fn away(home: &Home, tag: &str) {
    let ran = home.run(&["pg", "destroy", tag, "--yes"]);
    assert!([0, 3].contains(&ran.code), "{ran:?}");
}

fn rounds() -> u64 {
    std::env::var("NEON_INTERRUPTS").map_or(2, |text| text.parse().unwrap())
}

/// A number that nobody chose, below `below`.
fn random(below: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u8(0);
    hasher.finish() % below.max(1)
}

/// What the doctor says that is worth a word, but for the disk of this machine.
pub(crate) fn troubles(home: &Home) -> Vec<Value> {
    let ran = home.run(&["--output", "json", "doctor"]);
    assert!([0, 1].contains(&ran.code), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let machine = ["disk-nearly-full", "disk-full", "postgresql-broken"];
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["severity"] != "info")
        .filter(|one| !machine.contains(&one["code"].as_str().unwrap()))
        .cloned()
        .collect()
}

/// Nothing is wrong, at the latest when guardians have ended what they guard.
pub(crate) fn content(home: &Home, why: &str) {
    let begun = Instant::now();
    loop {
        let found = troubles(home);
        if found.is_empty() {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{why}: {found:#?}"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    for folder in ["pg", "trash", "state/pg", "state/trash"] {
        for entry in fs::read_dir(home.path().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.'), "{why}: {folder}/{name}");
        }
    }
}

/// Folders that servers below a home work in.
fn servers(home: &Home) -> BTreeSet<String> {
    let root = fs::canonicalize(home.path()).unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| fs::read_link(entry.path().join("cwd")).ok())
        .filter_map(|place| Some(place.strip_prefix(&root).ok()?.display().to_string()))
        .collect()
}

fn hit_at_random(signal: Signal, verb: &Verb) {
    let home = Home::new();
    home.ok(&["pg", "create", "one"]);
    home.sql(
        "one",
        "create table t as select i from generate_series(1, 5000) i",
    );
    home.ok(&["snapshot", "create", "one@a"]);
    let tank = home.scratch().join("tank");
    home.ok(&["storage", "attach", "-n", "tank", tank.to_str().unwrap()]);
    // How long it takes when nobody disturbs it.
    (verb.before)(&home, "whole");
    let begun = Instant::now();
    home.ok(&(verb.hit)("whole"));
    let whole = u64::try_from(begun.elapsed().as_millis()).unwrap();
    (verb.after)(&home, "whole");
    for round in 0..rounds() {
        let tag = format!("r{round}");
        (verb.before)(&home, &tag);
        let after = Duration::from_millis(random(whole));
        let arguments = (verb.hit)(&tag);
        let why = format!("{signal:?} after {after:?} of {whole} ms at {arguments:?}");
        let mut child = home
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        // It may have ended before.
        let _gone = kill_process(Pid::from_child(&child), signal);
        let status = child.wait().unwrap();
        if signal == Signal::KILL {
            assert!(
                status.signal() == Some(9) || status.success(),
                "{why}: {status}"
            );
        } else {
            // Before it could listen to signals it ends as every program does.
            let early = status.signal() == Some(2);
            assert!(
                early || [Some(0), Some(130)].contains(&status.code()),
                "{why}: {status}"
            );
        }
        let next = home.run(&(verb.next)(&tag));
        assert!(verb.may.contains(&next.code), "{why}: {next:?}");
        (verb.after)(&home, &tag);
        let started = home.run(&["pg", "start", "one"]);
        assert!([0, 4].contains(&started.code), "{why}: {started:?}");
        content(&home, &why);
        assert_eq!(home.sql("one", "select count(*) from t"), "5000", "{why}");
        let slots = home.sql("one", "select count(*) from pg_replication_slots");
        assert_eq!(slots, "0", "{why}");
        assert_eq!(
            servers(&home),
            BTreeSet::from(["pg/one/data".to_owned()]),
            "{why}"
        );
    }
    home.ok(&["storage", "check", "local"]);
    home.ok(&["pg", "stop", "one"]);
    content(&home, "in the end");
    assert_eq!(servers(&home), BTreeSet::new());
}

const SNAPSHOT: Verb = Verb {
    before: nothing,
    hit: |tag| words(&format!("snapshot create one@{tag}")),
    next: |tag| words(&format!("snapshot create one@{tag}")),
    may: &[0, 4],
    after: nothing,
};

const CREATE: Verb = Verb {
    before: nothing,
    hit: |tag| words(&format!("pg create {tag}")),
    next: |tag| words(&format!("pg start {tag}")),
    may: &[0, 3, 4],
    after: away,
};

const RESTORE: Verb = Verb {
    before: nothing,
    hit: |tag| words(&format!("pg create {tag} --snapshot one@a")),
    next: |tag| words(&format!("pg start {tag}")),
    may: &[0, 3, 4],
    after: away,
};

const CHECKOUT: Verb = Verb {
    before: nothing,
    hit: |_| words("pg checkout one@a --yes"),
    next: |_| words("pg start one"),
    may: &[0, 4],
    after: nothing,
};

const RESTART: Verb = Verb {
    before: nothing,
    hit: |_| words("pg restart one"),
    next: |_| words("pg start one"),
    may: &[0, 4],
    after: nothing,
};

const DESTROY: Verb = Verb {
    before: |home, tag| {
        home.ok(&["pg", "create", tag]);
    },
    hit: |tag| words(&format!("pg destroy {tag} --yes")),
    next: |tag| words(&format!("pg destroy {tag} --yes")),
    may: &[0, 3],
    after: nothing,
};

const PUSH: Verb = Verb {
    before: |home, tag| {
        home.ok(&["snapshot", "create", &format!("one@{tag}")]);
    },
    hit: |tag| words(&format!("snapshot push one@{tag} --to tank")),
    next: |tag| words(&format!("snapshot push one@{tag} --to tank")),
    may: &[0, 4],
    after: nothing,
};

const VERIFY: Verb = Verb {
    before: nothing,
    hit: |_| words("snapshot verify one@a"),
    next: |_| words("snapshot verify one@a"),
    may: &[0],
    after: nothing,
};

macro_rules! hits {
    ($($verb:ident => $interrupted:ident, $killed:ident;)+) => {$(
        #[test]
        fn $interrupted() {
            hit_at_random(Signal::INT, &$verb);
        }

        #[test]
        fn $killed() {
            hit_at_random(Signal::KILL, &$verb);
        }
    )+};
}

hits! {
    SNAPSHOT => an_interrupted_snapshot_leaves_nothing, a_killed_snapshot_leaves_nothing;
    CREATE => an_interrupted_creation_leaves_nothing, a_killed_creation_leaves_nothing;
    RESTORE => an_interrupted_restore_leaves_nothing, a_killed_restore_leaves_nothing;
    CHECKOUT => an_interrupted_checkout_is_finished_or_taken_back, a_killed_checkout_is_finished_or_taken_back;
    RESTART => an_interrupted_restart_leaves_nothing, a_killed_restart_leaves_nothing;
    DESTROY => an_interrupted_destroy_leaves_nothing, a_killed_destroy_leaves_nothing;
    PUSH => an_interrupted_push_leaves_nothing, a_killed_push_leaves_nothing;
    VERIFY => an_interrupted_verification_leaves_nothing, a_killed_verification_leaves_nothing;
}
