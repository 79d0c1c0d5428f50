//! Little-endian fields, read with bounds and written in order.

use crate::error::{Error, Result};

/// Reads fields one after another.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    subject: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(subject: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            subject,
            rest: bytes,
        }
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or_else(|| Error::malformed(self.subject, "is cut off"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        taken
            .try_into()
            .map_err(|_| Error::malformed(self.subject, "is cut off"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// Bytes behind their length in 16 bits.
    pub(crate) fn text(&mut self) -> Result<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn end(&self) -> Result<()> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(Error::malformed(
            self.subject,
            "has more bytes than it should",
        ))
    }
}

/// Appends bytes behind their length in 16 bits.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    let length = u16::try_from(text.len()).map_err(|_| {
        Error::new(
            crate::ErrorKind::Limit,
            "text in a pack",
            "is longer than 65535 bytes",
        )
    })?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text);
    Ok(())
}
