//! Objects below an address that answers `GET` and `HEAD`: read only, no listing.
//!
//! Any web server with ranges will do. A body that breaks off is asked for again from where it
//! broke, under `If-Range`, so that two versions are never joined. Versions are told apart by a strong
//! `ETag`, or without one by a `Last-Modified` whose second is over. Without either a break is an
//! error, and several ranges come out of one answer, however far apart they lie.

mod address;
mod client;
mod storage;

pub(crate) use storage::HttpFactory;
pub use storage::{Http, HttpConfig};
