//! A file over HTTP ranges, on loopback: what a bridge to a storage does, as small as it can be.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use neon_snapshot_format::pack::ReadRange;
use neon_snapshot_format::{Error, ErrorKind, Result};

/// Serves one file, and counts.
pub(crate) struct Served {
    address: SocketAddr,
    facts: Arc<Facts>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

struct Facts {
    file: File,
    length: u64,
    requests: AtomicU64,
    bytes: AtomicU64,
    at_once: AtomicU64,
    most_at_once: AtomicU64,
    stop: AtomicBool,
}

impl Served {
    pub(crate) fn new(file: File) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let facts = Arc::new(Facts {
            length: file.metadata().unwrap().len(),
            file,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            at_once: AtomicU64::new(0),
            most_at_once: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let shared = Arc::clone(&facts);
        let accepting = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if shared.stop.load(Ordering::Relaxed) {
                    break;
                }
                let facts = Arc::clone(&shared);
                // Ends when the client hangs up.
                std::thread::spawn(move || facts.serve(stream));
            }
        });
        Self {
            address,
            facts,
            accepting: Some(accepting),
        }
    }

    pub(crate) fn client(&self) -> Remote {
        Remote {
            address: self.address,
            idle: Mutex::default(),
        }
    }

    /// Requests answered, and bytes of the file sent.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.facts.requests), load(&self.facts.bytes))
    }

    pub(crate) fn most_at_once(&self) -> u64 {
        self.facts.most_at_once.load(Ordering::Relaxed)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.facts.stop.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        drop(self.accepting.take().map(std::thread::JoinHandle::join));
    }
}

impl Facts {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(head) = head_of(&mut reader) {
            let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_at_once.fetch_max(now, Ordering::Relaxed);
            let answer = self.answer(&head);
            self.at_once.fetch_sub(1, Ordering::Relaxed);
            if reader.get_mut().write_all(&answer).is_err() {
                return;
            }
        }
    }

    fn answer(&self, head: &[String]) -> Vec<u8> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let length = self.length;
        if head[0].starts_with("HEAD ") {
            return format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        }
        let range = head
            .iter()
            .find_map(|line| line.strip_prefix("Range: bytes="))
            .unwrap();
        let (first, last) = range.split_once('-').unwrap();
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        if last >= length || first > last {
            return b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n".to_vec();
        }
        let mut body = vec![0; usize::try_from(last - first + 1).unwrap()];
        self.file.read_exact_at(&mut body, first).unwrap();
        self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        let mut answer = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{length}\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        answer.append(&mut body);
        answer
    }
}

/// The lines of a head, without the empty one that ends it.
fn head_of(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(lines),
            line => lines.push(line.to_owned()),
        }
    }
}

/// Reads ranges over connections that are kept; as many at once as there are threads.
pub(crate) struct Remote {
    address: SocketAddr,
    idle: Mutex<Vec<BufReader<TcpStream>>>,
}

impl Remote {
    fn request(&self, method: &str, range: &str) -> Result<(Vec<String>, Vec<u8>)> {
        let broken = |error| Error::io("served file", "cannot be read", error);
        let kept = self.idle.lock().unwrap().pop();
        let mut connection = match kept {
            Some(connection) => connection,
            None => BufReader::new(TcpStream::connect(self.address).map_err(broken)?),
        };
        let request = format!("{method} / HTTP/1.1\r\nHost: localhost\r\n{range}\r\n");
        let stream = connection.get_mut();
        stream.write_all(request.as_bytes()).map_err(broken)?;
        let head = head_of(&mut connection).unwrap();
        let mut body = Vec::new();
        if method == "GET" {
            body.resize(usize::try_from(length_in(&head)).unwrap(), 0);
            connection.read_exact(&mut body).map_err(broken)?;
        }
        self.idle.lock().unwrap().push(connection);
        Ok((head, body))
    }
}

fn length_in(head: &[String]) -> u64 {
    let length = head
        .iter()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    length.unwrap().parse().unwrap()
}

impl ReadRange for Remote {
    fn length(&self) -> Result<u64> {
        Ok(length_in(&self.request("HEAD", "")?.0))
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let header = format!("Range: bytes={}-{}\r\n", range.start, range.end - 1);
        let (head, body) = self.request("GET", &header)?;
        if !head[0].contains(" 206 ") {
            return Err(Error::new(
                ErrorKind::Malformed,
                "served file",
                "is cut off",
            ));
        }
        Ok(body)
    }
}
