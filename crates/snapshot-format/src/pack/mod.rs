//! Packs: frames that are compressed, summed and perhaps encrypted one by one, with a directory at the end
//! in two levels, so that any frame of a pack of any size is reached by a few small ranged reads.
//!
//! A `.neon` file is a pack that holds a whole snapshot. The byte tables stand in `docs/formats/pack.md`.

mod directory;
mod entry;
mod frame;
pub(crate) mod fuzz;
mod index;
mod line;
mod neon_extract;
mod neon_read;
mod neon_write;
mod wire;
mod write;

pub use directory::{Flags, PackId};
pub use frame::{
    Codec, EncodedFrame, FRAME_SIZE, FrameCipher, FrameContext, FrameEncoder, FrameRecord,
    SealedFrame,
};
pub use index::{FrameTable, Opening, PackIndex, Step, TableRef};
pub use neon_read::{NeonFile, ReadRange};
pub use neon_write::NeonWriter;
pub use write::{PackOptions, PackWriter, SnapshotRoot};

pub(crate) use directory::HEADER_MAGIC;
