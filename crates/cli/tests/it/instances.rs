//! `neon pg …`

use std::process::Command;

use neon_testkit::{Installation, PgMajor};

use crate::support::{Home, ran};
use crate::texts::{redacted, same};

#[test]
fn the_life_of_an_instance_reads_as_in_the_document() {
    let home = Home::new();
    let mut said = String::new();
    let mut show = |arguments: &[&str]| {
        let ran = home.run(arguments);
        assert_eq!(ran.code, 0, "{ran:#?}");
        said.push_str(&format!("> neon {}\n{}", arguments.join(" "), ran.out));
    };
    show(&["pg", "create"]);
    show(&["pg", "list"]);
    show(&["pg", "stop", "pgdata1"]);
    show(&["pg", "list"]);
    show(&["pg", "start", "pgdata1"]);
    show(&["pg", "show", "pgdata1"]);
    show(&["pg", "destroy", "pgdata1", "--yes"]);
    show(&["pg", "list"]);
    show(&["op", "log"]);
    same("instances", &redacted(&said, home.scratch()));
}

#[test]
fn the_uri_works_when_pasted_by_root_and_by_a_plain_user_without_an_environment() {
    let home = Home::new();
    home.ok(&["pg", "create", "p1"]);
    let uri = home.ok(&["pg", "url", "p1"]).trim_end().to_owned();
    let psql = Installation::of(PgMajor::V15).tool("psql").unwrap();
    let ask = |mut command: Command| {
        let ran = ran(command.env_clear().current_dir("/").arg(&psql).args([
            uri.as_str(),
            "-XAtc",
            "select 40 + 2",
        ]));
        assert_eq!(ran.out, "42\n", "{ran:?}");
    };
    ask(Command::new("env"));
    if rustix::process::geteuid().is_root() {
        let mut plain = Command::new("setpriv");
        plain.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "env",
        ]);
        ask(plain);
    }
    // The same by our own verb; a password with an odd character would still be one variable.
    assert_eq!(home.sql("p1", "select current_user"), "postgres");
    // What somebody set to reach another server does not lead there.
    let mut elsewhere = home.command(&["pg", "psql", "p1", "--", "-XAtc", "select 40 + 2"]);
    let elsewhere = ran(elsewhere
        .env("PGHOSTADDR", "127.0.0.2")
        .env("PGSERVICE", "production")
        .env("PGSSLMODE", "verify-full")
        .env("PGOPTIONS", "-c nonsense=1")
        .env("PGPASSFILE", "/nowhere"));
    assert_eq!(elsewhere.out, "42\n", "{elsewhere:?}");
}

#[test]
fn without_psql_it_is_said_how_to_get_one() {
    let home = Home::of(PgMajor::V13);
    home.ok(&["pg", "create", "p1", "--pg-version", "13"]);
    // No client is installed beside that server, and none is on this path.
    let mut none = home.command(&["pg", "psql", "p1"]);
    let none = ran(none.env("PATH", "/nowhere"));
    if Installation::of(PgMajor::V13).tool("psql").is_none() {
        assert_eq!(none.code, 6, "{none:?}");
        assert!(none.err.contains("neon pg url p1"), "{none:?}");
    }
}

#[test]
fn the_log_is_shown() {
    let home = Home::new();
    home.ok(&["pg", "create", "p1"]);
    let mut failing = home.command(&["pg", "psql", "p1", "--", "-Xc", "select no_such_column"]);
    assert_eq!(ran(&mut failing).code, 1, "psql's own exit code");
    let shown = home.ok(&["pg", "logs", "p1", "-n", "50"]);
    assert!(shown.contains("no_such_column"), "{shown}");
}
