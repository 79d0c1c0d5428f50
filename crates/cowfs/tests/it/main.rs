//! Integration tests of `neon-cowfs`: real file systems on loop devices, real clusters, and processes that are killed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests panic on failure"
)]

mod durable;
mod killed;
mod mounts;
mod postgres;
mod refuses;
mod removing;
mod sharing;
mod support;
mod trees;
