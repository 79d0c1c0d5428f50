//! The files of a run: its own folder beside the log, and the signal file in the data directory.

use std::fs;
use std::path::{Path, PathBuf};

use neon_pg_layout::{ClusterState, TimelineId, WalFileName};

use crate::durable::{self, Scrap};
use crate::error::{Error, ErrorKind, Result};
use crate::instance::{Instance, fits_a_socket};
use crate::os_user::OsUser;
use crate::recovery::source;

/// The folder of a run: its socket, its access rules, the notes of its command. Goes when dropped.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    _scrap: Scrap,
}

impl RunFolder {
    /// Creates it where the instance has its socket, or in `/tmp` when the path is too long or not plain there.
    pub(crate) fn create(instance: &Instance) -> Result<Self> {
        instance.ensure_socket_dir()?;
        instance.ensure_log()?;
        let name = format!("r{}", durable::random_hex(6)?);
        let mut path = instance.socket_dir().join(&name);
        // It becomes part of commands, as the server's own relative paths do, without any quoting.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
        if !fits_a_socket(&path)
            || !path
                .as_os_str()
                .as_encoded_bytes()
                .iter()
                .all(|b| plain(*b))
        {
            path = Path::new("/tmp").join(format!("neon-{name}"));
        }
        durable::create_dir(&path, 0o700, instance.os_user())?;
        let folder = Self {
            _scrap: Scrap(path.clone()),
            path,
        };
        let user = instance.os_user();
        durable::write_new(&folder.hba_file(), b"local all all reject\n", 0o600, user)?;
        durable::write_new(&folder.ident_file(), b"", 0o600, user)?;
        durable::create_dir(&source::taken_dir(&folder.path), 0o700, user)?;
        // The copy's own may name files that are not here, or values this build refuses.
        durable::write_new(&folder.config_file(), b"", 0o600, user)?;
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn hba_file(&self) -> PathBuf {
        self.path.join("hba")
    }

    pub(crate) fn ident_file(&self) -> PathBuf {
        self.path.join("ident")
    }

    pub(crate) fn pid_file(&self) -> PathBuf {
        self.path.join("pid")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.path.join("conf")
    }

    /// Lets in, without a password, whoever reaches the folder: the server's user and root.
    pub(crate) fn let_in(&self, user: &OsUser) -> Result<()> {
        durable::replace(&self.hba_file(), b"local all all trust\n", 0o600, user)
    }

    /// Makes timelines look taken: the server looks for the first number without a history.
    pub(crate) fn take_timelines(
        &self,
        numbers: impl Iterator<Item = u32>,
        user: &OsUser,
    ) -> Result<()> {
        for number in numbers {
            let Ok(timeline) = TimelineId::new(number) else {
                continue;
            };
            let name = WalFileName::History(timeline).to_string();
            durable::write_new(
                &source::taken_dir(&self.path).join(name),
                b"taken\n",
                0o600,
                user,
            )?;
        }
        Ok(())
    }

    /// What the WAL source did not have so far.
    pub(crate) fn misses(&self) -> Vec<source::Miss> {
        let text = fs::read(self.path.join(source::MISSES)).unwrap_or_default();
        source::parse_misses(&String::from_utf8_lossy(&text))
    }
}

const RECOVERY: &str = "recovery.signal";
const STANDBY: &str = "standby.signal";

/// The signal file of a run.
///
/// As long as nothing was replayed, dropping it puts things back as they were. After that a data directory
/// that is not promoted keeps `recovery.signal` and nothing else: without it a plain start would take it for
/// a crashed primary.
#[derive(Debug)]
pub(crate) struct Signals<'a> {
    instance: &'a Instance,
    had_recovery: bool,
    had_standby: bool,
    control: Vec<u8>,
    settled: bool,
}

impl<'a> Signals<'a> {
    /// Puts `standby.signal` (the server waits at the end of WAL) or `recovery.signal` in place.
    pub(crate) fn set(instance: &'a Instance, standby: bool) -> Result<Self> {
        let data_dir = instance.data_dir();
        let has = |name| fs::symlink_metadata(data_dir.join(name)).is_ok();
        let signals = Self {
            instance,
            had_recovery: has(RECOVERY),
            had_standby: has(STANDBY),
            control: control_bytes(data_dir)?,
            settled: false,
        };
        let (wanted, other) = if standby {
            (STANDBY, RECOVERY)
        } else {
            (RECOVERY, STANDBY)
        };
        signals.create(wanted)?;
        signals.remove(other)?;
        durable::sync_dir(data_dir)?;
        Ok(signals)
    }

    /// The server ended in recovery: the next start must go on with it.
    pub(crate) fn keep_recovery(mut self) -> Result<()> {
        self.settled = true;
        self.only_recovery()
    }

    /// The server was promoted, and has removed the file itself.
    ///
    /// It did so with archiving off, and an archiver that is turned on later would never look at the history
    /// of the new timeline, without which nobody finds the way to it. So it is marked to be archived.
    pub(crate) fn promoted(mut self, timeline: TimelineId) -> Result<()> {
        self.settled = true;
        self.remove(RECOVERY)?;
        self.remove(STANDBY)?;
        let data_dir = self.instance.data_dir();
        durable::sync_dir(data_dir)?;
        let status = data_dir.join("pg_wal/archive_status");
        let ready = status.join(format!("{}.ready", WalFileName::History(timeline)));
        if !ready.exists() {
            durable::write_new(&ready, b"", 0o600, self.instance.os_user())?;
            durable::sync_dir(&status)?;
        }
        Ok(())
    }

    fn only_recovery(&self) -> Result<()> {
        self.create(RECOVERY)?;
        self.remove(STANDBY)?;
        durable::sync_dir(self.instance.data_dir())
    }

    fn create(&self, name: &str) -> Result<()> {
        let path = self.instance.data_dir().join(name);
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        durable::write_new(&path, b"", 0o600, self.instance.os_user())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.instance.data_dir().join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(&path, "cannot be removed", error))
            }
            _ => Ok(()),
        }
    }

    fn restore(&self) -> Result<()> {
        let data_dir = self.instance.data_dir();
        if control_bytes(data_dir)? != self.control {
            return match self.instance.control_file()?.state {
                // Promoted and not yet told so.
                ClusterState::InProduction | ClusterState::ShutDown => Ok(()),
                _ => self.only_recovery(),
            };
        }
        for (name, had) in [(RECOVERY, self.had_recovery), (STANDBY, self.had_standby)] {
            if had {
                self.create(name)?;
            } else {
                self.remove(name)?;
            }
        }
        durable::sync_dir(data_dir)
    }
}

impl Drop for Signals<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if let Err(error) = self.restore() {
            tracing::warn!(%error, "a signal file may not be as it should");
        }
    }
}

fn control_bytes(data_dir: &Path) -> Result<Vec<u8>> {
    let path = data_dir.join("global/pg_control");
    fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::path(
            ErrorKind::Corrupt,
            &path,
            "is missing: the data directory is not complete",
        ),
        _ => Error::io(&path, "cannot be read", error),
    })
}
