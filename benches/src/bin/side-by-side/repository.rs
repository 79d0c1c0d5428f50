//! What a tool keeps: bytes and objects.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The size of all files below a folder, and how many there are: in a bucket each would be an object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) bytes: u64,
    pub(crate) objects: u64,
}

impl Kept {
    pub(crate) fn of(folder: &Path) -> Self {
        let mut kept = Self::default();
        let Ok(entries) = std::fs::read_dir(folder) else {
            return kept;
        };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else {
                continue;
            };
            if metadata.is_dir() {
                let below = Self::of(&entry.path());
                kept.bytes += below.bytes;
                kept.objects += below.objects;
            } else if metadata.is_file() {
                kept.bytes += metadata.size();
                kept.objects += 1;
            }
        }
        kept
    }

    /// What was added since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(before.bytes),
            objects: self.objects.saturating_sub(before.objects),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_all_folders_are_counted_and_links_are_not() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/b"), [0; 100]).unwrap();
        std::fs::write(folder.path().join("c"), [0; 10]).unwrap();
        std::os::unix::fs::symlink("c", folder.path().join("d")).unwrap();
        let kept = Kept::of(folder.path());
        assert_eq!((kept.bytes, kept.objects), (110, 2));
        assert_eq!(
            kept.since(Kept {
                bytes: 10,
                objects: 1
            })
            .bytes,
            100
        );
    }
}
