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
const VOUCHER: usize = 32;

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

    /// The newest epoch.
    pub(crate) fn newest(&self) -> u32 {
        self.epochs.last().map_or(0, |key| key.epoch)
    }

    /// Takes the epochs that another keyring of the same repository has beside these.
    pub(crate) fn merge(&mut self, other: &Self) {
        if self.name_key != other.name_key {
            return;
        }
        for key in &other.epochs {
            if let Err(at) = self
                .epochs
                .binary_search_by_key(&key.epoch, |key| key.epoch)
            {
                self.epochs.insert(at, key.clone());
            }
        }
    }

    /// Whether an envelope was made by somebody who has the keys of this repository.
    pub(crate) fn vouches(&self, envelope: &Envelope<'_>, repository: RepositoryId) -> bool {
        // In constant time.
        self.voucher(envelope.covered, repository) == envelope.voucher
    }

    /// Whether all epochs of an envelope, by what it says of itself, are among these. Who has an epoch's key has all
    /// that its maker had.
    pub(crate) fn covers(&self, envelope: &Envelope<'_>) -> bool {
        let known = self.epochs.iter().map(|key| key.epoch);
        let known = known.filter(|epoch| *epoch <= envelope.newest);
        known.clone().next_back() == Some(envelope.newest)
            && known.count() >= envelope.epochs as usize
    }

    fn voucher(&self, covered: &[u8], repository: RepositoryId) -> blake3::Hash {
        let key = Zeroizing::new(blake3::derive_key(
            "neon pagestore 1 envelopes",
            self.name_key.as_slice(),
        ));
        blake3::Hasher::new_keyed(&key)
            .update(covered)
            .update(&repository.0)
            .finalize()
    }

    /// The body of an envelope for a key.
    pub(crate) fn enclose(&self, repository: RepositoryId, source: &KeySource) -> Result<Vec<u8>> {
        source.cost.allow()?;
        let salt: [u8; 16] = random()?;
        let mut out = Vec::with_capacity(HEAD + 256);
        out.push(match source.kind {
            KeyKind::Passphrase => 1,
            KeyKind::KeyFile => 2,
        });
        out.extend_from_slice(&[0; 3]);
        out.extend_from_slice(&self.newest().to_le_bytes());
        let epochs = u32::try_from(self.epochs.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&epochs.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
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
        let voucher = self.voucher(&out, repository);
        out.extend_from_slice(voucher.as_bytes());
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
        let name_key = Zeroizing::new(*name_key);
        let opened = Self { epochs, name_key };
        if opened.epochs.len() != envelope.epochs as usize
            || opened.newest() != envelope.newest
            || !opened.vouches(&envelope, repository)
        {
            return Err(malformed());
        }
        Ok(Some(opened))
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
    /// The newest epoch in it.
    pub(crate) newest: u32,
    /// How many epochs are in it.
    epochs: u32,
    pub(crate) cost: Cost,
    salt: [u8; 16],
    sealed: &'a [u8],
    /// Everything before the voucher.
    covered: &'a [u8],
    voucher: [u8; VOUCHER],
}

impl<'a> Envelope<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self> {
        let short = || Error::malformed("key envelope", "is too short");
        let (covered, voucher) = body.split_last_chunk::<VOUCHER>().ok_or_else(short)?;
        let (head, sealed) = covered.split_at_checked(HEAD).ok_or_else(short)?;
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
        let (newest, epochs) = (number(4), number(8));
        if epochs == 0 || epochs > newest {
            return Err(Error::malformed(
                "key envelope",
                "says of itself what is not so",
            ));
        }
        Ok(Self {
            head,
            kind,
            newest,
            epochs,
            cost: Cost {
                memory: number(16),
                passes: number(20),
            },
            salt: salt.copied().unwrap_or_default(),
            sealed,
            covered,
            voucher: *voucher,
        })
    }
}

fn associated(head: &[u8], repository: RepositoryId) -> Vec<u8> {
    [head, &repository.0].concat()
}
