//! A home in a scratch folder, and the command on it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use neon_testkit::{Installation, OsUser, PgMajor, Scratch};
use serde_json::Value;

pub(crate) struct Home {
    scratch: Scratch,
    major: PgMajor,
    ports: String,
    variables: Vec<(String, String)>,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Homes of this process so far.
static HOMES: AtomicU16 = AtomicU16::new(0);

impl Home {
    pub(crate) fn new() -> Self {
        Self::of(PgMajor::V15)
    }

    pub(crate) fn of(major: PgMajor) -> Self {
        let scratch = Scratch::new();
        // Ports that no other test running now takes while a server of this one is stopped: below those that the system
        // gives to clients.
        let slot = u16::try_from(std::process::id() % 500).unwrap();
        let home = HOMES.fetch_add(1, Ordering::Relaxed);
        let first = 10_000 + slot * 40 + home % 4 * 10;
        Self {
            scratch,
            major,
            ports: format!("{first}-{}", first + 9),
            variables: Vec::new(),
        }
    }

    /// Each command has this in its environment, too.
    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        self.variables.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.scratch.path().join("home")
    }

    /// The ports that its instances get.
    pub(crate) fn ports(&self) -> &str {
        &self.ports
    }

    /// The command with these arguments, in a clean environment.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = neon();
        command
            .args(arguments)
            .env("NEON_HOME", self.path())
            .env("NEON_PG_BIN", Installation::of(self.major).bin_dir())
            .env("NEON_OS_USER", OsUser::current().name())
            .env("NEON_PORTS", &self.ports)
            .envs(self.variables.iter().map(|(key, value)| (key, value)));
        command
    }

    /// The command's program.
    pub(crate) fn program() -> &'static str {
        env!("CARGO_BIN_EXE_neon")
    }

    /// Another program, in the environment that the command has.
    pub(crate) fn other(&self, program: &str) -> Command {
        let ours = self.command::<&str>(&[]);
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(
                ours.get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            )
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// A shell whose mounts nobody else sees.
    pub(crate) fn apart(&self, script: &str) -> Command {
        let mut command = self.other("unshare");
        command.args(["--mount", "sh", "-c", script]);
        command
    }

    /// A script of the shell on a terminal of its own. What is said there is its output.
    pub(crate) fn on_terminal(&self, script: &str) -> Command {
        let mut command = self.other("script");
        command
            .args(["-qec", script, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Ran {
        ran(&mut self.command(arguments))
    }

    /// A command that must succeed: its result.
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran.out
    }

    /// A command that must succeed: its result as data.
    pub(crate) fn json<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Value {
        let mut all: Vec<&OsStr> = vec![OsStr::new("--output"), OsStr::new("json")];
        all.extend(arguments.iter().map(AsRef::as_ref));
        let text = self.ok(&all);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// A command that must fail with this exit code: what it said.
    pub(crate) fn fails<S: AsRef<OsStr>>(&self, code: i32, arguments: &[S]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, code, "{ran:#?}");
        assert_eq!(ran.out, "", "a failure has no result");
        ran.err
    }

    /// Runs SQL in an instance, through `pg psql` and a psql that is at hand.
    pub(crate) fn sql(&self, name: &str, sql: &str) -> String {
        let ran = ran(&mut self.psql(name, &["-c", sql]));
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran.out.trim_end().to_owned()
    }

    /// A session that says `there`, and is there until its input ends.
    pub(crate) fn session(&self, name: &str) -> Command {
        self.psql(name, &["-c", r"\echo there", "-f", "-"])
    }

    fn psql(&self, name: &str, arguments: &[&str]) -> Command {
        let psql = Installation::of(self.major)
            .with_client("psql")
            .tool("psql")
            .unwrap();
        let path = format!("{}:/usr/bin:/bin", psql.parent().unwrap().display());
        let mut all = vec!["pg", "psql", name, "--", "-XAtq", "-v", "ON_ERROR_STOP=1"];
        all.extend(arguments);
        let mut command = self.command(&all);
        command.env("PATH", path);
        command
    }
}

/// The command, with nothing of our environment but a search path.
pub(crate) fn neon() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_neon"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

pub(crate) fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: std::os::unix::process::ExitStatusExt::signal(&output.status)
            .map_or_else(|| output.status.code().unwrap(), |signal| 128 + signal),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A process that a test began, ended with it, also when that panics.
#[derive(Debug)]
pub(crate) struct Begun(Child);

impl Begun {
    pub(crate) fn of(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // It is gone already where all went well.
        let _gone = self.0.kill();
        let _waited = self.0.wait();
    }
}

impl Deref for Begun {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Begun {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

/// Begins an offer that goes on until it is ended, and what it says first.
pub(crate) fn offering(serve: &mut Command) -> (Child, Value) {
    let serve = serve.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut offer = serve.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(offer.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (offer, serde_json::from_str(&line).unwrap())
}
