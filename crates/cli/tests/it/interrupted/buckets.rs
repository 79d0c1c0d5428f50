//! What goes into a bucket over HTTP, in several parts, and is hit meanwhile: parts that nobody will put together are
//! gone with the next command, or told by the doctor as soon as nobody can be at them any more, and then removed.

use std::sync::OnceLock;
use std::time::Duration;

use neon_testkit::s3::{S3Server, S3ServerOptions};

use super::{PLAIN, Verb, hit_in, quiet, signals_of_many, stage, troubles};
use crate::support::Home;

/// One for all of this process, which ends with it.
fn server() -> &'static S3Server {
    static SERVER: OnceLock<S3Server> = OnceLock::new();
    SERVER.get_or_init(|| S3Server::start(S3ServerOptions::default()))
}

/// Attaches a folder of the bucket that is this storage's alone, so that everything has to be sent each time.
fn attach(home: &Home, name: &str) {
    let locator = format!("s3://bucket/{name}?endpoint={}", server().endpoint());
    home.ok(&["storage", "attach", "-n", name, &locator]);
}

/// Uploads below a storage's folder that are neither completed nor aborted.
fn pending(name: &str) -> Vec<String> {
    let uploads = server().pending_uploads("bucket").into_iter();
    let below = format!("{name}/");
    uploads
        .map(|upload| upload.key)
        .filter(|key| key.starts_with(&below))
        .collect()
}

/// A storage that has what it is to have, and no parts of anything else; it is forgotten.
fn settled(home: &Home, name: &str) {
    home.ok(&["storage", "check", name]);
    let left = pending(name);
    server().age("bucket", Duration::from_secs(2 * 24 * 60 * 60));
    let told = troubles(home);
    assert_eq!(
        told.iter().any(|one| one["code"] == "upload-left"),
        !left.is_empty(),
        "{left:?}: {told:#?}"
    );
    if !left.is_empty() {
        let fixed = home.run(&["doctor", "--fix", "--yes"]);
        assert!([0, 1].contains(&fixed.code), "{fixed:?}");
    }
    assert_eq!(pending(name), Vec::<String>::new());
    home.ok(&["storage", "detach", name, "--yes"]);
}

const PUSH: Verb = Verb {
    before: |home, tag| attach(home, &format!("push-{tag}")),
    hit: |_, tag| format!("snapshot push one@a --to push-{tag}"),
    may: &[0],
    after: |home, tag| settled(home, &format!("push-{tag}")),
    ..PLAIN
};

const CREATE: Verb = Verb {
    before: |home, tag| attach(home, &format!("take-{tag}")),
    hit: |_, tag| format!("snapshot create one@{tag} -s take-{tag}"),
    after: |home, tag| settled(home, &format!("take-{tag}")),
    ..PLAIN
};

/// A home that the bucket lets in, with a snapshot `one@a` that does not go in one part.
fn stage_of_large() -> Home {
    let of = server().options();
    let home = Home::new()
        .with("AWS_ACCESS_KEY_ID", &of.access_key)
        .with("AWS_SECRET_ACCESS_KEY", &of.secret_key)
        .with("AWS_REGION", "us-east-1")
        .with("AWS_EC2_METADATA_DISABLED", "true");
    stage(&home);
    // Cannot be compressed.
    home.sql(
        "one",
        "create table large as select sha512(i::text::bytea) a, sha512((-i)::text::bytea) b, \
         sha512((i + 0.5)::text::bytea) c from generate_series(1, 80000) i",
    );
    home.ok(&["snapshot", "destroy", "one@a", "--yes"]);
    home.ok(&["snapshot", "create", "one@a"]);
    home
}

#[test]
fn what_goes_into_a_bucket_and_is_hit_leaves_no_parts() {
    let home = stage_of_large();
    hit_in(&home, &PUSH, signals_of_many());
    assert!(
        server()
            .objects("bucket")
            .iter()
            .any(|object| object.parts.len() > 1),
        "it goes in parts"
    );
    hit_in(&home, &CREATE, signals_of_many());
    quiet(&home);
}
