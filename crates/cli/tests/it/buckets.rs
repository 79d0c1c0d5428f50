//! Buckets that are away, or let nobody in.

use neon_testkit::s3::{S3Server, S3ServerOptions};

use crate::failing::told;
use crate::support::{Home, ran};

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
    told(&with("wrong", &attach), 6, &["storage tank", "caused by: "]);
    let none = ran(home
        .command(&attach)
        .env("AWS_EC2_METADATA_DISABLED", "true"));
    told(&none, 6, &["storage tank", "caused by: "]);
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
