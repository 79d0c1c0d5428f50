//! Names that are there, for completions. Nobody waits for them and nothing is made or said on the way: no home is made,
//! no distant storage is asked, and what cannot be read is not offered.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use neon_pg::{Neon, StorageType};

use crate::args::{Format, Global};
use crate::home;
use crate::progress::Progress;
use crate::settings::Settings;
use crate::surroundings::Surroundings;

/// What every home has.
const ABOUT: &str = "neon.json";
/// A person waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Instance,
    Snapshot,
    /// A snapshot, or the live state of an instance.
    State,
    /// An instance and the sign before a tag that is yet to be given.
    Tagged,
    Storage,
}

/// The home that somebody types a command for.
#[derive(Debug, Clone)]
pub(super) struct Names(Option<Neon>);

impl Names {
    /// Of the home that these words mean.
    pub(super) fn of(words: &[OsString], surroundings: &Surroundings) -> Self {
        let global = Global {
            home: home_in(words),
            pg_bin: Vec::new(),
            os_user: None,
            output: None,
            quiet: true,
        };
        let open = || {
            let settings = Settings::gather(&global, surroundings).ok()?;
            settings.home.join(ABOUT).is_file().then_some(())?;
            let silent = Arc::new(Progress::silent());
            let nobody = Arc::new(AtomicBool::new(false));
            home::open(&settings, surroundings, &silent, &nobody, true).ok()
        };
        Self(open())
    }

    /// All of a kind.
    pub(super) fn all(&self, kind: Kind) -> BTreeSet<String> {
        let Some(neon) = &self.0 else {
            return BTreeSet::new();
        };
        let instances = || {
            let records = neon.pg().records().unwrap_or_default();
            records.into_iter().map(|record| record.name.to_string())
        };
        match kind {
            Kind::Instance => instances().collect(),
            Kind::Tagged => instances().map(|name| format!("{name}@")).collect(),
            Kind::Storage => {
                let storages = neon.storages().list().unwrap_or_default();
                storages.iter().map(|(name, _)| name.to_string()).collect()
            }
            Kind::Snapshot => snapshots(neon),
            Kind::State => {
                let mut all = snapshots(neon);
                all.extend(instances().map(|name| format!("{name}@CURRENT")));
                all
            }
        }
    }
}

/// `--home DIR` or `--home=DIR` among the words.
fn home_in(words: &[OsString]) -> Option<PathBuf> {
    let mut words = words.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        if word == "--home" {
            return words.next().map(PathBuf::from);
        }
        if let Some(place) = word.to_str().and_then(|word| word.strip_prefix("--home=")) {
            return Some(PathBuf::from(place));
        }
    }
    None
}

/// The names of snapshots in storages that are folders: the others would have to be asked, for credentials and time.
fn snapshots(neon: &Neon) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else { return names };
    let ask = async {
        for (storage, record) in neon.storages().list().unwrap_or_default() {
            if record.kind != StorageType::Native {
                continue;
            }
            let Ok((listed, _)) = neon.snapshots().list(Some(&storage)).await else {
                continue;
            };
            let given = listed.iter().flat_map(|one| &one.listed.names);
            names.extend(given.map(ToString::to_string));
        }
    };
    // What was found by then is offered.
    let _late = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask).await });
    runtime.shutdown_background();
    names
}

impl Progress {
    fn silent() -> Self {
        Self::new(Format::Table, true, false)
    }
}
