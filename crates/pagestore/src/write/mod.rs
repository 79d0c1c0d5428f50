//! Writing: packs streamed into a storage, snapshots written by several threads.

mod gather;
mod upload;

pub use upload::{PackUpload, Uploaded};
