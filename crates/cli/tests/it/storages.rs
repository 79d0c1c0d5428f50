//! `neon storage …`

use crate::contract::documented;
use crate::support::Home;
use crate::texts::{redacted, same};

#[test]
fn storages_come_and_go() {
    let home = Home::new();
    let tank = home.scratch().join("tank");
    let tank = tank.to_str().unwrap();
    let mut said = String::new();
    let mut show = |arguments: &[&str]| {
        said.push_str(&format!("> neon {}\n", arguments.join(" ")));
        said.push_str(&home.ok(arguments));
    };
    show(&[
        "storage",
        "attach",
        "-t",
        "native",
        "-n",
        "local.compr",
        "-c",
        "compression=zstd:9",
        "--path",
        tank,
    ]);
    show(&["storage", "list"]);
    show(&["storage", "show", "local.compr"]);
    show(&["storage", "detach", "local.compr", "--dry-run"]);
    show(&["storage", "detach", "local.compr", "--yes"]);
    show(&["storage", "list"]);
    same("storages", &redacted(&said, home.scratch()));
}

#[test]
fn a_relative_path_is_meant_from_here() {
    let home = Home::new();
    let attached = home
        .command(&["storage", "attach", "-n", "tank", "tank"])
        .current_dir(home.scratch())
        .output()
        .unwrap();
    assert!(attached.status.success());
    let shown = home.json(&["storage", "show", "tank"]);
    assert_eq!(shown["path"], home.scratch().join("tank").to_str().unwrap());
}

#[test]
fn an_instance_shows_what_it_has_in_each_storage() {
    let home = Home::new();
    let tank = home.scratch().join("tank");
    home.ok(&["storage", "attach", "-n", "tank", tank.to_str().unwrap()]);
    home.ok(&["pg", "create", "one", "--no-start"]);
    home.ok(&["snapshot", "create", "one@a"]);
    // Of one second, and of one place in the log, none is the older.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    home.ok(&["snapshot", "create", "one@b", "-s", "tank"]);
    home.ok(&["snapshot", "push", "--to", "tank", "one@a"]);
    let shown = home.json(&["pg", "show", "one"]);
    documented(&shown);
    let spaces = shown["spaces"].as_array().unwrap();
    let mut found: Vec<(String, Vec<String>)> = spaces
        .iter()
        .map(|space| {
            assert!(space["used"].as_u64().unwrap() > 1 << 20, "{shown:#}");
            let snapshots = space["snapshots"].as_array().unwrap().iter();
            let mut names: Vec<String> = snapshots
                .map(|one| one["name"].as_str().unwrap().to_owned())
                .collect();
            names.sort();
            (space["storage"].as_str().unwrap().to_owned(), names)
        })
        .collect();
    found.sort();
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        found,
        [
            ("local".to_owned(), names(&["one@a"])),
            ("tank".to_owned(), names(&["one@a", "one@b"])),
        ]
    );
    let shown = home.ok(&["pg", "show", "one"]);
    same("pg-show-storages", &redacted(&shown, home.scratch()));
}
