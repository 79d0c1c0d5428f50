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
pub use instances::{AdoptedPlace, Base, CreatePg, Instances, Pg, PgRecord, Stage};
pub use name::Name;
pub use neon::{AskPassword, Neon, Options};
pub use neon_pagestore::SnapshotName;
pub use neon_pgctl::PgMajor;
pub use neon_storage::{Locator, Secret};
pub use operation::{Operation, Outcome};
pub use repositories::StorageRepository;
pub use neon_pgwire::Surroundings;
pub use neon_snapshot_format::Compression;
pub use snapshots::{
    ExportFormat, ExportOptions, Exported, Found, ImportSnapshot, ImportSource, Imported,
    ListedSnapshot, Located, Pulled, Remote, Snapshots, Transferred,
};
pub use storages::{LOCAL, StorageRecord, StorageType, Storages};
