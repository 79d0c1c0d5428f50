//! Writing a pack in one pass: nothing is ever written twice, so that a pipe will do.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::pack::directory::{
    FOOTER_SIZE, Flags, Footer, PackHeader, PackId, ROOT_ENTRY, ROOT_HEAD, TABLE_FRAMES,
    TABLE_HEAD, put_record,
};
use crate::pack::frame::{
    Codec, EncodedFrame, FrameCipher, FrameContext, FrameEncoder, FrameRecord, SealedFrame,
    digest16,
};

/// How to write a pack.
#[derive(Debug, Clone)]
pub struct PackOptions {
    /// Its identity: random, or anything else that nobody else has.
    pub id: PackId,
    /// How frames are compressed.
    pub codec: Codec,
    /// Encrypts the frames, those with file lists included. Sizes and digests of frames stay readable.
    pub cipher: Option<Arc<dyn FrameCipher>>,
}

impl PackOptions {
    /// Zstandard at level 3, not encrypted.
    #[must_use]
    pub fn new(id: PackId) -> Self {
        Self {
            id,
            codec: Codec::default(),
            cipher: None,
        }
    }
}

/// The frames that describe a whole snapshot, in a pack that holds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotRoot {
    /// The first.
    pub frame: u64,
    /// How many.
    pub count: u32,
}

/// Writes a pack to a stream.
///
/// Frames get numbers from 0 in the order they come. A table of the directory follows every 2048 frames, so
/// memory grows with the number of tables only. Nothing is durable before the caller makes the stream so.
pub struct PackWriter<W> {
    stream: W,
    options: PackOptions,
    encoder: FrameEncoder,
    offset: u64,
    frames: u64,
    table_start: u64,
    table: Vec<u8>,
    root: Vec<u8>,
}

impl<W> fmt::Debug for PackWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackWriter")
            .field("options", &self.options)
            .field("offset", &self.offset)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl<W: Write> PackWriter<W> {
    /// Begins a pack.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub fn new(stream: W, options: PackOptions) -> Result<Self> {
        Self::begin(stream, options, false)
    }

    pub(crate) fn begin(stream: W, options: PackOptions, is_snapshot: bool) -> Result<Self> {
        let header = PackHeader {
            id: options.id,
            flags: Flags::default(),
            is_snapshot,
        };
        let mut writer = Self {
            stream,
            encoder: FrameEncoder::new(options.codec),
            options,
            offset: 0,
            frames: 0,
            table_start: 0,
            table: Vec::new(),
            root: Vec::new(),
        };
        writer.put(&header.to_bytes())?;
        writer.table_start = writer.offset;
        Ok(writer)
    }

    pub(crate) fn options(&self) -> &PackOptions {
        &self.options
    }

    /// The number the next frame gets.
    #[must_use]
    pub fn next_frame(&self) -> u64 {
        self.frames
    }

    /// Bytes written so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.offset
    }

    /// Compresses and appends a frame; returns its number.
    ///
    /// # Errors
    /// As [`EncodedFrame::new`], what the cipher returns, [`Io`](ErrorKind::Io).
    pub fn append(&mut self, plain: &[u8]) -> Result<u64> {
        let frame = self.encoder.encode(plain)?;
        Ok(self.append_encoded(&frame)?.context.frame)
    }

    /// Appends a frame that was compressed before; returns its record. Its number is that of the record's
    /// [address](FrameRecord::address).
    ///
    /// # Errors
    /// What the cipher returns, [`Io`](ErrorKind::Io).
    pub fn append_encoded(&mut self, frame: &EncodedFrame<'_>) -> Result<FrameRecord> {
        let address = FrameContext {
            pack: self.options.id,
            frame: self.frames,
        };
        self.append_encoded_as(address, frame)
    }

    /// Appends a frame that is known by another address than its place here, and seals it for that one.
    /// It gets the [next number](Self::next_frame) here; who reads it must know its address, which the
    /// pack does not record.
    ///
    /// # Errors
    /// What the cipher returns, [`Io`](ErrorKind::Io).
    pub fn append_encoded_as(
        &mut self,
        address: FrameContext,
        frame: &EncodedFrame<'_>,
    ) -> Result<FrameRecord> {
        let borrowed = EncodedFrame {
            codec: frame.codec,
            plain_length: frame.plain_length,
            bytes: Cow::Borrowed(&frame.bytes),
        };
        let cipher = self.options.cipher.clone();
        self.append_sealed(&borrowed.seal(address, cipher.as_deref())?)
    }

    /// Appends a frame that was [sealed](EncodedFrame::seal) before, perhaps in another thread.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io).
    pub fn append_sealed(&mut self, frame: &SealedFrame<'_>) -> Result<FrameRecord> {
        let record = FrameRecord {
            offset: self.offset,
            ..frame.record
        };
        self.append_record(record, &frame.stored)
    }

    /// Appends the stored bytes of a frame of another pack as they are, sealed or not, without a key.
    /// Returns the record of its place here, with the address that `frame` has. As with
    /// [`append_encoded_as`](Self::append_encoded_as), the pack does not record that address.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) when the bytes are not the frame's; [`Io`](ErrorKind::Io).
    pub fn append_stored(&mut self, frame: &FrameRecord, stored: &[u8]) -> Result<FrameRecord> {
        frame.check(stored)?;
        let record = FrameRecord {
            offset: self.offset,
            ..*frame
        };
        self.append_record(record, stored)
    }

    fn append_record(&mut self, record: FrameRecord, stored: &[u8]) -> Result<FrameRecord> {
        record.validate()?;
        self.put(stored)?;
        put_record(&mut self.table, &record);
        self.frames += 1;
        if self.frames.is_multiple_of(TABLE_FRAMES.into()) {
            self.put_table()?;
        }
        Ok(record)
    }

    /// Ends the pack and gives back the stream, flushed. `start_up_frames` says how many of the first
    /// frames a reader does well to fetch at once.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io); [`Limit`](ErrorKind::Limit) beyond 300 billion frames.
    pub fn finish(mut self, start_up_frames: u64, snapshot: Option<SnapshotRoot>) -> Result<W> {
        if !self.table.is_empty() {
            self.put_table()?;
        }
        let tables = u32::try_from(self.root.len() / ROOT_ENTRY);
        let root_length = u32::try_from(self.root.len() + ROOT_HEAD);
        let (Ok(tables), Ok(root_length)) = (tables, root_length) else {
            return Err(Error::new(ErrorKind::Limit, "pack", "has too many frames"));
        };
        let mut root = Vec::with_capacity(self.root.len() + ROOT_HEAD);
        root.extend_from_slice(&tables.to_le_bytes());
        root.extend_from_slice(&[0; 4]);
        root.append(&mut self.root);
        let root_offset = self.offset;
        self.put(&root)?;
        let footer = Footer {
            id: self.options.id,
            root_offset,
            root_length,
            frame_count: self.frames,
            start_up_frames: start_up_frames.min(self.frames),
            snapshot_frame: snapshot.map_or(0, |root| root.frame),
            snapshot_frames: snapshot.map_or(0, |root| root.count),
            total_length: self.offset + FOOTER_SIZE as u64,
            flags: Flags::default(),
            root_digest: *blake3::hash(&root).as_bytes(),
        };
        self.put(&footer.to_bytes())?;
        self.stream
            .flush()
            .map_err(|error| Error::io("pack", "cannot be written", error))?;
        Ok(self.stream)
    }

    fn put_table(&mut self) -> Result<()> {
        let count = self.frames - (self.root.len() / ROOT_ENTRY) as u64 * u64::from(TABLE_FRAMES);
        let mut table = Vec::with_capacity(TABLE_HEAD + self.table.len());
        table.extend_from_slice(&(self.frames - count).to_le_bytes());
        table.extend_from_slice(&self.table_start.to_le_bytes());
        table.extend_from_slice(&u32::try_from(count).unwrap_or(TABLE_FRAMES).to_le_bytes());
        table.extend_from_slice(&[0; 4]);
        table.append(&mut self.table);
        self.root.extend_from_slice(&self.offset.to_le_bytes());
        self.root.extend_from_slice(&digest16(&table));
        self.put(&table)?;
        self.table_start = self.offset;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .map_err(|error| Error::io("pack", "cannot be written", error))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
