//! Making a tree file by file, for the methods that share or copy the content of each.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, mkdirat, openat, symlinkat,
};

use crate::error::{Error, ErrorKind, Result};
use crate::options::Watch;
use crate::place;
use crate::probe::{is_btrfs, match_flags};
use crate::scan::{FileEntry, Tree};
use crate::threads;

/// Files of one folder that a thread takes at once: so many, or so many bytes.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 64 << 20;

/// Gives a new, empty file the content of another.
pub(crate) type Content<'a> = &'a (dyn Fn(&File, &File, &Path) -> Result<()> + Sync);

/// Makes folders, links and files of the tree in an empty directory. Folders keep the rights we need until
/// [`finish`].
pub(crate) fn fill(
    tree: &Tree,
    target: &OwnedFd,
    threads: usize,
    watch: &Watch<'_>,
    content: Content<'_>,
) -> Result<()> {
    let btrfs = is_btrfs(target);
    for (number, folder) in tree.folders.iter().enumerate() {
        let path = &folder.path;
        let failed = |error| made(tree, path, error);
        if number > 0 {
            mkdirat(target, path, Mode::RWXU).map_err(failed)?;
        }
        if btrfs {
            // New files take the mark against copy-on-write from their folder.
            let source = place::below(&tree.fd, path)
                .map_err(|error| Error::io(tree.path.join(path), "cannot be opened", error))?;
            match_flags(source, place::below(target, path).map_err(failed)?);
        }
    }
    for link in &tree.links {
        symlinkat(&link.text, target, &link.path).map_err(|error| made(tree, &link.path, error))?;
        own_link(target, &link.path, link.facts.uid, link.facts.gid)
            .map_err(|error| made(tree, &link.path, error))?;
    }
    threads::each(&batches(&tree.files), threads, |batch| {
        let Some(first) = batch.first() else {
            return Ok(());
        };
        let folder = tree.folder(first);
        let from = place::below(&tree.fd, folder)
            .map_err(|error| Error::io(tree.path.join(folder), "cannot be opened", error))?;
        let to = place::below(target, folder).map_err(|error| made(tree, folder, error))?;
        for file in *batch {
            watch.check()?;
            one(tree, file, &from, &to, content)?;
            watch.count(1, file.facts.size);
        }
        Ok(())
    })
}

fn made(tree: &Tree, path: &Path, error: rustix::io::Errno) -> Error {
    Error::io(tree.logical(path), "cannot be made in the clone", error)
}

fn batches(files: &[FileEntry]) -> Vec<&[FileEntry]> {
    let mut batches = Vec::new();
    for folder in files.chunk_by(|a, b| a.folder == b.folder) {
        let (mut rest, mut bytes, mut count) = (folder, 0u64, 0);
        for file in folder {
            bytes = bytes.saturating_add(file.facts.size);
            count += 1;
            if count == BATCH_FILES || bytes >= BATCH_BYTES {
                let (batch, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
                batches.push(batch);
                (rest, bytes, count) = (after, 0, 0);
            }
        }
        if !rest.is_empty() {
            batches.push(rest);
        }
    }
    batches
}

fn one(
    tree: &Tree,
    file: &FileEntry,
    from: &OwnedFd,
    to: &OwnedFd,
    content: Content<'_>,
) -> Result<()> {
    let path = tree.folder(file).join(&file.name);
    let shown = tree.path.join(&path);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = match openat(from, &file.name, flags, Mode::empty()) {
        Ok(source) => File::from(source),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Err(changed(&shown)),
        Err(error) => return Err(Error::io(&shown, "cannot be opened", error)),
    };
    let unchanged = |shown: &Path| {
        let now = fstat(&source).map_err(|error| Error::io(shown, "cannot be looked at", error))?;
        let regular = FileType::from_raw_mode(now.st_mode) == FileType::RegularFile;
        if regular && file.facts.still(&now) {
            return Ok(());
        }
        Err(changed(shown))
    };
    unchanged(&shown)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let target = openat(to, &file.name, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|error| made(tree, &path, error))?;
    match_flags(&source, &target);
    if file.facts.size > 0 {
        content(&source, &target, &shown)?;
    }
    unchanged(&shown)?;
    file.facts
        .apply(&target)
        .map_err(|error| made(tree, &path, error))
}

pub(crate) fn changed(path: &Path) -> Error {
    let reason = "changed while it was cloned; a server or somebody else writes to the source";
    Error::new(ErrorKind::Changed, path, reason)
}

/// Gives folders their owners, modes and times, which making what is in them has changed.
pub(crate) fn finish(tree: &Tree, target: &OwnedFd) -> Result<()> {
    for folder in tree.folders.iter().rev() {
        place::below(target, &folder.path)
            .and_then(|made| folder.facts.apply(&made))
            .map_err(|error| made(tree, &folder.path, error))?;
    }
    Ok(())
}

/// That no file came, went or was renamed meanwhile, as far as the times of folders tell.
pub(crate) fn check_folders(tree: &Tree) -> Result<()> {
    for folder in &tree.folders {
        let shown = tree.path.join(&folder.path);
        let now = place::below(&tree.fd, &folder.path)
            .and_then(fstat)
            .map_err(|error| Error::io(&shown, "cannot be looked at", error))?;
        if folder.facts.modified != place::Facts::of(&now).modified {
            return Err(changed(&shown));
        }
    }
    Ok(())
}

/// Gives a link itself to its owner, as root.
pub(crate) fn own_link(
    directory: impl AsFd,
    path: &Path,
    uid: u32,
    gid: u32,
) -> rustix::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(
        directory,
        path,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}
