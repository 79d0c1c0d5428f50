//! What is known of installed programs from one command to the next.
//!
//! To look at an installation runs three programs, which takes longer than a small snapshot. What they said holds as long as they
//! are the same files, so it is kept in the home's cache. Whoever has doubts, the doctor, asks them. It names programs that we run, so
//! it counts only where nobody else could have written it.

use std::fs::{self, Metadata, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use neon_pgctl::{Installation, LearnedInstallations};

use crate::background::beside;
use crate::error::Result;
use crate::neon::Neon;
use crate::record;

/// Far more than is ever learned.
const LARGEST: u64 = 1 << 20;

/// Whether only we may have changed it.
fn is_ours(meta: &Metadata) -> bool {
    meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0
}

impl Neon {
    /// The installation in this folder; nothing where there is none that works.
    pub(crate) async fn installed_at(&self, bin_dir: &Path) -> Option<Installation> {
        let (neon, bin_dir) = (self.clone(), bin_dir.to_owned());
        let looked = beside(move || {
            let installed = neon.installed();
            if let Some(learned) = neon.recalled() {
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

    /// Forgets what programs said, also for the commands after this one.
    pub(crate) fn forget_installed(&self) {
        self.installed().clear();
        // Who cannot remove it has asked anew for itself.
        drop(record::remove(&self.learned()));
    }

    /// What was learned before, if we wrote it.
    fn recalled(&self) -> Option<LearnedInstallations> {
        let path = self.learned();
        let folder = fs::symlink_metadata(path.parent()?).ok()?;
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags.bits()).ok()?)
            .open(path)
            .ok()?;
        let meta = file.metadata().ok()?;
        if !(folder.is_dir() && is_ours(&folder) && meta.is_file() && is_ours(&meta)) {
            return None;
        }
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn keep_learned(&self, learned: &LearnedInstallations) -> Result<()> {
        record::folder(&self.home().path().join("cache"), 0o700)?;
        record::replace(&self.learned(), learned)
    }

    fn learned(&self) -> PathBuf {
        self.home().path().join("cache/installed")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::neon::Options;

    /// Programs that say they are 15.1.
    fn programs(root: &Path) -> PathBuf {
        let bin = root.join("bin");
        for folder in [&bin, &root.join("share")] {
            fs::create_dir(folder).unwrap();
        }
        for file in ["bin/libpqwalreceiver.so", "share/postgres.bki"] {
            fs::write(root.join(file), "").unwrap();
        }
        for (program, says) in [
            ("postgres", "postgres (PostgreSQL) 15.1".to_owned()),
            ("initdb", "initdb (PostgreSQL) 15.1".to_owned()),
            ("pg_config", bin.display().to_string()),
        ] {
            let path = bin.join(program);
            let text = format!("#!/bin/sh\necho '{says}'\n");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        bin
    }

    #[tokio::test]
    async fn what_others_could_have_written_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let bin = programs(root.path());
        let home = root.path().join("home");
        let another = || Neon::open(&home, Options::default()).unwrap();
        let asked = async || {
            let found = another().installed_at(&bin).await.unwrap();
            found.version().to_string()
        };
        assert_eq!(asked().await, "15.1");
        let file = home.join("cache/installed");
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode(&file), mode(&home.join("cache"))), (0o600, 0o700));
        // What it says shows whether it is believed.
        let written = fs::read_to_string(&file).unwrap();
        let other = written.replace("\"minor\": 1,", "\"minor\": 7,");
        assert_ne!(other, written);
        let ours = || {
            drop(fs::remove_file(&file));
            fs::write(&file, &other).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        };
        ours();
        assert_eq!(asked().await, "15.7");
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o620, 0o602] {
            ours();
            open(&file, mode);
            assert_eq!(asked().await, "15.1", "{mode:o}");
            assert_eq!(fs::read_to_string(&file).unwrap(), written);
        }
        ours();
        open(&home.join("cache"), 0o770);
        assert_eq!(asked().await, "15.1");
        open(&home.join("cache"), 0o700);
        let elsewhere = root.path().join("elsewhere");
        ours();
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        assert_eq!(asked().await, "15.1");
        if rustix::process::geteuid().is_root() {
            ours();
            std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
            assert_eq!(asked().await, "15.1");
        }
        // A doctor asks anew, for the commands after it, too.
        ours();
        let doctor = another();
        assert_eq!(asked().await, "15.7");
        doctor.forget_installed();
        assert!(!file.exists());
        assert_eq!(asked().await, "15.1");
    }
}
