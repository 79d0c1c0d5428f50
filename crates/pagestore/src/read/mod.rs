//! Reading: frames out of a storage, pages and whole snapshots out of frames.

mod disk_cache;
mod flights;
mod frames;
mod maps;
mod memory;

pub use disk_cache::DiskCache;
pub use frames::{FrameReader, FrameReaderOptions, FrameUse, Moved, Place};
pub use maps::MapReader;
