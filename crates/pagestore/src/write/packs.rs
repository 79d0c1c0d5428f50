//! Packs written one after the other: frames go in, a pack ends when it is large enough, and the next begins
//! while the rest of the last one is still on its way.

use neon_snapshot_format::pack::{Codec, FrameEncoder};

use crate::error::{Error, ErrorKind, Result};
use crate::map::{BlockSink, FrameRef};
use crate::write::snapshot::Target;
use crate::write::upload::{PackUpload, Uploaded};

/// A row of packs of one writer, written by one thread at a time.
#[derive(Debug)]
pub(crate) struct Packs {
    target: Target,
    codec: Codec,
    encoder: FrameEncoder,
    open: Option<PackUpload>,
    /// Ended, and perhaps not durable yet.
    ended: Option<Uploaded>,
    /// Stored bytes of packs that are durable.
    stored: u64,
    /// Bytes of frames handed in.
    plain: u64,
    /// A pack failed, and with it frames whose addresses were given out.
    failed: bool,
}

impl Packs {
    pub(crate) fn new(target: Target, codec: Codec) -> Self {
        Self {
            target,
            codec,
            encoder: FrameEncoder::new(codec),
            open: None,
            ended: None,
            stored: 0,
            plain: 0,
            failed: false,
        }
    }

    /// Compresses and appends a frame. Its address is good when [`finish`](Self::finish) has returned.
    pub(crate) fn append(&mut self, plain: &[u8]) -> Result<FrameRef> {
        let appended = self.try_append(plain);
        self.failed |= appended.is_err();
        appended
    }

    fn try_append(&mut self, plain: &[u8]) -> Result<FrameRef> {
        let frame = self
            .encoder
            .encode(plain)
            .map_err(|error| Error::format("frame", error))?;
        self.plain += plain.len() as u64;
        let mut upload = match self.open.take() {
            Some(upload) => upload,
            None => self.target.begin(self.codec)?,
        };
        let place = upload.append(&frame)?;
        if upload.position() < self.target.pack_size() {
            self.open = Some(upload);
        } else {
            self.end(upload)?;
        }
        Ok(place)
    }

    fn end(&mut self, upload: PackUpload) -> Result<()> {
        let ended = upload.finish()?;
        if let Some(before) = self.ended.replace(ended) {
            self.stored += before.wait()?;
        }
        Ok(())
    }

    /// Ends the last pack and waits until all are durable. Fails for ever once any of them did, also where that error
    /// was passed over.
    pub(crate) fn finish(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                "snapshot",
                "goes on although one of its packs could not be stored",
            ));
        }
        self.end_all()?;
        self.failed = false;
        Ok(())
    }

    fn end_all(&mut self) -> Result<()> {
        if let Some(upload) = self.open.take() {
            self.end(upload)?;
        }
        if let Some(ended) = self.ended.take() {
            self.stored += ended.wait()?;
        }
        Ok(())
    }

    /// Bytes stored, and bytes that they hold.
    pub(crate) fn written(&self) -> (u64, u64) {
        (self.stored, self.plain)
    }
}

impl BlockSink for Packs {
    fn put(&mut self, plain: &[u8]) -> Result<FrameRef> {
        self.append(plain)
    }
}
