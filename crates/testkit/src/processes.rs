//! Finding and ending the processes that work inside a scratch folder.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to start, stop or die before a test gives up: for machines that run
/// many at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// How often a condition is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// The processes whose working directory is `folder` or lies below it. Servers, their children and
/// `initdb` all are such.
pub(crate) fn working_in(folder: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry
                .file_name()
                .to_str()?
                .parse()
                .ok()
                .and_then(Pid::from_raw)?;
            let cwd = std::fs::read_link(entry.path().join("cwd")).ok()?;
            cwd.starts_with(folder).then_some(pid)
        })
        .collect()
}

/// Sends a signal; a process that is gone already is fine.
pub(crate) fn signal(pid: Pid, signal: Signal) {
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("signalling process {pid:?}: {error}"),
    }
}

/// Kills everything that works inside `folder` and returns when nothing is left.
pub(crate) fn kill_all_in(folder: &Path) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = working_in(folder);
        if left.is_empty() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{left:?} in {} do not die",
            folder.display()
        );
        for pid in left {
            signal(pid, Signal::KILL);
        }
        std::thread::sleep(POLL);
    }
}

/// Waits for a child; none when it still runs after `patience`.
pub(crate) fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

pub(crate) fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// What a process ended with, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Removes the System V segment that a killed server left behind; line 7 of its pid file names it.
pub(crate) fn remove_shared_memory(data_dir: &Path) {
    let Ok(text) = std::fs::read_to_string(data_dir.join("postmaster.pid")) else {
        return;
    };
    let id = text
        .lines()
        .nth(6)
        .and_then(|line| line.split_whitespace().nth(1));
    if let Some(id) = id {
        let status = Command::new("ipcrm")
            .args(["-m", id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // The server may have removed it itself, and a machine without the program keeps 56 bytes.
        drop(status);
    }
}
