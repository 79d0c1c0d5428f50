//! What a person or a program has to open a repository with.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};

/// The shortest key file.
const SHORTEST_FILE: usize = 32;
/// The most memory that an envelope may ask for, so that a forged one does no harm.
const MOST_MEMORY: u32 = 1 << 20;
const MOST_PASSES: u32 = 64;
/// The most memory times passes of one envelope, in KiB.
const MOST_WORK: u64 = 8 << 20;
/// The most memory times passes, in KiB, of all envelopes that one key is tried on.
pub(crate) const MOST_WORK_AT_ONCE: u64 = 16 << 20;

/// A passphrase, or the content of a key file.
#[derive(Clone)]
pub struct KeySource {
    pub(crate) secret: Zeroizing<Vec<u8>>,
    pub(crate) kind: KeyKind,
    pub(crate) cost: Cost,
}

/// What sort of key an envelope is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyKind {
    /// A passphrase, through argon2id.
    Passphrase,
    /// The content of a file.
    KeyFile,
}

/// What guessing a passphrase costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// KiB of memory.
    pub(crate) memory: u32,
    pub(crate) passes: u32,
}

impl Cost {
    /// Memory times passes, in KiB.
    pub(crate) fn work(self) -> u64 {
        u64::from(self.memory).saturating_mul(self.passes.into())
    }

    /// An error unless an envelope may cost this.
    pub(crate) fn allow(self) -> Result<()> {
        match self.memory <= MOST_MEMORY && self.passes <= MOST_PASSES && self.work() <= MOST_WORK {
            true => Ok(()),
            false => Err(refused()),
        }
    }
}

fn refused() -> Error {
    Error::new(
        ErrorKind::Limit,
        "passphrase",
        "asks for a cost that is not allowed",
    )
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySource")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl KeySource {
    /// A passphrase: argon2id with 64 MiB and three passes.
    #[must_use]
    pub fn passphrase(passphrase: &str) -> Self {
        Self {
            secret: Zeroizing::new(passphrase.as_bytes().to_vec()),
            kind: KeyKind::Passphrase,
            cost: Cost {
                memory: 64 << 10,
                passes: 3,
            },
        }
    }

    /// The content of a key file: at least 32 bytes that nobody can guess.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a shorter one.
    pub fn key_file(content: &[u8]) -> Result<Self> {
        if content.len() < SHORTEST_FILE {
            return Err(Error::new(
                ErrorKind::Invalid,
                "key file",
                "is shorter than 32 bytes",
            ));
        }
        Ok(Self {
            secret: Zeroizing::new(content.to_vec()),
            kind: KeyKind::KeyFile,
            cost: Cost {
                memory: 0,
                passes: 0,
            },
        })
    }

    /// The same passphrase with another cost of guessing for envelopes that are made with it. What opening costs, the
    /// envelope says. At most 1 GiB, 64 passes, and 8 GiB times passes; more is refused when an envelope is made.
    #[must_use]
    pub fn with_cost(mut self, memory_kib: u32, passes: u32) -> Self {
        self.cost = Cost {
            memory: memory_kib,
            passes,
        };
        self
    }

    /// The key that opens an envelope with this salt.
    pub(crate) fn derive(&self, salt: &[u8; 16], cost: Cost) -> Result<Zeroizing<[u8; 32]>> {
        match self.kind {
            KeyKind::KeyFile => {
                let material = Zeroizing::new([&salt[..], &self.secret].concat());
                Ok(Zeroizing::new(blake3::derive_key(
                    "neon pagestore 1 key file",
                    &material,
                )))
            }
            KeyKind::Passphrase => {
                cost.allow()?;
                let params =
                    Params::new(cost.memory, cost.passes, 1, Some(32)).map_err(|_| refused())?;
                let mut key = Zeroizing::new([0; 32]);
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(&self.secret, salt, key.as_mut_slice())
                    .map_err(|_| refused())?;
                Ok(key)
            }
        }
    }
}
