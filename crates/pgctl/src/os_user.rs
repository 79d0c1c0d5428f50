//! The operating-system user that a server runs as.
//!
//! PostgreSQL refuses root. Root therefore runs it as the owner of the data directory, and makes new data
//! directories belong to a named user; anybody else runs it as himself.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::error::{Error, ErrorKind, Result};

/// A user that servers run as and that owns their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsUser {
    name: Option<String>,
    uid: u32,
    gid: u32,
}

impl OsUser {
    /// The user of this process.
    #[must_use]
    pub fn current() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Self {
            name: lookup(|entry| entry.uid == uid).map(|entry| entry.name),
            uid,
            gid,
        }
    }

    /// The user of this name.
    ///
    /// # Errors
    /// [`NoOsUser`](ErrorKind::NoOsUser) when the system knows none; the hint is the line that creates one.
    pub fn named(name: &str) -> Result<Self> {
        if let Some(entry) = lookup(|entry| entry.name == name) {
            return Ok(entry.into());
        }
        // Users of a directory service stand in no file.
        if let (Some(uid), Some(gid)) = (ask_id("-u", name), ask_id("-g", name)) {
            return Ok(Self {
                name: Some(name.to_owned()),
                uid,
                gid,
            });
        }
        Err(Error::new(
            ErrorKind::NoOsUser,
            format!("operating-system user {name}"),
            "there is none, and PostgreSQL refuses to run as root",
        )
        .with_hint(creation_line(name)))
    }

    /// The user with these ids, whether or not the system has a name for it.
    #[must_use]
    pub fn from_ids(uid: u32, gid: u32) -> Self {
        Self {
            name: lookup(|entry| entry.uid == uid).map(|entry| entry.name),
            uid,
            gid,
        }
    }

    /// The owner of a file or folder.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) or [`Permissions`](ErrorKind::Permissions) when it cannot be looked at.
    pub fn owner_of(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(|error| Error::io(path, "cannot be read", error))?;
        let uid = meta.uid();
        Ok(match lookup(|entry| entry.uid == uid) {
            // The group of the user, not of the folder: what the user's own login would have.
            Some(entry) => entry.into(),
            None => Self {
                name: None,
                uid,
                gid: meta.gid(),
            },
        })
    }

    /// The user's name, when the system has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The user id.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The primary group id.
    #[must_use]
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Whether this is root, whom PostgreSQL refuses.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether it is the user of this process.
    pub(crate) fn is_current(&self) -> bool {
        rustix::process::geteuid().as_raw() == self.uid
    }

    /// Whether the user is a member of groups besides its own, which a server may need to read its key.
    pub(crate) fn has_further_groups(&self) -> bool {
        let Some(name) = &self.name else { return false };
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        groups.lines().any(|line| {
            let mut fields = line.split(':');
            let gid = fields.nth(2).and_then(|gid| gid.parse::<u32>().ok());
            let members = fields.next().unwrap_or_default();
            gid != Some(self.gid) && members.split(',').any(|member| member == name)
        })
    }

    /// Gives an open file or folder to the user when it is another than we are.
    pub(crate) fn own(&self, file: impl AsFd) -> std::io::Result<()> {
        if self.is_current() {
            return Ok(());
        }
        std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))
    }

    /// Gives a symbolic link that we have just made to the user.
    pub(crate) fn own_link(&self, path: &Path) -> std::io::Result<()> {
        if self.is_current() {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, open};
            // A descriptor of the link itself: its name may mean another file by now.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let link = open(path, flags, Mode::empty())?;
            let found = fstat(&link)?;
            if FileType::from_raw_mode(found.st_mode) != FileType::Symlink || found.st_nlink != 1 {
                return Err(std::io::Error::other(
                    "somebody has put another in its place",
                ));
            }
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            chownat(&link, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
            Ok(())
        }
        #[cfg(not(target_os = "linux"))]
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
    }

    /// How messages call the user.
    pub(crate) fn label(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => format!("uid {}", self.uid),
        }
    }
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
}

impl From<Entry> for OsUser {
    fn from(entry: Entry) -> Self {
        Self {
            name: Some(entry.name),
            uid: entry.uid,
            gid: entry.gid,
        }
    }
}

fn lookup(wanted: impl Fn(&Entry) -> bool) -> Option<Entry> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some(Entry {
                name: fields.next()?.to_owned(),
                uid: fields.nth(1)?.parse().ok()?,
                gid: fields.next()?.parse().ok()?,
            })
        })
        .find(wanted)
}

fn ask_id(which: &str, name: &str) -> Option<u32> {
    let output = Command::new("id")
        .env_clear()
        .env("PATH", crate::command::SYSTEM_PATH)
        .args([which, "--", name])
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

fn creation_line(name: &str) -> String {
    if cfg!(target_os = "macos") {
        format!("run as another user than root, or: sysadminctl -addUser {name}")
    } else if Path::new("/sbin/apk").exists() {
        format!("adduser -S -D -H -h /var/lib/postgresql {name}")
    } else {
        format!(
            "useradd --system --user-group --home-dir /var/lib/postgresql --shell /usr/sbin/nologin {name}"
        )
    }
}
