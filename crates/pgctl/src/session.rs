//! A session with the server of an instance, over its socket, as its superuser.

use std::path::PathBuf;
use std::{fs, io};

use neon_pg_layout::PgMajor;
use neon_pgwire::{Client, Config, Params, Surroundings};
use tokio::net::UnixStream;

use crate::error::{Error, ErrorKind, Result};
use crate::identity;
use crate::instance::Instance;
use crate::os_user::OsUser;
use crate::pid_file::PidFile;

impl Instance {
    /// Connects to a database of the running server: over its socket if it has one, as the user and with
    /// the password of the [pass file](Self::pass_file) (without one, as the
    /// [superuser](Self::with_superuser) it was given, or `postgres`).
    ///
    /// Root connects to a socket as the operating-system user that the server runs as, which is whom `peer` in
    /// `pg_hba.conf` lets in.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning), [`Connection`](ErrorKind::Connection).
    pub async fn connect(&self, database: &str) -> Result<Client> {
        self.connect_with(database, None).await
    }

    /// As [`connect`](Self::connect), for a superuser whose session shall do what it is told and nothing that its role or its
    /// database was given (`ALTER ROLE … SET`, `ALTER DATABASE … SET`, triggers on login): such libraries are not loaded, it acts
    /// as itself, may write, waits as long as it takes, and names mean what is in `pg_catalog`. What a role was given beside that
    /// still holds. For servers of copies, which have these settings from their origin.
    ///
    /// A role that is no superuser is not let in.
    ///
    /// # Errors
    /// As there.
    pub async fn connect_bare(&self, database: &str) -> Result<Client> {
        self.connect_with(database, Some(&bare(self.major()))).await
    }

    async fn connect_with(&self, database: &str, options: Option<&str>) -> Result<Client> {
        let file = PidFile::read(&self.data_dir)?;
        let file = file.filter(|file| identity::running(file, &self.data_dir).is_some());
        let Some(file) = file else {
            return Err(self.not_running());
        };
        let (host, port) = match (&file.socket_dir, file.listen.as_deref()) {
            (Some(dir), _) => (dir.display().to_string(), file.port),
            (None, Some("*" | "0.0.0.0" | "::") | None) => ("127.0.0.1".to_owned(), file.port),
            (None, Some(host)) => (host.to_owned(), file.port),
        };
        let login = self.login();
        let mut params = Params::new();
        let set = |params: &mut Params| -> neon_pgwire::Result<()> {
            params.set("host", host)?;
            params.set("port", port.unwrap_or_default().to_string())?;
            params.set("dbname", database)?;
            params.set("application_name", "neon")?;
            params.set("user", login.user.as_str())?;
            if let Some(password) = &login.password {
                params.set("password", password.as_str())?;
            }
            if let Some(options) = options {
                params.set("options", options)?;
            }
            Ok(())
        };
        set(&mut params).map_err(failed)?;
        let config = Config::resolve(&params, &Surroundings::none()).map_err(failed)?;
        let socket = file.socket_dir.as_ref().zip(port);
        match socket.filter(|_| OsUser::current().is_root() && !self.user.is_root()) {
            Some((dir, port)) => {
                let path = dir.join(format!(".s.PGSQL.{port}"));
                let stream = connect_as(path, &self.user).await?;
                Client::over(stream, &config).await.map_err(failed)
            }
            None => Client::connect(&config).await.map_err(failed),
        }
    }

    /// A connection URI for the running server, with user and password: over TCP if it listens there, else
    /// over its socket, and so without a password, which a server asks for over TCP. Any client library takes it.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning).
    pub fn uri(&self, database: &str) -> Result<String> {
        let file = PidFile::read(&self.data_dir)?;
        let file = file.filter(|file| identity::running(file, &self.data_dir).is_some());
        let file = file.ok_or_else(|| self.not_running())?;
        let login = self.login();
        let mut user = percent(&login.user);
        if let Some(password) = &login.password {
            user = format!("{user}:{}", percent(password));
        }
        let (port, database) = (file.port.unwrap_or_default(), percent(database));
        let listens = file.listen.as_deref();
        let listens = listens.filter(|_| login.password.is_some() || file.socket_dir.is_none());
        Ok(match (listens, &file.socket_dir) {
            (None, Some(dir)) => {
                let dir = percent(&dir.display().to_string());
                format!("postgresql://{user}@/{database}?host={dir}&port={port}")
            }
            (Some("*" | "0.0.0.0" | "::") | None, _) => {
                format!("postgresql://{user}@localhost:{port}/{database}")
            }
            (Some(host), _) if host.contains(':') => {
                format!("postgresql://{user}@[{host}]:{port}/{database}")
            }
            (Some(host), _) => format!("postgresql://{user}@{host}:{port}/{database}"),
        })
    }

    /// Who root has to run a program as that connects by the [URI](Self::uri): the user that the server runs as, where no
    /// password is known and the socket lets in who somebody is (`peer`). Nobody else, and nobody but root, has to.
    #[must_use]
    pub fn peer(&self) -> Option<&OsUser> {
        let file = PidFile::read(&self.data_dir).ok().flatten();
        let file = file.filter(|file| identity::running(file, &self.data_dir).is_some());
        // One that listens on addresses alone sees nobody's identity.
        let has_socket = file.is_none_or(|file| file.socket_dir.is_some());
        let by_socket = has_socket && self.login().password.is_none();
        (by_socket && OsUser::current().is_root() && !self.user.is_root()).then_some(&self.user)
    }

    pub(crate) fn not_running(&self) -> Error {
        Error::path(
            ErrorKind::NotRunning,
            &self.data_dir,
            "no server runs on it",
        )
    }

    /// Who to log in as: what the first line of the pass file says.
    pub(crate) fn login(&self) -> Login {
        let line = self
            .pass_file
            .as_ref()
            .and_then(|path| fs::read_to_string(path).ok());
        line.as_deref()
            .and_then(Login::parse)
            .unwrap_or_else(|| Login {
                user: self
                    .superuser
                    .clone()
                    .unwrap_or_else(|| "postgres".to_owned()),
                password: None,
            })
    }
}

/// What a session begins with that takes nothing from its role or its database: of what is set by whom, the client's word at
/// the beginning comes after theirs, and libraries are loaded after both (`InitPostgres`, `process_session_preload_libraries`).
/// The first of these and `event_triggers` are for superusers only.
fn bare(major: PgMajor) -> String {
    let mut settings = vec![
        "session_preload_libraries=",
        "local_preload_libraries=",
        "role=none",
        "search_path=pg_catalog",
        "default_transaction_read_only=off",
        "statement_timeout=0",
        "lock_timeout=0",
    ];
    if major >= PgMajor::V14 {
        settings.push("idle_session_timeout=0");
    }
    if major >= PgMajor::V17 {
        settings.extend(["event_triggers=off", "transaction_timeout=0"]);
    }
    let settings = settings.iter().map(|setting| format!("-c {setting}"));
    settings.collect::<Vec<_>>().join(" ")
}

/// Connects to a socket with the identity of another user. The server sees the identity that the socket was connected with.
///
/// Dropping the future closes the connection.
async fn connect_as(path: PathBuf, user: &OsUser) -> Result<UnixStream> {
    let uid = user.uid();
    let refused = path.clone();
    let refused = move |error: io::Error| {
        let reason = "the server's socket cannot be connected to";
        Error::path(ErrorKind::Connection, &refused, reason).with_source(error)
    };
    let connect = move || {
        // In Linux threads have identities of their own. This one ends with the one it took.
        let connecting = std::thread::spawn(move || {
            #[cfg(target_os = "linux")]
            rustix::thread::set_thread_res_uid(None, rustix::thread::Uid::from_raw(uid), None)?;
            #[cfg(not(target_os = "linux"))]
            let _uid = uid;
            let stream = std::os::unix::net::UnixStream::connect(path)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        let failed = || io::Error::other("the thread that connects ended");
        connecting.join().map_err(|_| failed())?
    };
    let stream = tokio::task::spawn_blocking(connect).await;
    let stream = stream.map_err(io::Error::other).and_then(|stream| stream);
    stream.and_then(UnixStream::from_std).map_err(refused)
}

/// A user and its password.
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Option<String>,
}

impl Login {
    /// Reads the first line of a `.pgpass`: five fields, a backslash before `:` and `\`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let line = text
            .lines()
            .find(|line| !line.starts_with('#') && !line.is_empty())?;
        let mut fields = vec![String::new()];
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => fields.last_mut()?.extend(chars.next()),
                ':' if fields.len() < 5 => fields.push(String::new()),
                other => fields.last_mut()?.push(other),
            }
        }
        let [_, _, _, user, password] = <[String; 5]>::try_from(fields).ok()?;
        Some(Self {
            user,
            password: Some(password),
        })
    }
}

/// Everything but what no part of a URI needs to escape (RFC 3986, unreserved).
fn percent(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

pub(crate) fn failed(error: neon_pgwire::Error) -> Error {
    Error::new(
        ErrorKind::Connection,
        "the server",
        "a connection or a query failed",
    )
    .with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_with_colons_and_backslashes_is_read_from_the_pass_file() {
        let login = Login::parse("# one\n*:*:*:us\\:er:pa\\\\ss\\:word:x\n").unwrap();
        assert_eq!(login.user, "us:er");
        assert_eq!(login.password.as_deref(), Some("pa\\ss:word:x"));
        assert!(Login::parse("*:*:*").is_none());
    }
}
