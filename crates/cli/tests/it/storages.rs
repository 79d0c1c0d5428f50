//! `neon storage …`

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
