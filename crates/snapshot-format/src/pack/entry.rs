//! The list of a snapshot's files inside a pack, and what is said about the snapshot as a whole.

use neon_pg_layout::{Lsn, PgMajor, SystemIdentifier, TimelineId, TimelineRange};

use crate::error::{Error, ErrorKind, Result};
use crate::kind::SnapshotKind;
use crate::pack::wire::{Fields, put_text};
use crate::path::SnapshotPath;
use crate::stream::{BadPage, End, Entry, EntryKind, Owner, Skipped};

const LIST: &str = "file list of a pack";
const ROOT: &str = "snapshot in a pack";
const ROOT_VERSION: u32 = 1;
const NOBODY: u32 = u32::MAX;
const NO_LOCATION: u8 = 0;
const UNKNOWN: u8 = 255;

/// Where a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it has none, or is no file.
    Nothing,
    /// In a frame that it shares, from this byte on.
    Shared { frame: u64, offset: u32 },
    /// In frames of its own, each but the last of the full frame size.
    Own { first: u64 },
}

/// Appends an entry to a page of the list.
pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry, place: Place) -> Result<()> {
    put_text(out, entry.path.as_bytes())?;
    let (kind, size) = match entry.kind {
        EntryKind::File { size } => (0, size),
        EntryKind::Directory => (1, 0),
        EntryKind::Tablespace { .. } => (2, 0),
    };
    out.push(kind);
    let (place, frame, offset) = match place {
        Place::Nothing => (0, 0, 0),
        Place::Shared { frame, offset } => (1, frame, offset),
        Place::Own { first } => (2, first, 0),
    };
    out.push(place);
    out.extend_from_slice(
        &u16::try_from(entry.mode & 0o7777)
            .unwrap_or(0)
            .to_le_bytes(),
    );
    let owner = entry.owner.unwrap_or(Owner {
        uid: NOBODY,
        gid: NOBODY,
    });
    out.extend_from_slice(&owner.uid.to_le_bytes());
    out.extend_from_slice(&owner.gid.to_le_bytes());
    out.extend_from_slice(&entry.modified.to_le_bytes());
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(&frame.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    if let EntryKind::Tablespace { oid, location } = &entry.kind {
        out.extend_from_slice(&oid.to_le_bytes());
        out.push(if location.is_some() { 1 } else { NO_LOCATION });
        put_text(out, location.as_deref().unwrap_or_default())?;
    }
    Ok(())
}

/// Reads a page of the list.
pub(crate) fn parse_entries(page: &[u8]) -> Result<Vec<(Entry, Place)>> {
    let mut fields = Fields::new(LIST, page);
    let mut entries: Vec<(Entry, Place)> = Vec::new();
    while !fields.is_empty() {
        let entry = take_entry(&mut fields)?;
        if entries
            .last()
            .is_some_and(|(last, _)| last.path >= entry.0.path)
        {
            return Err(Error::malformed(LIST, "is out of order"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn take_entry(fields: &mut Fields<'_>) -> Result<(Entry, Place)> {
    let path = SnapshotPath::new(fields.text()?)?;
    let (kind, place) = (fields.u8()?, fields.u8()?);
    let mode = fields.u16()?.into();
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let modified = fields.i64()?;
    let (size, frame, offset) = (fields.u64()?, fields.u64()?, fields.u32()?);
    let kind = match kind {
        0 => EntryKind::File { size },
        1 => EntryKind::Directory,
        2 => {
            let (oid, known) = (fields.u32()?, fields.u8()? != NO_LOCATION);
            let location = fields.text()?;
            EntryKind::Tablespace {
                oid,
                location: known.then(|| location.to_vec()),
            }
        }
        _ => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                LIST,
                "has an entry of an unknown kind",
            ));
        }
    };
    let place = match place {
        0 => Place::Nothing,
        1 => Place::Shared { frame, offset },
        2 => Place::Own { first: frame },
        _ => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                LIST,
                "has a file in an unknown place",
            ));
        }
    };
    let has_bytes = matches!(kind, EntryKind::File { size } if size > 0);
    if has_bytes == (place == Place::Nothing) {
        return Err(Error::malformed(
            LIST,
            "has a file without place, or a place without file",
        ));
    }
    let owner = (uid != NOBODY || gid != NOBODY).then_some(Owner { uid, gid });
    Ok((
        Entry {
            path,
            kind,
            mode,
            owner,
            modified,
        },
        place,
    ))
}

/// What a pack says about its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Root {
    pub(crate) end: End,
    /// Per page of the list: its frame and the first path in it.
    pub(crate) pages: Vec<(u64, SnapshotPath)>,
}

impl Root {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        out.extend_from_slice(&ROOT_VERSION.to_le_bytes());
        let kinds = SnapshotKind::ALL;
        let kind = kinds.iter().position(|kind| Some(*kind) == self.end.kind);
        out.push(
            kind.and_then(|kind| u8::try_from(kind).ok())
                .unwrap_or(UNKNOWN),
        );
        out.push(0);
        let major = self.end.major.map_or(0, PgMajor::number);
        out.extend_from_slice(&u16::try_from(major).unwrap_or(0).to_le_bytes());
        let identifier = self.end.system_identifier.map_or(0, SystemIdentifier::get);
        out.extend_from_slice(&identifier.to_le_bytes());
        put_count(&mut out, self.end.wal.len())?;
        for range in &self.end.wal {
            out.extend_from_slice(&range.timeline.get().to_le_bytes());
            out.extend_from_slice(&range.start.0.to_le_bytes());
            out.extend_from_slice(&range.end.0.to_le_bytes());
        }
        put_count(&mut out, self.end.skipped.len())?;
        for skipped in &self.end.skipped {
            put_text(&mut out, skipped.path.as_bytes())?;
            put_text(&mut out, skipped.reason.as_bytes())?;
        }
        put_count(&mut out, self.end.bad_pages.len())?;
        for bad in &self.end.bad_pages {
            put_text(&mut out, bad.path.as_bytes())?;
            out.extend_from_slice(&bad.block.to_le_bytes());
            put_text(&mut out, bad.reason.as_bytes())?;
        }
        put_count(&mut out, self.pages.len())?;
        for (frame, first) in &self.pages {
            out.extend_from_slice(&frame.to_le_bytes());
            put_text(&mut out, first.as_bytes())?;
        }
        Ok(out)
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::new(ROOT, bytes);
        let version = fields.u32()?;
        if version != ROOT_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                ROOT,
                format!("of version {version}"),
            ));
        }
        let mut root = Self::default();
        root.end.kind = match fields.u8()? {
            UNKNOWN => None,
            kind => match SnapshotKind::ALL.get(usize::from(kind)) {
                Some(kind) => Some(*kind),
                None => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        ROOT,
                        "of an unknown kind",
                    ));
                }
            },
        };
        fields.take(1)?;
        let layout = |error| Error::layout(ROOT, error);
        root.end.major = match fields.u16()? {
            0 => None,
            major => Some(PgMajor::from_number(major.into()).map_err(layout)?),
        };
        root.end.system_identifier = match fields.u64()? {
            0 => None,
            identifier => Some(SystemIdentifier::new(identifier).map_err(layout)?),
        };
        for _ in 0..fields.u32()? {
            root.end.wal.push(TimelineRange {
                timeline: TimelineId::new(fields.u32()?).map_err(layout)?,
                start: Lsn(fields.u64()?),
                end: Lsn(fields.u64()?),
            });
        }
        for _ in 0..fields.u32()? {
            let path = SnapshotPath::new(fields.text()?)?;
            let reason = known_reason(fields.text()?);
            root.end.skipped.push(Skipped { path, reason });
        }
        for _ in 0..fields.u32()? {
            let (path, block) = (SnapshotPath::new(fields.text()?)?, fields.u64()?);
            let reason = String::from_utf8_lossy(fields.text()?).into_owned();
            root.end.bad_pages.push(BadPage {
                path,
                block,
                reason,
            });
        }
        for _ in 0..fields.u32()? {
            let (frame, first) = (fields.u64()?, SnapshotPath::new(fields.text()?)?);
            if root.pages.last().is_some_and(|(_, last)| *last >= first) {
                return Err(Error::malformed(ROOT, "its pages are out of order"));
            }
            root.pages.push((frame, first));
        }
        fields.end()?;
        Ok(root)
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) -> Result<()> {
    let count = u32::try_from(count)
        .map_err(|_| Error::new(ErrorKind::Limit, ROOT, "has too many items"))?;
    out.extend_from_slice(&count.to_le_bytes());
    Ok(())
}

/// Reasons are words of this crate; one of a later version is told as what it is.
fn known_reason(text: &[u8]) -> &'static str {
    ["a symbolic link", "a socket", "a FIFO", "a device"]
        .into_iter()
        .find(|known| known.as_bytes() == text)
        .unwrap_or("left out for a reason that this version does not know")
}
