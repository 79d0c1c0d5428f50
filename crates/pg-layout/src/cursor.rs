//! Checked little-endian reads from a byte slice.
//!
//! PostgreSQL writes its binary structures in the byte order of the host. This crate reads those of
//! little-endian hosts (x86-64, arm64) and says so where a structure lets it find out; every read is
//! bounds-checked, so a decoder built on [`Cursor`] cannot index out of its input.

use crate::error::{Error, ErrorKind, Result};

/// A position in a byte slice that only moves forward.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    subject: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte; `subject` names the structure in errors.
    pub(crate) const fn new(subject: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            subject,
            bytes,
            at: 0,
        }
    }

    /// How many bytes were consumed.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    #[inline]
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error about this structure at the current position.
    pub(crate) fn error(
        &self,
        kind: ErrorKind,
        reason: impl Into<std::borrow::Cow<'static, str>>,
    ) -> Error {
        Error::new(kind, self.subject, reason).at(self.at as u64)
    }

    /// The next `len` bytes.
    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += len;
                Ok(taken)
            }
            None => Err(self.short(len)),
        }
    }

    #[cold]
    fn short(&self, len: usize) -> Error {
        self.error(
            ErrorKind::Truncated,
            format!("{len} bytes needed, {} left", self.remaining()),
        )
    }

    /// Moves over `len` bytes, padding for example.
    #[inline]
    pub(crate) fn skip(&mut self, len: usize) -> Result<()> {
        self.take(len).map(|_| ())
    }

    /// The next `N` bytes as an array.
    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.first_chunk::<N>() {
            Some(chunk) => {
                self.at += N;
                Ok(*chunk)
            }
            None => Err(self.short(N)),
        }
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub(crate) fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_little_endian_and_advance() {
        let mut cursor = Cursor::new("test", &[1, 2, 0, 3, 0, 0, 0]);
        assert_eq!((cursor.u8().unwrap(), cursor.u16().unwrap()), (1, 2));
        assert_eq!((cursor.u32().unwrap(), cursor.remaining()), (3, 0));
    }

    #[test]
    fn a_read_past_the_end_is_an_error_and_does_not_move() {
        let mut cursor = Cursor::new("test", &[1, 2, 3]);
        assert_eq!(cursor.u32().unwrap_err().kind(), ErrorKind::Truncated);
        assert_eq!(
            cursor.take(usize::MAX).unwrap_err().kind(),
            ErrorKind::Truncated
        );
        assert_eq!((cursor.position(), cursor.take(3).unwrap().len()), (0, 3));
    }
}
