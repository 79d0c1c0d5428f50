//! The envelope of every small object: commits, claims, leases, pins, tombstones, doomed lists, moves, catalogs.
//!
//! It says what the object is, who wrote it, and vouches for its bytes; in an encrypted repository it seals them.
//! The byte table stands in `docs/formats/repository.md`.

use std::fmt;

use neon_snapshot_format::pack::Flags;
use neon_storage::Key;

use crate::crypt::{EpochKey, ObjectSeal};
use crate::error::{Error, ErrorKind, Result};
use crate::id::WriterId;

const MAGIC: &[u8; 8] = b"NEONOBJ1";
const VERSION: u8 = 1;
const HEAD: usize = 40;
/// Bit of `refuse`: moves with entries of thinned frames.
pub(crate) const MOVES_THINNED: u32 = 1;
const DIGEST: usize = 32;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// A snapshot.
    Commit,
    /// A name given to a snapshot.
    Claim,
    /// A writer is alive.
    Lease,
    /// A snapshot is in use.
    Pin,
    /// A snapshot or a writer is no more.
    Tombstone,
    /// What a collection is going to delete.
    Doomed,
    /// Where frames of a rewritten pack are now.
    Moves,
    /// Summaries of many commits.
    Catalog,
    /// The name that a snapshot wanted was taken.
    Declined,
    /// The keys of the repository, for one passphrase or key file.
    Key,
}

impl ObjectKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Commit,
        Self::Claim,
        Self::Lease,
        Self::Pin,
        Self::Tombstone,
        Self::Doomed,
        Self::Moves,
        Self::Catalog,
        Self::Declined,
        Self::Key,
    ];

    /// The most bytes that one is written with and read.
    pub(crate) const fn most(self) -> u64 {
        match self {
            Self::Claim | Self::Declined | Self::Pin | Self::Tombstone | Self::Key => 1 << 20,
            Self::Commit | Self::Lease | Self::Doomed | Self::Moves | Self::Catalog => 64 << 20,
        }
    }

    /// The bits of `refuse` that this version knows.
    const fn known(self) -> u32 {
        match self {
            Self::Moves => MOVES_THINNED,
            _ => 0,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Commit => 1,
            Self::Claim => 2,
            Self::Lease => 3,
            Self::Pin => 4,
            Self::Tombstone => 5,
            Self::Doomed => 6,
            Self::Moves => 7,
            Self::Catalog => 8,
            Self::Declined => 9,
            Self::Key => 10,
        }
    }
}

/// An object without its envelope.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// Who wrote it.
    pub writer: WriterId,
    /// Additions that its writer used.
    pub flags: Flags,
    /// What it says.
    pub body: Vec<u8>,
}

// The body may hold keys.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("kind", &self.kind)
            .field("writer", &self.writer)
            .field("flags", &self.flags)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish()
    }
}

impl Object {
    /// An object without additions.
    #[must_use]
    pub fn new(kind: ObjectKind, writer: WriterId, body: Vec<u8>) -> Self {
        Self {
            kind,
            writer,
            flags: Flags::default(),
            body,
        }
    }

    /// The bytes to store under this key: sealed if there is a key to seal with.
    ///
    /// # Errors
    /// [`Limit`](ErrorKind::Limit) for a body of 4 GiB or more; [`Io`](ErrorKind::Io) without randomness.
    pub fn encode(&self, key: &Key, seal: Option<&EpochKey>) -> Result<Vec<u8>> {
        let overhead = if seal.is_some() {
            ObjectSeal::OVERHEAD
        } else {
            0
        };
        let length = u32::try_from(self.body.len().saturating_add(overhead)).map_err(|_| {
            Error::new(
                ErrorKind::Limit,
                key.as_str(),
                "is larger than an object may be",
            )
        })?;
        let mut out = Vec::with_capacity(HEAD + self.body.len() + overhead + DIGEST);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[self.kind.number(), VERSION, u8::from(seal.is_some()), 0]);
        for class in [
            self.flags.ignorable,
            self.flags.read_only,
            self.flags.refuse,
        ] {
            out.extend_from_slice(&class.to_le_bytes());
        }
        out.extend_from_slice(&seal.map_or(0, |key| key.epoch).to_le_bytes());
        out.extend_from_slice(&self.writer.0);
        out.extend_from_slice(&length.to_le_bytes());
        match seal {
            None => out.extend_from_slice(&self.body),
            Some(epoch) => {
                let sealed = ObjectSeal::new(epoch).seal(&associated(&out, key), &self.body)?;
                out.extend_from_slice(&sealed);
            }
        }
        let digest = blake3::hash(&out);
        out.extend_from_slice(digest.as_bytes());
        Ok(out)
    }

    /// Reads and checks the bytes stored under this key. An object of another kind, a changed one, one that
    /// belongs under another key, and one that is not sealed where `keys` are given is refused.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) when these are not the bytes that were written;
    /// [`Malformed`](ErrorKind::Malformed) when no writer writes such; [`Unsupported`](ErrorKind::Unsupported) for
    /// another version; [`Locked`](ErrorKind::Locked) when no key opens it.
    pub fn decode(
        key: &Key,
        kind: ObjectKind,
        bytes: &[u8],
        keys: Option<&[EpochKey]>,
    ) -> Result<Self> {
        let stored = Stored::parse(key, bytes)?;
        if stored.kind != kind.number() {
            return Err(Error::malformed(
                key.as_str(),
                "is an object of another kind",
            ));
        }
        let body = match (stored.sealed, keys) {
            (false, None) => stored.body.to_vec(),
            (false, Some(_)) => {
                return Err(Error::damaged(
                    key.as_str(),
                    "is not encrypted, in a repository that is",
                ));
            }
            (true, keys) => {
                let epoch = keys
                    .unwrap_or_default()
                    .iter()
                    .find(|key| key.epoch == stored.epoch)
                    .ok_or_else(|| {
                        Error::new(
                            ErrorKind::Locked,
                            key.as_str(),
                            "is encrypted with a key that was not given",
                        )
                    })?;
                ObjectSeal::new(epoch)
                    .open(&associated(stored.head, key), stored.body)
                    .ok_or_else(|| Error::damaged(key.as_str(), "is not authentic"))?
            }
        };
        Ok(Self {
            kind,
            writer: stored.writer,
            flags: stored.flags,
            body,
        })
    }
}

/// What can be told without a key.
struct Stored<'a> {
    head: &'a [u8],
    kind: u8,
    sealed: bool,
    flags: Flags,
    epoch: u32,
    writer: WriterId,
    body: &'a [u8],
}

impl<'a> Stored<'a> {
    fn parse(key: &Key, bytes: &'a [u8]) -> Result<Self> {
        let short = || Error::damaged(key.as_str(), "is shorter than it was written");
        let (head, rest) = bytes.split_at_checked(HEAD).ok_or_else(short)?;
        if !head.starts_with(MAGIC) {
            return Err(Error::damaged(
                key.as_str(),
                "does not begin as an object does",
            ));
        }
        let (body, digest) = rest
            .split_at_checked(rest.len().checked_sub(DIGEST).ok_or_else(short)?)
            .ok_or_else(short)?;
        let covered = bytes
            .get(..bytes.len().saturating_sub(DIGEST))
            .unwrap_or_default();
        if blake3::hash(covered).as_bytes() != digest {
            return Err(Error::damaged(key.as_str(), "does not match its digest"));
        }
        let u32_at = |at: usize| {
            head.get(at..at.saturating_add(4))
                .and_then(|bytes| bytes.first_chunk::<4>())
                .map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let byte_at = |at: usize| head.get(at).copied().unwrap_or_default();
        let flags = Flags {
            ignorable: u32_at(12),
            read_only: u32_at(16),
            refuse: u32_at(20),
        };
        let mut kinds = ObjectKind::ALL.into_iter();
        let kind = kinds.find(|kind| kind.number() == byte_at(8));
        let known = kind.map_or(0, ObjectKind::known);
        if byte_at(9) != VERSION || flags.refuse & !known != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                key.as_str(),
                "was written by a newer version of this program",
            ));
        }
        if u32_at(36) as usize != body.len() || byte_at(10) > 1 {
            return Err(Error::malformed(
                key.as_str(),
                "says of itself what is not so",
            ));
        }
        let writer = head.get(28..36).and_then(|id| id.first_chunk::<8>());
        Ok(Self {
            head,
            kind: byte_at(8),
            sealed: byte_at(10) == 1,
            flags,
            epoch: u32_at(24),
            writer: WriterId(writer.copied().unwrap_or_default()),
            body,
        })
    }
}

/// What the seal is bound to: the head of the object, and where it is stored.
fn associated(head: &[u8], key: &Key) -> Vec<u8> {
    [head, key.as_str().as_bytes()].concat()
}
