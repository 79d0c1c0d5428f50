//! A PostgreSQL cluster of a test: its data directory and the server on it.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

use neon_pg_layout::PgMajor;
use rustix::process::Signal;

use crate::builder::ClusterBuilder;
use crate::client::Client;
use crate::copy::{DATA, DataDirCopy};
use crate::installation::Installation;
use crate::processes::{self, PATIENCE, POLL};
use crate::scratch::Scratch;

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Disconnects clients; the usual clean stop.
    Fast,
    /// No shutdown checkpoint: the next start recovers.
    Immediate,
}

/// A cluster in a scratch folder. Dropping it ends the server at once and removes everything.
#[derive(Debug)]
pub struct Cluster {
    client: Client,
    options: ClusterBuilder,
    server: Option<Child>,
    // Last: removed after the server has been waited for.
    scratch: Scratch,
}

/// The file name of the socket only; nobody else uses the folder it lies in.
const SOCKET_PORT: u16 = 5432;
const MARK: &str = "\n# what follows was written by neon-testkit\n";

impl Cluster {
    /// Starts to describe a cluster of this major.
    pub fn builder(major: PgMajor) -> ClusterBuilder {
        ClusterBuilder::new(major)
    }

    pub(crate) fn new(
        installation: &'static Installation,
        scratch: Scratch,
        options: ClusterBuilder,
    ) -> Self {
        let port = if options.tcp {
            free_port()
        } else {
            SOCKET_PORT
        };
        let client = Client::at(
            installation.major(),
            scratch.path().join("s"),
            port,
            scratch.path(),
        );
        Self {
            client,
            options,
            server: None,
            scratch,
        }
    }

    /// The data directory, owned by the [`OsUser`](crate::OsUser) of servers.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.path().join(DATA)
    }

    /// The folder that holds the data directory, sockets, tablespaces and log, and goes with them.
    #[must_use]
    pub fn scratch_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// Connection string over loopback, with the password if there is one.
    ///
    /// # Panics
    /// When the cluster was not built with [`tcp`](ClusterBuilder::tcp).
    #[must_use]
    pub fn tcp_conninfo(&self) -> String {
        assert!(
            self.options.tcp,
            "the cluster was not built to listen on TCP"
        );
        let mut text = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            self.client.port
        );
        if let Some(password) = &self.options.password {
            let quoted = password.replace('\\', "\\\\").replace('\'', "\\'");
            write!(text, " password='{quoted}'").expect("a string");
        }
        text
    }

    /// The process id of the server, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Changes a line of `postgresql.conf`. A running server notices at [`reload`](Self::reload) or
    /// restart.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.options
            .settings
            .insert(name.to_owned(), value.to_string());
        self.write_configuration();
    }

    /// Makes the running server read its configuration again.
    ///
    /// # Panics
    /// When it does not run.
    pub fn reload(&self) {
        let server = self.server.as_ref().expect("the server runs");
        processes::signal(processes::pid_of(server), Signal::HUP);
    }

    pub(crate) fn write_configuration(&self) {
        let path = self.data_dir().join("postgresql.conf");
        let text = fs::read_to_string(&path).expect("a data directory");
        let mut text = text.split(MARK).next().unwrap_or_default().to_owned();
        text.push_str(MARK);
        let listen = if self.options.tcp { "127.0.0.1" } else { "" };
        let own = [
            ("port", self.client.port.to_string()),
            ("listen_addresses", listen.to_owned()),
            (
                "unix_socket_directories",
                self.socket_dir().display().to_string(),
            ),
        ];
        if self.options.password.is_some() {
            text.push_str("password_encryption = 'scram-sha-256'\n");
        }
        let settings = self
            .options
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        for (name, value) in own.into_iter().chain(settings) {
            writeln!(text, "{name} = '{}'", value.replace('\'', "''")).expect("a string");
        }
        fs::write(&path, text).expect("our own file");
        let md5 = self
            .options
            .settings
            .get("password_encryption")
            .is_some_and(|value| value == "md5");
        let method = match self.options.password {
            None => "trust",
            Some(_) if md5 => "md5",
            Some(_) => "scram-sha-256",
        };
        let mut hba = String::new();
        for line in &self.options.hba {
            writeln!(hba, "{line}").expect("a string");
        }
        hba.push_str("local all all trust\nlocal replication all trust\n");
        writeln!(
            hba,
            "host all all 127.0.0.1/32 {method}\nhost replication all 127.0.0.1/32 {method}"
        )
        .expect("a string");
        fs::write(self.data_dir().join("pg_hba.conf"), hba).expect("our own file");
    }

    /// Starts the server and returns when it answers queries (on a standby: read-only ones).
    ///
    /// # Panics
    /// When it does not start; the end of its log is in the message.
    pub fn start(&mut self) {
        if let Err(reason) = self.try_start() {
            panic!("{reason}\n{}", self.log_tail());
        }
    }

    /// As [`start`](Self::start), for servers that are expected to refuse.
    ///
    /// # Errors
    /// How the server ended; [`log_tail`](Client::log_tail) says why.
    ///
    /// # Panics
    /// When it already runs, or neither starts nor ends.
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(self.server.is_none(), "the server runs already");
        for _ in 0..20 {
            let log_start = fs::metadata(self.log_path()).map_or(0, |log| log.len());
            let outcome = self.start_once();
            let Err(reason) = outcome else { return Ok(()) };
            // Between finding a free port and listening on it somebody else can take it.
            let log = self.log_since(log_start);
            if !self.options.tcp || !log.contains("could not bind") {
                return Err(reason);
            }
            self.client.port = free_port();
            self.write_configuration();
        }
        Err("no port on 127.0.0.1 could be had".to_owned())
    }

    fn start_once(&mut self) -> Result<(), String> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("our own folder");
        let mut child = self
            .client
            .installation
            .command("postgres")
            .arg("-D")
            .arg(self.data_dir())
            .current_dir(self.scratch.path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("our own file"))
            .stderr(log)
            .spawn()
            .expect("the server is installed");
        let pid = child.id().to_string();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("our own child") {
                return Err(format!(
                    "PostgreSQL {} did not start: {}",
                    self.client.installation.version(),
                    processes::describe(status)
                ));
            }
            let file =
                fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
            let mut lines = file.lines().map(str::trim);
            let ours = lines.next() == Some(pid.as_str());
            if ours && matches!(lines.nth(6), Some("ready" | "standby")) {
                self.server = Some(child);
                return Ok(());
            }
            if Instant::now() > deadline {
                self.server = Some(child);
                panic!("the server neither starts nor ends\n{}", self.log_tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Stops the server and returns when it is gone. [`StopMode::Fast`] and [`StopMode::Smart`]
    /// leave a cleanly shut down data directory.
    ///
    /// # Panics
    /// When it does not run, does not end, or (clean modes) ends with an error.
    pub fn stop(&mut self, mode: StopMode) {
        let signal = match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        let mut server = self.server.take().expect("the server runs");
        processes::signal(processes::pid_of(&server), signal);
        let Some(status) = processes::wait(&mut server, PATIENCE) else {
            self.server = Some(server);
            panic!("the server does not stop\n{}", self.log_tail());
        };
        assert!(
            status.success() || mode == StopMode::Immediate,
            "the server stopped with {}\n{}",
            processes::describe(status),
            self.log_tail()
        );
    }

    /// Stops ([`StopMode::Fast`]) and starts the server.
    ///
    /// # Panics
    /// As [`stop`](Self::stop) and [`start`](Self::start).
    pub fn restart(&mut self) {
        self.stop(StopMode::Fast);
        self.start();
    }

    /// Kills the server and all its processes with SIGKILL, as the operating system would when
    /// memory runs out. What they wrote stays in the file system's cache: this is not a power cut.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill9(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        processes::signal(processes::pid_of(&server), Signal::KILL);
        server.wait().expect("our own child");
        processes::kill_all_in(&self.data_dir());
    }

    /// Waits for a server that ends by itself (a recovery target with action `shutdown`, a PANIC)
    /// and says whether it ended without error.
    ///
    /// # Panics
    /// When it does not run, or does not end.
    pub fn wait_for_end(&mut self) -> bool {
        let mut server = self.server.take().expect("the server runs");
        match processes::wait(&mut server, PATIENCE) {
            Some(status) => status.success(),
            None => {
                self.server = Some(server);
                panic!("the server does not end\n{}", self.log_tail());
            }
        }
    }

    fn log_since(&self, start: u64) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        let start = usize::try_from(start).expect("a small file");
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
    }

    /// A byte copy of the data directory and its tablespaces.
    ///
    /// # Panics
    /// While the server runs.
    #[must_use]
    pub fn copy_cold(&self) -> DataDirCopy {
        assert!(
            self.server.is_none(),
            "a cold copy is taken of a stopped cluster"
        );
        DataDirCopy::take(&self.data_dir(), self.major())
    }
}

impl Deref for Cluster {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of the server's log:\n{}", self.log_tail());
        }
        if let Some(mut server) = self.server.take() {
            // An immediate stop removes shared memory; the scratch folder deals with the rest.
            processes::signal(processes::pid_of(&server), Signal::QUIT);
            if processes::wait(&mut server, PATIENCE).is_none() {
                processes::signal(processes::pid_of(&server), Signal::KILL);
                drop(server.wait());
            }
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket").port()
}
