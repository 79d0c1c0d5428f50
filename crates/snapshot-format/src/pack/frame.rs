//! Frames: up to 16 pages that are compressed, sealed and summed together.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::pack::directory::PackId;
use crate::stream::{CHUNK_SIZE, is_zero};

/// The most plain bytes a frame holds: 16 pages of 8 KiB.
pub const FRAME_SIZE: usize = CHUNK_SIZE;

/// What a sealed frame may be longer than its content: nonce and tag.
const SEAL_OVERHEAD: usize = 64;

/// How the plain bytes of a frame are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// Not at all.
    None,
    /// An LZ4 block.
    Lz4,
    /// A Zstandard frame, written at this level (1 to 22).
    Zstd(i32),
}

impl Default for Codec {
    fn default() -> Self {
        Self::Zstd(3)
    }
}

pub(crate) const NONE: u8 = 0;
pub(crate) const LZ4: u8 = 1;
pub(crate) const ZSTD: u8 = 2;
/// All bytes are zero and none is stored.
pub(crate) const ZEROS: u8 = 3;

/// Which frame it is. What encryption binds a frame to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameContext {
    /// The pack it was written for.
    pub pack: PackId,
    /// Its number there. Both stay when the frame is copied into another pack.
    pub frame: u64,
}

impl FrameContext {
    /// The bytes to authenticate beside the frame's own: pack id, then the number, little-endian.
    #[must_use]
    pub fn associated_data(&self) -> [u8; 24] {
        let mut data = [0; 24];
        let (id, frame) = data.split_at_mut(16);
        id.copy_from_slice(&self.pack.0);
        frame.copy_from_slice(&self.frame.to_le_bytes());
        data
    }
}

/// Encrypts and decrypts frames. Keys, algorithms and nonces are the implementor's; sealed bytes may be at
/// most 64 longer than plain ones.
pub trait FrameCipher: Send + Sync + fmt::Debug {
    /// Encrypts and authenticates the compressed bytes of a frame.
    ///
    /// # Errors
    /// When the implementor cannot.
    fn seal(&self, frame: FrameContext, bytes: &[u8]) -> Result<Vec<u8>>;

    /// Authenticates and decrypts what [`seal`](Self::seal) returned.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) when the bytes, or the frame they claim to be, are not authentic.
    fn open(&self, frame: FrameContext, sealed: &[u8]) -> Result<Vec<u8>>;
}

/// A frame that is compressed and not yet part of a pack. Threads can make them beside each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedFrame<'a> {
    pub(crate) codec: u8,
    pub(crate) plain_length: u32,
    pub(crate) bytes: Cow<'a, [u8]>,
}

impl<'a> EncodedFrame<'a> {
    /// Compresses plain bytes; stores them as they are where that does not help, and not at all where
    /// they are zero.
    ///
    /// # Errors
    /// [`Limit`](ErrorKind::Limit) for no bytes and for more than [`FRAME_SIZE`].
    pub fn new(plain: &'a [u8], codec: Codec) -> Result<Self> {
        FrameEncoder::new(codec).encode(plain)
    }

    /// Bytes of the frame once decoded.
    #[must_use]
    pub fn plain_length(&self) -> u32 {
        self.plain_length
    }

    /// The compressed bytes. Empty for a frame of zeros.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same frame, which borrows nothing: to be sent to another thread.
    #[must_use]
    pub fn into_owned(self) -> EncodedFrame<'static> {
        EncodedFrame {
            codec: self.codec,
            plain_length: self.plain_length,
            bytes: Cow::Owned(self.bytes.into_owned()),
        }
    }

    /// Encrypts it, where there is a cipher, for this address, and sums it: all that can be done before its
    /// place in a pack is known.
    ///
    /// # Errors
    /// What the cipher returns; [`Malformed`](ErrorKind::Malformed) when that adds more than a frame may
    /// have.
    pub fn seal(
        self,
        address: FrameContext,
        cipher: Option<&dyn FrameCipher>,
    ) -> Result<SealedFrame<'a>> {
        let sealed = match cipher {
            Some(cipher) if !self.bytes.is_empty() => Some(cipher.seal(address, &self.bytes)?),
            _ => None,
        };
        let is_sealed = sealed.is_some();
        let stored = sealed.map_or(self.bytes, Cow::Owned);
        let record = FrameRecord::from_parts(
            address,
            0,
            u32::try_from(stored.len()).unwrap_or(u32::MAX),
            self.plain_length,
            self.codec,
            is_sealed,
            digest16(&stored),
        )?;
        Ok(SealedFrame { record, stored })
    }

    /// Decompresses it.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) when it does not decompress to its length;
    /// [`Unsupported`](ErrorKind::Unsupported) for an unknown codec.
    pub fn decode(self) -> Result<Vec<u8>> {
        let damaged = |reason| Error::new(ErrorKind::Damaged, "frame", reason);
        let length = self.plain_length as usize;
        let plain = match self.codec {
            ZEROS => return Ok(vec![0; length]),
            NONE => self.bytes.into_owned(),
            LZ4 => lz4_flex::block::decompress(&self.bytes, length)
                .map_err(|error| damaged("does not decompress").caused_by(error))?,
            ZSTD => zstd::bulk::decompress(&self.bytes, length)
                .map_err(|error| damaged("does not decompress").caused_by(error))?,
            _ => {
                let reason = "is of an unknown codec";
                return Err(Error::new(ErrorKind::Unsupported, "frame", reason));
            }
        };
        if plain.len() != length {
            return Err(damaged("decompresses to another length"));
        }
        Ok(plain)
    }

    /// A frame of zeros.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn zeros(length: u64) -> Result<Self> {
        let plain_length = frame_length(length)?;
        Ok(Self {
            codec: ZEROS,
            plain_length,
            bytes: Cow::Borrowed(&[]),
        })
    }
}

/// A frame as a pack stores it, without its place there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedFrame<'a> {
    /// At offset 0.
    pub(crate) record: FrameRecord,
    pub(crate) stored: Cow<'a, [u8]>,
}

impl SealedFrame<'_> {
    /// Bytes that a pack stores for it.
    #[must_use]
    pub fn stored_length(&self) -> u32 {
        self.record.stored_length
    }

    /// Opens and decompresses it, as who reads it from a pack: shows that nothing went wrong while it was made.
    ///
    /// # Errors
    /// As [`FrameRecord::decode`].
    pub fn decode(&self, cipher: Option<&dyn FrameCipher>) -> Result<Vec<u8>> {
        self.record.decode(&self.stored, cipher)
    }
}

/// Compresses frames one after another, and keeps what can be used again between them.
pub struct FrameEncoder {
    codec: Codec,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameEncoder")
            .field("codec", &self.codec)
            .finish_non_exhaustive()
    }
}

impl FrameEncoder {
    /// Prepares to compress with this codec.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            zstd: None,
            scratch: Vec::new(),
        }
    }

    /// As [`EncodedFrame::new`].
    ///
    /// # Errors
    /// As [`EncodedFrame::new`].
    pub fn encode<'a>(&mut self, plain: &'a [u8]) -> Result<EncodedFrame<'a>> {
        let plain_length = frame_length(plain.len() as u64)?;
        if is_zero(plain) {
            return EncodedFrame::zeros(plain_length.into());
        }
        let (codec, bytes) = match self.compress(plain)? {
            Some((codec, length)) if length < plain.len() => {
                let packed = self.scratch.get(..length).unwrap_or_default();
                (codec, Cow::Owned(packed.to_vec()))
            }
            _ => (NONE, Cow::Borrowed(plain)),
        };
        Ok(EncodedFrame {
            codec,
            plain_length,
            bytes,
        })
    }

    /// As [`encode`](Self::encode), for bytes that nobody needs any more. Where they are stored as they are
    /// nothing is copied; else their buffer comes back.
    pub(crate) fn encode_vec(
        &mut self,
        plain: Vec<u8>,
    ) -> Result<(EncodedFrame<'static>, Vec<u8>)> {
        let EncodedFrame {
            codec,
            plain_length,
            bytes,
        } = self.encode(&plain)?;
        let (bytes, spare) = if codec == NONE {
            drop(bytes);
            (plain, Vec::new())
        } else {
            (bytes.into_owned(), plain)
        };
        let frame = EncodedFrame {
            codec,
            plain_length,
            bytes: Cow::Owned(bytes),
        };
        Ok((frame, spare))
    }

    /// Makes the scratch buffer so large; small frames alone need no large one.
    fn make_room(&mut self, most: usize) {
        if self.scratch.len() < most {
            self.scratch.resize(most, 0);
        }
    }

    /// Compresses into the scratch buffer; returns the length there.
    fn compress(&mut self, plain: &[u8]) -> Result<Option<(u8, usize)>> {
        match self.codec {
            Codec::None => Ok(None),
            Codec::Lz4 => {
                self.make_room(lz4_flex::block::get_maximum_output_size(plain.len()));
                let length = lz4_flex::block::compress_into(plain, &mut self.scratch)
                    .map_err(|error| cannot_compress().caused_by(error))?;
                Ok(Some((LZ4, length)))
            }
            Codec::Zstd(level) => {
                self.make_room(zstd::zstd_safe::compress_bound(plain.len()));
                let fail = |error| cannot_compress().caused_by(error);
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => {
                        none.insert(zstd::bulk::Compressor::new(level.clamp(1, 22)).map_err(fail)?)
                    }
                };
                let length = zstd
                    .compress_to_buffer(plain, self.scratch.as_mut_slice())
                    .map_err(fail)?;
                Ok(Some((ZSTD, length)))
            }
        }
    }
}

fn cannot_compress() -> Error {
    Error::new(ErrorKind::Io, "frame", "cannot be compressed")
}

fn frame_length(length: u64) -> Result<u32> {
    u32::try_from(length)
        .ok()
        .filter(|length| *length > 0 && u64::from(*length) <= FRAME_SIZE as u64)
        .ok_or_else(|| Error::new(ErrorKind::Limit, "frame", "holds 1 byte to 128 KiB"))
}

/// What the directory says about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRecord {
    pub(crate) context: FrameContext,
    pub(crate) offset: u64,
    pub(crate) stored_length: u32,
    pub(crate) plain_length: u32,
    pub(crate) codec: u8,
    pub(crate) sealed: bool,
    pub(crate) digest: [u8; 16],
}

impl FrameRecord {
    /// A record that was written down elsewhere than in a pack's directory.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) when no writer makes such a frame, or it would end beyond all
    /// packs.
    pub fn from_parts(
        address: FrameContext,
        offset: u64,
        stored_length: u32,
        plain_length: u32,
        codec: u8,
        sealed: bool,
        digest: [u8; 16],
    ) -> Result<Self> {
        let record = Self {
            context: address,
            offset,
            stored_length,
            plain_length,
            codec,
            sealed,
            digest,
        };
        record.validate()?;
        Ok(record)
    }

    /// The same bytes in the same pack, known to be another frame's: the one that a copied frame was
    /// before. What was sealed for that address is opened with it.
    #[must_use]
    pub fn for_address(self, address: FrameContext) -> Self {
        Self {
            context: address,
            ..self
        }
    }

    /// The frame's address: where it was written first.
    #[must_use]
    pub fn address(&self) -> FrameContext {
        self.context
    }

    /// Where the stored bytes begin in the pack.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that the pack holds for it; 0 for a frame of zeros.
    #[must_use]
    pub fn stored_length(&self) -> u32 {
        self.stored_length
    }

    /// The codec as the directory has it: see `docs/formats/pack.md`.
    #[must_use]
    pub fn codec(&self) -> u8 {
        self.codec
    }

    /// Whether the stored bytes are encrypted.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Where the stored bytes are in the pack. Empty for a frame of zeros.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.stored_length.into())
    }

    /// Bytes of the frame once decoded.
    #[must_use]
    pub fn plain_length(&self) -> u32 {
        self.plain_length
    }

    /// The first half of the BLAKE3 digest of the stored bytes.
    #[must_use]
    pub fn digest(&self) -> &[u8; 16] {
        &self.digest
    }

    /// Whether the stored bytes are those that were written. Needs no key.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) when not.
    pub fn check(&self, stored: &[u8]) -> Result<()> {
        if stored.len() as u64 == u64::from(self.stored_length) && digest16(stored) == self.digest {
            return Ok(());
        }
        Err(self.damaged("its bytes are not those that were written"))
    }

    /// Checks and decrypts the stored bytes, and leaves them compressed: to be sealed for another reader.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) when they are not those that were written;
    /// [`Unsupported`](ErrorKind::Unsupported) when the frame is encrypted and there is no cipher; what
    /// the cipher returns.
    pub fn unseal<'a>(
        &self,
        stored: &'a [u8],
        cipher: Option<&dyn FrameCipher>,
    ) -> Result<EncodedFrame<'a>> {
        self.check(stored)?;
        let bytes = match (self.sealed, cipher) {
            (false, _) => Cow::Borrowed(stored),
            (true, Some(cipher)) => Cow::Owned(cipher.open(self.context, stored)?),
            (true, None) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    self.subject(),
                    "is encrypted; a key is needed",
                ));
            }
        };
        Ok(EncodedFrame {
            codec: self.codec,
            plain_length: self.plain_length,
            bytes,
        })
    }

    /// Whether the stored bytes are the plain ones: neither compressed nor encrypted.
    #[must_use]
    pub fn is_stored_plain(&self) -> bool {
        self.codec == NONE && !self.sealed && self.stored_length == self.plain_length
    }

    /// Checks, opens and decompresses the stored bytes.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) when they are not those that were written, or do not decode;
    /// [`Unsupported`](ErrorKind::Unsupported) when the frame is encrypted and there is no cipher.
    pub fn decode(&self, stored: &[u8], cipher: Option<&dyn FrameCipher>) -> Result<Vec<u8>> {
        let frame = self.unseal(stored, cipher)?;
        frame.decode().map_err(|error| error.about(self.subject()))
    }

    /// What no writer would say about a frame.
    pub(crate) fn validate(&self) -> Result<()> {
        let stored = self.stored_length as usize;
        let fits = frame_length(self.plain_length.into()).is_ok()
            && self.codec <= ZEROS
            && stored <= FRAME_SIZE + SEAL_OVERHEAD
            && (self.codec == ZEROS) == (stored == 0)
            && !(self.sealed && self.codec == ZEROS)
            && self.offset.checked_add(stored as u64).is_some();
        if fits {
            return Ok(());
        }
        Err(Error::malformed(
            self.subject(),
            "has a record that no writer makes",
        ))
    }

    fn subject(&self) -> String {
        format!("frame {} of pack {}", self.context.frame, self.context.pack)
    }

    fn damaged(&self, reason: &'static str) -> Error {
        Error::new(ErrorKind::Damaged, self.subject(), reason)
    }
}

pub(crate) fn digest16(bytes: &[u8]) -> [u8; 16] {
    blake3::hash(bytes)
        .as_bytes()
        .first_chunk()
        .copied()
        .unwrap_or_default()
}
