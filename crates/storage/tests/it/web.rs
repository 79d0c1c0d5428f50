//! A web server over a directory, as plain as one that people put snapshots behind: ranges,
//! entity tags, conditions, and faults on request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

/// How the server deviates.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// Cut every body after so many bytes, this many times.
    pub cut: Option<(usize, u64)>,
    /// Send no entity tags.
    pub no_etag: bool,
    /// Send no time of the last change.
    pub no_modified: bool,
    /// Show another content at every second answer, as if the file were replaced back and forth.
    pub faces: Option<u64>,
    /// Ignore `Range`.
    pub no_ranges: bool,
    /// Ignore `If-Match`.
    pub no_if_match: bool,
    /// Answer with this status.
    pub status: Option<u16>,
    /// Redirect everything to this address.
    pub redirect: Option<String>,
    /// Demand this `Authorization`.
    pub authorization: Option<String>,
}

pub struct Web {
    pub address: SocketAddr,
    manners: Arc<Mutex<Manners>>,
    pub requests: Arc<AtomicU64>,
    pub seen: Arc<Mutex<Vec<HeaderMap>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Web {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Web {
    pub async fn start(root: PathBuf) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let manners = Arc::new(Mutex::new(Manners::default()));
        let requests = Arc::new(AtomicU64::new(0));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (shared, counter, headers) = (
            Arc::clone(&manners),
            Arc::clone(&requests),
            Arc::clone(&seen),
        );
        let serving = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (root, shared) = (root.clone(), Arc::clone(&shared));
                let (counter, headers) = (Arc::clone(&counter), Arc::clone(&headers));
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        counter.fetch_add(1, Ordering::SeqCst);
                        headers.lock().unwrap().push(request.headers().clone());
                        let answer = answer(&root, &shared, &request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(connection), service);
                    let _closed = served.await;
                });
            }
        });
        Self {
            address,
            manners,
            requests,
            seen,
            serving,
        }
    }

    pub fn set(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.manners.lock().unwrap());
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

fn bare(status: u16) -> Answer {
    let body = Full::new(Bytes::new())
        .map_err(|never| match never {})
        .boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

fn decode(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex: Vec<u8> = rest.by_ref().take(2).collect();
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn answer(root: &std::path::Path, manners: &Mutex<Manners>, request: &Request<Incoming>) -> Answer {
    let mut manners = manners.lock().unwrap();
    let headers = request.headers();
    let given =
        |name: header::HeaderName| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    if let Some(status) = manners.status {
        return bare(status);
    }
    if let Some(target) = &manners.redirect {
        let mut answer = bare(302);
        let to = format!("{target}{}", request.uri().path());
        answer
            .headers_mut()
            .insert(header::LOCATION, to.parse().unwrap());
        return answer;
    }
    if manners.authorization.is_some() && manners.authorization != given(header::AUTHORIZATION) {
        return bare(401);
    }
    let path = root.join(decode(request.uri().path()).trim_start_matches('/'));
    let Ok(file) = std::fs::File::open(&path) else {
        return bare(404);
    };
    let meta = file.metadata().unwrap();
    if meta.is_dir() {
        let mut answer = bare(301);
        let to = format!("{}/", request.uri().path());
        answer
            .headers_mut()
            .insert(header::LOCATION, to.parse().unwrap());
        return answer;
    }
    let size = meta.len();
    let etag = format!(
        "\"{:x}-{:x}.{:x}\"",
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    let etag = (!manners.no_etag).then_some(etag);
    let modified = httpdate::fmt_http_date(meta.modified().unwrap());
    if let Some(wanted) = given(header::IF_MATCH)
        && !manners.no_if_match
        && Some(&wanted) != etag.as_ref()
    {
        return bare(412);
    }
    if let Some(since) = given(header::IF_UNMODIFIED_SINCE)
        && !manners.no_if_match
        && since != modified
    {
        return bare(412);
    }
    let if_range = given(header::IF_RANGE);
    let same =
        if_range.is_none_or(|validator| Some(&validator) == etag.as_ref() || validator == modified);
    let range = given(header::RANGE).filter(|_| same && !manners.no_ranges);
    let (status, from, to) = match range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes="))
    {
        None => (StatusCode::OK, 0, size),
        Some(range) => {
            let (first, last) = range.split_once('-').unwrap();
            let (from, to) = match (first.parse::<u64>(), last.parse::<u64>()) {
                (Ok(first), Ok(last)) => (first, (last + 1).min(size)),
                (Ok(first), Err(_)) => (first, size),
                (Err(_), Ok(last)) => (size.saturating_sub(last), size),
                _ => return bare(400),
            };
            if from >= to {
                return bare(416);
            }
            (StatusCode::PARTIAL_CONTENT, from, to)
        }
    };
    let mut response = Response::builder()
        .status(status)
        .header(header::CONTENT_LENGTH, to - from)
        .header(header::DATE, httpdate::fmt_http_date(SystemTime::now()));
    if !manners.no_modified {
        response = response.header(header::LAST_MODIFIED, modified);
    }
    if let Some(etag) = etag {
        response = response.header(header::ETAG, etag);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        response = response.header(
            header::CONTENT_RANGE,
            format!("bytes {from}-{}/{size}", to - 1),
        );
    }
    if request.method() == Method::HEAD {
        let body = Full::new(Bytes::new())
            .map_err(|never| match never {})
            .boxed_unsync();
        return response.body(body).unwrap();
    }
    let mut content = vec![0u8; usize::try_from(to - from).unwrap()];
    file.read_exact_at(&mut content, from).unwrap();
    if let Some(faces) = &mut manners.faces {
        *faces += 1;
        if *faces % 2 == 0 {
            content.iter_mut().for_each(|byte| *byte = !*byte);
        }
    }
    let cut = match &mut manners.cut {
        Some((after, times)) if *times > 0 && content.len() > *after => {
            *times -= 1;
            Some(*after)
        }
        _ => None,
    };
    let content = Bytes::from(content);
    let body = match cut {
        None => Full::new(content)
            .map_err(|never| match never {})
            .boxed_unsync(),
        Some(after) => {
            let part = stream::iter([Ok(Frame::data(content.slice(..after)))]);
            let broken = stream::once(async {
                // Later, so that the part before it has left.
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                Err(std::io::Error::other("cut"))
            });
            StreamBody::new(part.chain(broken)).boxed_unsync()
        }
    };
    response.body(body).unwrap()
}
