//! No secret shows: not in Display, Debug, errors or anything that is traced.

use std::fmt::Debug;
use std::io::Write;
use std::sync::{Arc, Mutex};

use neon_storage::{
    Context, Encryption, Http, HttpConfig, Key, Locator, Registry, S3, S3Config, S3Credentials,
    S3Keys, Storage, StorageExt, Variables,
};
use neon_testkit::s3::{Fault, S3Server, S3ServerOptions};
use tracing_subscriber::fmt::MakeWriter;

const SECRET: &str = "sEcReTkEy0123456789abcdefghijklmnopqrst";
const TOKEN: &str = "sEsSiOnToKeN0123456789";
const PASSWORD: &str = "pAsSwOrD0123456789";
/// Of 32 bytes, in base64.
const CUSTOMER_KEY: &str = "Y3VzdG9tZXIta2V5LW9mLTMyLWJ5dGVzLXRoYXQtaGk=";
const BEARER: &str = "bEaReRtOkEn0123456789";
const SIGNATURE: &str = "qUeRySiGnAtUrE0123456789";

const ALL: [&str; 6] = [SECRET, TOKEN, PASSWORD, CUSTOMER_KEY, BEARER, SIGNATURE];

/// Everything that was shown anywhere.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Shown {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Shown {
    fn debug(&self, value: &dyn Debug) {
        writeln!(self.clone(), "{value:?}\n{value:#?}").unwrap();
    }

    fn error(&self, error: &neon_storage::Error) {
        self.debug(error);
        let mut cause: Option<&dyn std::error::Error> = Some(error);
        while let Some(error) = cause {
            writeln!(self.clone(), "{error}").unwrap();
            cause = error.source();
        }
    }

    async fn exercise(&self, storage: &dyn Storage) {
        let key = Key::new("dir/key").unwrap();
        writeln!(self.clone(), "{} {storage:?}", storage.location()).unwrap();
        for body in [10usize, 6 << 20] {
            if let Err(error) = storage.create(&key, vec![0u8; body]).await {
                self.error(&error);
            }
            if let Err(error) = storage.overwrite(&key, vec![0u8; body]).await {
                self.error(&error);
            }
        }
        for outcome in [
            storage.read(&key).await.map(drop),
            storage.head(&key).await.map(drop),
            storage.list_all("").await.map(drop),
            storage.delete(&key).await,
        ] {
            if let Err(error) = outcome {
                self.error(&error);
            }
        }
    }
}

// On one thread, so that everything the client does is traced, down to the last dependency.
#[tokio::test]
async fn no_secret_is_ever_shown() {
    let shown = Shown::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(shown.clone())
        .with_ansi(false)
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let server = S3Server::start(S3ServerOptions {
        secret_key: SECRET.to_owned(),
        ..S3ServerOptions::default()
    });
    let access_key = server.options().access_key.clone();
    let mut config = S3Config::new("bucket");
    config.endpoint = Some(
        server
            .endpoint()
            .replace("http://", &format!("http://me:{PASSWORD}@")),
    );
    config.attempts = 2;
    config.encryption = Some(Encryption::Customer(CUSTOMER_KEY.into()));
    let keys = S3Keys::new(access_key.as_str(), SECRET).temporary(TOKEN, None);
    config.credentials = S3Credentials::Static(keys);
    shown.debug(&config);
    shown.error(&S3::open(config.clone()).await.unwrap_err());
    config.endpoint = Some(server.endpoint());
    let s3 = S3::open(config.clone()).await.unwrap();
    shown.exercise(&s3).await;
    for fault in [
        Fault::answer(403, "AccessDenied"),
        Fault::answer(500, "InternalError"),
        Fault::answer(400, "ExpiredToken"),
        Fault::Drop,
        Fault::LoseAnswer,
    ] {
        server.plan(move |_| Some(fault.clone()));
        shown.exercise(&s3).await;
    }
    server.heal();
    let mut context = Context::default();
    context.variables = [
        ("AWS_ACCESS_KEY_ID", access_key.as_str()),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", TOKEN),
        ("WALG_S3_PREFIX", "s3://bucket/x"),
        ("S3_SSE", SECRET),
        ("S3_MAX_PART_SIZE", PASSWORD),
    ]
    .into_iter()
    .collect::<Variables>();
    shown.debug(&context);
    let registry = Registry::default();
    for text in [
        "s3://bucket/x".to_owned(),
        format!("s3://me:{PASSWORD}@bucket/x"),
        format!("s3://bucket/x?secret-access-key={SECRET}"),
        format!("ssh://me:{PASSWORD}@host/x"),
        format!("https://me:{PASSWORD}@127.0.0.1:1/x?sig={SIGNATURE}"),
        format!("http://me:{PASSWORD}@127.0.0.1:1/x?{SIGNATURE}"),
        format!("ftp://me:{PASSWORD}@host/x"),
    ] {
        let locator = Locator::parse(&text).unwrap();
        writeln!(shown.clone(), "{locator} {locator:?}").unwrap();
        match registry.open(&locator, &context).await {
            Ok(storage) => shown.exercise(&*storage).await,
            Err(error) => shown.error(&error),
        }
    }
    let mut config = HttpConfig::new(format!("http://me:{PASSWORD}@127.0.0.1:1/?sig={SIGNATURE}"));
    config.headers.push(("x-token".to_owned(), BEARER.into()));
    shown.debug(&config);
    let http = Http::new(config.clone()).unwrap();
    shown.exercise(&http).await;
    config
        .headers
        .push(("bad header".to_owned(), BEARER.into()));
    shown.error(&Http::new(config).unwrap_err());
    drop(guard);
    let shown = String::from_utf8_lossy(&shown.0.lock().unwrap()).into_owned();
    assert!(shown.len() > 10_000, "the trace is heard");
    assert!(shown.contains("dir/key"), "what may show does");
    for secret in ALL {
        if let Some(at) = shown.find(secret) {
            let from = shown[..at].rfind('\n').map_or(0, |line| line + 1);
            let to = shown[at..].find('\n').map_or(shown.len(), |line| at + line);
            panic!("{secret} is shown: {}", &shown[from..to.min(from + 2000)]);
        }
    }
}
