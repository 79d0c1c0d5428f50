//! The server's socket and the handle that a test holds.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::bucket::{Bucket, Conditions, PendingUpload, Retention, StoredObject, Versions};
use super::content::Content;
use super::fault::{Fault, RequestInfo};
use super::service::{Service, State};

/// Whom the server lets in and what it has.
#[derive(Debug, Clone)]
pub struct S3ServerOptions {
    /// The access key.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
    /// The buckets that exist.
    pub buckets: Vec<String>,
    /// How faithfully conditions on writes are kept.
    pub conditions: Conditions,
    /// Whether the buckets have object lock: uploads without a digest are refused.
    pub object_lock: bool,
    /// What becomes of an object that is deleted or written over.
    pub retention: Retention,
    /// Whether it speaks TLS, with a certificate by an authority of its own.
    pub tls: bool,
}

impl Default for S3ServerOptions {
    fn default() -> Self {
        Self {
            access_key: "TESTKITACCESSKEY".to_owned(),
            secret_key: "testkit/secret+key/that=never/shows".to_owned(),
            buckets: vec!["bucket".to_owned()],
            conditions: Conditions::Atomic,
            object_lock: false,
            retention: Retention::None,
            tls: false,
        }
    }
}

/// An authority that nobody else knows, and a certificate for loopback that it signed.
struct Tls {
    authority: String,
    acceptor: TlsAcceptor,
}

impl Tls {
    fn make() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signed = authority.self_signed(&key).unwrap();
        let issuer = Issuer::new(authority, key);
        let server_key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&server_key, &issuer).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(server_key.serialize_der()).into(),
            )
            .unwrap();
        Self {
            authority: signed.pem(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }
}

/// A running server. It stops when the handle goes.
///
/// It has threads of its own, so it serves tests with any runtime or none.
pub struct S3Server {
    address: SocketAddr,
    options: S3ServerOptions,
    authority: Option<String>,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl fmt::Debug for S3Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

type Plan = Box<dyn Fn(&RequestInfo) -> Option<Fault> + Send + Sync>;

struct Shared {
    state: Arc<State>,
    service: S3Service,
    requests: AtomicU64,
    by_method: Mutex<HashMap<String, u64>>,
    plan: Mutex<Option<Plan>>,
    /// What it says that it is.
    name: Mutex<Option<String>>,
}

impl S3Server {
    /// Starts a server on a free port of loopback.
    pub fn start(options: S3ServerOptions) -> Self {
        let buckets = options
            .buckets
            .iter()
            .map(|name| (name.clone(), Bucket::default()))
            .collect();
        let state = Arc::new(State {
            buckets: Mutex::new(buckets),
            conditions: Mutex::new(options.conditions),
            next_upload: AtomicU64::new(1),
            object_lock: options.object_lock,
            retention: options.retention,
            ahead: Mutex::new(Duration::ZERO),
        });
        let tls = options.tls.then(Tls::make);
        let authority = tls.as_ref().map(|tls| tls.authority.clone());
        let acceptor = tls.map(|tls| tls.acceptor);
        let mut builder = S3ServiceBuilder::new(Service(Arc::clone(&state)));
        builder.set_auth(SimpleAuth::from_single(
            options.access_key.clone(),
            options.secret_key.clone(),
        ));
        let shared = Arc::new(Shared {
            state,
            service: builder.build(),
            requests: AtomicU64::new(0),
            by_method: Mutex::new(HashMap::new()),
            plan: Mutex::new(None),
            name: Mutex::new(None),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, acceptor, serving) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        Self {
            address,
            options,
            authority,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate of the authority behind its TLS, in PEM.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// Whom it lets in.
    pub fn options(&self) -> &S3ServerOptions {
        &self.options
    }

    /// Decides the fate of every request from now on. Without a fault it is handled as it should be.
    pub fn plan(&self, plan: impl Fn(&RequestInfo) -> Option<Fault> + Send + Sync + 'static) {
        *self.shared.plan.lock().unwrap() = Some(Box::new(plan));
    }

    /// Ends the faults.
    pub fn heal(&self) {
        *self.shared.plan.lock().unwrap() = None;
    }

    /// Changes how faithfully conditions are kept.
    pub fn set_conditions(&self, conditions: Conditions) {
        *self.shared.state.conditions.lock().unwrap() = conditions;
    }

    /// Says in each answer from now on that it is this: the header `Server`, which it does not send by itself.
    pub fn call_itself(&self, name: &str) {
        *self.shared.name.lock().unwrap() = Some(name.to_owned());
    }

    /// How many requests came so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How many requests of one method came so far.
    pub fn requests_of(&self, method: &str) -> u64 {
        self.shared
            .by_method
            .lock()
            .unwrap()
            .get(method)
            .copied()
            .unwrap_or(0)
    }

    /// Every object of a bucket in the order of keys.
    pub fn objects(&self, bucket: &str) -> Vec<StoredObject> {
        let objects = self.shared.state.bucket(bucket, |bucket| {
            bucket
                .objects
                .iter()
                .map(|(key, object)| StoredObject {
                    key: key.clone(),
                    size: object.content.len(),
                    storage_class: object.storage_class.as_ref().map(|c| c.as_str().to_owned()),
                    encryption: object.sse.clone(),
                    parts: match &object.content {
                        Content::Parts(parts) => parts.iter().map(Content::len).collect(),
                        whole => vec![whole.len()],
                    },
                })
                .collect()
        });
        objects.unwrap()
    }

    /// Every key of a bucket under which anything was ever stored, and what became of it.
    pub fn versions(&self, bucket: &str) -> BTreeMap<String, Versions> {
        let versions = self.shared.state.bucket(bucket, |b| b.versions.clone());
        versions.unwrap()
    }

    /// Uploads that were neither completed nor aborted.
    pub fn pending_uploads(&self, bucket: &str) -> Vec<PendingUpload> {
        let uploads = self.shared.state.bucket(bucket, |bucket| {
            bucket
                .uploads
                .values()
                .map(|upload| PendingUpload {
                    key: upload.key.clone(),
                    parts: upload.parts.len(),
                })
                .collect()
        });
        uploads.unwrap()
    }

    /// Makes every object and every unfinished upload of a bucket look so much older.
    pub fn age(&self, bucket: &str, by: Duration) {
        let aged = self.shared.state.bucket(bucket, |bucket| {
            bucket
                .uploads
                .values_mut()
                .for_each(|upload| upload.began -= by);
            bucket
                .objects
                .values_mut()
                .for_each(|object| object.modified -= by);
        });
        aged.unwrap();
    }

    /// Lets time pass for the server alone: what it stores from now on, and what it says the time is, is so much later.
    pub fn advance(&self, by: Duration) {
        *self.shared.state.ahead.lock().unwrap() += by;
    }

    /// Puts small objects without HTTP, for tests that need very many.
    pub fn preload(&self, bucket: &str, keys: impl IntoIterator<Item = String>) {
        let now = self.shared.state.now();
        let loaded = self.shared.state.bucket(bucket, |bucket| {
            let content = Content::Memory(Bytes::from_static(b"x"));
            for key in keys {
                let object = super::bucket::Object {
                    content: content.clone(),
                    etag: "9dd4e461268c8034f5c8564e155c67a6".to_owned(),
                    modified: now,
                    metadata: None,
                    storage_class: None,
                    sse: None,
                };
                bucket.objects.insert(key, object);
            }
        });
        loaded.unwrap();
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    while let Ok((connection, _)) = listener.accept().await {
        let _unsupported = connection.set_nodelay(true);
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            match tls {
                None => serve(connection, shared).await,
                // A client that doesn't trust the certificate goes away here.
                Some(tls) => {
                    if let Ok(connection) = tls.accept(connection).await {
                        serve(connection, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve<C: AsyncRead + AsyncWrite + Unpin>(connection: C, shared: Arc<Shared>) {
    let service = service_fn(move |request| handle(request, Arc::clone(&shared)));
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(connection), service);
    // Ends with an error whenever a client goes away or a fault closes it.
    let _closed = connection.await;
}

type Answer = http::Response<UnsyncBoxBody<Bytes, std::io::Error>>;

async fn handle(request: http::Request<Incoming>, shared: Arc<Shared>) -> std::io::Result<Answer> {
    let closed = || Err(std::io::Error::other("the connection closes by plan"));
    let info = RequestInfo {
        number: shared.requests.fetch_add(1, Ordering::SeqCst),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: request.headers().clone(),
    };
    *shared
        .by_method
        .lock()
        .unwrap()
        .entry(info.method.to_string())
        .or_default() += 1;
    let fault = shared
        .plan
        .lock()
        .unwrap()
        .as_ref()
        .and_then(|plan| plan(&info));
    let mut cut = None;
    let mut lose = false;
    match fault {
        None => {}
        Some(Fault::Delay(pause)) => tokio::time::sleep(pause).await,
        Some(Fault::Drop) => return closed(),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::LoseAnswer) => lose = true,
        Some(Fault::CutBody(length)) => cut = Some(length),
        Some(Fault::Say(text)) => {
            let _body = request.into_body().collect().await;
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
            return Ok(http::Response::new(body.boxed_unsync()));
        }
        Some(Fault::Answer {
            status,
            code,
            retry_after,
        }) => {
            // As S3 does, the request is read before it is refused.
            let _body = request.into_body().collect().await;
            let text = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>by \
                 plan</Message></Error>"
            );
            let mut answer = http::Response::builder()
                .status(status)
                .header("x-amz-request-id", "1");
            if let Some(seconds) = retry_after {
                answer = answer.header("retry-after", seconds);
            }
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
            return Ok(answer.body(body.boxed_unsync()).unwrap());
        }
    }
    let answer = hyper::service::Service::call(&shared.service, request)
        .await
        .map_err(|_| std::io::Error::other("the service failed"))?;
    if lose {
        return closed();
    }
    let mut answer = answer.map(|body| body.map_err(std::io::Error::other).boxed_unsync());
    let now = time_of_day(shared.state.now());
    answer.headers_mut().insert("date", now);
    let name = shared.name.lock().unwrap().clone();
    if let Some(name) = name.and_then(|name| http::HeaderValue::from_str(&name).ok()) {
        answer.headers_mut().insert("server", name);
    }
    Ok(match cut {
        None => answer,
        Some(length) => answer.map(|body| cut_after(body, length)),
    })
}

fn time_of_day(now: SystemTime) -> http::HeaderValue {
    let now = s3s::dto::Timestamp::from(now);
    let mut text = Vec::new();
    now.format(s3s::dto::TimestampFormat::HttpDate, &mut text)
        .unwrap();
    http::HeaderValue::from_bytes(&text).unwrap()
}

/// A body that breaks after so many bytes.
fn cut_after(
    body: UnsyncBoxBody<Bytes, std::io::Error>,
    length: u64,
) -> UnsyncBoxBody<Bytes, std::io::Error> {
    let mut left = usize::try_from(length).unwrap();
    let frames = BodyStream::new(body)
        .map(move |frame| {
            let mut data = frame?.into_data().unwrap_or_default();
            data.truncate(left);
            left -= data.len();
            Ok((hyper::body::Frame::data(data), left == 0))
        })
        .scan(false, |ended, frame: std::io::Result<_>| {
            let step = if *ended { None } else { Some(frame) };
            if let Some(Ok((_, last))) = &step {
                *ended = *last;
            }
            std::future::ready(step)
        })
        .map(|frame| frame.map(|(frame, _)| frame))
        .chain(stream::iter([Err(std::io::Error::other("cut by plan"))]));
    StreamBody::new(frames).boxed_unsync()
}
