#![doc = include_str!("../README.md")]

mod backend;
mod body;
mod capabilities;
#[cfg(feature = "testing")]
pub mod contract;
mod error;
mod ext;
mod key;
mod layer;
mod object;
mod options;
mod ranges;
mod secret;
mod storage;

pub use backend::memory::Memory;
pub use backend::native::{Disk, Native, NativeOptions, RealDisk};
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
pub use object::{GetResult, Head, ObjectMeta, Version};
pub use options::{GetOptions, GetRange, ListOptions, PutMode, PutOptions, PutToken};
pub use secret::Secret;
pub use storage::Storage;
