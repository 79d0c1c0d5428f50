//! One installed PostgreSQL: where its programs are, which version they have, which of them are there.

mod cache;
mod discover;
mod hint;
mod writers;

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use neon_pg_layout::PgMajor;

use crate::command::{self, Finished, Running};
use crate::error::{Error, ErrorKind, Result};
use crate::os_user::OsUser;

pub use cache::InstallationCache;
#[cfg(feature = "serde")]
pub use cache::LearnedInstallations;
pub use discover::{Discovered, Discovery, Source};

const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// Client programs that a full installation has besides the server's own.
const CLIENT_TOOLS: [&str; 4] = ["psql", "pg_basebackup", "pg_controldata", "pg_dump"];

/// An installed PostgreSQL that has been seen to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    bin_dir: PathBuf,
    version: Version,
    library_path: Option<PathBuf>,
    extension_lib_dir: Option<PathBuf>,
    share_dir: Option<PathBuf>,
}

/// A released version, for example 15.18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: PgMajor,
    minor: u32,
}

impl Version {
    /// The major version.
    #[must_use]
    pub fn major(self) -> PgMajor {
        self.major
    }

    /// The minor version; 0 for a development or beta build.
    #[must_use]
    pub fn minor(self) -> u32 {
        self.minor
    }

    /// Parses what `postgres --version` prints: `postgres (PostgreSQL) 15.18 (Debian …)`.
    fn from_output(text: &str) -> Option<Self> {
        let number = text.split("(PostgreSQL)").nth(1)?.trim();
        let minor = number
            .split_once('.')
            .map(|(_, rest)| {
                rest.chars()
                    .take_while(char::is_ascii_digit)
                    .collect::<String>()
            })
            .and_then(|digits| digits.parse().ok())
            .unwrap_or(0);
        Some(Self {
            major: number.parse().ok()?,
            minor,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The folder that programs are in, without symbolic links: of some that are links themselves, as in `/usr/local/bin`, that of
/// what they lead to, where the programs look for all that belongs to them, too, and the others are beside them.
fn folder_of_programs(bin_dir: &Path) -> std::io::Result<PathBuf> {
    let folder = bin_dir.canonicalize()?;
    let server = folder.join(SERVER).canonicalize().ok();
    let behind = server.as_deref().and_then(Path::parent);
    let whole = behind.filter(|behind| {
        [SERVER, INITDB]
            .iter()
            .all(|tool| is_program(&behind.join(tool)))
    });
    Ok(whole.map_or_else(|| folder.clone(), Path::to_owned))
}

/// What an installation has at least.
const SERVER: &str = "postgres";
const INITDB: &str = "initdb";

impl Installation {
    /// Looks at the programs in one folder and runs `postgres --version` and `initdb --version`, and `pg_config` if it is
    /// there. Root runs those that others can write as their owner, or as nobody.
    ///
    /// A tree that was unpacked somewhere may not find the libraries beside itself (`../lib`); then every
    /// program of it is run with them added to the loader's search, and only then.
    ///
    /// Blocks for as long as those programs take.
    ///
    /// # Errors
    /// [`NoInstallation`](ErrorKind::NoInstallation) when the folder holds no server,
    /// [`MissingLibrary`](ErrorKind::MissingLibrary) and [`BadInstallation`](ErrorKind::BadInstallation) when
    /// it does not work, [`Unsupported`](ErrorKind::Unsupported) outside majors 13 to 18.
    pub fn at(bin_dir: impl AsRef<Path>) -> Result<Self> {
        let bin_dir = bin_dir.as_ref();
        let bin_dir = folder_of_programs(bin_dir)
            .map_err(|error| Error::io(bin_dir, "cannot be read", error))?;
        for tool in [SERVER, INITDB] {
            if !is_program(&bin_dir.join(tool)) {
                return Err(Error::path(
                    ErrorKind::NoInstallation,
                    &bin_dir,
                    format!("holds no program {tool}"),
                ));
            }
        }
        let beside = bin_dir.join("../lib").canonicalize().ok();
        let beside = beside.filter(|lib| holds_library(lib, "libpq."));
        let (version, library_path) = match (probe(&bin_dir, None), beside) {
            (Err(error), Some(lib)) if error.kind() == ErrorKind::MissingLibrary => {
                (probe(&bin_dir, Some(&lib))?, Some(lib))
            }
            (outcome, _) => (outcome?, None),
        };
        let mut found = Self {
            extension_lib_dir: None,
            share_dir: None,
            bin_dir,
            version,
            library_path,
        };
        let [extension_lib_dir, share_dir] = found.told_folders();
        found.extension_lib_dir = found.find_folder(extension_lib_dir, &LIB_PLACES, |path| {
            holds_library(path, "libpqwalreceiver.")
        });
        found.share_dir = found.find_folder(share_dir, &SHARE_PLACES, |path| {
            path.join("postgres.bki").exists()
        });
        Ok(found)
    }

    /// The folder of its programs, without symbolic links.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The exact version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The major version.
    #[must_use]
    pub fn major(&self) -> PgMajor {
        self.version.major
    }

    /// The program of this name.
    ///
    /// # Errors
    /// [`MissingTool`](ErrorKind::MissingTool) when it is not there; bare servers have no client programs.
    pub fn tool(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin_dir.join(name);
        if is_program(&path) {
            return Ok(path);
        }
        Err(Error::path(
            ErrorKind::MissingTool,
            &path,
            format!("PostgreSQL {} is installed without it", self.version),
        ))
    }

    /// Whether the client programs (`psql`, `pg_basebackup`, …) are there, not only the server's own.
    #[must_use]
    pub fn has_client_tools(&self) -> bool {
        CLIENT_TOOLS.iter().all(|tool| self.tool(tool).is_ok())
    }

    /// The folder that `$libdir` stands for in settings and functions, when it could be found.
    #[must_use]
    pub fn extension_lib_dir(&self) -> Option<&Path> {
        self.extension_lib_dir.as_deref()
    }

    /// The folder with `extension/` and the time zones, when it could be found.
    #[must_use]
    pub fn share_dir(&self) -> Option<&Path> {
        self.share_dir.as_deref()
    }

    /// The folder that has to be added to the loader's search for its programs to start, when one has.
    #[must_use]
    pub fn library_path(&self) -> Option<&Path> {
        self.library_path.as_deref()
    }

    /// A command for one of its programs, run as `user` in a clean environment: no variable of the
    /// caller's, messages in English, working directory `/`, a process group of its own.
    ///
    /// # Errors
    /// As [`tool`](Self::tool).
    pub fn command(&self, name: &str, user: &OsUser) -> Result<Command> {
        let path = self.tool(name)?;
        Ok(command::clean(
            path.as_os_str(),
            user,
            self.library_path.as_deref(),
        ))
    }

    /// Whether one of its programs is none for root to run: others can write it, or the folder that it is in.
    #[must_use]
    pub fn is_others(&self, tool: &str) -> bool {
        let program = self.bin_dir.join(tool);
        let runner = writers::runner_with(&program, self.library_path());
        OsUser::current().is_root() && !runner.is_root()
    }

    /// The folders of libraries and of shared files that `pg_config` tells of; a bare server has none.
    fn told_folders(&self) -> [Option<PathBuf>; 2] {
        let run = || {
            let program = self.tool("pg_config").ok()?;
            let user = writers::runner_with(&program, self.library_path());
            let mut command = self.command("pg_config", &user).ok()?;
            let running = Running::spawn(command.args(["--pkglibdir", "--sharedir"])).ok()?;
            running.wait_blocking(PROBE_LIMIT).ok()
        };
        let said = run().map(|finished| finished.stdout).unwrap_or_default();
        let mut lines = said.lines().map(PathBuf::from);
        [lines.next(), lines.next()]
    }

    /// The folder that was told, or one of the usual places.
    fn find_folder(
        &self,
        told: Option<PathBuf>,
        places: &[&str],
        is_it: impl Fn(&Path) -> bool,
    ) -> Option<PathBuf> {
        let usual = places.iter().map(|place| {
            self.bin_dir
                .join(place.replace("{major}", &self.major().to_string()))
        });
        // A tree that was moved after it was built may have a pg_config that still tells the old place.
        let found = told.into_iter().chain(usual).find(|path| is_it(path))?;
        found.canonicalize().ok()
    }
}

const LIB_PLACES: [&str; 6] = [
    "../lib/postgresql",
    "../lib",
    "../lib/postgresql{major}",
    "../lib64/postgresql",
    "../lib64/pgsql",
    "../lib/pgsql",
];

const SHARE_PLACES: [&str; 6] = [
    "../share/postgresql",
    "../share",
    "../share/postgresql{major}",
    "../share/postgresql/{major}",
    "../../../../share/postgresql/{major}",
    "../share/pgsql",
];

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether a folder holds a file that starts so: libraries end differently on each system.
fn holds_library(folder: &Path, start: &str) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(start))
        })
    })
}

/// The version that both programs agree on.
fn probe(bin_dir: &Path, library_path: Option<&Path>) -> Result<Version> {
    let mut versions = Vec::new();
    let mut running = Vec::new();
    for tool in ["postgres", "initdb"] {
        let path = bin_dir.join(tool);
        let user = writers::runner_with(&path, library_path);
        let mut command = command::clean(path.as_os_str(), &user, library_path);
        running.push((path, Running::spawn(command.arg("--version"))?));
    }
    for (path, running) in running {
        let finished = running.wait_blocking(PROBE_LIMIT)?;
        if !finished.status.success() {
            return Err(not_working(&path, &finished));
        }
        let Some(version) = Version::from_output(&finished.stdout) else {
            let said = finished.stdout.trim();
            return Err(if said.contains("(PostgreSQL)") {
                Error::path(
                    ErrorKind::Unsupported,
                    &path,
                    format!("is {said:?}; supported are PostgreSQL 13 to 18"),
                )
            } else {
                Error::path(
                    ErrorKind::BadInstallation,
                    &path,
                    format!("answers --version with {said:?}"),
                )
            });
        };
        versions.push(version);
    }
    match versions.as_slice() {
        [server, initdb] if server == initdb => Ok(*server),
        _ => Err(Error::path(
            ErrorKind::BadInstallation,
            bin_dir,
            "its postgres and its initdb have different versions",
        )),
    }
}

fn not_working(path: &Path, finished: &Finished) -> Error {
    let lines = finished.lines();
    // The loaders of glibc, musl and macOS.
    let library = lines.iter().any(|line| {
        line.contains("error while loading shared libraries")
            || line.contains("Error loading shared library")
            || line.contains("Library not loaded")
    });
    let (kind, reason) = if library {
        (ErrorKind::MissingLibrary, "misses a library it needs")
    } else {
        (ErrorKind::BadInstallation, "does not run")
    };
    Error::path(kind, path, reason).with_log(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_packages_and_betas_are_understood() {
        let parse = |text| Version::from_output(text).map(|version| version.to_string());
        assert_eq!(
            parse("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").as_deref(),
            Some("15.18")
        );
        assert_eq!(
            parse("initdb (PostgreSQL) 18beta2\n").as_deref(),
            Some("18.0")
        );
        assert_eq!(parse("postgres (PostgreSQL) 12.4\n"), None);
        assert_eq!(parse("something else"), None);
    }
}
