//! Where keys come from: files, the machine, a token, the caller's own source.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use neon_storage::{
    Conditional, CredentialsSource, Error, ErrorKind, Key, Operation, Result, S3, S3Config,
    S3Credentials, S3Keys, StorageExt, Variables,
};
use neon_testkit::s3::{S3Server, S3ServerOptions};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

async fn open(server: &S3Server, credentials: S3Credentials) -> S3 {
    let mut config = S3Config::new("bucket");
    config.conditional = Conditional::Trusted;
    config.endpoint = Some(server.endpoint());
    config.credentials = credentials;
    config.attempts = 1;
    S3::open(config).await.unwrap()
}

fn server() -> S3Server {
    S3Server::start(S3ServerOptions::default())
}

fn keys() -> S3Keys {
    let options = S3ServerOptions::default();
    S3Keys::new(options.access_key, options.secret_key.as_str())
}

type Question = (String, String, http::HeaderMap, String);
type Talk = Arc<Mutex<Vec<Question>>>;

/// A service that answers every question by a function, and what it was asked.
async fn service(answer: fn(&Question) -> (u16, String)) -> (String, Talk) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let talk = Talk::default();
    let asked = Arc::clone(&talk);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let asked = Arc::clone(&asked);
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let body = String::from_utf8(body.to_vec()).unwrap();
                        let path = head.uri.path_and_query().unwrap().to_string();
                        let question = (head.method.to_string(), path, head.headers, body);
                        let (status, text) = answer(&question);
                        asked.lock().unwrap().push(question);
                        let answer = http::Response::builder().status(status);
                        Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(text))).unwrap())
                    }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service);
                let _closed = served.await;
            });
        }
    });
    (address, talk)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_found_in_the_given_files() {
    let server = server();
    let dir = tempfile::tempdir().unwrap();
    let (credentials, config) = (dir.path().join("credentials"), dir.path().join("config"));
    let options = server.options();
    std::fs::write(
        &credentials,
        format!(
            "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n\n\
         [half]\naws_access_key_id = lonely\n\n\
         [work]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            options.access_key, options.secret_key
        ),
    )
    .unwrap();
    std::fs::write(
        &config,
        "[profile broken]\ncredential_process = /bin/true\n",
    )
    .unwrap();
    let files = vec![credentials, config, dir.path().join("missing")];
    let profile = |name: &str| S3Credentials::Profile {
        files: files.clone(),
        name: name.to_owned(),
    };
    open(&server, profile("work"))
        .await
        .create(&key("k"), "x")
        .await
        .unwrap();
    for name in ["default", "none", "broken", "half"] {
        let error = open(&server, profile(name))
            .await
            .read(&key("k"))
            .await
            .unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Unauthenticated,
            "{name}: {error:?}"
        );
    }
    let variables: Variables = [
        ("AWS_PROFILE", "work"),
        ("AWS_SHARED_CREDENTIALS_FILE", files[0].to_str().unwrap()),
    ]
    .into_iter()
    .collect();
    let found = S3Credentials::from_variables(&variables, None).unwrap();
    assert_eq!(
        open(&server, found).await.read(&key("k")).await.unwrap(),
        "x"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machines_role_is_asked_for_with_a_session() {
    let server = server();
    let (address, talk) = service(|(method, path, headers, _)| {
        let options = S3ServerOptions::default();
        let session = headers.get("x-aws-ec2-metadata-token").is_some_and(|token| token == "SESSION");
        match (method.as_str(), path.as_str()) {
            ("PUT", "/latest/api/token") => (200, "SESSION".to_owned()),
            _ if !session => (401, String::new()),
            ("GET", "/latest/meta-data/iam/security-credentials/") => (200, "role\n".to_owned()),
            ("GET", "/latest/meta-data/iam/security-credentials/role") => (200, format!(
                r#"{{"Code":"Success","AccessKeyId":"{}","SecretAccessKey":"{}","Token":"TOKEN","Expiration":"2199-01-01T00:00:00Z"}}"#,
                options.access_key, options.secret_key
            )),
            _ => (404, String::new()),
        }
    })
    .await;
    let storage = open(
        &server,
        S3Credentials::Instance {
            endpoint: Some(address),
        },
    )
    .await;
    for name in ["a", "b", "c"] {
        storage.create(&key(name), "x").await.unwrap();
    }
    assert_eq!(
        talk.lock().unwrap().len(),
        3,
        "keys are kept until they end"
    );
    let nowhere = S3Credentials::Instance {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
    };
    let error = open(&server, nowhere)
        .await
        .read(&key("a"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_taken_by_a_token_in_a_file() {
    let server = server();
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "WEB-TOKEN\n").unwrap();
    let (address, talk) = service(|(_, _, _, form)| {
        let options = S3ServerOptions::default();
        if !form.contains("WebIdentityToken=WEB-TOKEN") {
            let refusal =
                "<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>";
            return (400, refusal.to_owned());
        }
        (
            200,
            format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
             <AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey>\
             <SessionToken>TOKEN</SessionToken><Expiration>2199-01-01T00:00:00Z</Expiration>\
             </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
                options.access_key, options.secret_key
            ),
        )
    })
    .await;
    let variables: Variables = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token_file.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ("AWS_ROLE_SESSION_NAME", "session"),
        ("AWS_ENDPOINT_URL_STS", &address),
    ]
    .into_iter()
    .collect();
    let credentials = S3Credentials::from_variables(&variables, Some(&[])).unwrap();
    open(&server, credentials.clone())
        .await
        .create(&key("k"), "x")
        .await
        .unwrap();
    let asked = talk.lock().unwrap()[0].clone();
    assert_eq!(
        (asked.0.as_str(), asked.1.as_str()),
        ("POST", "/"),
        "no token in the address"
    );
    assert!(
        asked
            .3
            .contains("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr")
    );
    assert!(asked.3.contains("RoleSessionName=session"));
    std::fs::write(&token_file, "ANOTHER").unwrap();
    let error = open(&server, credentials)
        .await
        .read(&key("k"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
}

#[derive(Debug, Default)]
struct Vault {
    asked: AtomicU64,
}

#[async_trait]
impl CredentialsSource for Vault {
    async fn fetch(&self) -> Result<S3Keys> {
        let failed = |kind| Err(Error::new(kind, Operation::Open).detail("from the vault"));
        match self.asked.fetch_add(1, Ordering::SeqCst) {
            0 => failed(ErrorKind::Unavailable),
            1 => failed(ErrorKind::Denied),
            _ => Ok(keys().temporary("TOKEN", Some(SystemTime::now() + Duration::from_secs(1)))),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_source_is_asked_again_before_keys_end() {
    let server = server();
    let vault = Arc::new(Vault::default());
    let storage = open(&server, S3Credentials::Source(vault.clone())).await;
    let error = storage.overwrite(&key("k"), "x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let error = storage.overwrite(&key("k"), "x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
    for _ in 0..3 {
        storage.overwrite(&key("k"), "x").await.unwrap();
    }
    assert!(
        vault.asked.load(Ordering::SeqCst) >= 4,
        "keys that end soon are fetched anew"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_source_that_has_keys_is_used() {
    let server = server();
    let nothing = S3Credentials::Profile {
        files: Vec::new(),
        name: "none".to_owned(),
    };
    let chain = S3Credentials::FirstOf(vec![nothing.clone(), S3Credentials::Static(keys())]);
    open(&server, chain)
        .await
        .create(&key("k"), "x")
        .await
        .unwrap();
    let chain = S3Credentials::FirstOf(vec![nothing]);
    let error = open(&server, chain)
        .await
        .read(&key("k"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
}
