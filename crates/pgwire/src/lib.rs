#![doc = include_str!("../README.md")]

mod archive;
mod client;
mod conninfo;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod io;
mod limits;
mod net;
mod notice;
mod quote;
mod secret;
mod server;
mod server_error;
mod tls;
mod wal_message;

pub use archive::{ArchiveItem, ArchiveMember, ArchiveReader, MemberKind};
pub use client::*;
pub use conninfo::*;
pub use error::{Error, ErrorKind, Result};
pub use limits::Limits;
pub use notice::NoticeHandler;
pub use quote::{quote_identifier, quote_literal, scram_sha_256_verifier};
pub use secret::Secret;
pub use server::*;
pub use server_error::ServerError;
