#![doc = include_str!("../README.md")]

mod bridge;
mod catalog;
pub mod changes;
mod check;
mod claim;
mod commit;
mod commit_object;
mod copy;
pub mod crypt;
mod doomed;
mod error;
mod facts;
mod format_fuzz;
#[cfg(test)]
mod format_tests;
#[doc(hidden)]
pub mod fuzz_targets;
pub mod gc;
mod id;
mod keys;
mod lease;
mod listing;
pub mod map;
mod moves;
mod name;
mod object;
mod pack_file;
mod page_checks;
mod pin;
pub mod read;
mod repository;
mod resolve;
pub mod restore;
mod tombstone;
pub mod write;
mod writing;

pub use catalog::Summary;
pub use check::{Checked, Finding};
pub use claim::NameOutcome;
pub use commit::Commit;
pub use copy::{Copied, CopyProgress};
pub use error::{Error, ErrorKind, Result};
pub use facts::{
    BadPage, ClusterFacts, Cost, Facts, LogFacts, LogPlace, LogRange, Needs, Noted, TimelineStep,
};
pub use id::{CommitId, LineageId, RepositoryId, WriterId};
pub use keys::is_bulk;
pub use listing::{Listed, Unreadable};
pub use name::{SnapshotName, Tag};
pub use object::{Object, ObjectKind};
pub use pin::{Pin, PinId};
pub use repository::{OpenOptions, Repository};
pub use writing::{Brought, Committed, Writing};
