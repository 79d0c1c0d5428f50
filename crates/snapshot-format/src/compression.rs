//! The compressions that base backups come in: gzip, LZ4 and Zstandard streams.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::error::{Error, Result};

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip, at a level from 1 to 9.
    Gzip(u32),
    /// An LZ4 frame.
    Lz4,
    /// Zstandard, at a level from 1 to 22.
    Zstd(i32),
}

/// Windows above 128 MiB are refused: nobody writes them, and they would let a small stream take memory.
const ZSTD_WINDOW_LOG: u32 = 27;

impl Compression {
    /// The compression of a stream that starts with these bytes. Four suffice.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1F, 0x8B, ..] => Self::Gzip(6),
            [0x04, 0x22, 0x4D, 0x18, ..] => Self::Lz4,
            [0x28, 0xB5, 0x2F, 0xFD, ..] => Self::Zstd(3),
            _ => Self::None,
        }
    }

    /// What is added to a file's name.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip(_) => ".gz",
            Self::Lz4 => ".lz4",
            Self::Zstd(_) => ".zst",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip(_) => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd(_) => "zstd",
        })
    }
}

/// A stream of any compression, told by its first bytes, as plain bytes.
pub(crate) fn decompress<'a>(stream: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    let fail = |error: io::Error| Error::io("compressed stream", "cannot be read", error);
    let mut stream = BufReader::with_capacity(128 << 10, stream);
    let compression = Compression::of(stream.fill_buf().map_err(fail)?);
    Ok(match compression {
        Compression::None => Box::new(stream),
        Compression::Gzip(_) => Box::new(MultiGzDecoder::new(stream)),
        Compression::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(stream)),
        Compression::Zstd(_) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(stream).map_err(fail)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(fail)?;
            Box::new(decoder)
        }
    })
}

/// Compresses what is written.
pub(crate) enum Compressor<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Lz4(Box<lz4_flex::frame::FrameEncoder<W>>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    pub(crate) fn new(stream: W, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(stream),
            Compression::Gzip(level) => Self::Gzip(GzEncoder::new(
                stream,
                flate2::Compression::new(level.clamp(1, 9)),
            )),
            Compression::Lz4 => Self::Lz4(Box::new(lz4_flex::frame::FrameEncoder::new(stream))),
            Compression::Zstd(level) => {
                let mut encoder = zstd::stream::write::Encoder::new(stream, level.clamp(1, 22))?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Ends the stream and gives back what it was written to.
    pub(crate) fn finish(self) -> io::Result<W> {
        let mut stream = match self {
            Self::None(stream) => stream,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Lz4(encoder) => encoder.finish().map_err(io::Error::other)?,
            Self::Zstd(encoder) => encoder.finish()?,
        };
        stream.flush()?;
        Ok(stream)
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(stream) => stream.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Lz4(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(stream) => stream.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Lz4(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
