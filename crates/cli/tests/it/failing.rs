//! What is wrong around a command: a full disk, a missing PostgreSQL, a damaged snapshot, another command at the same
//! thing. Each ends with its exit code, a cause and a hint, and leaves nothing.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use neon_testkit::{Installation, OsUser, PgMajor};
use serde_json::Value;

use crate::interrupted::content;
use crate::support::{Home, Ran, ran};

pub(crate) fn told(said: &Ran, code: i32, words: &[&str]) {
    assert_eq!(said.code, code, "{said:#?}");
    assert!(
        said.err.starts_with("error: ") || said.err.contains("\nerror: "),
        "{said:#?}"
    );
    for word in words {
        assert!(said.err.contains(word), "no {word:?} in {said:#?}");
    }
}

#[test]
fn two_commands_at_once_on_one_thing_wait_or_say_that_it_is_busy() {
    let home = Home::new();
    home.ok(&["pg", "create", "one"]);
    let both = |arguments: &[&str]| -> Vec<i32> {
        let children: Vec<_> = (0..2)
            .map(|_| {
                home.command(arguments)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        let mut codes: Vec<i32> = children
            .into_iter()
            .map(|mut child| child.wait().unwrap().code().unwrap())
            .collect();
        codes.sort_unstable();
        codes
    };
    // One gets the name.
    assert_eq!(both(&["snapshot", "create", "one@a"]), [0, 4]);
    assert_eq!(both(&["pg", "create", "two", "--no-start"]), [0, 4]);
    // One after the other, or not at all.
    for arguments in [
        &["pg", "checkout", "one@a", "--yes"][..],
        &["storage", "gc", "local", "--yes"],
        &["pg", "restart", "one"],
    ] {
        let codes = both(arguments);
        assert!(
            codes == [0, 0] || codes == [0, 4],
            "{arguments:?}: {codes:?}"
        );
    }
    assert_eq!(both(&["pg", "destroy", "two", "--yes"]), [0, 3]);
    content(&home, "two at once");
    // Held for longer than anybody waits.
    let lock = fs::File::open(home.path().join("state/pg/one.lock")).unwrap();
    lock.lock().unwrap();
    let busy = ran(home
        .command(&["pg", "stop", "one"])
        .env("NEON_PATIENCE", "0"));
    told(&busy, 4, &["pg one: another command is at it", "hint: "]);
    let report = home.json(&["doctor"]);
    let codes: Vec<&Value> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["code"])
        .collect();
    assert!(codes.contains(&&Value::from("busy")), "{report:#}");
    drop(lock);
    home.ok(&["pg", "stop", "one"]);
}

#[test]
fn a_repair_shows_what_it_would_do_and_asks_first() {
    let home = Home::new();
    home.ok(&["pg", "list"]);
    home.ok(&["doctor", "--fix"]);
    let left = home.path().join("pg/.new-0123456789abcdef");
    fs::create_dir_all(&left).unwrap();
    let asked = home.run(&["doctor", "--fix"]);
    told(&asked, 2, &["will be settled: ", "needs a confirmation"]);
    assert_eq!(asked.out, "");
    assert!(left.exists());
    let shown = home.ok(&["doctor", "--fix", "--dry-run"]);
    let line = format!("will be settled: {}", left.display());
    assert!(shown.starts_with(&line), "{shown}");
    assert!(left.exists());
    home.fails(2, &["doctor", "--yes"]);
    let done = home.ok(&["doctor", "--fix", "--yes"]);
    assert!(
        done.starts_with(&format!("fixed: {}", left.display())),
        "{done}"
    );
    assert!(!left.exists());
}

/// Runs these commands in a home on a small file system of its own; each line of the answer is an exit code.
fn on_a_small_disk(home: &Home, size: &str, commands: &[&str]) -> (Vec<i32>, String) {
    on_a_small_disk_with(home, size, commands, &[])
}

fn on_a_small_disk_with(
    home: &Home,
    size: &str,
    commands: &[&str],
    environment: &[(&str, &str)],
) -> (Vec<i32>, String) {
    let disk = home.scratch().join("disk");
    fs::create_dir(&disk).unwrap();
    let mut script = format!(
        "mount -t tmpfs -o size={size},mode=0755 none {0} && chmod 0755 {0} || exit 99\n",
        disk.display()
    );
    for command in commands {
        script.push_str(&format!("{} {command}; echo $?\n", Home::program()));
    }
    let mut command = home.apart(&script);
    command
        .env("NEON_HOME", disk.join("home"))
        .envs(environment.iter().copied());
    let ran = ran(&mut command);
    assert_ne!(ran.code, 99, "{ran:#?}");
    let codes = ran
        .out
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    (codes, ran.err)
}

#[test]
fn a_restore_that_does_not_fit_is_refused_before_anything_is_copied() {
    let home = Home::new();
    let (codes, said) = on_a_small_disk(
        &home,
        "120m",
        &[
            "-q pg create one --no-start > /dev/null",
            "-q snapshot create one@a > /dev/null",
            "-q pg create two --snapshot one@a > /dev/null",
            "-q pg create one --no-start > /dev/null",
            "-q doctor > /dev/null",
            "-q pg show two > /dev/null",
        ],
    );
    assert_eq!(codes.len(), 6, "{said}");
    assert_eq!(codes[..4], [0, 0, 6, 4], "{said}");
    assert_eq!(codes[5], 3, "{said}");
    assert!(said.contains("has room for"), "{said}");
    assert!(said.contains("hint: free some space"), "{said}");
}

#[test]
fn what_comes_from_outside_and_does_not_fit_is_refused_before_anything_is_copied() {
    let outside = Home::new();
    outside.ok(&["pg", "create", "one", "--no-start"]);
    outside.ok(&["snapshot", "create", "one@a"]);
    let place = |name: &str| outside.scratch().join(name).to_str().unwrap().to_owned();
    let (file, folder) = (place("one.neon"), place("tars"));
    outside.ok(&["snapshot", "export", "one@a", "--to", &file]);
    outside.ok(&[
        "snapshot",
        "export",
        "one@a",
        "--format",
        "basebackup",
        "--to",
        &folder,
    ]);
    let plain = place("plain");
    outside.ok(&[
        "snapshot", "export", "one@a", "--format", "pgdata", "--to", &plain,
    ]);
    let created = outside.json(&["pg", "start", "one"]);
    let (port, url) = (created["port"].clone(), created["url"].clone());
    let port = port.as_u64().or_else(|| {
        let url = url.as_str()?;
        url.rsplit(':').next()?.split('/').next()?.parse().ok()
    });
    let password = outside.ok(&["pg", "url", "one"]);
    let password = password.split([':', '@']).nth(2).unwrap();
    let store = place("home/store/local");
    let home = Home::new();
    let import = |from: &str| format!("-q snapshot import --from {from} x");
    let commands = [
        import(&file),
        import(&folder),
        import(&plain),
        import(&format!(
            "basebackup://postgres@localhost:{}/",
            port.unwrap()
        )),
        format!("-q snapshot pull --from {store} one@a"),
        format!("-q pg create two --snapshot {file}"),
        "-q snapshot list".to_owned(),
        "-q doctor > /dev/null".to_owned(),
    ];
    let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
    let (codes, said) = on_a_small_disk_with(&home, "18m", &commands, &[("PGPASSWORD", password)]);
    assert_eq!(codes[..7], [6, 6, 6, 6, 6, 6, 0], "{said}");
    let refusals = said.matches(": has 1").count();
    assert_eq!(refusals, 5, "{said}");
    assert_eq!(said.matches("hint: make room").count(), 5, "{said}");
    // That of the instance as well.
    assert!(said.contains("home/pg: has room for 1"), "{said}");
    outside.ok(&["pg", "stop", "one"]);
}

#[test]
fn going_back_asks_the_disks_of_tablespaces_for_room() {
    let home = Home::new();
    let small = home.scratch().join("small");
    fs::create_dir(&small).unwrap();
    let psql = Installation::of(PgMajor::V15)
        .with_client("psql")
        .tool("psql")
        .unwrap();
    let inner = home.command::<&str>(&[]);
    let neon = inner.get_program().to_str().unwrap();
    let sql = |text: &str| format!("{neon} pg psql one -- -XAtq -v ON_ERROR_STOP=1 -c \"{text}\"");
    let script = format!(
        "mount -t tmpfs -o size=48m none {small} && mkdir {small}/space && chown {user} {small}/space || exit 99
         trap '{neon} -q pg destroy one --yes > /dev/null 2>&1' EXIT
         set -e
         {neon} -q pg create one > /dev/null
         {space}
         {table}
         {neon} -q snapshot create one@a > /dev/null
         {empty}
         head -c 40M /dev/zero > {small}/full
         set +e
         {neon} -q pg checkout one@a --yes; echo $?
         {one}
         {neon} -q doctor > /dev/null; echo $?
         rm {small}/full
         {neon} -q pg checkout one@a --yes > /dev/null; echo $?
         {one}
         {neon} -q pg destroy one --yes > /dev/null; echo $?\n",
        small = small.display(),
        user = OsUser::current().name(),
        space = sql(&format!("create tablespace small location '{}/space'", small.display())),
        table = sql("create table t tablespace small as select repeat('x', 1000) v from generate_series(1, 20000)"),
        empty = sql("truncate t"),
        one = sql("select count(*) from t"),
    );
    let path = format!("{}:/usr/bin:/bin", psql.parent().unwrap().display());
    let ran = ran(home.apart(&script).env("PATH", path));
    assert_eq!(ran.code, 0, "{ran:#?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    // It is as it was, and runs again.
    assert_eq!(lines, ["6", "0", "0", "0", "20000", "0"], "{ran:#?}");
    assert!(ran.err.contains("has room for"), "{ran:#?}");
    assert!(ran.err.contains("hint: free some space"), "{ran:#?}");
}

#[test]
fn a_creation_that_does_not_fit_is_refused_and_leaves_nothing() {
    let home = Home::new();
    let (codes, said) = on_a_small_disk(
        &home,
        "24m",
        &[
            "-q pg create one --no-start > /dev/null",
            "-q pg show one > /dev/null",
            "-q pg list > /dev/null",
        ],
    );
    assert_eq!(codes, [6, 3, 0], "{said}");
    assert!(said.contains("/pg: has room for"), "{said}");
    assert!(said.contains("hint: free some space"), "{said}");
}

#[test]
fn a_place_that_is_full_or_closed_is_blamed_and_not_what_goes_there() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    home.ok(&["snapshot", "create", "one@a"]);
    let inner = home.command::<&str>(&[]);
    let neon = inner.get_program().to_str().unwrap();
    let place = home.scratch().join("small");
    fs::create_dir(&place).unwrap();
    let small = place.display();
    let script = format!(
        "mount -t tmpfs -o size=1m none {small} || exit 99
         {neon} -q snapshot export one@a --to {small}/one.neon; echo $?
         ls -A {small}
         {neon} -q snapshot push one@a --to {small}/store; echo $?
         mount -o remount,ro {small} || exit 99
         {neon} -q snapshot export one@a --to {small}/two.neon; echo $?
         {neon} -q snapshot push one@a --to {small}/other; echo $?
         {neon} -q pg create two --no-start --pgdata {small}/two; echo $?\n"
    );
    let ran = ran(&mut home.apart(&script));
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines, ["6", "6", "6", "6", "6"], "{ran:#?}");
    let blamed = format!("error: {small}/one.neon: could not be written");
    assert!(ran.err.contains(&blamed), "{ran:#?}");
    assert_eq!(ran.err.matches("hint: ").count(), 5, "{ran:#?}");
    home.fails(3, &["pg", "show", "two"]);
}

#[test]
fn a_storage_that_cannot_be_reached_is_told_with_what_to_look_at() {
    let home = Home::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let bucket = format!("s3://tank/prefix?endpoint=http://127.0.0.1:{port}&path-style=true");
    let web = format!("http://127.0.0.1:{port}/store");
    for address in [bucket, web] {
        let mut attach = home.command(&["storage", "attach", "-n", "tank", &address]);
        attach
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("AWS_REGION", "us-east-1");
        let ran = ran(&mut attach);
        assert_ne!(ran.code, 0);
        assert!(
            ran.err.contains("hint: see whether its address"),
            "{ran:#?}"
        );
    }
}

#[test]
fn a_snapshot_into_a_full_storage_fails_and_the_next_one_works() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    let tank = home.scratch().join("tank");
    fs::create_dir(&tank).unwrap();
    home.ok(&["storage", "attach", "-n", "tank", tank.to_str().unwrap()]);
    let full = ran(&mut home.apart(&format!(
        "mount -t tmpfs -o size=1m none {} && exec {} snapshot create one@a -s tank",
        tank.display(),
        Home::program()
    )));
    told(
        &full,
        6,
        &["storage tank: has 0 MiB free", "hint: make room"],
    );
    // What was begun there went with its disk.
    told(
        &home.run(&["snapshot", "create", "one@a", "-s", "tank"]),
        6,
        &[
            "is not at",
            "hint: mount the disk",
            "neon storage init tank",
        ],
    );
    home.ok(&["storage", "init", "tank", "--yes"]);
    home.ok(&["snapshot", "create", "one@a", "-s", "tank"]);
    content(&home, "after a full storage");
}

#[test]
fn postgresql_that_went_away_is_named_with_what_brings_it_back() {
    let home = Home::of(PgMajor::V13);
    home.ok(&["pg", "create", "one", "--no-start"]);
    let programs = Installation::of(PgMajor::V13).bin_dir();
    // Where nobody sees the programs any more.
    let without = |arguments: &str| {
        ran(&mut home.apart(&format!(
            "mount -t tmpfs none {} && exec {} {arguments}",
            programs.display(),
            Home::program()
        )))
    };
    told(&without("pg start one"), 6, &["13", "hint: "]);
    // What needs no programs goes on.
    let list = without("pg list");
    assert_eq!((list.code, list.err.as_str()), (0, ""), "{list:?}");
    let doctor = without("doctor");
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert!(doctor.out.contains("[postgresql-missing]"), "{doctor:?}");
    home.ok(&["pg", "start", "one"]);
    home.ok(&["pg", "stop", "one"]);
}

fn packs(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(packs(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn a_damaged_snapshot_is_refused_and_nothing_is_made_of_it() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    home.ok(&["snapshot", "create", "one@a"]);
    let mut largest = packs(&home.path().join("store/local/packs"));
    largest.sort_by_key(|path| fs::metadata(path).unwrap().len());
    let pack = largest.last().unwrap();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(pack)
        .unwrap();
    let length = file.metadata().unwrap().len();
    // Every frame is hit, whichever of them hold what: the writers' order differs from run to run. The directory stays as it is.
    for at in (0..length * 8 / 10).step_by(4096).skip(1) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
    told(
        &home.run(&["pg", "create", "two", "--snapshot", "one@a"]),
        5,
        &["snapshot one@a", "is damaged", "caused by: "],
    );
    home.fails(3, &["pg", "show", "two"]);
    let verified = home.run(&["snapshot", "verify", "one@a"]);
    assert_eq!(verified.code, 5, "{verified:?}");
    assert!(verified.out.contains("of pack "), "{verified:?}");
    // Going back to it, which needs what is damaged, puts the state before back.
    for entry in fs::read_dir(home.path().join("pg/one/data/base/4")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            fs::File::create(&path).unwrap();
        }
    }
    let checkout = home.run(&["pg", "checkout", "one@a", "--yes"]);
    assert_eq!(checkout.code, 5, "{checkout:?}");
    home.ok(&["pg", "start", "one"]);
    content(&home, "a damaged snapshot");
    home.ok(&["pg", "stop", "one"]);
}

/// Runs commands while the disk that they write to fills up under them: each is held as soon as so many KiB are there, goes on
/// when nothing is free, and runs once more when there is room again. Of each come the exit codes, and what it left.
fn while_a_disk_fills_up(home: &Home, setup: &str, commands: &[(&str, u32)]) -> Ran {
    let place = home.scratch().join("small");
    fs::create_dir_all(&place).unwrap();
    let small = place.display();
    let mut script = format!(
        "mount -t tmpfs -o size=160m,mode=0777 none {small} || exit 99
         neon={program}
         used() {{ du -sk {small} | cut -f1; }}
         {setup}\n",
        program = Home::program(),
    );
    for (command, held_at) in commands {
        script.push_str(&format!(
            "before=$(used)
             $neon -q {command} > /dev/null &
             pid=$!
             while kill -0 $pid 2> /dev/null && [ $(($(used) - before)) -lt {held_at} ]; do :; done
             kill -STOP $pid
             cat /dev/zero > {small}/fill 2> /dev/null
             kill -CONT $pid
             wait $pid; echo $?
             rm {small}/fill
             find {small} -mindepth 1 -name '.*' | grep -v 'home-\\|neon-storage$'
             $neon -q {command} > /dev/null; echo $?\n"
        ));
    }
    script.push_str("$neon -q doctor > /dev/null; echo $?\n");
    ran(&mut home.apart(&script))
}

#[test]
fn a_disk_that_fills_up_under_a_command_is_blamed_and_the_next_one_works() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    home.ok(&["snapshot", "create", "one@a"]);
    let small = home.scratch().join("small");
    let small = small.display();
    let said = while_a_disk_fills_up(
        &home,
        &format!(
            "$neon -q storage attach -n tank -c compression=none {small}/tank > /dev/null || exit 98"
        ),
        &[
            ("snapshot create one@b -s tank", 400),
            (&format!("snapshot export one@a --to {small}/one.neon"), 300),
            (
                &format!("snapshot export one@a --format basebackup --to {small}/backup"),
                300,
            ),
        ],
    );
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines, ["6", "0", "6", "0", "6", "0", "0"], "{said:#?}");
    assert_eq!(said.err.matches("hint: ").count(), 3, "{said:#?}");
    assert_eq!(
        said.err.matches("No space left on device").count(),
        3,
        "{said:#?}"
    );
}

#[test]
fn a_disk_that_fills_up_under_a_creation_leaves_nothing() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    home.ok(&["snapshot", "create", "one@a"]);
    let small = home.scratch().join("small");
    let small = small.display();
    for create in [
        format!("pg create two --no-start --pgdata {small}/two"),
        format!("pg create two --no-start --pgdata {small}/two --snapshot one@a"),
    ] {
        let said = while_a_disk_fills_up(&home, "", &[(&create, 2000)]);
        let lines: Vec<&str> = said.out.lines().collect();
        assert_eq!(lines, ["6", "0", "0"], "{create}: {said:#?}");
        assert_eq!(said.err.matches("hint: ").count(), 1, "{said:#?}");
        assert!(said.err.contains("No space left on device"), "{said:#?}");
        // Its disk went with the shell.
        home.ok(&["pg", "destroy", "two", "--lost", "--yes"]);
    }
}

#[test]
fn a_disk_that_fills_up_under_a_push_or_a_pull_is_blamed_and_the_next_one_works() {
    let outside = Home::new();
    outside.ok(&["pg", "create", "one", "--no-start"]);
    // Enough that does not shrink for the copy to take its time.
    let ballast = outside.path().join("pg/one/data/ballast");
    let filled = ran(outside.other("sh").args([
        "-c",
        &format!(
            "head -c 60M /dev/urandom > {0} && chmod 644 {0}",
            ballast.display()
        ),
    ]));
    assert_eq!(filled.code, 0, "{filled:#?}");
    outside.ok(&["snapshot", "create", "one@a"]);
    let from = outside.path().join("store/local");
    let small = |home: &Home| home.scratch().join("small").display().to_string();
    let push = format!("snapshot push one@a --to {}/store", small(&outside));
    let pull = format!("snapshot pull --from {} one@a", from.display());
    let other = Home::new();
    let in_it = format!("mkdir {0}/home && export NEON_HOME={0}/home", small(&other));
    for (home, setup, command) in [(&outside, String::new(), push), (&other, in_it, pull)] {
        let said = while_a_disk_fills_up(home, &setup, &[(&command, 300)]);
        let lines: Vec<&str> = said.out.lines().collect();
        // What the doctor says of so small a disk is another matter.
        assert_eq!(lines[..2], ["6", "0"], "{command}: {said:#?}");
        assert!(said.err.contains("No space left on device"), "{said:#?}");
        assert_eq!(said.err.matches("hint: ").count(), 1, "{said:#?}");
    }
}

#[test]
fn a_full_storage_is_restored_from_and_that_nothing_holds_it_there_is_told() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    let place = home.scratch().join("small");
    fs::create_dir(&place).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=60m none {small} || exit 99
         neon=\"{program} -q\"
         $neon storage attach -n tank {small}/tank > /dev/null
         $neon snapshot create one@a -s tank > /dev/null
         cat /dev/zero > {small}/fill 2> /dev/null
         $neon pg create two --no-start --snapshot one@a > /dev/null; echo $?",
        small = place.display(),
        program = Home::program(),
    );
    let said = ran(&mut home.apart(&script));
    assert_eq!(said.out, "0\n", "{said:#?}");
    assert!(
        said.err
            .contains("warning: storage tank has no room to say that pg two needs snapshot"),
        "{said:#?}"
    );
    home.ok(&["pg", "destroy", "two", "--yes"]);
}
