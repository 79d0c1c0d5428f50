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

/// Files whose lines are handed out together.
const TOGETHER: usize = 2048;

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
    pub(crate) fn into_bytes(self, control: &ControlFile, end: &End) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.pieces(control, end, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// As [`into_bytes`](Self::into_bytes), in pieces of some hundred KiB: a million files make 170 MB.
    pub(crate) fn pieces(
        mut self,
        control: &ControlFile,
        end: &End,
        mut put: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        // No path comes twice.
        self.0.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let identified = control.major >= PgMajor::V17;
        let mut writer = ManifestWriter::new(identified.then_some(control.system_identifier));
        for some in self.0.chunks(TOGETHER) {
            for (path, modified, crc) in some {
                let checksum =
                    FileChecksum::new(ChecksumAlgorithm::Crc32c, &crc.value.to_le_bytes())
                        .map_err(|error| Error::layout(MANIFEST, error))?;
                writer.file(&ManifestFile {
                    path: path.as_bytes().to_vec(),
                    size: crc.length,
                    modified: Some(gmt(*modified)),
                    checksum: Some(checksum),
                });
            }
            put(&writer.take())?;
        }
        put(&writer.finish(&end.wal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::EntryKind;
    use neon_pg_layout::Manifest;

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

    #[test]
    fn a_manifest_of_any_length_comes_in_small_pieces() {
        let mut collected = Collected::default();
        for number in (0..50_000_u64).rev() {
            let entry = Entry {
                path: SnapshotPath::new(format!("base/5/{number}")).unwrap(),
                kind: EntryKind::File { size: 8192 },
                mode: 0o600,
                owner: None,
                modified: 1_795_000_000,
            };
            let mut crc = Crc::default();
            crc.add(ChunkData::Zeros(number));
            collected.add(&entry, crc);
        }
        let cluster = neon_testkit::Cluster::builder(PgMajor::V17).init();
        let bytes = std::fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
        let control = ControlFile::decode(&bytes).unwrap();
        let (mut whole, mut longest) = (Vec::new(), 0);
        let put = |piece: &[u8]| {
            longest = longest.max(piece.len());
            whole.extend_from_slice(piece);
            Ok(())
        };
        collected.pieces(&control, &End::default(), put).unwrap();
        assert!(whole.len() > 5 << 20 && longest < 1 << 20, "{longest}");
        let read = Manifest::parse(&whole).unwrap();
        assert_eq!(read.files.len(), 50_000);
        assert!(read.files.is_sorted_by_key(|file| file.path.clone()));
    }
}
