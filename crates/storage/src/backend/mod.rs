//! The places where objects are kept.

#[cfg(any())]
pub(crate) mod http;
pub(crate) mod memory;
pub(crate) mod native;
#[cfg(any())]
pub(crate) mod s3;
#[cfg(any())]
pub(crate) mod ssh;
