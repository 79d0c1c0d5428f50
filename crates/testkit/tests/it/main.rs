//! What the test support itself promises.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

mod cleanup;
mod cluster;
mod crash;
mod workload;
