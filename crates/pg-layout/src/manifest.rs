//! `backup_manifest`: the files of a backup with sizes and checksums, and the log it needs.
//!
//! JSON in a layout that the server fixes to the byte, ended by a line with the SHA-256 of all lines
//! before it. Version 1 is written by 13 to 16; version 2, by 17 and later, adds the system identifier.
//! [`ManifestReader`] takes any order of keys and pieces of any size; [`ManifestWriter`] produces the
//! server's bytes. Sources: `backup/backup_manifest.c`, `common/parse_manifest.c`.

mod json;
mod reader;
mod writer;

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::file_checksum::FileChecksum;
use crate::system_identifier::SystemIdentifier;
use crate::timeline_history::TimelineRange;

pub use reader::{ManifestItem, ManifestReader};
pub use writer::{ManifestWriter, gmt};

const SUBJECT: &str = "backup_manifest";

/// A whole manifest in memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// The cluster; in version 2 only.
    pub system_identifier: Option<SystemIdentifier>,
    /// The files, in manifest order; no path occurs twice.
    pub files: Vec<ManifestFile>,
    /// The log that makes the backup consistent: newest timeline first.
    pub wal_ranges: Vec<TimelineRange>,
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// The path relative to the data directory. Never absolute, never with `..`; bytes, since it need
    /// not be UTF-8.
    pub path: Vec<u8>,
    /// The size in bytes.
    pub size: u64,
    /// When the file was last changed, as [`gmt`] writes it. Nothing reads it.
    pub modified: Option<String>,
    /// The checksum; absent when the backup was made without.
    pub checksum: Option<FileChecksum>,
}

impl Manifest {
    /// The version that a manifest with these facts has.
    #[must_use]
    pub const fn version(&self) -> u32 {
        match self.system_identifier {
            None => 1,
            Some(_) => 2,
        }
    }

    /// Reads a whole manifest.
    ///
    /// # Errors
    /// As [`ManifestReader`]; [`Malformed`](crate::ErrorKind::Malformed) also for a path that occurs
    /// twice.
    pub fn parse(content: &[u8]) -> Result<Self> {
        let mut manifest = Self::default();
        let mut reader = ManifestReader::new();
        reader.push(content, |item| match item {
            ManifestItem::File(file) => manifest.files.push(file),
            ManifestItem::WalRange(range) => manifest.wal_ranges.push(range),
        })?;
        manifest.system_identifier = reader.finish()?;
        let mut seen = HashSet::with_capacity(manifest.files.len());
        match manifest.files.iter().find(|file| !seen.insert(&file.path)) {
            None => Ok(manifest),
            Some(twice) => Err(Error::malformed(
                SUBJECT,
                format!("{:?} occurs twice", String::from_utf8_lossy(&twice.path)),
            )),
        }
    }

    /// The bytes that the server would write.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = ManifestWriter::new(self.system_identifier);
        for file in &self.files {
            writer.file(file);
        }
        writer.finish(&self.wal_ranges)
    }
}

#[cfg(test)]
mod tests;
