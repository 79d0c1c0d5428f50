//! Homes in scratch folders.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use neon_pg::{CreatePg, CreateSnapshot, ErrorKind, Found, Name, Neon, Options, PgMajor};
use neon_testkit::{Installation, Scratch};

pub(crate) struct Fixture {
    pub(crate) neon: Neon,
    pub(crate) scratch: Scratch,
    /// Servers of this home are ended with it.
    major: PgMajor,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::of(PgMajor::V15)
    }

    pub(crate) fn of(major: PgMajor) -> Self {
        let scratch = Scratch::new();
        let neon = Neon::open(scratch.path().join("home"), options(major)).unwrap();
        Self {
            neon,
            scratch,
            major,
        }
    }

    /// The home opened once more, as another command would.
    pub(crate) fn again(&self) -> Neon {
        Neon::open(self.scratch.path().join("home"), options(self.major)).unwrap()
    }

    /// A home at a place of its own.
    pub(crate) fn at(major: PgMajor, home: &std::path::Path) -> Neon {
        Neon::open(home, options(major)).unwrap()
    }

    /// A home with options of its own.
    pub(crate) fn having(major: PgMajor, change: impl FnOnce(&mut Options)) -> Self {
        let scratch = Scratch::new();
        let mut options = options(major);
        change(&mut options);
        let neon = Neon::open(scratch.path().join("home"), options).unwrap();
        Self {
            neon,
            scratch,
            major,
        }
    }

    /// The same, opened with other options.
    pub(crate) fn with(&self, change: impl FnOnce(&mut Options)) -> Neon {
        let mut options = options(self.major);
        change(&mut options);
        Neon::open(self.scratch.path().join("home"), options).unwrap()
    }

    pub(crate) fn create(&self) -> CreatePg {
        let mut create = CreatePg::default();
        create.major = Some(self.major);
        create
    }

    /// Makes an instance of this name, which runs.
    pub(crate) async fn running(&self, name: &str) {
        let mut create = self.create();
        create.name = Some(name.parse().unwrap());
        self.neon.pg().create(&create).await.unwrap();
    }

    pub(crate) fn stopped(&self, name: &str) -> CreatePg {
        let mut create = self.create();
        create.name = Some(name.parse().unwrap());
        create.no_start = true;
        create
    }
}

impl Fixture {
    /// Ends the server of an instance as a loss of power would.
    pub(crate) fn crash(&self, name: &str) {
        let data = self.scratch.path().join("home/pg").join(name).join("data");
        assert!(data.join("postmaster.pid").exists());
        end_server(&data);
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Whatever a failed test left running ends before its folder goes.
        let folders = std::fs::read_dir(self.scratch.path().join("home/pg"));
        for folder in folders.into_iter().flatten().flatten() {
            end_server(&folder.path().join("data"));
        }
    }
}

/// The names in a folder of a home, but for the sign of the home.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with(".home-")).collect()
}

/// Ends the server of a data directory at once, if there is one.
pub(crate) fn end_server(data: &Path) {
    let pid = std::fs::read_to_string(data.join("postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.parse::<i32>().ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // One that is gone already is what was wanted.
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        while rustix::process::test_kill_process(pid).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

fn options(major: PgMajor) -> Options {
    let mut options = Options::new();
    options.pg_bin = vec![Installation::of(major).bin_dir().to_owned()];
    // Ports that no other test running now takes while a server of this one is stopped.
    let slot = u16::try_from(std::process::id() % 1000).unwrap();
    let first = 30_000 + slot * 20;
    options.ports = first..=first + 19;
    options
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn refused<T>(result: neon_pg::Result<T>) -> ErrorKind {
    result.err().map(|error| error.kind()).unwrap()
}

/// Runs a query in the database `postgres` of an instance; the first value of its answer.
pub(crate) async fn sql(neon: &Neon, pg: &str, query: &str) -> String {
    let instance = neon.pg().instance(&name(pg)).await.unwrap();
    let mut client = instance.connect("postgres").await.unwrap();
    let results = client.simple_query(query).await.unwrap();
    let first = results.first().and_then(|rows| rows.value(0, 0));
    let first = first.unwrap_or_default().to_owned();
    client.close().await;
    first
}

/// Waits until a server has no slot: a temporary one goes when the server has noticed that its session ended.
pub(crate) async fn no_slot_is_left(neon: &Neon, pg: &str) {
    let patience = Instant::now() + Duration::from_secs(120);
    while sql(neon, pg, "select count(*) from pg_replication_slots").await != "0" {
        assert!(Instant::now() < patience, "a slot is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs statements, each by itself.
pub(crate) async fn run(neon: &Neon, pg: &str, statements: &str) {
    let instance = neon.pg().instance(&name(pg)).await.unwrap();
    let mut client = instance.connect("postgres").await.unwrap();
    for statement in statements.split(';').filter(|part| !part.trim().is_empty()) {
        client.simple_query(statement).await.unwrap();
    }
    client.close().await;
}

/// Takes a snapshot of an instance, whatever its server does.
pub(crate) async fn take(neon: &Neon, pg: &str, tag: &str) -> Found {
    let whole = format!("{pg}@{tag}");
    let wanted = CreateSnapshot::new(whole.parse().unwrap());
    let taken = neon.snapshots().create(&wanted).await.unwrap();
    let found = neon.snapshots().find(&whole, None).await.unwrap();
    assert_eq!(found.id, taken.id);
    found
}

/// Runs a program of the system, which must succeed.
pub(crate) fn program(name: &str, arguments: &[&str]) {
    let done = Command::new(name).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{name} {arguments:?}: {said}");
}

/// Runs a test of this binary in a process with a mount namespace of its own: with the process the mounts go.
pub(crate) fn with_own_mounts(test: &str, variables: &[(&str, &str)]) {
    let done = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&done.stdout);
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{out}{error}");
    assert!(out.contains("1 passed"), "{out}");
}
