//! What instances use on disk: a walk over all their files, which a listing of many cannot afford each time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::instances::{Instances, PgRecord};
use crate::operation::seconds;
use crate::record;

/// What was counted last.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Counted {
    bytes: u64,
    at: u64,
}

impl Instances<'_> {
    /// Bytes on disk of the data directories, tablespaces and logs of instances, by their ids. Those that were never
    /// counted are counted now, and of the others, the stalest first, as many as there is time for: what is left is as it
    /// was counted last. Blocks for that long.
    pub fn used<'a>(
        &self,
        records: impl IntoIterator<Item = &'a PgRecord>,
        time: Duration,
    ) -> BTreeMap<String, u64> {
        let place = self.0.home().cache("used-pg.json");
        let known: BTreeMap<String, Counted> = fs::read(&place)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let mut records: Vec<&PgRecord> = records.into_iter().collect();
        records.sort_by_key(|record| known.get(&record.id).map(|counted| counted.at));
        let (begun, now) = (Instant::now(), seconds(self.0.now()));
        let mut all = known.clone();
        for record in &records {
            if known.contains_key(&record.id) && begun.elapsed() >= time {
                break;
            }
            let bytes = match (&record.adopted, &record.pgdata) {
                (Some(adopted), _) => bytes_on_disk(&adopted.data_dir),
                (None, Some(elsewhere)) => bytes_on_disk(elsewhere),
                (None, None) => bytes_on_disk(&self.0.home().instance_folder(record.name.as_str())),
            };
            all.insert(record.id.clone(), Counted { bytes, at: now });
        }
        // Whoever asks for some of them forgets none of the others.
        let live: Vec<String> = self
            .records()
            .unwrap_or_default()
            .into_iter()
            .map(|record| record.id)
            .collect();
        all.retain(|id, _| live.contains(id));
        self.remember(&place, &all).unwrap_or(());
        records
            .iter()
            .filter_map(|record| Some((record.id.clone(), all.get(&record.id)?.bytes)))
            .collect()
    }

    /// What is lost is counted again: nothing is synced.
    fn remember(&self, place: &Path, all: &BTreeMap<String, Counted>) -> Option<()> {
        record::folder(&self.0.home().path().join("cache"), 0o700).ok()?;
        let temporary = place.with_extension(std::process::id().to_string());
        fs::write(&temporary, serde_json::to_vec(all).ok()?).ok()?;
        fs::rename(&temporary, place).ok()
    }
}

/// Bytes on disk below a folder. What goes while we look, or may not be looked at, counts nothing.
pub fn bytes_on_disk(folder: &Path) -> u64 {
    let mut sum = 0_u64;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            sum = sum.saturating_add(meta.blocks().saturating_mul(512));
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    sum
}
