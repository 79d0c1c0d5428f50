//! The integration tests of the crate, one binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "tests panic on failure"
)]

mod layers;
mod memory;
mod native;
#[cfg(feature = "s3")]
mod s3;
