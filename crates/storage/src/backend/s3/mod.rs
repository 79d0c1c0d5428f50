//! Objects in a bucket of S3 or a provider that speaks like it.
//!
//! - A put of up to one part is one `PutObject`; a longer one is a multipart upload whose parts
//!   grow, so that a stream of unknown length fits the ten thousand parts that S3 allows.
//! - Every object carries the identity of the put that made it as metadata. A condition that fails
//!   because an earlier attempt did succeed is recognised by it.
//! - Checksums of the SDK are asked for only where S3 demands them: wrapped uploads and trailers
//!   are what S3-compatibles most often don't take. The transport's integrity and the signature of
//!   the payload stand in; `Content-MD5` goes with uploads to AWS, whose buckets with object lock
//!   take none without, and where it is asked for.

mod client;
mod config;
mod credentials;
mod delete;
mod error;
mod factory;
mod list;
mod multipart;
mod parts;
mod probe;
mod put;
mod read;
mod remembered;
mod storage;

pub use config::{Checksum, Encryption, S3Config};
pub use credentials::{CredentialsSource, S3Credentials, S3Keys};
pub(crate) use factory::S3Factory;
pub use probe::Conditional;
pub use remembered::{ProbeFinding, ProbeMemory};
pub use storage::S3;
