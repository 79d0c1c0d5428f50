//! Key envelopes: the keys of a repository, sealed for one passphrase or key file.
//!
//! The byte table stands in `docs/formats/repository.md`.

use zeroize::Zeroizing;

use crate::crypt::key_source::Cost;
use crate::crypt::{EpochKey, KeyKind, KeySource, ObjectSeal};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{RepositoryId, random};

const HEAD: usize = 40;
const EPOCH: usize = 36;

/// All keys of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keyring {
    /// By epoch; the last is the one to write with.
    pub(crate) epochs: Vec<EpochKey>,
    pub(crate) name_key: Zeroizing<[u8; 32]>,
}

impl Keyring {
    /// New keys, of the first epoch.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            epochs: vec![EpochKey::random(1)?],
            name_key: Zeroizing::new(random()?),
        })
    }

    /// These keys and one of a new epoch.
    pub(crate) fn renewed(&self, epoch: u32) -> Result<Self> {
        let mut renewed = self.clone();
        renewed.epochs.push(EpochKey::random(epoch)?);
        Ok(renewed)
    }

    /// The body of an envelope for a key.
    pub(crate) fn enclose(&self, repository: RepositoryId, source: &KeySource) -> Result<Vec<u8>> {
        let salt: [u8; 16] = random()?;
        let mut out = Vec::with_capacity(HEAD + 256);
        out.push(match source.kind {
            KeyKind::Passphrase => 1,
            KeyKind::KeyFile => 2,
        });
        out.extend_from_slice(&[0; 15]);
        out.extend_from_slice(&source.cost.memory.to_le_bytes());
        out.extend_from_slice(&source.cost.passes.to_le_bytes());
        out.extend_from_slice(&salt);
        let key = source.derive(&salt, source.cost)?;
        let length = 32_usize.saturating_add(self.epochs.len().saturating_mul(EPOCH));
        let mut plain = Zeroizing::new(Vec::with_capacity(length));
        plain.extend_from_slice(self.name_key.as_slice());
        for key in &self.epochs {
            plain.extend_from_slice(&key.epoch.to_le_bytes());
            plain.extend_from_slice(key.key.as_slice());
        }
        let sealed = ObjectSeal::with(&key).seal(&associated(&out, repository), &plain)?;
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Opens the body of an envelope; nothing when the key is another one.
    pub(crate) fn open(
        body: &[u8],
        repository: RepositoryId,
        source: &KeySource,
    ) -> Result<Option<Self>> {
        let envelope = Envelope::parse(body)?;
        if envelope.kind != source.kind {
            return Ok(None);
        }
        let key = source.derive(&envelope.salt, envelope.cost)?;
        let associated = associated(envelope.head, repository);
        let Some(plain) = ObjectSeal::with(&key).open(&associated, envelope.sealed) else {
            return Ok(None);
        };
        let plain = Zeroizing::new(plain);
        let malformed = || Error::malformed("key envelope", "holds something else than keys");
        let (name_key, rest) = plain.split_first_chunk::<32>().ok_or_else(malformed)?;
        let (entries, rest) = rest.as_chunks::<EPOCH>();
        if !rest.is_empty() {
            return Err(malformed());
        }
        let mut epochs = Vec::with_capacity(entries.len());
        for entry in entries {
            let (epoch, key) = entry.split_first_chunk::<4>().ok_or_else(malformed)?;
            epochs.push(EpochKey {
                epoch: u32::from_le_bytes(*epoch),
                key: Zeroizing::new(key.first_chunk().copied().ok_or_else(malformed)?),
            });
        }
        epochs.sort_by_key(|key| key.epoch);
        if epochs.is_empty() {
            return Err(malformed());
        }
        let name_key = Zeroizing::new(*name_key);
        Ok(Some(Self { epochs, name_key }))
    }
}

/// An error unless this is the body of an envelope.
pub(crate) fn check_envelope(body: &[u8]) -> Result<()> {
    Envelope::parse(body).map(drop)
}

/// What can be told of an envelope without its key.
pub(crate) struct Envelope<'a> {
    head: &'a [u8],
    pub(crate) kind: KeyKind,
    cost: Cost,
    salt: [u8; 16],
    sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self> {
        let (head, sealed) = body
            .split_at_checked(HEAD)
            .ok_or_else(|| Error::malformed("key envelope", "is too short"))?;
        let kind = match head.first() {
            Some(1) => KeyKind::Passphrase,
            Some(2) => KeyKind::KeyFile,
            _ => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "key envelope",
                    "is for a sort of key that this program does not know",
                ));
            }
        };
        let number = |at: usize| {
            let bytes = head.get(at..).and_then(|bytes| bytes.first_chunk());
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let salt = head.get(24..).and_then(|bytes| bytes.first_chunk());
        Ok(Self {
            head,
            kind,
            cost: Cost {
                memory: number(16),
                passes: number(20),
            },
            salt: salt.copied().unwrap_or_default(),
            sealed,
        })
    }
}

fn associated(head: &[u8], repository: RepositoryId) -> Vec<u8> {
    [head, &repository.0].concat()
}
