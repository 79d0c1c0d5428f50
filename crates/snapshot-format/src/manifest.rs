//! Collecting what a `backup_manifest` lists while files are written.
//!
//! Checksums are CRC-32C, because those of parts that several threads wrote can be combined into that of
//! the whole file.

use neon_pg_layout::{
    ChecksumAlgorithm, ControlFile, FileChecksum, ManifestFile, ManifestWriter, PgMajor, gmt,
};

use crate::error::{Error, Result};
use crate::path::SnapshotPath;
use crate::stream::{ChunkData, End, Entry};

/// The name of the file.
pub(crate) const MANIFEST: &str = "backup_manifest";

/// The CRC-32C of a file, or of a part of one, in the making.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Crc {
    value: u32,
    length: u64,
}

impl Crc {
    pub(crate) fn add(&mut self, data: ChunkData<'_>) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        match data {
            ChunkData::Bytes(bytes) => {
                self.value = crc32c::crc32c_append(self.value, bytes);
                self.length += bytes.len() as u64;
            }
            ChunkData::Zeros(count) => {
                let mut left = count;
                while left > 0 {
                    let step = usize::try_from(left)
                        .unwrap_or(ZEROS.len())
                        .min(ZEROS.len());
                    let zeros = ZEROS.get(..step).unwrap_or(&ZEROS);
                    self.value = crc32c::crc32c_append(self.value, zeros);
                    left -= zeros.len() as u64;
                }
                self.length += count;
            }
        }
    }

    /// Adds the part that follows.
    pub(crate) fn join(&mut self, next: Self) {
        let length = usize::try_from(next.length).unwrap_or(usize::MAX);
        self.value = crc32c::crc32c_combine(self.value, next.value, length);
        self.length += next.length;
    }
}

/// The files written so far.
#[derive(Debug, Default)]
pub(crate) struct Collected(Vec<(SnapshotPath, i64, Crc)>);

impl Collected {
    /// Adds a file. The log, which the tools look at by itself, and the manifest are not listed.
    pub(crate) fn add(&mut self, entry: &Entry, crc: Crc) {
        if !entry.path.as_bytes().starts_with(b"pg_wal/")
            && entry.path.as_bytes() != MANIFEST.as_bytes()
        {
            self.0.push((entry.path.clone(), entry.modified, crc));
        }
    }

    /// The manifest, of the version that the tools of the cluster's major read.
    pub(crate) fn into_bytes(mut self, control: &ControlFile, end: &End) -> Result<Vec<u8>> {
        self.0.sort_by(|a, b| a.0.cmp(&b.0));
        let identified = control.major >= PgMajor::V17;
        let mut writer = ManifestWriter::new(identified.then_some(control.system_identifier));
        for (path, modified, crc) in &self.0 {
            let checksum = FileChecksum::new(ChecksumAlgorithm::Crc32c, &crc.value.to_le_bytes())
                .map_err(|error| Error::layout(MANIFEST, error))?;
            writer.file(&ManifestFile {
                path: path.as_bytes().to_vec(),
                size: crc.length,
                modified: Some(gmt(*modified)),
                checksum: Some(checksum),
            });
        }
        Ok(writer.finish(&end.wal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_sum_to_the_whole() {
        let bytes: Vec<u8> = (0..200_000_u32)
            .map(|i| (i * 7 + i / 300).to_le_bytes()[0])
            .collect();
        let mut whole = Crc::default();
        whole.add(ChunkData::Bytes(&bytes));
        whole.add(ChunkData::Zeros(70_000));
        let (head, tail) = bytes.split_at(123_456);
        let mut first = Crc::default();
        first.add(ChunkData::Bytes(head));
        let mut second = Crc::default();
        second.add(ChunkData::Bytes(tail));
        second.add(ChunkData::Bytes(&[0; 70_000]));
        first.join(second);
        assert_eq!((whole.value, whole.length), (first.value, first.length));
    }
}
