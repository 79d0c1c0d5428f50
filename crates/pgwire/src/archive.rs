//! The members of an archive of a base backup, read as it comes.
//!
//! A tar (POSIX 1003.1, as `src/port/tar.c` of PostgreSQL writes it) of regular files, directories and the links of
//! tablespaces. Nothing is opened here: whoever asks decides where members go. What a server names is not trusted:
//! no path leads up, none is absolute, none goes through a link of the same archive.

use std::collections::BTreeSet;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Bytes of a header, and what everything is padded to.
pub(crate) const BLOCK: usize = 512;
/// Larger than anything that a server holds.
const LARGEST: u64 = 1 << 50;

/// What is found in an archive.
#[derive(Debug)]
pub enum ArchiveItem<'a> {
    /// A member begins; its [data](Self::Data) follows, exactly as many bytes as its size.
    Member(ArchiveMember),
    /// The next bytes of the file that began last; never empty.
    Data(&'a [u8]),
}

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveMember {
    /// Where it goes, relative to the root of the archive: plain names only, not empty.
    pub path: PathBuf,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits.
    pub mode: u32,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A file of so many bytes.
    File {
        /// Bytes.
        size: u64,
    },
    /// A directory. Servers name some twice.
    Directory,
    /// A link to this place, as the server has it.
    Link {
        /// The place.
        target: PathBuf,
    },
}

/// Reads one archive from pieces of any length, in memory of one header and the names of links.
#[derive(Debug, Default)]
pub struct ArchiveReader {
    state: State,
    links: BTreeSet<PathBuf>,
}

/// Where the next bytes belong.
#[derive(Debug)]
enum State {
    Header(Vec<u8>),
    File { left: u64, padding: u64 },
    Padding(u64),
}

impl Default for State {
    fn default() -> Self {
        Self::Header(Vec::with_capacity(BLOCK))
    }
}

impl ArchiveReader {
    /// At the beginning of an archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, and shows what is in them.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) for a member that no server sends or whose name leads elsewhere, and
    /// what `show` returns. The reader is of no use then.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        mut show: impl FnMut(ArchiveItem<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header(header) => {
                    let (head, rest) = split(bytes, BLOCK.saturating_sub(header.len()) as u64);
                    header.extend_from_slice(head);
                    bytes = rest;
                    if header.len() == BLOCK {
                        let header = std::mem::take(header);
                        // Two blocks of zeros end an archive.
                        if header.iter().all(|byte| *byte == 0) {
                            self.state = State::default();
                            continue;
                        }
                        let member = self.member(&header)?;
                        self.state = match member.kind {
                            MemberKind::File { size } if size > 0 => State::File {
                                left: size,
                                padding: size.next_multiple_of(BLOCK as u64) - size,
                            },
                            _ => State::default(),
                        };
                        show(ArchiveItem::Member(member))?;
                    }
                }
                State::File { left, padding } => {
                    let (head, rest) = split(bytes, *left);
                    bytes = rest;
                    *left = left.saturating_sub(head.len() as u64);
                    if *left == 0 {
                        self.state = match *padding {
                            0 => State::default(),
                            padding => State::Padding(padding),
                        };
                    }
                    show(ArchiveItem::Data(head))?;
                }
                State::Padding(left) => {
                    let (head, rest) = split(bytes, *left);
                    bytes = rest;
                    *left = left.saturating_sub(head.len() as u64);
                    if *left == 0 {
                        self.state = State::default();
                    }
                }
            }
        }
        Ok(())
    }

    /// The archive is over.
    ///
    /// # Errors
    /// [`InvalidData`](io::ErrorKind::InvalidData) when it breaks off within a member.
    pub fn finish(self) -> io::Result<()> {
        match self.state {
            State::Header(header) if header.is_empty() => Ok(()),
            _ => Err(invalid("an archive breaks off")),
        }
    }

    fn member(&mut self, header: &[u8]) -> io::Result<ArchiveMember> {
        let text = |from: usize, to: usize| {
            let field = header.get(from..to).unwrap_or_default();
            let field = field.split(|byte| *byte == 0).next().unwrap_or_default();
            std::str::from_utf8(field).map_err(|_| invalid("a name is not UTF-8"))
        };
        let name = text(0, 100)?;
        let mode = number(header.get(100..108).unwrap_or_default())? & 0o777;
        let size = member_size(header)?;
        let path = self.safe(name)?;
        let kind = match header.get(156) {
            Some(b'5') => MemberKind::Directory,
            Some(b'2') => {
                self.links.insert(path.clone());
                MemberKind::Link {
                    target: PathBuf::from(text(157, 257)?),
                }
            }
            _ => MemberKind::File { size },
        };
        Ok(ArchiveMember {
            path,
            kind,
            mode: u32::try_from(mode).unwrap_or(0o600),
        })
    }

    /// The name as a path that stays below the root and goes through no link.
    fn safe(&self, name: &str) -> io::Result<PathBuf> {
        let mut path = PathBuf::new();
        for component in Path::new(name).components() {
            match component {
                Component::CurDir => {}
                Component::Normal(part) => path.push(part),
                _ => return Err(invalid(format!("{name:?} leads out of the archive"))),
            }
        }
        if path.as_os_str().is_empty() {
            return Err(invalid("a member without a name"));
        }
        if path.ancestors().any(|parent| self.links.contains(parent)) {
            return Err(invalid(format!("{name:?} goes through a link")));
        }
        Ok(path)
    }
}

/// The size in a header; only what servers send and stock clients know is let through.
pub(crate) fn member_size(header: &[u8]) -> io::Result<u64> {
    match header.get(156) {
        Some(0 | b'0' | b'2' | b'5') => number(header.get(124..136).unwrap_or_default()),
        _ => Err(invalid(
            "the archive has a member that is no file, directory or link",
        )),
    }
}

/// Octal digits, or base 256 for what they cannot say.
fn number(field: &[u8]) -> io::Result<u64> {
    let value = match field {
        [0x80, rest @ ..] => rest.iter().try_fold(0_u64, |sum, byte| {
            sum.checked_mul(256)?.checked_add(u64::from(*byte))
        }),
        _ => {
            let digits = field.iter().skip_while(|byte| **byte == b' ');
            digits
                .take_while(|byte| !matches!(**byte, 0 | b' '))
                .try_fold(0_u64, |sum, byte| {
                    let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
                    sum.checked_mul(8)?.checked_add(u64::from(digit))
                })
        }
    };
    value
        .filter(|value| *value <= LARGEST)
        .ok_or_else(|| invalid("a header of the archive has no number"))
}

fn split(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at(at)
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}
