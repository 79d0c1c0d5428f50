//! The PostgreSQL installations that `scripts/postgres` brought in.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use neon_pg_layout::PgMajor;

use crate::os_user::OsUser;

/// One installed PostgreSQL: its programs and its version.
#[derive(Debug, Clone)]
pub struct Installation {
    major: PgMajor,
    bin_dir: PathBuf,
    full: bool,
    version: String,
}

/// The root of the workspace: the nearest folder above this crate that holds `scripts/postgres`.
pub(crate) fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|folder| folder.join("scripts/postgres").is_file())
        .expect("a folder above crates/testkit holds scripts/postgres")
}

impl Installation {
    /// Every installation, oldest major first.
    ///
    /// # Panics
    /// When nothing is installed: tests never skip. The message names the command that installs.
    #[must_use]
    pub fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<Installation>> = OnceLock::new();
        ALL.get_or_init(|| {
            let root = workspace_root();
            let list = root.join(".postgres/installed");
            let install = format!("run {}", root.join("scripts/postgres").display());
            let text = std::fs::read_to_string(&list)
                .unwrap_or_else(|error| panic!("{}: {error}; {install}", list.display()));
            let all: Vec<Self> = text
                .lines()
                .map(|line| Self::parse(line, &install))
                .collect();
            for major in PgMajor::ALL {
                assert!(
                    all.iter().any(|one| one.major == major),
                    "{} does not list PostgreSQL {major}; {install}",
                    list.display()
                );
            }
            all
        })
    }

    /// The installation of this major.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    #[must_use]
    pub fn of(major: PgMajor) -> &'static Self {
        Self::all()
            .iter()
            .find(|one| one.major == major)
            .expect("all() holds every major")
    }

    fn parse(line: &str, install: &str) -> Self {
        let mut words = line.splitn(4, ' ');
        let (Some(major), Some(bin_dir), Some(kind), Some(version)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            panic!(".postgres/installed has a line that is not understood: {line:?}; {install}");
        };
        let bin_dir = PathBuf::from(bin_dir);
        assert!(
            bin_dir.join("postgres").is_file(),
            "{} holds no server; {install}",
            bin_dir.display()
        );
        Self {
            major: major.parse().expect("a supported major"),
            bin_dir,
            full: kind == "full",
            version: version.to_owned(),
        }
    }

    /// The major version.
    #[must_use]
    pub fn major(&self) -> PgMajor {
        self.major
    }

    /// The exact version, for example `15.18`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The folder of its programs.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Whether the client programs are there too, not only `initdb`, `pg_ctl` and `postgres`.
    #[must_use]
    pub fn full_tools(&self) -> bool {
        self.full
    }

    /// The program of this name and of exactly this major, if it is installed.
    #[must_use]
    pub fn tool(&self, name: &str) -> Option<PathBuf> {
        let path = self.bin_dir.join(name);
        path.is_file().then_some(path)
    }

    /// The installation whose program of this name is to be used with servers of this major: its
    /// own, else that of the newest major that has one.
    ///
    /// Right for programs that speak the protocol to older servers (`psql`, `pgbench`, `pg_dump`,
    /// `pg_basebackup`), wrong for those that read files of one major only (`pg_waldump`,
    /// `pg_controldata`); those take [`tool`](Self::tool). A test that judges by a substitute says
    /// so in its name.
    ///
    /// # Panics
    /// When no installation has the program.
    #[must_use]
    pub fn with_client(&self, name: &str) -> &Self {
        if self.tool(name).is_some() {
            return self;
        }
        Self::all()
            .iter()
            .rev()
            .find(|one| one.tool(name).is_some())
            .unwrap_or_else(|| panic!("no installed PostgreSQL has the program {name}"))
    }

    /// A command for one of its own programs, run as the [`OsUser`] of servers, in a clean
    /// environment: no `PG*`, no `LANG`, messages in English.
    ///
    /// # Panics
    /// When this installation lacks the program.
    #[must_use]
    pub fn command(&self, name: &str) -> Command {
        let path = self.tool(name).unwrap_or_else(|| {
            panic!(
                "PostgreSQL {} in {} has no {name}",
                self.version,
                self.bin_dir.display()
            )
        });
        let mut command = Command::new(path);
        self.clean_environment(&mut command);
        OsUser::current().apply(&mut command);
        command
    }

    /// Gives `command` the environment that programs of this installation run in.
    pub fn clean_environment(&self, command: &mut Command) {
        command
            .env_clear()
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", self.bin_dir.display()),
            )
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("HOME", "/nonexistent");
        // Programs of the system find their libraries where the system keeps them; those of an
        // unpacked archive beside themselves.
        if !self.bin_dir.starts_with("/usr") {
            command.env("LD_LIBRARY_PATH", self.bin_dir.join("../lib"));
        }
    }
}
