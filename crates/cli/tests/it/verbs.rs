//! Verbs that the main job does not use, and what goes wrong in them.

use std::process::Command;

use neon_testkit::{Installation, PgMajor};
use serde_json::Value;

use crate::contract::documented;
use crate::support::{Home, offering, ran};

/// An instance that does not run, with a snapshot of it.
fn with_snapshot() -> Home {
    let home = Home::new();
    home.ok(&["pg", "create", "p", "--no-start", "--pg-version", "15"]);
    home.ok(&["snapshot", "create", "p@a"]);
    home
}

#[test]
fn a_stock_program_takes_what_is_offered() {
    let home = with_snapshot();
    let serve = ["-o", "ndjson", "snapshot", "serve", "p@a"];
    let (mut offer, about) = offering(&mut home.command(&serve));
    documented(&about);
    let target = home.scratch().join("taken");
    let command = about["command"]
        .as_str()
        .unwrap()
        .replace("DIRECTORY", target.to_str().unwrap());
    let programs = Installation::of(PgMajor::V15).bin_dir();
    let taken = ran(Command::new("sh")
        .args(["-c", &command])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .env("PGPASSWORD", about["password"].as_str().unwrap()));
    assert_eq!(taken.code, 0, "{taken:?}");
    assert!(target.join("backup_manifest").exists());
    assert_eq!(
        offer.wait().unwrap().code(),
        Some(0),
        "the offer ends with its last backup"
    );
}

#[test]
fn a_snapshot_is_proved_and_damage_is_exit_code_5() {
    let home = with_snapshot();
    let proved = home.json(&["snapshot", "verify", "p@a"]);
    documented(&proved);
    assert_eq!(proved["server"]["findings"].as_array().unwrap().len(), 0);
    home.ok(&["storage", "check", "local", "--data"]);
    // One byte of the largest pack.
    let mut packs = Vec::new();
    let mut folders = vec![home.path().join("store/local/packs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                packs.push((meta.len(), entry.path()));
            }
        }
    }
    let (size, pack) = packs.into_iter().max().unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[usize::try_from(size / 3).unwrap()] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    for arguments in [
        &["snapshot", "verify", "p@a", "--digests"][..],
        &["storage", "check", "local", "--data"],
    ] {
        let found = home.run(arguments);
        assert_eq!(found.code, 5, "{found:#?}");
        assert!(
            found.out.contains("in snapshot ") || found.out.contains("is damaged"),
            "{found:#?}"
        );
        // Told once, with what to do.
        let told = found.out.matches("its bytes are not those").count();
        assert_eq!(told, 1, "{found:#?}");
        assert!(found.err.contains("note: what still reads"), "{found:#?}");
    }
    let refused = home.run(&["pg", "create", "--snapshot", "p@a", "--no-start"]);
    assert_eq!(refused.code, 5, "{refused:#?}");
    assert_eq!(
        home.json(&["pg", "list"])["instances"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_sealed_storage_opens_with_its_passphrase_only() {
    let home = with_snapshot();
    let vault = home.scratch().join("vault");
    home.ok(&[
        "storage",
        "attach",
        "-n",
        "vault",
        "-c",
        "encryption=on",
        vault.to_str().unwrap(),
    ]);
    let push = |passphrase: Option<&str>| {
        let mut command = home.command(&["snapshot", "push", "--to", "vault", "p@a"]);
        if let Some(passphrase) = passphrase {
            command.env("NEON_PASSPHRASE", passphrase);
        }
        ran(&mut command)
    };
    let none = push(None);
    assert_eq!(none.code, 6, "{none:?}");
    assert!(none.err.contains("hint: set NEON_PASSPHRASE"), "{none:?}");
    let right = push(Some("right"));
    assert_eq!(right.code, 0, "{right:?}");
    let mut wrong = home.command(&["snapshot", "list", "-s", "vault"]);
    let wrong = ran(wrong.env("NEON_PASSPHRASE", "wrong"));
    assert_ne!(wrong.code, 0, "{wrong:?}");
    // All storages are listed but this one, which is said: exit code 7.
    let part = home.run(&["snapshot", "list"]);
    assert_eq!(part.code, 7, "{part:?}");
    assert!(
        part.out.contains("p@a") && part.err.contains("storage vault"),
        "{part:?}"
    );
}

#[test]
fn blocks_are_shared_or_it_fails() {
    let home = with_snapshot();
    let made = home.run(&[
        "-o",
        "json",
        "pg",
        "create",
        "--snapshot",
        "p@a",
        "q",
        "--cow",
        "--no-start",
    ]);
    if made.code == 0 {
        // A file system that shares blocks.
        let made: Value = serde_json::from_str(&made.out).unwrap();
        assert_ne!(made["method"], "copy");
    } else {
        assert_eq!(made.code, 6, "{made:?}");
        home.fails(3, &["pg", "show", "q"]);
    }
    let copied = home.json(&[
        "pg",
        "create",
        "--snapshot",
        "p@a",
        "r",
        "--clone-method",
        "copy",
        "--no-start",
    ]);
    assert_eq!(copied["method"], "copy");
    home.fails(2, &["pg", "create", "--cow"]);
}

#[test]
fn a_cluster_of_somebody_else_is_adopted_and_forgotten() {
    let theirs = Home::new();
    theirs.ok(&["pg", "create", "theirs", "--pg-version", "15"]);
    theirs.sql("theirs", "create table t as select 7 as seven");
    let folder = theirs.path().join("pg/theirs");
    let home = Home::new();
    let adopted = home.json(&[
        "pg",
        "adopt",
        folder.join("data").to_str().unwrap(),
        "-n",
        "shop",
        "--pass-file",
        folder.join("pgpass").to_str().unwrap(),
    ]);
    documented(&adopted);
    home.ok(&["snapshot", "create", "shop@a"]);
    home.ok(&["pg", "create", "--snapshot", "shop@a", "copy"]);
    assert_eq!(home.sql("copy", "select seven from t"), "7");
    let plan = home.ok(&["pg", "destroy", "shop", "--dry-run"]);
    assert!(plan.contains("will be forgotten"), "{plan}");
    home.ok(&["pg", "destroy", "shop", "--yes"]);
    assert_eq!(theirs.sql("theirs", "select seven from t"), "7");
}

#[test]
fn the_trash_shows_what_it_holds_and_is_emptied() {
    let home = Home::new();
    for name in ["one", "two"] {
        home.ok(&["pg", "create", name, "--no-start"]);
        let gone = home.run(&["pg", "destroy", name, "--yes"]);
        assert_eq!((gone.code, gone.out.as_str()), (0, "Ok\n"), "{gone:?}");
        assert!(
            gone.err.contains("neon pg trash --empty frees them"),
            "{gone:?}"
        );
    }
    let trash = home.json(&["pg", "trash"]);
    documented(&trash);
    let names = |trash: &Value| -> Vec<String> {
        let all = trash["trash"].as_array().unwrap().iter();
        all.map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut both = names(&trash);
    both.sort();
    assert_eq!(both, ["one", "two"]);
    assert!(trash["trash"][0]["used"].as_u64().unwrap() > 1 << 20);
    home.fails(2, &["pg", "trash", "--empty"]);
    let plan = home.json(&["pg", "trash", "--empty", "--dry-run"]);
    assert_eq!(
        (&plan["emptied"], names(&plan).len()),
        (&Value::from(false), 2)
    );
    let done = home.json(&["pg", "trash", "two", "--empty", "--yes"]);
    documented(&done);
    assert_eq!(names(&done), ["two"]);
    assert_eq!(names(&home.json(&["pg", "trash"])), ["one"]);
    let folders = || {
        std::fs::read_dir(home.path().join("trash"))
            .unwrap()
            .count()
    };
    assert_eq!(folders(), 1);
    home.ok(&["pg", "trash", "--empty", "--yes"]);
    assert_eq!(folders(), 0);
    assert_eq!(home.json(&["pg", "trash", "--empty", "--yes"])["freed"], 0);
    let none = home.fails(3, &["undo", "--yes"]);
    assert!(none.contains("trash"), "{none}");
}

#[test]
fn what_the_trash_does_not_remember_is_shown_and_emptied_too() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    home.ok(&["pg", "destroy", "one", "--yes"]);
    let id = home.json(&["pg", "trash"])["trash"][0]["id"].clone();
    let id = id.as_str().unwrap();
    let (records, trash) = (home.path().join("state/trash"), home.path().join("trash"));
    std::fs::remove_file(records.join(format!("{id}.json"))).unwrap();
    let shown = home.run(&["pg", "trash"]);
    assert!(shown.out.contains(id), "{shown:?}");
    assert!(shown.err.contains("no undo brings it back"), "{shown:?}");
    let shown = home.json(&["pg", "trash"]);
    documented(&shown);
    let left = &shown["trash"][0];
    assert_eq!((&left["id"], &left["name"]), (&id.into(), &"one".into()));
    assert_eq!(left["left"], trash.join(id).to_str().unwrap());
    home.fails(3, &["pg", "trash", "--empty", "other", "--yes"]);
    home.fails(2, &["pg", "trash", "--empty"]);
    let done = home.json(&["pg", "trash", "--empty", "one", "--yes"]);
    assert!(done["freed"].as_u64().unwrap() > 1 << 20, "{done}");
    assert!(!trash.join(id).exists());
}

#[test]
fn what_is_told_on_the_way_is_json_too_if_asked() {
    let home = with_snapshot();
    let taken = home.run(&["-o", "ndjson", "snapshot", "create", "p@b"]);
    assert_eq!(taken.code, 0, "{taken:?}");
    assert!(!taken.err.is_empty());
    for line in taken.err.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["event"].is_string(), "{line}");
        documented(&event);
    }
    assert_eq!(home.run(&["-q", "snapshot", "create", "p@c"]).err, "");
}

#[test]
fn two_commands_on_one_instance_wait_or_say_who_is_at_it() {
    let home = with_snapshot();
    let lock = std::fs::File::open(home.path().join("state/pg/p.lock")).unwrap();
    lock.lock().unwrap();
    let mut busy = home.command(&["pg", "start", "p"]);
    let busy = ran(busy.env("NEON_PATIENCE", "0"));
    assert_eq!(busy.code, 4, "{busy:?}");
    assert!(busy.err.contains("another command is at it"), "{busy:?}");
    drop(lock);
    home.ok(&["pg", "start", "p"]);
}

#[test]
fn a_plain_user_does_it_all() {
    if !rustix::process::geteuid().is_root() {
        // All other tests are run by one.
        return;
    }
    let home = Home::new();
    let plain = |arguments: &[&str]| {
        let ours = home.command(arguments);
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--clear-groups",
        ]);
        command
            .arg(ours.get_program())
            .args(ours.get_args())
            .env_clear();
        command.envs(
            ours.get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        );
        let ran = ran(command.current_dir("/"));
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:#?}");
        ran.out
    };
    plain(&["pg", "create", "p", "--pg-version", "15"]);
    plain(&["snapshot", "create", "p@a"]);
    plain(&["pg", "checkout", "p@a", "--yes"]);
    plain(&["pg", "create", "--snapshot", "p@a", "q"]);
    assert!(plain(&["pg", "list"]).contains("primary  q"));
    for name in ["p", "q"] {
        plain(&["pg", "destroy", name, "--yes"]);
    }
}

#[test]
fn what_is_not_there_leaves_nothing_and_what_is_refused_says_what_to_do() {
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    home.ok(&["snapshot", "create", "one@a"]);
    // No lock of a name that nobody has, or has any more.
    home.fails(3, &["pg", "stop", "nobody"]);
    home.ok(&["pg", "create", "two", "--snapshot", "one@a", "--no-start"]);
    home.ok(&["pg", "destroy", "two", "--yes"]);
    let state = std::fs::read_dir(home.path().join("state/pg")).unwrap();
    let mut names: Vec<String> = state
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["one.json", "one.lock"]);
    // Why blocks are not shared is for who asked to share them.
    let made = home.run(&["pg", "create", "three", "--snapshot", "one@a", "--no-start"]);
    assert!(!made.err.contains("note: "), "{made:#?}");
    // A file may be called what no snapshot is called.
    let file = home.scratch().join("head.neon");
    let file = file.to_str().unwrap();
    home.ok(&["snapshot", "export", "one@a", "--to", file]);
    let imported = home.json(&["snapshot", "import", "--from", file]);
    assert_eq!(imported["name"], "import1");
    let said = home.fails(3, &["snapshot", "import", "--from", "one@a"]);
    assert!(said.contains("needs no import"), "{said}");
    // Where an instance keeps its snapshots stays, and is named.
    let tank = home.scratch().join("tank");
    home.ok(&["storage", "attach", "-n", "tank", tank.to_str().unwrap()]);
    home.ok(&["pg", "create", "four", "-s", "tank", "--no-start"]);
    let said = home.fails(4, &["storage", "detach", "tank", "--yes"]);
    assert!(said.contains("is where pg four keep"), "{said}");
    assert!(said.contains("neon pg destroy four"), "{said}");
    home.ok(&["pg", "destroy", "four", "--yes"]);
    home.ok(&["storage", "detach", "tank", "--yes"]);
    // A mistyped place is not made.
    let other = Home::new();
    let typo = other.scratch().join("far/away");
    let place = format!("--storage_dest={}", typo.display());
    other.fails(3, &["start", &place]);
    assert!(!other.scratch().join("far").exists());
    // Of one there is one.
    let checked = home.ok(&["snapshot", "check", "one@a"]);
    assert!(checked.contains(": 1 snapshot, "), "{checked}");
}
