//! Standbys: a copy of a primary made to follow it, how far behind it is, and its promotion.
//!
//! The upstream is written down as connection parameters with a *pass file*: a password in
//! `primary_conninfo` could be read by whoever may read settings.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use neon_pg_layout::{ClusterState, Lsn};
use neon_pgwire::{Client, ResultSet, SlotName, quote_literal};

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::os_user::OsUser;
use crate::session;
use crate::settings::{OwnSettings, syntax};
use crate::stale;

const SIGNAL: &str = "standby.signal";
const RECOVERY: &str = "recovery.signal";
/// What `ALTER SYSTEM` and `pg_basebackup -R` write.
const AUTO_FILE: &str = "postgresql.auto.conf";

/// How a standby reaches the server it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Upstream {
    host: String,
    port: u16,
    user: String,
    pass_file: Option<PathBuf>,
    application_name: Option<String>,
    parameters: Vec<(String, String)>,
}

impl Upstream {
    /// A host name, an address or the folder of a socket, and the user to replicate as.
    pub fn new(host: impl Into<String>, port: u16, user: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            port,
            user: user.into(),
            pass_file: None,
            application_name: None,
            parameters: Vec::new(),
        }
    }

    /// The file with the password, in the format of `.pgpass`, mode 0600 and readable by the standby's user. For
    /// replication the database in its line is `replication` or `*`.
    pub fn with_pass_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pass_file = Some(path.into());
        self
    }

    /// The name the standby shows itself under, which `synchronous_standby_names` refers to.
    pub fn with_application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = Some(name.into());
        self
    }

    /// Any other connection parameter, for example `sslmode`.
    pub fn with_parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.parameters.push((name.into(), value.into()));
        self
    }

    /// User and password, when the pass file has one.
    pub(crate) fn login(&self) -> Option<(String, String)> {
        let text = fs::read_to_string(self.pass_file.as_ref()?).ok()?;
        let login = session::Login::parse(&text)?;
        Some((self.user.clone(), login.password?))
    }

    /// The text of `primary_conninfo`.
    pub(crate) fn conninfo(&self) -> Result<String> {
        let mut text = String::new();
        let mut put = |name: &str, value: &str| {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(name);
            text.push_str("='");
            text.push_str(&value.replace('\\', r"\\").replace('\'', r"\'"));
            text.push('\'');
        };
        put("host", &self.host);
        put("port", &self.port.to_string());
        put("user", &self.user);
        if let Some(path) = &self.pass_file {
            let Some(path) = path.to_str() else {
                return Err(Error::path(
                    ErrorKind::Invalid,
                    path,
                    "is not UTF-8, so no setting can hold it",
                ));
            };
            put("passfile", path);
        }
        if let Some(name) = &self.application_name {
            put("application_name", name);
        }
        for (name, value) in &self.parameters {
            if name == "password"
                || name.is_empty()
                || !name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    name.clone(),
                    "is no parameter an upstream is given by",
                )
                .with_hint("a password belongs into a pass file"));
            }
            put(name, value);
        }
        if text.contains(['\0', '\n', '\r']) {
            return Err(Error::new(
                ErrorKind::Invalid,
                "upstream",
                "a parameter holds a line break or NUL",
            ));
        }
        Ok(text)
    }
}

/// What makes a data directory a standby.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct StandbyOptions {
    pub(crate) upstream: Upstream,
    slot: Option<SlotName>,
    restore_command: Option<String>,
    pub(crate) os_user: Option<OsUser>,
    pub(crate) sync: bool,
}

impl StandbyOptions {
    /// Follows this server by streaming.
    pub fn new(upstream: Upstream) -> Self {
        Self {
            upstream,
            slot: None,
            restore_command: None,
            os_user: None,
            sync: true,
        }
    }

    /// Through this slot, which keeps WAL for the standby; see [`claim_slot`].
    pub fn with_slot(mut self, slot: SlotName) -> Self {
        self.slot = Some(slot);
        self
    }

    /// From an archive too, for what the upstream has no more.
    pub fn with_restore_command(mut self, command: impl Into<String>) -> Self {
        self.restore_command = Some(command.into());
        self
    }

    /// The user that [`create_standby`](Instance::create_standby) makes it for, as
    /// [`CreateOptions::with_os_user`](crate::CreateOptions::with_os_user).
    pub fn with_os_user(mut self, user: OsUser) -> Self {
        self.os_user = Some(user);
        self
    }

    /// Without waiting until what [`create_standby`](Instance::create_standby) copies is durable. For tests.
    pub fn without_sync(mut self) -> Self {
        self.sync = false;
        self
    }
}

impl Instance {
    /// Makes a stopped copy of a primary (or of another standby) a standby: when it is started it follows its
    /// upstream. The copy is one taken inside a [bracket](crate::BackupBracket), of a cleanly stopped cluster,
    /// or of a standby.
    ///
    /// Settings go to `neon.conf` if the instance has one, else where `ALTER SYSTEM` would put them; among them
    /// those the upstream recorded that a standby must not have smaller. Durable when it returns.
    ///
    /// # Errors
    /// [`AlreadyRunning`](ErrorKind::AlreadyRunning), [`Invalid`](ErrorKind::Invalid),
    /// [`BadSetting`](ErrorKind::BadSetting) when a file that is not ours overrides a setting,
    /// [`Io`](ErrorKind::Io).
    ///
    /// Dropping the future leaves the directory as it was, or with settings and without the signal file: it is
    /// no standby then.
    pub async fn make_standby(&self, options: &StandbyOptions) -> Result<()> {
        let _claim = stale::claim(self, stale::SURVIVORS_MAY_TAKE).await?;
        let control = self.control_file()?;
        let label = self.data_dir().join("backup_label").exists();
        if !label && !control.state.is_clean() && control.state != ClusterState::InArchiveRecovery {
            // What it did after its last checkpoint the upstream may never have seen.
            return Err(Error::path(
                ErrorKind::Invalid,
                self.data_dir(),
                format!(
                    "is no copy that can follow: its state is {:?} and it has no backup_label",
                    control.state.to_string()
                ),
            ));
        }
        let slot = options
            .slot
            .as_ref()
            .map(SlotName::as_str)
            .unwrap_or_default();
        let mut settings = vec![
            ("primary_conninfo", options.upstream.conninfo()?),
            ("primary_slot_name", slot.to_owned()),
            ("recovery_target_timeline", "latest".to_owned()),
            ("hot_standby", "on".to_owned()),
        ];
        if let Some(command) = &options.restore_command {
            settings.push(("restore_command", command.clone()));
        }
        let files = self.file_settings();
        let recorded = &control.settings;
        for (name, least, default) in [
            ("max_connections", recorded.max_connections, 100),
            ("max_worker_processes", recorded.max_worker_processes, 8),
            ("max_wal_senders", recorded.max_wal_senders, 10),
            (
                "max_prepared_transactions",
                recorded.max_prepared_transactions,
                0,
            ),
            (
                "max_locks_per_transaction",
                recorded.max_locks_per_transaction,
                64,
            ),
        ] {
            let configured = files
                .value(name)
                .map_or(Some(default), |value| value.trim().parse().ok());
            if configured.is_none_or(|value: i32| value < least) {
                settings.push((name, least.to_string()));
            }
        }
        self.write_settings(&settings)?;
        let signal = self.data_dir().join(SIGNAL);
        if !signal.exists() {
            durable::write_new(&signal, b"", 0o600, self.os_user())?;
        }
        match fs::remove_file(self.data_dir().join(RECOVERY)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(
                    &self.data_dir().join(RECOVERY),
                    "cannot be removed",
                    error,
                ));
            }
            _ => {}
        }
        durable::sync_dir(self.data_dir())
    }

    fn write_settings(&self, settings: &[(&str, String)]) -> Result<()> {
        if let Some(mut own) = OwnSettings::read(self.data_dir())? {
            for (name, value) in settings {
                own.set(name, value);
            }
            own.write(self.data_dir())?;
        } else {
            let path = self.data_dir().join(AUTO_FILE);
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
                Err(error) => return Err(Error::io(&path, "cannot be read", error)),
            };
            durable::replace(
                &path,
                replaced(&text, settings).as_bytes(),
                0o600,
                self.os_user(),
            )?;
        }
        let files = self.file_settings();
        for (name, value) in settings {
            if files.value(name).unwrap_or_default() != value {
                let at = files.get(name).map_or_else(String::new, |found| {
                    format!(" by {} line {}", found.file.display(), found.line)
                });
                return Err(Error::new(
                    ErrorKind::BadSetting,
                    (*name).to_owned(),
                    format!("is overridden{at}"),
                )
                .with_hint("take that line out, or ALTER SYSTEM RESET it"));
            }
        }
        Ok(())
    }

    /// Promotes a standby, unless the server it follows is still streaming to it: that would make two primaries of
    /// one cluster. Its upstream is taken out of our settings, so that it is not followed by accident later.
    ///
    /// `even_if_followed` promotes in any case, for a switchover in which the caller has made sure that nothing
    /// writes to the old primary.
    ///
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// [`UpstreamAlive`](ErrorKind::UpstreamAlive), and those of [`promote`](Self::promote).
    pub async fn promote_standby(&self, even_if_followed: bool, deadline: Duration) -> Result<()> {
        if !even_if_followed
            && let Replication::Standby {
                streaming: true, ..
            } = self.replication().await?
        {
            return Err(Error::path(
                ErrorKind::UpstreamAlive,
                self.data_dir(),
                "is still fed by its primary; promoted, there would be two",
            )
            .with_hint("stop the primary first"));
        }
        self.promote(deadline).await?;
        if let Some(mut own) = OwnSettings::read(self.data_dir())? {
            let names = ["primary_conninfo", "primary_slot_name"];
            if names.into_iter().filter(|name| own.remove(name)).count() > 0 {
                own.write(self.data_dir())?;
            }
        }
        Ok(())
    }

    /// How the running server takes part in replication.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// [`NotRunning`](ErrorKind::NotRunning), [`Connection`](ErrorKind::Connection).
    pub async fn replication(&self) -> Result<Replication> {
        let mut client = self.connect("postgres").await?;
        let replication = replication(&mut client).await?;
        client.close().await;
        Ok(replication)
    }
}

/// A text of settings with these in place of lines that set them.
fn replaced(text: &str, settings: &[(&str, String)]) -> String {
    let names: Vec<&str> = settings.iter().map(|(name, _)| *name).collect();
    let mut kept = without(text, &names);
    for (name, value) in settings {
        kept.push_str(&format!("{name} = {}\n", syntax::quote(value)));
    }
    kept
}

/// A text of settings without the lines that set these.
pub(crate) fn without(text: &str, names: &[&str]) -> String {
    let mut kept = String::new();
    let mut lines = syntax::parse_leniently(text).peekable();
    for (number, line) in text.lines().enumerate() {
        let parsed = lines.next_if(|(at, _)| *at == number + 1);
        let ours = parsed.is_some_and(|(_, parsed)| {
            parsed.is_ok_and(|parsed| {
                names
                    .iter()
                    .any(|name| parsed.name.eq_ignore_ascii_case(name))
            })
        });
        if !ours {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// How a server takes part in replication.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Replication {
    /// It writes.
    Primary {
        /// The end of what is durable.
        position: Lsn,
        /// Who is fed by it.
        standbys: Vec<Standby>,
    },
    /// It follows.
    Standby {
        /// Whether its receiver is connected and streams.
        streaming: bool,
        /// The end of what it received and made durable by streaming; none if it never streamed.
        received: Option<Lsn>,
        /// The end of what it replayed.
        replayed: Lsn,
        /// The age of the last transaction replayed, by its own clock; none when it replayed none. An idle
        /// primary makes it grow although nothing is missing.
        age: Option<Duration>,
        /// Who is fed by it in turn.
        standbys: Vec<Standby>,
    },
}

/// A receiver as its sender sees it: a standby, a backup, an archiver.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standby {
    /// Its `application_name`.
    pub application_name: String,
    /// The slot it uses.
    pub slot: Option<String>,
    /// `startup`, `catchup`, `streaming`, `backup` or `stopping`.
    pub state: String,
    /// Up to where it was sent.
    pub sent: Option<Lsn>,
    /// Up to where it has made durable.
    pub flushed: Option<Lsn>,
    /// Up to where it has replayed.
    pub replayed: Option<Lsn>,
    /// Bytes of WAL it has not replayed.
    pub behind: Option<u64>,
}

/// How the server of this session takes part in replication. The role needs the rights of `pg_monitor`.
///
/// Dropping the future closes the connection.
///
/// # Errors
/// [`Connection`](ErrorKind::Connection).
pub async fn replication(client: &mut Client) -> Result<Replication> {
    let sql = "SELECT pg_is_in_recovery(), \
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, \
        pg_last_wal_receive_lsn(), \
        floor(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::bigint, \
        (SELECT status FROM pg_stat_wal_receiver LIMIT 1); \
        SELECT r.application_name, s.slot_name, r.state, r.sent_lsn, r.flush_lsn, r.replay_lsn \
        FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid ORDER BY r.pid";
    let results = client.simple_query(sql).await.map_err(session::failed)?;
    let [own, others] = results.as_slice() else {
        return Err(strange());
    };
    let position = lsn(own, 0, 1).ok_or_else(strange)?;
    let standbys = (0..others.rows().len())
        .map(|row| {
            let text = |column| others.value(row, column).unwrap_or_default().to_owned();
            let replayed = lsn(others, row, 5);
            Standby {
                application_name: text(0),
                slot: others.value(row, 1).map(str::to_owned),
                state: text(2),
                sent: lsn(others, row, 3),
                flushed: lsn(others, row, 4),
                replayed,
                behind: replayed.map(|at| position.0.saturating_sub(at.0)),
            }
        })
        .collect();
    if own.value(0, 0) != Some("t") {
        return Ok(Replication::Primary { position, standbys });
    }
    let age = own.value(0, 3).and_then(|text| text.parse::<i64>().ok());
    Ok(Replication::Standby {
        streaming: own.value(0, 4) == Some("streaming"),
        received: lsn(own, 0, 2),
        replayed: position,
        // A clock behind the primary's would make it negative.
        age: age.map(|millis| Duration::from_millis(u64::try_from(millis).unwrap_or(0))),
        standbys,
    })
}

/// Makes sure, on the primary, that a standby can have this slot to itself: creates it, keeping WAL from now on, or
/// takes one of this name that nobody uses. Returns from where on it keeps WAL.
///
/// Dropping the future closes the connection; the slot may exist then. One that is not wanted any more must be
/// [dropped](drop_slot), else it keeps WAL for ever.
///
/// # Errors
/// [`Slot`](ErrorKind::Slot) when somebody uses it, when it is a logical one, when its WAL is lost, and when no
/// slot is free; [`Connection`](ErrorKind::Connection).
pub async fn claim_slot(primary: &mut Client, name: &SlotName) -> Result<Lsn> {
    let taken =
        |reason: String| Error::new(ErrorKind::Slot, format!("replication slot {name}"), reason);
    let literal = quote_literal(name.as_str()).map_err(session::failed)?;
    let sql = format!(
        "SELECT slot_type, active_pid, restart_lsn, wal_status FROM pg_catalog.pg_replication_slots \
         WHERE slot_name = {literal}"
    );
    let results = primary.simple_query(&sql).await.map_err(session::failed)?;
    let found = results.first().ok_or_else(strange)?;
    if !found.rows().is_empty() {
        if found.value(0, 0) != Some("physical") {
            return Err(taken("is a logical one".to_owned()));
        }
        if let Some(pid) = found.value(0, 1) {
            return Err(taken(format!(
                "is used by another standby (process {pid} of the primary)"
            ))
            .with_hint("give each standby a slot of its own"));
        }
        if found.value(0, 3) == Some("lost") {
            return Err(taken("has lost the WAL it kept".to_owned())
                .with_hint("drop it, and take a new copy"));
        }
        if let Some(lsn) = lsn(found, 0, 2) {
            return Ok(lsn);
        }
        return Err(
            taken("keeps no WAL yet".to_owned()).with_hint("drop it; it is created anew then")
        );
    }
    let sql =
        format!("SELECT lsn FROM pg_catalog.pg_create_physical_replication_slot({literal}, true)");
    match primary.simple_query(&sql).await {
        Ok(results) => results
            .first()
            .and_then(|result| lsn(result, 0, 0))
            .ok_or_else(strange),
        // Somebody was faster, or there is no room.
        Err(error) if matches!(error.sqlstate(), Some("42710" | "53400" | "55000")) => {
            Err(taken("cannot be created".to_owned())
                .with_hint(
                    "raise max_replication_slots (needs a restart), or drop a slot nobody uses",
                )
                .with_source(error))
        }
        Err(error) => Err(session::failed(error)),
    }
}

/// Drops a slot on the primary; says whether there was one.
///
/// Dropping the future closes the connection; the slot is gone then, or not.
///
/// # Errors
/// [`Slot`](ErrorKind::Slot) when somebody uses it; [`Connection`](ErrorKind::Connection).
pub async fn drop_slot(primary: &mut Client, name: &SlotName) -> Result<bool> {
    let literal = quote_literal(name.as_str()).map_err(session::failed)?;
    match primary
        .simple_query(&format!(
            "SELECT pg_catalog.pg_drop_replication_slot({literal})"
        ))
        .await
    {
        Ok(_) => Ok(true),
        Err(error) if error.sqlstate() == Some("42704") => Ok(false),
        Err(error) if error.sqlstate() == Some("55006") => Err(Error::new(
            ErrorKind::Slot,
            format!("replication slot {name}"),
            "is in use",
        )
        .with_source(error)),
        Err(error) => Err(session::failed(error)),
    }
}

fn lsn(result: &ResultSet, row: usize, column: usize) -> Option<Lsn> {
    result.value(row, column)?.parse().ok()
}

fn strange() -> Error {
    Error::new(
        ErrorKind::Connection,
        "replication",
        "the server's answer is not understood",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_quoted_and_never_holds_a_password() {
        let upstream = Upstream::new("/tmp/it's", 5433, r"a\b")
            .with_pass_file("/x/pgpass")
            .with_parameter("sslmode", "require");
        let text = upstream.conninfo().unwrap();
        assert_eq!(
            text,
            r"host='/tmp/it\'s' port='5433' user='a\\b' passfile='/x/pgpass' sslmode='require'"
        );
        for (name, value) in [
            ("password", "x"),
            ("", "x"),
            ("x y", "x"),
            ("options", "a\nb"),
        ] {
            let error = upstream
                .clone()
                .with_parameter(name, value)
                .conninfo()
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn settings_replace_lines_of_the_same_name_only() {
        let text = "# keep\nPrimary_Conninfo = 'old'\nwork_mem = '1MB'\nbroken line here x\n";
        let settings = [("primary_conninfo", "host='a'".to_owned())];
        let expected =
            "# keep\nwork_mem = '1MB'\nbroken line here x\nprimary_conninfo = 'host=''a'''\n";
        assert_eq!(replaced(text, &settings), expected);
    }
}
