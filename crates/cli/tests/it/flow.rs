//! The main job: create, load, snapshot while it is written to, damage, roll back, branch, push, list.

use std::process::{Child, Stdio};

use neon_testkit::{Installation, PgMajor};
use serde_json::Value;

use crate::support::Home;

/// Transfers without end, in a session of its own, ended when it is dropped.
struct Writer(Child);

impl Writer {
    fn start(home: &Home, major: PgMajor, name: &str) -> Self {
        let psql = Installation::of(major)
            .with_client("psql")
            .tool("psql")
            .unwrap();
        let path = format!("{}:/usr/bin:/bin", psql.parent().unwrap().display());
        let sql = "do $$ declare a int; b int; begin loop \
                   a := 1 + floor(random() * 1000)::int; b := 1 + floor(random() * 1000)::int; \
                   update accounts set balance = balance - 1 where id = a; \
                   update accounts set balance = balance + 1 where id = b; \
                   insert into ledger(at) values (now()); commit; perform pg_sleep(0.002); end loop; end $$";
        let mut command = home.command(&["pg", "psql", name, "--", "-Xq", "-c", sql]);
        let child = command
            .env("PATH", path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended with its server.
        let _gone = self.0.kill();
        let _code = self.0.wait();
    }
}

fn flows(major: PgMajor) {
    let home = Home::of(major);
    let version = major.to_string();
    let created = home.json(&["pg", "create", "p1", "--pg-version", &version]);
    assert_eq!(created["major"], version.as_str());
    home.sql(
        "p1",
        "create table accounts as select g as id, 0 as balance, repeat('x', 90) as filler \
         from generate_series(1, 120000) g; \
         alter table accounts add primary key (id); create table ledger (at timestamptz)",
    );
    for _ in 0..3 {
        home.sql("p1", "checkpoint");
    }

    // While it is written to.
    let writer = Writer::start(&home, major, "p1");
    while home.sql("p1", "select count(*) from ledger") == "0" {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let first = home.json(&["snapshot", "create", "p1@one"]);
    assert_eq!(
        (&first["kind"], &first["parent"]),
        (&Value::from("online"), &Value::Null)
    );
    drop(writer);
    home.sql(
        "p1",
        "select pg_terminate_backend(pid) from pg_stat_activity where query like 'do %'",
    );
    for _ in 0..3 {
        home.sql("p1", "checkpoint");
    }
    home.sql(
        "p1",
        "update accounts set balance = 7 where id between 500 and 510",
    );
    let sum = "select sum(balance) || ' ' || count(*) || ' ' || (select count(*) from ledger) from accounts";
    let before = home.sql("p1", sum);

    // The second one costs what changed, and says how that is known.
    let second = home.json(&["snapshot", "create", "p1@two"]);
    assert_eq!(second["parent"], first["id"]);
    let number = |of: &Value, key: &str| of[key].as_u64().unwrap();
    assert!(
        number(&second, "added") < number(&first, "added") / 2,
        "{first:#} {second:#}"
    );
    assert!(
        number(&second, "read") < number(&first, "read") * 2 / 3,
        "{first:#} {second:#}"
    );
    let source = second["source"].as_str().unwrap();
    assert_ne!(source, "scan", "{second:#}");
    let shown = home.json(&["snapshot", "show", "p1@two"]);
    assert_eq!(shown["facts"]["cost"]["source"], second["source"]);

    // A Monday.
    home.sql("p1", "drop table accounts; delete from ledger");
    let plan = home.json(&["pg", "checkout", "p1@two", "--dry-run"]);
    assert_eq!(
        (&plan["head"], &plan["checked_out"]),
        (&Value::from("p1@HEAD{0}"), &Value::from(false))
    );
    home.ok(&["pg", "checkout", "p1@two", "--yes"]);
    assert_eq!(home.sql("p1", sum), before);

    // A second cluster, as the first was in the midst of its work.
    home.ok(&["pg", "create", "--snapshot", "p1@one", "try"]);
    home.sql("try", "insert into ledger values (now())");
    let balanced = home.sql("try", "select sum(balance), count(*) from accounts");
    assert_eq!(balanced, "0|120000");
    assert_eq!(home.sql("p1", sum), before);

    // To a second storage.
    let tank = home.scratch().join("tank");
    home.ok(&["storage", "attach", "-n", "tank", tank.to_str().unwrap()]);
    home.ok(&["snapshot", "push", "--to", "tank", "p1@two"]);
    let listed = home.json(&["snapshot", "list"]);
    let rows: Vec<String> = listed["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            format!(
                "{} {}",
                one["storage"].as_str().unwrap(),
                one["names"][0].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        rows,
        [
            "local p1@one",
            "local p1@two",
            "local p1@HEAD{0}",
            "tank p1@two"
        ]
    );
    home.ok(&["snapshot", "verify", "p1@two", "-s", "tank", "--digests"]);
    for name in ["p1", "try"] {
        home.ok(&["pg", "destroy", name, "--yes"]);
    }
}

#[test]
fn the_main_job_runs_on_13() {
    flows(PgMajor::V13);
}

#[test]
fn the_main_job_runs_on_14() {
    flows(PgMajor::V14);
}

#[test]
fn the_main_job_runs_on_15() {
    flows(PgMajor::V15);
}

#[test]
fn the_main_job_runs_on_16() {
    flows(PgMajor::V16);
}

#[test]
fn the_main_job_runs_on_17() {
    flows(PgMajor::V17);
}

#[test]
fn the_main_job_runs_on_18() {
    flows(PgMajor::V18);
}
