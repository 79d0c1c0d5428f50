//! A session with the server of an instance, over its socket, as its superuser.

use std::fs;

use neon_pgwire::{Client, Config, Params, Surroundings};

use crate::error::{Error, ErrorKind, Result};
use crate::identity;
use crate::instance::Instance;
use crate::pid_file::PidFile;

impl Instance {
    /// Connects to a database of the running server: over its socket if it has one, as the user and with
    /// the password of the [pass file](Self::pass_file) (`postgres` without one).
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning), [`Connection`](ErrorKind::Connection).
    pub async fn connect(&self, database: &str) -> Result<Client> {
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
            Ok(())
        };
        set(&mut params).map_err(failed)?;
        let config = Config::resolve(&params, &Surroundings::none()).map_err(failed)?;
        Client::connect(&config).await.map_err(failed)
    }

    /// A connection URI for the running server, with user and password: over TCP if it listens there, else
    /// over its socket. Any client library takes it.
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
        Ok(match (file.listen.as_deref(), &file.socket_dir) {
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
                user: "postgres".to_owned(),
                password: None,
            })
    }
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
