#![doc = include_str!("../README.md")]

mod bridge;
mod commit;
pub mod crypt;
mod error;
mod facts;
mod id;
mod keys;
pub mod map;
mod name;
mod object;
pub mod read;
mod repository;
pub mod restore;
pub mod write;

pub use commit::Commit;
pub use error::{Error, ErrorKind, Result};
pub use facts::{
    BadPage, ClusterFacts, Cost, Facts, LogFacts, LogPlace, LogRange, Needs, Noted, TimelineStep,
};
pub use id::{CommitId, LineageId, RepositoryId, WriterId};
pub use name::{SnapshotName, Tag};
pub use object::{Object, ObjectKind};
pub use repository::{OpenOptions, Repository};
