//! The integration tests of the crate, one binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::clone_on_ref_ptr,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "tests panic on failure"
)]

mod child;
#[cfg(feature = "s3")]
mod credentials;
mod disks;
#[cfg(feature = "http")]
mod http;
mod layers;
mod locators;
mod memory;
mod native;
#[cfg(feature = "s3")]
mod remembered;
#[cfg(feature = "s3")]
mod s3;
mod scale;
#[cfg(all(feature = "s3", feature = "http"))]
mod secrets;
#[cfg(feature = "ssh")]
mod ssh;
#[cfg(feature = "http")]
mod web;
