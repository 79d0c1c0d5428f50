//! The plain HTTP client under the `http` backend and the credential sources of `s3`.
//!
//! Its TLS is rustls with ring, chosen here and not through a process-wide default.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Why there was no answer. Its text holds no part of the request.
#[derive(Debug)]
pub(crate) struct NetError(String);

impl NetError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NetError {}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    /// For the head of an answer, and for each piece of its body.
    pub(crate) read: Duration,
}

/// A client with pooled connections.
#[derive(Clone)]
pub(crate) struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeouts: Timeouts,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

impl HttpClient {
    /// Trusts the system's roots and, in PEM, those given.
    pub(crate) fn new(timeouts: Timeouts, extra_roots: Option<&[u8]>) -> Result<Self, NetError> {
        let mut roots = rustls::RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        let (_added, _ignored) = roots.add_parsable_certificates(native.certs);
        if let Some(pem) = extra_roots {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate
                    .map_err(|error| NetError::new(format!("not a PEM certificate: {error}")))?;
                roots
                    .add(certificate)
                    .map_err(|error| NetError::new(format!("not a root certificate: {error}")))?;
            }
        }
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(|error| NetError::new(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeouts.connect));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_timer(TokioTimer::new())
            .build(https);
        Ok(Self { client, timeouts })
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, NetError> {
        match tokio::time::timeout(self.timeouts.read, self.client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(NetError::new(chain(&error))),
            Err(_) => Err(NetError::new(format!(
                "no answer within {:?}",
                self.timeouts.read
            ))),
        }
    }

    /// The next piece of a body, under the timeout.
    #[cfg(feature = "http")]
    pub(crate) async fn next_piece(&self, body: &mut Incoming) -> Option<Result<Bytes, NetError>> {
        loop {
            let frame = match tokio::time::timeout(self.timeouts.read, body.frame()).await {
                Ok(frame) => frame?,
                Err(_) => {
                    let text = format!("the body stalled for {:?}", self.timeouts.read);
                    return Some(Err(NetError::new(text)));
                }
            };
            match frame {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(NetError::new(chain(&error)))),
            }
        }
    }

    /// A request for a short document, with its status.
    #[cfg(feature = "s3")]
    pub(crate) async fn document(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<(http::StatusCode, String), NetError> {
        const LIMIT: usize = 256 * 1024;
        let answer = self.send(request).await?;
        let status = answer.status();
        let body = http_body_util::Limited::new(answer.into_body(), LIMIT).collect();
        let body = match tokio::time::timeout(self.timeouts.read, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return Err(NetError::new(error.to_string())),
            Err(_) => return Err(NetError::new("the answer stalled")),
        };
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}
