//! What talks to a running cluster: programs, one-off SQL by `psql`, and sessions that stay.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use neon_pg_layout::PgMajor;

use crate::copy::TABLESPACES;
use crate::installation::Installation;
use crate::os_user::OsUser;

/// What `psql` said about a statement that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError(String);

impl SqlError {
    pub(crate) fn new(message: String) -> Self {
        Self(message)
    }

    /// The messages, with `ERROR:` lines and the positions `psql` adds.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SqlError {}

/// Rows as lines, columns separated by `|`, nothing else.
const ARGS: [&str; 3] = ["-XAtq", "-v", "ON_ERROR_STOP=1"];

/// A way to reach a cluster as its superuser, which other threads may have too.
///
/// A [`Cluster`](crate::Cluster) is one by dereference; [`Client::at`] reaches servers that somebody
/// else started.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) installation: &'static Installation,
    pub(crate) folder: PathBuf,
    pub(crate) socket_dir: PathBuf,
    pub(crate) port: u16,
}

impl Client {
    /// Reaches the server of this major whose socket lies in `socket_dir`. `folder` is one that the
    /// server's user can reach: programs run there, and tablespaces are made in it.
    #[must_use]
    pub fn at(
        major: PgMajor,
        socket_dir: impl Into<PathBuf>,
        port: u16,
        folder: impl Into<PathBuf>,
    ) -> Self {
        Self {
            installation: Installation::of(major),
            folder: folder.into(),
            socket_dir: socket_dir.into(),
            port,
        }
    }

    /// The installation whose programs are preferred.
    #[must_use]
    pub fn installation(&self) -> &'static Installation {
        self.installation
    }

    /// The major version.
    #[must_use]
    pub fn major(&self) -> PgMajor {
        self.installation.major()
    }

    /// The folder of the socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The port: of the socket's name, and of 127.0.0.1 when built with
    /// [`tcp`](crate::ClusterBuilder::tcp).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connection string over the private socket, as superuser `postgres` to database `postgres`.
    #[must_use]
    pub fn conninfo(&self) -> String {
        format!(
            "host={} port={} user=postgres dbname=postgres",
            self.socket_dir.display(),
            self.port
        )
    }

    /// Creates an empty folder that a tablespace may be created in.
    ///
    /// # Panics
    /// When the operating system refuses.
    #[must_use]
    pub fn tablespace_dir(&self, name: &str) -> PathBuf {
        let path = self.folder.join(TABLESPACES).join(name);
        OsUser::current().create_dir(&path);
        path
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Everything the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// The last 40 lines the server has logged.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// A command for a program, this major's own or else the newest there is (see
    /// [`Installation::with_client`]), that reaches this cluster over its socket by `PGHOST`,
    /// `PGPORT` and `PGUSER`.
    ///
    /// # Panics
    /// When no installation has it.
    #[must_use]
    pub fn tool(&self, name: &str) -> Command {
        let mut command = self.installation.with_client(name).command(name);
        command
            .current_dir(&self.folder)
            .env("PGHOST", &self.socket_dir)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .stdin(Stdio::null());
        command
    }

    /// Runs a [`tool`](Self::tool) and returns what it printed.
    ///
    /// # Panics
    /// When it fails; its messages and the end of the server's log are in the message.
    pub fn run_tool<S: AsRef<std::ffi::OsStr>>(
        &self,
        name: &str,
        args: impl IntoIterator<Item = S>,
    ) -> String {
        let output = self
            .tool(name)
            .args(args)
            .output()
            .expect("the program is installed");
        assert!(
            output.status.success(),
            "{name} failed: {}{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_tail()
        );
        stdout(&output)
    }

    /// Runs statements in database `postgres`, each in a transaction of its own unless they say
    /// otherwise, and returns the rows: a line each, columns separated by `|`, without the last newline.
    ///
    /// # Panics
    /// When one fails; the end of the server's log is in the message.
    pub fn psql(&self, sql: &str) -> String {
        self.psql_in("postgres", sql)
    }

    /// As [`psql`](Self::psql), in this database.
    ///
    /// # Panics
    /// As [`psql`](Self::psql).
    pub fn psql_in(&self, database: &str, sql: &str) -> String {
        self.try_psql_in(database, sql)
            .unwrap_or_else(|error| panic!("{error}\nin: {sql}\n{}", self.log_tail()))
    }

    /// As [`psql`](Self::psql), for statements that may fail. Those after the first that fails are
    /// not run.
    ///
    /// # Errors
    /// What `psql` said.
    pub fn try_psql(&self, sql: &str) -> Result<String, SqlError> {
        self.try_psql_in("postgres", sql)
    }

    /// As [`try_psql`](Self::try_psql), in this database.
    ///
    /// # Errors
    /// What `psql` said.
    pub fn try_psql_in(&self, database: &str, sql: &str) -> Result<String, SqlError> {
        let mut child = self
            .tool("psql")
            .args(ARGS)
            .args(["-d", database, "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("psql is installed");
        let mut stdin = child.stdin.take().expect("piped");
        let sql = sql.to_owned();
        // A thread: psql may print more than a pipe holds before it has read everything. It stops
        // reading at the first error.
        let writer = std::thread::spawn(move || drop(stdin.write_all(sql.as_bytes())));
        let output = child.wait_with_output().expect("our own child");
        writer.join().expect("the writer does not panic");
        if output.status.success() {
            Ok(stdout(&output).trim_end_matches('\n').to_owned())
        } else {
            Err(SqlError(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ))
        }
    }

    /// Opens a session in this database that stays until dropped.
    ///
    /// # Panics
    /// When `psql` cannot be started.
    #[must_use]
    pub fn session(&self, database: &str) -> Session {
        let mut child = self
            .tool("psql")
            .args(ARGS)
            .args(["-d", database, "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("psql is installed");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Session {
            child,
            stdin,
            stdout,
        }
    }
}

/// A `psql` that keeps its connection, for transactions that stay open.
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// Printed after the rows of a statement; no row of a test looks like it.
const DONE: &str = "neon-testkit: done";

impl Session {
    /// Runs statements and returns their rows as [`Client::psql`] does.
    ///
    /// # Panics
    /// When one fails or the connection is lost.
    pub fn run(&mut self, sql: &str) -> String {
        self.try_run(sql).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`run`](Self::run), for statements that may fail. The session is over when one did.
    ///
    /// # Errors
    /// The statements; the server's log says what was wrong with them.
    pub fn try_run(&mut self, sql: &str) -> Result<String, SqlError> {
        let over = || SqlError(format!("the session ended in: {sql}"));
        writeln!(self.stdin, "{sql}\n;\n\\echo {DONE}").map_err(|_| over())?;
        self.stdin.flush().map_err(|_| over())?;
        let mut rows = String::new();
        loop {
            let start = rows.len();
            let read = self.stdout.read_line(&mut rows).map_err(|_| over())?;
            if read == 0 {
                return Err(over());
            }
            if rows[start..].trim_end() == DONE {
                rows.truncate(start);
                return Ok(rows.trim_end_matches('\n').to_owned());
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
