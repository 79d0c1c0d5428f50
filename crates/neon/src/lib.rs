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
pub use neon::{Neon, Options};
pub use neon_pgctl::{OsUser, PgMajor, ServerState, Status};
pub use neon_storage::{Context, Locator, Registry, Secret, Variables};
pub use operation::{Operation, Outcome};
pub use repositories::StorageRepository;
pub use snapshots::{Found, ListedSnapshot, Snapshots};
pub use storages::{LOCAL, StorageRecord, StorageType, Storages};
