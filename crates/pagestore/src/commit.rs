//! Commits: the small objects whose creation makes snapshots exist.
//!
//! The plain body, whose digest is the snapshot's id, is the same in every repository. The byte table stands in
//! `docs/formats/repository.md`.

use std::fmt;

use bytes::Bytes;
use neon_snapshot_format::pack::Flags;

use crate::error::{Error, ErrorKind, Result};
use crate::facts::Facts;
use crate::id::CommitId;

const MAGIC: &[u8; 8] = b"NEONCMT1";
const VERSION: u32 = 1;
const HEAD: usize = 32;

/// A snapshot: its facts, and where its page map begins.
#[derive(Clone, PartialEq, Eq)]
pub struct Commit {
    /// Additions that its writer used.
    pub flags: Flags,
    /// What is known about it.
    pub facts: Facts,
    /// Its runs, as `map::encode_runs` writes them.
    pub runs: Bytes,
}

// The runs hold the keys of packs.
impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commit")
            .field("flags", &self.flags)
            .field("facts", &self.facts)
            .field("runs", &format_args!("{} bytes", self.runs.len()))
            .finish()
    }
}

impl Commit {
    /// The plain body.
    ///
    /// # Errors
    /// [`Limit`](ErrorKind::Limit) when facts or runs take 4 GiB or more.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let facts = self.facts.encode()?;
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len()).map_err(|_| {
                Error::new(
                    ErrorKind::Limit,
                    "snapshot",
                    "has too much to say of itself",
                )
            })
        };
        let mut out = Vec::with_capacity(HEAD + facts.len() + self.runs.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        let flags = self.flags;
        for class in [flags.ignorable, flags.read_only, flags.refuse] {
            out.extend_from_slice(&class.to_le_bytes());
        }
        out.extend_from_slice(&length(&facts)?.to_le_bytes());
        out.extend_from_slice(&length(&self.runs)?.to_le_bytes());
        out.extend_from_slice(&facts);
        out.extend_from_slice(&self.runs);
        Ok(out)
    }

    /// Reads a plain body.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) when no writer writes such;
    /// [`Unsupported`](ErrorKind::Unsupported) for another version.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let malformed = |reason| Error::malformed("snapshot", reason);
        let (head, rest) = body
            .split_at_checked(HEAD)
            .ok_or_else(|| malformed("its commit is too short"))?;
        let (magic, fields) = head.split_at_checked(8).unwrap_or_default();
        if magic != MAGIC {
            return Err(malformed("its commit does not begin as one does"));
        }
        let mut fields = fields
            .as_chunks::<4>()
            .0
            .iter()
            .map(|field| u32::from_le_bytes(*field));
        let mut next = || fields.next().unwrap_or_default();
        let version = next();
        let flags = Flags {
            ignorable: next(),
            read_only: next(),
            refuse: next(),
        };
        if version != VERSION || flags.refuse != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "snapshot",
                "its commit was written by a newer version of this program",
            ));
        }
        let (facts_length, runs_length) = (next() as usize, next() as usize);
        let (facts, runs) = rest
            .split_at_checked(facts_length)
            .filter(|(_, runs)| runs.len() == runs_length)
            .ok_or_else(|| malformed("its commit is not as long as it says"))?;
        Ok(Self {
            flags,
            facts: Facts::decode(facts)?,
            runs: Bytes::copy_from_slice(runs),
        })
    }

    /// Reads the plain body of the commit with this id.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), and [`Damaged`](ErrorKind::Damaged) when it is another's body.
    pub fn decode_as(id: CommitId, body: &[u8]) -> Result<Self> {
        if CommitId::of(body) != id {
            return Err(Error::damaged(
                format!("snapshot {id}"),
                "its commit is not the one that was written",
            ));
        }
        Self::decode(body)
    }
}
