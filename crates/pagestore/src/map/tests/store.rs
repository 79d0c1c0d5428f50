//! Frames of maps in memory, and counts of what was read.

use std::cell::Cell;
use std::collections::HashMap;

use bytes::Bytes;
use neon_snapshot_format::pack::PackId;

use crate::crypt::DataKey;
use crate::error::Result;
use crate::map::machine::FrameId;
use crate::map::{BlockSink, FrameRef, MapFrame, PackRef};

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) frames: HashMap<FrameId, MapFrame>,
    pack: u8,
    next: u64,
    offset: u64,
    reads: Cell<u64>,
}

impl Store {
    /// From here on frames go into another pack.
    pub(super) fn next_pack(&mut self) {
        self.pack += 1;
        self.next = 0;
        self.offset = 64;
    }

    pub(super) fn get(&self, frame: &FrameRef) -> Result<MapFrame> {
        self.reads.set(self.reads.get() + 1);
        Ok(self.frames[&frame.id()].clone())
    }

    /// How many frames were read since this was asked last.
    pub(super) fn reads(&self) -> u64 {
        self.reads.take()
    }
}

impl BlockSink for Store {
    fn put(&mut self, plain: &[u8]) -> Result<FrameRef> {
        let length = plain.len() as u32;
        let frame = FrameRef {
            pack: PackRef {
                id: PackId([0xA0 ^ self.pack; 16]),
                key: DataKey([self.pack; 32]),
            },
            frame: self.next,
            offset: self.offset,
            stored_length: length,
            plain_length: length,
            codec: 0,
            sealed: self.pack.is_multiple_of(2),
            digest: [self.next as u8; 16],
        };
        assert!(!plain.is_empty() && plain.len() <= 128 << 10);
        // What was written can be read.
        let content = MapFrame::decode(&Bytes::copy_from_slice(plain))?;
        self.next += 1;
        self.offset += u64::from(length);
        self.frames.insert(frame.id(), content);
        Ok(frame)
    }
}
