#![doc = include_str!("../README.md")]

mod error;
mod events;
mod home;
mod instances;
mod name;
mod neon;
mod operation;
mod record;
mod repositories;
mod snapshots;
mod storages;

pub use error::{Error, ErrorKind, Result};
pub use events::{Event, EventSink};
pub use home::Home;
pub use instances::{
    AdoptPg, AdoptedPg, AdoptedPlace, Base, CreatePg, Instances, Pg, PgRecord, Stage,
};
pub use name::Name;
pub use neon::{Neon, Options};
pub use neon_pagestore::gc::Retained;
pub use neon_pagestore::{CommitId, SnapshotName, Tag};
pub use neon_pgctl::PgMajor;
pub use neon_storage::{Locator, Secret};
pub use operation::{Operation, Outcome};
pub use repositories::StorageRepository;
pub use snapshots::{
    CreateSnapshot, CurrentState, DestroySnapshot, Found, ListedSnapshot, OtherDiff, ParentChoice,
    RelationDiff, SnapshotDetails, SnapshotDiff, Snapshots, TakenSnapshot,
};
pub use storages::{LOCAL, StorageRecord, StorageType, Storages};
