//! Who servers run as: PostgreSQL refuses root.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The operating-system user that servers run as and that owns their files: `postgres`, else
/// `nobody`, when the tests run as root; the user of the tests otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsUser {
    /// User and group to become; none when we stay who we are.
    other: Option<(u32, u32)>,
    name: String,
}

impl OsUser {
    /// The user of this process's servers.
    ///
    /// # Panics
    /// As root on a machine with neither `postgres` nor `nobody`.
    #[must_use]
    pub fn current() -> &'static Self {
        static USER: OnceLock<OsUser> = OnceLock::new();
        USER.get_or_init(|| {
            let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
            let own = rustix::process::geteuid();
            let find = |wanted: &dyn Fn(&str, u32) -> bool| {
                passwd.lines().find_map(|line| {
                    let mut fields = line.split(':');
                    let name = fields.next()?;
                    let uid = fields.nth(1)?.parse().ok()?;
                    let gid = fields.next()?.parse().ok()?;
                    wanted(name, uid).then(|| (name.to_owned(), uid, gid))
                })
            };
            if !own.is_root() {
                let name =
                    find(&|_, uid| uid == own.as_raw()).map_or_else(String::new, |(name, ..)| name);
                return Self { other: None, name };
            }
            let (name, uid, gid) = ["postgres", "nobody"]
                .into_iter()
                .find_map(|wanted| find(&|name, _| name == wanted))
                .expect(
                    "running as root and there is no user postgres or nobody to run servers as",
                );
            Self {
                other: Some((uid, gid)),
                name,
            }
        })
    }

    /// The user's name; empty when the system does not know it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// User and group id to change to; none when the tests themselves run as this user.
    #[must_use]
    pub fn ids(&self) -> Option<(u32, u32)> {
        self.other
    }

    /// Makes `command` run as this user, without supplementary groups.
    pub fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.other {
            command.gid(gid).uid(uid);
        }
    }

    /// Gives one file, folder or symbolic link to this user.
    ///
    /// # Panics
    /// When the operating system refuses.
    pub fn own(&self, path: &Path) {
        if let Some((uid, gid)) = self.other {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap_or_else(|error| {
                panic!("giving {} to {}: {error}", path.display(), self.name)
            });
        }
    }

    /// Creates a folder (and its parents) that only this user may enter.
    ///
    /// # Panics
    /// When the operating system refuses.
    pub fn create_dir(&self, path: &Path) {
        std::fs::create_dir_all(path)
            .unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).expect("our own folder");
        self.own(path);
    }
}
