#![doc = include_str!("../README.md")]

mod backend;
mod body;
mod capabilities;
#[cfg(any(feature = "http", feature = "s3"))]
mod coalesce;
#[cfg(feature = "testing")]
pub mod contract;
mod error;
mod ext;
mod key;
mod layer;
mod locator;
#[cfg(feature = "net")]
mod net;
mod object;
mod options;
mod ranges;
mod registry;
mod secret;
mod storage;
mod variables;

#[cfg(feature = "http")]
pub use backend::http::{Http, HttpConfig};
pub use backend::memory::Memory;
pub use backend::native::{Disk, Native, NativeOptions, Place, RealDisk};
#[cfg(feature = "s3")]
pub use backend::s3::{
    Checksum, Conditional, CredentialsSource, Encryption, ProbeFinding, ProbeMemory, S3, S3Config,
    S3Credentials, S3Keys,
};
#[cfg(feature = "ssh")]
pub use backend::ssh::{Ssh, SshConfig};
pub use body::{Body, ByteStream};
pub use capabilities::{Capabilities, Durability};
pub use error::{Error, ErrorKind, Operation, Result, Retry};
pub use ext::StorageExt;
pub use key::{Key, KeyError};
#[cfg(feature = "testing")]
pub use layer::faulty::{Fault, Faulty};
pub use layer::{
    Event, EventOutcome, Limit, Meter, Prefix, RateLimit, ReadOnly, RetryLayer, RetryPolicy,
};
pub use locator::Locator;
pub use object::{GetResult, Head, ObjectMeta, Version};
pub use options::{GetOptions, GetRange, ListOptions, PutMode, PutOptions, PutToken};
pub use registry::{Context, Factory, Registry};
pub use secret::Secret;
pub use storage::Storage;
pub use variables::Variables;
