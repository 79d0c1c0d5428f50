//! What page maps promise, shown against a simple model.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers of tests are small, and tests panic on failure"
)]

mod chains;
mod damage;
mod golden;
mod model;
mod proportion;
mod store;
