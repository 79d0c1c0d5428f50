//! One data directory and what is needed to run a server on it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use neon_pg_layout::PgMajor;

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::installation::Installation;
use crate::os_user::OsUser;
use crate::quarantine::QuarantineOptions;

/// A data directory, the installation that runs it, and where its log and socket go.
///
/// The value holds paths and looks at the disk when it is asked something: several of them, also in several
/// processes, may stand for the same data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub(crate) installation: Installation,
    pub(crate) data_dir: PathBuf,
    /// What a copy consists of: its links may lead anywhere below.
    pub(crate) root: PathBuf,
    pub(crate) quarantine: Option<QuarantineOptions>,
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) log_dir: PathBuf,
    pub(crate) socket_dir: PathBuf,
    pub(crate) pass_file: Option<PathBuf>,
    pub(crate) superuser: Option<String>,
    pub(crate) user: OsUser,
}

/// Folders and files in the folder of an instance that [`Instance::create`] made.
pub(crate) const DATA: &str = "data";
pub(crate) const LOG: &str = "log";
pub(crate) const RUN: &str = "run";
pub(crate) const PASS_FILE: &str = "pgpass";

/// What our own start writes to: until the server's collector takes over, or all the time.
pub(crate) const START_LOG: &str = "start.log";

/// `sun_path` holds 108 bytes on Linux and 104 on macOS, one of them the end.
const SOCKET_PATH_LIMIT: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The longest name of a socket in its folder, and the lock beside it is not bound by the limit.
const LONGEST_SOCKET_NAME: usize = "/.s.PGSQL.65535".len();

impl Instance {
    /// An instance that [`Instance::create`] made: `dir` holds `data`, `log`, `run` and `pgpass`.
    ///
    /// # Errors
    /// [`NotACluster`](ErrorKind::NotACluster), [`WrongMajor`](ErrorKind::WrongMajor), and what the operating
    /// system refuses.
    pub fn open(installation: &Installation, dir: impl AsRef<Path>) -> Result<Self> {
        let dir = absolute(dir.as_ref())?;
        let pass_file = dir.join(PASS_FILE);
        let socket_dir = dir.join(RUN);
        let mut instance = Self::at(installation, dir.join(DATA), dir.join(LOG), socket_dir)?;
        instance.root = dir;
        if !fits_a_socket(&instance.socket_dir) {
            instance.socket_dir = short_socket_dir(Path::new("/tmp"), &instance);
        }
        instance.pass_file = fs::symlink_metadata(&pass_file)
            .is_ok()
            .then_some(pass_file);
        Ok(instance)
    }

    /// Any data directory, with the folders for the log of its start and for its socket. Both are created
    /// when a server is started and they are not there.
    ///
    /// As root the server runs as the owner of the data directory.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn at(
        installation: &Installation,
        data_dir: impl AsRef<Path>,
        log_dir: impl AsRef<Path>,
        socket_dir: impl AsRef<Path>,
    ) -> Result<Self> {
        let data_dir = absolute(data_dir.as_ref())?;
        let major = major_of(&data_dir)?;
        if major != installation.major() {
            return Err(Error::path(
                ErrorKind::WrongMajor,
                &data_dir,
                format!(
                    "belongs to PostgreSQL {major}; the programs in {} are {}",
                    installation.bin_dir().display(),
                    installation.version()
                ),
            )
            .with_hint(format!("use an installation of PostgreSQL {major}")));
        }
        let user = OsUser::owner_of(&data_dir)?;
        Ok(Self {
            installation: installation.clone(),
            root: data_dir.clone(),
            quarantine: None,
            config_file: None,
            log_dir: absolute(log_dir.as_ref())?,
            socket_dir: absolute(socket_dir.as_ref())?,
            pass_file: None,
            superuser: None,
            user,
            data_dir,
        })
    }

    /// With `postgresql.conf` somewhere else than in the data directory, as Debian keeps it.
    #[must_use]
    pub fn with_config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_file = Some(path.into());
        self
    }

    /// As a copy of somebody else's cluster (a clone, an import, a restored snapshot): every start is a
    /// [quarantined](crate::QuarantineOptions) one, unless it says [as it is](crate::StartOptions::as_is).
    #[must_use]
    pub fn with_quarantine(mut self, options: QuarantineOptions) -> Self {
        self.quarantine = Some(options);
        self
    }

    /// With the folder that holds all of a copy, its tablespaces too: in quarantine no link may lead out of
    /// it. Without it that is the folder of an instance of ours, else the data directory.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = root.into();
        self
    }

    /// With the file (in the format of `.pgpass`) that has the password to connect with.
    #[must_use]
    pub fn with_pass_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pass_file = Some(path.into());
        self
    }

    /// Without a pass file.
    #[must_use]
    pub fn without_pass_file(mut self) -> Self {
        self.pass_file = None;
        self
    }

    /// With the role to connect as where there is no pass file, instead of `postgres`.
    #[must_use]
    pub fn with_superuser(mut self, role: impl Into<String>) -> Self {
        self.superuser = Some(role.into());
        self
    }

    /// The installation whose programs run it.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The major version.
    #[must_use]
    pub fn major(&self) -> PgMajor {
        self.installation.major()
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The main configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.config_file
            .clone()
            .unwrap_or_else(|| self.data_dir.join("postgresql.conf"))
    }

    /// The folder of its log files.
    #[must_use]
    pub fn log_dir(&self) -> &Path {
        &self.log_dir
    }

    /// The folder that [`start`](Self::start) makes its socket in.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The file with the superuser's password, readable for its owner only.
    #[must_use]
    pub fn pass_file(&self) -> Option<&Path> {
        self.pass_file.as_deref()
    }

    /// The user that the server runs as: the owner of the data directory.
    #[must_use]
    pub fn os_user(&self) -> &OsUser {
        &self.user
    }

    /// A short name of the data directory, for files in folders that several instances may share.
    pub(crate) fn tag(&self) -> String {
        // FNV-1a: it has to stay the same over versions of ours, and no more.
        let bytes = self.data_dir.as_os_str().as_bytes();
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{hash:016x}")
    }

    /// The log of starts, until the server's own collector takes over.
    pub(crate) fn start_log(&self) -> PathBuf {
        self.log_dir.join(START_LOG)
    }

    /// Makes the folder of the socket be there, ours, and closed to others. It may lie where a reboot
    /// empties, so this is done at every start.
    pub(crate) fn ensure_socket_dir(&self) -> Result<()> {
        ensure_socket_dir(&self.socket_dir, &self.user)
    }

    /// Makes the folder and the file of the log be there.
    pub(crate) fn ensure_log(&self) -> Result<()> {
        if let Err(error) = durable::create_dir(&self.log_dir, 0o700, &self.user)
            && error.kind() != ErrorKind::Exists
        {
            return Err(error);
        }
        let log = self.start_log();
        match durable::write_new(&log, b"", 0o600, &self.user) {
            Err(error) if log.symlink_metadata().is_err() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Whether every socket name fits into a path below this folder.
pub(crate) fn fits_a_socket(dir: &Path) -> bool {
    dir.as_os_str().as_bytes().len() + LONGEST_SOCKET_NAME <= SOCKET_PATH_LIMIT
}

/// A short folder for an instance whose own is too deep: the same for the same data directory.
fn short_socket_dir(base: &Path, instance: &Instance) -> PathBuf {
    base.join(format!("neon-{}-{}", instance.user.uid(), instance.tag()))
}

pub(crate) fn ensure_socket_dir(dir: &Path, user: &OsUser) -> Result<()> {
    if !fits_a_socket(dir) {
        return Err(Error::path(
            ErrorKind::SocketPath,
            dir,
            format!(
                "is too long for a socket: with its name it has more than {SOCKET_PATH_LIMIT} bytes"
            ),
        )
        .with_hint("give a shorter folder for the socket, for example one in /tmp or /run"));
    }
    match durable::create_dir(dir, 0o700, user) {
        Err(error) if error.kind() == ErrorKind::Exists => {}
        other => return other,
    }
    let meta =
        fs::symlink_metadata(dir).map_err(|error| Error::io(dir, "cannot be read", error))?;
    if !meta.is_dir() || meta.uid() != user.uid() {
        // In a folder everybody may write to, somebody else could have been faster.
        return Err(Error::path(
            ErrorKind::SocketPath,
            dir,
            format!("is not a folder of {}", user.label()),
        ));
    }
    Ok(())
}

/// The major version that a data directory belongs to.
pub(crate) fn major_of(data_dir: &Path) -> Result<PgMajor> {
    let path = data_dir.join("PG_VERSION");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            let error = match error.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Error::path(
                    ErrorKind::NotACluster,
                    data_dir,
                    "is no data directory: it has no PG_VERSION",
                ),
                _ => Error::io(&path, "cannot be read", error),
            };
            return Err(error);
        }
    };
    text.parse().map_err(|error: neon_pg_layout::Error| {
        let kind = match error.kind() {
            neon_pg_layout::ErrorKind::Unsupported => ErrorKind::WrongMajor,
            _ => ErrorKind::NotACluster,
        };
        Error::path(kind, &path, "names no supported major version").with_source(error)
    })
}

/// The path with its links resolved as far as it is there: a server must mean the same folder wherever it
/// stands.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(path)
        .map_err(|error| Error::io(path, "cannot be made absolute", error))?;
    let mut missing = Vec::new();
    for existing in whole.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            return Ok(missing
                .iter()
                .rev()
                .fold(real, |path, name| path.join(name)));
        }
        missing.extend(existing.file_name());
    }
    Ok(whole)
}

/// The links of `pg_tblspc`. Folders in it are tablespaces in place (15 and later) and lead nowhere.
pub(crate) fn tablespace_links(data_dir: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let folder = data_dir.join("pg_tblspc");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(&folder, "cannot be read", error)),
    };
    Ok(entries
        .flatten()
        .filter_map(|entry| {
            let oid = entry.file_name().to_str()?.parse().ok()?;
            Some((oid, fs::read_link(entry.path()).ok()?))
        })
        .collect())
}
