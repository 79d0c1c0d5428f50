//! Encryption: data keys of packs, the cipher over frames, the seal of small objects, key envelopes.

mod cipher;
mod data_key;
mod seal;

pub use cipher::PackCipher;
pub use data_key::DataKey;
pub use seal::{EpochKey, ObjectSeal};
