//! Versions of files.
//!
//! A version is inode, size and modification time. A file system stamps times in ticks of some
//! milliseconds and reuses inodes, so two successive objects of one size could look the same;
//! therefore the digits below a millisecond of every file written here are drawn at random.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use rustix::fs::{Stat, Timespec, Timestamps, XattrFlags};

use crate::key::Key;
use crate::object::{ObjectMeta, Version};
use crate::options::PutToken;

/// The attribute that remembers which put made a file.
const TOKEN: &str = "user.neon-storage.put";

/// What a file system says about a file, however it was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    inode: u64,
    size: u64,
    seconds: i64,
    nanos: i64,
}

impl From<&Metadata> for Facts {
    fn from(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.size(),
            seconds: meta.mtime(),
            nanos: meta.mtime_nsec(),
        }
    }
}

impl From<&Stat> for Facts {
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_fallible_conversions,
        reason = "the types of these fields differ between platforms"
    )]
    fn from(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino.into(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            seconds: stat.st_mtime.into(),
            nanos: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        }
    }
}

/// The version of a file.
pub(super) fn of(facts: impl Into<Facts>) -> Version {
    let facts = facts.into();
    Version::new(format!(
        "{:x}-{:x}-{:x}.{:x}",
        facts.inode, facts.size, facts.seconds, facts.nanos
    ))
}

/// The facts of a file as those of an object.
pub(super) fn object(key: Key, facts: impl Into<Facts>) -> ObjectMeta {
    let facts = facts.into();
    ObjectMeta::new(key, facts.size, Some(of(facts)), modified(facts))
}

pub(super) fn modified(facts: impl Into<Facts>) -> SystemTime {
    let facts = facts.into();
    let nanos = u32::try_from(facts.nanos).unwrap_or(0);
    match u64::try_from(facts.seconds) {
        Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

/// Makes the version of a finished file unlike that of any file before it, within the millisecond
/// that the file system stamped.
pub(super) fn stamp(file: &File) -> io::Result<()> {
    let meta = file.metadata()?;
    let millis = meta.mtime_nsec() / 1_000_000 * 1_000_000;
    let time = Timespec {
        tv_sec: meta.mtime(),
        tv_nsec: millis + fastrand::i64(0..1_000_000),
    };
    rustix::fs::futimens(
        file,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
    )?;
    Ok(())
}

/// Writes the put's identity to a file, where the file system has attributes.
pub(super) fn set_token(file: &File, token: &PutToken) {
    // Without attributes a repeated create reports that the object exists; capabilities say so.
    let _unsupported =
        rustix::fs::fsetxattr(file, TOKEN, token.as_str().as_bytes(), XattrFlags::empty());
}

/// Whether a file was made by this put.
pub(super) fn has_token(file: &File, token: &PutToken) -> bool {
    let mut held = [0u8; 64];
    match rustix::fs::fgetxattr(file, TOKEN, &mut held[..]) {
        Ok(length) => held.get(..length) == Some(token.as_str().as_bytes()),
        Err(_) => false,
    }
}

/// Whether the file system of this directory keeps attributes.
pub(super) fn tokens_are_kept(directory: &File) -> bool {
    let mut held = [0u8; 64];
    !matches!(
        rustix::fs::fgetxattr(directory, TOKEN, &mut held[..]),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS)
    )
}
