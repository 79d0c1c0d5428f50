//! The value a server would have or has: asked of the server program when none runs, of the server when one
//! does.

use std::time::Duration;

use crate::archiving;
use crate::command::Running;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;

use super::{OWN_SETTINGS_FILE, OwnSettings};

const LIMIT: Duration = Duration::from_secs(60);

/// A row of `pg_settings`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnlineSetting {
    /// Its name.
    pub name: String,
    /// Its value, in units of `unit`.
    pub value: String,
    /// For example `8kB` or `ms`.
    pub unit: Option<String>,
    /// When it can be changed: `postmaster`, `sighup`, `user`, …
    pub context: String,
    /// Where its value comes from: `default`, `configuration file`, `command line`, …
    pub source: String,
    /// The file and line, if from a file and the role may know it.
    pub file: Option<String>,
    /// Whether a file has another value that takes a restart.
    pub pending_restart: bool,
}

impl Instance {
    /// The value that a server on this data directory would start with, its default if no file gives one.
    /// Asks the server program (`postgres -C`), as the server's user. A number is in the setting's own unit, as in
    /// `pg_settings`.
    ///
    /// Dropping the future ends that program.
    ///
    /// # Errors
    /// [`BadSetting`](ErrorKind::BadSetting) for an unknown name, or when the files are such that no server
    /// would start.
    pub async fn setting(&self, name: &str) -> Result<String> {
        self.ask_server_program(name, &[]).await
    }

    /// Whether a server would start with this setting: the answer is an error that says why not.
    ///
    /// Dropping the future ends the program that is asked.
    ///
    /// # Errors
    /// [`BadSetting`](ErrorKind::BadSetting).
    pub async fn check_setting(&self, name: &str, value: &str) -> Result<()> {
        self.ask_server_program(name, &[(name, value)])
            .await
            .map(|_| ())
    }

    async fn ask_server_program(&self, name: &str, settings: &[(&str, &str)]) -> Result<String> {
        let mut command = self.installation.command("postgres", &self.user)?;
        command.arg("-D").arg(&self.data_dir);
        if let Some(path) = &self.config_file {
            let mut setting = std::ffi::OsString::from("config_file=");
            setting.push(path);
            command.arg("-c").arg(setting);
        }
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let finished = Running::spawn(command.args(["-C", name]))?
            .wait(LIMIT)
            .await?;
        if finished.status.success() {
            return Ok(finished.stdout.trim_end_matches('\n').to_owned());
        }
        let lines = finished.lines();
        let reason = lines
            .first()
            .map_or("no server would start with it", String::as_str);
        let reason = reason
            .split_once("FATAL:")
            .map_or(reason, |(_, reason)| reason.trim());
        Err(Error::new(ErrorKind::BadSetting, name.to_owned(), reason.to_owned()).with_log(lines))
    }

    /// Sets some of our own settings in `neon.conf`, after the server program has found each good. A running
    /// server takes them at [`reload`](Self::reload) or restart. No other file is touched.
    ///
    /// Durable when it returns. Dropping the future leaves the file as it was.
    ///
    /// # Errors
    /// [`BadSetting`](ErrorKind::BadSetting), also when no file of the instance includes `neon.conf`, and for
    /// archiving without a command that can work.
    pub async fn set_own(&self, settings: &[(&str, &str)]) -> Result<()> {
        for (name, value) in settings {
            self.check_setting(name, value).await?;
        }
        let Some(mut own) = OwnSettings::read(&self.data_dir)? else {
            return Err(Error::path(
                ErrorKind::BadSetting,
                &self.config_file(),
                format!("does not include {OWN_SETTINGS_FILE}; it is not ours to change"),
            )
            .with_hint(format!(
                "add the line include_if_exists = '{}' and create that file",
                self.data_dir.join(OWN_SETTINGS_FILE).display()
            )));
        };
        for (name, value) in settings {
            own.set(name, value);
        }
        let files = self.file_settings();
        let value = |name: &str| own.get(name).or_else(|| files.value(name));
        archiving::check(value, &self.user).await?;
        own.write(&self.data_dir)
    }

    /// Every setting of the running server.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning), [`Connection`](ErrorKind::Connection).
    pub async fn online_settings(&self) -> Result<Vec<OnlineSetting>> {
        let mut client = self.connect("postgres").await?;
        let results = client
            .simple_query(
                "SELECT name, setting, unit, context, source, sourcefile || ':' || sourceline, \
                 pending_restart FROM pg_catalog.pg_settings ORDER BY name",
            )
            .await
            .map_err(crate::session::failed)?;
        let rows = results.iter().flat_map(|result| result.rows());
        Ok(rows
            .map(|row| {
                let text = |column| row.get(column).map(str::to_owned);
                OnlineSetting {
                    name: text(0).unwrap_or_default(),
                    value: text(1).unwrap_or_default(),
                    unit: text(2),
                    context: text(3).unwrap_or_default(),
                    source: text(4).unwrap_or_default(),
                    file: text(5),
                    pending_restart: row.get(6) == Some("t"),
                }
            })
            .collect())
    }
}
