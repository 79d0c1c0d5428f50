#![doc = include_str!("../README.md")]
// Verbs are made of verbs: unboxed, a future of futures does not fit the stack of a thread.
#![warn(clippy::large_futures)]

mod background;
mod doctor;
mod document1;
mod error;
mod events;
mod home;
mod installed;
mod instances;
mod name;
mod neon;
mod operation;
mod pins;
mod quantity;
mod record;
mod repositories;
mod snapshots;
mod storages;
mod undo;
mod upkeep;

pub use doctor::{DoctorFinding, DoctorOptions, DoctorReport, Severity, first_closed};
pub use document1::{
    ExportedFirst, InitOptions, Initialized, RestoredFirst, SnapshotFirst, StartedFirst,
};
pub use error::{Error, ErrorKind, Result};
pub use events::{Event, EventSink};
pub use home::Home;
// What is public in these three is what this crate is for: each file says what it adds.
pub use instances::*;
pub use name::Name;
pub use neon::{AskPassword, Neon, Options};
pub use neon_pagestore::gc::Retained;
pub use neon_pagestore::{CommitId, SnapshotName, Tag};
pub use neon_pgctl::{OsUser, PgMajor, ServerState, Status};
pub use neon_pgwire::Surroundings;
pub use neon_snapshot_format::Compression;
pub use neon_storage::{Context, Locator, Registry, Secret, Variables};
pub use operation::{Operation, Outcome};
pub use quantity::{bytes_in_words, in_units};
pub use repositories::StorageRepository;
pub use snapshots::*;
pub use storages::*;
pub use undo::Undone;
pub use upkeep::*;
