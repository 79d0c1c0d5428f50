//! What a home knows of a provider besides what its user said: whether a bucket lets only one of two concurrent creates win.
//!
//! To find that out takes a hundred requests, and it stays as it is for long. So it is kept beside the storage's record, for a week,
//! and found out anew when the storage leads elsewhere, when the provider calls itself something else, when it contradicts,
//! and after `storage check`, `storage init` and `doctor`. That it does not is kept for a week whatever a later try finds, unless
//! the storage is attached or accepted anew: it may have been luck. Nothing of it is secret.
//!
//! It spares requests and decides nothing else, so nothing fails because it cannot be read, written or removed.

use std::path::PathBuf;
use std::sync::Arc;

use neon_storage::{Context, Locator, Storage};

use crate::error::{Error, Result};
use crate::events::Event;
use crate::name::Name;
use crate::record;
use crate::storages::Storages;

/// How far what is known counts for who opens a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// As far as it is proven to hold.
    Believed,
    /// Only that it does not enforce conditions, which no try takes back: what it does is looked at anew.
    Doubted,
}

impl Storages<'_> {
    /// Opens the storage of this name at its locator, with what is known of it.
    pub(super) async fn open_at(
        &self,
        name: &Name,
        locator: &Locator,
        known: Known,
    ) -> Result<Arc<dyn Storage>> {
        let context = self.context_of(name, known);
        let opened = self.0.options().registry.open(locator, &context).await;
        opened.map_err(|error| Error::storage(format!("storage {name}"), error))
    }

    fn context_of(&self, name: &Name, known: Known) -> Context {
        let context = self.0.options().context.clone();
        #[cfg(feature = "s3")]
        let context = kept::with_memory(context, self.0, name, known);
        #[cfg(not(feature = "s3"))]
        let _nothing_is_known_of = (name, known);
        context
    }

    /// Forgets what is known of a storage. Who cannot is told that by the way.
    pub(crate) fn forget_probed(&self, name: &Name) {
        let path = self.probed(name);
        // Where nothing may be removed, that nothing is there is not what would be said.
        if path.symlink_metadata().is_err() {
            return;
        }
        if let Err(error) = record::remove(&path) {
            self.0.tell(Event::Note(format!(
                "what was known of storage {name} could not be forgotten: {}",
                crate::upkeep::with_causes(&error)
            )));
        }
    }

    /// Has it found out anew what a storage can do, by who writes to it next. That it cannot stays known.
    pub(crate) async fn doubt_probed(&self, name: &Name) {
        if self.probed(name).symlink_metadata().is_err() {
            return;
        }
        let _lock = self.lock(name).await;
        #[cfg(feature = "s3")]
        if kept::is_a_no(self.0, name) {
            return;
        }
        self.forget_probed(name);
    }

    fn probed(&self, name: &Name) -> PathBuf {
        self.0.home().storages().join(format!("{name}.probed"))
    }
}

#[cfg(feature = "s3")]
mod kept {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;

    use neon_storage::{Context, ProbeFinding, ProbeMemory};
    use serde::{Deserialize, Serialize};

    use super::Known;
    use crate::name::Name;
    use crate::neon::Neon;
    use crate::operation::seconds;
    use crate::record::{self, Lock};

    /// With a memory, unless who embeds us brought one.
    pub(super) fn with_memory(
        mut context: Context,
        neon: &Neon,
        name: &Name,
        known: Known,
    ) -> Context {
        let memory = context.probe_memory.take();
        let memory = memory.unwrap_or_else(|| Arc::new(OfStorage::new(neon, name)));
        context.probe_memory = Some(match known {
            Known::Believed => memory,
            Known::Doubted => Arc::new(Doubting(memory)),
        });
        context
    }

    /// Whether it is known of a storage that it does not refuse to create what is there.
    pub(super) fn is_a_no(neon: &Neon, name: &Name) -> bool {
        let known = OfStorage::new(neon, name).known();
        known.is_some_and(|(known, _)| !known.create_only)
    }

    /// Remembers what was found, and of what was found before only what no try takes back.
    #[derive(Debug)]
    struct Doubting(Arc<dyn ProbeMemory>);

    impl ProbeMemory for Doubting {
        fn recall(&self, place: &str) -> Option<ProbeFinding> {
            self.0.recall(place).filter(|known| !known.create_only)
        }

        fn keep(&self, finding: &ProbeFinding) {
            self.0.keep(finding);
        }

        fn forget(&self, place: &str) {
            self.0.forget(place);
        }
    }

    /// For so long nobody asks again.
    const HOLDS: Duration = Duration::from_secs(7 * 24 * 60 * 60);

    /// What was found out, as it is written down.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Kept {
        /// Of which place: endpoint, region, addressing, bucket.
        place: String,
        create_only: bool,
        compare_and_swap: bool,
        /// What the provider called itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        /// When, in seconds since 1970.
        at: u64,
    }

    /// The memory of one storage.
    #[derive(Debug)]
    struct OfStorage {
        neon: Neon,
        name: Name,
    }

    impl OfStorage {
        fn new(neon: &Neon, name: &Name) -> Self {
            Self {
                neon: neon.clone(),
                name: name.clone(),
            }
        }

        fn path(&self) -> PathBuf {
            self.neon.storages().probed(&self.name)
        }

        /// What is kept, and for how much longer it holds. What cannot be read is found out anew and written over.
        fn known(&self) -> Option<(Kept, Duration)> {
            let kept: Kept = record::read(&self.path()).ok()??;
            let now = seconds(self.neon.now());
            // A clock that was turned back says nothing about age.
            let age = Duration::from_secs(now.checked_sub(kept.at)?);
            let left = HOLDS.checked_sub(age).filter(|left| !left.is_zero())?;
            Some((kept, left))
        }

        /// That nobody else writes it down, nor detaches the storage. It is held for moments.
        fn alone(&self) -> Option<Lock> {
            const TRIES: u32 = 40;
            let path = self.neon.storages().lock_path(&self.name);
            (0..TRIES).find_map(|tried| {
                if tried > 0 {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Lock::free(&path)
            })
        }
    }

    impl ProbeMemory for OfStorage {
        fn recall(&self, place: &str) -> Option<ProbeFinding> {
            let (kept, left) = self.known()?;
            (kept.place == place).then(|| {
                ProbeFinding::new(kept.place, kept.create_only, kept.compare_and_swap)
                    .with_server(kept.server)
                    .with_holds(left)
            })
        }

        fn keep(&self, finding: &ProbeFinding) {
            let alone = self.alone();
            if alone.is_none() && finding.create_only {
                // Somebody may be writing down that it is not so. Who opens it next finds it out again.
                return;
            }
            // Of one that was detached meanwhile nothing stays.
            let attached = || self.neon.storages().get(&self.name).is_ok();
            let earlier = self.recall(&finding.place);
            let Some(finding) = finding.beside(earlier.as_ref()).filter(|_| attached()) else {
                return;
            };
            let kept = Kept {
                at: seconds(self.neon.now()),
                place: finding.place,
                create_only: finding.create_only,
                compare_and_swap: finding.compare_and_swap,
                server: finding.server,
            };
            if let Err(error) = record::replace(&self.path(), &kept) {
                self.neon.warn_of_memory(|| {
                    format!(
                        "what storage {} can do could not be written down, and will be tried again ({error})",
                        self.name
                    )
                });
            }
            if alone.is_none() && !attached() {
                self.forget(&kept.place);
            }
        }

        fn forget(&self, _: &str) {
            // What stays is asked for in vain, and contradicts again.
            drop(record::remove(&self.path()));
        }
    }
}
