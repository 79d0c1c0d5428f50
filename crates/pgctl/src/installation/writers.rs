//! Who programs are run as that somebody else names: a data directory says what its server was started with, a link leads
//! anywhere, and root runs nothing that others can write.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::os_user::OsUser;

/// Nobody's ids, on all systems that have them.
const NOBODY: u32 = 65534;

/// The user to run a program as that only says something of itself: ours, unless we are root and others can write it, or what
/// it is in. Then its owner, who may do whatever it does; nobody, where root owns what a group or everybody can write.
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

/// Somebody besides root who can have another program there, and whom it is run as. What cannot be looked at can be written by
/// nobody less.
fn writer(program: &Path) -> Option<OsUser> {
    let nobody = || Some(OsUser::from_ids(NOBODY, NOBODY));
    let Ok(real) = program.canonicalize() else {
        return nobody();
    };
    let mut all: Vec<&Path> = real.ancestors().collect();
    all.reverse();
    for path in all {
        let Ok(facts) = path.symlink_metadata() else {
            return nobody();
        };
        let (mode, folder) = (facts.mode(), facts.is_dir());
        if facts.uid() != 0 {
            let owner = OsUser::owner_of(path).ok();
            return owner.or_else(nobody);
        }
        // In a sticky folder everybody has their own, and only that.
        let sticky = folder && mode & 0o1000 != 0;
        let by_group = mode & 0o020 != 0 && facts.gid() != 0;
        if (mode & 0o002 != 0 || by_group) && !sticky {
            return nobody();
        }
        // Nobody else comes to what is below.
        if folder && mode & 0o011 == 0 {
            return None;
        }
    }
    None
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
        // Where nobody but root comes.
        mode(scratch.path(), 0o700);
        assert_eq!(uid(), 0);
        mode(scratch.path(), 0o755);
        chown(&folder, Some(0), Some(0)).unwrap();
        mode(&folder, 0o755);
        chown(&program, Some(12345), Some(0)).unwrap();
        assert_eq!(uid(), 12345);
        chown(&program, Some(0), Some(12345)).unwrap();
        mode(&program, 0o775);
        assert_eq!(uid(), NOBODY);
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
