//! Encryption: data keys of packs, the cipher over frames, key envelopes.

mod data_key;

pub use data_key::DataKey;
