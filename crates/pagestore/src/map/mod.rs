//! Page maps: which frame holds each page of a snapshot.
//!
//! A snapshot's map is at most four sorted runs, newest first. A run says, for some files, what is new
//! about them and where some of their pages are; what it does not say, an older run does.

mod frame_ref;
mod group;

pub use frame_ref::{FrameRef, PackRef};
pub use group::{At, Attributes, Extent, FileKind, FileState, Group, KEEP_ALL, PageDigest};
