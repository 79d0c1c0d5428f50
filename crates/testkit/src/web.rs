//! A web server that serves the files of a folder, whole and in ranges, and counts what it sent.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A running server; it ends with the process.
#[derive(Debug)]
pub struct Web {
    /// `http://` and where it listens.
    pub address: String,
    sent: Arc<AtomicU64>,
}

impl Web {
    /// Serves what is below this folder.
    #[must_use]
    pub fn of(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::new(AtomicU64::new(0));
        let (folder, counted) = (folder.to_owned(), Arc::clone(&sent));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, counted) = (folder.clone(), Arc::clone(&counted));
                std::thread::spawn(move || serve(&stream, &folder, &counted));
            }
        });
        Self { address, sent }
    }

    /// Bytes of content that were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn serve(stream: &TcpStream, folder: &Path, counted: &AtomicU64) {
    let mut reader = BufReader::new(stream);
    let mut out = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut range = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            let line = line.to_ascii_lowercase();
            range = line
                .strip_prefix("range: bytes=")
                .map(str::trim)
                .map(str::to_owned)
                .or(range);
        }
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let place: PathBuf = folder.join(path.trim_start_matches('/').replace("%40", "@"));
        let Ok(content) = fs::read(&place) else {
            out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
            continue;
        };
        let size = content.len();
        let (status, from, to) = match range.as_deref().and_then(|range| range.split_once('-')) {
            None => ("200 OK", 0, size),
            Some((from, to)) => {
                let from: usize = from.parse().unwrap();
                let to = to.parse::<usize>().map_or(size, |to| (to + 1).min(size));
                ("206 Partial Content", from, to)
            }
        };
        let mut head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\nETag: \"{size}\"\r\n",
            to - from
        );
        if status.starts_with("206") {
            head.push_str(&format!(
                "Content-Range: bytes {from}-{}/{size}\r\n",
                to - 1
            ));
        }
        head.push_str("\r\n");
        if out.write_all(head.as_bytes()).is_err() {
            return;
        }
        if method != "HEAD" {
            counted.fetch_add((to - from) as u64, Ordering::Relaxed);
            if out.write_all(content.get(from..to).unwrap()).is_err() {
                return;
            }
        }
    }
}
