//! Frames on a local disk, between memory and a storage that is far away.
//!
//! An entry is a file with the stored bytes of one frame: still compressed, and still sealed if the repository
//! is encrypted; or sealed once more, if that is how they came. The digest in the frame's address vouches for
//! them, so nothing here is trusted: an entry that does not match is removed and counts as missing. Of a frame that is
//! thinned, the moves have the digest. Files appear by a rename and are never flushed;
//! losing the cache costs time only. Several processes may share a directory.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::id::random;
use crate::map::FrameRef;
use crate::read::form::Thinned;

/// What an entry costs beside its bytes: about half a block, and an inode.
const OVERHEAD: u64 = 2048;

/// What the names of those entries end in that are sealed once more.
const SEALED: &str = "sealed";

/// A directory of cached frames, bounded in bytes.
#[derive(Debug, Clone)]
pub struct DiskCache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    limit: u64,
    /// By the last look at the directory, and what was added since.
    used: AtomicU64,
    evicting: Mutex<()>,
}

impl DiskCache {
    /// Uses a directory, which is made if missing. It should belong to nobody else; what is in it that is no
    /// entry is left alone. Blocks while it looks at what is there.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) when the directory cannot be made or listed.
    pub fn open(directory: &Path, limit: u64) -> Result<Self> {
        let fail = |error| {
            Error::new(
                ErrorKind::Io,
                directory.display().to_string(),
                "cannot be used as a cache",
            )
            .caused_by(error)
        };
        fs::create_dir_all(directory).map_err(fail)?;
        let inner = Inner {
            directory: directory.to_owned(),
            limit,
            used: AtomicU64::new(0),
            evicting: Mutex::new(()),
        };
        inner.evict().map_err(fail)?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The stored bytes of a frame, if they are here and whole. Blocks.
    pub(crate) fn get(&self, frame: &FrameRef) -> Option<Bytes> {
        self.read(self.inner.path(frame), frame, Some)
    }

    /// As [`get`](Self::get), of what is kept sealed once more.
    pub(crate) fn get_sealed(
        &self,
        frame: &FrameRef,
        open: impl FnOnce(&[u8]) -> Option<Bytes>,
    ) -> Option<Bytes> {
        self.read(self.inner.sealed_path(frame), frame, |bytes| open(&bytes))
    }

    /// The stored bytes of a frame that is thinned so. Blocks.
    pub(crate) fn get_thinned(&self, frame: &FrameRef, thinned: &Thinned) -> Option<Bytes> {
        let path = self.inner.thinned_path(frame, thinned);
        self.checked(&path, &thinned.digest, Some)
    }

    /// Keeps the stored bytes of a frame that is thinned so, if they are these. Blocks.
    pub(crate) fn put_thinned(&self, frame: &FrameRef, thinned: &Thinned, stored: &[u8]) {
        if blake3::hash(stored).as_bytes().first_chunk() == Some(&thinned.digest) {
            self.keep(&self.inner.thinned_path(frame, thinned), stored);
        }
    }

    fn read(
        &self,
        path: PathBuf,
        frame: &FrameRef,
        open: impl FnOnce(Bytes) -> Option<Bytes>,
    ) -> Option<Bytes> {
        let length = u64::from(frame.stored_length);
        self.checked(&path, &frame.digest, |bytes| {
            open(bytes).filter(|bytes| bytes.len() as u64 == length)
        })
    }

    fn checked(
        &self,
        path: &Path,
        digest: &[u8; 16],
        open: impl FnOnce(Bytes) -> Option<Bytes>,
    ) -> Option<Bytes> {
        let kept = Bytes::from(fs::read(path).ok()?);
        if let Some(bytes) = open(kept)
            && blake3::hash(&bytes).as_bytes().first_chunk() == Some(digest)
        {
            // The age by which entries go. Failing to set it only makes this one go earlier.
            let touched = fs::File::options()
                .append(true)
                .open(path)
                .and_then(|file| file.set_modified(SystemTime::now()));
            drop(touched);
            return Some(bytes);
        }
        drop(fs::remove_file(path));
        None
    }

    /// Keeps the stored bytes of a frame. That it cannot is no error: the disk may be full. Blocks.
    pub(crate) fn put(&self, frame: &FrameRef, stored: &[u8]) {
        self.keep(&self.inner.path(frame), stored);
    }

    /// As [`put`](Self::put), of stored bytes that are sealed once more.
    pub(crate) fn put_sealed(&self, frame: &FrameRef, sealed: &[u8]) {
        self.keep(&self.inner.sealed_path(frame), sealed);
    }

    fn keep(&self, path: &Path, bytes: &[u8]) {
        let cost = bytes.len() as u64 + OVERHEAD;
        if cost > self.inner.limit || self.inner.write(path, bytes).is_err() {
            return;
        }
        let used = self.inner.used.fetch_add(cost, Ordering::Relaxed) + cost;
        if used > self.inner.limit {
            drop(self.inner.evict());
        }
    }
}

impl Inner {
    fn path(&self, frame: &FrameRef) -> PathBuf {
        let pack = frame.pack.id.to_string();
        let shard = pack.get(..2).unwrap_or("00").to_owned();
        self.directory
            .join(shard)
            .join(format!("{pack}-{}", frame.frame))
    }

    fn sealed_path(&self, frame: &FrameRef) -> PathBuf {
        self.path(frame).with_extension(SEALED)
    }

    fn thinned_path(&self, frame: &FrameRef, thinned: &Thinned) -> PathBuf {
        let cells = format!("{:04x}", thinned.cells.bits());
        self.path(frame).with_extension(cells)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let Some(shard) = path.parent() else {
            return Ok(());
        };
        fs::create_dir_all(shard)?;
        let name: [u8; 8] = random().map_err(io::Error::other)?;
        let temporary = shard.join(format!("{:016x}.tmp", u64::from_le_bytes(name)));
        let written = fs::File::create_new(&temporary)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            drop(fs::remove_file(&temporary));
        }
        written
    }

    /// Looks at what is there and removes the oldest until a tenth of the limit is free.
    fn evict(&self) -> io::Result<()> {
        let guard = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::new();
        let mut used = 0;
        for shard in fs::read_dir(&self.directory)? {
            let shard = shard?;
            let name = shard.file_name();
            let ours = name
                .to_str()
                .is_some_and(|name| name.len() == 2 && is_hex(name));
            if !ours || !shard.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(shard.path())? {
                let entry = entry?;
                // Another process may have removed it.
                let Ok(facts) = entry.metadata() else {
                    continue;
                };
                if !facts.is_file() || !is_entry(&entry.file_name()) {
                    continue;
                }
                let cost = facts.len() + OVERHEAD;
                used += cost;
                let age = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                entries.push((age, cost, entry.path()));
            }
        }
        if used > self.limit {
            let target = self.limit - self.limit / 10;
            entries.sort();
            for (_, cost, path) in entries {
                if used <= target {
                    break;
                }
                drop(fs::remove_file(path));
                used -= cost;
            }
        }
        self.used.store(used, Ordering::Relaxed);
        drop(guard);
        Ok(())
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a file is an entry, or one that was being made.
fn is_entry(name: &std::ffi::OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    match (name.strip_suffix(".tmp"), name.split_once('-')) {
        (Some(temporary), _) => temporary.len() == 16 && is_hex(temporary),
        (None, Some((pack, frame))) => {
            let (frame, form) = frame.split_once('.').unwrap_or((frame, SEALED));
            let known = form == SEALED || form.len() == 4 && is_hex(form);
            known && pack.len() == 32 && is_hex(pack) && frame.parse::<u64>().is_ok()
        }
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use neon_snapshot_format::pack::PackId;

    use super::*;
    use crate::crypt::DataKey;
    use crate::map::PackRef;

    fn frame(number: u64, stored: &[u8]) -> FrameRef {
        FrameRef {
            pack: PackRef {
                id: PackId([7; 16]),
                key: DataKey([0; 32]),
            },
            frame: number,
            offset: 0,
            stored_length: u32::try_from(stored.len()).unwrap(),
            plain_length: 8192,
            codec: 0,
            sealed: false,
            digest: *blake3::hash(stored).as_bytes().first_chunk().unwrap(),
        }
    }

    fn bytes_below(directory: &Path) -> u64 {
        fs::read_dir(directory)
            .unwrap()
            .flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap())
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    }

    #[test]
    fn a_damaged_entry_is_a_miss_and_goes() {
        let place = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(place.path(), 1 << 20).unwrap();
        let stored = vec![5; 1000];
        let frame = frame(1, &stored);
        assert!(cache.get(&frame).is_none());
        cache.put(&frame, &stored);
        assert_eq!(cache.get(&frame).unwrap(), stored);
        let path = cache.inner.path(&frame);
        for damage in [&[4; 1000][..], &[5; 999], &[5; 1001], &[]] {
            fs::write(&path, damage).unwrap();
            assert!(cache.get(&frame).is_none());
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_bound_holds_also_for_what_was_there_and_strangers_are_left_alone() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("note"), "mine").unwrap();
        let limit = 20 * (1000 + OVERHEAD);
        let cache = DiskCache::open(place.path(), limit).unwrap();
        let frames: Vec<_> = (0..60_u8)
            .map(|number| vec![number; 1000])
            .map(|stored| (frame(stored[0].into(), &stored), stored))
            .collect();
        for (frame, stored) in &frames {
            cache.put(frame, stored);
        }
        fs::remove_file(place.path().join("note")).unwrap();
        assert!(bytes_below(place.path()) <= 20 * 1000);
        let (last, stored) = frames.last().unwrap();
        assert_eq!(cache.get(last).unwrap(), *stored);
        drop(DiskCache::open(place.path(), 3 * (1000 + OVERHEAD)).unwrap());
        assert!(bytes_below(place.path()) <= 3000);
    }
}
