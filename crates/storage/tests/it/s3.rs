//! S3 over real HTTP: the contract, and what providers and networks do to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use neon_storage::{
    Body, Checksum, Conditional, Context, Encryption, ErrorKind, GetOptions, Key, Limit, Locator,
    Operation, Prefix, PutOptions, PutToken, ReadOnly, Registry, Retry, RetryLayer, RetryPolicy,
    S3, S3Config, S3Credentials, S3Keys, Storage, StorageExt, contract,
};
use neon_testkit::s3::{Conditions, Fault, S3Server, S3ServerOptions};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// Small parts, small pages and few attempts, so that little data meets every path.
pub fn config(server: &S3Server) -> S3Config {
    let options = server.options();
    let mut config = S3Config::new("bucket");
    config.conditional = Conditional::Trusted;
    config.endpoint = Some(server.endpoint());
    config.credentials = S3Credentials::Static(S3Keys::new(
        options.access_key.as_str(),
        options.secret_key.as_str(),
    ));
    config.part_size = 5 << 20;
    config.max_part_size = 5 << 20;
    config.list_page = 7;
    config
}

async fn open(server: &S3Server) -> S3 {
    S3::open(config(server)).await.unwrap()
}

fn server() -> S3Server {
    S3Server::start(S3ServerOptions::default())
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_the_contract() {
    let server = server();
    let report = contract::run(Arc::new(open(&server).await)).await;
    assert!(report.held() > 30, "{report:#?}");
    report.into_result().unwrap();
    assert_eq!(server.objects("bucket"), []);
    eventually("every unfinished upload is aborted", || {
        server.pending_uploads("bucket").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_with_single_deletes_below_layers_keeps_the_contract() {
    let server = server();
    let mut config = config(&server);
    config.bulk_delete = false;
    let s3 = Arc::new(S3::open(config).await.unwrap());
    let retry = Arc::new(RetryLayer::new(s3, RetryPolicy::default()));
    let limited = Limit::new(Arc::new(Prefix::new(retry, key("a prefix"))), 6);
    contract::run(Arc::new(limited))
        .await
        .into_result()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_without_conditions_keeps_the_rest_of_the_contract() {
    let server = server();
    server.set_conditions(Conditions::Ignored);
    let mut config = config(&server);
    config.conditional = Conditional::Probed;
    let s3 = S3::open(config).await.unwrap();
    let refused = s3.create(&key("k"), "x").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    s3.overwrite(&key("k"), "x").await.unwrap();
    assert_eq!(s3.read(&key("k")).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_only_reads_writes_nothing_also_where_conditions_are_probed() {
    let server = server();
    open(&server).await.create(&key("k"), "x").await.unwrap();
    server.plan(|request| {
        let reads = matches!(request.method.as_str(), "GET" | "HEAD");
        (!reads).then(|| Fault::answer(403, "AccessDenied"))
    });
    let mut config = config(&server);
    config.conditional = Conditional::Automatic;
    let before = server.requests();
    let s3 = S3::open(config).await.unwrap();
    assert!(!s3.capabilities().create_only, "not before it is known");
    assert_eq!(server.requests(), before, "opening sends nothing");
    assert_eq!(s3.read(&key("k")).await.unwrap(), "x");
    s3.head(&key("k")).await.unwrap();
    assert_eq!(s3.list_all("").await.unwrap().len(), 1);
    let reads = server.requests_of("GET") + server.requests_of("HEAD");
    let view = ReadOnly::new(Arc::new(s3.clone()));
    assert!(!view.probe().await.unwrap().create_only);
    assert_eq!(
        server.requests_of("GET") + server.requests_of("HEAD"),
        reads
    );
    // Who may not write is told so when writing.
    let error = s3.create(&key("l"), "x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(
        (error.operation(), error.key()),
        (Operation::Put, Some("l"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_are_probed_once_below_the_prefix_when_they_are_first_needed() {
    let server = server();
    // Nothing may be written or deleted outside of the prefix.
    server.plan(|request| {
        let inside = request.path.starts_with("/bucket/some/where/");
        let writes = request.is_put_object() && !inside;
        writes.then(|| Fault::answer(403, "AccessDenied"))
    });
    let text = format!(
        "s3://bucket/some/where?endpoint={}&region=us-east-1",
        server.endpoint()
    );
    let options = server.options();
    let mut context = Context::default();
    context.s3_credentials = Some(S3Credentials::Static(S3Keys::new(
        options.access_key.as_str(),
        options.secret_key.as_str(),
    )));
    let locator = Locator::parse(&text).unwrap();
    let storage = Registry::default().open(&locator, &context).await.unwrap();
    storage.overwrite(&key("a"), "x").await.unwrap();
    assert_eq!(server.requests(), 1, "an overwrite needs no condition");
    storage.create(&key("b"), "x").await.unwrap();
    let probed = server.requests();
    assert!(probed > 20, "{probed}");
    assert!(storage.capabilities().create_only);
    storage.create(&key("c"), "x").await.unwrap();
    assert_eq!(server.requests(), probed + 1, "asked once");
    assert_eq!(server.objects("bucket").len(), 3, "the probe cleans up");
    // Also when it is dropped half way.
    let again = Registry::default().open(&locator, &context).await.unwrap();
    server.plan(|request| {
        request
            .is_put_object()
            .then_some(Fault::Delay(Duration::from_millis(30)))
    });
    let cut = tokio::time::timeout(Duration::from_millis(200), again.probe()).await;
    assert!(cut.is_err(), "{cut:?}");
    eventually("the dropped probe is cleaned up", || {
        server.objects("bucket").len() == 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_tells_enforced_conditions_from_pretended_ones() {
    for (conditions, enforced) in [
        (Conditions::Atomic, true),
        (Conditions::Ignored, false),
        (Conditions::Refused, false),
        (Conditions::Racy(Duration::from_millis(50)), false),
    ] {
        let server = server();
        server.set_conditions(conditions);
        let mut config = config(&server);
        config.conditional = Conditional::Probed;
        let s3 = S3::open(config).await.unwrap();
        let can = s3.probe().await.unwrap();
        assert_eq!(can, s3.capabilities(), "it is remembered");
        assert_eq!(
            (can.create_only, can.compare_and_swap),
            (enforced, enforced),
            "{conditions:?}"
        );
        assert_eq!(server.objects("bucket"), [], "the probe cleans up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_grow_to_the_stated_maximum() {
    let server = server();
    let s3 = open(&server).await;
    assert_eq!(s3.capabilities().max_object_size, Some(10_000 * (5 << 20)));
    let content = vec![3u8; (12 << 20) + 1];
    s3.create(&key("k"), content).await.unwrap();
    let stored = server.objects("bucket");
    assert_eq!(stored[0].parts, [5 << 20, 5 << 20, (2 << 20) + 1]);
    // A body of exactly one part needs no upload in parts.
    s3.create(&key("l"), vec![3u8; 5 << 20]).await.unwrap();
    assert_eq!(server.objects("bucket")[1].parts, [5 << 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_is_lost_is_a_success() {
    for (length, lost) in [(10usize, 1u64), (11 << 20, 1), (10, 2), (11 << 20, 2)] {
        let server = server();
        let s3 = open(&server).await;
        let count = Arc::new(AtomicU64::new(0));
        server.plan(move |request| {
            let hit = request.is_put_object() || request.is_complete();
            (hit && count.fetch_add(1, Ordering::SeqCst) < lost).then_some(Fault::LoseAnswer)
        });
        let made = s3.create(&key("k"), vec![5u8; length]).await.unwrap();
        assert_eq!(made.size, length as u64);
        assert_eq!(s3.head(&key("k")).await.unwrap().meta.version, made.version);
        assert_eq!(
            s3.create(&key("k"), "x").await.unwrap_err().kind(),
            ErrorKind::Exists
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_retried_by_the_layer_meets_its_own_object() {
    for length in [10usize, 11 << 20] {
        let server = server();
        let mut config = config(&server);
        config.attempts = 1;
        let s3 = S3::open(config).await.unwrap();
        let retry = RetryLayer::new(Arc::new(s3), RetryPolicy::default());
        let count = Arc::new(AtomicU64::new(0));
        server.plan(move |request| {
            let hit = request.is_put_object() || request.is_complete();
            // Also the question whether it succeeded stays without an answer.
            let asks = request.method == "HEAD";
            ((hit || asks) && count.fetch_add(1, Ordering::SeqCst) < 2).then_some(Fault::LoseAnswer)
        });
        retry.create(&key("k"), vec![5u8; length]).await.unwrap();
        server.heal();
        assert_eq!(
            retry.create(&key("k"), "x").await.unwrap_err().kind(),
            ErrorKind::Exists
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_tried_again_and_then_given_up() {
    for length in [10usize, 11 << 20] {
        let server = server();
        let s3 = open(&server).await;
        let count = Arc::new(AtomicU64::new(0));
        server.plan(move |request| {
            let hit = request.is_put_object() || request.is_complete();
            (hit && count.fetch_add(1, Ordering::SeqCst) < 3)
                .then(|| Fault::answer(409, "ConditionalRequestConflict"))
        });
        s3.create(&key("k"), vec![5u8; length]).await.unwrap();
        server.plan(|request| {
            (request.is_put_object() || request.is_complete())
                .then(|| Fault::answer(409, "ConditionalRequestConflict"))
        });
        let error = s3.create(&key("l"), vec![5u8; length]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_retryable());
        // Met by a conflict, an object that is another's is there.
        let error = s3.create(&key("k"), vec![6u8; length]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_answers_are_tried_again() {
    let server = server();
    let s3 = open(&server).await;
    for fault in [
        Fault::answer(500, "InternalError"),
        Fault::answer(503, "SlowDown"),
        Fault::Drop,
        Fault::Delay(Duration::from_millis(20)),
    ] {
        let name = key(&format!("{fault:?}").replace(['\"', '\\'], ""));
        let put_fault = fault.clone();
        server.plan(move |request| (request.number % 2 == 0).then(|| put_fault.clone()));
        s3.create(&name, vec![1u8; 6 << 20]).await.unwrap();
        assert_eq!(s3.read(&name).await.unwrap().len(), 6 << 20);
        assert_eq!(s3.list_all("").await.unwrap().len(), 1);
        s3.delete(&name).await.unwrap();
        server.heal();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_become_kinds() {
    let server = server();
    let mut config = config(&server);
    config.attempts = 1;
    let s3 = S3::open(config.clone()).await.unwrap();
    for (status, code, kind, retryable) in [
        (403, "AccessDenied", ErrorKind::Denied, false),
        (
            403,
            "SignatureDoesNotMatch",
            ErrorKind::Unauthenticated,
            false,
        ),
        (400, "ExpiredToken", ErrorKind::Unauthenticated, false),
        (404, "NoSuchBucket", ErrorKind::Invalid, false),
        (500, "InternalError", ErrorKind::Unavailable, true),
        (501, "NotImplemented", ErrorKind::Unsupported, false),
        (400, "MalformedXML", ErrorKind::Invalid, false),
        (429, "TooManyRequests", ErrorKind::Unavailable, true),
    ] {
        server.plan(move |_| Some(Fault::answer(status, code)));
        for error in [
            s3.overwrite(&key("k"), "x").await.unwrap_err(),
            s3.read(&key("k")).await.unwrap_err(),
            s3.list_all("").await.unwrap_err(),
            s3.delete(&key("k")).await.unwrap_err(),
        ] {
            assert_eq!(
                (error.kind(), error.is_retryable()),
                (kind, retryable),
                "{code} {error:?}"
            );
        }
    }
    server.plan(|_| {
        Some(Fault::Answer {
            status: http::StatusCode::SERVICE_UNAVAILABLE,
            code: "SlowDown".to_owned(),
            retry_after: Some(7),
        })
    });
    let error = s3.read(&key("k")).await.unwrap_err();
    assert_eq!(error.retry_hint(), Retry::After(Duration::from_secs(7)));
    server.heal();
    config.credentials = S3Credentials::Static(S3Keys::new("TESTKITACCESSKEY", "wrong"));
    let stranger = S3::open(config.clone()).await.unwrap();
    let error = stranger.overwrite(&key("k"), "x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    config.credentials = S3Credentials::Anonymous;
    let nobody = S3::open(config.clone()).await.unwrap();
    assert_eq!(
        nobody.read(&key("k")).await.unwrap_err().kind(),
        ErrorKind::Denied
    );
    config.endpoint = Some("http://127.0.0.1:1".to_owned());
    let nowhere = S3::open(config).await.unwrap();
    let error = nowhere.read(&key("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_says_nothing_is_unavailable_after_the_timeout() {
    let server = server();
    let mut config = config(&server);
    config.attempts = 1;
    config.read_timeout = Duration::from_millis(300);
    let s3 = S3::open(config).await.unwrap();
    server.plan(|_| Some(Fault::Hang));
    assert_eq!(
        s3.head(&key("k")).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_cut_is_an_error_and_resumed_by_the_layer() {
    let server = server();
    let s3 = open(&server).await;
    let content: Bytes = (0..500_000u32).flat_map(u32::to_le_bytes).collect();
    s3.create(&key("k"), content.clone()).await.unwrap();
    server.plan(|request| request.is_get_object().then_some(Fault::CutBody(100_000)));
    let error = s3.read(&key("k")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let count = Arc::new(AtomicU64::new(0));
    server.plan(move |request| {
        (request.is_get_object() && count.fetch_add(1, Ordering::SeqCst) < 4)
            .then_some(Fault::CutBody(100_000))
    });
    let retry = RetryLayer::new(Arc::new(s3), RetryPolicy::default());
    assert!(retry.read(&key("k")).await.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_dropped_or_fails_is_aborted() {
    let server = server();
    let s3 = open(&server).await;
    let name = key("k");
    let endless = stream::repeat_with(|| Ok(Bytes::from(vec![0u8; 1 << 20])));
    let put = tokio::time::timeout(
        Duration::from_secs(2),
        s3.create(&name, Body::stream(endless)),
    );
    assert!(put.await.is_err());
    eventually("the dropped upload is aborted", || {
        server.pending_uploads("bucket").is_empty()
    })
    .await;
    server.plan(|request| {
        request
            .is_complete()
            .then(|| Fault::answer(403, "AccessDenied"))
    });
    let error = s3.create(&name, vec![0u8; 11 << 20]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    eventually("the failed upload is aborted", || {
        server.pending_uploads("bucket").is_empty()
    })
    .await;
    assert_eq!(server.objects("bucket"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_of_dead_writers_expire_by_the_storages_clock() {
    let server = server();
    let s3 = open(&server).await;
    // Nothing can be aborted, as if every writer had died.
    server.plan(|request| {
        let abort = request.method == "DELETE" && request.asks("uploadId");
        abort.then(|| Fault::answer(403, "AccessDenied"))
    });
    let broken = || {
        Body::stream(
            stream::iter((0..12).map(|_| Ok(Bytes::from(vec![0u8; 1 << 20]))))
                .chain(stream::iter([Err(std::io::Error::other("broken"))])),
        )
    };
    for name in ["a/1", "a/2", "b/1"] {
        s3.create(&key(name), broken()).await.unwrap_err();
    }
    eventually("every abort was tried", || {
        server.requests_of("DELETE") >= 3
    })
    .await;
    assert_eq!(server.pending_uploads("bucket").len(), 3);
    server.heal();
    assert_eq!(
        s3.expire_uploads("", Duration::from_secs(3600), |_| true)
            .await
            .unwrap(),
        0
    );
    server.age("bucket", Duration::from_secs(7200));
    s3.create(&key("c"), broken()).await.unwrap_err();
    let hour = Duration::from_secs(3600);
    assert_eq!(s3.stale_uploads("a/", hour, |_| true).await.unwrap(), 2);
    let second = |key: &str| key == "a/2";
    assert_eq!(s3.expire_uploads("a/", hour, second).await.unwrap(), 1);
    assert_eq!(s3.stale_uploads("a/", hour, second).await.unwrap(), 0);
    assert_eq!(s3.expire_uploads("a/", hour, |_| true).await.unwrap(), 1);
    assert_eq!(
        s3.expire_uploads("", Duration::from_secs(3600), |_| true)
            .await
            .unwrap(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storages_clock_judges_ages() {
    let server = server();
    let s3 = open(&server).await;
    s3.create(&key("k"), "x").await.unwrap();
    server.age("bucket", Duration::from_secs(10_000));
    let age = s3.head(&key("k")).await.unwrap().age().unwrap();
    assert!(
        age >= Duration::from_secs(9_998) && age < Duration::from_secs(10_600),
        "{age:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_class_and_encryption_are_asked_for() {
    let server = server();
    for (encryption, named) in [
        (Encryption::Provider, "AES256"),
        (Encryption::Kms(Some("key-1".to_owned())), "aws:kms"),
    ] {
        let mut config = config(&server);
        config.storage_class = Some("STANDARD_IA".to_owned());
        config.encryption = Some(encryption);
        let s3 = S3::open(config).await.unwrap();
        s3.create(&key("small"), "x").await.unwrap();
        s3.create(&key("large"), vec![0u8; 6 << 20]).await.unwrap();
        for object in server.objects("bucket") {
            assert_eq!(
                object.storage_class.as_deref(),
                Some("STANDARD_IA"),
                "{object:?}"
            );
            assert_eq!(object.encryption.as_deref(), Some(named), "{object:?}");
        }
        s3.delete_prefix("").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_key_goes_with_every_request_about_content() {
    let server = server();
    let mut config = config(&server);
    let secret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    config.encryption = Some(Encryption::Customer(secret.into()));
    let s3 = S3::open(config).await.unwrap();
    server.plan(|request| {
        let about_content = request.path.matches('/').count() > 1
            && request.method != "DELETE"
            && !request.asks("delete");
        let has = |name| request.headers.contains_key(name);
        let carried = has("x-amz-server-side-encryption-customer-key")
            && has("x-amz-server-side-encryption-customer-key-md5");
        (about_content && !carried).then(|| Fault::answer(400, "InvalidRequest"))
    });
    for length in [10usize, 11 << 20] {
        s3.create(&key("k"), vec![1u8; length]).await.unwrap();
        assert_eq!(s3.read(&key("k")).await.unwrap().len(), length);
        s3.head(&key("k")).await.unwrap();
        s3.delete(&key("k")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_such_as_s3_compatibles_take() {
    let server = server();
    let s3 = open(&server).await;
    server.plan(|request| {
        let header = |name: &str| {
            request
                .headers
                .get(name)
                .map(|v| v.to_str().unwrap().to_owned())
        };
        let chunked = header("content-encoding").is_some_and(|v| v.contains("aws-chunked"))
            || header("x-amz-trailer").is_some()
            || header("x-amz-content-sha256").is_some_and(|v| v.starts_with("STREAMING"));
        let checksummed = request.is_put_object()
            && request
                .headers
                .keys()
                .any(|name| name.as_str().starts_with("x-amz-checksum"));
        let lengthless = request.method == "PUT" && header("content-length").is_none();
        (chunked || checksummed || lengthless).then(|| Fault::answer(400, "InvalidRequest"))
    });
    s3.create(&key("small"), "x").await.unwrap();
    let chunks = (0..7).map(|_| Ok(Bytes::from(vec![0u8; 1 << 20])));
    s3.create(&key("large"), Body::stream(stream::iter(chunks)))
        .await
        .unwrap();
    assert_eq!(s3.read(&key("large")).await.unwrap().len(), 7 << 20);
    assert_eq!(s3.delete_prefix("").await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_lie_near_are_fetched_together() {
    let server = server();
    let s3 = open(&server).await;
    s3.create(&key("k"), vec![0u8; 3_000_000]).await.unwrap();
    let before = server.requests_of("GET");
    let ranges: Vec<_> = (0..100u64).map(|i| i * 1000..i * 1000 + 10).collect();
    assert_eq!(
        s3.get_ranges(&key("k"), &ranges, GetOptions::new())
            .await
            .unwrap()
            .len(),
        100
    );
    assert_eq!(server.requests_of("GET") - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_racing_with_tokens_have_one_winner() {
    let server = server();
    let (one, two) = (open(&server).await, open(&server).await);
    for round in 0..10 {
        let name = key(&format!("race/{round}"));
        let mine = || PutOptions::create().with_token(PutToken::random());
        let (a, b) = tokio::join!(
            one.put(&name, "same".into(), mine()),
            two.put(&name, "same".into(), mine())
        );
        assert!(
            a.is_ok() != b.is_ok(),
            "equal content is not equal identity: {a:?} {b:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_the_sdk_repeated_is_never_told_as_refused() {
    for length in [10usize, 11 << 20] {
        for somebody_else_writes in [false, true] {
            let server = server();
            let (s3, name) = (open(&server).await, key("k"));
            let old = s3.create(&key("k"), "old").await.unwrap();
            let count = Arc::new(AtomicU64::new(0));
            let other = open(&server).await;
            server.plan(move |request| {
                if !request.headers.contains_key("if-match") {
                    return None;
                }
                match count.fetch_add(1, Ordering::SeqCst) {
                    0 => Some(Fault::LoseAnswer),
                    // Before the repetition arrives, another writer has been there.
                    1 => Some(Fault::Delay(Duration::from_secs(2))),
                    _ => None,
                }
            });
            let swap = s3.replace(&name, old.version.as_ref().unwrap(), vec![1u8; length]);
            let theirs = async {
                if !somebody_else_writes {
                    return;
                }
                while other.head(&key("k")).await.unwrap().meta.version == old.version {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                other.overwrite(&key("k"), "theirs").await.unwrap();
            };
            let (swapped, ()) = tokio::join!(swap, theirs);
            if somebody_else_writes {
                let error = swapped.unwrap_err();
                assert!(error.outcome_unknown(), "{length}: {error:?}");
                assert_ne!(error.kind(), ErrorKind::Precondition, "{length}: {error:?}");
                assert_eq!(s3.read(&key("k")).await.unwrap(), "theirs");
            } else {
                assert_eq!(swapped.unwrap().size, length as u64);
            }
            server.heal();
            let stale = s3.replace(&name, old.version.as_ref().unwrap(), "late");
            let error = stale.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Precondition);
            assert!(!error.outcome_unknown(), "{error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_that_nothing_happened() {
    let server = server();
    let mut config = config(&server);
    config.attempts = 1;
    let s3 = S3::open(config).await.unwrap();
    for (fault, unknown) in [
        (Fault::answer(503, "SlowDown"), false),
        (Fault::answer(403, "AccessDenied"), false),
        (Fault::answer(500, "InternalError"), true),
        (Fault::Drop, true),
    ] {
        let named = format!("{fault:?}");
        server.plan(move |_| Some(fault.clone()));
        let error = s3.overwrite(&key("k"), "x").await.unwrap_err();
        assert_eq!(error.outcome_unknown(), unknown, "{named}: {error:?}");
        // Parts alone are no object.
        let error = s3
            .overwrite(&key("k"), vec![0u8; 11 << 20])
            .await
            .unwrap_err();
        assert!(!error.outcome_unknown(), "{named}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_object_lock_takes_uploads_that_carry_a_digest() {
    let server = S3Server::start(S3ServerOptions {
        object_lock: true,
        ..S3ServerOptions::default()
    });
    for (checksum, taken) in [(Checksum::None, false), (Checksum::Md5, true)] {
        let mut config = config(&server);
        config.checksum = checksum;
        let s3 = S3::open(config).await.unwrap();
        for (name, length) in [
            ("small", 1usize),
            ("large", 11 << 20),
            ("one-part", 1 << 20),
        ] {
            let put = s3.create(&key(name), vec![7u8; length]).await;
            if taken {
                put.unwrap();
                assert_eq!(s3.read(&key(name)).await.unwrap().len(), length);
            } else {
                assert_eq!(put.unwrap_err().kind(), ErrorKind::Invalid, "{name}");
            }
        }
    }
    assert_eq!(server.objects("bucket").len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_about_no_key_leaves_no_key_deleted_for_sure() {
    let server = server();
    let s3 = open(&server).await;
    let keys: Vec<Key> = (0..5).map(|number| key(&format!("k{number}"))).collect();
    let delete = |retried: bool| {
        let asked = stream::iter(keys.clone().into_iter().map(Ok)).boxed();
        let s3: Arc<dyn Storage> = Arc::new(s3.clone());
        let storage = match retried {
            false => s3,
            true => Arc::new(RetryLayer::new(s3, RetryPolicy::default())),
        };
        async move { storage.delete_many(asked).collect::<Vec<_>>().await }
    };
    for (code, kind) in [
        ("InternalError", ErrorKind::Unavailable),
        ("AccessDenied", ErrorKind::Denied),
    ] {
        for stranger in ["", "<Key>another</Key>"] {
            let count = Arc::new(AtomicU64::new(0));
            let text = format!(
                "<?xml version=\"1.0\"?><DeleteResult><Error><Code>AccessDenied</Code>\
                 <Key>k1</Key></Error><Error><Code>{code}</Code>{stranger}</Error></DeleteResult>"
            );
            server.plan(move |request| {
                (request.asks("delete") && count.fetch_add(1, Ordering::SeqCst) == 0)
                    .then(|| Fault::Say(text.clone()))
            });
            let answers = delete(false).await;
            assert_eq!(answers.len(), 5);
            for answer in answers {
                let error = answer.unwrap_err();
                let own = error.key() == Some("k1");
                let expected = if own { ErrorKind::Denied } else { kind };
                assert_eq!(error.kind(), expected, "{error:?}");
            }
        }
    }
    // Above it the layer tries again those that may help.
    let count = Arc::new(AtomicU64::new(0));
    server.plan(move |request| {
        let text = "<DeleteResult><Error><Code>InternalError</Code></Error></DeleteResult>";
        (request.asks("delete") && count.fetch_add(1, Ordering::SeqCst) == 0)
            .then(|| Fault::Say(text.to_owned()))
    });
    let answers = delete(true).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_authority_must_be_trusted() {
    let server = S3Server::start(S3ServerOptions {
        tls: true,
        ..S3ServerOptions::default()
    });
    assert!(server.endpoint().starts_with("https://"));
    let mut trusting = config(&server);
    trusting.ca_certificate = Some(server.authority().unwrap().as_bytes().to_vec());
    let s3 = S3::open(trusting.clone()).await.unwrap();
    for length in [10usize, 11 << 20] {
        let name = key(&format!("of-{length}"));
        s3.create(&name, vec![4u8; length]).await.unwrap();
        assert_eq!(s3.read(&name).await.unwrap().len(), length);
    }
    assert_eq!(s3.list_all("").await.unwrap().len(), 2);
    // Without the authority, or with another's, nothing is sent.
    let before = server.requests();
    let stranger = S3Server::start(S3ServerOptions {
        tls: true,
        ..S3ServerOptions::default()
    });
    for authority in [None, stranger.authority()] {
        let mut config = config(&server);
        config.attempts = 1;
        config.ca_certificate = authority.map(|pem| pem.as_bytes().to_vec());
        let s3 = S3::open(config).await.unwrap();
        let error = s3.read(&key("of-10")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        let text = format!("{:?}", std::error::Error::source(&error));
        assert!(text.to_lowercase().contains("certificate"), "{text}");
    }
    assert_eq!(server.requests(), before);
    // The whole contract, with the certificate by variable as the AWS tools take it.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), server.authority().unwrap()).unwrap();
    let options = server.options();
    let mut context = Context::default();
    context.variables = [
        ("AWS_CA_BUNDLE", file.path().to_str().unwrap()),
        ("AWS_ACCESS_KEY_ID", options.access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", options.secret_key.as_str()),
    ]
    .into_iter()
    .collect();
    let text = format!("s3://bucket/tls?endpoint={}&list-page=7", server.endpoint());
    let locator = Locator::parse(&text).unwrap();
    let storage = Registry::default().open(&locator, &context).await.unwrap();
    contract::run(storage).await.into_result().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_name_the_region_and_the_bucket_as_configured() {
    let server = server();
    let mut config = config(&server);
    config.region = Some("eu-south-2".to_owned());
    let s3 = S3::open(config).await.unwrap();
    server.plan(|request| {
        let signed = request.headers.get("authorization");
        let scope = signed.is_some_and(|v| v.to_str().unwrap().contains("/eu-south-2/s3/"));
        let named = request.path.starts_with("/bucket");
        (!scope || !named).then(|| Fault::answer(400, "InvalidRequest"))
    });
    s3.create(&key("k"), "x").await.unwrap();
    assert_eq!(s3.read(&key("k")).await.unwrap(), "x");
    assert_eq!(s3.list_all("").await.unwrap().len(), 1);
}
