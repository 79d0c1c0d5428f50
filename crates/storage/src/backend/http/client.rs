//! One question to the server: redirections followed, answers lowered to errors.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;

use super::address::{redirected, same_server};
use super::storage::Shared;
use crate::error::{Error, ErrorKind, Operation, Result, Retry};
use crate::key::Key;
use crate::object::{ObjectMeta, Version};

/// Redirections followed for one question.
const REDIRECTIONS: u32 = 5;

impl Shared {
    pub(super) async fn ask(
        &self,
        operation: Operation,
        method: Method,
        key: &Key,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response<Incoming>> {
        let failed = |kind| Error::new(kind, operation).subject(key.as_str());
        let origin = self
            .base
            .of(key.as_str())
            .map_err(|error| failed(ErrorKind::Invalid).because(error))?;
        let mut uri = origin.clone();
        for _ in 0..=REDIRECTIONS {
            let answer = self
                .http
                .send(
                    self.request(&method, &uri, &origin, headers)
                        .map_err(&failed)?,
                )
                .await
                .map_err(|error| failed(ErrorKind::Unavailable).because(error))?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return check(answer, operation, key);
            }
            let location = text(answer.headers(), header::LOCATION);
            let Some(target) = location.and_then(|location| redirected(&uri, location)) else {
                return Err(failed(ErrorKind::Invalid).detail("a redirection to nowhere"));
            };
            // What web servers do for a directory: there is no such object.
            if target.path().strip_suffix('/') == Some(uri.path()) {
                return Err(failed(ErrorKind::NotFound));
            }
            uri = target;
        }
        Err(failed(ErrorKind::Invalid).detail("too many redirections"))
    }

    fn request(
        &self,
        method: &Method,
        uri: &Uri,
        origin: &Uri,
        headers: &[(HeaderName, HeaderValue)],
    ) -> std::result::Result<Request<Full<Bytes>>, ErrorKind> {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::ACCEPT_ENCODING, "identity")
            .header(
                header::USER_AGENT,
                concat!("neon-storage/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if same_server(uri, origin) {
            for (name, value) in &self.headers {
                request = request.header(name, value);
            }
        }
        request
            .body(Full::new(Bytes::new()))
            .map_err(|_| ErrorKind::Invalid)
    }
}

fn check(
    answer: Response<Incoming>,
    operation: Operation,
    key: &Key,
) -> Result<Response<Incoming>> {
    let status = answer.status();
    let kind = match status.as_u16() {
        200 | 206 => return Ok(answer),
        401 | 407 => ErrorKind::Unauthenticated,
        403 => ErrorKind::Denied,
        404 | 410 => ErrorKind::NotFound,
        405 | 501 => ErrorKind::Unsupported,
        412 => ErrorKind::Precondition,
        408 | 425 | 429 | 500.. => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    };
    let error = Error::new(kind, operation).subject(key.as_str());
    let error = match status {
        StatusCode::RANGE_NOT_SATISFIABLE => error.detail("the range begins outside of the object"),
        _ => error.detail(format!("the server answered {status}")),
    };
    let pause = text(answer.headers(), header::RETRY_AFTER).and_then(|text| text.parse().ok());
    Err(match (kind, pause) {
        (ErrorKind::Unavailable, Some(seconds)) => {
            error.retry(Retry::After(Duration::from_secs(seconds)))
        }
        _ => error,
    })
}

pub(super) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

pub(super) fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, name)?).ok()
}

/// What begins a version that is the time of the last change.
const MODIFIED: &str = "modified:";

/// What tells one state of an object from another: a strong `ETag`, or else the time of the last
/// change. A weak `ETag` promises no equal bytes. A time is strong (RFC 9110, 8.8.2.2) if its
/// second was over when the answer was made: what changes later has a later one.
pub(super) fn version(headers: &HeaderMap) -> Option<Version> {
    if let Some(etag) = text(headers, header::ETAG) {
        return etag.starts_with('"').then(|| Version::new(etag));
    }
    let (modified, now) = (
        date(headers, header::LAST_MODIFIED)?,
        date(headers, header::DATE)?,
    );
    let over = now.duration_since(modified).ok()? >= Duration::from_secs(1);
    let modified = text(headers, header::LAST_MODIFIED)?;
    over.then(|| Version::new(format!("{MODIFIED}{modified}")))
}

/// The header that asks for a version and for no other.
pub(super) fn bound_to(version: &Version) -> (HeaderName, String) {
    match version.as_str().strip_prefix(MODIFIED) {
        Some(modified) => (header::IF_UNMODIFIED_SINCE, modified.to_owned()),
        None => (header::IF_MATCH, version.as_str().to_owned()),
    }
}

/// What `If-Range` has for a version.
pub(super) fn validator(version: &Version) -> Option<HeaderValue> {
    let text = version.as_str();
    HeaderValue::try_from(text.strip_prefix(MODIFIED).unwrap_or(text)).ok()
}

/// The facts of an object of `size`, from the head of an answer.
pub(super) fn meta(key: &Key, size: u64, headers: &HeaderMap) -> ObjectMeta {
    let modified = date(headers, header::LAST_MODIFIED).unwrap_or(SystemTime::UNIX_EPOCH);
    ObjectMeta::new(key.clone(), size, version(headers), modified)
}
