//! What the writers of a snapshot learn about its files, put into the order of paths in bounded memory.
//!
//! Announcements and parts of files come from several threads in any order, and a map is written sorted.
//! Each thread fills a buffer of its own, which is sorted when full and put aside; in the end all buffers are
//! merged. Put aside means: into one file that has no name, below a directory of the caller's, or where no such
//! directory was given, into memory. The layout is private and lives as long as the process.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::id::random;

/// A buffer is put aside when it has this many bytes.
const BUFFER: usize = 4 << 20;
/// What is read of each sorted piece at a time when they are merged.
const WINDOW: usize = 64 << 10;

/// One thing learned about a file. Ordered by path, then by `order`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) path: Vec<u8>,
    pub(crate) order: u64,
    pub(crate) content: Vec<u8>,
}

/// Where sorted pieces are put aside.
#[derive(Debug)]
pub(crate) struct Gathering {
    aside: Mutex<Aside>,
}

#[derive(Debug)]
struct Aside {
    directory: Option<PathBuf>,
    file: Option<File>,
    length: u64,
    pieces: Vec<Piece>,
    /// A piece could not be kept.
    lost: bool,
}

#[derive(Debug)]
enum Piece {
    Memory(Vec<u8>),
    File { start: u64, end: u64 },
}

/// The buffer of one thread.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    items: Vec<(u32, u32)>,
}

impl Gathering {
    pub(crate) fn new(directory: Option<&Path>) -> Self {
        Self {
            aside: Mutex::new(Aside {
                directory: directory.map(Path::to_owned),
                file: None,
                length: 0,
                pieces: Vec::new(),
                lost: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Aside> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to a thread's buffer, and puts that aside when it is full.
    pub(crate) fn add(
        &self,
        buffer: &mut Buffer,
        path: &[u8],
        order: u64,
        content: &[u8],
    ) -> Result<()> {
        let start = buffer.bytes.len();
        put(&mut buffer.bytes, path, order, content)?;
        let place = (u32::try_from(start), u32::try_from(buffer.bytes.len()));
        let (Ok(start), Ok(end)) = place else {
            return Err(Error::new(
                ErrorKind::Limit,
                "list of files",
                "one file has too many pages",
            ));
        };
        buffer.items.push((start, end));
        if buffer.bytes.len() + buffer.items.len() * 8 >= BUFFER {
            self.put_aside(buffer)?;
        }
        Ok(())
    }

    /// Puts aside what a thread's buffer has.
    pub(crate) fn put_aside(&self, buffer: &mut Buffer) -> Result<()> {
        let Buffer { bytes, mut items } = std::mem::take(buffer);
        if items.is_empty() {
            return Ok(());
        }
        let slice =
            |(start, end): (u32, u32)| bytes.get(start as usize..end as usize).unwrap_or_default();
        items.sort_by(|a, b| key(slice(*a)).cmp(&key(slice(*b))));
        let mut sorted = Vec::with_capacity(bytes.len());
        for item in items {
            sorted.extend_from_slice(slice(item));
        }
        let mut aside = self.lock();
        let kept = aside.keep(sorted);
        aside.lost |= kept.is_err();
        kept
    }

    /// Everything in order. What is put aside later is not seen. Fails when anything could not be kept, also where that
    /// error was passed over: a file that nobody knows of is missed by nobody.
    pub(crate) fn sorted(&self) -> Result<Sorted<'_>> {
        if self.lock().lost {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "list of files",
                "goes on although a part of it could not be put aside",
            ));
        }
        let mut sorted = Sorted {
            gathering: self,
            cursors: Vec::new(),
            heap: BinaryHeap::new(),
        };
        let pieces = self.lock().pieces.len();
        for piece in 0..pieces {
            sorted.cursors.push(Cursor {
                piece,
                read: 0,
                window: Vec::new(),
                at: 0,
            });
            sorted.advance(piece)?;
        }
        Ok(sorted)
    }
}

impl Aside {
    fn keep(&mut self, sorted: Vec<u8>) -> Result<()> {
        let Some(directory) = &self.directory else {
            self.pieces.push(Piece::Memory(sorted));
            return Ok(());
        };
        let fail = |error| {
            Error::new(
                ErrorKind::Io,
                directory.display().to_string(),
                "the list of files cannot be put aside",
            )
            .caused_by(error)
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless(directory)?),
        };
        file.write_all_at(&sorted, self.length).map_err(fail)?;
        let start = self.length;
        self.length += sorted.len() as u64;
        self.pieces.push(Piece::File {
            start,
            end: self.length,
        });
        Ok(())
    }

    fn read(&self, piece: usize, from: u64, out: &mut Vec<u8>) -> Result<u64> {
        match (self.pieces.get(piece), &self.file) {
            (Some(Piece::Memory(bytes)), _) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let rest = bytes.get(from..).unwrap_or_default();
                let part = rest.get(..WINDOW).unwrap_or(rest);
                out.extend_from_slice(part);
                Ok(part.len() as u64)
            }
            (Some(Piece::File { start, end }), Some(file)) => {
                let from = start.saturating_add(from);
                let length = end.saturating_sub(from).min(WINDOW as u64);
                let old = out.len();
                out.resize(old + usize::try_from(length).unwrap_or(WINDOW), 0);
                let target = out.get_mut(old..).unwrap_or_default();
                file.read_exact_at(target, from).map_err(|error| {
                    Error::new(ErrorKind::Io, "list of files", "cannot be read back")
                        .caused_by(error)
                })?;
                Ok(length)
            }
            _ => Ok(0),
        }
    }
}

/// A file that is gone as soon as nobody has it open.
fn nameless(directory: &Path) -> Result<File> {
    let name = u64::from_le_bytes(random()?);
    let path = directory.join(format!("neon-{name:016x}.tmp"));
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|file| std::fs::remove_file(&path).map(|()| file))
        .map_err(|error| {
            Error::new(
                ErrorKind::Io,
                path.display().to_string(),
                "a temporary file cannot be made",
            )
            .caused_by(error)
        })
}

/// Length of path, path, order, length of content, content.
fn put(out: &mut Vec<u8>, path: &[u8], order: u64, content: &[u8]) -> Result<()> {
    let lengths = (u16::try_from(path.len()), u32::try_from(content.len()));
    let (Ok(path_length), Ok(content_length)) = lengths else {
        return Err(Error::new(
            ErrorKind::Limit,
            "list of files",
            "one file has too much to say",
        ));
    };
    out.extend_from_slice(&path_length.to_le_bytes());
    out.extend_from_slice(path);
    out.extend_from_slice(&order.to_le_bytes());
    out.extend_from_slice(&content_length.to_le_bytes());
    out.extend_from_slice(content);
    Ok(())
}

fn split(bytes: &[u8]) -> Option<(&[u8], u64, &[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (path, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    let (order, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (content, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((
        path,
        u64::from_le_bytes(*order),
        content,
        bytes.len() - rest.len(),
    ))
}

fn key(bytes: &[u8]) -> (&[u8], u64) {
    split(bytes).map_or((&[], 0), |(path, order, _, _)| (path, order))
}

/// All that was put aside, in order.
#[derive(Debug)]
pub(crate) struct Sorted<'a> {
    gathering: &'a Gathering,
    cursors: Vec<Cursor>,
    heap: BinaryHeap<Reverse<Ahead>>,
}

/// The next item of a piece: path, order, which piece, content.
type Ahead = (Vec<u8>, u64, usize, Vec<u8>);

#[derive(Debug)]
struct Cursor {
    piece: usize,
    read: u64,
    window: Vec<u8>,
    at: usize,
}

impl Sorted<'_> {
    /// The next item; none after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Item>> {
        let Some(Reverse((path, order, piece, content))) = self.heap.pop() else {
            return Ok(None);
        };
        self.advance(piece)?;
        Ok(Some(Item {
            path,
            order,
            content,
        }))
    }

    fn advance(&mut self, piece: usize) -> Result<()> {
        let Some(cursor) = self.cursors.get_mut(piece) else {
            return Ok(());
        };
        loop {
            let rest = cursor.window.get(cursor.at..).unwrap_or_default();
            if let Some((path, order, content, length)) = split(rest) {
                let item = (path.to_vec(), order, piece, content.to_vec());
                self.heap.push(Reverse(item));
                cursor.at += length;
                return Ok(());
            }
            cursor.window.drain(..cursor.at);
            cursor.at = 0;
            let aside = self.gathering.lock();
            let more = aside.read(cursor.piece, cursor.read, &mut cursor.window)?;
            drop(aside);
            cursor.read += more;
            if more == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(directory: Option<&Path>) {
        let gathering = Gathering::new(directory);
        let mut expected = Vec::new();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3_u64)
                .map(|thread| {
                    let gathering = &gathering;
                    scope.spawn(move || {
                        let mut buffer = Buffer::default();
                        let mut mine = Vec::new();
                        for index in 0..40_000_u64 {
                            let scattered = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                            let path = format!("base/{}/{scattered}", scattered % 7);
                            let content = vec![7; usize::try_from(index % 500).unwrap()];
                            let order = thread << 32 | index;
                            gathering
                                .add(&mut buffer, path.as_bytes(), order, &content)
                                .unwrap();
                            mine.push((path.into_bytes(), order, content.len()));
                        }
                        let large = vec![1; 3 * WINDOW];
                        gathering
                            .add(&mut buffer, b"large", thread, &large)
                            .unwrap();
                        mine.push((b"large".to_vec(), thread, large.len()));
                        gathering.put_aside(&mut buffer).unwrap();
                        mine
                    })
                })
                .collect();
            for thread in threads {
                expected.extend(thread.join().unwrap());
            }
        });
        expected.sort();
        let mut sorted = gathering.sorted().unwrap();
        for item in expected {
            let next = sorted.next().unwrap().unwrap();
            assert_eq!(item, (next.path, next.order, next.content.len()));
        }
        assert!(sorted.next().unwrap().is_none());
        if directory.is_some() {
            assert!(gathering.lock().pieces.len() > 3);
        }
    }

    #[test]
    fn what_several_threads_learn_comes_out_in_order() {
        check(None);
    }

    #[test]
    fn what_was_put_into_a_file_comes_out_in_order_and_the_file_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        check(Some(directory.path()));
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }
}
