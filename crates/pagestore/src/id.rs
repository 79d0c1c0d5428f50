//! Identities: repositories, writers, snapshots, lineages.

use std::fmt;
use std::str::FromStr;

use neon_snapshot_format::pack::PackId;

use crate::error::{Error, ErrorKind, Result};

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $length:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                from_hex(text).map(Self).ok_or_else(|| {
                    Error::new(ErrorKind::Invalid, text.chars().take(80).collect::<String>(), concat!("not ", $what))
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identity! {
    /// The identity of a repository: random, written once.
    RepositoryId, 16, "the id of a repository: 32 hexadecimal digits"
}
identity! {
    /// One history of a cluster's log. Restore, clone, checkout and upgrade begin a new one.
    LineageId, 16, "the id of a lineage: 32 hexadecimal digits"
}
identity! {
    /// One session that writes into a repository. The packs it makes carry it in their ids.
    WriterId, 8, "the id of a writer: 16 hexadecimal digits"
}
identity! {
    /// The identity of a snapshot: the BLAKE3 digest of its commit's plain body, the same in every repository.
    CommitId, 32, "the id of a snapshot: 64 hexadecimal digits"
}

impl RepositoryId {
    /// A new one.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) when the system has no randomness to give.
    pub fn random() -> Result<Self> {
        random().map(Self)
    }
}

impl LineageId {
    /// A new one.
    ///
    /// # Errors
    /// As [`RepositoryId::random`].
    pub fn random() -> Result<Self> {
        random().map(Self)
    }
}

impl WriterId {
    /// A new one.
    ///
    /// # Errors
    /// As [`RepositoryId::random`].
    pub fn random() -> Result<Self> {
        random().map(Self)
    }

    /// A new id for a pack of this writer: eight random bytes, then the writer's.
    ///
    /// # Errors
    /// As [`RepositoryId::random`].
    pub fn new_pack(self) -> Result<PackId> {
        let mut id = [0; 16];
        let (own, writer) = id.split_at_mut(8);
        own.copy_from_slice(&random::<8>()?);
        writer.copy_from_slice(&self.0);
        Ok(PackId(id))
    }

    /// The writer that made a pack.
    #[must_use]
    pub fn of_pack(pack: PackId) -> Self {
        let mut id = [0; 8];
        id.iter_mut()
            .zip(pack.0.iter().skip(8))
            .for_each(|(to, from)| *to = *from);
        Self(id)
    }
}

impl CommitId {
    /// The id of a commit with this plain body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        Self(*blake3::hash(body).as_bytes())
    }
}

/// Bytes from the operating system's source of randomness.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(
            ErrorKind::Io,
            "randomness of the operating system",
            "cannot be had",
        )
        .caused_by(error)
    })?;
    Ok(bytes)
}

/// Bytes written as exactly twice as many lower-case hexadecimal digits.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_as_they_are_written() {
        let id = RepositoryId::random().unwrap();
        assert_eq!(id.to_string().parse::<RepositoryId>().unwrap(), id);
        for bad in ["", "00", &"0".repeat(31), &"g".repeat(32), &"A".repeat(32)] {
            assert!(bad.parse::<RepositoryId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn packs_carry_their_writer() {
        let writer = WriterId::random().unwrap();
        let (one, other) = (writer.new_pack().unwrap(), writer.new_pack().unwrap());
        assert_ne!(one, other);
        assert_eq!(WriterId::of_pack(one), writer);
    }
}
