//! Packets of SFTP version 3 (draft-ietf-secsh-filexfer-02) and OpenSSH's extensions
//! (`PROTOCOL` in its sources). Pure: bytes in, values out.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The largest packet that is accepted.
pub(super) const LARGEST: usize = 512 * 1024;

pub(super) const INIT: u8 = 1;
pub(super) const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const FSTAT: u8 = 8;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const LSTAT: u8 = 7;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
pub(super) const EXTENDED: u8 = 200;

pub(super) const OPEN_READ: u32 = 0x01;
pub(super) const OPEN_WRITE: u32 = 0x02;
pub(super) const OPEN_CREATE: u32 = 0x08;
pub(super) const OPEN_EXCLUSIVE: u32 = 0x20;

/// What a status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    Eof,
    NoSuchFile,
    PermissionDenied,
    Failure,
    BadMessage,
    Unsupported,
    Other(u32),
}

impl From<u32> for Status {
    fn from(code: u32) -> Self {
        match code {
            0 => Self::Ok,
            1 => Self::Eof,
            2 => Self::NoSuchFile,
            3 => Self::PermissionDenied,
            4 => Self::Failure,
            5 => Self::BadMessage,
            8 => Self::Unsupported,
            other => Self::Other(other),
        }
    }
}

/// Attributes of a file, as far as they are of use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attrs {
    pub(super) size: Option<u64>,
    pub(super) mode: Option<u32>,
    pub(super) mtime: Option<u32>,
}

impl Attrs {
    fn kind(self) -> u32 {
        self.mode.unwrap_or(0) & 0o170_000
    }

    pub(super) fn is_file(self) -> bool {
        self.kind() == 0o100_000
    }

    pub(super) fn is_dir(self) -> bool {
        self.kind() == 0o040_000
    }
}

/// An answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Status(Status, String),
    Handle(Bytes),
    Data(Bytes),
    Names(Vec<(Bytes, Attrs)>),
    Attrs(Attrs),
}

/// A packet being built: type and request number first.
pub(super) struct Packet(BytesMut);

impl Packet {
    pub(super) fn new(kind: u8, id: u32) -> Self {
        let mut bytes = BytesMut::with_capacity(64);
        bytes.put_u32(0);
        bytes.put_u8(kind);
        bytes.put_u32(id);
        Self(bytes)
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.put_u32(value);
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.put_u64(value);
        self
    }

    pub(super) fn bytes(mut self, value: &[u8]) -> Self {
        self.0
            .put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.put_slice(value);
        self
    }

    /// Attributes that say nothing but a mode.
    pub(super) fn mode(self, mode: u32) -> Self {
        self.u32(0x04).u32(mode)
    }

    /// The finished packet with its length in front.
    pub(super) fn finish(mut self) -> Bytes {
        let length = u32::try_from(self.0.len().saturating_sub(4)).unwrap_or(u32::MAX);
        if let Some(front) = self.0.get_mut(..4) {
            front.copy_from_slice(&length.to_be_bytes());
        }
        self.0.freeze()
    }
}

/// Takes the next four, eight, or counted bytes of a packet; `None` at its end.
struct Reader(Bytes);

impl Reader {
    fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }

    fn bytes(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.u32()?).ok()?;
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }

    fn attrs(&mut self) -> Option<Attrs> {
        let flags = self.u32()?;
        let mut attrs = Attrs::default();
        if flags & 0x01 != 0 {
            attrs.size = Some(self.u64()?);
        }
        if flags & 0x02 != 0 {
            let (_user, _group) = (self.u32()?, self.u32()?);
        }
        if flags & 0x04 != 0 {
            attrs.mode = Some(self.u32()?);
        }
        if flags & 0x08 != 0 {
            let _accessed = self.u32()?;
            attrs.mtime = Some(self.u32()?);
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.u32()? {
                let (_name, _value) = (self.bytes()?, self.bytes()?);
            }
        }
        Some(attrs)
    }
}

/// Decodes the greeting: the protocol's version and the names of extensions.
pub(super) fn greeting(packet: Bytes) -> Option<(u32, Vec<String>)> {
    let mut reader = Reader(packet);
    if reader.u8()? != VERSION {
        return None;
    }
    let version = reader.u32()?;
    let mut extensions = Vec::new();
    while let Some(name) = reader.bytes() {
        let _value = reader.bytes()?;
        extensions.push(String::from_utf8_lossy(&name).into_owned());
    }
    Some((version, extensions))
}

/// Decodes an answer and the number of the request it belongs to.
pub(super) fn answer(packet: Bytes) -> Option<(u32, Answer)> {
    let mut reader = Reader(packet);
    let kind = reader.u8()?;
    let id = reader.u32()?;
    let answer = match kind {
        STATUS => {
            let status = Status::from(reader.u32()?);
            let message = reader.bytes().unwrap_or_default();
            Answer::Status(status, String::from_utf8_lossy(&message).into_owned())
        }
        HANDLE => Answer::Handle(reader.bytes()?),
        DATA => Answer::Data(reader.bytes()?),
        NAME => {
            let mut names = Vec::new();
            for _ in 0..reader.u32()? {
                let (name, _long) = (reader.bytes()?, reader.bytes()?);
                names.push((name, reader.attrs()?));
            }
            Answer::Names(names)
        }
        ATTRS => Answer::Attrs(reader.attrs()?),
        _ => return None,
    };
    Some((id, answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_packet_panics(packet in proptest::collection::vec(any::<u8>(), 0..200), kind in 100u8..108) {
            let _garbage = (greeting(packet.clone().into()), answer(packet.clone().into()));
            let mut likely = vec![kind];
            likely.extend(packet);
            let _answer = answer(likely.into());
        }
    }

    #[test]
    fn a_packet_begins_with_its_length() {
        let packet = Packet::new(OPEN, 7)
            .bytes(b"name")
            .u32(OPEN_READ)
            .u32(0)
            .finish();
        assert_eq!(
            &packet[..],
            b"\0\0\0\x15\x03\0\0\0\x07\0\0\0\x04name\0\0\0\x01\0\0\0\0"
        );
    }
}
