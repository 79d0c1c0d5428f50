//! Whether what is to be written fits, asked before anything is: no disk fills up for what was known before.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use neon_pagestore::map::{FileKind, Walk};
use neon_pagestore::read::Snapshot;
use neon_pg_layout::Oid;
use neon_snapshot_format::pack::Codec;
use neon_storage::Locator;

use crate::error::{Error, ErrorKind, Result};
use crate::neon::Neon;
use crate::quantity::bytes_in_words;
use crate::repositories::StorageRepository;

/// What is left free in a storage in any case: for maps, the commit, and others who write there.
const RESERVE: u64 = 16 << 20;

/// An error when so many bytes of a cluster do not fit into a storage on this machine. Of compressed ones the least is
/// assumed that they will take: it is better to try than to refuse what would fit.
pub(crate) fn check(neon: &Neon, target: &StorageRepository, bytes: u64) -> Result<()> {
    check_stored(neon, target, least(bytes, target.codec))
}

/// As [`check`], of bytes as they will be stored.
pub(crate) fn check_stored(neon: &Neon, target: &StorageRepository, bytes: u64) -> Result<()> {
    let Some(path) = folder_of(neon, target)? else {
        return Ok(());
    };
    // What cannot be asked is not known to be full.
    let Some(disk) = Disk::of(&path) else {
        return Ok(());
    };
    let needed = bytes.saturating_add(RESERVE);
    if disk.free >= needed {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Environment,
        target.label(),
        format!(
            "has {} MiB free, and this snapshot needs at least {} MiB",
            disk.free >> 20,
            needed >> 20
        ),
    )
    .hinted("make room, destroy snapshots and run `neon storage gc`, or use another storage"))
}

/// As [`check`], of bytes that also go to a place beside: on one disk both have to fit.
pub(crate) fn check_with(
    neon: &Neon,
    target: &StorageRepository,
    bytes: u64,
    beside: Place,
) -> Result<()> {
    require(std::slice::from_ref(&beside))?;
    check(neon, target, bytes)?;
    let Some(path) = folder_of(neon, target)? else {
        return Ok(());
    };
    let stored = Place {
        spare: RESERVE,
        ..Place::new(path, least(bytes, target.codec))
    };
    require(&[beside, stored])
}

/// Where a storage on this machine is.
fn folder_of(neon: &Neon, target: &StorageRepository) -> Result<Option<PathBuf>> {
    let locator = match &target.name {
        Some(name) => neon.storages().get(name)?.locator,
        None => target.repository.storage().location().to_string(),
    };
    let locator = Locator::parse(&locator).ok();
    Ok(locator.and_then(|locator| locator.file_path().map(Path::to_owned)))
}

fn least(bytes: u64, codec: Codec) -> u64 {
    match codec {
        Codec::None => bytes,
        Codec::Lz4 => bytes / 4,
        _ => bytes / 8,
    }
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    device: u64,
    free: u64,
}

impl Disk {
    /// That of a path, which need not be there yet.
    fn of(path: &Path) -> Option<Self> {
        let there = path.ancestors().find(|path| path.exists())?;
        let stat = rustix::fs::statvfs(there).ok()?;
        Some(Self {
            device: fs::metadata(there).ok()?.dev(),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

/// Files that will be somewhere, perhaps in place of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Need not be there yet.
    pub(crate) path: PathBuf,
    /// Bytes that will be there.
    pub(crate) bytes: u64,
    /// Bytes that are there now, and will not be.
    pub(crate) present: u64,
    /// What must be free beside them, before anything is replaced.
    pub(crate) spare: u64,
}

impl Place {
    /// Where nothing is yet.
    pub(crate) fn new(path: impl Into<PathBuf>, bytes: u64) -> Self {
        Self {
            path: path.into(),
            bytes,
            present: 0,
            spare: 0,
        }
    }
}

/// An error when files do not fit where they are to go. What is on one file system counts together.
pub(crate) fn require(places: &[Place]) -> Result<()> {
    let mut disks: BTreeMap<u64, (Disk, Place)> = BTreeMap::new();
    for place in places {
        // As above.
        let Some(disk) = Disk::of(&place.path) else {
            continue;
        };
        disks
            .entry(disk.device)
            .and_modify(|(_, sum)| {
                sum.bytes = sum.bytes.saturating_add(place.bytes);
                sum.present = sum.present.saturating_add(place.present);
                sum.spare = sum.spare.saturating_add(place.spare);
            })
            .or_insert_with(|| (disk, place.clone()));
    }
    for (disk, sum) in disks.values() {
        let needed = sum
            .bytes
            .saturating_sub(sum.present)
            .saturating_add(sum.spare);
        if disk.free < needed {
            return Err(Error::new(
                ErrorKind::Environment,
                sum.path.display().to_string(),
                format!(
                    "has room for {}, and {} are needed",
                    bytes_in_words(disk.free),
                    bytes_in_words(needed)
                ),
            )
            .hinted("free some space, or choose another disk"));
        }
    }
    Ok(())
}

/// Bytes of the files of a snapshot: in the data directory itself, and in each tablespace.
pub(crate) async fn by_tablespace(
    snapshot: &Snapshot,
    subject: &str,
) -> Result<BTreeMap<Option<Oid>, u64>> {
    let failed = |error| Error::repository(subject, error);
    let mut sums = BTreeMap::new();
    let mut walk = Walk::new(snapshot.view(), false);
    while let Some(file) = snapshot.maps().run(&mut walk).await.map_err(failed)? {
        if let FileKind::File { size } = file.attributes.kind {
            let space = file.path.tablespace().map(|(oid, _)| oid);
            let sum: &mut u64 = sums.entry(space).or_default();
            *sum = sum.saturating_add(size);
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_refused_before_anything_is_written() {
        let there = std::env::temp_dir();
        let missing = there.join("not/there/yet");
        require(&[Place::new(&missing, 1)]).unwrap();
        let error = require(&[Place::new(&missing, u64::MAX)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(error.hint().is_some());
        let tight = Place {
            spare: u64::MAX,
            ..Place::new(&there, 1)
        };
        require(&[tight]).unwrap_err();
    }

    #[test]
    fn what_goes_to_one_disk_counts_together_and_what_is_replaced_does_not_count() {
        let there = std::env::temp_dir();
        let free = Disk::of(&there).unwrap().free;
        let most = free / 4 * 3;
        let place = |name: &str| Place::new(there.join(name), most);
        require(&[place("a")]).unwrap();
        require(&[place("a"), place("b")]).unwrap_err();
        let replaced = Place {
            present: most,
            ..place("b")
        };
        require(&[place("a"), replaced]).unwrap();
    }

    #[test]
    fn what_comes_before_anything_is_replaced_counts_in_full() {
        let there = std::env::temp_dir();
        let most = Disk::of(&there).unwrap().free / 4 * 3;
        let replaced = Place {
            present: most,
            spare: most / 2,
            ..Place::new(&there, most)
        };
        let before = Place {
            spare: most,
            ..Place::new(there.join("before"), 0)
        };
        require(std::slice::from_ref(&before)).unwrap();
        require(std::slice::from_ref(&replaced)).unwrap();
        require(&[before, replaced]).unwrap_err();
    }
}
