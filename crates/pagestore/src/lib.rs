#![doc = include_str!("../README.md")]

pub mod changes;
pub mod crypt;
mod error;
mod id;
pub mod map;

pub use error::{Error, ErrorKind, Result};
pub use id::{CommitId, LineageId, RepositoryId, WriterId};
