//! A temporary folder that is gone afterwards, with every process in it, however the test ends.
//!
//! A test process that is killed runs no destructor. So each folder has a guardian: a shell that
//! reads from a pipe whose other end only the test process holds. When the process is gone, in
//! whatever way, the read ends; the guardian then shuts down the server it finds, kills what still
//! works inside the folder, and removes it. Death signals (`PR_SET_PDEATHSIG`) would not do: they
//! are cleared when a process changes its user, and follow the parent's thread.

use std::fs::DirBuilder;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::os_user::OsUser;
use crate::processes::{self, PATIENCE};

/// `$1` is the folder. `ls` prints the working directories of all processes in one go.
const GUARDIAN: &str = r#"
root=$1
cat >/dev/null
working() { ls -ld /proc/[0-9]*/cwd 2>/dev/null | sed -n "s|.* /proc/\([0-9]*\)/cwd -> $root\([/ ].*\)\{0,1\}\$|\1|p"; }
[ -e "$root" ] || exit 0
for file in "$root"/*/postmaster.pid; do
  [ -e "$file" ] || continue
  pid=$(head -n 1 "$file" | tr -d -)
  case " $(working | tr '\n' ' ')" in *" $pid "*) kill -QUIT "$pid" ;; esac
done
rounds=0 quiet=0
while [ "$quiet" -lt 3 ] && [ "$rounds" -lt 600 ]; do
  rounds=$((rounds + 1))
  left=$(working)
  if [ -z "$left" ]; then quiet=$((quiet + 1)); else
    quiet=0
    [ "$rounds" -lt 100 ] || kill -KILL $left
  fi
  sleep 0.05
done
for file in "$root"/*/postmaster.pid; do
  [ -e "$file" ] || continue
  segment=$(sed -n '7s/^ *[0-9]* *//p' "$file")
  [ -z "$segment" ] || ipcrm -m "$segment" 2>/dev/null
done
rm -rf "$root"
"#;

/// A private temporary folder with a short path, owned by the [`OsUser`] of servers.
///
/// Dropping it kills the processes that work inside and removes it. So does the end of the test
/// process, by any signal.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    guardian: Child,
}

impl Scratch {
    /// Creates the folder below `/tmp`, whatever `TMPDIR` says: sockets in it must fit 107 bytes.
    ///
    /// # Panics
    /// When the folder or its guardian cannot be made.
    #[must_use]
    pub fn new() -> Self {
        // Eight random bytes, as every `RandomState` starts from new keys.
        let name = RandomState::new().build_hasher().finish();
        let path = PathBuf::from(format!("/tmp/nt-{name:016x}"));
        let mut guardian = Command::new("sh")
            .args(["-c", GUARDIAN, "neon-testkit-guardian"])
            .arg(&path)
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("LC_ALL", "C")
            // Runners end a test by its process group; the guardian must outlive that.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        // After the guardian, so that there is no moment in which nobody would remove it.
        if let Err(error) = DirBuilder::new().mode(0o700).create(&path) {
            // What stands there is not ours: the guardian must not touch it.
            drop(guardian.kill());
            panic!("creating {}: {error}", path.display());
        }
        OsUser::current().own(&path);
        Self { path, guardian }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        processes::kill_all_in(&self.path);
        if let Ok(entries) = std::fs::read_dir(&self.path) {
            for entry in entries.flatten() {
                processes::remove_shared_memory(&entry.path());
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("neon-testkit: removing {}: {error}", self.path.display());
        }
        drop(self.guardian.stdin.take());
        if processes::wait(&mut self.guardian, PATIENCE).is_none() {
            eprintln!(
                "neon-testkit: the guardian of {} does not end",
                self.path.display()
            );
        }
    }
}
