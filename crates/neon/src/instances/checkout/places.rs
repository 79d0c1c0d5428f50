//! Where the files of a snapshot go when an instance goes back to it: which disk each tablespace is on, so that room is
//! asked of the right ones.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use neon_pagestore::Facts;
use neon_pagestore::restore::RestorePlan;
use neon_pg_layout::Oid;
use neon_pgctl::Instance;
use neon_snapshot_format::EntryKind;
use neon_snapshot_format::pgdata::ExistingDirectory;

use crate::instances::restore::SPARE;
use crate::instances::{Instances, PgRecord};
use crate::snapshots::room::Place;

impl Instances<'_> {
    /// Where the files of a snapshot go: tablespaces that are there may be on disks of their own, others are put beside the
    /// instance.
    pub(super) fn places(
        &self,
        record: &PgRecord,
        instance: &Instance,
        directory: &ExistingDirectory,
        wanted: BTreeMap<Option<Oid>, u64>,
        new: &BTreeMap<Oid, PathBuf>,
    ) -> Vec<Place> {
        let mut sizes: BTreeMap<Option<Oid>, (u64, u64)> = BTreeMap::new();
        for (space, bytes) in wanted {
            sizes.entry(space).or_default().0 = bytes;
        }
        for entry in directory.entries() {
            let space = entry.path.tablespace().map(|(oid, _)| oid);
            let present = &mut sizes.entry(space).or_default().1;
            *present = present.saturating_add(entry.size());
        }
        let data = instance.data_dir();
        let place = |space: Option<Oid>| match space {
            None => data.to_owned(),
            Some(oid) => {
                let link = data.join("pg_tblspc").join(oid.to_string());
                match new.get(&oid) {
                    Some(place) => place.clone(),
                    None if link.exists() => link,
                    None => self.tablespaces(record).join(oid.to_string()),
                }
            }
        };
        sizes
            .into_iter()
            .map(|(space, (bytes, present))| Place {
                path: place(space),
                bytes,
                present,
                // The server writes log and temporary files here.
                spare: if space.is_none() { SPARE } else { 0 },
            })
            .collect()
    }
}

/// The new tablespaces that go where they were: those of the instance's own, if nobody has the place.
pub(super) fn own_places(
    record: &PgRecord,
    plan: &RestorePlan,
    facts: &Facts,
) -> BTreeMap<Oid, PathBuf> {
    if facts.instance.as_ref() != Some(&record.id) {
        return BTreeMap::new();
    }
    let each = plan
        .new_tablespaces()
        .iter()
        .filter_map(|entry| match &entry.kind {
            EntryKind::Tablespace { oid, location } => {
                let was = Path::new(OsStr::from_bytes(location.as_deref()?));
                is_free(was).then(|| (*oid, was.to_owned()))
            }
            _ => None,
        });
    each.collect()
}

/// Whether a tablespace can be made there.
fn is_free(place: &Path) -> bool {
    match std::fs::read_dir(place) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => {
            std::fs::symlink_metadata(place).is_err() && place.parent().is_some_and(Path::is_dir)
        }
    }
}
