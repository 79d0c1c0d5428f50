//! Snapshots between storages: pushed, pulled, shared by several homes.

use std::collections::BTreeMap;
use std::path::Path;

use neon_pg::{
    ErrorKind, Event, ExportFormat, ExportOptions, Locator, Neon, Options, PgMajor, Pulled, Remote,
    StorageType, Storages,
};
use neon_storage::Variables;
use neon_testkit::s3::{S3Server, S3ServerOptions};
use neon_testkit::{Cluster, StopMode};

use crate::moving::{boots, found, holds_what_was_filled, import, source};
use crate::restored::listening;
use crate::support::{Fixture, name, refused};
use neon_testkit::web::Web;

const BUCKET: &str = "tank";

pub(crate) fn s3() -> S3Server {
    S3Server::start(S3ServerOptions {
        buckets: vec![BUCKET.to_owned()],
        ..S3ServerOptions::default()
    })
}

/// What a person has in the environment.
pub(crate) fn credentials(server: &S3Server, options: &mut Options) {
    let of = server.options();
    options.context.variables = [
        ("AWS_ACCESS_KEY_ID", of.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", of.secret_key.as_str()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .into_iter()
    .collect::<Variables>();
}

pub(crate) fn s3_options(server: &S3Server) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("endpoint".to_owned(), server.endpoint()),
        ("path-style".to_owned(), "on".to_owned()),
    ])
}

pub(crate) async fn attach_s3(neon: &Neon, server: &S3Server) {
    let place = Storages::place(Some(StorageType::S3), Some("s3://tank/neon"), None, None).unwrap();
    neon.storages()
        .attach(&name("s3tank"), &place, s3_options(server))
        .await
        .unwrap();
}

async fn attach_folder(neon: &Neon, named: &str, place: &Path, options: &[(&str, &str)]) {
    let options = options
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let place = Storages::place(None, None, Some(place), None).unwrap();
    neon.storages()
        .attach(&name(named), &place, options.collect())
        .await
        .unwrap();
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_through_plain_and_encrypted_storages_and_stays_the_same() {
    let home = Fixture::having(PgMajor::V15, |options| {
        options.passphrase = Some("correct horse".into());
    });
    let cluster = source(PgMajor::V15);
    import(&home, &text(&cluster.data_dir()), "old")
        .await
        .unwrap();
    let neon = &home.neon;
    let tank = home.scratch.path().join("tank");
    let safe = home.scratch.path().join("safe");
    attach_folder(neon, "tank", &tank, &[("compression", "lz4")]).await;
    attach_folder(neon, "safe", &safe, &[("encryption", "on")]).await;
    let snapshots = neon.snapshots();
    let first = found(&home, "old").await;

    let pushed = snapshots
        .push(&first, &Remote::parse("safe").unwrap())
        .await
        .unwrap();
    assert_eq!(pushed.id, first.id);
    assert!(pushed.sent > 0 && pushed.size > pushed.sent);
    // Again: nothing is sent.
    let again = snapshots
        .push(&first, &Remote::parse("safe").unwrap())
        .await
        .unwrap();
    assert_eq!((again.id, again.sent, again.packs_sent), (first.id, 0, 0));

    // Out of the encrypted one into a plain one, by its path.
    let from_safe = snapshots.find("old", Some(&name("safe"))).await.unwrap();
    assert!(from_safe.repository.repository.is_encrypted());
    let to = Remote::parse(&text(&tank)).unwrap();
    let pushed = snapshots.push(&from_safe, &to).await.unwrap();
    assert_eq!((pushed.id, pushed.to.as_str()), (first.id, "storage tank"));
    let checked = neon.storages().check(&name("tank"), true).await.unwrap();
    assert!(checked.is_sound() && checked.pages > 0, "{checked:?}");
    assert!(
        neon.storages()
            .check(&name("safe"), true)
            .await
            .unwrap()
            .is_sound()
    );

    // Into a second home, which was not given the key, and then was.
    let other = Fixture::new();
    let from = Remote::parse(&text(&safe)).unwrap();
    let error = other
        .neon
        .snapshots()
        .pull(&from, "old", None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    assert!(error.hint().is_some());
    let with_key = other.with(|options| options.passphrase = Some("correct horse".into()));
    let pulled = with_key.snapshots().pull(&from, "old", None).await.unwrap();
    let Pulled::Copied(pulled) = pulled else {
        panic!("{pulled:?}");
    };
    assert_eq!(pulled.id, first.id);
    let here = found(&other, "old").await;
    holds_what_was_filled(&boots(&other, &here, PgMajor::V15).await);
    // Pulled to where it is, and pushed to itself.
    let error = snapshots
        .push(&first, &Remote::parse("local").unwrap())
        .await;
    assert_eq!(refused(error), ErrorKind::Invalid);
    assert_eq!(
        refused(
            snapshots
                .pull(&Remote::parse("tank").unwrap(), "none", None)
                .await
        ),
        ErrorKind::NotFound
    );
    let nowhere = text(&home.scratch.path().join("nowhere"));
    assert_eq!(
        refused(
            snapshots
                .pull(&Remote::parse(&nowhere).unwrap(), "old", None)
                .await
        ),
        ErrorKind::NotFound
    );
    // A place that has no repository yet gets one.
    let pushed = snapshots
        .push(&first, &Remote::parse(&nowhere).unwrap())
        .await
        .unwrap();
    assert_eq!(pushed.packs_there, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_homes_share_a_bucket_and_the_later_of_one_name_is_told() {
    let server = s3();
    let (one, other) = (
        Fixture::having(PgMajor::V15, |options| credentials(&server, options)),
        Fixture::having(PgMajor::V15, |options| credentials(&server, options)),
    );
    let (mine, yours) = (source(PgMajor::V15), source(PgMajor::V15));
    import(&one, &text(&mine.data_dir()), "prod").await.unwrap();
    import(&other, &text(&yours.data_dir()), "prod")
        .await
        .unwrap();
    for home in [&one, &other] {
        attach_s3(&home.neon, &server).await;
    }
    let tank = Remote::parse("s3tank").unwrap();
    let (a, b) = (found(&one, "prod").await, found(&other, "prod").await);
    assert_ne!(a.id, b.id);
    let (first, second) = (one.neon.snapshots(), other.neon.snapshots());
    let (first, second) = tokio::join!(first.push(&a, &tank), second.push(&b, &tank));
    let lost = match (&first, &second) {
        (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
        both => panic!("{both:?}"),
    };
    assert_eq!(lost.kind(), ErrorKind::Exists, "{lost:?}");
    // Now that it is there, nothing is sent to find out.
    let again = match first.is_err() {
        true => one.neon.snapshots().push(&a, &tank).await,
        false => other.neon.snapshots().push(&b, &tank).await,
    };
    assert_eq!(refused(again), ErrorKind::Exists);
    let winner = if first.is_ok() { a.id } else { b.id };
    assert!(
        one.neon
            .storages()
            .check(&name("s3tank"), true)
            .await
            .unwrap()
            .is_sound()
    );

    // A third home that knows only the bucket.
    let third = Fixture::having(PgMajor::V15, |options| credentials(&server, options));
    attach_s3(&third.neon, &server).await;
    let there = third.neon.snapshots().find("prod", None).await.unwrap();
    assert_eq!(there.id, winner);
    holds_what_was_filled(&boots(&third, &there, PgMajor::V15).await);

    // No secret is kept.
    let of = server.options();
    for home in [&one, &other, &third] {
        let found = std::process::Command::new("grep")
            .args(["-rlF", &of.secret_key])
            .arg(home.scratch.path().join("home/state"))
            .output()
            .unwrap();
        assert!(
            found.stdout.is_empty(),
            "{}",
            String::from_utf8_lossy(&found.stdout)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_and_unreachable_buckets_are_told_apart() {
    let server = s3();
    let home = Fixture::having(PgMajor::V15, |options| credentials(&server, options));
    let wrong = home.with(|options| {
        options.context.variables = [
            ("AWS_ACCESS_KEY_ID", "somebody"),
            ("AWS_SECRET_ACCESS_KEY", "else"),
            ("AWS_REGION", "us-east-1"),
        ]
        .into_iter()
        .collect::<Variables>();
    });
    let place = Locator::parse("s3://tank/neon").unwrap();
    let attached = wrong
        .storages()
        .attach(&name("s3tank"), &place, s3_options(&server))
        .await;
    assert_eq!(refused(attached), ErrorKind::Environment);
    let nobody = BTreeMap::from([
        ("endpoint".to_owned(), "http://127.0.0.1:9".to_owned()),
        ("path-style".to_owned(), "on".to_owned()),
    ]);
    let attached = home
        .neon
        .storages()
        .attach(&name("s3tank"), &place, nobody)
        .await;
    assert_eq!(refused(attached), ErrorKind::Failed);
    attach_s3(&home.neon, &server).await;
    let error = wrong
        .snapshots()
        .list(Some(&name("s3tank")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    // A listing of all says so and goes on.
    let (listed, failed) = wrong.snapshots().list(None).await.unwrap();
    assert!(listed.is_empty() && failed.len() == 1);
    let used = wrong.storages().list_used(true).await.unwrap();
    assert!(used.iter().any(|storage| storage.trouble.is_some()));
    // Credentials of a profile, named for this storage alone.
    let aws = home.scratch.path().join("credentials");
    let of = server.options();
    std::fs::write(
        &aws,
        format!(
            "[tank]\naws_access_key_id={}\naws_secret_access_key={}\n",
            of.access_key, of.secret_key
        ),
    )
    .unwrap();
    let by_profile = home.with(|options| {
        options.context.variables = [
            ("AWS_ACCESS_KEY_ID", "somebody"),
            ("AWS_SECRET_ACCESS_KEY", "else"),
            ("AWS_REGION", "us-east-1"),
        ]
        .into_iter()
        .collect::<Variables>();
        options.context.aws_files = Some(vec![aws.clone()]);
    });
    let mut options = s3_options(&server);
    options.insert("profile".to_owned(), "tank".to_owned());
    by_profile
        .storages()
        .attach(&name("byprofile"), &place, options)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neon_file_is_pulled_over_http_and_a_repository_behind_http_is_read_only() {
    let home = Fixture::new();
    let cluster = source(PgMajor::V15);
    import(&home, &text(&cluster.data_dir()), "old")
        .await
        .unwrap();
    let first = found(&home, "old").await;
    let share = home.scratch.path().join("share");
    std::fs::create_dir(&share).unwrap();
    let file = share.join("movies db.neon");
    let options = ExportOptions::new(ExportFormat::Neon);
    home.neon
        .snapshots()
        .export(&first, &file, &options)
        .await
        .unwrap();
    std::fs::rename(&file, share.join("movies_db.neon")).unwrap();
    let web = Web::of(home.scratch.path());

    let other = Fixture::new();
    let address = format!("{}/share/movies_db.neon", web.address);
    let pulled = other
        .neon
        .snapshots()
        .pull(&Remote::parse(&address).unwrap(), "movies", None)
        .await
        .unwrap();
    let Pulled::Imported(imported) = pulled else {
        panic!("{pulled:?}");
    };
    let size = std::fs::metadata(share.join("movies_db.neon"))
        .unwrap()
        .len();
    assert!(web.sent() < size + size / 2, "{} of {size}", web.sent());
    assert_eq!((imported.format, imported.kind), ("neon file", "cold"));
    let missing = Remote::parse(&format!("{}/share/none.neon", web.address)).unwrap();
    assert_eq!(
        refused(other.neon.snapshots().pull(&missing, "x", None).await),
        ErrorKind::NotFound
    );
    let short = std::fs::read(share.join("movies_db.neon")).unwrap();
    std::fs::write(share.join("short.neon"), &short[..short.len() / 2]).unwrap();
    let short = Remote::parse(&format!("{}/share/short.neon", web.address)).unwrap();
    assert_eq!(
        refused(other.neon.snapshots().pull(&short, "x", None).await),
        ErrorKind::Damaged
    );

    // The repository itself, by the id: HTTP lists nothing.
    let store = format!("{}/home/store/local", web.address);
    let place = Storages::place(Some(StorageType::Http), None, None, Some(&store)).unwrap();
    other
        .neon
        .storages()
        .attach(&name("web"), &place, BTreeMap::new())
        .await
        .unwrap();
    let snapshot = other.neon.snapshots().find("movies", None).await.unwrap();
    let error = other
        .neon
        .snapshots()
        .push(&snapshot, &Remote::parse("web").unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    // Nobody is kept from looking further by a storage that lists nothing.
    let error = other.neon.snapshots().find("zebra", None).await;
    assert_eq!(refused(error), ErrorKind::NotFound);
    let used = other.neon.storages().list_used(true).await.unwrap();
    let web = used
        .iter()
        .find(|storage| storage.name == name("web"))
        .unwrap();
    assert!(web.used.is_none() && web.trouble.is_none(), "{web:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_broke_off_goes_on_where_it_was() {
    use neon_testkit::s3::Fault;
    use std::sync::atomic::{AtomicU32, Ordering};
    let server = s3();
    let home = Fixture::having(PgMajor::V15, |options| credentials(&server, options));
    let cluster = source(PgMajor::V15);
    import(&home, &text(&cluster.data_dir()), "old")
        .await
        .unwrap();
    attach_s3(&home.neon, &server).await;
    let first = found(&home, "old").await;
    let tank = Remote::parse("s3tank").unwrap();
    // Everything is refused from the commit on.
    let seen = std::sync::Arc::new(AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&seen);
    server.plan(move |request| {
        let commit = request.method == "PUT" && request.path.contains("/snapshots/");
        if commit {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        commit.then_some(Fault::answer(403, "AccessDenied"))
    });
    let error = home.neon.snapshots().push(&first, &tank).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
    assert!(seen.load(Ordering::Relaxed) > 0);
    assert!(
        home.neon
            .snapshots()
            .list(Some(&name("s3tank")))
            .await
            .unwrap()
            .0
            .is_empty()
    );
    server.heal();
    let pushed = home.neon.snapshots().push(&first, &tank).await.unwrap();
    assert_eq!((pushed.sent, pushed.packs_sent), (0, 0), "{pushed:?}");
    assert!(pushed.packs_there > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storages_say_what_they_hold_and_what_was_destroyed_comes_back_until_it_is_collected() {
    let home = Fixture::new();
    let cluster = source(PgMajor::V15);
    let tank = home.scratch.path().join("tank");
    let storages = home.neon.storages();
    attach_folder(&home.neon, "tank", &tank, &[("grace", "1h")]).await;
    let empty = storages.show(&name("tank")).await.unwrap();
    assert!(empty.repository.is_none() && empty.listed.used == Some(0));
    assert_eq!(
        refused(storages.check(&name("tank"), false).await),
        ErrorKind::NotFound
    );
    // Of two clusters, which share no page: with either goes what it alone needs.
    let mut another = Cluster::builder(PgMajor::V15)
        .fresh_system_identifier()
        .start();
    another.stop(StopMode::Fast);
    let mut wanted = neon_pg::ImportSnapshot::new(neon_pg::ImportSource::Path(another.data_dir()));
    wanted.storage = Some(name("tank"));
    let imported = home.neon.snapshots().import(&wanted).await.unwrap();
    assert_eq!(imported.name.to_string(), "data");
    wanted.source = neon_pg::ImportSource::Path(cluster.data_dir());
    let second = home.neon.snapshots().import(&wanted).await.unwrap();
    assert_eq!(second.name.to_string(), "import1");

    let shown = storages.show(&name("tank")).await.unwrap();
    let repository = shown.repository.unwrap();
    assert_eq!((repository.snapshots, repository.encrypted), (2, false));
    assert!(shown.listed.used.unwrap() >= repository.stored && repository.live > 0);
    assert_eq!(shown.listed.options["grace"], "1h");
    let listed = storages.list_used(false).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[1].used, shown.listed.used);

    let plan = home
        .neon
        .snapshots()
        .plan_destroy("data", None)
        .await
        .unwrap();
    home.neon.snapshots().destroy(&plan).await.unwrap();
    let gc = storages.plan_gc(&name("tank")).await.unwrap();
    assert!(
        gc.snapshots.contains(&imported.id) && gc.freed > 0,
        "{gc:?}"
    );
    // A plan deletes nothing.
    let back = home
        .neon
        .snapshots()
        .undo_destroy(imported.id, &name("tank"))
        .await
        .unwrap();
    assert_eq!(back.len(), 1);
    home.neon.snapshots().destroy(&plan).await.unwrap();
    // Another home collects, and waits less.
    let other = Fixture::new();
    attach_folder(&other.neon, "tank", &tank, &[("grace", "1s")]).await;
    let mut freed = 0;
    while freed == 0 {
        let gc = other.neon.storages().plan_gc(&name("tank")).await.unwrap();
        let done = other.neon.storages().gc(&gc).await.unwrap();
        freed += done.freed;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    let error = home
        .neon
        .snapshots()
        .undo_destroy(imported.id, &name("tank"))
        .await;
    assert_eq!(refused(error), ErrorKind::NotFound);
    assert!(
        storages
            .check(&name("tank"), true)
            .await
            .unwrap()
            .is_sound()
    );
    holds_what_was_filled(&boots(&home, &second.found, PgMajor::V15).await);

    // Damage is found and named.
    let pack = std::process::Command::new("find")
        .arg(tank.join("packs"))
        .args(["-type", "f", "-size", "+100k"])
        .output()
        .unwrap();
    let pack = String::from_utf8(pack.stdout).unwrap();
    let pack = pack.lines().next().unwrap();
    let mut bytes = std::fs::read(pack).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(pack, bytes).unwrap();
    let checked = storages.check(&name("tank"), true).await.unwrap();
    assert_eq!(refused(checked.require_sound()), ErrorKind::Damaged);
    assert!(
        checked
            .findings
            .iter()
            .any(|finding| finding.snapshots.contains(&second.id))
    );
}

#[tokio::test]
async fn types_places_and_options_must_agree() {
    let home = Fixture::new();
    let storages = home.neon.storages();
    for (kind, text) in [
        (StorageType::S3, "/srv/tank"),
        (StorageType::Native, "s3://bucket/x"),
        (StorageType::Ssh, "http://host/x"),
    ] {
        let place = Storages::place(Some(kind), Some(text), None, None);
        assert_eq!(refused(place), ErrorKind::Invalid, "{text}");
    }
    assert_eq!(
        refused(Storages::place(None, None, None, None)),
        ErrorKind::Invalid
    );
    let two = Storages::place(None, Some("/a"), Some(Path::new("/b")), None);
    assert_eq!(refused(two), ErrorKind::Invalid);
    let bare = Storages::place(None, None, None, Some("neon.tech/stas/mystore"));
    assert_eq!(refused(bare), ErrorKind::Invalid);
    let relative = Storages::place(None, None, Some(Path::new("tank")), None).unwrap();
    assert!(relative.file_path().unwrap().is_absolute());

    let place = Locator::path_of(home.scratch.path().join("tank"));
    for (option, value) in [
        ("compression", "gzip"),
        ("encryption", "maybe"),
        ("key-file", "relative"),
        ("grace", "soon"),
        ("grace", "0s"),
        ("endpoint", "http://host"),
        ("colour", "red"),
    ] {
        let options = BTreeMap::from([(option.to_owned(), value.to_owned())]);
        let attached = storages.attach(&name("tank"), &place, options).await;
        assert_eq!(refused(attached), ErrorKind::Invalid, "{option}");
    }
    // On a storage that other machines reach, it would end their writers.
    for far in ["s3://bucket/x", "ssh://me@host/x"] {
        let options = BTreeMap::from([("grace".to_owned(), "10m".to_owned())]);
        let far = Locator::parse(far).unwrap();
        let attached = storages.attach(&name("tank"), &far, options).await;
        assert_eq!(refused(attached), ErrorKind::Invalid);
    }
    let presigned = Locator::parse("http://127.0.0.1:9/x?X-Amz-Signature=abc").unwrap();
    let attached = storages
        .attach(&name("tank"), &presigned, BTreeMap::new())
        .await;
    assert_eq!(refused(attached), ErrorKind::Invalid);
    assert_eq!(storages.list().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_push_and_a_pull_are_is_told_in_bytes() {
    let home = Fixture::new();
    let cluster = source(PgMajor::V15);
    import(&home, &text(&cluster.data_dir()), "old")
        .await
        .unwrap();
    let (neon, told) = listening(&home);
    let tank = text(&home.scratch.path().join("tank"));
    let tank = Remote::parse(&tank).unwrap();
    let first = neon.snapshots().find("old", None).await.unwrap();
    let pushed = neon.snapshots().push(&first, &tank).await.unwrap();
    let progress = |told: &[Event]| -> Vec<(u64, u64)> {
        let of_it = |event: &Event| match event {
            Event::Progress {
                subject,
                done,
                total,
            } => {
                assert_eq!(subject, "snapshot old");
                Some((*done, *total))
            }
            _ => None,
        };
        told.iter().filter_map(of_it).collect()
    };
    let steps = progress(&told.lock().unwrap());
    assert_eq!(steps.first(), Some(&(0, pushed.sent)));
    assert_eq!(steps.last(), Some(&(pushed.sent, pushed.sent)));
    assert!(steps.len() > 2, "{steps:?}");
    assert!(steps.is_sorted(), "{steps:?}");
    // Nothing is sent, nothing is told.
    told.lock().unwrap().clear();
    neon.snapshots().push(&first, &tank).await.unwrap();
    assert_eq!(progress(&told.lock().unwrap()), []);

    let other = Fixture::new();
    let (neon, told) = listening(&other);
    neon.snapshots().pull(&tank, "old", None).await.unwrap();
    let steps = progress(&told.lock().unwrap());
    assert_eq!(steps.last(), Some(&(pushed.sent, pushed.sent)));
    // Somebody who asks to stop is heard.
    let third = Fixture::new();
    let stopping = third.with(|options| {
        let cancel = std::sync::Arc::clone(&options.cancel);
        options.events = neon_pg::EventSink::new(move |event| {
            if matches!(event, Event::Progress { .. }) {
                cancel.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        });
    });
    let pulled = stopping.snapshots().pull(&tank, "old", None).await;
    assert_eq!(refused(pulled), ErrorKind::Cancelled);
    assert!(
        third
            .neon
            .snapshots()
            .list(None)
            .await
            .unwrap()
            .0
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_pushed_over_ssh_and_pulled_from_there() {
    use std::os::unix::fs::PermissionsExt;
    let home = Fixture::new();
    let server = neon_testkit::sshd::sftp_server();
    let program = home.scratch.path().join("ssh");
    std::fs::write(&program, format!("#!/bin/sh\nexec {}\n", server.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let over_ssh = home.with(|options| options.context.ssh_program = Some(program.clone()));
    let cluster = source(PgMajor::V15);
    import(&home, &text(&cluster.data_dir()), "old")
        .await
        .unwrap();
    let far = home.scratch.path().join("far");
    let far = Remote::parse(&format!("ssh://me@backups{}", far.display())).unwrap();
    let snapshots = over_ssh.snapshots();
    let first = snapshots.find("old", None).await.unwrap();
    let pushed = snapshots.push(&first, &far).await.unwrap();
    assert!(pushed.sent > 0 && pushed.packs_there == 0);
    assert_eq!(snapshots.push(&first, &far).await.unwrap().sent, 0);

    let other = Fixture::new();
    let over_ssh = other.with(|options| options.context.ssh_program = Some(program.clone()));
    let pulled = over_ssh.snapshots().pull(&far, "old", None).await.unwrap();
    assert!(matches!(pulled, Pulled::Copied(copied) if copied.id == first.id));
    let here = found(&other, "old").await;
    holds_what_was_filled(&boots(&other, &here, PgMajor::V15).await);
    // A machine that does not answer.
    let nobody = other.with(|options| options.context.ssh_program = Some("/bin/false".into()));
    let failed = nobody.snapshots().pull(&far, "old", None).await;
    assert_eq!(refused(failed), ErrorKind::Failed);
}
