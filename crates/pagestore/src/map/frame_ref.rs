//! Where a frame is: its address for ever, and its place in the pack it was written to.

use neon_snapshot_format::pack::PackId;

use crate::crypt::DataKey;
use crate::map::Cells;

/// A pack, with the key that its frames are or may be sealed with.
///
/// Every pack has a key, also one whose frames are not sealed: a copy into an encrypted repository seals them.
/// Whoever may read the map may read the pack, so the map holds the key; the map's own frames are sealed in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackRef {
    /// The pack.
    pub id: PackId,
    /// Its key.
    pub key: DataKey,
}

/// A frame: its address, which never changes, and what the directory of its own pack says about it, so that
/// it costs one ranged read and is verified without that directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameRef {
    /// The pack it was written to.
    pub pack: PackRef,
    /// Its number there.
    pub frame: u64,
    /// Where its stored bytes begin in that pack.
    pub offset: u64,
    /// How many there are.
    pub stored_length: u32,
    /// Bytes once decoded, at most 128 KiB.
    pub plain_length: u32,
    /// The codec, as stored in a pack's directory.
    pub codec: u8,
    /// Whether the stored bytes are encrypted.
    pub sealed: bool,
    /// The first half of the BLAKE3 digest of the stored bytes.
    pub digest: [u8; 16],
}

impl FrameRef {
    /// Its address: the pack's id and its number there.
    #[must_use]
    pub const fn id(&self) -> (PackId, u64) {
        (self.pack.id, self.frame)
    }

    /// All its cells.
    #[must_use]
    pub fn whole(&self) -> Cells {
        Cells::whole(self.plain_length)
    }

    /// The cells that some pages touch, the first of which begins at this offset. Of pages that are not in it, all.
    pub(crate) fn cells_of(&self, offset: u32, pages: u32, page_size: u32) -> Cells {
        if offset >= self.plain_length {
            return self.whole();
        }
        let length = u64::from(pages).saturating_mul(page_size.into());
        let end = u64::from(offset).saturating_add(length);
        Cells::of(&(offset.into()..end.min(self.plain_length.into())))
    }
}
