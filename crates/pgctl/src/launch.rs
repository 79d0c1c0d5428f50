//! A server process from nothing to ready, and who ends it when nobody wants it any more.
//!
//! Between us and the server stands a guardian: a shell that starts the server, tells its process id, and
//! then reads its standard input, the other end of which only we hold. One word makes it leave, and the
//! server stays without it; anything else, the end of input above all, makes it end the server. So a server
//! whose start was given up is ended, also when our process is killed in that moment, and a scoped server
//! is one whose guardian is never told to leave. No signal handler, no `unsafe`, no thread.
//!
//! The guardian is the server's parent: as long as it has not waited, the number it signals is the server's. If
//! somebody kills it, we end the server ourselves.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::command::{self, POLL};
use crate::error::{Error, ErrorKind, Result};
use crate::installation::Installation;
use crate::instance::Instance;
use crate::os_user::OsUser;
use crate::pid_file::PidFile;
use crate::process::{self, Process};

/// Nobody may be there any more to be told the number: that must not end the guardian before it has ended the server.
/// `sh` gives a background process ignored INT and QUIT until it installs its own handlers; TERM ends it
/// also before. The server takes the second signal as the more urgent one.
const GUARDIAN: &str = r#"
log=$1; scrap=$2; shift 2
"$@" </dev/null >>"$log" 2>&1 &
pid=$!
trap '' PIPE
echo "$pid"
exec >/dev/null
word=
read -r word
case $word in
  leave) exit 0 ;;
  fast) signal=INT ;;
  *) signal=QUIT ;;
esac
kill -TERM "$pid" 2>/dev/null
kill -"$signal" "$pid" 2>/dev/null
wait "$pid"
status=$?
if [ -n "$scrap" ] && [ -z "$word" ]; then rm -rf -- "$scrap"; fi
exit $status
"#;

/// What the guardian is called in the table of processes.
const NAME: &str = "neon-guardian";

impl Instance {
    /// Whether its server is one of a start that has not come to its end, or of a scoped one: it ends with the process that
    /// began it, which may have died a moment ago.
    ///
    /// False where the system has no `/proc`.
    #[must_use]
    pub fn is_guarded(&self) -> bool {
        let Ok(Some(file)) = PidFile::read(&self.data_dir) else {
            return false;
        };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", file.pid)).unwrap_or_default();
        // The name before them may have anything in it.
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
        let Some(parent) = fields.and_then(|fields| fields.split(' ').nth(1)) else {
            return false;
        };
        let line = std::fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|word| word == NAME.as_bytes())
    }
}

/// A server that we started and that ends when this is dropped, unless it is [left](Self::leave).
#[derive(Debug)]
pub(crate) struct Launched {
    guardian: Child,
    word: Option<ChildStdin>,
    server: Option<Process>,
    pid: i32,
    data_dir: PathBuf,
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) installation: &'a Installation,
    pub(crate) user: &'a OsUser,
    pub(crate) data_dir: &'a Path,
    pub(crate) log: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: &'a [(String, String)],
    /// A folder that goes with a server whose host died.
    pub(crate) scrap: Option<PathBuf>,
}

/// How long an ended server may take to be gone before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

impl Launched {
    pub(crate) fn spawn(launch: &Launch<'_>) -> Result<Self> {
        let program = launch.installation.tool("postgres")?;
        let library_path = launch.installation.library_path();
        let mut command = command::clean("/bin/sh".as_ref(), launch.user, library_path);
        command
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .args(["-c", GUARDIAN, NAME])
            .arg(launch.log)
            .arg(launch.scrap.as_deref().unwrap_or(Path::new("")))
            .arg(program)
            .args(&launch.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut guardian = command.spawn().map_err(|error| {
            Error::new(ErrorKind::Io, "/bin/sh", "cannot be run").with_source(error)
        })?;
        let word = guardian.stdin.take();
        let told = guardian.stdout.take();
        let mut launched = Self {
            guardian,
            word,
            server: None,
            pid: 0,
            data_dir: launch.data_dir.to_owned(),
        };
        // The shell answers at once or ends.
        let mut line = String::new();
        if let Some(told) = told {
            BufReader::new(told).read_line(&mut line).map_err(|error| {
                Error::new(ErrorKind::Io, "/bin/sh", "says nothing").with_source(error)
            })?;
        }
        launched.pid = line
            .trim()
            .parse()
            .map_err(|_| Error::new(ErrorKind::Io, "/bin/sh", "did not start the server"))?;
        launched.server = Process::open(launched.pid);
        Ok(launched)
    }

    /// The process id of the server.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the server has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        self.server.as_ref().is_some_and(Process::is_alive)
    }

    /// Lets the server live on without us and without the guardian.
    pub(crate) fn leave(mut self) {
        if let Some(mut word) = self.word.take() {
            drop(word.write_all(b"leave\n"));
        }
        drop(self.guardian.wait());
        self.server = None;
    }

    /// Ends the server, cleanly (`fast`) or at once, and waits until it is gone. Returns at once when it
    /// has ended already. The scrap folder stays.
    pub(crate) fn end(&mut self, fast: bool) {
        if let Some(mut word) = self.word.take() {
            // Without a word the guardian would take the folder away too.
            let text: &[u8] = if fast { b"fast\n" } else { b"now\n" };
            drop(word.write_all(text));
        }
        let first = if fast { Signal::INT } else { Signal::QUIT };
        let mut harder = [Signal::QUIT, Signal::KILL].into_iter();
        let mut since = Instant::now();
        let mut alone = false;
        loop {
            let guarded = matches!(self.guardian.try_wait(), Ok(None));
            let server = self.server.as_ref().filter(|server| server.is_alive());
            match server {
                None if !guarded => break,
                // Somebody has killed the guardian, and nobody has told the server.
                Some(server) if !guarded && !alone => {
                    tracing::warn!(pid = self.pid, "the server has lost its guardian");
                    alone = true;
                    since = Instant::now();
                    drop(server.signal(Signal::TERM));
                    drop(server.signal(first));
                }
                // A server that does not follow is asked harder.
                Some(server) if since.elapsed() > PATIENCE => {
                    let signal = harder.next().unwrap_or(Signal::KILL);
                    tracing::warn!(pid = self.pid, ?signal, "the server does not end");
                    drop(server.signal(signal));
                    since = Instant::now();
                }
                // A guardian that was stopped; it has nothing to guard any more.
                None if since.elapsed() > PATIENCE => drop(self.guardian.kill()),
                _ => {}
            }
            std::thread::sleep(POLL);
        }
        self.server = None;
        // The collector of logs is the last to notice.
        let start = Instant::now();
        while !process::servers_in(&self.data_dir).is_empty() && start.elapsed() < PATIENCE {
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.server.is_some() || self.word.is_some() {
            self.end(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As when the process that began a start is killed before it has read the number of the server.
    #[test]
    fn a_guardian_that_nobody_hears_ends_its_server() {
        use std::os::unix::process::ExitStatusExt;
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let guardian = std::process::Command::new("/bin/sh")
            .args(["-c", GUARDIAN, NAME, "/dev/null", "", "sleep", "1000"])
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        // The status is that of what it guarded, which it waited for.
        assert_eq!((guardian.signal(), guardian.code()), (None, Some(128 + 15)));
    }
}
