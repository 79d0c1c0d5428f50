//! Starting a server: what can be known to fail is refused before, readiness is asked of the server itself,
//! and what went wrong is read from its log.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::command::POLL;
use crate::diagnosis::{self, LogMark};
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::last_options;
use crate::launch::{Launch, Launched};
use crate::pid_file::{PidFile, PidFileStatus};
use crate::ping::{Address, Answer, ping};
use crate::port::{self, LOOPBACK, PortChoice};
use crate::quarantine::{self, Change, QuarantineOptions, Why};
use crate::settings::OwnSettings;
use crate::stale;

/// How to start a server.
#[derive(Debug, Clone)]
#[must_use]
pub struct StartOptions {
    pub(crate) deadline: Duration,
    pub(crate) port: PortChoice,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) environment: Variables,
    pub(crate) isolation: Isolation,
    pub(crate) last_options: bool,
}

/// Variables of a server. Their values may be secrets.
#[derive(Clone, Default)]
pub(crate) struct Variables(Vec<(String, String)>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

/// Whether a start is a quarantined one.
#[derive(Debug, Clone, Default)]
pub(crate) enum Isolation {
    /// As the instance says.
    #[default]
    Inherited,
    AsIs,
    Quarantine(QuarantineOptions),
}

impl Default for StartOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl StartOptions {
    /// Ready within five minutes, on the port it has, or the first free one from 5432 if it has none yet.
    pub fn new() -> Self {
        Self {
            deadline: Duration::from_secs(300),
            port: PortChoice::default(),
            settings: Vec::new(),
            environment: Variables::default(),
            isolation: Isolation::Inherited,
            last_options: false,
        }
    }

    /// How long the server may take, recovery after a crash included. After that it is ended.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The port to take if the instance has none yet. One that has a port keeps it.
    pub fn with_port(mut self, port: PortChoice) -> Self {
        self.port = port;
        self
    }

    /// A setting for this start only, stronger than any file.
    pub fn with_setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Starts in quarantine: the server cannot act in the name or the space of the cluster it is a copy of.
    /// [`Started::changes`] lists what that changed.
    pub fn in_quarantine(mut self, options: QuarantineOptions) -> Self {
        self.isolation = Isolation::Quarantine(options);
        self
    }

    /// Starts with the configuration as it is, also what [is a copy](Instance::with_quarantine).
    pub fn as_is(mut self) -> Self {
        self.isolation = Isolation::AsIs;
        self
    }

    /// With the options of its last start, which `postmaster.opts` has, as `pg_ctl restart` does: for a server that somebody
    /// else started with more than its files say. The folder of its socket and its configuration file are the instance's.
    pub fn with_last_options(mut self) -> Self {
        self.last_options = true;
        self
    }

    /// A variable of the server's environment, for the commands it runs. It inherits none of ours.
    pub fn with_variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.0.push((name.into(), value.into()));
        self
    }
}

/// A server that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Started {
    /// Its process id.
    pub pid: i32,
    /// Its port, of TCP and in the socket's name.
    pub port: u16,
    /// The folder of its socket; none when it has no socket.
    pub socket_dir: Option<PathBuf>,
    /// Whether it takes connections. False only for a standby with `hot_standby` off, which replays and is
    /// as ready as it can be.
    pub accepting: bool,
    /// What quarantine changed; empty for a start as it is.
    pub changes: Vec<Change>,
}

/// After this many ports that others took first we give up.
const PORT_ATTEMPTS: u32 = 50;

impl Instance {
    /// Starts the server and returns when it takes connections. It runs on when this process ends.
    ///
    /// An instance that has no port yet gets one, which is written to `neon.conf`.
    ///
    /// Dropping the future ends a server that it has started, and returns when it is gone: that may hold up
    /// the thread for some tens of milliseconds.
    ///
    /// # Errors
    /// [`AlreadyRunning`](ErrorKind::AlreadyRunning), and every cause why a server does not come up as a kind of
    /// its own, with the lines of the log that tell it.
    pub async fn start(&self, options: &StartOptions) -> Result<Started> {
        let (launched, started) = self.launch(options, None).await?;
        launched.leave();
        Ok(started)
    }

    /// The common part of a free and a scoped start: a ready server that ends with the guard.
    pub(crate) async fn launch(
        &self,
        options: &StartOptions,
        scrap: Option<PathBuf>,
    ) -> Result<(Launched, Started)> {
        let begin = Instant::now();
        self.check_startable()?;
        // Kept until the server's own pid file tells everybody.
        let _claim = stale::claim(self, options.deadline).await?;
        self.ensure_socket_dir()?;
        self.ensure_log()?;
        let quarantine = match &options.isolation {
            Isolation::Inherited => self.quarantine.as_ref(),
            Isolation::AsIs => None,
            Isolation::Quarantine(quarantine) => Some(quarantine),
        };
        if let Some(quarantine) = quarantine {
            return self
                .launch_quarantined(options, quarantine, begin, scrap)
                .await;
        }
        quarantine::clear(self);
        let own = self.adjust_own_settings()?;
        // Without `neon.conf` the configuration is somebody else's, and so is the port in it.
        let homeless = own.as_ref().is_some_and(|own| own.get("port").is_none());
        if let Some(own) = &own
            && own.get("listen_addresses") == Some("localhost")
            && let Some(Ok(port)) = own.get("port").map(str::parse)
        {
            check_port(port)?;
        }
        let last = match options.last_options {
            true => last_options::command_line(&self.data_dir).unwrap_or_default(),
            false => Vec::new(),
        };
        let mut last = last_options::settings(&last);
        last.retain(|(name, _)| match name.as_str() {
            "config_file" | "data_directory" | "unix_socket_directories" => false,
            // It is in the file that is ours.
            "port" => own.is_none(),
            _ => true,
        });
        let mut attempt = 0;
        loop {
            let mut arguments: Vec<OsString> = Vec::new();
            for (name, value) in &last {
                arguments.extend(["-c".into(), format!("{name}={value}").into()]);
            }
            if own.is_none() {
                let dir = self.socket_dir.display();
                arguments.extend(["-c".into(), format!("unix_socket_directories={dir}").into()]);
            }
            if homeless {
                let port = choose_port(&options.port, attempt)?;
                check_port(port)?;
                arguments.extend(["-c".into(), format!("port={port}").into()]);
            }
            if let Some(path) = &self.config_file {
                let mut setting = OsString::from("config_file=");
                setting.push(path);
                arguments.extend(["-c".into(), setting]);
            }
            let mark = LogMark::set(self);
            let outcome = self
                .launch_once(options, arguments, begin, scrap.clone())
                .await;
            let failure = match outcome {
                Ok((launched, started)) => {
                    match own.as_ref().and_then(|_| diagnosis::half_bound(&mark)) {
                        None => {
                            if let Some(own) = own.filter(|_| homeless) {
                                own.with("port", started.port).write(&self.data_dir)?;
                            }
                            return Ok((launched, started));
                        }
                        Some(lines) => {
                            drop(launched);
                            diagnosis::port_in_use(started.port, lines)
                        }
                    }
                }
                Err(error) => diagnosis::explain(error, &mark),
            };
            let again = homeless && matches!(options.port, PortChoice::Free { .. });
            attempt += 1;
            if failure.kind() != ErrorKind::PortInUse || !again || attempt == PORT_ATTEMPTS {
                return Err(failure);
            }
            tracing::debug!(attempt, "somebody else took the port; trying another one");
        }
    }

    async fn launch_quarantined(
        &self,
        options: &StartOptions,
        quarantine: &QuarantineOptions,
        begin: Instant,
        scrap: Option<PathBuf>,
    ) -> Result<(Launched, Started)> {
        let files = quarantine::Files(self);
        let mut first = quarantine::FIRST_PORT;
        let mut turned = Vec::new();
        loop {
            let Some(port) = quarantine::free_port(self, first) else {
                return Err(diagnosis::port_in_use(first, Vec::new()));
            };
            let prepared = quarantine::prepare(self, quarantine, port).await?;
            let mark = LogMark::set(self);
            let outcome = self
                .launch_once(options, prepared.arguments, begin, scrap.clone())
                .await;
            match outcome.map_err(|error| diagnosis::explain(error, &mark)) {
                Ok((launched, mut started)) => {
                    started.changes = turned;
                    started.changes.extend(prepared.changes);
                    files.keep();
                    return Ok((launched, started));
                }
                // Another instance with this folder was faster.
                Err(error)
                    if error.kind() == ErrorKind::PortInUse
                        && quarantine::free_port(self, first) != Some(port) =>
                {
                    first = port.saturating_add(1);
                    // Links that are turned are not found to be wrong again.
                    let links = prepared.changes.into_iter();
                    turned.extend(links.filter(|change| change.why == Why::OutsideClone));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes `neon.conf`, if there is one, name the folder of the socket, so that a start by anybody else
    /// puts it there too.
    fn adjust_own_settings(&self) -> Result<Option<OwnSettings>> {
        let Some(mut own) = OwnSettings::read(&self.data_dir)? else {
            return Ok(None);
        };
        let dir = self.socket_dir.display().to_string();
        if own.get("unix_socket_directories") != Some(&dir) {
            own.set("unix_socket_directories", &dir);
            own.write(&self.data_dir)?;
        }
        Ok(Some(own))
    }

    /// What PostgreSQL would refuse too, told better; and what it would not refuse and should.
    pub(crate) fn check_startable(&self) -> Result<()> {
        if self.user.is_root() {
            return Err(Error::path(
                ErrorKind::WrongOwner,
                &self.data_dir,
                "belongs to root, and PostgreSQL refuses to run as root",
            )
            .with_hint(format!("chown -R postgres: {}", self.data_dir.display())));
        }
        if !self.user.is_current() && !rustix::process::geteuid().is_root() {
            return Err(Error::path(
                ErrorKind::WrongOwner,
                &self.data_dir,
                format!(
                    "belongs to {}, who alone (or root) can run its server",
                    self.user.label()
                ),
            ));
        }
        let meta = fs::metadata(&self.data_dir)
            .map_err(|error| Error::io(&self.data_dir, "cannot be read", error))?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o027 != 0 {
            return Err(Error::path(
                ErrorKind::Permissions,
                &self.data_dir,
                format!("has mode {mode:04o}; PostgreSQL wants 0700 or 0750"),
            )
            .with_hint(format!("chmod 0700 {}", self.data_dir.display())));
        }
        let control = self.data_dir.join("global/pg_control");
        match fs::metadata(&control) {
            Ok(meta) if meta.uid() != self.user.uid() => Err(Error::path(
                ErrorKind::WrongOwner,
                &control,
                format!(
                    "belongs to another user than the data directory ({})",
                    self.user.label()
                ),
            )
            .with_hint(format!(
                "chown -R {} {}",
                self.user.label(),
                self.data_dir.display()
            ))),
            // Missing, damaged, another major's: the server would say it less plainly.
            _ => self.control_file().map(|_| ()),
        }
    }

    async fn launch_once(
        &self,
        options: &StartOptions,
        own_arguments: Vec<OsString>,
        begin: Instant,
        scrap: Option<PathBuf>,
    ) -> Result<(Launched, Started)> {
        let mut arguments: Vec<OsString> = vec!["-D".into(), self.data_dir.clone().into()];
        arguments.extend(own_arguments);
        for (name, value) in &options.settings {
            arguments.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        let log = self.start_log();
        let launched = Launched::spawn(&Launch {
            installation: &self.installation,
            user: &self.user,
            data_dir: &self.data_dir,
            log: &log,
            arguments,
            environment: &options.environment.0,
            scrap,
        })?;
        let started = self.wait_ready(&launched, begin, options.deadline).await?;
        Ok((launched, started))
    }

    async fn wait_ready(
        &self,
        launched: &Launched,
        begin: Instant,
        deadline: Duration,
    ) -> Result<Started> {
        loop {
            // In this order: a server that ended between the two has left its last words.
            let alive = launched.is_alive();
            let file = PidFile::read(&self.data_dir).ok().flatten();
            let file = file.filter(|file| file.pid == launched.pid());
            if let Some(file) = &file
                && let Some(PidFileStatus::Ready | PidFileStatus::Standby) = file.status
                && let Some(address) = address_of(file)
            {
                // "Standby" it says when it replays and means to take no connections (`hot_standby` off).
                let mute = file.status == Some(PidFileStatus::Standby);
                if mute || ping(&address).await == Answer::Accepting {
                    return Ok(Started {
                        pid: file.pid,
                        port: file.port.unwrap_or_default(),
                        socket_dir: file.socket_dir.clone(),
                        accepting: !mute,
                        changes: Vec::new(),
                    });
                }
            }
            if !alive {
                return Err(Error::path(
                    ErrorKind::ServerEnded,
                    &self.data_dir,
                    "the server ended while it started",
                ));
            }
            if begin.elapsed() > deadline {
                return Err(Error::path(
                    ErrorKind::Timeout,
                    &self.data_dir,
                    format!("the server was not ready within {} s", deadline.as_secs()),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// A server gets by with one of several addresses. Then a client that tries the other one would reach
/// somebody else, so the port must be free on both.
fn check_port(port: u16) -> Result<()> {
    if port::is_free(port, &LOOPBACK) {
        return Ok(());
    }
    Err(diagnosis::port_in_use(port, Vec::new()))
}

fn choose_port(choice: &PortChoice, attempt: u32) -> Result<u16> {
    let port = match choice {
        PortChoice::Fixed(port) => Some(*port),
        PortChoice::Free { range, avoid } => port::choose(range, avoid, attempt, &LOOPBACK),
    };
    port.ok_or_else(|| {
        Error::new(
            ErrorKind::PortInUse,
            "every port of the range",
            "belongs to somebody else",
        )
    })
}

/// Where a server can be asked.
pub(crate) fn address_of(file: &PidFile) -> Option<Address> {
    let port = file.port?;
    if let Some(dir) = &file.socket_dir {
        return Some(Address::Socket(dir.join(format!(".s.PGSQL.{port}"))));
    }
    let host = match file.listen.as_deref()? {
        "*" | "0.0.0.0" | "::" => "127.0.0.1",
        host => host,
    };
    Some(Address::Tcp(host.to_owned(), port))
}
