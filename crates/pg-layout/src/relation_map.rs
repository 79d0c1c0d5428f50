//! Relation map files, `pg_filenode.map`: the file numbers of catalogs that cannot look up their own.
//!
//! One in every database directory and one in `global`. Source: `utils/cache/relmapper.c`.

use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::relation::Oid;
use crate::version::VersionLayout;

const SUBJECT: &str = "pg_filenode.map";
const MAGIC: u32 = 0x0059_2717;
const HEADER: usize = 8;
const ENTRY: usize = 8;

/// The content of a relation map file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationMap {
    mappings: Vec<(Oid, u32)>,
}

impl RelationMap {
    /// Reads a whole file.
    ///
    /// # Errors
    /// - [`Truncated`](ErrorKind::Truncated) or [`Malformed`](ErrorKind::Malformed) when it does not have
    ///   the size of this major's maps;
    /// - [`Checksum`](ErrorKind::Checksum) when the CRC is wrong: damaged, or (before 16) read while the
    ///   server wrote it;
    /// - [`Malformed`](ErrorKind::Malformed) for another magic number or an impossible count.
    pub fn decode(file: &[u8], layout: &VersionLayout) -> Result<Self> {
        let size = layout.relation_map_size;
        if file.len() != size {
            let kind = if file.len() < size {
                ErrorKind::Truncated
            } else {
                ErrorKind::Malformed
            };
            let reason = format!("{} bytes long instead of {size}", file.len());
            return Err(Error::new(kind, SUBJECT, reason));
        }
        let mut at = Cursor::new(SUBJECT, file);
        let magic = at.u32()?;
        if magic != MAGIC {
            return Err(at.error(ErrorKind::Malformed, format!("magic number {magic:#x}")));
        }
        let count = at.u32()?;
        let room = (size - HEADER - 4) / ENTRY;
        let mut rest = at.clone();
        rest.skip(room * ENTRY)?;
        let computed = crc32c::crc32c(file.get(..rest.position()).unwrap_or_default());
        let stored = rest.u32()?;
        if stored != computed {
            return Err(rest.error(
                ErrorKind::Checksum,
                format!("CRC {computed:08x} instead of {stored:08x}"),
            ));
        }
        let count = usize::try_from(count).ok().filter(|count| *count <= room);
        let count = count
            .ok_or_else(|| at.error(ErrorKind::Malformed, format!("more than {room} entries")))?;
        let mappings = (0..count).map(|_| Ok((at.u32()?, at.u32()?)));
        Ok(Self {
            mappings: mappings.collect::<Result<_>>()?,
        })
    }

    /// The file number of a mapped catalog.
    #[must_use]
    pub fn number_of(&self, catalog: Oid) -> Option<u32> {
        let found = self.mappings.iter().find(|(oid, _)| *oid == catalog);
        found.map(|(_, number)| *number)
    }

    /// Every mapped catalog's OID with its file number, in file order.
    #[must_use]
    pub fn mappings(&self) -> &[(Oid, u32)] {
        &self.mappings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::PgMajor;

    fn sample(layout: &VersionLayout, count: u32) -> Vec<u8> {
        let mut file = vec![0; layout.relation_map_size];
        file[..4].copy_from_slice(&MAGIC.to_le_bytes());
        file[4..8].copy_from_slice(&count.to_le_bytes());
        file[8..12].copy_from_slice(&1259_u32.to_le_bytes());
        file[12..16].copy_from_slice(&16_999_u32.to_le_bytes());
        let end = HEADER + (file.len() - 12) / ENTRY * ENTRY;
        let crc = crc32c::crc32c(&file[..end]);
        file[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        file
    }

    #[test]
    fn a_map_of_either_size_is_read() {
        for major in [PgMajor::V15, PgMajor::V16] {
            let layout = major.layout();
            let map = RelationMap::decode(&sample(layout, 1), layout).unwrap();
            assert_eq!(map.number_of(1259), Some(16_999));
            assert_eq!(map.number_of(1249), None);
        }
    }

    #[test]
    fn a_damaged_map_is_reported_by_what_is_wrong() {
        let layout = PgMajor::V16.layout();
        let good = sample(layout, 1);
        let kind = |file: &[u8]| RelationMap::decode(file, layout).unwrap_err().kind();
        assert_eq!(kind(&good[..512]), ErrorKind::Truncated);
        assert_eq!(kind(&[&good[..], &[0]].concat()), ErrorKind::Malformed);
        assert_eq!(kind(&sample(layout, 65)), ErrorKind::Malformed);
        for offset in 0..good.len() {
            let mut bad = good.clone();
            bad[offset] ^= 1;
            let expected = if offset < 4 {
                ErrorKind::Malformed
            } else {
                ErrorKind::Checksum
            };
            assert_eq!(kind(&bad), expected, "offset {offset}");
        }
    }
}
