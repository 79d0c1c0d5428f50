//! HTTP, read only: the contract over a plain web server, resumption, redirections, kinds.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use neon_storage::{
    ErrorKind, GetOptions, GetRange, Http, HttpConfig, Key, Native, NativeOptions, Storage,
    StorageExt, contract,
};

use crate::web::Web;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

struct Served {
    _dir: tempfile::TempDir,
    native: Arc<Native>,
    web: Web,
    http: Http,
}

impl Served {
    /// Makes a file look as if its second were not over, for as long as the test may take.
    fn rejuvenate(&self, name: &str) {
        let file = std::fs::File::open(self._dir.path().join(name)).unwrap();
        let then = SystemTime::now() + Duration::from_secs(3600);
        file.set_modified(then).unwrap();
    }

    /// Makes a file look so many seconds older.
    fn age(&self, name: &str, seconds: u64) {
        let file = std::fs::File::open(self._dir.path().join(name)).unwrap();
        let then = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(then).unwrap();
    }
}

async fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let native = Arc::new(Native::open(dir.path(), NativeOptions::default()).unwrap());
    let web = Web::start(dir.path().to_owned()).await;
    let http = Http::new(HttpConfig::new(format!("http://{}/", web.address))).unwrap();
    Served {
        _dir: dir,
        native,
        web,
        http,
    }
}

fn content() -> Bytes {
    (0..300_000u32).flat_map(u32::to_le_bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_keeps_the_contract_of_a_reader() {
    let served = served().await;
    let report =
        contract::run_read_only(Arc::new(served.http.clone()), served.native.clone()).await;
    assert!(report.held() > 8, "{report:#?}");
    report.into_result().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_is_resumed_where_it_broke() {
    let served = served().await;
    served.native.create(&key("k"), content()).await.unwrap();
    served.age("k", 3600);
    for no_etag in [false, true] {
        served.web.set(|manners| {
            manners.no_etag = no_etag;
            manners.cut = Some((100_000, 7));
        });
        served.web.seen.lock().unwrap().clear();
        assert!(served.http.read(&key("k")).await.unwrap() == content());
        let seen = served.web.seen.lock().unwrap().clone();
        assert_eq!(seen.len(), 8);
        assert!(
            seen[1..]
                .iter()
                .all(|headers| headers.contains_key("if-range"))
        );
        let range = GetOptions::new().range(GetRange::Bounded(1000..900_000));
        served.web.set(|manners| manners.cut = Some((100_000, 3)));
        let got = served
            .http
            .get(&key("k"), range)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        assert!(got == content().slice(1000..900_000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_always_breaks_at_once_is_given_up() {
    let served = served().await;
    served.native.create(&key("k"), content()).await.unwrap();
    served.web.set(|manners| manners.cut = Some((0, 1000)));
    let error = served.http.read(&key("k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        served
            .web
            .requests
            .load(std::sync::atomic::Ordering::SeqCst)
            < 10
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_are_never_joined() {
    let served = served().await;
    served.native.create(&key("k"), content()).await.unwrap();
    served.web.set(|manners| manners.cut = Some((100_000, 1)));
    let got = served.http.get(&key("k"), GetOptions::new()).await.unwrap();
    served
        .native
        .overwrite(&key("k"), vec![0u8; content().len()])
        .await
        .unwrap();
    let error = got.bytes().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    assert!(error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_if_match_is_not_believed() {
    let served = served().await;
    served.native.create(&key("k"), "old").await.unwrap();
    let version = served
        .http
        .head(&key("k"))
        .await
        .unwrap()
        .meta
        .version
        .unwrap();
    served.native.overwrite(&key("k"), "new").await.unwrap();
    served.web.set(|manners| manners.no_if_match = true);
    let bound = GetOptions::new().if_version(version);
    let error = served.http.get(&key("k"), bound).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_found_out() {
    let served = served().await;
    served.native.create(&key("k"), content()).await.unwrap();
    served.web.set(|manners| manners.no_ranges = true);
    assert!(served.http.read(&key("k")).await.unwrap() == content());
    let error = served.http.read_range(&key("k"), 10..20).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_become_kinds() {
    let served = served().await;
    for (status, kind) in [
        (401, ErrorKind::Unauthenticated),
        (403, ErrorKind::Denied),
        (404, ErrorKind::NotFound),
        (410, ErrorKind::NotFound),
        (429, ErrorKind::Unavailable),
        (500, ErrorKind::Unavailable),
        (501, ErrorKind::Unsupported),
        (400, ErrorKind::Invalid),
    ] {
        served.web.set(|manners| manners.status = Some(status));
        assert_eq!(
            served.http.read(&key("k")).await.unwrap_err().kind(),
            kind,
            "{status}"
        );
        assert_eq!(
            served.http.head(&key("k")).await.unwrap_err().kind(),
            kind,
            "{status}"
        );
    }
    let nowhere = Http::new(HttpConfig::new("http://127.0.0.1:1/")).unwrap();
    let error = nowhere.read(&key("k")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirections_are_followed_without_the_credentials() {
    let (front, back) = (served().await, served().await);
    back.native.create(&key("k"), "behind").await.unwrap();
    let target = format!("http://{}", back.web.address);
    front.web.set(|manners| manners.redirect = Some(target));
    let config = HttpConfig::new(format!("http://me:secret@{}/", front.web.address));
    let http = Http::new(config).unwrap();
    assert_eq!(http.read(&key("k")).await.unwrap(), "behind");
    assert!(front.web.seen.lock().unwrap()[0].contains_key("authorization"));
    assert!(!back.web.seen.lock().unwrap()[0].contains_key("authorization"));
    let circle = format!("http://{}", front.web.address);
    front.web.set(|manners| manners.redirect = Some(circle));
    assert_eq!(
        http.read(&key("k")).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_are_sent_as_basic_authentication() {
    let served = served().await;
    served.native.create(&key("k"), "x").await.unwrap();
    served
        .web
        .set(|manners| manners.authorization = Some("Basic bWU6c2VjcmV0".to_owned()));
    assert_eq!(
        served.http.read(&key("k")).await.unwrap_err().kind(),
        ErrorKind::Unauthenticated
    );
    let config = HttpConfig::new(format!("http://me:secret@{}/", served.web.address));
    assert_eq!(
        Http::new(config).unwrap().read(&key("k")).await.unwrap(),
        "x"
    );
    let mut config = HttpConfig::new(format!("http://{}/", served.web.address));
    config
        .headers
        .push(("authorization".to_owned(), "Basic bWU6c2VjcmV0".into()));
    config.read_timeout = Duration::from_secs(5);
    assert_eq!(
        Http::new(config).unwrap().read(&key("k")).await.unwrap(),
        "x"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_nothing_binds_together_come_out_of_one_answer() {
    let served = served().await;
    let name = key("k");
    served.native.create(&name, content()).await.unwrap();
    // Too far apart to be fetched together for the sake of requests.
    let ranges = [1_000_000..1_000_100, 0..100, 500_000..500_010];
    let expected: Vec<Bytes> = ranges
        .iter()
        .map(|range| {
            let at = |offset: u64| usize::try_from(offset).unwrap();
            content().slice(at(range.start)..at(range.end))
        })
        .collect();
    let inverted: Vec<Bytes> = expected
        .iter()
        .map(|bytes| bytes.iter().map(|byte| !byte).collect())
        .collect();
    for no_modified in [true, false] {
        // The file is so young that its time tells nothing.
        served.rejuvenate("k");
        served.web.set(|manners| {
            manners.no_etag = true;
            manners.no_modified = no_modified;
            manners.faces = Some(0);
        });
        let got = served.http.get_ranges(&name, &ranges, GetOptions::new());
        let got = got.await.unwrap();
        assert!(
            got == expected || got == inverted,
            "two versions are joined"
        );
        served.web.set(|manners| manners.faces = None);
        let got = served.http.get_ranges(&name, &ranges, GetOptions::new());
        assert_eq!(got.await.unwrap(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_entity_tag_the_time_of_the_last_change_is_the_version() {
    let served = served().await;
    served.native.create(&key("k"), content()).await.unwrap();
    served.rejuvenate("k");
    served.web.set(|manners| manners.no_etag = true);
    assert_eq!(
        served.http.head(&key("k")).await.unwrap().meta.version,
        None,
        "within its second a file can change once more"
    );
    served.age("k", 7200);
    let version = served
        .http
        .head(&key("k"))
        .await
        .unwrap()
        .meta
        .version
        .unwrap();
    let bound = || GetOptions::new().if_version(version.clone());
    let got = served.http.get(&key("k"), bound()).await.unwrap();
    assert!(got.bytes().await.unwrap() == content());
    served.native.overwrite(&key("k"), "other").await.unwrap();
    for ignored in [false, true] {
        served.age("k", 3600);
        served.web.set(|manners| manners.no_if_match = ignored);
        let error = served.http.get(&key("k"), bound()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
    }
}
