//! One object of a storage as something that ranges are read from: a `.neon` file behind HTTP, say.

use std::ops::Range;
use std::sync::Arc;

use neon_snapshot_format::pack::ReadRange;
use neon_snapshot_format::{Error, ErrorKind, Result};
use neon_storage::{Key, Storage, StorageExt};
use tokio::runtime::Handle;

/// Waits for the storage, so it is to be used in threads outside of the runtime.
#[derive(Debug, Clone)]
pub(crate) struct StoredRange {
    storage: Arc<dyn Storage>,
    key: Key,
    length: u64,
    runtime: Handle,
}

impl StoredRange {
    pub(crate) async fn open(storage: Arc<dyn Storage>, key: Key) -> neon_storage::Result<Self> {
        let length = storage.head(&key).await?.meta.size;
        Ok(Self {
            storage,
            key,
            length,
            runtime: Handle::current(),
        })
    }
}

impl ReadRange for StoredRange {
    fn length(&self) -> Result<u64> {
        Ok(self.length)
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let wanted = range.end.saturating_sub(range.start);
        let read = self.storage.read_range(&self.key, range);
        let bytes = self.runtime.block_on(read).map_err(|error| {
            Error::new(ErrorKind::Io, self.key.as_str(), "cannot be read").caused_by(error)
        })?;
        if bytes.len() as u64 != wanted {
            return Err(Error::new(
                ErrorKind::Malformed,
                self.key.as_str(),
                "is cut off",
            ));
        }
        Ok(bytes.into())
    }
}
