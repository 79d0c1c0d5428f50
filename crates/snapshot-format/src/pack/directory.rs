//! The fixed structures of a pack: header, frame tables, root, footer.
//!
//! Byte tables: `docs/formats/pack.md`. The footer holds the digest of the root, the root those of the
//! tables, a table those of its frames: the footer vouches for every byte.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::pack::frame::{FrameContext, FrameRecord, digest16};
use crate::pack::wire::Fields;

pub(crate) const HEADER_MAGIC: &[u8; 8] = b"NEONPACK";
pub(crate) const FOOTER_MAGIC: &[u8; 8] = b"NEONTAIL";
pub(crate) const HEADER_SIZE: usize = 64;
pub(crate) const FOOTER_SIZE: usize = 144;
pub(crate) const VERSION: u16 = 1;
/// Frames in a table, except in the last.
pub(crate) const TABLE_FRAMES: u32 = 2048;
pub(crate) const TABLE_HEAD: usize = 24;
pub(crate) const RECORD_SIZE: usize = 28;
pub(crate) const ROOT_HEAD: usize = 8;
pub(crate) const ROOT_ENTRY: usize = 24;
const SEALED: u8 = 1;

/// The identity of a pack: 16 bytes that its writer chooses and nobody else has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub [u8; 16]);

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackId({self})")
    }
}

/// Additions to the format, by what somebody who does not know one may do. Version 1 knows none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// Read and rewritten by anybody.
    pub ignorable: u32,
    /// Read by anybody, rewritten only by who knows them.
    pub read_only: u32,
    /// Not even read.
    pub refuse: u32,
}

impl Flags {
    /// Whether a pack with these flags may be rewritten by this version.
    #[must_use]
    pub const fn writable(self) -> bool {
        self.read_only == 0 && self.refuse == 0
    }

    fn put(self, out: &mut Vec<u8>) {
        for class in [self.ignorable, self.read_only, self.refuse] {
            out.extend_from_slice(&class.to_le_bytes());
        }
    }

    fn take(fields: &mut Fields<'_>) -> Result<Self> {
        Ok(Self {
            ignorable: fields.u32()?,
            read_only: fields.u32()?,
            refuse: fields.u32()?,
        })
    }

    /// Whether this version may read a pack of that version with these flags.
    pub(crate) fn check(self, version: u16) -> Result<()> {
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "pack",
                format!("of format version {version}; this program reads version {VERSION}"),
            ));
        }
        if self.refuse != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "pack",
                format!(
                    "uses additions {:#x} to the format that this program does not know",
                    self.refuse
                ),
            ));
        }
        Ok(())
    }
}

/// The first bytes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackHeader {
    pub(crate) id: PackId,
    pub(crate) flags: Flags,
    pub(crate) is_snapshot: bool,
}

impl PackHeader {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_SIZE);
        out.extend_from_slice(HEADER_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        self.flags.put(&mut out);
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&u32::from(self.is_snapshot).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let digest = digest16(&out);
        out.extend_from_slice(&digest);
        out
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::new("header of a pack", bytes);
        if fields.take(8)? != HEADER_MAGIC {
            return Err(Error::malformed("pack", "does not start as one"));
        }
        let version = fields.u16()?;
        fields.take(2)?;
        let flags = Flags::take(&mut fields)?;
        flags.check(version)?;
        let id = PackId(fields.array()?);
        let content = fields.u32()?;
        fields.take(4)?;
        let digest: [u8; 16] = fields.array()?;
        if digest16(bytes.get(..48).unwrap_or_default()) != digest {
            return Err(Error::new(
                ErrorKind::Damaged,
                "header of a pack",
                "its digest is wrong",
            ));
        }
        Ok(Self {
            id,
            flags,
            is_snapshot: content == 1,
        })
    }
}

/// The last bytes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) id: PackId,
    pub(crate) root_offset: u64,
    pub(crate) root_length: u32,
    pub(crate) frame_count: u64,
    pub(crate) start_up_frames: u64,
    pub(crate) snapshot_frame: u64,
    pub(crate) snapshot_frames: u32,
    pub(crate) total_length: u64,
    pub(crate) flags: Flags,
    pub(crate) root_digest: [u8; 32],
}

impl Footer {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_SIZE);
        out.extend_from_slice(&self.id.0);
        for field in [
            self.root_offset,
            self.frame_count,
            self.start_up_frames,
            self.snapshot_frame,
            self.total_length,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.root_length, TABLE_FRAMES, self.snapshot_frames] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        self.flags.put(&mut out);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.root_digest);
        let digest = digest16(&out);
        out.extend_from_slice(&digest);
        out.extend_from_slice(FOOTER_MAGIC);
        out
    }

    /// Parses the last bytes of a pack of this length.
    pub(crate) fn parse(bytes: &[u8], length: u64) -> Result<Self> {
        let mut fields = Fields::new("footer of a pack", bytes);
        let id = PackId(fields.array()?);
        let root_offset = fields.u64()?;
        let frame_count = fields.u64()?;
        let start_up_frames = fields.u64()?;
        let snapshot_frame = fields.u64()?;
        let total_length = fields.u64()?;
        let root_length = fields.u32()?;
        let table_frames = fields.u32()?;
        let snapshot_frames = fields.u32()?;
        let version = fields.u16()?;
        fields.take(2)?;
        let flags = Flags::take(&mut fields)?;
        fields.take(4)?;
        let root_digest = fields.array()?;
        let digest: [u8; 16] = fields.array()?;
        if fields.take(8)? != FOOTER_MAGIC {
            return Err(Error::malformed(
                "pack",
                "does not end as one: cut off, or not a pack",
            ));
        }
        flags.check(version)?;
        if digest16(bytes.get(..120).unwrap_or_default()) != digest {
            return Err(Error::new(
                ErrorKind::Damaged,
                "footer of a pack",
                "its digest is wrong",
            ));
        }
        let tables = frame_count.div_ceil(TABLE_FRAMES.into());
        let root = tables
            .checked_mul(ROOT_ENTRY as u64)
            .map(|size| size + ROOT_HEAD as u64);
        let root_end = root_offset.checked_add(root_length.into());
        let snapshot_end = snapshot_frame.checked_add(snapshot_frames.into());
        let fits = total_length == length
            && table_frames == TABLE_FRAMES
            && root == Some(root_length.into())
            && root_end == total_length.checked_sub(FOOTER_SIZE as u64)
            && (snapshot_frames == 0 || snapshot_end.is_some_and(|end| end <= frame_count))
            && start_up_frames <= frame_count;
        if !fits {
            return Err(Error::malformed(
                "footer of a pack",
                "its fields do not fit each other",
            ));
        }
        Ok(Self {
            id,
            root_offset,
            root_length,
            frame_count,
            start_up_frames,
            snapshot_frame,
            snapshot_frames,
            total_length,
            flags,
            root_digest,
        })
    }
}

/// Appends the record of a frame to a table.
pub(crate) fn put_record(out: &mut Vec<u8>, record: &FrameRecord) {
    out.extend_from_slice(&record.stored_length.to_le_bytes());
    out.extend_from_slice(&record.plain_length.to_le_bytes());
    out.push(record.codec);
    out.push(if record.sealed { SEALED } else { 0 });
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&record.digest);
}

/// Reads the next record of a table.
pub(crate) fn take_record(
    fields: &mut Fields<'_>,
    context: FrameContext,
    offset: u64,
) -> Result<FrameRecord> {
    let (stored_length, plain_length) = (fields.u32()?, fields.u32()?);
    let (codec, bits) = (fields.u8()?, fields.u8()?);
    fields.take(2)?;
    let digest = fields.array()?;
    let sealed = bits & SEALED != 0;
    FrameRecord::from_parts(
        context,
        offset,
        stored_length,
        plain_length,
        codec,
        sealed,
        digest,
    )
}
