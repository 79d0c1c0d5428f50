//! What a worker learned about a file, as bytes to be sorted. The layout lives as long as the process.

use std::ops::Range;

use neon_snapshot_format::pack::PackId;
use neon_snapshot_format::{Owner, Wanted};

use crate::crypt::DataKey;
use crate::error::{Error, Result};
use crate::map::{At, Attributes, Extent, FileKind, FrameRef, PackRef, PageDigest};

/// The order of items of one path: what it is, what became of it, its pages.
pub(crate) const ANNOUNCED: u64 = 0;
pub(crate) const GONE: u64 = 1 << 32;
pub(crate) const PART: u64 = 2 << 32;

/// How much of a file was to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Coming {
    Whole,
    Nothing,
    /// These pages.
    Ranges(Vec<Range<u32>>),
}

impl Coming {
    pub(crate) fn of(wanted: &Wanted, page_size: u64) -> Self {
        let page = |page: u64| u32::try_from(page).unwrap_or(u32::MAX);
        let pages = |range: &Range<u64>| {
            let start = range.start.checked_div(page_size).unwrap_or(0);
            page(start)..page(range.end.div_ceil(page_size.max(1)))
        };
        match wanted {
            Wanted::Whole => Self::Whole,
            Wanted::Ranges(ranges) if !ranges.is_empty() => {
                Self::Ranges(ranges.iter().map(pages).collect())
            }
            Wanted::Nothing | Wanted::Ranges(_) => Self::Nothing,
        }
    }
}

/// Appends an announcement.
pub(crate) fn put_announced(out: &mut Vec<u8>, attributes: &Attributes, coming: &Coming) {
    match coming {
        Coming::Whole => out.push(0),
        Coming::Nothing => out.push(1),
        Coming::Ranges(ranges) => {
            out.push(2);
            put_ranges(out, ranges);
        }
    }
    out.extend_from_slice(&attributes.mode.to_le_bytes());
    out.extend_from_slice(&attributes.modified.to_le_bytes());
    out.push(attributes.owner.is_some().into());
    let owner = attributes.owner.unwrap_or(Owner { uid: 0, gid: 0 });
    out.extend_from_slice(&owner.uid.to_le_bytes());
    out.extend_from_slice(&owner.gid.to_le_bytes());
    match &attributes.kind {
        FileKind::File { size } => {
            out.push(0);
            out.extend_from_slice(&size.to_le_bytes());
        }
        FileKind::Directory => out.push(1),
        FileKind::Tablespace { oid, location } => {
            out.push(if location.is_some() { 3 } else { 2 });
            out.extend_from_slice(&oid.to_le_bytes());
            out.extend_from_slice(location.as_deref().unwrap_or_default());
        }
    }
}

/// Reads an announcement.
pub(crate) fn get_announced(bytes: &[u8]) -> Result<(Attributes, Coming)> {
    let mut fields = Fields(bytes);
    let coming = match fields.byte()? {
        0 => Coming::Whole,
        1 => Coming::Nothing,
        _ => Coming::Ranges(get_ranges(&mut fields)?),
    };
    let mode = u32::from_le_bytes(fields.array()?);
    let modified = i64::from_le_bytes(fields.array()?);
    let owned = fields.byte()? != 0;
    let owner = Owner {
        uid: u32::from_le_bytes(fields.array()?),
        gid: u32::from_le_bytes(fields.array()?),
    };
    let kind = match fields.byte()? {
        0 => FileKind::File {
            size: u64::from_le_bytes(fields.array()?),
        },
        1 => FileKind::Directory,
        located => FileKind::Tablespace {
            oid: u32::from_le_bytes(fields.array()?),
            location: (located == 3).then(|| fields.0.to_vec()),
        },
    };
    let attributes = Attributes {
        kind,
        mode,
        owner: owned.then_some(owner),
        modified,
    };
    Ok((attributes, coming))
}

/// Neighbouring pages of a file and their digests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Part {
    pub(crate) extents: Vec<Extent>,
    pub(crate) digests: Vec<PageDigest>,
    /// Pages that came and are those of the parent.
    pub(crate) same: Vec<Range<u32>>,
}

impl Part {
    /// The pages that came, in no order.
    pub(crate) fn came(&self) -> impl Iterator<Item = Range<u32>> {
        let stored = self.extents.iter().map(|extent| extent.page..extent.end());
        self.same.iter().cloned().chain(stored)
    }

    /// Bytes of them, in a file of this size.
    pub(crate) fn bytes(&self, page_size: u64, size: u64) -> u64 {
        let at = |page: u32| u64::from(page).saturating_mul(page_size).min(size);
        self.came()
            .map(|pages| at(pages.end).saturating_sub(at(pages.start)))
            .sum()
    }
}

fn put_ranges(out: &mut Vec<u8>, ranges: &[Range<u32>]) {
    let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
    for range in ranges {
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&range.end.to_le_bytes());
    }
}

fn get_ranges(fields: &mut Fields<'_>) -> Result<Vec<Range<u32>>> {
    let mut ranges = Vec::new();
    for _ in 0..u32::from_le_bytes(fields.array()?) {
        let start = u32::from_le_bytes(fields.array()?);
        ranges.push(start..u32::from_le_bytes(fields.array()?));
    }
    Ok(ranges)
}

/// Appends a part.
pub(crate) fn put_part(out: &mut Vec<u8>, part: &Part) {
    let Part {
        extents,
        digests,
        same,
    } = part;
    put_ranges(out, same);
    let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
    for extent in extents {
        out.extend_from_slice(&extent.page.to_le_bytes());
        out.extend_from_slice(&extent.count.to_le_bytes());
        match &extent.at {
            At::Zeros => out.push(0),
            At::Frame { frame, offset } => {
                out.push(1);
                out.extend_from_slice(&offset.to_le_bytes());
                put_frame(out, frame);
            }
        }
    }
    out.extend(digests.iter().flatten());
}

/// Reads a part.
pub(crate) fn get_part(bytes: &[u8]) -> Result<Part> {
    let mut fields = Fields(bytes);
    let same = get_ranges(&mut fields)?;
    let count = u32::from_le_bytes(fields.array()?);
    let mut extents = Vec::new();
    for _ in 0..count {
        let page = u32::from_le_bytes(fields.array()?);
        let count = u32::from_le_bytes(fields.array()?);
        let at = if fields.byte()? == 0 {
            At::Zeros
        } else {
            let offset = u32::from_le_bytes(fields.array()?);
            At::Frame {
                frame: fields.frame()?,
                offset,
            }
        };
        extents.push(Extent { page, count, at });
    }
    let (digests, _) = fields.0.as_chunks::<16>();
    Ok(Part {
        extents,
        digests: digests.to_vec(),
        same,
    })
}

fn put_frame(out: &mut Vec<u8>, frame: &FrameRef) {
    out.extend_from_slice(&frame.pack.id.0);
    out.extend_from_slice(&frame.pack.key.0);
    out.extend_from_slice(&frame.frame.to_le_bytes());
    out.extend_from_slice(&frame.offset.to_le_bytes());
    out.extend_from_slice(&frame.stored_length.to_le_bytes());
    out.extend_from_slice(&frame.plain_length.to_le_bytes());
    out.push(frame.codec);
    out.push(frame.sealed.into());
    out.extend_from_slice(&frame.digest);
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (array, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| Error::malformed("list of files", "did not come back whole"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn frame(&mut self) -> Result<FrameRef> {
        Ok(FrameRef {
            pack: PackRef {
                id: PackId(self.array()?),
                key: DataKey(self.array()?),
            },
            frame: u64::from_le_bytes(self.array()?),
            offset: u64::from_le_bytes(self.array()?),
            stored_length: u32::from_le_bytes(self.array()?),
            plain_length: u32::from_le_bytes(self.array()?),
            codec: self.byte()?,
            sealed: self.byte()? != 0,
            digest: self.array()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_got() {
        let frame = FrameRef {
            pack: PackRef {
                id: PackId([1; 16]),
                key: DataKey([2; 32]),
            },
            frame: 3,
            offset: 1 << 40,
            stored_length: 5,
            plain_length: 6,
            codec: 2,
            sealed: true,
            digest: [7; 16],
        };
        let part = Part {
            extents: vec![
                Extent {
                    page: 0,
                    count: 4,
                    at: At::Zeros,
                },
                Extent {
                    page: 4,
                    count: 2,
                    at: At::Frame { frame, offset: 9 },
                },
            ],
            digests: vec![[1; 16], [2; 16]],
            same: vec![6..9, 20..21],
        };
        let mut bytes = Vec::new();
        put_part(&mut bytes, &part);
        assert_eq!(get_part(&bytes).unwrap(), part);
        for (kind, coming) in [
            (FileKind::File { size: 1 << 33 }, Coming::Whole),
            (FileKind::Directory, Coming::Nothing),
            (
                FileKind::Tablespace {
                    oid: 16400,
                    location: Some(b"/x".to_vec()),
                },
                Coming::Ranges(vec![0..3, 7..8]),
            ),
            (
                FileKind::Tablespace {
                    oid: 16400,
                    location: None,
                },
                Coming::Whole,
            ),
        ] {
            let attributes = Attributes {
                kind,
                mode: 0o700,
                owner: Some(Owner { uid: 1, gid: 2 }),
                modified: -5,
            };
            let mut bytes = Vec::new();
            put_announced(&mut bytes, &attributes, &coming);
            assert_eq!(get_announced(&bytes).unwrap(), (attributes, coming));
        }
    }
}
