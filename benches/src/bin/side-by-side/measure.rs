//! What a run costs: of the processes that were started, and of the server beside them.
//!
//! - Wall: from the first `fork` to the end of `syncfs` of the file system that was written to.
//! - Processor: `/proc/PID/stat` of each command after it ended and before it is reaped, which includes all children that it
//!   has reaped (ticks of 10 ms).
//! - Bytes: `/proc/PID/io` at the same moment, which the kernel sums in the same way. `read` and `written` is what passed
//!   through system calls, pipes and sockets included, the cache too; `disk_*` is what reached a device for it until then.
//! - Memory: the largest sum of resident memory of a command and its descendants, looked at every 10 ms, and no less than the
//!   kernel's own peak of the command itself.
//! - The server: the same of its first process and its children, before and after.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::server::Server;

/// What one run cost. Seconds and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) wall: f64,
    pub(crate) processor: f64,
    pub(crate) server_processor: f64,
    pub(crate) checkpoint: f64,
    pub(crate) peak: u64,
    pub(crate) read: u64,
    pub(crate) written: u64,
    pub(crate) disk_read: u64,
    pub(crate) disk_written: u64,
    pub(crate) server_read: u64,
    pub(crate) server_written: u64,
    /// To an object storage; none where there is none.
    pub(crate) requests: Option<u64>,
}

/// What a run is: commands one after the other, and what they write to.
#[derive(Debug, Default)]
pub(crate) struct Job {
    pub(crate) commands: Vec<Command>,
}

impl Job {
    pub(crate) fn of(commands: impl IntoIterator<Item = Command>) -> Self {
        Self {
            commands: commands.into_iter().collect(),
        }
    }
}

/// Runs a job. With what its last command printed.
///
/// # Panics
/// When a command fails, with what it said.
pub(crate) fn measured(
    job: Job,
    flushed: &Path,
    server: Option<&Server>,
    cold: bool,
) -> (Usage, String) {
    settle(flushed, cold);
    let log = server.map(Server::log_position);
    let before = server.map(Server::counters);
    let mut usage = Usage::default();
    let mut said = String::new();
    let begun = Instant::now();
    for command in job.commands {
        said = one(command, &mut usage);
    }
    flush(flushed);
    usage.wall = begun.elapsed().as_secs_f64();
    if let (Some(server), Some(before), Some(log)) = (server, before, log) {
        let after = server.counters();
        usage.server_processor = (after.processor - before.processor).max(0.0);
        usage.server_read = after.read.saturating_sub(before.read);
        usage.server_written = after.written.saturating_sub(before.written);
        usage.checkpoint = server.checkpoints_since(&log);
    }
    (usage, said)
}

/// Nothing of what came before is left to be written by who is measured.
fn settle(at: &Path, cold: bool) {
    flush(at);
    if cold {
        fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
    }
}

/// Makes everything durable that was written to the file system of this path.
pub(crate) fn flush(at: &Path) {
    rustix::fs::syncfs(File::open(at).expect("what was written to")).unwrap();
}

fn one(mut command: Command, usage: &mut Usage) -> String {
    let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let ended = AtomicBool::new(false);
    let id = Pid::from_child(&child);
    let number = id.as_raw_nonzero().get().unsigned_abs();
    let (peak, spent) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| peak_of(number, &ended));
        waitid(
            WaitId::Pid(id),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        )
        .unwrap();
        let spent = Counters::of(number).unwrap_or_default();
        ended.store(true, Ordering::Release);
        (sampler.join().unwrap(), spent)
    });
    let status = child.wait().unwrap();
    let said = text(out);
    assert!(
        status.success(),
        "{command:?}: {status}\n{said}{}",
        text(err)
    );
    usage.processor += spent.processor;
    usage.read += spent.read;
    usage.written += spent.written;
    usage.disk_read += spent.disk_read;
    usage.disk_written += spent.disk_written;
    usage.peak = usage.peak.max(peak);
    said
}

fn text(mut file: File) -> String {
    use std::io::{Read, Seek};
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a process and those it has reaped spent so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) processor: f64,
    pub(crate) read: u64,
    pub(crate) written: u64,
    pub(crate) disk_read: u64,
    pub(crate) disk_written: u64,
}

impl Counters {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        let numbers = io_numbers(&io);
        let number = |key: &str| numbers.get(key).copied().unwrap_or(0);
        Some(Self {
            processor: processor_of(&stat)?,
            read: number("rchar"),
            written: number("wchar"),
            disk_read: number("read_bytes"),
            disk_written: number("write_bytes"),
        })
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.processor += other.processor;
        self.read += other.read;
        self.written += other.written;
        self.disk_read += other.disk_read;
        self.disk_written += other.disk_written;
    }
}

/// Seconds of a process and of its reaped children, from its `stat`: fields 14 to 17, in hundredths.
fn processor_of(stat: &str) -> Option<f64> {
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u32 = rest
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(|field| field.parse::<u32>().ok())
        .sum::<Option<u32>>()?;
    Some(f64::from(ticks) / 100.0)
}

fn io_numbers(text: &str) -> HashMap<&str, u64> {
    text.lines()
        .filter_map(|line| line.split_once(": "))
        .filter_map(|(key, value)| Some((key, value.trim().parse().ok()?)))
        .collect()
}

/// Each process with its parent.
fn parents() -> HashMap<u32, u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (_, rest) = stat.rsplit_once(')')?;
            Some((pid, rest.split_whitespace().nth(1)?.parse().ok()?))
        })
        .collect()
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let all = parents().into_iter();
    all.filter(|(_, parent)| *parent == pid)
        .map(|(child, _)| child)
        .collect()
}

fn peak_of(pid: u32, ended: &AtomicBool) -> u64 {
    let mut peak = 0;
    while !ended.load(Ordering::Acquire) {
        let parents = parents();
        let below = |mut one: u32| {
            while one != pid {
                match parents.get(&one) {
                    Some(parent) if *parent != one => one = *parent,
                    _ => return false,
                }
            }
            true
        };
        let sum = parents
            .keys()
            .filter(|one| below(**one))
            .map(|one| status_bytes(*one, "VmRSS:"))
            .sum();
        peak = peak.max(sum).max(status_bytes(pid, "VmHWM:"));
        std::thread::sleep(Duration::from_millis(10));
    }
    peak
}

fn status_bytes(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_includes_children_and_survives_odd_names() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194304 100 0 0 0 12 30 5 3 20 0 1 0 100 1 1";
        assert_eq!(processor_of(stat), Some(0.5));
        assert_eq!(processor_of("7 (a) S 1"), Some(0.0));
        assert_eq!(processor_of("nothing"), None);
    }

    #[test]
    fn bytes_of_reaped_children_count() {
        let mut usage = Usage::default();
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 3000000 /dev/zero >/dev/null; echo said"]);
        assert_eq!(one(command, &mut usage), "said\n");
        assert!(usage.read >= 3_000_000, "{usage:?}");
        assert!(usage.written >= 3_000_000, "{usage:?}");
    }
}
