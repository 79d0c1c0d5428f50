//! Describing a cluster that somebody else created and runs, without taking it over: nothing is written,
//! nothing is started, no configuration is changed.

use std::fs;
use std::path::{Path, PathBuf};

use neon_pg_layout::{ClusterState, PgMajor};

use crate::error::{Error, ErrorKind, Result};
use crate::identity;
use crate::installation::Installation;
use crate::instance::{self, Instance};
use crate::last_options;
use crate::os_user::OsUser;
use crate::pid_file::PidFile;
use crate::process;
use crate::settings::files::FileSettings;

/// The port of a server that nobody gave one.
const DEFAULT_PORT: u16 = 5432;

/// Who starts and stops a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ManagedBy {
    /// A unit of systemd, for example `postgresql@15-main.service`.
    Systemd {
        /// The name of the unit.
        unit: String,
    },
    /// Debian's `pg_ctlcluster`.
    DebianCluster {
        /// The name after the major version, for example `main`.
        name: String,
    },
    /// Something in another container than ours.
    Container,
    /// Nobody that can be seen: somebody started it by hand, or it does not run.
    Unknown,
}

/// Where a tablespace of a cluster lies.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TablespaceLink {
    /// Its OID.
    pub oid: u32,
    /// What the link in `pg_tblspc` leads to.
    pub location: PathBuf,
}

/// A cluster as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adopted {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its major version.
    pub major: PgMajor,
    /// The user it belongs to and runs as.
    pub os_user: OsUser,
    /// Its main configuration file; none when there is none where it could be looked for.
    pub config_file: Option<PathBuf>,
    /// Its `pg_hba.conf`, as the configuration names it.
    pub hba_file: Option<PathBuf>,
    /// The folder of the programs that it runs with, or ran with last.
    pub bin_dir: Option<PathBuf>,
    /// Its main process, if it runs.
    pub pid: Option<i32>,
    /// The port it has, or will have by its configuration.
    pub port: Option<u16>,
    /// The folder of its socket.
    pub socket_dir: Option<PathBuf>,
    /// Where `pg_wal` lies if it is a link.
    pub wal_dir: Option<PathBuf>,
    /// The port it has although neither its files nor the options of its start say so: of its environment, as it runs now.
    pub other_port: Option<u16>,
    /// Its tablespaces outside the data directory.
    pub tablespaces: Vec<TablespaceLink>,
    /// Who starts and stops it.
    pub managed_by: ManagedBy,
    /// The identifier that it shares with its copies.
    pub system_identifier: u64,
    /// What its control file says it does.
    pub state: ClusterState,
    /// Whether its pages carry checksums.
    pub checksums: bool,
}

/// How to look for what does not stand in the data directory.
#[derive(Debug, Clone)]
#[must_use]
pub struct AdoptOptions {
    config_file: Option<PathBuf>,
    etc: PathBuf,
}

impl Default for AdoptOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl AdoptOptions {
    /// Looks at the running server's command line, at that of the last start, in the data directory, and in
    /// `/etc/postgresql`.
    pub fn new() -> Self {
        Self {
            config_file: None,
            etc: PathBuf::from("/etc/postgresql"),
        }
    }

    /// The main configuration file is this one.
    pub fn with_config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_file = Some(path.into());
        self
    }

    /// Debian's clusters are configured below this folder instead of `/etc/postgresql`.
    pub fn with_etc(mut self, path: impl Into<PathBuf>) -> Self {
        self.etc = path.into();
        self
    }
}

impl Adopted {
    /// Describes the cluster in a data directory, whether or not it runs.
    ///
    /// # Errors
    /// [`NotACluster`](ErrorKind::NotACluster), [`Permissions`](ErrorKind::Permissions),
    /// [`Corrupt`](ErrorKind::Corrupt).
    pub fn describe(data_dir: impl AsRef<Path>, options: &AdoptOptions) -> Result<Self> {
        let data_dir = instance::absolute(data_dir.as_ref())?;
        let major = instance::major_of(&data_dir)?;
        let control = crate::control_state::read(&data_dir)?;
        let file = PidFile::read(&data_dir)?;
        let file = file.filter(|file| identity::running(file, &data_dir).is_some());
        let pid = file.as_ref().map(|file| file.pid);
        let command_line = pid
            .and_then(process::command_line)
            .or_else(|| last_options::command_line(&data_dir))
            .unwrap_or_default();
        let debian = DebianCluster::of(&data_dir, major, &options.etc);
        let config_file = find_config_file(&data_dir, options, &command_line, debian.as_ref());
        let settings = config_file
            .as_deref()
            .map(|path| FileSettings::read(&data_dir, path))
            .unwrap_or_default();
        let folder = config_file
            .as_deref()
            .and_then(Path::parent)
            .unwrap_or(&data_dir);
        let hba_file = match settings.value("hba_file") {
            Some(path) => Some(folder.join(path)),
            None => Some(data_dir.join("pg_hba.conf")).filter(|path| path.exists()),
        };
        let configured_port = || match settings.value("port") {
            Some(port) => port.parse().ok(),
            None => Some(DEFAULT_PORT),
        };
        let wanted_port = match last_options::setting(&command_line, "port") {
            Some(port) => port.parse().ok(),
            None => configured_port(),
        };
        let other_port = file.as_ref().and_then(|file| file.port);
        let configured_socket =
            || first_folder(settings.value("unix_socket_directories")?.to_owned());
        let managed_by = match (pid.and_then(manager_of), debian) {
            (Some(manager), _) => manager,
            (None, Some(debian)) => ManagedBy::DebianCluster { name: debian.name },
            (None, None) => ManagedBy::Unknown,
        };
        let program = command_line.first().map(PathBuf::from);
        let bin_dir = pid
            .and_then(process::program)
            .or(program)
            .and_then(|path| path.canonicalize().ok())
            .and_then(|path| path.parent().map(Path::to_owned));
        Ok(Self {
            major,
            os_user: OsUser::owner_of(&data_dir)?,
            hba_file,
            bin_dir,
            pid,
            port: file.as_ref().map_or(wanted_port, |file| file.port),
            other_port: other_port.filter(|port| Some(*port) != wanted_port),
            socket_dir: match &file {
                Some(file) => file.socket_dir.clone(),
                None => last_options::setting(&command_line, "unix_socket_directories")
                    .and_then(first_folder)
                    .or_else(configured_socket),
            },
            wal_dir: fs::read_link(data_dir.join("pg_wal")).ok(),
            tablespaces: instance::tablespace_links(&data_dir)?
                .into_iter()
                .map(|(oid, location)| TablespaceLink { oid, location })
                .collect(),
            managed_by,
            system_identifier: control.system_identifier.get(),
            state: control.state,
            checksums: control.data_checksums,
            config_file,
            data_dir,
        })
    }

    /// The data directories of all servers that run on this machine, as far as we may see them.
    #[must_use]
    pub fn running() -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = process::postgres_processes()
            .into_iter()
            .filter_map(|pid| {
                let dir = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
                let file = PidFile::read(&dir).ok()??;
                (file.pid == pid).then_some(dir)
            })
            .collect();
        found.sort();
        found
    }

    /// The cluster as an instance to read, connect to, stop and start. Its configuration stays its own; the
    /// log of our starts goes to `log_dir`, the socket where it has it, or to `socket_dir` if it has none.
    ///
    /// # Errors
    /// As [`Instance::at`].
    pub fn instance(
        &self,
        installation: &Installation,
        log_dir: impl AsRef<Path>,
        socket_dir: impl AsRef<Path>,
    ) -> Result<Instance> {
        let socket_dir = self.socket_dir.as_deref().unwrap_or(socket_dir.as_ref());
        let instance = Instance::at(installation, &self.data_dir, log_dir, socket_dir)?;
        match &self.config_file {
            Some(path) => Ok(instance.with_config_file(path)),
            None => Err(Error::path(
                ErrorKind::BadSetting,
                &self.data_dir,
                "has no postgresql.conf, and none was found elsewhere",
            )
            .with_hint("name the configuration file")),
        }
    }
}

fn find_config_file(
    data_dir: &Path,
    options: &AdoptOptions,
    command_line: &[String],
    debian: Option<&DebianCluster>,
) -> Option<PathBuf> {
    let inside = data_dir.join("postgresql.conf");
    options
        .config_file
        .clone()
        .or_else(|| config_argument(command_line).map(|path| data_dir.join(path)))
        .or_else(|| inside.exists().then_some(inside))
        .or_else(|| debian.map(|debian| debian.config_file.clone()))
}

/// `-c config_file=…`, `--config-file=…` or `--config_file=…` of a command line.
fn config_argument(command_line: &[String]) -> Option<&str> {
    command_line.iter().find_map(|argument| {
        [
            "config_file=",
            "--config_file=",
            "--config-file=",
            "-cconfig_file=",
        ]
        .iter()
        .find_map(|start| argument.strip_prefix(start))
    })
}

/// The first of a list of folders.
fn first_folder(list: String) -> Option<PathBuf> {
    let first = list.split(',').next()?.trim();
    (!first.is_empty()).then(|| PathBuf::from(first))
}

/// A cluster in the layout of Debian's packages: `<etc>/<major>/<name>/postgresql.conf` names the data
/// directory.
struct DebianCluster {
    name: String,
    config_file: PathBuf,
}

impl DebianCluster {
    fn of(data_dir: &Path, major: PgMajor, etc: &Path) -> Option<Self> {
        let clusters = fs::read_dir(etc.join(major.to_string())).ok()?;
        clusters.flatten().find_map(|entry| {
            let config_file = entry.path().join("postgresql.conf");
            let settings = FileSettings::read(data_dir, &config_file);
            let named = PathBuf::from(settings.value("data_directory")?)
                .canonicalize()
                .ok()?;
            (named == data_dir).then(|| Self {
                name: entry.file_name().to_string_lossy().into_owned(),
                config_file,
            })
        })
    }
}

/// Who a process belongs to, by its control group.
fn manager_of(pid: i32) -> Option<ManagedBy> {
    let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let ours = fs::read_to_string("/proc/self/cgroup").ok();
    manager_by_groups(&theirs, ours.as_deref())
}

fn manager_by_groups(theirs: &str, ours: Option<&str>) -> Option<ManagedBy> {
    let same = ours == Some(theirs);
    let paths = || theirs.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let unit = paths().find_map(|path| {
        let unit = path.rsplit('/').find(|part| part.ends_with(".service"))?;
        // A login's or our own service is not what manages the server.
        (!unit.starts_with("user@") && !same).then(|| unit.to_owned())
    });
    if let Some(unit) = unit {
        return Some(ManagedBy::Systemd { unit });
    }
    let container = paths().any(|path| {
        ["docker", "containerd", "kubepods", "libpod", "lxc"]
            .iter()
            .any(|word| path.contains(word))
    });
    (container && !same).then_some(ManagedBy::Container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_tell_who_manages_a_server() {
        let unit = "0::/system.slice/system-postgresql.slice/postgresql@15-main.service\n";
        assert_eq!(
            manager_by_groups(unit, Some("0::/user.slice/user-0.slice/session-1.scope\n")),
            Some(ManagedBy::Systemd {
                unit: "postgresql@15-main.service".to_owned()
            })
        );
        let container = "0::/docker/0123abcd\n";
        assert_eq!(
            manager_by_groups(container, Some("0::/\n")),
            Some(ManagedBy::Container)
        );
        assert_eq!(manager_by_groups(container, Some(container)), None);
        assert_eq!(
            manager_by_groups("0::/user.slice/user-1.slice/session-3.scope\n", None),
            None
        );
    }

    #[test]
    fn the_configuration_file_is_found_on_a_command_line() {
        let line = ["postgres", "-D", "/data", "-c", "config_file=/etc/x.conf"].map(str::to_owned);
        assert_eq!(config_argument(&line), Some("/etc/x.conf"));
        let line = ["postgres", "--config-file=/etc/y.conf"].map(str::to_owned);
        assert_eq!(config_argument(&line), Some("/etc/y.conf"));
    }
}
