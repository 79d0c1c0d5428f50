//! The doctor: every finding is made by what it is about, and goes when that is settled.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use neon_pg::{
    Context, DoctorFinding, DoctorOptions, DoctorReport, Locator, Neon, PgMajor, Severity,
    Variables,
};
use neon_testkit::s3::{S3Server, S3ServerOptions};

use crate::support::{Fixture, name, program, run, sql, with_own_mounts};

async fn examined(neon: &Neon) -> DoctorReport {
    neon.doctor(&DoctorOptions::default()).await.unwrap()
}

/// Findings worth a word: how much the disk of this machine has left is none of a test's business.
fn told(report: &DoctorReport) -> Vec<&DoctorFinding> {
    let worth = |finding: &&DoctorFinding| {
        finding.severity > Severity::Info
            && !["disk-nearly-full", "disk-full", "postgresql-broken"].contains(&finding.code)
    };
    report.findings.iter().filter(worth).collect()
}

fn codes(report: &DoctorReport) -> Vec<&'static str> {
    told(report).iter().map(|finding| finding.code).collect()
}

async fn repaired(neon: &Neon) -> DoctorReport {
    let mut options = DoctorOptions::default();
    options.fix = true;
    neon.doctor(&options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_in_use_is_well() {
    let home = Fixture::of(PgMajor::V15);
    home.neon.pg().create(&home.create()).await.unwrap();
    let report = examined(&home.neon).await;
    assert_eq!(told(&report), Vec::<&DoctorFinding>::new());
    // Its own sessions are none that somebody left.
    for _ in 0..12 {
        let report = examined(&home.neon).await;
        let left = report
            .findings
            .iter()
            .find(|one| one.code == "session-left");
        assert_eq!(left, None);
    }
    // As data it has what programs decide on.
    let text = serde_json::to_value(&report).unwrap();
    assert!(text["findings"].is_array() && text["fixed"].is_array());
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
    assert_eq!(codes(&examined(&home.neon).await), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_servers_do_and_shall_do_is_compared() {
    let home = Fixture::of(PgMajor::V15);
    home.neon.pg().create(&home.create()).await.unwrap();
    // Slots of others, whatever they are called: one looks like ours, the other only begins so.
    run(
        &home.neon,
        "pgdata1",
        "select pg_create_physical_replication_slot('neon_import_0123456789abcdef', true);\
         select pg_create_physical_replication_slot('neon_standby1', true);\
         create database latin encoding 'LATIN1' locale 'C' template template0",
    )
    .await;
    assert_eq!(
        codes(&examined(&home.neon).await),
        ["encoding", "slot-left"]
    );
    let report = repaired(&home.neon).await;
    assert_eq!(codes(&report), ["encoding", "slot-left"]);
    assert_eq!(report.fixed, Vec::<String>::new());
    let findings = told(&report);
    let slot = findings.iter().find(|one| one.code == "slot-left");
    let slot = slot.unwrap();
    assert!(!slot.fixable, "{slot:?}");
    let dropping = "select pg_drop_replication_slot('neon_import_0123456789abcdef')";
    assert!(slot.hint.as_ref().unwrap().ends_with(dropping), "{slot:?}");
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(sql(&home.neon, "pgdata1", slots).await, "2");
    run(&home.neon, "pgdata1", dropping).await;

    let record = home.scratch.path().join("home/state/pg/pgdata1.json");
    let unwanted = fs::read_to_string(&record)
        .unwrap()
        .replace("\"wanted\": true", "\"wanted\": false");
    fs::write(&record, unwanted).unwrap();
    assert_eq!(
        codes(&examined(&home.neon).await),
        ["encoding", "server-unwanted"]
    );
    assert_eq!(codes(&repaired(&home.neon).await), ["encoding"]);

    home.crash("pgdata1");
    assert_eq!(codes(&examined(&home.neon).await), ["server-down"]);
    let port = home.neon.pg().record_of(&name("pgdata1")).unwrap().port;
    let taken = std::net::TcpListener::bind(("127.0.0.1", port.unwrap())).unwrap();
    assert_eq!(
        codes(&examined(&home.neon).await),
        ["port-taken", "server-down"]
    );
    drop(taken);
    home.neon.pg().start(&name("pgdata1")).await.unwrap();
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
    assert_eq!(codes(&examined(&home.neon).await), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_killed_commands_left_is_named_and_settled() {
    let home = Fixture::of(PgMajor::V15);
    let root = home.scratch.path().join("home");
    home.neon.pg().create(&home.stopped("one")).await.unwrap();
    home.neon.pg().create(&home.stopped("two")).await.unwrap();
    // A creation that ended early, and one that nearly came to its end.
    let record = |name: &str| root.join(format!("state/pg/{name}.json"));
    let made = fs::read_to_string(record("two")).unwrap();
    let half = made
        .replace("\"ready\"", "\"creating\"")
        .replace("\"two\"", "\"three\"");
    fs::write(record("three"), half).unwrap();
    fs::write(record("two"), made.replace("\"ready\"", "\"creating\"")).unwrap();
    fs::create_dir(root.join("pg/.new-0123456789abcdef")).unwrap();
    fs::create_dir(root.join("pg/.open-0123456789abcdef")).unwrap();
    fs::create_dir(root.join("pg/.neon-new-0123-x")).unwrap();
    let gone = made.replace("\"two\"", "\"gone\"");
    let id = "fedcba9876543210";
    let known: serde_json::Value = serde_json::from_str(&made).unwrap();
    let gone = gone.replace(known["id"].as_str().unwrap(), id);
    fs::write(root.join(format!("state/trash/{id}.json")), gone).unwrap();
    let file = root.join("state/.new-00000000");
    fs::write(&file, "{").unwrap();
    let old = SystemTime::now() - Duration::from_secs(600);
    fs::File::open(&file).unwrap().set_modified(old).unwrap();
    // Not ours to remove.
    fs::create_dir(root.join("pg/strange")).unwrap();
    fs::create_dir(root.join("trash/strange")).unwrap();
    let report = examined(&home.neon).await;
    assert_eq!(
        codes(&report),
        [
            "file-left",
            "folder-left",
            "folder-left",
            "folder-left",
            "folder-unknown",
            "half-made",
            "half-made",
            "trash-empty",
            "trash-unknown"
        ],
        "{report:#?}"
    );
    // Looking changes nothing.
    assert_eq!(codes(&examined(&home.neon).await).len(), 9);
    // Nor is anything settled that nobody agreed to.
    let mut options = DoctorOptions::default();
    options.fix = true;
    options.agreed = Some(Vec::new());
    let agreed = home.neon.doctor(&options).await.unwrap();
    assert_eq!(agreed.fixed, Vec::<String>::new());
    assert_eq!(codes(&agreed).len(), 9);
    assert_eq!(report.fixable().count(), 7);
    let report = repaired(&home.neon).await;
    assert_eq!(codes(&report), ["folder-unknown", "trash-unknown"]);
    assert_eq!(report.fixed.len(), 7, "{:?}", report.fixed);
    assert_eq!(home.neon.pg().records().unwrap().len(), 2);
    home.neon.pg().start(&name("two")).await.unwrap();
    home.neon.pg().stop(&name("two")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_and_modes_are_told_with_their_paths() {
    let home = Fixture::of(PgMajor::V15);
    let root = home.scratch.path().join("home");
    home.neon.pg().create(&home.stopped("one")).await.unwrap();
    home.neon.pg().create(&home.stopped("two")).await.unwrap();
    fs::write(root.join("state/pg/one.json"), "{").unwrap();
    fs::write(root.join("state/storage/odd.json"), "[]").unwrap();
    fs::rename(root.join("pg/two/data"), root.join("data")).unwrap();
    fs::set_permissions(root.join("state"), fs::Permissions::from_mode(0o755)).unwrap();
    let report = examined(&home.neon).await;
    assert_eq!(
        codes(&report),
        [
            "data-missing",
            "home-mode",
            "record-damaged",
            "record-damaged"
        ],
        "{report:#?}"
    );
    assert_eq!(report.worst(), Some(Severity::Error));
    for finding in told(&report) {
        assert!(finding.hint.is_some(), "{finding:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_program_of_the_same_name_is_told() {
    let home = Fixture::new();
    let (own, other) = (home.scratch.path().join("a"), home.scratch.path().join("b"));
    for folder in [&own, &other] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("neon"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(folder.join("neon"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut options = DoctorOptions::default();
    options.program = Some(own.join("neon"));
    options.path = std::env::join_paths([&own, &other]).unwrap();
    let report = home.neon.doctor(&options).await.unwrap();
    assert_eq!(codes(&report), ["other-program"]);
    options.path = own.into();
    let report = home.neon.doctor(&options).await.unwrap();
    assert_eq!(codes(&report), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storages_are_asked_for_what_they_promise() {
    let server = S3Server::start(S3ServerOptions::default());
    let variables = |key: &str| -> Variables {
        [
            ("AWS_ACCESS_KEY_ID", server.options().access_key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", key),
        ]
        .into_iter()
        .collect()
    };
    let with = |key: &str| {
        let mut context = Context::default();
        context.variables = variables(key);
        context
    };
    let good = server.options().secret_key.clone();
    let home = Fixture::having(PgMajor::V15, |options| options.context = with(&good));
    let locator = format!("s3://bucket/some?endpoint={}", server.endpoint());
    let locator = Locator::parse(&locator).unwrap();
    home.neon
        .storages()
        .attach(&name("tank"), &locator, BTreeMap::new())
        .await
        .unwrap();
    let folder = home.scratch.path().join("disk");
    fs::create_dir(&folder).unwrap();
    home.neon
        .storages()
        .attach(
            &name("disk"),
            &Locator::path_of(folder.clone()),
            BTreeMap::new(),
        )
        .await
        .unwrap();
    home.neon
        .storages()
        .repository(&name("tank"))
        .await
        .unwrap();
    assert_eq!(codes(&examined(&home.neon).await), Vec::<&str>::new());
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(codes(&examined(&home.neon).await), ["storage-missing"]);
    home.neon.storages().detach(&name("disk")).await.unwrap();

    let denied = home.with(|options| options.context = with("wrong"));
    let report = examined(&denied).await;
    assert_eq!(codes(&report), ["storage-denied"], "{report:#?}");
    server.advance(Duration::from_secs(300));
    assert_eq!(codes(&examined(&home.neon).await), ["clock-skew"]);
    drop(server);
    let report = examined(&home.neon).await;
    assert_eq!(codes(&report), ["storage-unreachable"], "{report:#?}");
    let mut options = DoctorOptions::default();
    options.offline = true;
    let report = home.neon.doctor(&options).await.unwrap();
    assert_eq!(codes(&report), Vec::<&str>::new());
}

/// Needs the storage that lists uploads.
#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_uploads_of_ours_below_our_own_folder_are_aborted() {
    use crate::remotes::{attach_s3, credentials, s3, s3_options};
    use neon_storage::{Body, Key, S3, S3Config, S3Credentials, S3Keys, StorageExt};

    let server = s3();
    let home = Fixture::having(PgMajor::V15, |options| credentials(&server, options));
    // At the endpoint of its options.
    attach_s3(&home.neon, &server).await;
    let mut config = S3Config::new("tank");
    config.endpoint = Some(server.endpoint());
    config.credentials = S3Credentials::Static(S3Keys::new(
        server.options().access_key.as_str(),
        server.options().secret_key.as_str(),
    ));
    config.part_size = 5 << 20;
    config.max_part_size = 5 << 20;
    config.conditional = neon_storage::Conditional::Trusted;
    let bucket = S3::open(config).await.unwrap();
    // As if every writer had died.
    server.plan(|request| {
        let abort = request.method == "DELETE" && request.asks("uploadId");
        abort.then(|| neon_testkit::s3::Fault::answer(403, "AccessDenied"))
    });
    let pack = format!("packs/ab/ab{}", "01".repeat(15));
    let foreign = [
        pack.clone(),
        format!("neon-other/{pack}"),
        "neon/backup.tar".to_owned(),
        "neon/packs/somebody".to_owned(),
    ];
    for key in foreign.iter().cloned().chain([format!("neon/{pack}")]) {
        let parts = (0..12).map(|_| Ok(bytes::Bytes::from(vec![0u8; 1 << 20])));
        let broken = parts.chain([Err(std::io::Error::other("broken"))]);
        let body = Body::stream(futures_util::stream::iter(broken));
        bucket
            .create(&Key::new(key).unwrap(), body)
            .await
            .unwrap_err();
    }
    for _ in 0..600 {
        if server.requests_of("DELETE") >= 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.heal();
    let pending = || {
        let uploads = server.pending_uploads("tank").into_iter();
        let mut keys: Vec<String> = uploads.map(|upload| upload.key).collect();
        keys.sort();
        keys
    };
    assert_eq!(pending().len(), 5);
    server.age("tank", Duration::from_secs(2 * 24 * 60 * 60));
    assert_eq!(codes(&examined(&home.neon).await), ["upload-left"]);
    let report = repaired(&home.neon).await;
    assert_eq!(codes(&report), Vec::<&str>::new());
    assert_eq!(report.fixed, ["1 uploads in storage s3tank are aborted"]);
    let mut left = foreign.to_vec();
    left.sort();
    assert_eq!(pending(), left);

    // A whole bucket may be anybody's: told, and left.
    home.neon.storages().detach(&name("s3tank")).await.unwrap();
    let place = Locator::parse("s3://tank").unwrap();
    home.neon
        .storages()
        .attach(&name("whole"), &place, s3_options(&server))
        .await
        .unwrap();
    let report = repaired(&home.neon).await;
    assert_eq!(codes(&report), ["upload-left"]);
    assert_eq!(report.fixable().count(), 0);
    assert_eq!(pending(), left);
}

/// All codes, those that are only to be known included.
async fn all(neon: &Neon) -> Vec<DoctorFinding> {
    examined(neon).await.findings
}

fn of<'a>(findings: &'a [DoctorFinding], code: &str) -> Vec<&'a DoctorFinding> {
    findings.iter().filter(|one| one.code == code).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_that_was_interrupted_is_told_by_how_far_it_was() {
    let home = crate::killed::scene().await;
    let place = home.scratch.path().join("home");
    for (step, severity, says) in [
        ("checkout: begun", Severity::Warning, "taken back"),
        ("checkout: rewritten", Severity::Error, "be finished"),
        ("checkout: done", Severity::Warning, "is done"),
    ] {
        crate::killed::killed(&place, "checkout", step, None);
        let neon = home.again();
        let findings = all(&neon).await;
        let pending = of(&findings, "checkout-pending");
        assert_eq!(pending.len(), 1, "{step}: {findings:?}");
        assert_eq!(pending[0].severity, severity, "{step}");
        assert!(pending[0].message.contains(says), "{step}: {pending:?}");
        assert!(pending[0].fixable);
        let report = repaired(&neon).await;
        assert_eq!(codes(&report), Vec::<&str>::new(), "{step}");
        let pg = neon.pg().get(&name("pgdata1")).await.unwrap();
        assert_eq!(pg.role(), Some("primary"), "{step}");
    }
    home.neon.pg().stop(&name("pgdata1")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_no_instance_and_a_port_of_two_are_told() {
    let home = Fixture::of(PgMajor::V15);
    let pg = home.neon.pg();
    pg.create(&home.create()).await.unwrap();
    let record = home.scratch.path().join("home/state/pg/pgdata1.json");
    let aside = home.scratch.path().join("record");
    fs::rename(&record, &aside).unwrap();
    let report = examined(&home.neon).await;
    assert_eq!(codes(&report), ["server-lost", "folder-unknown"]);
    let lost = of(&report.findings, "server-lost");
    let pid = fs::read_to_string(
        home.scratch
            .path()
            .join("home/pg/pgdata1/data/postmaster.pid"),
    );
    let pid = pid.unwrap().lines().next().unwrap().to_owned();
    let hint = lost[0].hint.as_ref().unwrap();
    assert_eq!(*hint, format!("kill -INT {pid}"));
    fs::rename(&aside, &record).unwrap();
    assert_eq!(codes(&examined(&home.neon).await), Vec::<&str>::new());

    let mut other = home.stopped("other");
    other.port = pg.record_of(&name("pgdata1")).unwrap().port;
    pg.create(&other).await.unwrap();
    let report = examined(&home.neon).await;
    assert_eq!(codes(&report), ["port-shared"]);
    assert!(told(&report)[0].message.contains("other, pgdata1"));
    pg.destroy(&name("other")).await.unwrap();
    pg.stop(&name("pgdata1")).await.unwrap();
}

/// As root, the servers of a home run as somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_servers_cannot_walk_to_is_told() {
    let scratch = neon_testkit::Scratch::new();
    let closed = scratch.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let mode = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o711);
    let neon = Fixture::at(PgMajor::V15, &closed.join("home"));
    assert_eq!(of(&all(&neon).await, "home-unreachable").len(), 0);
    mode(0o700);
    let findings = all(&neon).await;
    let root = rustix::process::geteuid().is_root();
    let unreachable = of(&findings, "home-unreachable");
    assert_eq!(unreachable.len(), usize::from(root));
    for one in unreachable {
        let hint = one.hint.as_ref().unwrap();
        assert_eq!(*hint, format!("chmod o+x {}", closed.display()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_are_gone_and_storages_that_overwrite_are_told() {
    let server = S3Server::start(S3ServerOptions {
        conditions: neon_testkit::s3::Conditions::Ignored,
        ..S3ServerOptions::default()
    });
    let home = Fixture::having(PgMajor::V15, |options| {
        crate::remotes::credentials(&server, options);
    });
    let locator = format!("s3://bucket/some?endpoint={}", server.endpoint());
    let locator = Locator::parse(&locator).unwrap();
    let storages = home.neon.storages();
    let loose = name("loose");
    let attached = storages.attach(&loose, &locator, BTreeMap::new());
    attached.await.unwrap();
    let report = examined(&home.neon).await;
    assert_eq!(codes(&report), ["no-conditional-writes"]);
    assert_eq!(told(&report)[0].subject, "storage loose");
    storages.detach(&name("loose")).await.unwrap();

    let tank = home.scratch.path().join("tank");
    let options = BTreeMap::from([("grace".to_owned(), "1s".to_owned())]);
    let place = Locator::path_of(tank);
    storages
        .attach(&name("tank"), &place, options)
        .await
        .unwrap();
    let tank = storages.repository(&name("tank")).await.unwrap();
    drop(tank.repository.begin_writing().await.unwrap());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let findings = all(&home.neon).await;
    let left = of(&findings, "lease-left");
    assert_eq!(left.len(), 1, "{findings:?}");
    assert_eq!(left[0].hint.as_deref(), Some("neon storage gc tank"));
    for _ in 0..3 {
        let plan = storages.plan_gc(&name("tank")).await.unwrap();
        storages.gc(&plan).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert_eq!(of(&all(&home.neon).await, "lease-left").len(), 0);
}

const PLACE: &str = "NEON_PG_DOCTOR_MOUNTS";

#[test]
fn disks_that_are_full_and_mounts_that_are_left_are_told() {
    let scratch = neon_testkit::Scratch::new();
    let place = scratch.path().to_str().unwrap();
    with_own_mounts("doctor::in_a_namespace", &[(PLACE, place)]);
}

/// Started by the test above; by itself there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_namespace() {
    let Ok(place) = std::env::var(PLACE) else {
        return;
    };
    for (size, files, code) in [
        ("64m", "100k", "disk-full"),
        ("512m", "100k", "disk-nearly-full"),
        ("2g", "300", "inodes-nearly-used"),
    ] {
        let disk = Path::new(&place).join(code);
        fs::create_dir(&disk).unwrap();
        let options = format!("size={size},nr_inodes={files},mode=755");
        let mount = [
            "-t",
            "tmpfs",
            "-o",
            &*options,
            "none",
            disk.to_str().unwrap(),
        ];
        program("mount", &mount);
        let neon = Fixture::at(PgMajor::V15, &disk.join("home"));
        if code == "inodes-nearly-used" {
            let mut number = 0;
            while rustix::fs::statvfs(&disk).unwrap().f_favail > 12 {
                fs::write(disk.join(number.to_string()), "").unwrap();
                number += 1;
            }
        }
        let found = all(&neon).await;
        let about = |one: &&DoctorFinding| one.code.starts_with("disk-") || one.code == code;
        let about: Vec<_> = found.iter().filter(about).map(|one| one.code).collect();
        assert_eq!(about, [code], "{found:?}");
        assert_eq!(of(&found, "mount-left").len(), 0);
        if code != "disk-nearly-full" {
            continue;
        }
        // No place for a data directory: nothing can be moved there.
        let whole = disk.join("whole");
        fs::create_dir(&whole).unwrap();
        program("mount", &["-t", "tmpfs", "none", whole.to_str().unwrap()]);
        let mut create = neon_pg::CreatePg::default();
        create.pgdata = Some(whole);
        let made = neon.pg().create(&create).await;
        assert_eq!(crate::support::refused(made), neon_pg::ErrorKind::Invalid);
        assert!(neon.pg().records().unwrap().is_empty());
        // What somebody mounted in it on purpose, and what not.
        let home = fs::canonicalize(disk.join("home")).unwrap();
        fs::create_dir(home.join("pg/a b")).unwrap();
        for (inside, left) in [("trash", 0), ("pg/a b", 1)] {
            let inside = home.join(inside);
            program("mount", &["-t", "tmpfs", "none", inside.to_str().unwrap()]);
            let found = all(&neon).await;
            let mounts = of(&found, "mount-left");
            assert_eq!(mounts.len(), left, "{found:?}");
            if let Some(mount) = mounts.first() {
                assert_eq!(mount.subject, inside.display().to_string());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_hides_no_other_instance() {
    let home = Fixture::of(PgMajor::V15);
    let pg = home.neon.pg();
    pg.create(&home.stopped("good")).await.unwrap();
    pg.create(&home.stopped("bad")).await.unwrap();
    let record = home.scratch.path().join("home/state/pg/bad.json");
    fs::write(&record, "garbage").unwrap();
    let listed = pg.list().await.unwrap();
    let names: Vec<&str> = listed.iter().map(|pg| pg.record.name.as_str()).collect();
    assert_eq!(names, ["good"]);
    let unreadable = pg.unreadable().unwrap();
    let error = unreadable.first().unwrap();
    assert!(error.subject().ends_with("bad.json"), "{error:?}");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("neon doctor"))
    );
    // What the doctor says of it names it once.
    let report = examined(&home.neon).await;
    let told = report
        .findings
        .iter()
        .map(|one| format!("{}: {}", one.subject, one.message));
    let told = told
        .filter(|text| text.contains("bad.json"))
        .collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].matches("bad.json").count(), 1, "{told:?}");
    assert_eq!(
        crate::support::refused(pg.get(&name("bad")).await),
        neon_pg::ErrorKind::Damaged
    );
}
