//! A map in memory, before it is stored.

use bytes::Bytes;
use neon_snapshot_format::pack::PackId;

use crate::crypt::DataKey;
use crate::error::{Error, ErrorKind, Result};
use crate::map::{BlockSink, FrameRef, MapFrame, PackRef};

/// Keeps the frames of a run in memory: that of the changes of one snapshot, until [`Merge`](crate::map::Merge)
/// has stored it. Its pack exists nowhere else; its id is zero, as no real pack's is.
#[derive(Debug, Default)]
pub struct Spool {
    frames: Vec<Bytes>,
}

impl Spool {
    /// The plain bytes of a frame, if it is one of these.
    #[must_use]
    pub fn get(&self, frame: &FrameRef) -> Option<Bytes> {
        if frame.pack.id != PackId([0; 16]) {
            return None;
        }
        self.frames.get(usize::try_from(frame.frame).ok()?).cloned()
    }

    /// A frame, decoded.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when it is not one of these.
    pub fn decode(&self, frame: &FrameRef) -> Result<MapFrame> {
        let bytes = self.get(frame).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "page map", "a frame is not in memory")
        })?;
        MapFrame::decode(&bytes)
    }
}

impl BlockSink for Spool {
    fn put(&mut self, plain: &[u8]) -> Result<FrameRef> {
        let length = u32::try_from(plain.len()).map_err(|error| {
            Error::new(ErrorKind::Limit, "frame", "is too long").caused_by(error)
        })?;
        let frame = self.frames.len() as u64;
        self.frames.push(Bytes::copy_from_slice(plain));
        Ok(FrameRef {
            pack: PackRef {
                id: PackId([0; 16]),
                key: DataKey([0; 32]),
            },
            frame,
            offset: 0,
            stored_length: length,
            plain_length: length,
            codec: 0,
            sealed: false,
            digest: [0; 16],
        })
    }
}
