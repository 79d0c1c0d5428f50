//! Encryption: data keys of packs, the cipher over frames, the seal of small objects, key envelopes.

mod cipher;
mod data_key;
mod envelope;
mod key_source;
mod keyring;
mod seal;

pub use cipher::PackCipher;
pub use data_key::DataKey;
pub use key_source::{KeyKind, KeySource};
pub use keyring::{KeyId, KeyInfo};
pub use seal::{EpochKey, ObjectSeal};

pub(crate) use envelope::{Keyring, check_envelope};
pub(crate) use keyring::{enclose, unlock};
