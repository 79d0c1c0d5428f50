//! Reading: frames out of a storage, pages and whole snapshots out of frames.

mod arrange;
mod disk_cache;
pub(crate) mod feed;
mod fetch;
mod flights;
pub(crate) mod form;
mod frames;
pub(crate) mod fuzz;
pub(crate) mod layout;
mod maps;
pub(crate) mod memory;
mod pages;
mod parent_pages;
pub(crate) mod plain;
mod read_ahead;
pub(crate) mod source;
mod together;

pub use disk_cache::DiskCache;
pub use form::{Form, Thinned};
pub use frames::{FrameReader, FrameReaderOptions, FrameUse, Moved, Place};
pub use maps::MapReader;
pub use pages::Snapshot;
pub use parent_pages::SnapshotPages;
pub use plain::Part;
pub use source::SnapshotSource;
