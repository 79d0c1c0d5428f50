//! Archives cut the way old clients expect them.
//!
//! `pg_basebackup` 13 and 14 rely on how servers of that age frame a tar: each header in a message of
//! its own, then the file in pieces, then its padding in a message of its own, and no blocks of zeros
//! at the end. Here an archive that comes in any pieces is cut so.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

pub(super) use crate::archive::BLOCK;
use crate::archive::member_size;

/// The size of a piece of a file.
const PIECE: usize = 32 << 10;

/// What comes next in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Data {
        left: u64,
        padding: usize,
    },
    Padding(usize),
    /// The blocks of zeros at the end were reached.
    End,
}

/// Cuts an archive into headers, pieces of files, and paddings.
#[derive(Debug)]
pub(crate) struct TarFramer {
    state: State,
    input: BytesMut,
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl TarFramer {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Header,
            input: BytesMut::new(),
        }
    }

    /// Adds bytes. What [`next`](Self::next) can give is to be taken before more is added.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next message's worth, if enough was pushed.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.state {
                State::Header => {
                    if self.input.len() < BLOCK {
                        return Ok(None);
                    }
                    let header = self.input.split_to(BLOCK).freeze();
                    if header.iter().all(|byte| *byte == 0) {
                        self.state = State::End;
                        continue;
                    }
                    let size = member_size(&header)?;
                    let padding = padding(size);
                    self.state = if size == 0 {
                        State::Header
                    } else {
                        State::Data {
                            left: size,
                            padding,
                        }
                    };
                    return Ok(Some(header));
                }
                State::Data {
                    left: 0,
                    padding: 0,
                } => self.state = State::Header,
                State::Data { left: 0, padding } => self.state = State::Padding(padding),
                State::Data { left, padding } => {
                    let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                    // Whole pieces, so that what is small stays together.
                    if self.input.len() < want {
                        return Ok(None);
                    }
                    let taken = u64::try_from(want).unwrap_or(0);
                    self.state = State::Data {
                        left: left - taken,
                        padding,
                    };
                    return Ok(Some(self.input.split_to(want).freeze()));
                }
                State::Padding(length) => {
                    if self.input.len() < length {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    return Ok(Some(self.input.split_to(length).freeze()));
                }
                State::End => {
                    if self.input.iter().any(|byte| *byte != 0) {
                        return Err(invalid("the archive goes on after its end"));
                    }
                    self.input.advance(self.input.len());
                    return Ok(None);
                }
            }
        }
    }

    /// The archive is over; it must not break off within a member.
    pub(crate) fn finish(&self) -> io::Result<()> {
        match self.state {
            State::Header | State::End if self.input.is_empty() => Ok(()),
            _ => Err(invalid("the archive breaks off")),
        }
    }
}

fn padding(size: u64) -> usize {
    // Less than a block, so it fits.
    usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0)
}

/// The header of a plain file, as PostgreSQL writes it, owned by `postgres`.
pub(super) fn file_header(name: &str, size: u64, mode: u32) -> io::Result<[u8; BLOCK]> {
    let mut header = [0_u8; BLOCK];
    if name.len() > 99 || size >= 1 << 33 {
        return Err(invalid("a name or a size does not fit into a header"));
    }
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = header.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o} ").as_bytes());
    put(136, b"00000000000 ");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    put(265, b"postgres");
    put(297, b"postgres");
    put(329, b"0000000 ");
    put(337, b"0000000 ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    if let Some(field) = header.get_mut(148..156) {
        field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut tar = Vec::new();
        for size in [0_usize, 5, 512, 70_000] {
            tar.extend_from_slice(&file_header("a", size as u64, 0o600).unwrap());
            tar.extend(std::iter::repeat_n(7, size));
            tar.resize(tar.len().next_multiple_of(BLOCK), 0);
        }
        tar
    }

    fn cut(tar: &[u8], piece: usize) -> Vec<usize> {
        let (mut framer, mut lengths) = (TarFramer::new(), Vec::new());
        for piece in tar.chunks(piece) {
            framer.push(piece);
            while let Some(bytes) = framer.next().unwrap() {
                lengths.push(bytes.len());
            }
        }
        framer.finish().unwrap();
        lengths
    }

    #[test]
    fn frames_do_not_depend_on_the_pieces_and_the_end_is_left_out() {
        let expected = vec![512, 512, 5, 507, 512, 512, 512, 32768, 32768, 4464, 144];
        let mut tar = archive();
        assert_eq!(cut(&tar, tar.len()), expected);
        tar.resize(tar.len() + 10240, 0);
        for piece in [1, 511, 513, 100_000] {
            assert_eq!(cut(&tar, piece), expected);
        }
    }

    #[test]
    fn what_breaks_off_or_is_unknown_is_an_error() {
        let tar = archive();
        let mut framer = TarFramer::new();
        framer.push(&tar[..tar.len() - 1]);
        while framer.next().unwrap().is_some() {}
        assert!(framer.finish().is_err());
        let mut pax = file_header("a", 0, 0).unwrap();
        pax[156] = b'x';
        let mut framer = TarFramer::new();
        framer.push(&pax);
        assert!(framer.next().is_err());
    }
}
