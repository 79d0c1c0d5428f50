//! Ours: the `neon` command, used as a user would.

use std::path::{Path, PathBuf};
use std::process::Command;

use neon_testkit::{Installation, OsUser, PgMajor};

use crate::measure::Job;
use crate::server::Server;
use crate::tool::{Place, Tool, port_of, quietly, remove};

pub(crate) const ZSTD: &str = "neon zstd:1";
pub(crate) const LZ4: &str = "neon lz4";

/// A home: where it is, and the program.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    neon: PathBuf,
    path: PathBuf,
    ports: &'static str,
}

impl Home {
    pub(crate) fn new(neon: &Path, path: PathBuf, ports: &'static str) -> Self {
        Self {
            neon: neon.to_owned(),
            path,
            ports,
        }
    }

    /// The one of the source.
    pub(crate) fn of(place: &Place) -> Self {
        Self::new(&place.peers.neon, place.folder.join("home"), "31000-31099")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.neon);
        let folders = [PgMajor::V15, PgMajor::V18].map(|major| Installation::of(major).bin_dir());
        let bin = std::env::join_paths(folders).unwrap();
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("NEON_HOME", &self.path)
            .env("NEON_PG_BIN", bin)
            .env("NEON_PORTS", self.ports)
            .env("NEON_OS_USER", OsUser::current().name())
            .current_dir("/")
            .arg("-q")
            .args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        quietly(self.command(arguments))
    }

    /// Attaches a storage of type `native`.
    pub(crate) fn attach(&self, name: &str, path: &Path, compression: &str) {
        let compression = format!("compression={compression}");
        let path = path.to_str().unwrap();
        self.run(&["storage", "attach", "-n", name, "-c", &compression, path]);
    }

    /// The server of one of its instances.
    pub(crate) fn server(&self, name: &str, major: PgMajor) -> Server {
        let folder = self.path.join("pg").join(name);
        let pass = std::fs::read_to_string(folder.join("pgpass")).unwrap();
        let shown = self.run(&["-o", "json", "pg", "show", name]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        Server {
            data: folder.join("data"),
            installation: Installation::of(major),
            socket: folder.join("run"),
            // One that was never started has none yet.
            port: u16::try_from(shown["port"].as_u64().unwrap_or(31_000)).unwrap(),
            password: pass.trim().rsplit_once(':').unwrap().1.to_owned(),
            log: folder.join("log"),
        }
    }

    /// Removes an instance for good.
    pub(crate) fn destroy(&self, name: &str) {
        self.run(&["pg", "destroy", name, "--yes"]);
        self.run(&["pg", "trash", "--empty", "--yes"]);
    }
}

/// A storage of one compression.
#[derive(Debug)]
pub(crate) struct Ours {
    home: Home,
    folder: PathBuf,
    exports: PathBuf,
    socket: PathBuf,
    logs: PathBuf,
    instance: String,
    major: PgMajor,
    name: &'static str,
    label: &'static str,
    compression: &'static str,
    storages: usize,
    snapshots: usize,
    restored: usize,
}

impl Ours {
    /// `label` tells its storages from those of other stages.
    pub(crate) fn new(
        place: &Place,
        instance: &str,
        major: PgMajor,
        name: &'static str,
        label: &'static str,
    ) -> Self {
        Self {
            home: Home::of(place),
            folder: place.folder.join("repositories"),
            exports: place.owned("restored"),
            socket: place.owned("s"),
            logs: place.owned("logs"),
            instance: instance.to_owned(),
            major,
            name,
            label,
            compression: if name == LZ4 { "lz4" } else { "zstd:1" },
            storages: 0,
            snapshots: 0,
            restored: 0,
        }
    }

    pub(crate) fn storage(&self) -> String {
        let codec = self.compression.trim_end_matches(":1");
        format!("{}{codec}{}", self.label, self.storages)
    }

    /// The name of the last snapshot.
    pub(crate) fn snapshot(&self) -> String {
        format!("{}@{}x{}", self.instance, self.storage(), self.snapshots)
    }

    fn create(&mut self) -> Job {
        self.snapshots += 1;
        let (snapshot, storage) = (self.snapshot(), self.storage());
        let arguments = [
            "-o", "json", "snapshot", "create", &snapshot, "-s", &storage,
        ];
        Job::of([self.home.command(&arguments)])
    }

    /// Where the last restore went.
    fn exported(&self) -> PathBuf {
        let name = format!("{}back{}", self.storage(), self.restored);
        self.exports.join(name)
    }
}

impl Tool for Ours {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn peer_of(&self) -> &'static str {
        self.name
    }

    fn repository(&self) -> PathBuf {
        self.folder.join(self.storage())
    }

    fn prepare(&mut self) {
        if self.storages > 0 {
            self.home
                .run(&["storage", "detach", &self.storage(), "--yes"]);
            remove(&self.repository());
        }
        self.storages += 1;
        self.snapshots = 0;
        self.home
            .attach(&self.storage(), &self.repository(), self.compression);
    }

    fn first(&mut self) -> Job {
        self.create()
    }

    fn next(&mut self) -> Option<Job> {
        Some(self.create())
    }

    /// The files, as the peers bring them back: whoever starts a server on them has it recover. What is ready to be used
    /// is compared as a clone by copy.
    fn restore(&mut self) -> Job {
        self.restored += 1;
        let (snapshot, to) = (self.snapshot(), self.exported());
        let to = to.to_str().unwrap();
        let wanted = [
            "snapshot", "export", &snapshot, "--to", to, "--format", "pgdata",
        ];
        Job::of([self.home.command(&wanted)])
    }

    fn restored(&self) -> Server {
        let data = self.exported();
        let name = data.file_name().unwrap().to_string_lossy().into_owned();
        Server {
            socket: self.socket.clone(),
            port: port_of(&name),
            log: self.logs.join(name),
            data,
            ..self.home.server(&self.instance, self.major)
        }
    }

    fn discard(&mut self) {
        remove(&self.exported());
    }

    fn list(&self) -> Option<Job> {
        let list = ["snapshot", "list", "-s", &self.storage()];
        Some(Job::of([self.home.command(&list)]))
    }
}
