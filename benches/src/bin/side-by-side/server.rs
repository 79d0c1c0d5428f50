//! A running server: SQL, what it spends, and what it says of checkpoints.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use neon_testkit::{Installation, OsUser};

use crate::measure::{Counters, children};

/// A server, wherever it came from.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) data: PathBuf,
    pub(crate) installation: &'static Installation,
    pub(crate) socket: PathBuf,
    pub(crate) port: u16,
    pub(crate) password: String,
    /// The folder of its logs.
    pub(crate) log: PathBuf,
}

impl Server {
    /// A client program that connects to it as the superuser.
    pub(crate) fn client(&self, program: &str) -> Command {
        let mut command = self.installation.command(program);
        command
            .env("PGHOST", &self.socket)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGPASSWORD", &self.password)
            .current_dir("/");
        command
    }

    /// Runs a script of SQL, psql's own commands included. With what it printed.
    pub(crate) fn sql(&self, script: &str) -> String {
        let mut command = self.client("psql");
        command
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", self.data.display());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes everything that is dirty, so that nobody who follows has to.
    pub(crate) fn checkpoint(&self) {
        self.sql("checkpoint");
    }

    /// Starts it as a command of its own: not listening on TCP, not archiving, logging to its folder.
    pub(crate) fn start(&self) -> Command {
        fs::create_dir_all(&self.log).unwrap();
        OsUser::current().own(&self.log);
        let settings = [
            ("port", self.port.to_string()),
            ("listen_addresses", String::new()),
            ("unix_socket_directories", self.socket.display().to_string()),
            ("archive_mode", "off".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_checkpoints", "on".to_owned()),
        ];
        let mut text = String::new();
        for (name, value) in settings {
            text.push_str(&format!("-c {name}='{value}' "));
        }
        let mut command = self.installation.command("pg_ctl");
        command
            .args(["-w", "-t", "600", "-D"])
            .arg(&self.data)
            .arg("-l")
            .arg(self.log.join("server.log"))
            .args(["-o", &text, "start"])
            .current_dir("/");
        command
    }

    /// Stops it.
    pub(crate) fn stop(&self, mode: &str) -> Command {
        let mut command = self.installation.command("pg_ctl");
        command.args(["-w", "-t", "600", "-m", mode, "-D"]);
        command.arg(&self.data).arg("stop").current_dir("/");
        command
    }

    fn pid(&self) -> Option<u32> {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok()
    }

    /// What it has spent since it began, all of its processes together.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        let Some(pid) = self.pid() else { return sum };
        // A child that is reaped between the two looks would be missing or counted twice: look until nothing changes.
        for _ in 0..20 {
            let before = children(pid);
            sum = Counters::of(pid).unwrap_or_default();
            for child in &before {
                sum.add(&Counters::of(*child).unwrap_or_default());
            }
            let (mut before, mut after) = (before, children(pid));
            before.sort_unstable();
            after.sort_unstable();
            if before == after {
                break;
            }
        }
        sum
    }

    /// Where its logs end now.
    pub(crate) fn log_position(&self) -> HashMap<PathBuf, usize> {
        logs(&self.log)
            .into_iter()
            .map(|(path, text)| (path, text.len()))
            .collect()
    }

    /// Seconds of checkpoints that were completed since.
    pub(crate) fn checkpoints_since(&self, position: &HashMap<PathBuf, usize>) -> f64 {
        logs(&self.log)
            .into_iter()
            .map(|(path, text)| {
                let from = position.get(&path).copied().unwrap_or(0);
                checkpoint_seconds(text.get(from..).unwrap_or_default())
            })
            .sum()
    }
}

fn logs(folder: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let bytes = fs::read(entry.path()).ok()?;
            Some((entry.path(), String::from_utf8_lossy(&bytes).into_owned()))
        })
        .collect()
}

/// The sum of `total=… s` of a log's lines on completed checkpoints.
fn checkpoint_seconds(log: &str) -> f64 {
    log.lines()
        .filter(|line| line.contains("checkpoint complete"))
        .filter_map(|line| {
            let (_, rest) = line.split_once("total=")?;
            rest.split_once(' ')?.0.parse::<f64>().ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_read_from_the_log() {
        let log = "2026-01-01 LOG:  checkpoint starting: immediate force wait\n\
            2026-01-01 LOG:  checkpoint complete: wrote 3 buffers (0.0%); 0 WAL file(s) added, 0 removed, 1 recycled; \
            write=0.001 s, sync=0.002 s, total=0.012 s; sync files=2, longest=0.001 s, average=0.001 s\n\
            2026-01-01 LOG:  checkpoint complete: wrote 1 buffers (0.0%); write=0.1 s, sync=0.1 s, total=0.3 s; x\n";
        assert!((checkpoint_seconds(log) - 0.312).abs() < 1e-9);
        assert_eq!(checkpoint_seconds("total=4 s"), 0.0);
    }
}
