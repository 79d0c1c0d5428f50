//! Buckets that are away, or let nobody in.

use std::process::{Command, Stdio};

use neon_testkit::s3::{S3Server, S3ServerOptions};
use serde_json::Value;

use crate::failing::told;
use crate::support::{Home, Ran, ran};

#[test]
fn a_bucket_that_is_away_or_lets_nobody_in_is_told_so() {
    let server = S3Server::start(S3ServerOptions::default());
    let locator = format!("s3://bucket/x?endpoint={}", server.endpoint());
    let home = Home::new();
    home.ok(&["pg", "create", "one", "--no-start"]);
    let with = |secret: &str, arguments: &[&str]| {
        ran(home
            .command(arguments)
            .env("AWS_ACCESS_KEY_ID", &server.options().access_key)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("AWS_EC2_METADATA_DISABLED", "true"))
    };
    let secret = server.options().secret_key.clone();
    let attach = ["storage", "attach", "-t", "s3", "-n", "tank", &locator];
    // A server that is asked for a head says no more than no.
    let keys = "hint: its credentials do not allow this: have them allow it, or give other ones";
    told(
        &with("wrong", &attach),
        6,
        &["storage tank: does not let us in", "caused by: ", keys],
    );
    let none = ran(home
        .command(&attach)
        .env("AWS_EC2_METADATA_DISABLED", "true"));
    told(&none, 6, &["storage tank", "caused by: ", "hint: "]);
    // The right keys, and no such bucket.
    let nowhere = format!("s3://nowhere/x?endpoint={}", server.endpoint());
    let bucket = [
        "there is no such bucket",
        "hint: see whether what its address names is there, and its options are right",
    ];
    let elsewhere = ["storage", "attach", "-n", "nowhere", &nowhere];
    told(&with(&secret, &elsewhere), 2, &bucket);
    let attached = home.json(&["storage", "list"]);
    assert_eq!(attached["storages"].as_array().unwrap().len(), 1);
    let mut unasked = elsewhere.to_vec();
    unasked.push("--offline");
    assert_eq!(with("wrong", &unasked).code, 0);
    let there = ["snapshot", "create", "one@there", "-s", "nowhere"];
    told(&with(&secret, &there), 2, &bucket);
    home.ok(&["storage", "detach", "nowhere", "--yes"]);
    let here = ["snapshot", "create", "one@here"];
    assert_eq!(with(&secret, &here).code, 0);
    let push = ["snapshot", "push", "--to", &nowhere, "one@here"];
    told(&with(&secret, &push), 2, &bucket);
    assert_eq!(with(&secret, &attach).code, 0);
    let create = ["snapshot", "create", "one@a", "-s", "tank"];
    told(&with("wrong", &create), 6, &["storage tank", "caused by: "]);
    assert_eq!(with(&secret, &create).code, 0);
    let sound = with(&secret, &["doctor", "--output", "json"]);
    assert_eq!(sound.code, 0, "{sound:?}");
    drop(server.pending_uploads("bucket"));
    assert!(server.pending_uploads("bucket").is_empty());
    drop(server);
    let away = ran(home
        .command(&["snapshot", "create", "one@b", "-s", "tank"])
        .env("AWS_ACCESS_KEY_ID", "x")
        .env("AWS_SECRET_ACCESS_KEY", "y"));
    told(&away, 1, &["storage tank", "caused by: "]);
    // What needs no bucket goes on.
    home.ok(&["pg", "list"]);
    home.ok(&["snapshot", "create", "one@c", "-s", "local"]);
}

/// A home whose commands reach a server's bucket `bucket`, attached as `tank`.
fn reaching(server: &S3Server) -> impl Fn(&Home, &[&str]) -> Ran {
    let of = server.options();
    let (key, secret) = (of.access_key.clone(), of.secret_key.clone());
    move |home, arguments| ran(&mut keyed(home, arguments, &key, &secret))
}

fn keyed(home: &Home, arguments: &[&str], key: &str, secret: &str) -> Command {
    let mut command = home.command(arguments);
    command
        .env("AWS_ACCESS_KEY_ID", key)
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

#[test]
fn of_two_homes_with_one_name_for_a_bucket_the_later_is_told_and_both_states_come_back() {
    let server = S3Server::start(S3ServerOptions::default());
    let of = reaching(&server);
    let locator = format!("s3://bucket/x?endpoint={}", server.endpoint());
    let attach = ["storage", "attach", "-t", "s3", "-n", "tank", &locator];
    let homes = [Home::new(), Home::new()];
    for (number, home) in homes.iter().enumerate() {
        assert_eq!(of(home, &attach).code, 0);
        home.ok(&["pg", "create", "one"]);
        home.sql("one", &format!("create table t as select {number} as i"));
        home.ok(&["snapshot", "create", "one@a"]);
    }
    let [first, later] = &homes;
    let push = ["snapshot", "push", "--to", "tank", "one@a"];
    let pushed = of(first, &push);
    assert_eq!(pushed.code, 0, "{pushed:#?}");
    told(&of(later, &push), 4, &["one@a", "hint: "]);
    // Of two at once one has the name. The other one is told before, or has its snapshot under its id.
    let create = ["-o", "json", "snapshot", "create", "one@b", "-s", "tank"];
    let options = server.options();
    let both = homes.each_ref().map(|home| {
        keyed(home, &create, &options.access_key, &options.secret_key)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let both = both.map(|child| child.wait_with_output().unwrap());
    let codes = both.each_ref().map(|done| done.status.code().unwrap());
    let winner = codes.iter().position(|code| *code == 0).unwrap();
    let other = codes[1 - winner];
    assert!([4, 7].contains(&other), "{both:#?}");

    // A third home that knows only the bucket.
    let third = Home::new();
    assert_eq!(of(&third, &attach).code, 0);
    let made = |name: &str, snapshot: &str, more: &[&str]| {
        let mut create = vec!["pg", "create", name, "--snapshot", snapshot];
        create.extend(more);
        let made = of(&third, &create);
        assert_eq!(made.code, 0, "{made:#?}");
    };
    made("a", "one@a", &["--no-start"]);
    made("b", "one@b", &[]);
    assert_eq!(third.sql("b", "select i from t"), winner.to_string());
    if other == 7 {
        let taken: Value = serde_json::from_slice(&both[1 - winner].stdout).unwrap();
        assert!(taken["name_lost"].is_string(), "{taken:#}");
        let id = taken["id"].as_str().unwrap();
        made("c", id, &[]);
        assert_eq!(third.sql("c", "select i from t"), (1 - winner).to_string());
    }
    // What was refused is where it was, and goes there under another name.
    let kept = ["pg", "create", "back", "--snapshot", "one@a", "-s", "local"];
    let kept = of(later, &kept);
    assert_eq!(kept.code, 0, "{kept:#?}");
    assert_eq!(later.sql("back", "select i from t"), "1");
}

#[test]
fn keys_of_a_profile_are_named_with_init_and_start() {
    let server = S3Server::start(S3ServerOptions::default());
    let home = Home::new();
    let file = home.scratch().join("credentials");
    let of = server.options();
    std::fs::write(
        &file,
        format!(
            "[default]\naws_access_key_id=nobody\naws_secret_access_key=none\n\
             [tank]\naws_access_key_id={}\naws_secret_access_key={}\n",
            of.access_key, of.secret_key
        ),
    )
    .unwrap();
    let endpoint = format!("endpoint={}", server.endpoint());
    let with = |verb: &str, options: &[&str]| {
        let mut all = vec![verb];
        all.extend(options);
        ran(home
            .command(&all)
            .env("AWS_SHARED_CREDENTIALS_FILE", &file)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true"))
    };
    let dest = "--storage_dest=s3://bucket/prefix";
    let place = [dest, "-c", &endpoint, "-c", "path-style=on"];
    let mut profile = place.to_vec();
    profile.extend(["-c", "profile=tank"]);
    told(
        &with("init", &place),
        6,
        &["does not let us in", "or give other ones"],
    );
    let made = with("init", &profile);
    assert_eq!(made.code, 0, "{made:#?}");
    // It is remembered with the storage.
    let started = with("start", &[]);
    assert_eq!(started.code, 0, "{started:#?}");
    home.sql("main", "create table t as select 42 as answer");
    let stopped = with("stop", &[]);
    assert_eq!(stopped.code, 0, "{stopped:#?}");
    std::fs::remove_dir_all(home.path()).unwrap();
    told(
        &with("start", &place),
        6,
        &["does not let us in", "or give other ones"],
    );
    let started = with("start", &profile);
    assert_eq!(started.code, 0, "{started:#?}");
    assert_eq!(home.sql("main", "select answer from t"), "42");
}
