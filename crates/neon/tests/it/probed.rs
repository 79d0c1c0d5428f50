//! What a home knows of a bucket: found out once a week, and not by every command.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use neon_pg::{DoctorOptions, Event, EventSink, Neon};
use neon_storage::{ProbeFinding, ProbeMemory};
use neon_testkit::s3::{Conditions, S3Server};

use crate::remotes::{attach_s3, credentials, s3};
use crate::support::{Fixture, name};

/// Far more than a lease takes.
const RACED: u64 = 50;

const DAY: u64 = 24 * 60 * 60;

/// A command that writes to the storage: how many requests that takes.
async fn write(neon: &Neon, server: &S3Server) -> u64 {
    let before = server.requests();
    let found = neon.storages().repository(&name("s3tank")).await.unwrap();
    let writing = found.repository.begin_writing().await.unwrap();
    writing.abandon().await;
    server.requests() - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_asks_a_bucket_what_it_can_do_once_a_week() {
    let server = s3();
    server.call_itself("provider/1");
    let passed = Arc::new(AtomicU64::new(0));
    let home = Fixture::having(neon_pg::PgMajor::V15, |options| {
        credentials(&server, options);
        let passed = Arc::clone(&passed);
        options.clock = Arc::new(move || {
            SystemTime::now() + Duration::from_secs(passed.load(Ordering::Relaxed))
        });
    });
    // As another process would open it.
    let another = || {
        home.with(|options| {
            credentials(&server, options);
            let passed = Arc::clone(&passed);
            options.clock = Arc::new(move || {
                SystemTime::now() + Duration::from_secs(passed.load(Ordering::Relaxed))
            });
        })
    };
    attach_s3(&home.neon, &server).await;
    // An SDK that repeats a request makes that a few more, and no race.
    assert!(write(&home.neon, &server).await > RACED);
    assert!(write(&another(), &server).await < RACED);
    passed.store(6 * DAY, Ordering::Relaxed);
    assert!(write(&another(), &server).await < RACED);
    passed.store(8 * DAY, Ordering::Relaxed);
    assert!(write(&another(), &server).await > RACED);
    assert!(write(&another(), &server).await < RACED);
    // The clock was turned back: nobody knows how old that is.
    passed.store(0, Ordering::Relaxed);
    assert!(write(&another(), &server).await > RACED);
    assert!(write(&another(), &server).await < RACED);
    // Who wants to know for sure has it looked at anew: of a check the next one who writes, by a doctor himself.
    let checked = another().storages().check(&name("s3tank"), false).await;
    assert!(checked.unwrap().is_sound());
    assert!(write(&another(), &server).await > RACED);
    let before = server.requests();
    another().doctor(&DoctorOptions::default()).await.unwrap();
    assert!(server.requests() - before > RACED);
    assert!(write(&another(), &server).await < RACED);
    // The provider is another one, or another release of it.
    server.call_itself("provider/2");
    assert!(write(&another(), &server).await > RACED);
    assert!(write(&another(), &server).await < RACED);
    // What is written down is no secret, is damaged without harm, and goes with the storage.
    let file = home.neon.home().path().join("state/storage/s3tank.probed");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("provider/2") && !text.contains(&server.options().secret_key));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    std::fs::write(&file, "{").unwrap();
    assert!(write(&another(), &server).await > RACED);
    another().storages().detach(&name("s3tank")).await.unwrap();
    assert!(!file.exists());
    // Also what a detaching that was killed before its end left there.
    std::fs::write(&file, text).unwrap();
    attach_s3(&another(), &server).await;
    assert!(!file.exists());
}

/// Where a home keeps what it knows of the bucket.
fn memory_of(home: &Fixture) -> PathBuf {
    home.neon.home().path().join("state/storage/s3tank.probed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_bucket_lets_two_win_is_known_until_it_is_accepted_anew() {
    let server = s3();
    let home = Fixture::having(neon_pg::PgMajor::V15, |options| {
        credentials(&server, options);
    });
    let another = || home.with(|options| credentials(&server, options));
    server.set_conditions(Conditions::Racy(Duration::from_millis(50)));
    attach_s3(&home.neon, &server).await;
    write(&home.neon, &server).await;
    let known = || std::fs::read_to_string(memory_of(&home)).unwrap();
    let lost = known();
    assert!(lost.contains("\"create_only\": false"), "{lost}");
    // Whoever tried now would win.
    server.set_conditions(Conditions::Atomic);
    assert!(write(&another(), &server).await < RACED);
    let checked = another().storages().check(&name("s3tank"), false).await;
    assert!(checked.unwrap().is_sound());
    let report = another().doctor(&DoctorOptions::default()).await.unwrap();
    let told = |finding: &neon_pg::DoctorFinding| finding.code == "no-conditional-writes";
    assert!(report.findings.iter().any(told), "{:?}", report.findings);
    assert!(write(&another(), &server).await < RACED);
    assert_eq!(known(), lost, "and is no younger by it");
    another().storages().accept(&name("s3tank")).await.unwrap();
    assert!(write(&another(), &server).await > RACED);
    assert!(known().contains("\"create_only\": true"));
    let report = another().doctor(&DoctorOptions::default()).await.unwrap();
    assert!(!report.findings.iter().any(told), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_fails_because_what_is_known_cannot_be_read_written_or_removed() {
    let server = s3();
    let home = Fixture::having(neon_pg::PgMajor::V15, |options| {
        credentials(&server, options);
    });
    let warnings = Arc::new(AtomicU64::new(0));
    let another = || {
        home.with(|options| {
            credentials(&server, options);
            let warnings = Arc::clone(&warnings);
            options.events = EventSink::new(move |event| {
                if matches!(&event, Event::Warning(text) if text.contains("written down")) {
                    warnings.fetch_add(1, Ordering::Relaxed);
                }
            });
        })
    };
    attach_s3(&home.neon, &server).await;
    // A folder can be none of that, by nobody.
    let folder = memory_of(&home);
    let local = folder.with_file_name("local.probed");
    for folder in [&folder, &local] {
        std::fs::create_dir(folder).unwrap();
    }
    let neon = another();
    for _ in 0..2 {
        assert!(write(&neon, &server).await > RACED);
        assert_eq!(warnings.load(Ordering::Relaxed), 1, "once");
    }
    for storage in ["s3tank", "local"] {
        neon.storages().repository(&name(storage)).await.unwrap();
        let checked = another().storages().check(&name(storage), false).await;
        assert!(checked.unwrap().is_sound());
    }
    let report = another().doctor(&DoctorOptions::default()).await.unwrap();
    let of_storages = |finding: &&neon_pg::DoctorFinding| finding.code.starts_with("storage-");
    let told: Vec<_> = report.findings.iter().filter(of_storages).collect();
    assert!(told.is_empty(), "{told:?}");
    another().storages().detach(&name("s3tank")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_embeds_a_home_may_keep_what_is_known_elsewhere() {
    #[derive(Debug, Default)]
    struct Theirs(Mutex<Option<ProbeFinding>>);
    impl ProbeMemory for Theirs {
        fn recall(&self, _: &str) -> Option<ProbeFinding> {
            self.0.lock().unwrap().clone()
        }
        fn keep(&self, finding: &ProbeFinding) {
            *self.0.lock().unwrap() = Some(finding.clone());
        }
        fn forget(&self, _: &str) {
            *self.0.lock().unwrap() = None;
        }
    }
    let server = s3();
    let theirs = Arc::new(Theirs::default());
    let home = Fixture::having(neon_pg::PgMajor::V15, |options| {
        credentials(&server, options);
        options.context.probe_memory = Some(Arc::clone(&theirs) as Arc<dyn ProbeMemory>);
    });
    attach_s3(&home.neon, &server).await;
    assert!(write(&home.neon, &server).await > RACED);
    assert!(theirs.0.lock().unwrap().clone().unwrap().create_only);
    assert!(write(&home.neon, &server).await < RACED);
    assert!(!memory_of(&home).exists());
}
