//! The checksums of whole files that a backup manifest lists.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use crate::error::{Error, Result};

/// How a manifest's files are summed (`--manifest-checksums`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChecksumAlgorithm {
    /// Not at all.
    None,
    /// CRC-32C, the default of `pg_basebackup`: finds accidents, not forgeries.
    #[default]
    Crc32c,
    /// SHA-224
    Sha224,
    /// SHA-256
    Sha256,
    /// SHA-384
    Sha384,
    /// SHA-512
    Sha512,
}

impl ChecksumAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Crc32c,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
    ];

    /// The name as in manifests and options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }

    /// Bytes of a checksum.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::None => 0,
            Self::Crc32c => 4,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Whether nothing is summed.
    #[must_use]
    pub const fn is_none(self) -> bool {
        matches!(self, Self::None)
    }
}

impl fmt::Display for ChecksumAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ChecksumAlgorithm {
    type Err = Error;

    /// Parses a name in letters of either case, as the server does.
    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| {
                Error::malformed(
                    "checksum algorithm",
                    format!("{text:?} is none of NONE, CRC32C, SHA224, SHA256, SHA384, SHA512"),
                )
            })
    }
}

/// The checksum of a file: an algorithm other than [`None`](ChecksumAlgorithm::None) and its result.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FileChecksum {
    algorithm: ChecksumAlgorithm,
    bytes: Box<[u8]>,
}

impl FileChecksum {
    /// A checksum computed elsewhere, in the byte order of manifests: CRC-32C as it lies in the memory
    /// of a little-endian machine.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) when the length is not the algorithm's, or the
    /// algorithm is none.
    pub fn new(algorithm: ChecksumAlgorithm, bytes: &[u8]) -> Result<Self> {
        if algorithm.is_none() || bytes.len() != algorithm.size() {
            return Err(Error::malformed(
                "file checksum",
                format!("{} bytes for {algorithm}", bytes.len()),
            ));
        }
        Ok(Self {
            algorithm,
            bytes: bytes.into(),
        })
    }

    /// The algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> ChecksumAlgorithm {
        self.algorithm
    }

    /// The checksum, in the byte order of manifests.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Display for FileChecksum {
    /// The hexadecimal digits of a manifest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FileChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.algorithm)
    }
}

/// Computes a [`FileChecksum`] as the file's bytes pass by.
///
/// ```
/// use neon_pg_layout::{ChecksumAlgorithm, FileHasher};
/// let mut hasher = FileHasher::new(ChecksumAlgorithm::Crc32c);
/// hasher.update(b"18\n");
/// assert_eq!(hasher.finish().ok_or("none")?.to_string(), "994e7be2");
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug, Clone)]
pub struct FileHasher(Inner);

#[derive(Debug, Clone)]
enum Inner {
    None,
    Crc32c(u32),
    Sha224(Sha224),
    Sha256(Sha256),
    Sha384(Box<Sha384>),
    Sha512(Box<Sha512>),
}

impl FileHasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        Self(match algorithm {
            ChecksumAlgorithm::None => Inner::None,
            ChecksumAlgorithm::Crc32c => Inner::Crc32c(0),
            ChecksumAlgorithm::Sha224 => Inner::Sha224(Sha224::new()),
            ChecksumAlgorithm::Sha256 => Inner::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha384 => Inner::Sha384(Box::new(Sha384::new())),
            ChecksumAlgorithm::Sha512 => Inner::Sha512(Box::new(Sha512::new())),
        })
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Inner::None => {}
            Inner::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Inner::Sha224(sha) => sha.update(bytes),
            Inner::Sha256(sha) => sha.update(bytes),
            Inner::Sha384(sha) => sha.update(bytes),
            Inner::Sha512(sha) => sha.update(bytes),
        }
    }

    /// The checksum; `None` for [`ChecksumAlgorithm::None`].
    #[must_use]
    pub fn finish(self) -> Option<FileChecksum> {
        let (algorithm, bytes): (_, Box<[u8]>) = match self.0 {
            Inner::None => return None,
            Inner::Crc32c(crc) => (ChecksumAlgorithm::Crc32c, Box::new(crc.to_le_bytes())),
            Inner::Sha224(sha) => (ChecksumAlgorithm::Sha224, Box::from(&sha.finalize()[..])),
            Inner::Sha256(sha) => (ChecksumAlgorithm::Sha256, Box::from(&sha.finalize()[..])),
            Inner::Sha384(sha) => (ChecksumAlgorithm::Sha384, Box::from(&sha.finalize()[..])),
            Inner::Sha512(sha) => (ChecksumAlgorithm::Sha512, Box::from(&sha.finalize()[..])),
        };
        Some(FileChecksum { algorithm, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_sums_to_its_length_whatever_the_pieces() {
        for algorithm in ChecksumAlgorithm::ALL {
            assert_eq!(
                algorithm
                    .name()
                    .to_lowercase()
                    .parse::<ChecksumAlgorithm>()
                    .unwrap(),
                algorithm
            );
            let (mut whole, mut pieces) = (FileHasher::new(algorithm), FileHasher::new(algorithm));
            whole.update(b"abc");
            for byte in b"abc" {
                pieces.update(&[*byte]);
            }
            let (whole, pieces) = (whole.finish(), pieces.finish());
            assert_eq!(whole, pieces);
            assert_eq!(whole.map_or(0, |sum| sum.bytes().len()), algorithm.size());
        }
        assert!("MD5".parse::<ChecksumAlgorithm>().is_err());
    }

    #[test]
    fn sha256_is_sha256() {
        let mut hasher = FileHasher::new(ChecksumAlgorithm::Sha256);
        hasher.update(b"abc");
        let sum = hasher.finish().unwrap();
        assert!(sum.to_string().starts_with("ba7816bf8f01cfea"));
        assert!(FileChecksum::new(ChecksumAlgorithm::Sha512, sum.bytes()).is_err());
        assert!(FileChecksum::new(ChecksumAlgorithm::None, b"").is_err());
        assert_eq!(
            FileChecksum::new(ChecksumAlgorithm::Sha256, sum.bytes()).unwrap(),
            sum
        );
    }
}
