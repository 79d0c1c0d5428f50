//! The members of a tar archive, read with distrust.
//!
//! Headers are decoded by the `tar` crate; which of them are acceptable is decided here. Accepted are files,
//! directories and symbolic links of ustar, and extended headers that change nothing of what the plain
//! header says. A reader that followed one, beside another that followed the other, would see two different
//! archives.

use std::io::{ErrorKind as IoErrorKind, Read};

use tar::{EntryType, Header, PaxExtensions};

use crate::error::{Error, ErrorKind, Result};

pub(crate) const BLOCK: usize = 512;
const EXTENDED_LIMIT: u64 = 64 << 10;

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    /// Without leading `./` and trailing slash; empty for the root.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: i64,
}

#[derive(Debug)]
pub(crate) enum MemberKind {
    File,
    Directory,
    Link(Vec<u8>),
}

/// Reads an archive member by member.
pub(crate) struct Members<R> {
    stream: R,
    name: String,
    /// Data of the present member that was not read yet, and what fills up its last block.
    left: u64,
    padding: usize,
    /// Servers of 13 and 14 send archives without the two zero blocks at their end.
    end_may_be_missing: bool,
}

impl<R: Read> Members<R> {
    pub(crate) fn new(stream: R, name: String, end_may_be_missing: bool) -> Self {
        Self {
            stream,
            name,
            left: 0,
            padding: 0,
            end_may_be_missing,
        }
    }

    /// The next member; none at the end. The data of the one before must have been read.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        let mut extended = Extended::default();
        loop {
            self.skip_padding()?;
            let Some(header) = self.header()? else {
                if extended.seen {
                    return Err(self.malformed("ends with an extended header"));
                }
                return Ok(None);
            };
            let size = header.entry_size().map_err(|error| self.broken(error))?;
            match header.entry_type() {
                EntryType::XHeader | EntryType::XGlobalHeader => {
                    if size > EXTENDED_LIMIT {
                        return Err(self.hostile("an extended header of more than 64 KiB"));
                    }
                    self.begin(size);
                    let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
                    self.read(&mut content)?;
                    extended
                        .read(&content)
                        .map_err(|reason| self.hostile(reason))?;
                }
                _ => {
                    let member = self.member(&header, size)?;
                    extended.agrees(&header, size).map_err(|reason| {
                        let shown = String::from_utf8_lossy(&member.path);
                        Error::new(ErrorKind::Unsafe, format!("{}: {shown}", self.name), reason)
                    })?;
                    self.begin(size);
                    return Ok(Some(member));
                }
            }
        }
    }

    fn member(&self, header: &Header, size: u64) -> Result<Member> {
        let raw = header.path_bytes();
        let mut path: &[u8] = &raw;
        while let Some(rest) = path.strip_prefix(b"./") {
            path = rest;
        }
        let kind = match header.entry_type() {
            EntryType::Regular => MemberKind::File,
            EntryType::Directory => MemberKind::Directory,
            EntryType::Symlink => match header.link_name_bytes() {
                Some(target) => MemberKind::Link(target.into_owned()),
                None => return Err(self.hostile("a link to nowhere")),
            },
            EntryType::Link => return Err(self.hostile("a hard link")),
            EntryType::Char | EntryType::Block => return Err(self.hostile("a device")),
            EntryType::Fifo => return Err(self.hostile("a FIFO")),
            other => {
                let flag = char::from(other.as_byte()).escape_default();
                return Err(self.hostile(format!("a member of type '{flag}'")));
            }
        };
        if !matches!(kind, MemberKind::File) {
            path = path.strip_suffix(b"/").unwrap_or(path);
            if size != 0 {
                return Err(self.hostile("a directory or link with data"));
            }
        }
        if path == b"." {
            path = b"";
        }
        if path.is_empty() && !matches!(kind, MemberKind::Directory) {
            return Err(self.hostile("a member without a name"));
        }
        let small = |value: std::io::Result<u64>| -> Result<u32> {
            let value = value.map_err(|error| self.broken(error))?;
            u32::try_from(value)
                .map_err(|_| self.malformed("has a user or group that no system has"))
        };
        Ok(Member {
            path: path.to_vec(),
            kind,
            size,
            mode: header.mode().map_err(|error| self.broken(error))? & 0o777,
            uid: small(header.uid())?,
            gid: small(header.gid())?,
            modified: i64::try_from(header.mtime().map_err(|error| self.broken(error))?)
                .unwrap_or(0),
        })
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        self.padding = (BLOCK - over) % BLOCK;
    }

    /// Fills the buffer from the data of the present member.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        match self.left.checked_sub(buffer.len() as u64) {
            Some(left) => self.left = left,
            None => return Err(self.malformed("less data than asked for")),
        }
        self.stream
            .read_exact(buffer)
            .map_err(|error| self.io(error))
    }

    fn skip_padding(&mut self) -> Result<()> {
        if self.left > 0 {
            return Err(self.malformed("data was left behind"));
        }
        let mut block = [0; BLOCK];
        let padding = std::mem::take(&mut self.padding);
        if let Some(padding) = block.get_mut(..padding) {
            self.stream
                .read_exact(padding)
                .map_err(|error| self.io(error))?;
        }
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? {
            if self.end_may_be_missing {
                return Ok(None);
            }
            return Err(self.malformed("the archive is cut off: its end mark is missing"));
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            self.end()?;
            return Ok(None);
        }
        // The sum is taken with its own field as blanks.
        let sum: u32 = (0..)
            .zip(header.as_bytes())
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u32::from(*byte)
                }
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.malformed("a header with a wrong checksum"));
        }
        if header.as_ustar().is_none() && header.as_gnu().is_none() {
            return Err(self.malformed("a header that is neither ustar nor GNU"));
        }
        Ok(Some(header))
    }

    /// Behind the first zero block: zeros only, so that nothing hides behind the end.
    fn end(&mut self) -> Result<()> {
        let mut buffer = [0; 8192];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    if buffer.iter().take(read).any(|byte| *byte != 0) {
                        return Err(self.hostile("data behind the end of the archive"));
                    }
                }
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
    }

    /// Reads a whole block; false at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(self.malformed("the archive is cut off in a header")),
                Ok(read) => filled += read,
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
        Ok(true)
    }

    fn io(&self, error: std::io::Error) -> Error {
        if error.kind() == IoErrorKind::UnexpectedEof {
            return self.malformed("the archive is cut off").caused_by(error);
        }
        // Decoders of compressed streams answer damage with all sorts of kinds.
        let kind = if error.raw_os_error().is_some() {
            ErrorKind::Io
        } else {
            ErrorKind::Malformed
        };
        Error::new(kind, self.name.clone(), "cannot be read").caused_by(error)
    }

    fn broken(&self, error: std::io::Error) -> Error {
        self.malformed("a header with a number that is none")
            .caused_by(error)
    }

    fn malformed(&self, reason: &'static str) -> Error {
        Error::malformed(self.name.clone(), reason)
    }

    fn hostile(&self, reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(ErrorKind::Unsafe, self.name.clone(), reason)
    }
}

/// What extended headers say about the next member.
#[derive(Debug, Default)]
struct Extended {
    seen: bool,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
}

impl Extended {
    fn read(&mut self, content: &[u8]) -> std::result::Result<(), &'static str> {
        self.seen = true;
        for record in PaxExtensions::new(content) {
            let record = record.map_err(|_| "an extended header that is not understood")?;
            let value = record.value_bytes().to_vec();
            match record.key_bytes() {
                b"path" => self.path = Some(value),
                b"linkpath" => self.link = Some(value),
                b"size" => self.size = Some(value),
                key if key.starts_with(b"GNU.sparse") => return Err("a sparse member"),
                _ => {}
            }
        }
        Ok(())
    }

    fn agrees(&self, header: &Header, size: u64) -> std::result::Result<(), &'static str> {
        let differs = |said: &Option<Vec<u8>>, is: Option<&[u8]>| {
            said.as_ref()
                .is_some_and(|said| Some(said.as_slice()) != is)
        };
        let size = size.to_string().into_bytes();
        if differs(&self.path, Some(&header.path_bytes()))
            || differs(&self.link, header.link_name_bytes().as_deref())
            || differs(&self.size, Some(&size))
        {
            return Err("its extended header says otherwise than its header");
        }
        Ok(())
    }
}

/// Whether a stream that starts with these bytes is a tar archive; 512 are looked at.
pub(crate) fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}
