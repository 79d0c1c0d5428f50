//! A file's bytes out of its extents.

use std::ops::Range;

use bytes::Bytes;
use neon_snapshot_format::{CHUNK_SIZE, Chunk, ChunkData};

use crate::error::{Error, Result};
use crate::map::{At, Extent, FileKind, FrameRef, MappedFile};

/// Where the bytes of one file are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout<'a> {
    file: &'a MappedFile,
    size: u64,
    page_size: u64,
}

/// Pages that lie side by side, cut to what is asked for.
struct Piece {
    /// In the file.
    bytes: Range<u64>,
    /// Zeros if none.
    frame: Option<(FrameRef, u64)>,
}

impl<'a> Layout<'a> {
    pub(crate) fn new(file: &'a MappedFile, page_size: u32) -> Self {
        let size = match file.attributes.kind {
            FileKind::File { size } => size,
            _ => 0,
        };
        Self {
            file,
            size,
            page_size: page_size.into(),
        }
    }

    fn extents(&self, range: &Range<u64>) -> &'a [Extent] {
        let first = range.start / self.page_size;
        let end = range.end.div_ceil(self.page_size);
        let extents = self.file.extents.as_slice();
        let from = extents.partition_point(|extent| u64::from(extent.end()) <= first);
        let to = extents.partition_point(|extent| u64::from(extent.page) < end);
        extents.get(from..to).unwrap_or_default()
    }

    /// Tells of a range which pages lie side by side, and in which frame from which byte on; zeros lie in none.
    pub(crate) fn each(
        &self,
        range: &Range<u64>,
        mut tell: impl FnMut(Range<u64>, Option<(&'a FrameRef, u64)>),
    ) -> Result<()> {
        let mut next = range.start;
        for extent in self.extents(range) {
            let start = u64::from(extent.page) * self.page_size;
            let end = (u64::from(extent.end()) * self.page_size)
                .min(range.end)
                .min(self.size);
            if start > next {
                break;
            }
            let frame = match &extent.at {
                At::Zeros => None,
                At::Frame { frame, offset } => Some((frame, u64::from(*offset) + (next - start))),
            };
            if end > next {
                tell(next..end, frame);
                next = end;
            }
        }
        if next < range.end {
            return Err(Error::malformed(
                self.file.path.to_string(),
                format!("the map says nothing of byte {next}"),
            ));
        }
        Ok(())
    }

    fn pieces(&self, range: &Range<u64>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        self.each(range, |bytes, frame| {
            let frame = frame.map(|(frame, at)| (*frame, at));
            pieces.push(Piece { bytes, frame });
        })?;
        Ok(pieces)
    }

    /// The frames that hold a range, each with the bytes of it that do.
    pub(crate) fn frames(&self, range: &Range<u64>) -> Result<Vec<(FrameRef, Range<u64>)>> {
        let mut frames: Vec<(FrameRef, Range<u64>)> = Vec::new();
        self.each(range, |bytes, frame| {
            let Some((frame, at)) = frame else { return };
            let end = at.saturating_add(bytes.end - bytes.start);
            match frames.last_mut() {
                Some((last, used)) if last.id() == frame.id() && used.end == at => used.end = end,
                _ => frames.push((*frame, at..end)),
            }
        })?;
        Ok(frames)
    }

    /// Tells a range, which begins with a page, chunk by chunk. `frame` has the plain bytes of frames at hand, and gives
    /// some of them.
    pub(crate) fn chunks(
        &self,
        range: Range<u64>,
        mut frame: impl FnMut(&FrameRef, Range<u64>) -> Result<Bytes>,
        mut tell: impl FnMut(&Chunk<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut offset = range.start;
        let mut buffer: Vec<u8> = Vec::new();
        while offset < range.end {
            let room = CHUNK_SIZE as u64 - offset % CHUNK_SIZE as u64;
            let end = range.end.min(offset + room);
            let pieces = self.pieces(&(offset..end))?;
            let mut slice = |piece: &Piece| match &piece.frame {
                None => Ok(None),
                Some((of, at)) => {
                    let end = at.saturating_add(piece.bytes.end - piece.bytes.start);
                    frame(of, *at..end).map(Some)
                }
            };
            let whole;
            let data = match pieces.as_slice() {
                zeros if zeros.iter().all(|piece| piece.frame.is_none()) => {
                    ChunkData::Zeros(end - offset)
                }
                [only] => {
                    whole = slice(only)?.unwrap_or_default();
                    ChunkData::Bytes(&whole)
                }
                many => {
                    buffer.clear();
                    for piece in many {
                        match slice(piece)? {
                            Some(bytes) => buffer.extend_from_slice(&bytes),
                            None => {
                                let length = piece.bytes.end - piece.bytes.start;
                                let length = usize::try_from(length).unwrap_or(0);
                                buffer.resize(buffer.len() + length, 0);
                            }
                        }
                    }
                    ChunkData::Bytes(&buffer)
                }
            };
            tell(&Chunk { offset, data })?;
            offset = end;
        }
        Ok(())
    }
}
