//! SQL by `psql`: one-off and in sessions that stay.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::cluster::{Cluster, stdout};

/// What `psql` said about a statement that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError(String);

impl SqlError {
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

impl Cluster {
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
    /// Runs statements and returns their rows as [`Cluster::psql`] does.
    ///
    /// # Panics
    /// When one fails or the connection is lost; the server's log says why.
    pub fn run(&mut self, sql: &str) -> String {
        writeln!(self.stdin, "{sql}\n;\n\\echo {DONE}").expect("the session is open");
        self.stdin.flush().expect("the session is open");
        let mut rows = String::new();
        loop {
            let start = rows.len();
            let read = self.stdout.read_line(&mut rows).expect("psql prints UTF-8");
            assert!(read > 0, "the session ended in: {sql}");
            if rows[start..].trim_end() == DONE {
                rows.truncate(start);
                return rows.trim_end_matches('\n').to_owned();
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
