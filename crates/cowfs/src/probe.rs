//! Which methods work between a source and the folder of a target, found out by trying.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat, fstatfs, ioctl_ficlone, openat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::method::{Method, Reason};
use crate::temporary::{PROBING, random_name};
use crate::{ioctl, place, remove};

/// Which methods work, and why the others do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    file_system: String,
    subvolume: std::result::Result<(), Reason>,
    reflink: std::result::Result<(), Reason>,
}

impl Probe {
    pub(crate) fn of(
        file_system: impl Into<String>,
        subvolume: std::result::Result<(), Reason>,
        reflink: std::result::Result<(), Reason>,
    ) -> Self {
        Self {
            file_system: file_system.into(),
            subvolume,
            reflink,
        }
    }

    /// The file system of the target, as it is usually called.
    #[must_use]
    pub fn file_system(&self) -> &str {
        &self.file_system
    }

    /// Whether a method works. A copy always does.
    ///
    /// # Errors
    /// Why it does not.
    pub fn works(&self, method: Method) -> std::result::Result<(), &Reason> {
        match method {
            Method::Subvolume => self.subvolume.as_ref().copied(),
            Method::Reflink => self.reflink.as_ref().copied(),
            Method::Copy => Ok(()),
        }
    }

    /// The same after a method was tried in earnest and refused.
    pub(crate) fn without(mut self, method: Method, reason: Reason) -> Self {
        match method {
            Method::Subvolume => self.subvolume = Err(reason),
            Method::Reflink => self.reflink = Err(reason),
            Method::Copy => {}
        }
        self
    }
}

/// Tries which methods work for clones of `source` in the folder `target`, which must be there and writable. Without
/// a source: for clones inside that folder, of what is made there with [`create_dir`](crate::create_dir).
///
/// It looks at the top directory of the source only. Its tablespaces and its log may lie elsewhere; a clone
/// probes each part by itself. What is made for trying is unnamed where the file system can do that, and gone in any case.
///
/// # Errors
/// [`NotFound`](crate::ErrorKind::NotFound), [`Permissions`](crate::ErrorKind::Permissions), [`Io`](crate::ErrorKind::Io).
pub fn probe(source: Option<&Path>, target: &Path) -> Result<Probe> {
    let folder =
        place::root(target).map_err(|error| Error::io(target, "cannot be opened", error))?;
    let Some(source) = source else {
        return Ok(within(&folder));
    };
    let failed = |error| Error::io(source, "cannot be looked at", error);
    let root = place::root(source).map_err(failed)?;
    let mut sample = None;
    for name in place::names(&root).map_err(failed)? {
        if let Some(file) = open_sample(&root, &name) {
            sample = Some(file);
            break;
        }
    }
    let samples: Vec<File> = sample.into_iter().collect();
    let nested = None;
    Ok(assess(&root, nested, &samples, &folder))
}

/// Opens a file to be cloned for trying; none when it is no file with something in it.
pub(crate) fn open_sample(directory: impl AsFd, name: &OsStr) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty()).ok()?);
    let facts = file.metadata().ok()?;
    (facts.is_file() && facts.len() > 0).then_some(file)
}

/// Tries with an open source: one file from each file system or subvolume it spreads over.
pub(crate) fn assess(
    source: &OwnedFd,
    nested: Option<&Path>,
    samples: &[File],
    folder: &OwnedFd,
) -> Probe {
    let name = file_system_name(folder);
    let mut reflink = Ok(());
    for sample in samples {
        reflink = reflink.and_then(|()| try_reflink(sample, folder, &name));
    }
    if samples.is_empty() {
        // Nothing to share: what matters is whether the target could.
        reflink = within(folder).reflink;
    }
    let subvolume = match fstat(source) {
        _ if !is_btrfs(folder) => Err(Reason::NotBtrfs(name.clone())),
        Ok(stat) if !remove::is_subvolume(source, &stat) => Err(Reason::NotASubvolume),
        Ok(_) => match nested {
            Some(path) => Err(Reason::Nested(path.to_owned())),
            // What cannot be reflinked from there to here lies on another btrfs.
            None => reflink.clone().and_then(|()| try_subvolume(folder)),
        },
        Err(error) => Err(refused(error)),
    };
    Probe::of(name, subvolume, reflink)
}

fn within(folder: &OwnedFd) -> Probe {
    let name = file_system_name(folder);
    let sample = (|| {
        let file = scratch_file(folder)?;
        rustix::io::write(&file, &[1; 4096])?;
        Ok(File::from(file))
    })();
    let reflink = match sample {
        Ok(sample) => try_reflink(&sample, folder, &name),
        Err(error) => Err(refused(error)),
    };
    let subvolume = if is_btrfs(folder) {
        try_subvolume(folder)
    } else {
        Err(Reason::NotBtrfs(name.clone()))
    };
    Probe::of(name, subvolume, reflink)
}

fn try_reflink(sample: &File, folder: &OwnedFd, name: &str) -> std::result::Result<(), Reason> {
    let cloned = scratch_file(folder).and_then(|file| {
        match_flags(sample, &file);
        ioctl_ficlone(&file, sample)
    });
    cloned.map_err(|error| match error {
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS => Reason::NoSharing(name.to_owned()),
        Errno::XDEV => Reason::OtherFileSystem,
        other => refused(other),
    })
}

fn try_subvolume(folder: &OwnedFd) -> std::result::Result<(), Reason> {
    let name = random_name(PROBING);
    ioctl::create_subvolume(folder, &name).map_err(refused)?;
    match remove::remove_at(folder, &name, Path::new("")) {
        // Somebody swept it away.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            Err(Reason::Refused(cause.unwrap_or_else(|| error.to_string())))
        }
        Ok(()) => Ok(()),
    }
}

fn refused(error: Errno) -> Reason {
    Reason::Refused(answer(error))
}

/// What the operating system answered, in its words.
pub(crate) fn answer(error: Errno) -> String {
    std::io::Error::from(error).to_string()
}

/// On btrfs, two files share blocks only if both or neither are kept from copy-on-write (`chattr +C`), which can
/// be set while a file is empty.
pub(crate) fn match_flags(from: impl AsFd, to: impl AsFd) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let (Ok(source), Ok(own)) = (ioctl_getflags(from), ioctl_getflags(&to)) else {
        return;
    };
    let wanted = (own - IFlags::NOCOW) | (source & IFlags::NOCOW);
    if wanted != own {
        // Where it is refused, sharing is refused next, and that is told.
        ioctl_setflags(to, wanted).ok();
    }
}

/// A file to try with: without a name where that can be, otherwise with one for a moment.
fn scratch_file(folder: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match openat(folder, c".", flags | OFlags::TMPFILE, mode) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
        other => return other,
    }
    let name = random_name(PROBING);
    let file = openat(folder, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    rustix::fs::unlinkat(folder, &name, rustix::fs::AtFlags::empty())?;
    Ok(file)
}

const BTRFS: u64 = 0x9123_683E;

fn magic(directory: impl AsFd) -> Option<u64> {
    u64::try_from(fstatfs(directory).ok()?.f_type).ok()
}

pub(crate) fn is_btrfs(directory: impl AsFd) -> bool {
    magic(directory) == Some(BTRFS)
}

/// Numbers from the kernel's `linux/magic.h` and the sources of those that are not in it.
fn file_system_name(directory: impl AsFd) -> String {
    let Some(magic) = magic(directory) else {
        return "an unknown file system".to_owned();
    };
    let known = match magic {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        BTRFS => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlayfs",
        0x6969 => "nfs",
        0x2FC1_2FC1 => "zfs",
        0xCA45_1A4E => "bcachefs",
        0xF2F5_2010 => "f2fs",
        0x6573_5546 => "fuse",
        _ => return format!("file system {magic:#x}"),
    };
    known.to_owned()
}
