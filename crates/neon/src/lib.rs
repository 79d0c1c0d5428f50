#![doc = include_str!("../README.md")]

mod background;
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
mod undo;

pub use error::{Error, ErrorKind, Result};
pub use events::{Event, EventSink};
pub use home::Home;
pub use instances::{
    AdoptPg, AdoptedPg, AdoptedPlace, Base, CheckedOut, CheckoutChoice, CheckoutPlan, CreatePg,
    Head, Instances, Pg, PgRecord, RestoreChoice, Stage,
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
    CreateSnapshot, CurrentState, DestroySnapshot, Found, ListedSnapshot, OpenSnapshot, OtherDiff,
    ParentChoice, RelationDiff, SnapshotDetails, SnapshotDiff, Snapshots, TakenSnapshot,
};
pub use storages::{LOCAL, StorageRecord, StorageType, Storages};
pub use undo::Undone;
