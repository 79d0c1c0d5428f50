//! Finding the installations of a machine: given folders, `PATH`, `pg_config`, and where distributions put
//! them. Every major side by side.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use neon_pg_layout::PgMajor;

use super::writers::runner;
use super::{Installation, InstallationCache, folder_of_programs, hint};
use crate::command::{self, Running};
use crate::error::{Error, ErrorKind, Result};

/// Where an installation was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Source {
    /// In a folder that the caller named.
    Given,
    /// In a folder of `PATH`.
    Path,
    /// Where a `pg_config` says.
    PgConfig,
    /// Where a distribution's packages put it.
    Distribution,
}

/// What to look through. Nothing is looked for in the environment: `PATH` is an argument.
///
/// ```no_run
/// # fn main() -> Result<(), neon_pgctl::Error> {
/// let found = neon_pgctl::Discovery::new()
///     .with_path(std::env::var_os("PATH").unwrap_or_default())
///     .run();
/// for installation in found.installations() {
///     println!("{} in {}", installation.version(), installation.bin_dir().display());
/// }
/// let newest = found.newest()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Discovery {
    given: Vec<PathBuf>,
    path: OsString,
    pg_configs: Vec<PathBuf>,
    root: Option<PathBuf>,
    cache: Arc<InstallationCache>,
}

/// The installations of a machine, and the folders that looked like one and were not usable.
#[derive(Debug)]
pub struct Discovered {
    found: Vec<(Installation, Source)>,
    unusable: Vec<Error>,
    root: PathBuf,
}

/// Folders of distributions, below the root; `*` stands for any rest of a name.
const DISTRIBUTIONS: [&str; 18] = [
    // Debian and Ubuntu
    "usr/lib/postgresql/*/bin",
    // the RPM packages of the PostgreSQL project
    "usr/pgsql-*/bin",
    // openSUSE
    "usr/lib/postgresql*/bin",
    // Gentoo
    "usr/lib64/postgresql-*/bin",
    // Alpine
    "usr/libexec/postgresql*",
    // Fedora, Arch, Red Hat streams
    "usr/bin",
    // built from source, FreeBSD
    "usr/local/pgsql/bin",
    "usr/local/pgsql-*/bin",
    "usr/local/bin",
    "opt/postgresql/*/bin",
    "opt/postgresql-*/bin",
    // Homebrew on Apple silicon, Intel and Linux
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    // MacPorts
    "opt/local/lib/postgresql*/bin",
    // Postgres.app
    "Applications/Postgres.app/Contents/Versions/*/bin",
    // EnterpriseDB's installers
    "Library/PostgreSQL/*/bin",
    "opt/PostgreSQL/*/bin",
];

impl Default for Discovery {
    fn default() -> Self {
        Self::new()
    }
}

impl Discovery {
    /// Looks through the folders of distributions only.
    #[must_use]
    pub fn new() -> Self {
        Self {
            given: Vec::new(),
            path: OsString::new(),
            pg_configs: Vec::new(),
            root: Some(PathBuf::from("/")),
            cache: Arc::default(),
        }
    }

    /// Also looks into a folder, ahead of all others: a `bin` folder, or one that has a `bin`.
    #[must_use]
    pub fn with_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.given.push(dir.into());
        self
    }

    /// Also looks through the folders of this `PATH`, and asks every `pg_config` in them.
    #[must_use]
    pub fn with_path(mut self, path: impl AsRef<OsStr>) -> Self {
        path.as_ref().clone_into(&mut self.path);
        self
    }

    /// Also asks this `pg_config`.
    #[must_use]
    pub fn with_pg_config(mut self, program: impl Into<PathBuf>) -> Self {
        self.pg_configs.push(program.into());
        self
    }

    /// Looks for the folders of distributions below this root instead of `/`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// Does not look through the folders of distributions.
    #[must_use]
    pub fn without_distributions(mut self) -> Self {
        self.root = None;
        self
    }

    /// Runs no program that this knows the answer of, and adds what it learns.
    #[must_use]
    pub fn with_cache(mut self, cache: Arc<InstallationCache>) -> Self {
        self.cache = cache;
        self
    }

    /// Looks. Blocks for as long as the programs found take to say their version, a few milliseconds each.
    #[must_use]
    pub fn run(&self) -> Discovered {
        let mut result = Discovered {
            found: Vec::new(),
            unusable: Vec::new(),
            root: self.root.clone().unwrap_or_else(|| PathBuf::from("/")),
        };
        let mut seen = Vec::new();
        for (dir, source) in self.candidates() {
            let dir = match folder_of_programs(&dir) {
                Ok(dir) => dir,
                Err(error) => {
                    if source == Source::Given {
                        let subject = dir.display().to_string();
                        result.unusable.push(
                            Error::new(ErrorKind::NoInstallation, subject, "is not there")
                                .with_source(error),
                        );
                    }
                    continue;
                }
            };
            if seen.contains(&dir) {
                continue;
            }
            seen.push(dir.clone());
            match self.cache.at(&dir) {
                Ok(installation) => result.found.push((installation, source)),
                // A folder of PATH without a server is nothing to report; a named one is.
                Err(error)
                    if error.kind() == ErrorKind::NoInstallation && source != Source::Given => {}
                Err(error) => result.unusable.push(error),
            }
        }
        result
    }

    fn candidates(&self) -> Vec<(PathBuf, Source)> {
        let mut all = Vec::new();
        for dir in &self.given {
            let inner = dir.join("bin");
            let dir = if inner.join("postgres").exists() {
                inner
            } else {
                dir.clone()
            };
            all.push((dir, Source::Given));
        }
        let path: Vec<PathBuf> = std::env::split_paths(&self.path)
            // A relative entry means another folder wherever one stands.
            .filter(|dir| dir.is_absolute())
            .collect();
        all.extend(path.iter().map(|dir| (dir.clone(), Source::Path)));
        // Where `/bin` is a link, the same one is there twice.
        let mut folders: Vec<PathBuf> = Vec::new();
        for dir in path.iter().filter_map(|dir| dir.canonicalize().ok()) {
            if !folders.contains(&dir) {
                folders.push(dir);
            }
        }
        let on_path = folders.iter().map(|dir| dir.join("pg_config"));
        for program in self.pg_configs.iter().cloned().chain(on_path) {
            if let Some(dir) = self.cache.bin_dir_told(&program, ask_pg_config) {
                all.push((dir, Source::PgConfig));
            }
        }
        if let Some(root) = &self.root {
            for pattern in DISTRIBUTIONS {
                all.extend(
                    expand(root, pattern)
                        .into_iter()
                        .map(|dir| (dir, Source::Distribution)),
                );
            }
        }
        all
    }
}

impl Discovered {
    /// What was found: named folders first, then `PATH`, `pg_config`, distributions. Each folder once.
    pub fn installations(&self) -> impl Iterator<Item = &Installation> {
        self.found.iter().map(|(installation, _)| installation)
    }

    /// What was found, with where.
    pub fn sources(&self) -> impl Iterator<Item = (&Installation, Source)> {
        self.found
            .iter()
            .map(|(installation, source)| (installation, *source))
    }

    /// Why folders that hold a server could not be used.
    #[must_use]
    pub fn unusable(&self) -> &[Error] {
        &self.unusable
    }

    /// The installation of this major: one in a named folder before any other, then the one with the
    /// highest minor version; of equals the one that was found first.
    ///
    /// # Errors
    /// [`NoInstallation`](ErrorKind::NoInstallation); the hint is the command that installs it here.
    pub fn of(&self, major: PgMajor) -> Result<&Installation> {
        self.best(|installation| installation.major() == major)
            .ok_or_else(|| self.none(Some(major)))
    }

    /// The installation to use when nobody asked for a major: the newest.
    ///
    /// # Errors
    /// [`NoInstallation`](ErrorKind::NoInstallation); the hint is the command that installs one here.
    pub fn newest(&self) -> Result<&Installation> {
        let newest = self.installations().map(Installation::major).max();
        newest
            .and_then(|major| self.best(|installation| installation.major() == major))
            .ok_or_else(|| self.none(None))
    }

    fn best(&self, wanted: impl Fn(&Installation) -> bool) -> Option<&Installation> {
        self.found
            .iter()
            .filter(|(installation, _)| wanted(installation))
            // `max_by_key` takes the last of equals; reversed, that is the first found.
            .rev()
            .max_by_key(|(installation, source)| (*source == Source::Given, installation.version()))
            .map(|(installation, _)| installation)
    }

    fn none(&self, major: Option<PgMajor>) -> Error {
        let subject = match major {
            Some(major) => format!("PostgreSQL {major}"),
            None => "PostgreSQL".to_owned(),
        };
        let mut others: Vec<String> = self
            .installations()
            .map(|installation| installation.version().to_string())
            .collect();
        others.dedup();
        let reason = match (others.as_slice(), self.unusable.first()) {
            ([], None) => "no installation was found".to_owned(),
            ([], Some(error)) => format!("no usable installation was found ({error})"),
            (others, _) => format!("not installed; installed are {}", others.join(", ")),
        };
        Error::new(ErrorKind::NoInstallation, subject, reason)
            .with_hint(hint::install_command(&self.root, major))
    }
}

fn ask_pg_config(program: &Path) -> Option<PathBuf> {
    if !super::is_program(program) {
        return None;
    }
    let mut command = command::clean(program.as_os_str(), &runner(program), None);
    let finished = Running::spawn(command.arg("--bindir"))
        .ok()?
        .wait_blocking(Duration::from_secs(30))
        .ok()?;
    let dir = PathBuf::from(finished.stdout.trim_end());
    (finished.status.success() && dir.is_absolute()).then_some(dir)
}

/// The folders that match a pattern in which one component may hold one `*`; highest version first.
fn expand(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let Some(star) = pattern.find('*') else {
        return vec![root.join(pattern)];
    };
    let (before, after) = pattern.split_at(star);
    let after = after.trim_start_matches('*').trim_start_matches('/');
    let (folder, start) = before.rsplit_once('/').unwrap_or(("", before));
    let mut matches: Vec<(u32, PathBuf)> = std::fs::read_dir(root.join(folder))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix(start)?;
            // A version follows, or a link such as `latest`.
            let number = version.split(|c: char| !c.is_ascii_digit()).next()?;
            let number = number.parse().unwrap_or(0);
            Some((number, entry.path().join(after)))
        })
        .collect();
    matches.sort_by(|a, b| b.cmp(a));
    matches.into_iter().map(|(_, path)| path).collect()
}
