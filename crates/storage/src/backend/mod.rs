//! The places where objects are kept.

#[cfg(feature = "http")]
pub(crate) mod http;
pub(crate) mod memory;
pub(crate) mod native;
#[cfg(feature = "s3")]
pub(crate) mod s3;
#[cfg(feature = "ssh")]
pub(crate) mod ssh;
