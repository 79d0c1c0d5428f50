//! Buckets that keep what was stored: with versions, as object lock demands them, and those that let nothing be deleted or
//! written over.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use neon_pagestore::crypt::KeySource;
use neon_pagestore::read::Snapshot;
use neon_pagestore::{CommitId, ErrorKind, Repository};
use neon_storage::{Checksum, Conditional, Memory, S3, S3Config, S3Credentials, S3Keys, Storage};
use neon_testkit::s3::{Conditions, Retention, S3Server, S3ServerOptions};

use crate::files::{Files, noise, reader, restored, several, try_make};
use crate::stopped::options;

/// Longer than the grace.
const LATER: Duration = Duration::from_secs(200);

fn server(retention: Retention) -> S3Server {
    S3Server::start(S3ServerOptions {
        object_lock: true,
        retention,
        ..S3ServerOptions::default()
    })
}

async fn bucket(server: &S3Server, conditional: Conditional) -> Arc<dyn Storage> {
    let mut config = S3Config::new("bucket");
    config.conditional = conditional;
    config.checksum = Checksum::Md5;
    config.endpoint = Some(server.endpoint());
    let allowed = server.options();
    let keys = S3Keys::new(allowed.access_key.as_str(), allowed.secret_key.as_str());
    config.credentials = S3Credentials::Static(keys);
    Arc::new(S3::open(config).await.unwrap())
}

/// A repository with a life: what each snapshot in it must be.
struct Life {
    repository: Repository,
    snapshots: Vec<(CommitId, Files)>,
}

impl Life {
    /// Two snapshots, one the parent of the other, one pushed from elsewhere, and one that was destroyed.
    async fn begin(storage: Arc<dyn Storage>) -> Self {
        let repository = Repository::init(storage, options()).await.unwrap();
        let mut life = Self {
            repository,
            snapshots: Vec::new(),
        };
        let first = life.take(None, several(1), "pg@1").await;
        life.take(Some(first), several(2), "pg@2").await;
        let elsewhere = Repository::init(Arc::new(Memory::new()), options()).await;
        let elsewhere = elsewhere.unwrap();
        let files: Files = [
            ("/".to_owned(), Vec::new()),
            ("pushed".to_owned(), noise(300_000, 9)),
        ]
        .into();
        let made = try_make(&elsewhere, None, &files, &["other@1"]).await;
        let id = made.unwrap().id;
        elsewhere.copy_to(&life.repository, id).await.unwrap();
        life.snapshots.push((id, files));
        let gone: Files = [("gone".to_owned(), noise(200_000, 5))].into();
        let gone = try_make(&life.repository, None, &gone, &["pg@3"]).await;
        life.repository.destroy(gone.unwrap().id).await.unwrap();
        life
    }

    async fn take(&mut self, parent: Option<CommitId>, files: Files, name: &str) -> CommitId {
        let made = try_make(&self.repository, parent, &files, &[name]).await;
        let id = made.unwrap().id;
        self.snapshots.push((id, files));
        id
    }

    /// Everything is there and right, by who sees the bucket for the first time.
    async fn is_sound(&self, storage: Arc<dyn Storage>) {
        let opened = Repository::open(storage, options()).await.unwrap();
        let checked = opened.check(true).await.unwrap();
        assert!(checked.is_sound(), "{checked:?}");
        let mut listed = opened.snapshot_ids().await.unwrap();
        let mut expected: Vec<_> = self.snapshots.iter().map(|(id, _)| *id).collect();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected);
        for (id, files) in &self.snapshots {
            let snapshot = Snapshot::open(&opened, *id, &reader(&opened)).await;
            assert!(restored(&snapshot.unwrap()).await.0 == *files, "{id}");
        }
    }
}

/// Nothing was stored twice under one key, but by the two clients that race to learn whether that is refused.
fn nothing_is_written_over(server: &S3Server) {
    for (key, versions) in server.versions("bucket") {
        let raced = key.starts_with("neon-probe-");
        assert!(raced || versions.stored == 1, "{key}: {versions:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_with_versions_is_a_home_like_any_other_and_keeps_what_a_collection_deletes() {
    for (conditional, conditions) in [
        (Conditional::Trusted, Conditions::Atomic),
        (Conditional::Probed, Conditions::Atomic),
        // Providers that do not refuse to write what is there already, and say so or not.
        (Conditional::Probed, Conditions::Ignored),
        (Conditional::Unused, Conditions::Refused),
    ] {
        let server = server(Retention::Versions);
        server.set_conditions(conditions);
        let storage = || bucket(&server, conditional);
        let mut life = Life::begin(storage().await).await;
        let collected = life.repository.collect().await.unwrap();
        assert!(collected.announced > 0 && collected.packs == 0);
        server.advance(LATER);
        let collected = life.repository.collect().await.unwrap();
        assert!(collected.packs > 0 && collected.commits == 1);
        let parent = life.snapshots[1].0;
        life.take(Some(parent), several(3), "pg@3").await;
        life.is_sound(storage().await).await;
        nothing_is_written_over(&server);
        let versions = server.versions("bucket");
        let marked = versions.iter().filter(|(key, versions)| {
            key.starts_with("packs/") && versions.deleted == 1 && versions.refused == 0
        });
        assert_eq!(marked.count() as u64, collected.packs);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_may_be_deleted_a_collection_says_so_and_every_snapshot_stays() {
    for conditional in [Conditional::Trusted, Conditional::Unused] {
        let server = server(Retention::Refused);
        let storage = || bucket(&server, conditional);
        let mut life = Life::begin(storage().await).await;
        // Again and again, and snapshots go on between. Leases of writers that are done cannot be taken away, so nothing is
        // announced before they lapse.
        let mut refused = 0;
        for round in 0..4 {
            match life.repository.collect().await {
                Ok(collected) => assert_eq!((collected.packs, collected.commits), (0, 0)),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Storage, "{error:?}");
                    let cause = error.source().unwrap().to_string();
                    assert!(cause.contains("AccessDenied"), "{cause}");
                    refused += 1;
                }
            }
            server.advance(LATER);
            let parent = life.snapshots.last().unwrap().0;
            let name = format!("pg@later{round}");
            life.take(Some(parent), several(10 + round), &name).await;
            life.is_sound(storage().await).await;
        }
        assert!(refused > 0);
        nothing_is_written_over(&server);
        let versions = server.versions("bucket");
        assert!(versions.values().all(|versions| versions.deleted == 0));
        assert!(versions.values().any(|versions| versions.refused > 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_may_be_deleted_no_clients_race_for_conditions_and_the_error_says_what_to_set()
 {
    let server = server(Retention::Refused);
    let storage = bucket(&server, Conditional::Probed).await;
    let error = Repository::init(storage, options()).await.unwrap_err();
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("`conditional=trusted`"), "{cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_not_renewed_where_two_could_begin_the_same_epoch() {
    let server = server(Retention::None);
    let storage = bucket(&server, Conditional::Unused).await;
    let key = |text: &str| KeySource::passphrase(text).with_cost(64, 1);
    let repository = Repository::init(storage, options().key(key("a"))).await;
    let repository = repository.unwrap();
    let files = several(1);
    let made = try_make(&repository, None, &files, &["pg@1"])
        .await
        .unwrap();
    let error = repository.rekey(vec![key("b")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
    let again = bucket(&server, Conditional::Unused).await;
    let opened = Repository::open(again, options().key(key("a")))
        .await
        .unwrap();
    let snapshot = Snapshot::open(&opened, made.id, &reader(&opened)).await;
    assert!(restored(&snapshot.unwrap()).await.0 == files);
}
