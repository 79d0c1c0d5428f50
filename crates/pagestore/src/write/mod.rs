//! Writing: packs streamed into a storage, snapshots written by several threads.

mod bundle;
mod changed;
mod complete;
mod facts;
mod gather;
mod known;
mod packs;
mod part;
mod snapshot;
mod upload;
mod worker;

pub use changed::ChangedSince;
pub use complete::{Parent, Stored};
pub(crate) use snapshot::passed;
pub use snapshot::{SnapshotOptions, SnapshotWriter, WriteReport};
pub use upload::{PackUpload, Uploaded};
pub(crate) use worker::digest;
