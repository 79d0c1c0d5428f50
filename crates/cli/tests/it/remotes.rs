//! Storages on other machines: a bucket, a web server, an `sshd`. The same life of a snapshot in each, and homes that know
//! nothing else.

use std::ffi::OsStr;
use std::process::Command;

use neon_testkit::Scratch;
use neon_testkit::s3::{S3Server, S3ServerOptions};
use neon_testkit::sshd::Sshd;
use neon_testkit::web::Web;
use serde_json::Value;

use crate::failing::told;
use crate::support::{Home, Ran, ran};

/// A home, and what its commands have in their environment besides.
struct Reaching<'a> {
    home: Home,
    environment: Vec<(&'a str, String)>,
}

impl<'a> Reaching<'a> {
    fn new(environment: &[(&'a str, String)]) -> Self {
        Self {
            home: Home::new(),
            environment: environment.to_vec(),
        }
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = self.home.command(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        ran(&mut self.command(arguments))
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:#?}");
        ran.out
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// The names of the snapshots in a storage.
    fn names(&self, storage: &str) -> Vec<String> {
        let listed = self.json(&["snapshot", "list", "-s", storage]);
        let listed = listed["snapshots"].as_array().unwrap();
        let mut names: Vec<String> = listed
            .iter()
            .flat_map(|one| one["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }
}

fn credentials(server: &S3Server) -> Vec<(&'static str, String)> {
    let of = server.options();
    vec![
        ("AWS_ACCESS_KEY_ID", of.access_key.clone()),
        ("AWS_SECRET_ACCESS_KEY", of.secret_key.clone()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
}

/// A snapshot is taken, pushed, listed, pulled, made an instance of, destroyed and collected.
fn lives(environment: &[(&str, String)], attach: &[&str], pull_from: &str) {
    let one = Reaching::new(environment);
    one.ok(attach);
    one.ok(&["pg", "create", "one"]);
    one.home
        .sql("one", "create table t as select generate_series(1, 1000) i");
    // Taken here and pushed, and taken there at once.
    let here = one.json(&["snapshot", "create", "one@here"]);
    let pushed = one.json(&["snapshot", "push", "--to", "tank", "one@here"]);
    assert_eq!(pushed["id"], here["id"]);
    assert!(pushed["sent"].as_u64().unwrap() > 1 << 20, "{pushed:#}");
    let again = one.json(&["snapshot", "push", "--to", "tank", "one@here"]);
    assert_eq!(again["sent"], 0, "{again:#}");
    one.home.sql("one", "insert into t values (0)");
    let there = one.json(&["snapshot", "create", "one@there", "-s", "tank"]);
    assert!(
        there["added"].as_u64() < pushed["sent"].as_u64(),
        "{there:#}"
    );
    assert_eq!(one.names("tank"), ["one@here", "one@there"]);
    let used = one.json(&["storage", "show", "tank"]);
    assert!(used["used"].as_u64().unwrap() > 1 << 20, "{used:#}");
    let checked = one.run(&["storage", "check", "tank"]);
    assert_eq!(checked.code, 0, "{checked:#?}");
    one.ok(&["pg", "stop", "one"]);

    // A second home that knows only the place.
    let two = Reaching::new(environment);
    let pulled = two.json(&["snapshot", "pull", "--from", pull_from, "one@here"]);
    assert_eq!(pulled["id"], here["id"]);
    two.ok(attach);
    two.ok(&["pg", "create", "copy", "--snapshot", "one@there"]);
    assert_eq!(two.home.sql("copy", "select count(*) from t"), "1001");
    let back = two.run(&[
        "pg",
        "create",
        "older",
        "--snapshot",
        "one@here",
        "-s",
        "local",
    ]);
    assert_eq!(back.code, 0, "{back:#?}");
    assert_eq!(two.home.sql("older", "select count(*) from t"), "1000");
    let verified = two.run(&["snapshot", "verify", "one@there"]);
    assert_eq!(verified.code, 0, "{verified:#?}");

    // What is destroyed there is announced, and what others need stays.
    one.ok(&["snapshot", "destroy", "one@here", "-s", "tank", "--yes"]);
    assert_eq!(two.names("tank"), ["one@there"]);
    let planned = one.json(&["storage", "gc", "tank", "--dry-run"]);
    assert!(
        planned["snapshots"]
            .as_array()
            .is_some_and(|all| !all.is_empty()),
        "{planned:#}"
    );
    one.ok(&["storage", "gc", "tank", "--yes"]);
    let checked = two.run(&["storage", "check", "tank"]);
    assert_eq!(checked.code, 0, "{checked:#?}");
    two.ok(&["pg", "destroy", "copy", "--yes"]);
    two.ok(&["pg", "destroy", "older", "--yes"]);
    two.ok(&[
        "pg",
        "create",
        "last",
        "--snapshot",
        "one@there",
        "--no-start",
    ]);
}

#[test]
fn snapshots_live_in_a_bucket() {
    let server = S3Server::start(S3ServerOptions::default());
    let endpoint = format!("endpoint={}", server.endpoint());
    let attach = [
        "storage",
        "attach",
        "-t",
        "s3",
        "-n",
        "tank",
        "-c",
        &endpoint,
        "-c",
        "path-style=on",
        "s3://bucket/neon",
    ];
    let from = format!("s3://bucket/neon?{endpoint}&path-style=true");
    lives(&credentials(&server), &attach, &from);
    assert!(server.pending_uploads("bucket").is_empty());
}

#[test]
fn snapshots_live_on_another_machine_behind_ssh() {
    let sshd = Sshd::start();
    let far = Scratch::new();
    let place = format!("ssh://backups{}/tank", far.path().display());
    let attach = ["storage", "attach", "-t", "ssh", "-n", "tank", &place];
    let program = sshd.ssh(true);
    let folder = program.parent().unwrap().display();
    let path = format!("{folder}:/usr/bin:/bin");
    lives(&[("PATH", path.clone())], &attach, &place);
    // By its address alone: nothing is attached for that, here or there.
    let address = format!("ssh://backups{}/other", far.path().display());
    let one = Reaching::new(&[("PATH", path.clone())]);
    one.ok(&["pg", "create", "one", "--no-start"]);
    let taken = one.json(&["snapshot", "create", "one@a"]);
    let pushed = one.json(&["snapshot", "push", "--to", &address, "one@a"]);
    assert_eq!(pushed["id"], taken["id"]);
    let two = Reaching::new(&[("PATH", path)]);
    let pulled = two.json(&["snapshot", "pull", "--from", &address, "one@a"]);
    assert_eq!(pulled["id"], taken["id"]);
    for home in [&one, &two] {
        let known = home.json(&["storage", "list"]);
        assert_eq!(known["storages"].as_array().unwrap().len(), 1, "{known:#}");
    }
    two.ok(&["pg", "create", "copy", "--snapshot", "one@a", "--no-start"]);
    // One whose key nobody knows is not asked about, and not written to.
    let stranger = sshd.ssh(false);
    let folder = stranger.parent().unwrap().display();
    let other = Reaching::new(&[("PATH", format!("{folder}:/usr/bin:/bin"))]);
    told(&other.run(&attach), 6, &["storage tank", "caused by: "]);
}

#[test]
fn a_storage_behind_http_is_read_and_never_written() {
    let one = Reaching::new(&[]);
    one.ok(&["pg", "create", "one"]);
    one.home
        .sql("one", "create table t as select generate_series(1, 1000) i");
    let taken = one.json(&["snapshot", "create", "one@a"]);
    one.ok(&["pg", "stop", "one"]);
    let file = one.home.scratch().join("movies.neon");
    one.ok(&[
        "snapshot",
        "export",
        "one@a",
        "--to",
        file.to_str().unwrap(),
    ]);
    let web = Web::of(one.home.scratch());

    let two = Reaching::new(&[]);
    let url = format!("{}/home/store/local", web.address);
    two.ok(&[
        "storage", "attach", "-t", "http", "-n", "web", "--url", &url,
    ]);
    two.ok(&["pg", "create", "copy", "--snapshot", "one@a"]);
    assert_eq!(two.home.sql("copy", "select count(*) from t"), "1000");
    let id = taken["id"].as_str().unwrap();
    two.ok(&["pg", "create", "by-id", "--snapshot", id, "--no-start"]);
    told(
        &two.run(&["pg", "create", "none", "--snapshot", "one@none"]),
        3,
        &["one@none"],
    );
    // What was destroyed is not found there either.
    one.ok(&["snapshot", "create", "one@gone"]);
    one.ok(&["snapshot", "destroy", "one@gone", "--yes"]);
    told(
        &two.run(&["pg", "create", "gone", "--snapshot", "one@gone"]),
        3,
        &["one@gone"],
    );
    let pulled = two.json(&["snapshot", "pull", "--from", "web", "one@a"]);
    assert!(pulled["sent"].as_u64().unwrap() > 1 << 20, "{pulled:#}");
    assert_eq!(two.names("local"), ["one@a"]);
    // HTTP lists nothing, and takes nothing.
    let listed = two.run(&["snapshot", "list", "-s", "web"]);
    told(&listed, 2, &["storage web"]);
    let pushed = two.run(&["snapshot", "push", "--to", "web", "one@a"]);
    told(&pushed, 2, &["storage web"]);
    let taken = two.run(&["snapshot", "create", "copy@b", "-s", "web"]);
    told(&taken, 2, &["storage web"]);
    // One file of it, straight into an instance.
    let file = format!("{}/movies.neon", web.address);
    two.ok(&["pg", "create", "movies", "--snapshot", &file]);
    assert_eq!(two.home.sql("movies", "select count(*) from t"), "1000");
    assert_eq!(two.names("local"), ["one@a"]);
}

#[test]
fn the_bucket_is_the_only_survivor() {
    let server = S3Server::start(S3ServerOptions::default());
    let reaching = Reaching::new(&credentials(&server));
    let endpoint = format!("endpoint={}", server.endpoint());
    let dest = "--storage_dest=s3://bucket/prefix";
    let options = ["-c", &endpoint, "-c", "path-style=on"];
    let with = |verb: &str| -> Ran {
        let mut all = vec![verb, dest];
        all.extend(options);
        reaching.run(&all)
    };
    let made = with("init");
    assert_eq!(made.code, 0, "{made:#?}");
    reaching.ok(&["start"]);
    let home = &reaching.home;
    home.sql("main", "create table t as select 42 as answer");
    reaching.ok(&["stop"]);
    std::fs::remove_dir_all(home.path()).unwrap();
    let said = with("start");
    assert_eq!(said.code, 0, "{said:#?}");
    assert!(said.out.starts_with("Restored main from "), "{said:#?}");
    assert!(said.out.contains(" old\n"), "{said:#?}");
    assert_eq!(home.sql("main", "select answer from t"), "42");
    // It is remembered now, and a directory that is there is used.
    home.sql("main", "insert into t values (43)");
    reaching.ok(&["stop"]);
    let started = reaching.json(&["start"]);
    assert_eq!(started["restored"], Value::Null);
    assert_eq!(home.sql("main", "select count(*) from t"), "2");
    reaching.ok(&["pg", "stop", "main"]);
    // No secret is kept.
    let secret = &server.options().secret_key;
    let found = Command::new("grep")
        .args(["-rlF", secret])
        .arg(home.path().join("state"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}
