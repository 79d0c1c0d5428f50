//! Integration tests of `neon-pg-layout`: real clusters and stock tools as judges, and decoders fed
//! with arbitrary and with damaged real bytes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests panic on failure"
)]

mod files;
mod survives;
mod wal;
mod wal_truth;
