//! The storage that `storage_dest` becomes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use neon_storage::Locator;

use super::SnapshotFirst;
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::storages::{StorageRecord, Storages};

/// What it is called.
const DEST: &str = "dest";

/// A storage to use.
pub(super) struct Dest {
    pub(super) name: Name,
    /// Whether it was attached just now.
    new: bool,
    /// The folders that were made for it.
    made: Vec<PathBuf>,
}

impl Dest {
    /// One that is attached.
    pub(super) fn of(name: Name) -> Self {
        Self {
            name,
            new: false,
            made: Vec::new(),
        }
    }
}

impl SnapshotFirst<'_> {
    /// The storage at this address, attached if it is not. One that is attached with other options is refused: which
    /// of them hold (is it encrypted?) must not be guessed.
    pub(super) async fn dest(
        &self,
        text: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<Dest> {
        let storages = self.0.storages();
        let place = Storages::place(None, Some(text), None, None)?;
        for (name, record) in storages.list()? {
            let endpoint = options.get("endpoint");
            let elsewhere = endpoint.is_some() && endpoint != record.options.get("endpoint");
            if elsewhere || !is_same(&record, &place)? {
                continue;
            }
            if let Some(other) = options.keys().find(|key| differs(key, options, &record)) {
                let known = record.options.get(other.as_str());
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("storage {name}"),
                    match known {
                        Some(known) => format!("is attached with {other}={known}"),
                        None => format!("is attached without {other}"),
                    },
                )
                .hinted(format!(
                    "leave that option out, or attach it anew: neon storage detach {name}"
                )));
            }
            return Ok(Dest::of(name));
        }
        let made = missing(&place);
        let mut number = 1_u32;
        loop {
            let name: Name = match number {
                1 => DEST.parse()?,
                _ => format!("{DEST}{number}").parse()?,
            };
            match storages.attach(&name, &place, options.clone()).await {
                Ok(_) => {
                    return Ok(Dest {
                        name,
                        new: true,
                        made,
                    });
                }
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => {
                    remove_empty(&made);
                    return Err(error);
                }
            }
            number = number.saturating_add(1);
        }
    }

    /// Forgets a storage that was attached for what failed: tried again with other options, it begins anew.
    pub(super) async fn unless_failed<T>(&self, dest: Dest, done: Result<T>) -> Result<T> {
        if done.is_err() && dest.new {
            // One that something is kept in already stays.
            let detached = self.0.storages().detach(&dest.name).await;
            if detached.is_ok() {
                remove_empty(&dest.made);
            }
        }
        done
    }
}

/// The folders on the way to a place that are not there yet, the innermost first.
fn missing(place: &Locator) -> Vec<PathBuf> {
    let path = place.file_path().map(std::path::absolute);
    let path = path.and_then(std::io::Result::ok).unwrap_or_default();
    let missing = path.ancestors().take_while(|path| !path.exists());
    missing.map(Path::to_owned).collect()
}

/// Removes folders in which nothing is.
fn remove_empty(folders: &[PathBuf]) {
    for folder in folders {
        if fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

fn differs(key: &str, options: &BTreeMap<String, String>, record: &StorageRecord) -> bool {
    let value = |options: &BTreeMap<String, String>| {
        let value = options.get(key).cloned();
        value.filter(|value| key != "encryption" || value != "off")
    };
    value(options) != value(&record.options)
}

pub(super) fn is_same(record: &StorageRecord, place: &Locator) -> Result<bool> {
    let known =
        Locator::parse(&record.locator).map_err(|error| Error::storage("a storage", error))?;
    Ok(match (known.file_path(), place.file_path()) {
        (Some(known), Some(place)) => resolved(known) == resolved(place),
        _ => known.to_string() == place.to_string(),
    })
}

/// Whether a place is where a storage is, or in it.
pub(super) fn holds(record: &StorageRecord, place: &Locator) -> Result<bool> {
    let known =
        Locator::parse(&record.locator).map_err(|error| Error::storage("a storage", error))?;
    let (Some(known), Some(place)) = (known.file_path(), place.file_path()) else {
        let (known, place) = (known.to_string(), place.to_string());
        let rest = place.strip_prefix(known.trim_end_matches('/'));
        return Ok(rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    };
    // What is to be written there is not there yet, and neither may be what is above it.
    let place = std::path::absolute(place).unwrap_or_else(|_| place.to_owned());
    let there = place.ancestors().find(|path| path.exists());
    let known = resolved(known);
    Ok(place.starts_with(&known) || there.is_some_and(|there| resolved(there).starts_with(&known)))
}

fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .unwrap_or_else(|_| path.to_owned())
}
