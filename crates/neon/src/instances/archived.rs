//! What an archiver must not touch any more: log of timelines that were left.

use std::fs;
use std::path::Path;

use neon_pg_layout::{TimelineId, WalFileName};
use neon_pgctl::OsUser;

use crate::error::{Error, Result};
use crate::record;

/// Marks all log and every history as archived but what is of the new timeline. Durable when it returns.
///
/// Whoever wrote them archived them, as whole segments. The last one ends earlier here: an archiver that refuses to write
/// over the other would try it for ever, and one that does not refuse would lose what followed.
pub(super) fn leave_to_others(data: &Path, new: TimelineId, user: Option<&OsUser>) -> Result<()> {
    let wal = data.join("pg_wal");
    let status = wal.join("archive_status");
    let failed = |error| Error::io(&wal, "cannot be listed", error);
    for entry in fs::read_dir(&wal).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        let timeline = match name.parse() {
            Ok(WalFileName::History(timeline)) => timeline,
            Ok(WalFileName::Segment(segment)) => segment.timeline(),
            _ => continue,
        };
        if timeline == new {
            continue;
        }
        let done = status.join(format!("{name}.done"));
        if fs::symlink_metadata(&done).is_err() {
            record::put(&done, b"", 0o600, user)?;
        }
        record::remove(&status.join(format!("{name}.ready")))?;
    }
    Ok(())
}

/// Segments that wait for the archiver, by name.
pub(super) fn missing(data: &Path) -> Vec<String> {
    let waiting = fs::read_dir(data.join("pg_wal/archive_status"));
    let names = waiting.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter_map(|name| name.strip_suffix(".ready").map(str::to_owned))
        .filter(|name| matches!(name.parse(), Ok(WalFileName::Segment(_))))
        .collect();
    names.sort_unstable();
    names
}

/// Bytes of them.
pub(super) fn bytes_of_missing(data: &Path) -> u64 {
    let names = missing(data);
    let sizes = names
        .iter()
        .filter_map(|name| Some(fs::metadata(data.join("pg_wal").join(name)).ok()?.len()));
    sizes.fold(0, u64::saturating_add)
}

/// Copies what the archiver did not get yet to a folder, with the histories. Whether there was anything. Durable when it
/// returns.
pub(super) fn keep(data: &Path, folder: &Path) -> Result<bool> {
    let mut names = missing(data);
    if names.is_empty() {
        return Ok(false);
    }
    let wal = data.join("pg_wal");
    let entries = fs::read_dir(&wal).map_err(|error| Error::io(&wal, "cannot be listed", error))?;
    let all = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names.extend(all.filter(|name| matches!(name.parse(), Ok(WalFileName::History(_)))));
    if let Some(parent) = folder.parent() {
        record::folder(parent, 0o700)?;
    }
    record::folder(folder, 0o700)?;
    for name in names {
        let (from, to) = (wal.join(&name), folder.join(&name));
        let failed = |error| Error::io(&to, "cannot be written", error);
        match fs::copy(&from, &to) {
            Ok(_) => {}
            // Taken by the archiver and removed meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        }
        fs::File::open(&to)
            .and_then(|file| file.sync_all())
            .map_err(failed)?;
    }
    record::sync_folder(folder)?;
    Ok(true)
}
