//! What every contender can do.

use std::path::{Path, PathBuf};
use std::process::Command;

use neon_testkit::OsUser;

use crate::data::Data;
use crate::measure::Job;
use crate::options::Options;
use crate::peers::Peers;
use crate::server::Server;

/// What all contenders share: the machine's side of the run.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) options: Options,
    pub(crate) folder: PathBuf,
    pub(crate) peers: Peers,
    pub(crate) data: Data,
    pub(crate) source: Server,
}

/// A way to keep a cluster and to get it back.
pub(crate) trait Tool {
    /// What it is called in tables.
    fn name(&self) -> String;

    /// Whether it needs the server stopped.
    fn cold(&self) -> bool {
        false
    }

    /// Which of ours it is compared with.
    fn peer_of(&self) -> &'static str {
        crate::ours::ZSTD
    }

    /// Where it keeps what it takes.
    fn repository(&self) -> PathBuf;

    /// Makes an empty repository, in place of the one before; not measured.
    fn prepare(&mut self);

    /// Right before a run that reads the source; not measured.
    fn before(&mut self) {}

    /// Right after it; not measured.
    fn after(&mut self) {}

    /// Takes everything.
    fn first(&mut self) -> Job;

    /// Takes what changed since the last time, if it has a notion of that.
    fn next(&mut self) -> Option<Job>;

    /// Brings the last one back into an empty place.
    fn restore(&mut self) -> Job;

    /// The server on what was brought back; none is running yet.
    fn restored(&self) -> Server;

    /// Removes what was brought back; not measured.
    fn discard(&mut self);

    /// Lists what is kept.
    fn list(&self) -> Option<Job> {
        None
    }
}

impl Place {
    /// A folder that belongs to the server's user.
    pub(crate) fn owned(&self, name: &str) -> PathBuf {
        let path = self.folder.join(name);
        OsUser::current().create_dir(&path);
        path
    }

    /// The server on a directory that a peer brought back.
    pub(crate) fn server_on(&self, data: &Path) -> Server {
        let name = data.file_name().unwrap().to_string_lossy().into_owned();
        Server {
            data: data.to_owned(),
            installation: self.source.installation,
            socket: self.owned("s"),
            port: port_of(&name),
            password: self.source.password.clone(),
            log: self.owned("logs").join(name),
        }
    }
}

/// Of the socket's name alone, but each server's own.
pub(crate) fn port_of(name: &str) -> u16 {
    22_000 + u16::from(blake3::hash(name.as_bytes()).as_bytes()[0])
}

/// A program of the system, run as the servers' user with nothing of our environment.
pub(crate) fn program(path: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LC_ALL", "C")
        .current_dir("/");
    OsUser::current().apply(&mut command);
    command
}

/// A line of the shell, run in the same way; `$1` and so on are the arguments.
pub(crate) fn shell(line: &str, arguments: &[&Path]) -> Command {
    let mut command = program("bash");
    command.args(["-euo", "pipefail", "-c", line, "side-by-side"]);
    command.args(arguments);
    command
}

/// Removes a folder if it is there.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_dir_all(path) {
        let gone = error.kind() == std::io::ErrorKind::NotFound;
        assert!(gone, "{}: {error}", path.display());
    }
}

/// Runs what is not measured, and must succeed.
pub(crate) fn quietly(mut command: Command) -> String {
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}{error}");
    said
}
