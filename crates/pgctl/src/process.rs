//! Processes that are not our children: are they alive, are they what a pid file says, and signals that
//! cannot hit a process that took the number later.
//!
//! On Linux a process is held by a pidfd: it keeps meaning the same process after that one has ended. A
//! number alone (elsewhere) is looked at again before each signal.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal};

/// A process, by number and, where the system has them, by descriptor.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    #[cfg(target_os = "linux")]
    descriptor: Option<std::os::fd::OwnedFd>,
    /// Where there is no descriptor: the number and the start of a process are not given twice.
    began: Option<SystemTime>,
}

impl Process {
    /// The process that has this number now; none when none has.
    pub(crate) fn open(pid: i32) -> Option<Self> {
        let pid = numbered(pid)?;
        #[cfg(target_os = "linux")]
        {
            use rustix::io::Errno;
            use rustix::process::{PidfdFlags, pidfd_open};
            let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(descriptor) => Some(descriptor),
                Err(Errno::SRCH) => return None,
                // A kernel before 5.3, or a sandbox: the number has to do.
                Err(_) => None,
            };
            let began = descriptor
                .is_none()
                .then(|| began(pid.as_raw_pid()))
                .flatten();
            Some(Self {
                pid,
                descriptor,
                began,
            })
            .filter(Self::is_alive)
        }
        #[cfg(not(target_os = "linux"))]
        Some(Self { pid, began: None }).filter(Self::is_alive)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Whether it runs. A zombie does not: it waits for its parent and holds nothing.
    pub(crate) fn is_alive(&self) -> bool {
        #[cfg(target_os = "linux")]
        {
            if let Some(descriptor) = &self.descriptor {
                use rustix::event::{PollFd, PollFlags, Timespec, poll};
                let mut fds = [PollFd::new(descriptor, PollFlags::IN)];
                let now = Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                };
                // Readable once the process has ended, waited for or not.
                let ended = matches!(poll(&mut fds, Some(&now)), Ok(1));
                self.reap_if_ours(ended);
                return !ended;
            }
            if state_of(self.pid()) == Some('Z') {
                self.reap_if_ours(true);
                return false;
            }
            if self.began.is_some() && began(self.pid()) != self.began {
                return false;
            }
        }
        #[cfg(not(target_os = "linux"))]
        if is_zombie_by_ps(self.pid()) {
            self.reap_if_ours(true);
            return false;
        }
        !matches!(
            rustix::process::test_kill_process(self.pid),
            Err(rustix::io::Errno::SRCH)
        )
    }

    /// A server whose guardian is gone becomes the child of the first process of the container, or of a declared
    /// reaper: that may be us. It is told by its process group, which was the guardian's. Children that were started
    /// in any other way lead a group of their own or are in ours, and somebody waits for them: that is not to be
    /// taken away, from other threads of this program least of all.
    fn reap_if_ours(&self, ended: bool) {
        use rustix::process::{WaitOptions, getpid, waitpid};
        if !ended {
            return;
        }
        if let Some(group) = group_of(self.pid)
            && group != self.pid
            && group_of(getpid()) != Some(group)
        {
            let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
        }
    }

    /// Sends a signal; true when the process was there to receive it.
    pub(crate) fn signal(&self, signal: Signal) -> std::io::Result<bool> {
        if !self.is_alive() {
            return Ok(false);
        }
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            return match rustix::process::pidfd_send_signal(descriptor, signal) {
                Ok(()) => Ok(true),
                Err(rustix::io::Errno::SRCH) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
        match rustix::process::kill_process(self.pid, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it is a process of a server on this data directory. None when the system does not let us see
    /// that.
    ///
    /// The working directory of all its processes is the data directory, from before the pid file is written.
    pub(crate) fn serves(&self, data_dir: &Path) -> Option<bool> {
        let at = working_directory(self.pid())?;
        let wanted = std::fs::metadata(data_dir).ok()?;
        // By file and not by name: a server in a container calls it differently.
        Some((at.dev(), at.ino()) == (wanted.dev(), wanted.ino()))
    }

    /// Whether a process that we may not look into could be a server on this data directory: those run as
    /// its owner.
    pub(crate) fn may_serve(&self, data_dir: &Path) -> bool {
        let process = std::fs::metadata(format!("/proc/{}", self.pid()));
        match (process, std::fs::metadata(data_dir)) {
            // What may not be looked into at all is shown as root's.
            (Ok(process), Ok(data_dir)) => process.uid() == data_dir.uid() || process.uid() == 0,
            _ => true,
        }
    }
}

/// Numbers come from files; what is no number of a process is not given to the library, which panics.
fn numbered(pid: i32) -> Option<Pid> {
    if pid > 0 { Pid::from_raw(pid) } else { None }
}

/// Whether some process, a zombie included, has this number.
pub(crate) fn number_is_taken(pid: i32) -> bool {
    numbered(pid).is_some_and(|pid| {
        !matches!(
            rustix::process::test_kill_process(pid),
            Err(rustix::io::Errno::SRCH)
        )
    })
}

/// The living processes of PostgreSQL that work in this data directory, as far as we may see them.
pub(crate) fn servers_in(data_dir: &Path) -> Vec<i32> {
    postgres_processes()
        .into_iter()
        .filter_map(Process::open)
        .filter(|process| process.serves(data_dir) == Some(true))
        .map(|process| process.pid())
        .collect()
}

/// All processes that are PostgreSQL's by name: somebody's shell may stand in a data directory too.
pub(crate) fn postgres_processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            name(*pid).is_some_and(|name| name.contains("postgres") || name.contains("postmaster"))
        })
        .collect()
}

/// The child of a server's main process that recovers, as long as there is one.
pub(crate) fn startup_process(server: i32) -> Option<i32> {
    postgres_processes().into_iter().find(|pid| {
        is_child(*pid, server)
            && command_line(*pid)
                .and_then(|line| line.into_iter().next())
                .is_some_and(|title| title.contains(": startup"))
    })
}

/// Whether a process with this number, a zombie included, is the child of another.
pub(crate) fn is_child(pid: i32, parent: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, after)) = stat.rsplit_once(')') else {
        return false;
    };
    let number = after
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok());
    number == Some(parent)
}

/// What the system calls a process: the first fifteen letters of its program's file name.
pub(crate) fn name(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// How messages call a process: what it shows itself as.
pub(crate) fn describe(pid: i32) -> String {
    let title = command_line(pid).and_then(|line| line.into_iter().next());
    match title.or_else(|| name(pid)) {
        Some(title) => format!("{pid} ({})", title.trim()),
        None => pid.to_string(),
    }
}

/// When a process began, by the wall clock as it goes now.
#[cfg(target_os = "linux")]
pub(crate) fn began(pid: i32) -> Option<SystemTime> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    // The 22nd field; the third is the first one behind the name.
    let ticks: u64 = after.split_whitespace().nth(19)?.parse().ok()?;
    let millis = ticks.checked_mul(1000)? / rustix::param::clock_ticks_per_second().max(1);
    let system = std::fs::read_to_string("/proc/stat").ok()?;
    let boot = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    let boot = Duration::from_secs(boot.trim().parse().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(boot + Duration::from_millis(millis))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn began(_pid: i32) -> Option<SystemTime> {
    None
}

/// The program that a process runs.
pub(crate) fn program(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// The arguments of a process, its program first. A postmaster leaves its own as they were.
pub(crate) fn command_line(pid: i32) -> Option<Vec<String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    Some(text.split_terminator('\0').map(str::to_owned).collect())
}

#[cfg(target_os = "linux")]
fn working_directory(pid: i32) -> Option<Metadata> {
    std::fs::metadata(format!("/proc/{pid}/cwd")).ok()
}

#[cfg(not(target_os = "linux"))]
fn working_directory(pid: i32) -> Option<Metadata> {
    let output = std::process::Command::new("lsof")
        .env_clear()
        .env("PATH", crate::command::SYSTEM_PATH)
        .args(["-a", "-d", "cwd", "-Fn", "-p", &pid.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix('n'))?;
    std::fs::metadata(path).ok()
}

/// The letter after the name in `/proc/<pid>/stat`.
#[cfg(target_os = "linux")]
fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    after.trim_start().chars().next()
}

/// The process group of a process; none when it has no number that can be told: in a container whose first process
/// did not begin a session of its own that is the group of somebody outside.
///
/// Not asked of the system: it answers 0 then, which rustix takes for impossible.
#[cfg(target_os = "linux")]
fn group_of(pid: Pid) -> Option<Pid> {
    // Mounted outside of a container it counts as they do there, and tells of another process.
    let ours: i32 = std::fs::read_link("/proc/self")
        .ok()?
        .to_str()?
        .parse()
        .ok()?;
    if ours != rustix::process::getpid().as_raw_pid() {
        return None;
    }
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    let (_, after) = stat.rsplit_once(')')?;
    // The fifth field; the third is the first one behind the name.
    let group: i32 = after.split_whitespace().nth(2)?.parse().ok()?;
    // A process that is being taken away while it is asked about has none: -1.
    numbered(group)
}

#[cfg(not(target_os = "linux"))]
fn group_of(pid: Pid) -> Option<Pid> {
    rustix::process::getpgid(Some(pid)).ok()
}

#[cfg(not(target_os = "linux"))]
fn is_zombie_by_ps(pid: i32) -> bool {
    std::process::Command::new("ps")
        .env_clear()
        .env("PATH", crate::command::SYSTEM_PATH)
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"Z"))
}

/// Whether processes are attached to a System V shared memory segment: line 7 of a pid file names the one
/// by which PostgreSQL itself recognises survivors of a dead postmaster. None when that cannot be seen.
pub(crate) fn shared_memory_in_use(shmid: u64) -> Option<bool> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").ok()?;
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next()?.split_whitespace().collect();
    let column = |name: &str| header.iter().position(|title| *title == name);
    let (id, attached) = (column("shmid")?, column("nattch")?);
    for line in lines {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields.get(id).and_then(|id| id.parse().ok()) == Some(shmid) {
            return Some(fields.get(attached).is_some_and(|count| *count != "0"));
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// Whoever started it waits for it, in another thread perhaps.
    #[test]
    fn a_child_that_somebody_waits_for_is_not_taken_away() {
        for group in [None, Some(0)] {
            let mut command = Command::new("true");
            if let Some(group) = group {
                command.process_group(group);
            }
            let mut child = command.spawn().unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            while Process::open(pid).is_some() {
                std::thread::yield_now();
            }
            assert!(child.wait().unwrap().success());
        }
    }

    /// A lock file may hold any number, and a process that is just being taken away is shown in the group -1.
    #[test]
    fn what_is_no_number_of_a_process_is_no_process() {
        for number in [0, -1, i32::MIN] {
            assert!(Process::open(number).is_none());
            assert!(!number_is_taken(number));
            assert!(numbered(number).is_none());
        }
    }

    /// The test above as the first process of a container that is in a group of ours. Only root may make one.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_group_outside_of_the_container_is_no_hindrance() {
        if !rustix::process::geteuid().is_root() {
            assert!(group_of(rustix::process::getpid()).is_some());
            return;
        }
        for proc in [&["--mount-proc"][..], &[]] {
            let output = Command::new("unshare")
                .args(["--pid", "--fork"])
                .args(proc)
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture"])
                .arg("process::tests::a_child_that_somebody_waits_for_is_not_taken_away")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}{complaint}");
            assert!(said.contains("1 passed"), "{said}");
        }
    }
}
