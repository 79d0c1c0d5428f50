//! What differs between the major versions, as data.
//!
//! Every difference in layout that this crate acts on is a field of [`VersionLayout`]; no decoder
//! asks for a major by name. Numbers: the headers of each release (`pg_control.h`, `catversion.h`,
//! `xlog_internal.h`, `xlogrecord.h`, `relmapper.c`).

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// A major version of PostgreSQL that this workspace supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PgMajor {
    /// PostgreSQL 13
    V13,
    /// PostgreSQL 14
    V14,
    /// PostgreSQL 15
    V15,
    /// PostgreSQL 16
    V16,
    /// PostgreSQL 17
    V17,
    /// PostgreSQL 18
    V18,
}

/// The layout facts of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VersionLayout {
    /// The major version itself.
    pub major: PgMajor,
    /// `CATALOG_VERSION_NO`: tells 13 to 16 apart, whose control versions are equal.
    pub catalog_version: u32,
    /// `PG_CONTROL_VERSION`.
    pub control_version: u32,
    /// Offset of the CRC in `pg_control`.
    pub control_crc_offset: usize,
    /// Whether `pg_control` records `default_char_signedness` (and the nonce starts a byte later).
    pub control_has_char_signedness: bool,
    /// Whether the checkpoint in `pg_control` and in WAL records `wal_level`.
    pub checkpoint_has_wal_level: bool,
    /// Magic number of a WAL page (`XLOG_PAGE_MAGIC`).
    pub wal_page_magic: u16,
    /// Meaning of the bits of `bimg_info` in a WAL block image.
    pub image_bits: ImageBits,
    /// Whether block id 252 (top-level transaction id) exists in WAL records.
    pub has_toplevel_xid: bool,
    /// Whether resource managers 128 to 255 may appear in WAL.
    pub has_custom_rmgrs: bool,
    /// Whether `CREATE DATABASE` may be logged block by block, and `DBASE` info bits moved.
    pub has_wal_log_createdb: bool,
    /// Whether commit and abort records may list dropped statistics entries.
    pub has_dropped_stats: bool,
    /// Bytes of one dropped statistics entry in commit and abort records; zero where there are none.
    pub dropped_stat_size: usize,
    /// The largest record the server writes and reads, in bytes.
    pub wal_record_max: u32,
    /// Whether WAL has `XLOG_CHECKPOINT_REDO` records.
    pub has_checkpoint_redo: bool,
    /// Whether SLRU page numbers in WAL are 64 bits wide.
    pub has_wide_slru_pages: bool,
    /// Whether the server writes WAL summaries.
    pub has_wal_summaries: bool,
    /// Size of a relation map file (`pg_filenode.map`) in bytes.
    pub relation_map_size: usize,
    /// Hexadecimal digits of a file name in `pg_twophase`.
    pub twophase_name_digits: usize,
    /// Version of the backup manifest that servers of this major write.
    pub manifest_version: u32,
    /// The word after `BACKUP FROM:` in a label taken on a primary.
    pub backup_from_primary: &'static str,
    /// Whether `initdb` turns page checksums on unless told otherwise.
    pub checksums_by_default: bool,
}

/// The bits of `bimg_info`, whose meanings moved in 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageBits {
    /// The page has a hole that the image leaves out. The same bit in every major.
    pub has_hole: u8,
    /// The image is to be restored during replay.
    pub apply: u8,
    /// Compressed with PostgreSQL's own LZ.
    pub pglz: u8,
    /// Compressed with LZ4; zero where the major cannot.
    pub lz4: u8,
    /// Compressed with Zstandard; zero where the major cannot.
    pub zstd: u8,
}

const IMAGE_BITS_13: ImageBits = ImageBits {
    has_hole: 1,
    apply: 4,
    pglz: 2,
    lz4: 0,
    zstd: 0,
};
const IMAGE_BITS_15: ImageBits = ImageBits {
    has_hole: 1,
    apply: 2,
    pglz: 4,
    lz4: 8,
    zstd: 16,
};

const LAYOUT_13: VersionLayout = VersionLayout {
    major: PgMajor::V13,
    catalog_version: 202_007_201,
    control_version: 1300,
    control_crc_offset: 288,
    control_has_char_signedness: false,
    checkpoint_has_wal_level: false,
    wal_page_magic: 0xD106,
    image_bits: IMAGE_BITS_13,
    has_toplevel_xid: false,
    has_custom_rmgrs: false,
    has_wal_log_createdb: false,
    has_dropped_stats: false,
    dropped_stat_size: 0,
    // `MaxAllocSize`: what a reader could allocate.
    wal_record_max: 0x3FFF_FFFF,
    has_checkpoint_redo: false,
    has_wide_slru_pages: false,
    has_wal_summaries: false,
    relation_map_size: 512,
    twophase_name_digits: 8,
    manifest_version: 1,
    backup_from_primary: "master",
    checksums_by_default: false,
};

const LAYOUT_14: VersionLayout = VersionLayout {
    major: PgMajor::V14,
    catalog_version: 202_107_181,
    wal_page_magic: 0xD10D,
    has_toplevel_xid: true,
    backup_from_primary: "primary",
    ..LAYOUT_13
};

const LAYOUT_15: VersionLayout = VersionLayout {
    major: PgMajor::V15,
    catalog_version: 202_209_061,
    wal_page_magic: 0xD110,
    image_bits: IMAGE_BITS_15,
    has_custom_rmgrs: true,
    has_wal_log_createdb: true,
    has_dropped_stats: true,
    dropped_stat_size: 12,
    ..LAYOUT_14
};

const LAYOUT_16: VersionLayout = VersionLayout {
    major: PgMajor::V16,
    catalog_version: 202_307_071,
    wal_page_magic: 0xD113,
    wal_record_max: 1020 << 20,
    relation_map_size: 524,
    ..LAYOUT_15
};

const LAYOUT_17: VersionLayout = VersionLayout {
    major: PgMajor::V17,
    catalog_version: 202_406_281,
    control_version: 1700,
    checkpoint_has_wal_level: true,
    wal_page_magic: 0xD116,
    has_checkpoint_redo: true,
    has_wide_slru_pages: true,
    has_wal_summaries: true,
    twophase_name_digits: 16,
    manifest_version: 2,
    ..LAYOUT_16
};

const LAYOUT_18: VersionLayout = VersionLayout {
    major: PgMajor::V18,
    catalog_version: 202_506_291,
    control_version: 1800,
    control_crc_offset: 292,
    control_has_char_signedness: true,
    wal_page_magic: 0xD118,
    dropped_stat_size: 16,
    checksums_by_default: true,
    ..LAYOUT_17
};

static LAYOUTS: [VersionLayout; 6] = [
    LAYOUT_13, LAYOUT_14, LAYOUT_15, LAYOUT_16, LAYOUT_17, LAYOUT_18,
];

impl PgMajor {
    /// Every supported major, oldest first.
    pub const ALL: [Self; 6] = [
        Self::V13,
        Self::V14,
        Self::V15,
        Self::V16,
        Self::V17,
        Self::V18,
    ];

    /// The number as in `PG_VERSION`: 13 to 18.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::V13 => 13,
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// The layout facts of this major.
    #[must_use]
    pub fn layout(self) -> &'static VersionLayout {
        match self {
            Self::V13 => &LAYOUT_13,
            Self::V14 => &LAYOUT_14,
            Self::V15 => &LAYOUT_15,
            Self::V16 => &LAYOUT_16,
            Self::V17 => &LAYOUT_17,
            Self::V18 => &LAYOUT_18,
        }
    }

    /// The major with this number.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) outside 13 to 18.
    pub fn from_number(number: u32) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|major| major.number() == number)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    "PostgreSQL version",
                    format!("{number} is not one of the supported majors 13 to 18"),
                )
            })
    }

    /// The major whose catalogs have this version number (`catalog_version_no` of `pg_control`).
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for any other, betas and forks included.
    pub fn from_catalog_version(catalog_version: u32) -> Result<Self> {
        let known = LAYOUTS
            .iter()
            .find(|layout| layout.catalog_version == catalog_version);
        known.map(|layout| layout.major).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "catalog version",
                format!("{catalog_version} belongs to no release of PostgreSQL 13 to 18"),
            )
        })
    }

    /// The major whose WAL pages carry this magic number.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for any other.
    pub fn from_wal_page_magic(magic: u16) -> Result<Self> {
        let known = LAYOUTS.iter().find(|layout| layout.wal_page_magic == magic);
        known.map(|layout| layout.major).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "WAL page magic",
                format!("{magic:04X} belongs to no release of PostgreSQL 13 to 18"),
            )
        })
    }
}

impl fmt::Display for PgMajor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl FromStr for PgMajor {
    type Err = Error;

    /// Parses the leading number of a version text: `15`, `15.18`, `15.18 (Debian 15.18-0+deb12u1)`,
    /// `18beta1`, the content of `PG_VERSION` with its newline.
    fn from_str(text: &str) -> Result<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number = text.get(..digits).and_then(|digits| digits.parse().ok());
        match number {
            Some(number) => Self::from_number(number),
            None => Err(Error::malformed(
                "PostgreSQL version",
                format!("{text:?} starts with no number"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_major_is_found_by_what_identifies_it() {
        for major in PgMajor::ALL {
            let layout = major.layout();
            assert_eq!(layout.major, major);
            assert_eq!(PgMajor::from_number(major.number()).unwrap(), major);
            assert_eq!(
                PgMajor::from_catalog_version(layout.catalog_version).unwrap(),
                major
            );
            assert_eq!(
                PgMajor::from_wal_page_magic(layout.wal_page_magic).unwrap(),
                major
            );
        }
    }

    #[test]
    fn version_texts_of_servers_and_tools_are_understood() {
        for text in [
            "15",
            "15\n",
            "15.18",
            "15.18 (Debian 15.18-0+deb12u1)",
            "15beta1",
        ] {
            assert_eq!(text.parse::<PgMajor>().unwrap(), PgMajor::V15, "{text:?}");
        }
        assert_eq!(
            "12.4".parse::<PgMajor>().unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert_eq!(
            "".parse::<PgMajor>().unwrap_err().kind(),
            ErrorKind::Malformed
        );
        assert_eq!(
            "99999999999999".parse::<PgMajor>().unwrap_err().kind(),
            ErrorKind::Malformed
        );
    }
}
