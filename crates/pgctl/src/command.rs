//! Running PostgreSQL's programs: in a clean environment, as the right user, with a deadline, and gone when
//! nobody waits for them any more.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, ErrorKind, Result};
use crate::os_user::OsUser;

/// Where the programs of any system lie.
pub(crate) const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// How often we look whether something has happened.
pub(crate) const POLL: Duration = Duration::from_millis(5);

/// How long to look away from a program that runs since then: what takes a few milliseconds is not waited for longer.
fn nap(start: Instant) -> Duration {
    (start.elapsed() / 4).clamp(Duration::from_micros(250), POLL)
}

/// A command in a clean environment: nothing of ours but what is given here, so that no `PG*`, `LANG` or
/// `TZ` of the caller changes what the program does. Messages are in English.
///
/// It leads a process group of its own, so that a terminal's ^C does not reach it and all that it starts
/// can be ended together.
pub(crate) fn clean(program: &OsStr, user: &OsUser, library_path: Option<&Path>) -> Command {
    let mut command = match setpriv(user) {
        // Unlike the two system calls below it gives the user its further groups.
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command
                .arg(format!("--reuid={}", user.uid()))
                .arg(format!("--regid={}", user.gid()))
                .args(["--init-groups", "--"])
                .arg(program);
            command
        }
        None => {
            let mut command = Command::new(program);
            if !user.is_current() {
                command.uid(user.uid()).gid(user.gid());
            }
            command
        }
    };
    command
        .env_clear()
        .env("PATH", SYSTEM_PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null());
    if let Some(path) = library_path {
        command.env(LIBRARY_PATH, path);
    }
    command
}

/// The variable that adds a folder to the loader's search.
pub(crate) const LIBRARY_PATH: &str = if cfg!(target_os = "macos") {
    "DYLD_LIBRARY_PATH"
} else {
    "LD_LIBRARY_PATH"
};

/// The program that becomes another user with all its groups, when it is there and needed.
fn setpriv(user: &OsUser) -> Option<&'static Path> {
    let ours = rustix::process::geteuid().is_root() && !user.is_root();
    if !ours || !user.has_further_groups() {
        return None;
    }
    ["/usr/bin/setpriv", "/bin/setpriv"]
        .into_iter()
        .map(Path::new)
        // Busybox has a program of this name that cannot do it.
        .find(|path| {
            path.canonicalize()
                .is_ok_and(|real| !real.ends_with("busybox"))
        })
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Everything it said, the lines that are not empty.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.stdout
            .lines()
            .chain(self.stderr.lines())
            .filter(|line| !line.trim().is_empty())
            .map(str::to_owned)
            .collect()
    }
}

/// A running program with all the processes it started; dropping it ends them and waits until they are
/// gone.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    done: bool,
}

impl Running {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::MissingTool,
                std::io::ErrorKind::PermissionDenied => ErrorKind::Permissions,
                _ => ErrorKind::Io,
            };
            Error::new(kind, program, "cannot be run").with_source(error)
        })?;
        // A full pipe would stop the program; a thread ends when the last process closes its end.
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Ok(Self {
            child,
            stdout,
            stderr,
            done: false,
        })
    }

    /// Waits until the program has ended.
    ///
    /// # Errors
    /// [`Timeout`](ErrorKind::Timeout) after `limit`; the program is ended then.
    pub(crate) async fn wait(mut self, limit: Duration) -> Result<Finished> {
        let start = Instant::now();
        loop {
            if let Some(finished) = self.poll(start, limit)? {
                return Ok(finished);
            }
            tokio::time::sleep(nap(start)).await;
        }
    }

    /// As [`wait`](Self::wait), holding up the thread.
    pub(crate) fn wait_blocking(mut self, limit: Duration) -> Result<Finished> {
        let start = Instant::now();
        loop {
            if let Some(finished) = self.poll(start, limit)? {
                return Ok(finished);
            }
            std::thread::sleep(nap(start));
        }
    }

    fn poll(&mut self, start: Instant, limit: Duration) -> Result<Option<Finished>> {
        let status = self.child.try_wait().map_err(|error| {
            Error::new(ErrorKind::Io, "a program", "cannot be waited for").with_source(error)
        })?;
        if let Some(status) = status {
            self.done = true;
            let take = |thread: Option<JoinHandle<String>>| {
                thread
                    .and_then(|thread| thread.join().ok())
                    .unwrap_or_default()
            };
            return Ok(Some(Finished {
                status,
                stdout: take(self.stdout.take()),
                stderr: take(self.stderr.take()),
            }));
        }
        if start.elapsed() > limit {
            return Err(Error::new(
                ErrorKind::Timeout,
                "a program",
                format!("did not end within {} s", limit.as_secs()),
            ));
        }
        Ok(None)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Some(group) = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or_default()) {
            // The program has not been waited for, so the number is still its own.
            let _ = kill_process_group(group, Signal::KILL);
        }
        drop(self.child.wait());
        // The pipes close when the last of its processes is gone: only then may its files be removed.
        for thread in [self.stdout.take(), self.stderr.take()]
            .into_iter()
            .flatten()
        {
            drop(thread.join());
        }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
