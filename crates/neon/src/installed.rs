//! What is known of installed programs from one command to the next.
//!
//! To look at an installation runs three programs, which takes longer than a small snapshot. What they said holds as long as they
//! are the same files, so it is kept in the home's cache. Whoever has doubts, the doctor, asks them.

use std::path::{Path, PathBuf};

use neon_pgctl::{Installation, LearnedInstallations};

use crate::background::beside;
use crate::error::Result;
use crate::neon::Neon;
use crate::record;

impl Neon {
    /// The installation in this folder; nothing where there is none that works.
    pub(crate) async fn installed_at(&self, bin_dir: &Path) -> Option<Installation> {
        let (neon, bin_dir) = (self.clone(), bin_dir.to_owned());
        let looked = beside(move || {
            let installed = neon.installed();
            if let Ok(Some(learned)) = record::read::<LearnedInstallations>(&neon.learned()) {
                installed.recall(learned);
            }
            let found = installed.at(&bin_dir);
            if let Some(learned) = installed.learned() {
                // Who cannot keep it asks again.
                drop(neon.keep_learned(&learned));
            }
            Ok(found.ok())
        });
        looked.await.ok()?
    }

    fn keep_learned(&self, learned: &LearnedInstallations) -> Result<()> {
        record::folder(&self.home().path().join("cache"), 0o700)?;
        record::replace(&self.learned(), learned)
    }

    fn learned(&self) -> PathBuf {
        self.home().path().join("cache/installed")
    }
}
