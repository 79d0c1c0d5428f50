//! Everything this crate does, against real servers of every major.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests panic on failure"
)]

mod bracket;
mod dropping;
mod facts;
mod history;
mod lifecycle;
mod recovery;
mod replica;
mod support;
