//! Writing: packs streamed into a storage, snapshots written by several threads.

mod bundle;
mod complete;
mod facts;
mod gather;
mod packs;
mod part;
mod snapshot;
mod upload;
mod worker;

pub use complete::{Parent, Stored};
pub(crate) use snapshot::passed;
pub use snapshot::{SnapshotOptions, SnapshotWriter, WriteReport};
pub use upload::{PackUpload, Uploaded};
