//! Whether a snapshot fits, asked before anything is copied.

use neon_snapshot_format::pack::Codec;
use neon_storage::Locator;

use crate::error::{Error, ErrorKind, Result};
use crate::neon::Neon;
use crate::repositories::StorageRepository;
use crate::storages::StorageType;

/// What is left free in any case: for maps, the commit, and others who write there.
const RESERVE: u64 = 16 << 20;

/// An error when so many bytes of a cluster do not fit into a storage on this machine. Of compressed ones the least is
/// assumed that they will take: it is better to try than to refuse what would fit.
pub(crate) fn check(neon: &Neon, target: &StorageRepository, bytes: u64) -> Result<()> {
    let Some(name) = &target.name else {
        return Ok(());
    };
    let record = neon.storages().get(name)?;
    if record.kind != StorageType::Native {
        return Ok(());
    }
    let Ok(locator) = Locator::parse(&record.locator) else {
        return Ok(());
    };
    // What cannot be asked is not known to be full.
    let Ok(facts) = rustix::fs::statvfs(locator.path()) else {
        return Ok(());
    };
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    let needed = least(bytes, target.codec).saturating_add(RESERVE);
    if free >= needed {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Environment,
        target.label(),
        format!(
            "has {} MiB free, and this snapshot needs at least {} MiB",
            free >> 20,
            needed >> 20
        ),
    )
    .hinted("make room, destroy snapshots and run `neon storage gc`, or use another storage"))
}

fn least(bytes: u64, codec: Codec) -> u64 {
    match codec {
        Codec::None => bytes,
        Codec::Lz4 => bytes / 4,
        _ => bytes / 8,
    }
}
