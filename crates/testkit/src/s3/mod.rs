//! An S3 server in the process of the test, over real HTTP on loopback.
//!
//! Requests are signed and verified as with a real provider (signature version 4); conditional
//! writes are atomic, so a race between clients has exactly one winner and the server is an oracle.
//! It can also be told to be worse than that: to ignore conditions, to check them too early, to
//! answer with errors, to drop connections before or after the work is done. Its buckets keep what is
//! written over or deleted if they are told to, and count how often that was tried.
//!
//! Content above a mebibyte is spooled to unnamed temporary files.

mod bucket;
mod content;
mod fault;
mod server;
mod service;

pub use bucket::{Conditions, PendingUpload, Retention, StoredObject, Versions};
pub use fault::{Fault, RequestInfo};
pub use server::{S3Server, S3ServerOptions};
