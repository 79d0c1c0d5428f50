//! Disks that are not mounted: what is on them is out of sight, and not gone.
//!
//! Two signs tell one from the other. The folder of all instances has a file that is called after the home: where it is missing, a
//! folder is seen that a disk was mounted on. And a record remembers, of the data directory and of each tablespace, the mount
//! point that it is behind: nothing that is not there is taken for gone as long as nothing is mounted there.
//!
//! A server whose tablespace is out of sight is still looked at and stopped; only what reads, writes or gives up what is in there
//! asks for it. A tablespace that no link leads to any more was dropped, or moved, and its disk is nobody's concern.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neon_pg_layout::{PgMajor, tablespace_version_directory};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::home::Home;
use crate::instances::{Instances, PgRecord};

impl Home {
    /// An error when the folder of instances, or the trash, is not the one that this home has: its disk is not mounted.
    pub(crate) fn is_mounted(&self) -> Result<()> {
        let hidden = |folder: &Path, again: String| {
            Error::new(
                ErrorKind::Environment,
                folder.display().to_string(),
                "is not the folder that this home has there: its disk is not mounted",
            )
            .hinted(format!(
                "mount it; what makes the folder here the one of this home, if it was copied, or the disk with all that is on it \
                 is lost for good: mkdir -p {}{again}",
                quoted(&led_to(folder))
            ))
        };
        let trash = self.path().join("trash");
        if !trash.is_dir() {
            return Err(hidden(&trash, String::new()));
        }
        let (pg, sign) = (self.path().join("pg"), self.sign_of_pg());
        if pg.is_dir() && (sign.exists() || !self.is_signed() && !self.is_without_its_instances()) {
            return Ok(());
        }
        Err(hidden(&pg, format!(" && touch {}", quoted(&sign))))
    }
}

impl Instances<'_> {
    /// An error when the data directory of an instance is out of sight: nothing may be made of that, and nothing removed.
    pub(crate) fn is_mounted(&self, record: &PgRecord) -> Result<()> {
        if record.adopted.is_none() {
            self.0.home().is_mounted()?;
        }
        self.are_seen(record, |place| self.is_own(record, place))
    }

    /// As [`is_mounted`](Self::is_mounted), and so is every tablespace that it has, as far as that can be known.
    pub(crate) fn is_in_sight(&self, record: &PgRecord) -> Result<()> {
        self.is_mounted(record)?;
        let data = self.data_dir(record);
        if !is_seen(&data) {
            return self.are_seen(record, |_| true);
        }
        let links = tablespaces(&data);
        self.are_seen(record, |place| {
            links.iter().any(|(_, target)| target == place)
        })
    }

    /// As [`is_in_sight`](Self::is_in_sight) while links may be missing that are to be there again.
    pub(super) fn is_all_in_sight(&self, record: &PgRecord) -> Result<()> {
        self.is_mounted(record)?;
        self.are_seen(record, |_| true)
    }

    /// Whether a place is that of the data directory.
    fn is_own(&self, record: &PgRecord, place: &Path) -> bool {
        record.pgdata.as_deref() == Some(place) || self.data_dir(record) == place
    }

    /// An error when a place that counts is on a disk that is not mounted.
    fn are_seen(&self, record: &PgRecord, counts: impl Fn(&Path) -> bool) -> Result<()> {
        for (place, point) in &record.disks {
            let (place, point) = (self.absolute(place), self.absolute(point));
            if counts(&place) && !is_seen(&place) && !is_mount_point(&point) {
                let hint = if self.is_own(record, &place) {
                    format!(
                        "mount it; if it is lost for good: neon pg destroy --lost {}",
                        record.name
                    )
                } else {
                    let own = version_directory(record).unwrap_or_default();
                    self.without(record, &place.join(own))
                };
                return Err(Error::new(
                    ErrorKind::Environment,
                    format!("pg {}", record.name),
                    format!(
                        "has {} on a disk that is not mounted: nothing is at {}",
                        place.display(),
                        point.display()
                    ),
                )
                .hinted(hint));
            }
        }
        Ok(())
    }

    /// As [`is_mounted`](Self::is_mounted), of one in the trash.
    pub(super) fn is_trash_mounted(&self, record: &PgRecord) -> Result<()> {
        self.0.home().is_mounted()?;
        let remains = self.remains(record);
        let Some(place) = record.pgdata.as_ref() else {
            return Ok(());
        };
        let point = record.disks.get(&self.relative(place));
        let hidden = point.filter(|point| !is_mount_point(&self.absolute(point)));
        // Beside the folder of the home.
        let mut beside = remains.iter().skip(1);
        let (Some(point), false) = (hidden, place.exists() || beside.any(|left| left.exists()))
        else {
            return Ok(());
        };
        let away = remains.last().unwrap_or(place);
        Err(Error::new(
            ErrorKind::Environment,
            format!("pg {}", record.name),
            format!(
                "is on a disk that is not mounted at {}",
                self.absolute(point).display()
            ),
        )
        .hinted(format!(
            "mount it; if it is lost for good: mkdir -p {}, and neon pg trash --empty {}",
            quoted(away),
            record.name
        )))
    }

    /// As [`is_mounted`](Self::is_mounted), and all tablespaces are there: a server that misses one loses what it has to
    /// write there, and a copy would miss what is in it.
    pub(crate) fn is_whole(&self, record: &PgRecord) -> Result<()> {
        self.is_in_sight(record)?;
        let Some(own) = version_directory(record) else {
            return Ok(());
        };
        for (link, target) in tablespaces(&self.data_dir(record)) {
            let inside = target.join(&own);
            if is_nowhere(&inside) && stays_without(&link, &inside) {
                return Err(Error::new(
                    ErrorKind::Environment,
                    format!("pg {}", record.name),
                    format!(
                        "has tablespace {} in {}, where nothing of it is: is its disk mounted?",
                        link.file_name().unwrap_or_default().display(),
                        target.display()
                    ),
                )
                .hinted(self.without(record, &inside)));
            }
        }
        Ok(())
    }

    /// Remembers the file systems that an instance is on now. Its lock is held.
    pub(crate) fn remember_disks(&self, record: &PgRecord) -> Result<()> {
        let mut disks = self.disks(record);
        let links = tablespaces(&self.data_dir(record));
        for (kept, behind) in &record.disks {
            let (place, point) = (self.absolute(kept), self.absolute(behind));
            if is_mount_point(&point) {
                continue;
            }
            if !is_seen(&place) {
                // Its disk went while its server ran.
                if links.iter().any(|(_, target)| *target == place) {
                    disks.insert(kept.clone(), behind.clone());
                }
            } else {
                self.0.tell(Event::Warning(format!(
                    "pg {}: {} was on a disk mounted at {}, where nothing is mounted now; what is there now is on another",
                    record.name,
                    place.display(),
                    point.display()
                )));
            }
        }
        if disks == record.disks {
            return Ok(());
        }
        self.update(&record.name, |record| record.disks = disks)
    }

    /// The mount points behind which a data directory, which may not be there yet, and its tablespaces are.
    pub(super) fn disks(&self, record: &PgRecord) -> BTreeMap<PathBuf, PathBuf> {
        let data = self.data_dir(record);
        let places = tablespaces(&data).into_iter().map(|(_, target)| target);
        let own = record.pgdata.clone().unwrap_or(data);
        let places = std::iter::once(own).chain(places);
        places
            .filter_map(|place| {
                let point = self.mount_point_of(&place)?;
                Some((self.relative(&place), self.relative(&point)))
            })
            .collect()
    }

    /// The mount point that a path is behind, unless it is there whenever the folder of instances is.
    fn mount_point_of(&self, place: &Path) -> Option<PathBuf> {
        let there = place.ancestors().find(|path| path.exists())?;
        let real = fs::canonicalize(there).ok()?;
        let point = real.ancestors().find(|path| is_mount_point(path))?;
        let pg = fs::canonicalize(self.0.home().path().join("pg")).ok()?;
        // Behind the same as the others.
        (!pg.starts_with(point) && point.parent().is_some()).then(|| point.to_owned())
    }

    /// Below the home relative to it, so that it can be moved.
    fn relative(&self, path: &Path) -> PathBuf {
        let home = self.0.home().path();
        path.strip_prefix(home).unwrap_or(path).to_owned()
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        self.0.home().path().join(path)
    }

    /// How to go on without a tablespace. Its server must be able to write there, and to remove it.
    fn without(&self, record: &PgRecord, inside: &Path) -> String {
        let (place, inside) = (quoted(inside.parent().unwrap_or(inside)), quoted(inside));
        let make = match self.owner(record) {
            Some(owner) => format!("install -d -o {owner} -m 700 {place} {inside}"),
            None => format!("mkdir -p {inside}"),
        };
        format!(
            "mount it; if it is lost for good: {make}, start the server, and drop what was in that tablespace; \
             or give up the whole instance: neon pg destroy --lost {}",
            record.name
        )
    }

    /// Who an instance belongs to, where that is not who runs this.
    fn owner(&self, record: &PgRecord) -> Option<String> {
        let user = self.0.os_user().ok().flatten()?;
        let owner = fs::metadata(self.data_dir(record)).map_or(user.uid(), |facts| facts.uid());
        let name = user.name().filter(|_| user.uid() == owner);
        Some(name.map_or_else(|| owner.to_string(), str::to_owned))
    }
}

/// What a tablespace has of a cluster.
fn version_directory(record: &PgRecord) -> Option<String> {
    let major = record.major.parse::<PgMajor>().ok()?;
    Some(tablespace_version_directory(major.layout()))
}

/// The links of a data directory to its tablespaces, with where they lead.
fn tablespaces(data: &Path) -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(data.join("pg_tblspc"));
    let links = entries.into_iter().flatten().flatten();
    let links = links.map(|entry| entry.path());
    links
        .filter_map(|link| Some((link.clone(), fs::read_link(link).ok()?)))
        .filter(|(_, target)| target.is_absolute() && target.to_str().is_some())
        .collect()
}

/// Whether nothing is at a path. What may not be looked at is not nothing: its server may well be able to.
fn is_nowhere(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        matches!(error.kind(), NotFound | NotADirectory)
    })
}

/// Whether a tablespace has nothing of the cluster, and is not about to be dropped.
fn stays_without(link: &Path, inside: &Path) -> bool {
    std::thread::sleep(Duration::from_millis(100));
    fs::symlink_metadata(link).is_ok() && is_nowhere(inside)
}

/// Where the last of a chain of links leads, there or not.
pub(crate) fn led_to(path: &Path) -> PathBuf {
    let mut at = path.to_owned();
    // As many as the system follows.
    for _ in 0..40 {
        let Ok(target) = fs::read_link(&at) else {
            break;
        };
        at = at.parent().unwrap_or(Path::new("/")).join(target);
    }
    at
}

/// A path as a shell reads it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:,@%".contains(&byte);
    if text.bytes().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whether something is in a folder.
fn is_seen(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether a file system, or a part of one, is mounted at a path.
fn is_mount_point(path: &Path) -> bool {
    let Some(parent) = path.parent() else {
        return true;
    };
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let asked = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::TYPE);
    if let Ok(facts) = asked
        && facts
            .stx_attributes_mask
            .contains(StatxAttributes::MOUNT_ROOT)
    {
        return facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    }
    let disk = |path: &Path| fs::symlink_metadata(path).map(|facts| facts.dev()).ok();
    disk(path).is_some() && disk(path) != disk(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_told_from_a_folder() {
        assert!(is_mount_point(Path::new("/")));
        assert!(is_mount_point(Path::new("/proc")));
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there");
        fs::create_dir(&there).unwrap();
        assert!(!is_mount_point(&there));
        assert!(!is_mount_point(&folder.path().join("missing")));
    }

    #[test]
    fn what_may_not_be_looked_at_is_not_taken_for_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (closed, file) = (folder.path().join("closed"), folder.path().join("file"));
        // Root may look at all but what leads to itself.
        std::os::unix::fs::symlink(&closed, &closed).unwrap();
        fs::write(&file, "").unwrap();
        assert!(!is_nowhere(&closed.join("inside")));
        assert!(!is_nowhere(folder.path()));
        assert!(is_nowhere(&file.join("inside")));
        assert!(is_nowhere(&folder.path().join("missing/inside")));
    }

    #[test]
    fn a_path_in_a_hint_is_read_by_a_shell_as_it_is() {
        for name in ["/plain/path-1", "/with space", "/it's", "/$HOME", "/ümlaut"] {
            let said = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted(Path::new(name)))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), name);
        }
        assert_eq!(quoted(Path::new("/plain/path-1")), "/plain/path-1");
    }

    #[test]
    fn a_link_is_followed_to_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let (pg, other) = (folder.path().join("pg"), folder.path().join("other"));
        std::os::unix::fs::symlink("other", &pg).unwrap();
        std::os::unix::fs::symlink("/lost/disk", &other).unwrap();
        assert_eq!(led_to(&pg), Path::new("/lost/disk"));
        assert_eq!(led_to(folder.path()), folder.path());
    }
}
