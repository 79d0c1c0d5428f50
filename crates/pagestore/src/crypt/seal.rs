//! XChaCha20-Poly1305 with a random nonce in front: how everything here is sealed.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::id::random;

const NONCE: usize = 24;
const TAG: usize = 16;

/// What seals objects from some moment on, until a new epoch begins.
#[derive(Clone, PartialEq, Eq)]
pub struct EpochKey {
    /// Its number; the first is 1, the greatest is the one to write with.
    pub epoch: u32,
    pub(crate) key: Zeroizing<[u8; 32]>,
}

impl EpochKey {
    /// A new one.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) when the system has no randomness to give.
    pub fn random(epoch: u32) -> Result<Self> {
        let key = Zeroizing::new(random()?);
        Ok(Self { epoch, key })
    }
}

impl fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochKey")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// The seal of small objects.
pub struct ObjectSeal(XChaCha20Poly1305);

impl fmt::Debug for ObjectSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectSeal(…)")
    }
}

impl ObjectSeal {
    /// How much longer sealed bytes are: nonce and tag.
    pub const OVERHEAD: usize = NONCE + TAG;

    /// The seal of an epoch.
    #[must_use]
    pub fn new(key: &EpochKey) -> Self {
        let key = Zeroizing::new(blake3::derive_key(
            "neon pagestore 1 objects",
            key.key.as_slice(),
        ));
        Self::with(&key)
    }

    pub(crate) fn with(key: &[u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(key.into()))
    }

    /// Nonce, encrypted bytes, tag.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) when the system has no randomness to give.
    pub fn seal(&self, associated: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE] = random()?;
        let payload = Payload {
            msg: plain,
            aad: associated,
        };
        let sealed = self.0.encrypt(&XNonce::from(nonce), payload).map_err(|_| {
            Error::new(
                ErrorKind::Limit,
                "encryption",
                "takes no more bytes at once",
            )
        })?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// What was sealed, if it is authentic.
    #[must_use]
    pub fn open(&self, associated: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
        let payload = Payload {
            msg: sealed,
            aad: associated,
        };
        self.0.decrypt(&XNonce::from(*nonce), payload).ok()
    }
}
