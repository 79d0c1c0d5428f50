//! Who programs are run as that somebody else names: a data directory says what its server was started with, a link leads
//! anywhere, and root runs nothing that others can write.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::os_user::OsUser;

/// Nobody's ids, on all systems that have them.
const NOBODY: u32 = 65534;

/// The user to run a program as that only says something of itself: ours, unless we are root and others can write it, or what
/// it is in. Then its owner, who may do whatever it does; nobody, where root owns what everybody can write, or a group: of that one
/// then.
pub(super) fn runner(program: &Path) -> OsUser {
    runner_with(program, None)
}

/// As [`runner`], of a program that takes its libraries from this folder.
pub(super) fn runner_with(program: &Path, libraries: Option<&Path>) -> OsUser {
    let current = OsUser::current();
    if !current.is_root() {
        return current;
    }
    let writer = writer(program).or_else(|| libraries.and_then(writer));
    writer.unwrap_or(current)
}

/// So many links may lead to a program, as the kernel has it.
const LINKS: usize = 40;

/// Somebody besides root who can have another program there, and whom it is run as. Every folder on the way counts, that of each
/// link too: who can exchange a link chooses the program at the moment it is run. What cannot be looked at can be written by
/// nobody less.
fn writer(program: &Path) -> Option<OsUser> {
    look(program).unwrap_or_else(|_| Some(OsUser::from_ids(NOBODY, NOBODY)))
}

fn look(program: &Path) -> io::Result<Option<OsUser>> {
    let mut todo = parts(&std::path::absolute(program)?);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    if let Some(other) = another(&at, &at.symlink_metadata()?) {
        return Ok(Some(other));
    }
    while let Some(part) = todo.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        let facts = at.symlink_metadata()?;
        if let Some(other) = another(&at, &facts) {
            return Ok(Some(other));
        }
        if facts.is_symlink() {
            links += 1;
            if links > LINKS {
                return Err(io::Error::other("too many links"));
            }
            let target = at.read_link()?;
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            todo.extend(parts(&target));
        }
    }
    Ok(None)
}

/// The parts of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    parts.collect()
}

/// Who besides root can have something else here, or in it.
fn another(path: &Path, facts: &Metadata) -> Option<OsUser> {
    if facts.uid() != 0 {
        let owner = match facts.is_symlink() {
            true => None,
            false => OsUser::owner_of(path).ok(),
        };
        return Some(owner.unwrap_or_else(|| OsUser::from_ids(facts.uid(), facts.gid())));
    }
    let mode = facts.mode();
    // In a sticky folder everybody has their own, and only that. What the mode of a link says counts for nothing.
    if facts.is_symlink() || facts.is_dir() && mode & 0o1000 != 0 {
        return None;
    }
    if mode & 0o002 != 0 {
        return Some(OsUser::from_ids(NOBODY, NOBODY));
    }
    // Nobody, but of the group: it may be for them alone.
    (mode & 0o020 != 0 && facts.gid() != 0).then(|| OsUser::from_ids(NOBODY, facts.gid()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn root_runs_as_others_what_others_can_write() {
        if !OsUser::current().is_root() {
            assert_eq!(runner(Path::new("/bin/sh")), OsUser::current());
            return;
        }
        assert!(runner(Path::new("/bin/sh")).is_root());
        let scratch = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        mode(scratch.path(), 0o755);
        let folder = scratch.path().join("bin");
        fs::create_dir(&folder).unwrap();
        let program = folder.join("postgres");
        fs::write(&program, "").unwrap();
        let uid = || runner(&program).uid();
        mode(&folder, 0o755);
        mode(&program, 0o755);
        assert_eq!(uid(), 0);
        mode(&folder, 0o777);
        assert_eq!(uid(), NOBODY);
        mode(&folder, 0o1777);
        assert_eq!(uid(), 0);
        chown(&folder, Some(12345), Some(12345)).unwrap();
        assert_eq!(uid(), 12345);
        // By a link from where only root can write, too.
        let link = scratch.path().join("postgres");
        symlink(&program, &link).unwrap();
        assert_eq!(runner(&link).uid(), 12345);
        // By a link that others can exchange, though it leads to what is root's.
        let theirs = folder.join("sh");
        symlink("/bin/sh", &theirs).unwrap();
        assert_eq!(runner(&theirs).uid(), 12345);
        let through = scratch.path().join("through");
        symlink(&theirs, &through).unwrap();
        assert_eq!(runner(&through).uid(), 12345);
        assert_eq!(runner(&folder.join("../postgres/../bin/sh")).uid(), 12345);
        let round = scratch.path().join("round");
        symlink(&round, &round).unwrap();
        assert_eq!(runner(&round).uid(), NOBODY);
        // Nor is it for root alone because a folder above is: who works in a container comes by another way.
        mode(scratch.path(), 0o700);
        assert_eq!(uid(), 12345);
        mode(scratch.path(), 0o755);
        chown(&folder, Some(0), Some(0)).unwrap();
        mode(&folder, 0o755);
        chown(&program, Some(12345), Some(0)).unwrap();
        assert_eq!(uid(), 12345);
        chown(&program, Some(0), Some(12345)).unwrap();
        mode(&program, 0o775);
        assert_eq!((uid(), runner(&program).gid()), (NOBODY, 12345));
        assert_eq!(runner(&folder.join("missing")).uid(), NOBODY);
        // Its libraries are of it.
        mode(&program, 0o755);
        let libraries = scratch.path().join("lib");
        fs::create_dir(&libraries).unwrap();
        assert!(runner_with(&program, Some(&libraries)).is_root());
        chown(&libraries, Some(12345), Some(0)).unwrap();
        assert_eq!(runner_with(&program, Some(&libraries)).uid(), 12345);
    }
}
