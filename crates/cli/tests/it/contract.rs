//! The contract of the command line: streams, exit codes, JSON, signals.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Home, Ran, ran};

#[test]
fn failures_say_what_why_and_what_to_do() {
    let home = Home::new();
    let said = home.fails(3, &["pg", "stop", "nobody"]);
    assert_eq!(
        said,
        "error: pg nobody: is not known here\nhint: see `neon pg list`\n"
    );
    // As data it is one line on the error stream, with a finer code.
    let said = home.fails(3, &["-o", "json", "pg", "stop", "nobody"]);
    let error: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(error["error"]["code"], "not-found");
    assert_eq!(error["error"]["exit"], 3);
    assert_eq!(error["error"]["message"], "pg nobody: is not known here");
    assert_eq!(error["error"]["hint"], "see `neon pg list`");
    documented(&error);
}

#[test]
fn every_failure_has_the_exit_code_of_its_kind() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    home.fails(4, &["pg", "create", "one", "--no-start"]);
    home.fails(3, &["pg", "create", "two", "--no-start", "-s", "nowhere"]);
    home.fails(2, &["storage", "detach", "local", "--yes"]);
    home.fails(2, &["storage", "attach", "-n", "x", "ftp://host/x"]);
    home.fails(2, &["storage", "attach", "-n", "x", "-t", "s3", "/tmp/x"]);
    home.fails(1, &["pg", "url", "one"]);
    // No PostgreSQL of that major anywhere: what installs it is said.
    let mut none = home.command(&["pg", "create", "two", "--pg-version", "14", "--no-start"]);
    let none = ran(none.env("PATH", "/nowhere"));
    if none.code != 0 {
        assert_eq!(none.code, 6, "{none:?}");
        assert!(none.err.contains("hint: "), "{none:?}");
    }
    // Where a base is while it is needed is nothing that the data shows.
    let record = home.path().join("state/pg/one.json");
    let mut known: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let base = serde_json::json!({ "snapshot": "0".repeat(64), "storage": "local" });
    known["base"] = base.clone();
    known["base"]["locator"] = "s3://somewhere/else".into();
    std::fs::write(&record, known.to_string()).unwrap();
    assert_eq!(home.json(&["pg", "show", "one"])["base"], base);
    // A damaged record is told as that.
    std::fs::write(&record, "{").unwrap();
    home.fails(5, &["pg", "show", "one"]);
    // It hides no other.
    home.ok(&["pg", "create", "two", "--no-start"]);
    let listed = home.run(&["pg", "list"]);
    assert_eq!(listed.code, 7, "{listed:?}");
    assert!(
        listed.out.contains(" two ") && !listed.out.contains(" one "),
        "{listed:?}"
    );
    assert!(listed.err.contains("is no record of ours"), "{listed:?}");
    assert!(listed.err.contains("neon doctor"), "{listed:?}");
}

#[test]
fn what_is_wrong_is_called_by_its_name() {
    let home = Home::new();
    home.ok(&["pg", "create", "one"]);
    let said = home.fails(4, &["pg", "start", "one"]);
    assert!(said.starts_with("error: pg one: runs already"), "{said}");
    let said = home.fails(3, &["pg", "adopt", "/no/such/place"]);
    assert!(said.contains("is no cluster"), "{said}");
    let said = home.fails(2, &["pg", "create", "--port", "0"]);
    assert!(said.contains("is not a port: 1 to 65535"), "{said}");
    // A folder that was named is not passed over for the programs of the distribution.
    let mut named = home.command(&["pg", "create", "two", "--no-start"]);
    let named = ran(named.env("NEON_PG_BIN", "/no/such/programs"));
    assert_eq!(named.code, 6, "{named:?}");
    assert!(
        named
            .err
            .contains("error: /no/such/programs: has no PostgreSQL"),
        "{named:?}"
    );
    home.fails(3, &["pg", "show", "two"]);
    let said = home.fails(2, &["snapshot", "show", "one@CURRENT"]);
    assert!(
        said.contains("hint: take one: neon snapshot create one@TAG"),
        "{said}"
    );
    let said = home.fails(2, &["snapshot", "create", "some"]);
    assert!(said.contains("--pg PGDATA"), "{said}");
    let said = home.fails(2, &["pg", "create", "--snapshot", "foo://x/y"]);
    assert!(said.contains("no type of storage is at foo://"), "{said}");
    // What cannot be there or be reached is told with what to do.
    let hints: [(&[&str], i32, &str); 3] = [
        (
            &["storage", "attach", "-n", "odd", "ftp://x/y"],
            2,
            "hint: name one place: a path, s3://",
        ),
        (
            &["storage", "attach", "-n", "odd", "/no/such/place"],
            3,
            "hint: make the folder that it is in, or mount its disk: mkdir -p /no/such",
        ),
        (
            &[
                "snapshot",
                "import",
                "--from",
                "basebackup://x@127.0.0.1:1/",
            ],
            1,
            "hint: see whether its server runs",
        ),
    ];
    for (verb, code, hint) in hints {
        let said = home.fails(code, verb);
        assert!(said.contains(hint), "{said}");
    }
    // A name may end as files do; a parent is called by its name.
    home.ok(&["snapshot", "create", "one@v1.neon"]);
    home.ok(&["snapshot", "create", "one@v2"]);
    home.ok(&[
        "pg",
        "create",
        "--snapshot",
        "one@v1.neon",
        "copy",
        "--no-start",
    ]);
    let shown = home.ok(&["snapshot", "show", "one@v2"]);
    assert!(shown.contains("parent: one@v1.neon"), "{shown}");
    // Help is a result, too.
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut help = home.command(&["help"]);
    let help = help.stdout(full.unwrap()).output().unwrap();
    assert_eq!(help.status.code(), Some(1), "{help:?}");
}

#[test]
fn a_destructive_verb_needs_a_yes_and_shows_what_is_lost() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    let said = home.fails(2, &["pg", "destroy", "one"]);
    assert!(said.starts_with("pg one will be destroyed: "), "{said}");
    assert!(said.contains("hint: give --yes"), "{said}");
    let plan = home.json(&["pg", "destroy", "one", "--dry-run"]);
    assert_eq!(
        (&plan["name"], &plan["destroyed"]),
        (&Value::from("one"), &Value::from(false))
    );
    assert!(plan["used"].as_u64().unwrap() > 1 << 20);
    documented(&plan);
    assert_eq!(home.ok(&["pg", "destroy", "one", "--yes"]), "Ok\n");
    home.fails(3, &["pg", "destroy", "one", "--yes"]);
}

#[test]
fn on_a_terminal_it_is_asked() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    let on_terminal = |answer: &str| -> Ran {
        let mut child = home
            .on_terminal(&format!("{} pg destroy one", Home::program()))
            .spawn()
            .unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), answer.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::new(),
        }
    };
    let no = on_terminal("n\n");
    assert_eq!(no.code, 2, "{no:?}");
    assert!(no.out.contains("Go on? [y/N]"), "{no:?}");
    assert!(
        no.out.contains("was not confirmed; nothing is changed"),
        "{no:?}"
    );
    // A terminal has colours.
    assert!(no.out.contains("\x1b[1;31merror:"), "{no:?}");
    let yes = on_terminal("y\n");
    assert_eq!(yes.code, 0, "{yes:?}");
    home.fails(3, &["pg", "show", "one"]);
}

/// What a terminal shows when Ctrl-C is the answer to a question.
fn interrupted_at(home: &Home, script: &str, question: &str) -> String {
    let mut child = home.on_terminal(script).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let mut screen = child.stdout.take().unwrap();
    let mut shown = String::new();
    let mut byte = [0];
    while !shown.ends_with(question) {
        let read = screen.read(&mut byte).unwrap();
        assert_eq!(read, 1, "{shown}");
        shown.push(char::from(byte[0]));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    std::io::Write::write_all(&mut keys, b"\x03").unwrap();
    let mut rest = Vec::new();
    screen.read_to_end(&mut rest).unwrap();
    drop(keys);
    child.wait().unwrap();
    shown + &String::from_utf8_lossy(&rest)
}

#[test]
fn an_interrupt_is_an_answer_and_the_terminal_shows_again_what_is_typed() {
    let home = Home::new();
    home.ok(&["pg", "create", "one"]);
    let neon = Home::program();
    // The shell goes on, to tell.
    let asked = format!("trap : INT; {neon} pg destroy one; echo code=$?");
    let shown = interrupted_at(&home, &asked, "Go on? [y/N] ");
    assert!(shown.contains("code=130"), "{shown}");
    let url = home.ok(&["pg", "url", "one"]);
    let (_, place) = url.trim_end().split_once('@').unwrap();
    let place = place.split('/').next().unwrap();
    let from = format!("basebackup://postgres@{place}/");
    let asked =
        format!("trap : INT; {neon} snapshot import --from {from} two; echo code=$?; stty -a");
    let shown = interrupted_at(&home, &asked, &format!("Password for postgres@{place}: "));
    assert!(shown.contains("code=130"), "{shown}");
    assert!(shown.contains(" echo "), "{shown}");
    home.fails(3, &["snapshot", "show", "two"]);
}

#[test]
fn what_goes_wrong_is_data_if_that_is_asked_for() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    let lines = |said: &Ran| -> Vec<Value> {
        let lines = said.err.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
            .collect()
    };
    // Also of arguments that nobody understands.
    for arguments in [
        &["-o", "json", "pg", "crate"][..],
        &["pg", "show", "--output=ndjson", "no/name"],
        &["-ojson", "snapshot", "export", "one@a"],
    ] {
        let said = home.run(arguments);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{said:?}");
        let said = lines(&said);
        let error = &said.last().unwrap()["error"];
        assert_eq!(
            (&error["code"], &error["exit"]),
            (&Value::from("invalid"), &Value::from(2))
        );
        assert!(!error["message"].as_str().unwrap().contains("error:"));
        documented(&said[0]);
    }
    let by_environment = ran(home.command(&["pg", "crate"]).env("NEON_OUTPUT", "json"));
    let hint = &lines(&by_environment)[0]["error"]["hint"];
    assert!(hint.as_str().unwrap().contains("'create'"), "{hint}");
    let plain = home.run(&["-o", "table", "pg", "crate"]);
    assert!(plain.err.starts_with("error: "), "{plain:?}");
    // What would be lost, and that nobody was there to ask.
    let asked = home.run(&["-o", "json", "pg", "destroy", "one"]);
    assert_eq!(asked.code, 2);
    let said = lines(&asked);
    assert_eq!(said[0]["event"], "note");
    assert_eq!(said[1]["error"]["code"], "needs-confirmation");
    // A storage that cannot be listed.
    let tank = home.scratch().join("tank");
    home.ok(&["storage", "attach", "-n", "tank", tank.to_str().unwrap()]);
    home.ok(&["snapshot", "create", "one@a", "-s", "tank"]);
    std::fs::write(tank.join("neon.json"), "{").unwrap();
    let listed = home.run(&["-o", "json", "snapshot", "list"]);
    assert_eq!(listed.code, 7, "{listed:?}");
    assert_eq!(lines(&listed)[0]["event"], "warning");
}

#[test]
fn nobody_reading_the_result_is_no_error() {
    let home = Home::new();
    home.ok(&["pg", "list"]);
    let mut child = home
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

#[test]
fn who_only_looks_makes_no_home() {
    let home = Home::new();
    let listed = [
        (&["pg", "list"][..], "instances"),
        (&["pg", "trash"], "trash"),
        (&["storage", "list"], "storages"),
        (&["snapshot", "list"], "snapshots"),
        (&["op", "log"], "operations"),
    ];
    for (verb, key) in listed {
        let said = home.json(verb);
        assert_eq!(said[key], serde_json::json!([]), "{verb:?}: {said:#}");
        home.ok(verb);
    }
    let missing: [&[&str]; 6] = [
        &["pg", "show", "one"],
        &["pg", "url", "one"],
        &["pg", "logs", "one"],
        &["snapshot", "show", "one@a"],
        &["storage", "show", "tank"],
        &["undo", "--dry-run"],
    ];
    for verb in missing {
        home.fails(3, verb);
    }
    // A disk that is full is none of this.
    let ran = home.run(&["--output", "json", "doctor"]);
    assert!([0, 1].contains(&ran.code), "{ran:?}");
    let said: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    documented(&said);
    let codes: Vec<&str> = said["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["code"].as_str().unwrap())
        .collect();
    assert!(codes.contains(&"home-none"), "{said:#}");
    home.ok(&["config", "show"]);
    assert!(!home.path().exists());
    // A folder that is no home is none to look at either.
    std::fs::create_dir(home.path()).unwrap();
    home.ok(&["pg", "list"]);
    std::fs::write(home.path().join("precious"), "").unwrap();
    home.fails(2, &["pg", "list"]);
}

#[test]
fn a_home_that_is_out_of_sight_or_lost_its_name_is_not_an_empty_one() {
    let home = Home::new();
    let away = home.scratch().join("away");
    std::os::unix::fs::symlink(&away, home.path()).unwrap();
    for verb in [&["pg", "list"][..], &["pg", "create", "one"]] {
        let said = home.fails(6, verb);
        let nothing = format!("leads to nothing: there is no {}", away.display());
        assert!(said.contains(&nothing), "{said}");
    }
    std::fs::remove_file(home.path()).unwrap();
    let said = home.run(&["pg", "list"]);
    assert!(said.err.contains("There is no home in"), "{said:?}");
    home.ok(&["pg", "create", "one", "--no-start"]);
    std::fs::remove_file(home.path().join("neon.json")).unwrap();
    let said = home.run(&["doctor"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("neon.json"), "{said:?}");
}

#[test]
fn lists_are_a_document_or_a_line_each() {
    let home = Home::new();
    for name in ["one", "two"] {
        home.ok(&["pg", "create", name, "--no-start"]);
    }
    let all = home.json(&["pg", "list"]);
    assert_eq!(all["schema"], 1);
    assert_eq!(all["instances"].as_array().unwrap().len(), 2);
    let lines = home.ok(&["pg", "list", "-o", "ndjson"]);
    let names: Vec<String> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["name"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(names, ["one", "two"]);
}

#[test]
fn every_key_that_is_printed_is_documented() {
    let home = Home::new();
    let tank = home.scratch().join("tank");
    let tank = tank.to_str().unwrap();
    documented(&home.json(&[
        "storage",
        "attach",
        "-n",
        "tank",
        "-c",
        "compression=zstd:3",
        tank,
    ]));
    documented(&home.json(&["storage", "list"]));
    documented(&home.json(&["storage", "show", "tank"]));
    documented(&home.json(&["storage", "detach", "tank", "--dry-run"]));
    documented(&home.json(&["storage", "detach", "tank", "--yes"]));
    documented(&home.json(&["pg", "create", "one"]));
    for verb in ["show", "url", "logs", "stop", "start", "restart"] {
        documented(&home.json(&["pg", verb, "one"]));
    }
    documented(&home.json(&["pg", "list"]));
    documented(&home.json(&["pg", "start", "--replica", "one"]));
    documented(&home.json(&["pg", "destroy", "one-r1", "--yes"]));
    documented(&home.json(&["snapshot", "create", "one@a"]));
    home.sql(
        "one",
        "create table t as select g from generate_series(1, 1000) g",
    );
    documented(&home.json(&["snapshot", "create", "one@b"]));
    documented(&home.json(&["snapshot", "list", "--long"]));
    documented(&home.json(&["snapshot", "show", "one@b"]));
    documented(&home.json(&["snapshot", "diff", "one@a", "one@b"]));
    documented(&home.json(&["snapshot", "push", "--to", tank, "one@b"]));
    documented(&home.json(&["snapshot", "pull", "--from", tank, "one@b"]));
    documented(&home.json(&["storage", "attach", "-n", "away", tank]));
    documented(&home.json(&["storage", "init", "away", "--dry-run"]));
    documented(&home.json(&["storage", "init", "away", "--yes"]));
    let mut copy = vec!["pg", "create", "--snapshot", "one@b", "copy"];
    copy.extend(["-s", "local", "--no-start"]);
    documented(&home.json(&copy));
    documented(&home.json(&["pg", "destroy", "copy", "--yes"]));
    documented(&home.json(&["pg", "trash"]));
    documented(&home.json(&["pg", "trash", "--empty", "copy", "--dry-run"]));
    documented(&home.json(&["pg", "trash", "--empty", "copy", "--yes"]));
    let file = home.scratch().join("b.neon");
    let file = file.to_str().unwrap();
    documented(&home.json(&["snapshot", "export", "one@b", "--to", file]));
    documented(&home.json(&["snapshot", "import", "--from", file, "c"]));
    documented(&home.json(&["snapshot", "destroy", "c", "--dry-run"]));
    documented(&home.json(&["snapshot", "destroy", "c", "--yes"]));
    documented(&home.json(&["pg", "show", "one"]));
    documented(&home.json(&["pg", "checkout", "one@a", "--dry-run"]));
    documented(&home.json(&["pg", "checkout", "one@a", "--yes"]));
    documented(&home.json(&["undo", "--dry-run"]));
    documented(&home.json(&["undo", "--yes"]));
    documented(&home.json(&["storage", "show", "local"]));
    documented(&home.json(&["storage", "check", "local"]));
    documented(&home.json(&["storage", "gc", "local", "--dry-run"]));
    documented(&home.json(&["storage", "gc", "local", "--yes"]));
    documented(&home.json(&["pg", "destroy", "one", "--yes"]));
    documented(&home.json(&["op", "log"]));
    documented(&home.json(&["doctor", "--fix", "--yes"]));
    documented(&home.json(&["snapshot", "check", "one@b", "-s", "local"]));
    documented(&home.json(&["snapshot", "verify", "one@b", "-s", "local", "--digests"]));
    documented(&home.json(&["config", "show"]));
    let man = home.scratch().join("man");
    documented(&home.json(&["man", man.to_str().unwrap()]));
}

#[test]
fn a_signal_ends_it_with_the_code_of_the_signal_and_leaves_nothing() {
    let home = Home::new();
    home.ok(&["pg", "create", "one"]);
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut child = home
            .command(&["pg", "logs", "-f", "one"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The first byte of the log: it follows.
        let mut byte = [0];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut byte)
            .unwrap();
        // One is enough: to follow a log ends so, and that is no error.
        let killed = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status();
        assert!(killed.unwrap().success());
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(code));
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(said, "Stopping. Once more to stop at once.\n");
    }
    // Stopped while it makes an instance: the next command settles it, whatever the moment was.
    let mut child = home
        .command(&["pg", "create", "two"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    for _ in 0..2 {
        // It may have ended in between.
        let _gone = Command::new("kill")
            .args(["-s", "INT", &child.id().to_string()])
            .output();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let code = child.wait().unwrap().code();
    assert!([Some(0), Some(130)].contains(&code), "{code:?}");
    let settled = home.run(&["pg", "start", "two"]);
    assert!([0, 3, 4].contains(&settled.code), "{settled:?}");
    if settled.code != 3 {
        home.ok(&["pg", "destroy", "two", "--yes"]);
    }
    home.ok(&["pg", "create", "two", "--no-start"]);
}

/// Every key of this document is in docs/cli-json.md.
pub(crate) fn documented(document: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli-json.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut known = BTreeSet::new();
    for word in text.split('`').skip(1).step_by(2) {
        known.insert(word.trim_end_matches("[]").to_owned());
    }
    let mut missing = BTreeSet::new();
    keys(document, &mut |key| {
        if !known.contains(key) {
            missing.insert(key.to_owned());
        }
    });
    assert!(
        missing.is_empty(),
        "docs/cli-json.md says nothing of {missing:?} in {document:#}"
    );
}

fn keys(value: &Value, see: &mut dyn FnMut(&str)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                see(key);
                // What is below these is named by users and libraries.
                if !["options", "details", "extensions", "collations", "labels"]
                    .contains(&key.as_str())
                {
                    keys(value, see);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, see)),
        _ => {}
    }
}
