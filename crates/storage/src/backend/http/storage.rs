//! The HTTP backend as a [`Storage`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use hyper::body::Incoming;

use super::address::Base;
use super::client::{bound_to, date, meta, text, validator, version};
use crate::body::Body;
use crate::capabilities::{Capabilities, Durability};
use crate::coalesce;
use crate::error::{Error, ErrorKind, Operation, Result, Retry};
use crate::key::Key;
use crate::layer::{refusal, refuse_all};
use crate::locator::Locator;
use crate::net::{HttpClient, NetError, Timeouts};
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutOptions};
use crate::registry::{Context, Factory};
use crate::secret::Secret;
use crate::storage::Storage;

/// How often in a row a body may break off without a byte gained before that is an error.
const BREAKS: u32 = 4;

/// An address and how to ask it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpConfig {
    /// The address that keys are appended to. User and password become basic authentication, a
    /// query goes with every request.
    pub address: Secret,
    /// Headers for every request to this server, such as a bearer token.
    pub headers: Vec<(String, Secret)>,
    /// Roots to trust besides the system's, in PEM.
    pub ca_certificate: Option<Vec<u8>>,
    /// How long a connection may take; 10 s.
    pub connect_timeout: Duration,
    /// How long an answer may take to begin, and a body may stand still; 60 s.
    pub read_timeout: Duration,
}

impl HttpConfig {
    /// This address, everything else by default.
    pub fn new(address: impl Into<Secret>) -> Self {
        Self {
            address: address.into(),
            headers: Vec::new(),
            ca_certificate: None,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(60),
        }
    }
}

/// A read-only storage behind HTTP. Clones share their connections.
#[derive(Clone)]
pub struct Http {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) base: Base,
    pub(super) http: HttpClient,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("address", &self.shared.base.shown)
            .finish_non_exhaustive()
    }
}

impl Http {
    /// Prepares to read below an address. Sends nothing.
    pub fn new(config: HttpConfig) -> Result<Self> {
        let invalid =
            |detail: String| Error::new(ErrorKind::Invalid, Operation::Open).detail(detail);
        let base = Base::parse(config.address.expose()).map_err(invalid)?;
        let invalid = |detail: String| invalid(detail).subject(base.shown.clone());
        let given = config
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose()));
        let basic = base
            .authorization
            .iter()
            .map(|value| ("authorization", value.as_str()));
        let mut headers = Vec::new();
        for (name, value) in basic.chain(given) {
            let parsed = HeaderName::try_from(name)
                .ok()
                .zip(HeaderValue::try_from(value).ok());
            let Some((parsed, mut value)) = parsed else {
                return Err(invalid(format!("header `{name}` can't be sent")));
            };
            value.set_sensitive(true);
            headers.push((parsed, value));
        }
        let timeouts = Timeouts {
            connect: config.connect_timeout,
            read: config.read_timeout,
        };
        let http = HttpClient::new(timeouts, config.ca_certificate.as_deref())
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                base,
                http,
                headers,
            }),
        })
    }
}

/// A body under way, and what it takes to go on after a break.
struct Download {
    shared: Arc<Shared>,
    key: Key,
    body: Incoming,
    left: Range<u64>,
    size: u64,
    /// For `If-Range`.
    validator: Option<HeaderValue>,
    breaks: u32,
}

impl Download {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        while !self.left.is_empty() {
            let error = match self.shared.http.next_piece(&mut self.body).await {
                Some(Ok(mut piece)) => {
                    let room = self.left.end.saturating_sub(self.left.start);
                    piece.truncate(usize::try_from(room).unwrap_or(usize::MAX));
                    self.left.start = self.left.start.saturating_add(piece.len() as u64);
                    self.breaks = 0;
                    if piece.is_empty() {
                        continue;
                    }
                    return Some(Ok(piece));
                }
                Some(Err(error)) => error,
                None => NetError::new("the body ended early"),
            };
            if let Err(error) = self.go_on(error).await {
                self.left = 0..0;
                return Some(Err(error));
            }
        }
        None
    }

    /// Asks for what is left, of the same version.
    async fn go_on(&mut self, broke: NetError) -> Result<()> {
        let failed = |kind| Error::new(kind, Operation::Get).subject(self.key.as_str());
        self.breaks = self.breaks.saturating_add(1);
        let Some(validator) = self.validator.clone().filter(|_| self.breaks <= BREAKS) else {
            return Err(failed(ErrorKind::Unavailable)
                .detail("the body broke off")
                .because(broke));
        };
        let range = format!(
            "bytes={}-{}",
            self.left.start,
            self.left.end.saturating_sub(1)
        );
        let range = HeaderValue::try_from(range)
            .map_err(|error| failed(ErrorKind::Invalid).because(error))?;
        let headers = [(header::RANGE, range), (header::IF_RANGE, validator)];
        tracing::debug!(key = %self.key, at = self.left.start, "resuming a body");
        let answer = match self
            .shared
            .ask(Operation::Get, Method::GET, &self.key, &headers)
            .await
        {
            Ok(answer) => answer,
            // Counted as another break; the old body stays at its end.
            Err(error) if error.is_retryable() && self.breaks < BREAKS => return Ok(()),
            Err(error) => return Err(error),
        };
        let same = answer.status() == StatusCode::PARTIAL_CONTENT
            && text(answer.headers(), header::CONTENT_RANGE).and_then(content_range)
                == Some((self.left.clone(), self.size));
        if !same {
            return Err(failed(ErrorKind::Precondition)
                .detail("the object changed while it was read")
                .retry(Retry::MayHelp));
        }
        self.body = answer.into_body();
        Ok(())
    }
}

/// `bytes FIRST-LAST/SIZE` as range and size.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let (end, size) = (last.checked_add(1)?, size.parse().ok()?);
    (first < end && end <= size).then_some((first..end, size))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, header::CONTENT_LENGTH)?.parse().ok()
}

#[async_trait]
impl Storage for Http {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            list: false,
            ..Capabilities::full(Durability::Provider).read_only()
        }
    }

    async fn probe(&self) -> Result<Capabilities> {
        Ok(self.capabilities())
    }

    fn location(&self) -> String {
        self.shared.base.shown.clone()
    }

    async fn put(&self, key: &Key, _: Body, _: PutOptions) -> Result<ObjectMeta> {
        Err(refusal(Operation::Put, key.as_str()))
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        options.check(key)?;
        let failed = |kind, detail: &'static str| {
            Error::new(kind, Operation::Get)
                .subject(key.as_str())
                .detail(detail)
        };
        let mut headers = Vec::new();
        let mut add = |name, value: String| match HeaderValue::try_from(value) {
            Ok(value) => {
                headers.push((name, value));
                Ok(())
            }
            Err(_) => Err(failed(
                ErrorKind::Precondition,
                "not a version of this storage",
            )),
        };
        if let Some(range) = &options.range {
            add(header::RANGE, format!("bytes={range}"))?;
        }
        if let Some(wanted) = &options.if_version {
            let (name, value) = bound_to(wanted);
            add(name, value)?;
        }
        let answer = self
            .shared
            .ask(Operation::Get, Method::GET, key, &headers)
            .await?;
        let (head, body) = answer.into_parts();
        if head
            .headers
            .get(header::CONTENT_ENCODING)
            .is_some_and(|coding| coding != "identity")
        {
            return Err(failed(
                ErrorKind::Unsupported,
                "the server insists on encoding the content",
            ));
        }
        // Not every server honours the condition.
        if options.if_version.is_some() && version(&head.headers) != options.if_version {
            return Err(failed(ErrorKind::Precondition, "another version is there"));
        }
        let (range, size) = if head.status == StatusCode::PARTIAL_CONTENT {
            text(&head.headers, header::CONTENT_RANGE)
                .and_then(content_range)
                .ok_or_else(|| failed(ErrorKind::Corrupt, "an unreadable range"))?
        } else if let Some(range) = &options.range {
            // An object without bytes may be answered whole; then the range lies outside.
            if let Some(size) = content_length(&head.headers) {
                range.resolve(key, size)?;
            }
            return Err(failed(ErrorKind::Unsupported, "the server has no ranges"));
        } else {
            let size = content_length(&head.headers)
                .ok_or_else(|| failed(ErrorKind::Unsupported, "the server states no length"))?;
            (0..size, size)
        };
        let download = Download {
            shared: Arc::clone(&self.shared),
            key: key.clone(),
            body,
            left: range.clone(),
            size,
            validator: version(&head.headers).as_ref().and_then(validator),
            breaks: 0,
        };
        let body = stream::unfold(download, |mut download| async move {
            let piece = download.next().await?;
            Some((piece, download))
        });
        Ok(GetResult::new(
            meta(key, size, &head.headers),
            range,
            body.boxed(),
        ))
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        coalesce::by_get(self, key, ranges, options).await
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        let answer = self
            .shared
            .ask(Operation::Head, Method::HEAD, key, &[])
            .await?;
        let headers = answer.headers();
        let size = content_length(headers).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, Operation::Head)
                .subject(key.as_str())
                .detail("the server states no length")
        })?;
        Ok(Head::new(
            meta(key, size, headers),
            date(headers, header::DATE),
        ))
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let refused = Error::new(ErrorKind::Unsupported, Operation::List)
            .subject(options.prefix)
            .detail("HTTP has no listing");
        stream::iter([Err(refused)]).boxed()
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        refuse_all(keys)
    }
}

/// Opens `http://` and `https://` locators.
#[derive(Debug)]
pub(crate) struct HttpFactory;

#[async_trait]
impl Factory for HttpFactory {
    async fn open(&self, locator: &Locator, _: &Context) -> Result<Arc<dyn Storage>> {
        let opened = Http::new(HttpConfig::new(locator.expose()));
        Ok(Arc::new(
            opened.map_err(|error| error.subject(locator.to_string()))?,
        ))
    }
}
