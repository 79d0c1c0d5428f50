//! Objects below an address that answers `GET` and `HEAD`: read only, no listing.
//!
//! Any web server with ranges will do. A body that breaks off is asked for again from where it
//! broke, under `If-Range`, so that two versions are never joined; without an `ETag` or a
//! `Last-Modified` there is nothing to tell versions apart by and the break is an error.

mod address;
mod client;
mod storage;

pub(crate) use storage::HttpFactory;
pub use storage::{Http, HttpConfig};
