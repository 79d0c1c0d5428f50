//! What several modules need: instances in scratch folders, and the runtime they run on.

use std::future::Future;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) use neon_pgctl::*;
pub(crate) use neon_testkit::Scratch;

/// Longer than anything takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Tells a process of another user, who may not be able to read the list of installations, where they are.
fn bin_dir_variable(major: PgMajor) -> String {
    format!("NEON_PGCTL_BIN_DIR_{major}")
}

pub(crate) fn installation(major: PgMajor) -> Installation {
    match std::env::var_os(bin_dir_variable(major)) {
        Some(bin_dir) => Installation::at(bin_dir).unwrap(),
        None => Installation::at(neon_testkit::Installation::of(major).bin_dir()).unwrap(),
    }
}

/// Runs a test's future on a runtime of its own.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// An instance in a scratch folder, and nothing runs.
pub(crate) struct Fixture {
    pub(crate) instance: Instance,
    pub(crate) scratch: Scratch,
}

impl Fixture {
    pub(crate) async fn new(major: PgMajor) -> Self {
        Self::with(major, &create_options()).await
    }

    pub(crate) async fn with(major: PgMajor, options: &CreateOptions) -> Self {
        let scratch = Scratch::new();
        let dir = scratch.path().join("pg");
        let instance = Instance::create(&installation(major), dir, options)
            .await
            .unwrap();
        Self { instance, scratch }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.scratch.path().join("pg")
    }

    /// Adds lines to `postgresql.conf`, as a user would.
    pub(crate) fn configure(&self, lines: &str) {
        let path = self.instance.data_dir().join("postgresql.conf");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(lines);
        text.push('\n');
        std::fs::write(path, text).unwrap();
    }
}

/// Ports that no other test running now takes while a server of this one is stopped.
pub(crate) fn own_ports() -> PortChoice {
    let slot = u16::try_from(std::process::id() % 1000).unwrap();
    let first = 10_000 + slot * 20;
    PortChoice::Free {
        range: first..=first + 19,
        avoid: Vec::new(),
    }
}

pub(crate) fn start_options() -> StartOptions {
    StartOptions::new().with_port(own_ports())
}

/// Durability is the subject of no test but its own.
pub(crate) fn create_options() -> CreateOptions {
    CreateOptions::new().without_sync()
}

/// One value of one row, over the socket.
pub(crate) async fn query(instance: &Instance, sql: &str) -> String {
    let mut client = instance.connect("postgres").await.unwrap();
    let results = client.simple_query(sql).await.unwrap();
    results
        .last()
        .and_then(|result| result.value(0, 0))
        .unwrap_or_default()
        .to_owned()
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process that is no zombie has this number.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Processes of PostgreSQL that work in a folder.
pub(crate) fn postgres_in(dir: &Path) -> Vec<i32> {
    let mut found = working_in(dir);
    if !found.is_empty() {
        // A process that ends lets go of its files a moment before its working directory: only who is
        // still there a little later is there.
        std::thread::sleep(Duration::from_millis(100));
        let later = working_in(dir);
        found.retain(|pid| later.contains(pid));
    }
    found
}

fn working_in(dir: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
        })
        .collect()
}

pub(crate) fn we_are_root() -> bool {
    OsUser::current().is_root()
}

/// The tests' own program again, to run one test in another process.
pub(crate) fn this_program(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env_remove("NEXTEST")
        .stdin(Stdio::null());
    command
}

/// As [`this_program`], as the user of servers: a copy that this user can reach.
pub(crate) fn this_program_as_server_user(test: &str, scratch: &Scratch) -> Command {
    let copy = scratch.path().join("it");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let mut command = Command::new(copy);
    command
        .args(this_program(test).get_args())
        .stdin(Stdio::null());
    for major in PgMajor::ALL {
        command.env(bin_dir_variable(major), installation(major).bin_dir());
    }
    as_server_user(&mut command);
    command
}

/// Runs a command to its end, which must be a good one, and gives what it printed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}\n{errors}",
        output.status
    );
    text
}

/// Makes a command run as the user of servers.
pub(crate) fn as_server_user(command: &mut Command) {
    if let Some((uid, gid)) = neon_testkit::OsUser::current().ids() {
        command.uid(uid).gid(gid).current_dir("/");
    }
}
