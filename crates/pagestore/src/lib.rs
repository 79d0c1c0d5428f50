#![doc = include_str!("../README.md")]

mod bridge;
pub mod crypt;
mod error;
mod id;
pub mod map;
pub mod read;
pub mod write;

pub use error::{Error, ErrorKind, Result};
pub use id::{CommitId, LineageId, RepositoryId, WriterId};
