//! The transcripts of the origin documents, as they are written there. What a person confirms at the prompt there, `--yes`
//! confirms here.

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
