//! Commands that are stopped (SIGINT) or killed (SIGKILL) at random moments: the next command finishes or takes back
//! what they did, the doctor is content, and no process, folder, mount or slot is left.
//!
//! `NEON_INTERRUPTS` and `NEON_KILLS` are how often each verb is hit by either, once each if they are not set; the long form
//! (`NEON_LONG_TESTS`) is 50 and 3.

#[cfg(feature = "s3")]
mod buckets;
mod further;
mod offers;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Home, Ran, ran};

/// A verb: what is there before all, what is done before each time, the verb itself, and the next command with the codes
/// that it may end with.
struct Verb {
    prepare: fn(&Home),
    before: fn(&Home, &str),
    hit: fn(&Home, &str) -> String,
    next: fn(&Home, &str) -> String,
    may: &'static [i32],
    after: fn(&Home, &str),
}

/// A verb that needs nothing but the instance `one` and its snapshot `one@a`, and is run once more afterwards.
const PLAIN: Verb = Verb {
    prepare: |_| {},
    before: |_, _| {},
    hit: |_, _| String::new(),
    next: |_, _| String::new(),
    may: &[0, 4],
    after: |_, _| {},
};

/// Takes an instance away if it is there.
fn away(home: &Home, name: &str) {
    let ran = home.run(&["pg", "destroy", name, "--yes"]);
    assert!([0, 3].contains(&ran.code), "{ran:?}");
}

/// A path that is nobody's yet.
fn place(home: &Home, name: &str) -> String {
    home.scratch().join(name).to_str().unwrap().to_owned()
}

/// Attaches a folder.
fn attach(home: &Home, name: &str, options: &[&str]) {
    let place = place(home, name);
    let mut arguments = vec!["storage", "attach", "-n", name, &place];
    arguments.extend(options);
    home.ok(&arguments);
}

/// The server of `one`, as somebody else would reach it.
fn server(home: &Home) -> String {
    let uri = home.ok(&["pg", "url", "one"]);
    let (_, place) = uri.trim_end().split_once('@').unwrap();
    format!(
        "basebackup://postgres@{}/",
        place.split('/').next().unwrap()
    )
}

/// The command with these arguments; who wants a password of `one` has it.
fn command(home: &Home, line: &str) -> Command {
    let mut command = home.command(&line.split(' ').collect::<Vec<_>>());
    command.env("PGPASSFILE", home.path().join("pg/one/pgpass"));
    command
}

fn run(home: &Home, line: &str) -> Ran {
    ran(&mut command(home, line))
}

/// Which signals a verb is hit by, one after the other.
fn signals() -> Vec<Signal> {
    let long = std::env::var("NEON_LONG_TESTS").is_ok();
    let count = |name, most| {
        let usual = if long { most } else { 1 };
        std::env::var(name).map_or(usual, |text| text.parse().unwrap())
    };
    let mut all = vec![Signal::INT; count("NEON_INTERRUPTS", 50)];
    all.extend(vec![Signal::KILL; count("NEON_KILLS", 3)]);
    all
}

/// The same where several verbs share a home: if nothing is asked for, one of the two.
fn signals_of_many() -> Vec<Signal> {
    let mut all = signals();
    if all.len() == 2 {
        all.remove(usize::from(random(2) == 1));
    }
    all
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
            let sign = folder == "pg" && name.starts_with(".home-");
            assert!(sign || !name.starts_with('.'), "{why}: {folder}/{name}");
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

/// Makes the instance `one` and its snapshot `one@a`.
fn stage(home: &Home) {
    home.ok(&["pg", "create", "one"]);
    home.sql(
        "one",
        "create table t as select i from generate_series(1, 5000) i",
    );
    home.ok(&["snapshot", "create", "one@a"]);
}

/// Nothing is left of it all when the server is down.
fn quiet(home: &Home) {
    home.ok(&["storage", "check", "local"]);
    home.ok(&["pg", "stop", "one"]);
    content(home, "in the end");
    assert_eq!(servers(home), BTreeSet::new());
}

fn hit_at_random(verb: &Verb) {
    let home = Home::new();
    stage(&home);
    hit_in(&home, verb, signals());
    quiet(&home);
}

/// Hits a verb with each of these, one after the other.
fn hit_in(home: &Home, verb: &Verb, signals: Vec<Signal>) {
    (verb.prepare)(home);
    // How long it takes when nobody disturbs it.
    (verb.before)(home, "whole");
    let line = (verb.hit)(home, "whole");
    let begun = Instant::now();
    let undisturbed = run(home, &line);
    let whole = u64::try_from(begun.elapsed().as_millis()).unwrap();
    // The doctor may have something to say of this machine.
    let fine = undisturbed.code == 0 || undisturbed.code == 1 && line.starts_with("doctor");
    assert!(fine, "{line}: {undisturbed:?}");
    (verb.after)(home, "whole");
    for (round, signal) in signals.into_iter().enumerate() {
        let tag = format!("r{round}");
        (verb.before)(home, &tag);
        let after = Duration::from_millis(random(whole));
        let line = (verb.hit)(home, &tag);
        let why = format!("{signal:?} after {after:?} of {whole} ms at {line}");
        let mut child = command(home, &line)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        // It may have ended before.
        let _gone = kill_process(Pid::from_child(&child), signal);
        let status = child.wait().unwrap();
        ended(signal, status, &why);
        let mut line = (verb.next)(home, &tag);
        if line.is_empty() {
            line = (verb.hit)(home, &tag);
        }
        let next = run(home, &line);
        assert!(verb.may.contains(&next.code), "{why}: {next:?}");
        (verb.after)(home, &tag);
        nothing_left(home, &why);
    }
}

/// A command that was hit ended as one does that is, or had ended before.
fn ended(signal: Signal, status: ExitStatus, why: &str) {
    if signal == Signal::KILL {
        assert!(
            status.signal() == Some(9) || status.success(),
            "{why}: {status}"
        );
        return;
    }
    // Before it could listen to signals it ends as every program does.
    let early = status.signal() == Some(2);
    assert!(
        early || [Some(0), Some(130)].contains(&status.code()),
        "{why}: {status}"
    );
}

/// All is as before but for what the verb is for.
fn nothing_left(home: &Home, why: &str) {
    let started = home.run(&["pg", "start", "one"]);
    assert!([0, 4].contains(&started.code), "{why}: {started:?}");
    content(home, why);
    assert_eq!(home.sql("one", "select count(*) from t"), "5000", "{why}");
    no_slot(home, why);
    assert_eq!(
        servers(home),
        BTreeSet::from(["pg/one/data".to_owned()]),
        "{why}"
    );
}

/// Nothing holds back the log of `one`, at the latest when its server has seen that who did is gone.
fn no_slot(home: &Home, why: &str) {
    let begun = Instant::now();
    while home.sql("one", "select count(*) from pg_replication_slots") != "0" {
        assert!(begun.elapsed() < Duration::from_secs(60), "{why}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

const SNAPSHOT: Verb = Verb {
    hit: |_, tag| format!("snapshot create one@{tag}"),
    ..PLAIN
};

const SNAPSHOT_DESTROY: Verb = Verb {
    before: |home, tag| {
        home.ok(&["snapshot", "create", &format!("one@{tag}")]);
    },
    hit: |_, tag| format!("snapshot destroy one@{tag} --yes"),
    may: &[0, 3],
    ..PLAIN
};

const DIFF: Verb = Verb {
    hit: |_, _| "snapshot diff one@a one@CURRENT".to_owned(),
    may: &[0],
    ..PLAIN
};

const IMPORT: Verb = Verb {
    hit: |home, tag| format!("snapshot import --from {} i-{tag}", server(home)),
    after: |home, tag| {
        home.ok(&["snapshot", "destroy", &format!("i-{tag}"), "--yes"]);
    },
    ..PLAIN
};

const EXPORT: Verb = Verb {
    hit: |home, tag| {
        let to = place(home, &format!("{tag}.neon"));
        format!("snapshot export one@a --to {to}")
    },
    after: |home, tag| {
        let name = format!("whole-{tag}");
        let from = place(home, &format!("{tag}.neon"));
        home.ok(&["snapshot", "import", "--from", &from, &name]);
        home.ok(&["snapshot", "destroy", &name, "--yes"]);
        let left: Vec<_> = fs::read_dir(home.scratch())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".partial"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    },
    ..PLAIN
};

/// A directory that was not finished is in the way of the next, and cannot be taken for one that was.
const EXPORT_DIRECTORY: Verb = Verb {
    hit: |home, tag| {
        let to = place(home, &format!("copy-{tag}"));
        format!("snapshot export one@a --to {to} --format pgdata")
    },
    after: |home, tag| {
        let to = home.scratch().join(format!("copy-{tag}"));
        if to.join("global/pg_control").exists() {
            let to = to.to_str().unwrap();
            home.ok(&["snapshot", "import", "--from", to, tag]);
            home.ok(&["snapshot", "destroy", tag, "--yes"]);
        }
    },
    ..PLAIN
};

const PUSH: Verb = Verb {
    prepare: |home| attach(home, "tank", &[]),
    before: |home, tag| {
        home.ok(&["snapshot", "create", &format!("one@{tag}")]);
    },
    hit: |_, tag| format!("snapshot push one@{tag} --to tank"),
    ..PLAIN
};

const PULL: Verb = Verb {
    prepare: |home| attach(home, "tank", &[]),
    before: |home, tag| {
        home.ok(&["snapshot", "create", &format!("one@{tag}"), "-s", "tank"]);
    },
    hit: |_, tag| format!("snapshot pull one@{tag} --from tank"),
    after: |home, tag| {
        home.ok(&["snapshot", "check", &format!("one@{tag}"), "-s", "local"]);
    },
    ..PLAIN
};

const VERIFY: Verb = Verb {
    hit: |_, _| "snapshot verify one@a".to_owned(),
    may: &[0],
    ..PLAIN
};

/// The second run, which deletes what the first has announced. Who writes has the usual grace: with a short one a writer
/// on a busy machine would count as gone.
const GC: Verb = Verb {
    prepare: |home| {
        attach(home, "pool", &[]);
        home.ok(&["snapshot", "create", "one@kept", "-s", "pool"]);
        home.ok(&["storage", "detach", "pool", "--yes"]);
    },
    before: |home, tag| {
        let name = format!("one@{tag}");
        attach(home, "pool", &[]);
        home.ok(&["snapshot", "create", &name, "-s", "pool", "--no-parent"]);
        home.ok(&["snapshot", "destroy", &name, "-s", "pool", "--yes"]);
        home.ok(&["storage", "detach", "pool", "--yes"]);
        attach(home, "pool", &["-c", "grace=3s"]);
        home.ok(&["storage", "gc", "pool", "--yes"]);
        std::thread::sleep(Duration::from_millis(3200));
    },
    hit: |_, _| "storage gc pool --yes".to_owned(),
    may: &[0],
    after: |home, _| {
        home.ok(&["storage", "check", "pool", "--data"]);
        home.ok(&["storage", "detach", "pool", "--yes"]);
    },
    ..PLAIN
};

const ATTACH: Verb = Verb {
    hit: |home, tag| format!("storage attach -n {tag} {}", place(home, tag)),
    after: |home, tag| {
        home.ok(&["storage", "detach", tag, "--yes"]);
    },
    ..PLAIN
};

const CREATE: Verb = Verb {
    hit: |_, tag| format!("pg create {tag}"),
    next: |_, tag| format!("pg start {tag}"),
    may: &[0, 3, 4],
    after: away,
    ..PLAIN
};

const RESTORE: Verb = Verb {
    hit: |_, tag| format!("pg create {tag} --snapshot one@a"),
    next: |_, tag| format!("pg start {tag}"),
    may: &[0, 3, 4],
    after: away,
    ..PLAIN
};

/// With a snapshot that nobody sees, and that does not stay.
const COPY: Verb = Verb {
    hit: |home, tag| format!("pg create {tag} --snapshot {}", server(home)),
    after: |home, tag| {
        away(home, tag);
        let left = home.ok(&["snapshot", "list"]);
        assert!(!left.contains("temporary-"), "{left}");
    },
    ..PLAIN
};

const REPLICA: Verb = Verb {
    hit: |_, _| "pg start --replica one".to_owned(),
    next: |_, _| "pg start one-r1".to_owned(),
    may: &[0, 3, 4],
    after: |home, _| away(home, "one-r1"),
    ..PLAIN
};

const ADOPT: Verb = Verb {
    prepare: |home| {
        let mut theirs = home.command(&["pg", "create", "theirs", "--no-start"]);
        let made = ran(theirs.env("NEON_HOME", home.scratch().join("elsewhere")));
        assert_eq!(made.code, 0, "{made:?}");
    },
    hit: |home, _| {
        let theirs = place(home, "elsewhere/pg/theirs");
        format!("pg adopt {theirs}/data -n adopted --pass-file {theirs}/pgpass")
    },
    after: |home, _| {
        home.ok(&["pg", "destroy", "adopted", "--yes"]);
        let theirs = home.scratch().join("elsewhere/pg/theirs/data");
        assert!(theirs.join("global/pg_control").exists());
    },
    ..PLAIN
};

const START: Verb = Verb {
    before: |home, _| {
        home.ok(&["pg", "stop", "one"]);
    },
    hit: |_, _| "pg start one".to_owned(),
    ..PLAIN
};

const STOP: Verb = Verb {
    hit: |_, _| "pg stop one".to_owned(),
    next: |_, _| "pg start one".to_owned(),
    ..PLAIN
};

const RESTART: Verb = Verb {
    hit: |_, _| "pg restart one".to_owned(),
    next: |_, _| "pg start one".to_owned(),
    ..PLAIN
};

const CHECKOUT: Verb = Verb {
    hit: |_, _| "pg checkout one@a --yes".to_owned(),
    next: |_, _| "pg start one".to_owned(),
    ..PLAIN
};

const DESTROY: Verb = Verb {
    before: |home, tag| {
        home.ok(&["pg", "create", tag]);
    },
    hit: |_, tag| format!("pg destroy {tag} --yes"),
    may: &[0, 3],
    ..PLAIN
};

const UNDO_DESTROY: Verb = Verb {
    before: |home, tag| {
        home.ok(&["pg", "create", tag, "--no-start"]);
        home.ok(&["pg", "destroy", tag, "--yes"]);
    },
    hit: |_, _| "undo --yes".to_owned(),
    next: |_, tag| format!("pg start {tag}"),
    may: &[0, 3, 4],
    after: away,
    ..PLAIN
};

const UNDO_CHECKOUT: Verb = Verb {
    before: |home, _| {
        home.ok(&["pg", "checkout", "one@a", "--yes"]);
    },
    hit: |_, _| "undo --yes".to_owned(),
    next: |_, _| "pg start one".to_owned(),
    ..PLAIN
};

/// Makes the cluster of the first document.
fn init(home: &Home) -> String {
    let to = place(home, "dest");
    format!("init --name doc --storage-dest {to}")
}

/// Makes it, and leaves it in its storage only.
fn only_survivor(home: &Home) {
    assert_eq!(run(home, &init(home)).code, 0);
    away(home, "doc");
}

const INIT: Verb = Verb {
    hit: |home, _| init(home),
    after: |home, _| {
        // Whatever `init` said: now there is a cluster, and its storage has it.
        home.ok(&["start"]);
        assert_eq!(home.sql("doc", "select 1"), "1");
        home.ok(&["stop"]);
        away(home, "doc");
    },
    ..PLAIN
};

const START_FROM_STORAGE: Verb = Verb {
    prepare: only_survivor,
    hit: |_, _| "start".to_owned(),
    after: |home, _| {
        assert_eq!(home.sql("doc", "select 1"), "1");
        away(home, "doc");
    },
    ..PLAIN
};

const STOP_INTO_STORAGE: Verb = Verb {
    prepare: only_survivor,
    before: |home, _| {
        let started = home.run(&["start"]);
        assert!([0, 4].contains(&started.code), "{started:?}");
    },
    hit: |_, _| "stop".to_owned(),
    may: &[0],
    after: |home, _| {
        home.ok(&["storage", "check", "dest"]);
    },
    ..PLAIN
};

const EXPORT_FROM_STORAGE: Verb = Verb {
    prepare: |home| assert_eq!(run(home, &init(home)).code, 0),
    hit: |home, tag| {
        let to = place(home, &format!("{tag}.neon"));
        format!("export --snapshot-path {to}")
    },
    after: EXPORT.after,
    ..PLAIN
};

#[test]
fn a_creation_that_is_interrupted_is_taken_back() {
    let home = Home::new();
    home.ok(&["pg", "list"]);
    let mut child = home
        .command(&["pg", "create", "two"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // What becomes its folder is there: the programs of PostgreSQL are at it.
    let begun = Instant::now();
    let is_sign = |name: &str| name.starts_with(".home-");
    let made = || {
        let names = fs::read_dir(home.path().join("pg"));
        let names = names.into_iter().flatten();
        let mut names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.any(|name| !is_sign(&name))
    };
    while !made() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let begun = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    if begun.elapsed() < Duration::from_secs(9) {
        home.fails(3, &["pg", "show", "two"]);
    } else {
        // On a busy machine it was not waited for: the next command settles it.
        let next = home.run(&["pg", "start", "two"]);
        assert!([0, 3, 4].contains(&next.code), "{next:?}");
        away(&home, "two");
    }
    content(&home, "a creation");
    home.ok(&["pg", "create", "two", "--no-start"]);
}

macro_rules! hits {
    ($($verb:ident => $name:ident;)+) => {$(
        #[test]
        fn $name() {
            hit_at_random(&$verb);
        }
    )+};
}

hits! {
    SNAPSHOT => a_snapshot_that_is_hit_leaves_nothing;
    SNAPSHOT_DESTROY => a_snapshot_that_is_hit_as_it_goes_is_there_or_not;
    DIFF => a_diff_that_is_hit_leaves_nothing;
    IMPORT => an_import_that_is_hit_leaves_nothing;
    EXPORT => an_export_that_is_hit_leaves_nothing;
    EXPORT_DIRECTORY => an_exported_directory_is_whole_or_none;
    PUSH => a_push_that_is_hit_leaves_nothing;
    PULL => a_pull_that_is_hit_leaves_nothing;
    VERIFY => a_verification_that_is_hit_leaves_nothing;
    GC => a_collection_that_is_hit_takes_nothing_that_is_needed;
    ATTACH => an_attachment_that_is_hit_is_there_or_not;
    CREATE => a_creation_that_is_hit_leaves_nothing;
    RESTORE => a_restore_that_is_hit_leaves_nothing;
    COPY => a_copy_of_a_server_that_is_hit_leaves_nothing;
    REPLICA => a_replica_that_is_hit_leaves_nothing;
    ADOPT => an_adoption_that_is_hit_is_there_or_not;
    START => a_start_that_is_hit_is_finished;
    STOP => a_stop_that_is_hit_is_finished;
    RESTART => a_restart_that_is_hit_leaves_nothing;
    CHECKOUT => a_checkout_that_is_hit_is_finished_or_taken_back;
    DESTROY => a_destroy_that_is_hit_leaves_nothing;
    UNDO_DESTROY => an_undone_destroy_that_is_hit_leaves_nothing;
    UNDO_CHECKOUT => an_undone_checkout_that_is_hit_is_finished_or_taken_back;
    INIT => an_init_that_is_hit_is_done_by_the_next;
    START_FROM_STORAGE => a_restoring_start_that_is_hit_is_done_by_the_next;
    STOP_INTO_STORAGE => a_stop_with_a_snapshot_that_is_hit_is_done_by_the_next;
    EXPORT_FROM_STORAGE => an_export_of_the_present_that_is_hit_leaves_nothing;
}
