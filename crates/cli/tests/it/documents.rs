//! The transcripts of the origin documents, as they are written there. What a person confirms at the prompt there, `--yes`
//! confirms here.

use serde_json::Value;

use crate::contract::documented;
use crate::support::{Home, ran};
use crate::texts::{redacted, same};

#[test]
fn the_second_document() {
    let old = Home::new();
    let home = Home::new();
    let created = old.json(&["pg", "create", "running"]);
    let port = created["port"].as_u64().unwrap();
    let password = created["url"]
        .as_str()
        .unwrap()
        .split([':', '@'])
        .nth(2)
        .unwrap()
        .to_owned();
    old.sql(
        "running",
        "create table t as select g from generate_series(1, 1000) g",
    );
    let from = format!("basebackup://postgres@localhost:{port}/");

    let mut said = String::new();
    let mut neon = |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let ran = ran(home.command(&arguments).env("PGPASSWORD", &password));
        assert_eq!(ran.code, 0, "{line}: {ran:#?}");
        // What a person sees: results and steps.
        said.push_str(&format!(
            "> neon {}\n{}{}",
            line.replace(&from, "FROM"),
            ran.err,
            ran.out
        ));
    };
    neon("pg create");
    neon("pg list");
    neon(&format!("snapshot import --from={from} oldpg"));
    neon("snapshot list");
    neon("pg create --snapshot oldpg");
    neon("pg list");
    neon("snapshot destroy oldpg --yes");
    neon(&format!("pg create --snapshot {from}"));
    neon("snapshot create pgdata1@snap1");
    neon("snapshot list");
    neon("pg checkout pgdata1@snap1 --yes");
    neon("snapshot list");
    neon("pg show pgdata1");
    let file = home.scratch().join("movies_db.neon");
    neon(&format!(
        "snapshot export pgdata1@snap1 --to {}",
        file.display()
    ));
    neon(&format!("pg create --snapshot {} movies", file.display()));
    let elsewhere = home.scratch().join("elsewhere");
    neon(&format!(
        "snapshot push --to {} pgdata1@snap1",
        elsewhere.display()
    ));
    neon("snapshot diff pgdata1@snap1 pgdata1@HEAD{0}");
    for name in ["movies", "pgdata3", "pgdata2", "pgdata1"] {
        if name == "pgdata3" {
            assert_eq!(home.sql("pgdata3", "select count(*) from t"), "1000");
        }
        neon(&format!("pg destroy {name} --yes"));
    }
    same("document-2", &redacted(&said, home.scratch()));
}

/// What `init` and `start` say of when something is stored.
const WHEN: &str = "Nothing is stored in the background: neon stop and neon snapshot create store";

#[test]
fn the_first_document() {
    let home = Home::new();
    let dest = home.scratch().join("dest");
    let dest = dest.to_str().unwrap();
    // Init an empty cluster, start it.
    let made = home.json(&["init", &format!("--storage_dest={dest}")]);
    documented(&made);
    assert_eq!(
        (made["pg"].as_str(), made["storage_dest"].as_str()),
        (Some("main"), Some(dest))
    );
    // When anything is stored is said where it matters.
    for verb in ["init", "start"] {
        let help = home.ok(&["help", verb]);
        assert!(help.contains("Nothing is stored "), "{help}");
        assert!(help.contains("neon snapshot create"), "{help}");
    }
    let said = home.run(&["start"]);
    assert_eq!(said.code, 0, "{said:#?}");
    assert!(said.err.contains(WHEN), "{said:#?}");
    home.ok(&["stop"]);
    let started = home.json(&["start"]);
    documented(&started);
    assert_eq!(started["restored"], Value::Null);
    home.sql("main", "create table t as select 42 as answer");
    // Manually, to a place that is not remembered.
    let copy = home.scratch().join("copy");
    let copy = copy.to_str().unwrap();
    let exported = home.json(&[
        "export",
        "--snapshot_path",
        copy,
        "--snapshot_format=pgdata",
    ]);
    documented(&exported);
    // Not into the repository itself, wherever in it.
    let inside = format!("{dest}/packs/copy");
    let said = home.fails(2, &["export", "--snapshot_path", &inside]);
    assert!(said.contains("is where snapshots go anyway"), "{said}");
    assert!(home.scratch().join("copy/PG_VERSION").exists());
    documented(&home.json(&["stop"]));
    // The home is gone; the storage is the only survivor.
    std::fs::remove_dir_all(home.path()).unwrap();
    let said = home.run(&["start", &format!("--storage-dest={dest}")]);
    assert_eq!(said.code, 0, "{said:#?}");
    assert!(said.out.starts_with("Restored main from "), "{said:#?}");
    assert!(
        said.out.contains(" old\nStarted postgres on localhost:"),
        "{said:#?}"
    );
    assert_eq!(home.sql("main", "select answer from t"), "42");
    // It is another instance by its id, and has the snapshots that go by its name.
    let shown = home.json(&["pg", "show", "main"]);
    let snapshots = shown["spaces"][0]["snapshots"].as_array().unwrap();
    assert_eq!(snapshots[0]["name"], "main@init", "{shown:#}");
    // A directory that is there is used as it is, and nothing of the export was remembered.
    home.ok(&["pg", "stop", "main"]);
    assert_eq!(home.json(&["start"])["restored"], Value::Null);
    home.fails(4, &["start"]);
    // That it runs does not keep down what else ran before a reboot.
    home.ok(&["pg", "create", "other"]);
    let record = home.path().join("state/pg/other.json");
    home.ok(&["pg", "stop", "other"]);
    let unwanted = std::fs::read_to_string(&record).unwrap();
    let wanted = unwanted.replace("\"wanted\": false", "\"wanted\": true");
    assert_ne!(wanted, unwanted);
    std::fs::write(&record, wanted).unwrap();
    let said = home.run(&["start"]);
    assert_eq!(said.code, 0, "{said:#?}");
    assert!(said.out.contains("other: localhost:"), "{said:#?}");
    home.fails(4, &["start"]);
    let settings = home.ok(&["storage", "list"]);
    assert!(!settings.contains(copy), "{settings}");
    // On top of what was there before, in another home.
    let second = Home::new();
    let other = second.scratch().join("dest");
    let begun = second.json(&[
        "init",
        &format!("--snapshot_path={copy}"),
        "--snapshot_format=pgdata",
        &format!("--storage_dest={}", other.display()),
    ]);
    documented(&begun);
    second.ok(&["start"]);
    assert_eq!(second.sql("main", "select answer from t"), "42");
}

#[test]
fn without_an_init_start_says_what_to_do() {
    let home = Home::new();
    let said = home.fails(3, &["start"]);
    assert!(said.contains("hint: neon init"), "{said}");
    home.fails(2, &["init", "-c", "compression=lz4"]);
}

#[test]
fn a_start_that_restores_is_not_passed_over() {
    let home = Home::new();
    let said = home.ok(&["init"]);
    assert!(said.contains(WHEN), "{said}");
    // Something else runs, or should.
    home.ok(&["pg", "create", "other"]);
    let record = home.path().join("state/pg/main.json");
    let ready = std::fs::read_to_string(&record).unwrap();
    home.ok(&["pg", "destroy", "main", "--yes"]);
    // As a restore leaves it that was killed at its beginning.
    let making = ready.replace("\"stage\": \"ready\"", "\"stage\": \"creating\"");
    assert_ne!(making, ready);
    std::fs::write(&record, making).unwrap();
    let started = home.json(&["start"]);
    assert_eq!(started["pg"], "main", "{started:#}");
    assert_eq!(started["restored"]["snapshot"], "main@init", "{started:#}");
    // Nothing to restore it from.
    home.ok(&["pg", "destroy", "main", "--yes"]);
    home.ok(&["snapshot", "destroy", "main@init", "--yes"]);
    home.fails(3, &["start"]);
}

#[test]
fn a_start_whose_port_somebody_else_has_is_no_success() {
    let home = Home::new();
    home.ok(&["init"]);
    home.ok(&["start"]);
    home.ok(&["pg", "stop", "main"]);
    // As after a reboot.
    let record = home.path().join("state/pg/main.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let wanted = text.replace("\"wanted\": false", "\"wanted\": true");
    assert_ne!(wanted, text);
    std::fs::write(&record, &wanted).unwrap();
    let known: serde_json::Value = serde_json::from_str(&wanted).unwrap();
    let port = u16::try_from(known["port"].as_u64().unwrap()).unwrap();
    let theirs = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let said = home.fails(7, &["start"]);
    assert!(said.contains(&format!("port {port}")), "{said}");
    drop(theirs);
    home.ok(&["start"]);
    home.ok(&["stop"]);
}

#[test]
fn a_replica_is_listed_below_its_primary() {
    let home = Home::new();
    home.ok(&["pg", "create", "my_pg"]);
    home.ok(&["pg", "create", "my_pg3", "--no-start"]);
    home.ok(&["pg", "start", "--replica", "my_pg"]);
    home.sql("my_pg", "create table t as select 1 as one");
    let listed = home.ok(&["pg", "list"]);
    same("replicas", &redacted(&listed, home.scratch()));
    documented(&home.json(&["pg", "list"]));
    let shown = home.ok(&["pg", "show", "my_pg-r1"]);
    assert!(shown.contains("replica of: my_pg\n"), "{shown}");
    // Who destroys the primary is told of them.
    let plan = home.ok(&["pg", "destroy", "my_pg", "--dry-run"]);
    assert!(
        plan.contains("its replicas") && plan.contains("my_pg-r1"),
        "{plan}"
    );
    let plan = home.json(&["pg", "destroy", "my_pg", "--dry-run"]);
    assert_eq!(plan["replicas"], serde_json::json!(["my_pg-r1"]));
    documented(&plan);
}
