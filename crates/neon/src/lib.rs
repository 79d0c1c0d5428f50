#![doc = include_str!("../README.md")]

mod error;
mod home;
mod instances;
mod name;
mod neon;
mod operation;
mod record;
mod storages;

pub use error::{Error, ErrorKind, Result};
pub use home::Home;
pub use instances::{CreatePg, Instances, Pg, PgRecord, Stage};
pub use name::Name;
pub use neon::{Neon, Options};
pub use neon_pgctl::PgMajor;
pub use operation::{Operation, Outcome};
pub use storages::{LOCAL, StorageRecord, StorageType, Storages};
