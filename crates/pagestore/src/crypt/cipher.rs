//! The cipher over the frames of one pack.

use std::fmt;

use neon_snapshot_format::pack::{FrameCipher, FrameContext};
use neon_snapshot_format::{Error, ErrorKind, Result};

use crate::crypt::{DataKey, ObjectSeal};

/// Seals the frames of one pack with its data key. A sealed frame is 40 bytes longer; it is bound to the pack
/// it was first written to and its number there, and stays valid wherever it is copied to.
pub struct PackCipher(ObjectSeal);

impl PackCipher {
    /// The cipher of the pack with this key.
    #[must_use]
    pub fn new(key: &DataKey) -> Self {
        Self(ObjectSeal::with(&key.0))
    }
}

impl fmt::Debug for PackCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PackCipher(…)")
    }
}

impl FrameCipher for PackCipher {
    fn seal(&self, frame: FrameContext, bytes: &[u8]) -> Result<Vec<u8>> {
        self.0
            .seal(&frame.associated_data(), bytes)
            .map_err(|error| {
                Error::new(ErrorKind::Io, "frame", "cannot be encrypted").caused_by(error)
            })
    }

    fn open(&self, frame: FrameContext, sealed: &[u8]) -> Result<Vec<u8>> {
        self.0
            .open(&frame.associated_data(), sealed)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Damaged,
                    format!("frame {} of pack {}", frame.frame, frame.pack),
                    "is not authentic",
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use neon_snapshot_format::pack::PackId;

    use super::*;

    #[test]
    fn a_frame_opens_with_its_own_key_and_address_only() {
        let (key, other) = (DataKey::random().unwrap(), DataKey::random().unwrap());
        let cipher = PackCipher::new(&key);
        let at = |pack, frame| FrameContext {
            pack: PackId([pack; 16]),
            frame,
        };
        let sealed = cipher.seal(at(1, 7), b"content").unwrap();
        assert_eq!(sealed.len(), 7 + ObjectSeal::OVERHEAD);
        assert_ne!(sealed, cipher.seal(at(1, 7), b"content").unwrap());
        assert_eq!(cipher.open(at(1, 7), &sealed).unwrap(), b"content");
        assert!(cipher.open(at(1, 8), &sealed).is_err());
        assert!(cipher.open(at(2, 7), &sealed).is_err());
        assert!(PackCipher::new(&other).open(at(1, 7), &sealed).is_err());
        assert!(cipher.open(at(1, 7), &sealed[..20]).is_err());
        for at_byte in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at_byte] ^= 1;
            assert!(cipher.open(at(1, 7), &changed).is_err(), "{at_byte}");
        }
    }
}
