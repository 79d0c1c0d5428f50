//! Where the links of a data directory lead: a clone must not write into its origin's files.
//!
//! A link is `pg_wal`, an entry of `pg_tblspc`, or, when recovery from a backup will run first, a line of
//! `tablespace_map`, from which that recovery makes the links anew; and whatever else somebody turned into one, a
//! folder of the log or of statistics, a whole database.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use neon_pg_layout::TablespaceMap;

use super::{Change, Why};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::{self, Instance};

/// Checks every link, and turns those of tablespaces that the caller has a new place for.
///
/// # Errors
/// [`OutsideClone`](ErrorKind::OutsideClone) with one line for each link that leads out; nothing is changed then.
pub(crate) fn settle(
    instance: &Instance,
    remapped: &BTreeMap<u32, PathBuf>,
) -> Result<Vec<Change>> {
    let data_dir = &instance.data_dir;
    let root = instance::absolute(&instance.root)?;
    let mut outside = Vec::new();
    let mut turn = Vec::new();

    let wal = data_dir.join("pg_wal");
    if let Ok(target) = fs::read_link(&wal)
        && !lies_in(&target, data_dir, &root)
    {
        outside.push(format!("pg_wal -> {}", target.display()));
    }
    let mapped = Mapped::read(data_dir)?;
    let mut folders = vec![data_dir.clone()];
    for (oid, target) in instance::tablespace_links(data_dir)?
        .into_iter()
        .chain(mapped.iter())
    {
        let from = data_dir.join("pg_tblspc");
        let Some(place) = remapped.get(&oid) else {
            if lies_in(&target, &from, &root) {
                folders.push(from.join(target));
            } else {
                outside.push(format!("pg_tblspc/{oid} -> {}", target.display()));
            }
            continue;
        };
        let named = format!("pg_tblspc/{oid} -> {} (its new place", place.display());
        if !place.is_absolute() || !place.is_dir() {
            outside.push(format!("{named}, which is no folder from the root on)"));
        } else if !lies_in(place, data_dir, &root) {
            outside.push(format!("{named})"));
        } else {
            folders.push(place.clone());
            if place != &target {
                turn.push((oid, target, place.clone()));
            }
        }
    }
    for folder in folders {
        strays(&folder, data_dir, &root, &mut outside)?;
    }
    outside.sort();
    outside.dedup();
    let more = outside.len().saturating_sub(MOST_TOLD);
    if more > 0 {
        outside.truncate(MOST_TOLD);
        outside.push(format!("and {more} more"));
    }
    if !outside.is_empty() {
        return Err(Error::path(
            ErrorKind::OutsideClone,
            data_dir,
            format!(
                "has links that lead out of {}: {}",
                root.display(),
                outside.join(", ")
            ),
        )
        .with_hint(
            "copy what they lead to below the clone and name the new place of each tablespace there",
        ));
    }
    let mut changes = Vec::new();
    for (oid, target, place) in turn {
        relink(data_dir, oid, &place, instance)?;
        changes.push(Change {
            what: format!("pg_tblspc/{oid}"),
            was: Some(target.display().to_string()),
            now: Some(place.display().to_string()),
            why: Why::OutsideClone,
        });
    }
    mapped.rewrite(data_dir, remapped, instance)?;
    Ok(changes)
}

/// More links than this help nobody.
const MOST_TOLD: usize = 20;

/// Finds the links that lead out, other than `pg_wal` and those of tablespaces.
///
/// Files that a server only reads may lie anywhere: certificates, included configuration.
fn strays(folder: &Path, data_dir: &Path, root: &Path, outside: &mut Vec<String>) -> Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let cannot = |error| Error::io(&folder, "cannot be read", error);
        let top = folder == data_dir;
        for entry in fs::read_dir(&folder).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let kind = entry.file_type().map_err(cannot)?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                let is_settled = top && entry.file_name() == "pg_wal"
                    || folder == data_dir.join("pg_tblspc")
                        && entry.file_name().to_string_lossy().parse::<u32>().is_ok();
                let is_read_only = top
                    && path
                        .extension()
                        .is_some_and(|kind| READ_ONLY.iter().any(|known| kind == *known));
                let target = fs::read_link(&path).map_err(cannot)?;
                if !is_settled && !is_read_only && !lies_in(&target, &folder, root) {
                    let shown = path.strip_prefix(data_dir).unwrap_or(&path);
                    outside.push(format!("{} -> {}", shown.display(), target.display()));
                }
            }
        }
    }
    Ok(())
}

/// What the names of files end in that a server reads and never writes, or replaces as a whole.
const READ_ONLY: [&str; 5] = ["conf", "crt", "key", "pem", "crl"];

/// Whether a link's target lies below a folder, all further links resolved.
fn lies_in(target: &Path, from: &Path, root: &Path) -> bool {
    instance::absolute(&from.join(target)).is_ok_and(|real| real.starts_with(root))
}

fn relink(data_dir: &Path, oid: u32, place: &Path, instance: &Instance) -> Result<()> {
    let folder = data_dir.join("pg_tblspc");
    let link = folder.join(oid.to_string());
    if fs::symlink_metadata(&link).is_err() {
        // Only in the map so far.
        return Ok(());
    }
    let temporary = folder.join(format!("{oid}.{}", durable::random_hex(4)?));
    let temporary = durable::Scrap(temporary);
    durable::create_link(place, &temporary.0, &instance.user)?;
    fs::rename(&temporary.0, &link)
        .map_err(|error| Error::io(&link, "cannot be replaced", error))?;
    durable::sync_dir(&folder)
}

/// A `tablespace_map` that the next start will use.
struct Mapped(Option<TablespaceMap>);

impl Mapped {
    fn read(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("tablespace_map");
        if !data_dir.join("backup_label").exists() {
            return Ok(Self(None));
        }
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self(None)),
            Err(error) => return Err(Error::io(&path, "cannot be read", error)),
        };
        let map = TablespaceMap::parse(&bytes).map_err(|error| {
            Error::path(ErrorKind::Corrupt, &path, "cannot be understood").with_source(error)
        })?;
        Ok(Self(Some(map)))
    }

    fn iter(&self) -> Vec<(u32, PathBuf)> {
        let entries = self.0.iter().flat_map(|map| &map.entries);
        entries
            .map(|(oid, path)| (*oid, PathBuf::from(OsStr::from_bytes(path))))
            .collect()
    }

    /// The map is part of the copy and is used up by the recovery it is for, so it is changed in place.
    fn rewrite(
        self,
        data_dir: &Path,
        remapped: &BTreeMap<u32, PathBuf>,
        instance: &Instance,
    ) -> Result<()> {
        let Some(mut map) = self.0 else { return Ok(()) };
        let before = map.clone();
        for (oid, path) in &mut map.entries {
            if let Some(place) = remapped.get(oid) {
                *path = place.as_os_str().as_bytes().to_owned();
            }
        }
        if map == before {
            return Ok(());
        }
        let path = data_dir.join("tablespace_map");
        durable::replace(&path, &map.to_bytes(), 0o600, &instance.user)
    }
}
