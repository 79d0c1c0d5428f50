//! What a home knows of a provider besides what its user said: whether a bucket lets only one of two concurrent creates win.
//!
//! To find that out takes a hundred requests, and it stays as it is for long. So it is kept beside the storage's record, for a week,
//! and found out anew when the storage leads elsewhere, when the provider calls itself something else, when it contradicts,
//! and after `storage check`, `storage init` and `doctor`. Nothing of it is secret.

use std::path::PathBuf;
use std::sync::Arc;

use neon_storage::{Context, Locator, Storage};

use crate::error::{Error, Result};
use crate::name::Name;
use crate::record;
use crate::storages::Storages;

impl Storages<'_> {
    /// Opens the storage of this name at its locator, with what is known of it.
    pub(super) async fn open_at(&self, name: &Name, locator: &Locator) -> Result<Arc<dyn Storage>> {
        let context = self.context_of(name);
        let opened = self.0.options().registry.open(locator, &context).await;
        opened.map_err(|error| Error::storage(format!("storage {name}"), error))
    }

    fn context_of(&self, name: &Name) -> Context {
        let context = self.0.options().context.clone();
        #[cfg(feature = "s3")]
        let context = kept::with_memory(context, self.0, name);
        #[cfg(not(feature = "s3"))]
        let _nothing_is_known_of = name;
        context
    }

    /// Has it found out anew what a storage can do, by who writes to it next.
    pub(crate) fn forget_probed(&self, name: &Name) -> Result<()> {
        record::remove(&self.probed(name))
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

    use crate::events::Event;
    use crate::name::Name;
    use crate::neon::Neon;
    use crate::operation::seconds;
    use crate::record;

    pub(super) fn with_memory(mut context: Context, neon: &Neon, name: &Name) -> Context {
        context.probe_memory = Some(Arc::new(OfStorage {
            neon: neon.clone(),
            name: name.clone(),
        }));
        context
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
        fn path(&self) -> PathBuf {
            self.neon.storages().probed(&self.name)
        }
    }

    impl ProbeMemory for OfStorage {
        fn recall(&self, place: &str) -> Option<ProbeFinding> {
            // One that cannot be read is found out anew and written over.
            let kept: Kept = record::read(&self.path()).ok()??;
            let now = seconds(self.neon.now());
            // A clock that was turned back says nothing about age.
            let age = now.checked_sub(kept.at)?;
            (kept.place == place && age < HOLDS.as_secs()).then(|| {
                ProbeFinding::new(kept.place, kept.create_only, kept.compare_and_swap)
                    .with_server(kept.server)
            })
        }

        fn keep(&self, finding: &ProbeFinding) {
            let kept = Kept {
                place: finding.place.clone(),
                create_only: finding.create_only,
                compare_and_swap: finding.compare_and_swap,
                server: finding.server.clone(),
                at: seconds(self.neon.now()),
            };
            // Of one that was detached meanwhile nothing stays.
            if self.neon.storages().get(&self.name).is_err() {
                return;
            }
            if let Err(error) = record::replace(&self.path(), &kept) {
                self.neon.tell(Event::Warning(format!(
                    "what storage {} can do could not be written down, and will be tried again ({error})",
                    self.name
                )));
            }
        }

        fn forget(&self, _: &str) {
            // What stays is asked for in vain, and contradicts again.
            drop(record::remove(&self.path()));
        }
    }
}
