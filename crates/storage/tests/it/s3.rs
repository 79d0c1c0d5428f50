//! S3 over real HTTP: the contract, and what providers and networks do to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use neon_storage::{
    Body, Conditional, Encryption, ErrorKind, GetOptions, Key, Limit, Prefix, PutOptions, PutToken,
    Retry, RetryLayer, RetryPolicy, S3, S3Config, S3Credentials, S3Keys, Storage, StorageExt,
    contract,
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
    assert!(!s3.capabilities().create_only && !s3.capabilities().compare_and_swap);
    let refused = s3.create(&key("k"), "x").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    s3.overwrite(&key("k"), "x").await.unwrap();
    assert_eq!(s3.read(&key("k")).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_may_only_read_open_an_endpoint_that_is_probed() {
    let server = server();
    open(&server).await.create(&key("k"), "x").await.unwrap();
    server.plan(|request| {
        request
            .is_put_object()
            .then(|| Fault::answer(403, "AccessDenied"))
    });
    let mut config = config(&server);
    config.conditional = Conditional::Automatic;
    let s3 = S3::open(config).await.unwrap();
    assert!(!s3.capabilities().create_only);
    assert_eq!(s3.read(&key("k")).await.unwrap(), "x");
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
        let can = s3.capabilities();
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
        s3.expire_uploads("", Duration::from_secs(3600))
            .await
            .unwrap(),
        0
    );
    server.age("bucket", Duration::from_secs(7200));
    s3.create(&key("c"), broken()).await.unwrap_err();
    assert_eq!(
        s3.expire_uploads("a/", Duration::from_secs(3600))
            .await
            .unwrap(),
        2
    );
    assert_eq!(
        s3.expire_uploads("", Duration::from_secs(3600))
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
