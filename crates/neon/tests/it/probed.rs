//! What a home knows of a bucket: found out once a week, and not by every command.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use neon_pg::{DoctorOptions, Neon};
use neon_testkit::s3::S3Server;

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
    let first = write(&home.neon, &server).await;
    assert!(first > RACED, "{first}");
    let known = write(&another(), &server).await;
    assert!(known < RACED, "{known}");
    passed.store(6 * DAY, Ordering::Relaxed);
    assert_eq!(write(&another(), &server).await, known);
    passed.store(8 * DAY, Ordering::Relaxed);
    assert!(write(&another(), &server).await > RACED);
    assert_eq!(write(&another(), &server).await, known);
    // The clock was turned back: nobody knows how old that is.
    passed.store(0, Ordering::Relaxed);
    assert!(write(&another(), &server).await > RACED);
    assert_eq!(write(&another(), &server).await, known);
    // Who wants to know for sure has it looked at anew: of a check the next one who writes, by a doctor himself.
    let checked = another().storages().check(&name("s3tank"), false).await;
    assert!(checked.unwrap().is_sound());
    assert!(write(&another(), &server).await > RACED);
    let before = server.requests();
    another().doctor(&DoctorOptions::default()).await.unwrap();
    assert!(server.requests() - before > RACED);
    assert_eq!(write(&another(), &server).await, known);
    // The provider is another one, or another release of it.
    server.call_itself("provider/2");
    assert!(write(&another(), &server).await > RACED);
    assert_eq!(write(&another(), &server).await, known);
    // What is written down is no secret, is damaged without harm, and goes with the storage.
    let file = home.neon.home().path().join("state/storage/s3tank.probed");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("provider/2") && !text.contains(&server.options().secret_key));
    std::fs::write(&file, "{").unwrap();
    assert!(write(&another(), &server).await > RACED);
    another().storages().detach(&name("s3tank")).await.unwrap();
    assert!(!file.exists());
}
