//! Storages, imports, undoing, the trash and the doctor, hit like the other verbs; those of one kind share a home.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use neon_testkit::web::Web;

use super::{
    PLAIN, Verb, attach, away, command, content, hit_in, place, quiet, random, signals_of_many,
    stage,
};
use crate::support::Home;

/// Hits verbs one after the other in one home.
fn hit_all(verbs: &[Verb]) {
    let home = Home::new();
    stage(&home);
    for verb in verbs {
        hit_in(&home, verb, signals_of_many());
    }
    quiet(&home);
}

/// Forgets a storage if it is attached.
fn detach(home: &Home, name: &str) {
    let ran = home.run(&["storage", "detach", name, "--yes"]);
    assert!([0, 3].contains(&ran.code), "{ran:?}");
}

const DETACH: Verb = Verb {
    before: |home, tag| attach(home, &format!("d-{tag}"), &[]),
    hit: |_, tag| format!("storage detach d-{tag} --yes"),
    may: &[0, 3],
    ..PLAIN
};

/// Of a storage whose repository was lost, an empty folder in its place.
const INIT: Verb = Verb {
    before: |home, tag| {
        let name = format!("i-{tag}");
        attach(home, &name, &[]);
        home.ok(&["snapshot", "push", "one@a", "--to", &name]);
        let place = place(home, &name);
        fs::remove_dir_all(&place).unwrap();
        fs::create_dir(&place).unwrap();
    },
    hit: |_, tag| format!("storage init i-{tag} --yes"),
    may: &[0],
    after: |home, tag| {
        let name = format!("i-{tag}");
        home.ok(&["snapshot", "push", "one@a", "--to", &name]);
        home.ok(&["storage", "check", &name, "--data"]);
        detach(home, &name);
    },
    ..PLAIN
};

const CHECK: Verb = Verb {
    hit: |_, _| "storage check local --data".to_owned(),
    may: &[0],
    ..PLAIN
};

#[test]
fn storages_whose_verbs_are_hit_are_attached_or_not_and_whole() {
    hit_all(&[DETACH, INIT, CHECK]);
}

/// Takes what comes from a file or folder that there is already.
const IMPORT_FILE: Verb = Verb {
    prepare: |home| {
        let to = place(home, "web/a.neon");
        fs::create_dir(home.scratch().join("web")).unwrap();
        home.ok(&["snapshot", "export", "one@a", "--to", &to]);
    },
    hit: |home, tag| {
        let from = place(home, "web/a.neon");
        format!("snapshot import --from {from} f-{tag}")
    },
    after: |home, tag| imported(home, &format!("f-{tag}")),
    ..PLAIN
};

const IMPORT_DIRECTORY: Verb = Verb {
    prepare: |home| {
        let to = place(home, "plain");
        home.ok(&["snapshot", "export", "one@a", "--to", &to]);
    },
    hit: |home, tag| {
        let from = place(home, "plain");
        format!("snapshot import --from {from} p-{tag}")
    },
    after: |home, tag| imported(home, &format!("p-{tag}")),
    ..PLAIN
};

/// From the folder of [`IMPORT_FILE`], which a server offers that lives as long as the test.
const IMPORT_HTTP: Verb = Verb {
    prepare: |home| {
        let web = Web::of(&home.scratch().join("web"));
        fs::write(home.scratch().join("address"), &web.address).unwrap();
    },
    hit: |home, tag| {
        let address = fs::read_to_string(home.scratch().join("address")).unwrap();
        format!("snapshot import --from {address}/a.neon h-{tag}")
    },
    after: |home, tag| imported(home, &format!("h-{tag}")),
    ..PLAIN
};

/// What was imported is whole, and goes.
fn imported(home: &Home, name: &str) {
    home.ok(&["snapshot", "verify", name, "--digests"]);
    home.ok(&["snapshot", "destroy", name, "--yes"]);
}

#[test]
fn imports_of_files_and_folders_that_are_hit_leave_nothing() {
    hit_all(&[IMPORT_FILE, IMPORT_DIRECTORY, IMPORT_HTTP]);
}

const UNDO_CREATE: Verb = Verb {
    before: |home, tag| {
        home.ok(&["pg", "create", tag, "--no-start"]);
    },
    hit: |_, _| "undo --yes".to_owned(),
    next: |_, tag| format!("pg start {tag}"),
    may: &[0, 3],
    after: away,
    ..PLAIN
};

const UNDO_DETACH: Verb = Verb {
    before: |home, tag| {
        let name = format!("u-{tag}");
        attach(home, &name, &[]);
        detach(home, &name);
    },
    hit: |_, _| "undo --yes".to_owned(),
    next: |_, tag| format!("storage check u-{tag}"),
    may: &[0, 3],
    after: |home, tag| {
        let name = format!("u-{tag}");
        detach(home, &name);
        // What a killed write left goes with the next one of its kind.
        attach(home, &name, &[]);
        detach(home, &name);
    },
    ..PLAIN
};

const UNDO_SNAPSHOT_DESTROY: Verb = Verb {
    before: |home, tag| {
        let name = format!("one@{tag}");
        home.ok(&["snapshot", "create", &name]);
        home.ok(&["snapshot", "destroy", &name, "--yes"]);
    },
    hit: |_, _| "undo --yes".to_owned(),
    next: |_, tag| format!("snapshot verify one@{tag} --digests"),
    may: &[0, 3],
    after: |home, tag| {
        let name = format!("one@{tag}");
        let ran = home.run(&["snapshot", "destroy", &name, "--yes"]);
        assert!([0, 3].contains(&ran.code), "{ran:?}");
    },
    ..PLAIN
};

#[test]
fn what_is_undone_and_hit_is_undone_or_not() {
    hit_all(&[UNDO_CREATE, UNDO_DETACH, UNDO_SNAPSHOT_DESTROY]);
}

const TRASH: Verb = Verb {
    before: |home, tag| {
        home.ok(&["pg", "create", tag, "--no-start"]);
        home.ok(&["pg", "destroy", tag, "--yes"]);
    },
    hit: |_, _| "pg trash --empty --yes".to_owned(),
    may: &[0],
    after: |home, _| {
        let left: Vec<_> = fs::read_dir(home.path().join("trash"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    },
    ..PLAIN
};

/// What a checkout and a creation left that were killed, whenever that was.
const DOCTOR: Verb = Verb {
    before: |home, tag| {
        for line in [
            "pg checkout one@a --yes".to_owned(),
            format!("pg create {tag} --snapshot one@a --no-start"),
        ] {
            let mut child = command(home, &line)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(random(1500)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
    },
    hit: |_, _| "doctor --fix --yes".to_owned(),
    // Whether it says something of this machine afterwards is not the question.
    may: &[0, 1],
    after: |home, tag| {
        // A server that was stopped when something was hit is told of, and started by whoever wants it.
        let started = home.run(&["pg", "start", "one"]);
        assert!([0, 4].contains(&started.code), "{started:?}");
        content(home, tag);
        away(home, tag);
    },
    ..PLAIN
};

#[test]
fn an_emptied_trash_and_a_doctor_that_are_hit_are_done_by_the_next() {
    hit_all(&[TRASH, DOCTOR]);
}
