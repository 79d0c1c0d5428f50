//! Page maps: which frame holds each page of a snapshot.
//!
//! A snapshot's map is at most four sorted runs, newest first. A run says, for some files, what is new
//! about them and where some of their pages are; what it does not say, an older run does.

mod block;
mod cells;
mod cursor;
mod diff;
mod differing;
mod frame_ref;
mod frame_table;
pub(crate) mod fuzz;
mod group;
mod index;
mod key;
mod key_ranges;
mod list;
mod live;
mod live_frames;
mod lookup;
mod machine;
mod map_frame;
mod merge;
mod overlay;
pub mod policy;
mod run;
mod run_writer;
mod spool;
mod view;
mod walk;
mod wire;

pub use cells::Cells;
pub use diff::{Diff, FileDiff};
pub use frame_ref::{FrameRef, PackRef};
pub(crate) use frame_table::MAX_STORED;
pub use group::{At, Attributes, Extent, FileKind, FileState, Group, KEEP_ALL, PageDigest};
pub use key::PageKey;
pub use list::List;
pub use live::Mark;
pub use live_frames::{LiveFrame, LiveFrames};
pub use lookup::{Lookup, Stat};
pub use machine::{Machine, Step, drive};
pub use map_frame::MapFrame;
pub use merge::Merge;
pub use run::{MAX_RUNS, RunRef, RunSize, decode_runs, encode_runs};
pub use run_writer::{BlockSink, RunWriter};
pub use spool::Spool;
pub use view::{PagePlace, View};
pub use walk::{MappedFile, Walk};

#[cfg(test)]
mod tests;
