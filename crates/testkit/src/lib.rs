#![doc = include_str!("../README.md")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "test support: a broken environment or a failing server is a failed test, told by panicking"
)]

mod backup;
mod builder;
mod client;
mod cluster;
mod contrib;
mod copy;
pub mod crash;
pub mod forge;
mod installation;
mod judge;
pub mod mask;
mod os_user;
mod processes;
#[cfg(feature = "s3")]
pub mod s3;
mod scratch;
pub mod sshd;
mod template;
mod trees;
pub mod web;
pub mod workload;

pub use backup::{Backup, StoppedBackup};
pub use builder::ClusterBuilder;
pub use client::{Client, Session, SqlError};
pub use cluster::{Cluster, StopMode};
pub use contrib::ModuleReport;
pub use copy::DataDirCopy;
pub use installation::Installation;
pub use neon_pg_layout::PgMajor;
pub use os_user::OsUser;
pub use scratch::Scratch;
pub use trees::{Tree, assert_cold_copy, cold_copy_may_lack, own_all, tree};
