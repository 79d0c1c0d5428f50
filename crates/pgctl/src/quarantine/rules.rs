//! Which settings of the origin a quarantined server keeps, which are forced, and what was changed.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::instance::Instance;
use crate::settings::files::FileSettings;

use super::machine::{memory, parse_bytes};
use super::preload;
use super::{Change, Why};

/// The settings of a quarantined start.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// From the origin, for the file.
    pub(super) kept: Vec<(String, String)>,
    /// For the command line, which wins over `postgresql.auto.conf`.
    pub(super) forced: Vec<(String, String)>,
    /// What is different and would have had an effect.
    pub(super) changes: Vec<Change>,
}

/// A value that is forced whatever the origin says: name, value, first major that knows it, first that does
/// not any more, why.
type Forced = (&'static str, &'static str, u32, u32, Why);

const ALL: u32 = 13;
const EVER: u32 = u32::MAX;

const FORCED: &[Forced] = &[
    ("archive_mode", "off", ALL, EVER, Why::Archive),
    ("archive_command", "", ALL, EVER, Why::Archive),
    ("archive_library", "", 15, EVER, Why::Archive),
    ("restore_command", "", ALL, EVER, Why::Archive),
    ("archive_cleanup_command", "", ALL, EVER, Why::Archive),
    ("recovery_end_command", "", ALL, EVER, Why::Archive),
    ("primary_conninfo", "", ALL, EVER, Why::Upstream),
    ("primary_slot_name", "", ALL, EVER, Why::Upstream),
    ("promote_trigger_file", "", ALL, 16, Why::OriginPath),
    ("sync_replication_slots", "off", 17, EVER, Why::Upstream),
    (
        "synchronized_standby_slots",
        "",
        17,
        EVER,
        Why::SynchronousStandbys,
    ),
    (
        "synchronous_standby_names",
        "",
        ALL,
        EVER,
        Why::SynchronousStandbys,
    ),
    (
        "max_logical_replication_workers",
        "0",
        ALL,
        EVER,
        Why::Workers,
    ),
    ("listen_addresses", "", ALL, EVER, Why::Access),
    ("unix_socket_group", "", ALL, EVER, Why::Access),
    ("unix_socket_permissions", "0700", ALL, EVER, Why::Access),
    ("bonjour", "off", ALL, EVER, Why::Access),
    ("ssl", "off", ALL, EVER, Why::OriginPath),
    ("ssl_passphrase_command", "", ALL, EVER, Why::OriginPath),
    ("krb_server_keyfile", "", ALL, EVER, Why::OriginPath),
    ("oauth_validator_libraries", "", 18, EVER, Why::Access),
    ("external_pid_file", "", ALL, EVER, Why::OriginPath),
    (
        "stats_temp_directory",
        "pg_stat_tmp",
        ALL,
        15,
        Why::OriginPath,
    ),
    // The log goes to the file of the start: neither to a folder of the origin nor to the system's log.
    ("logging_collector", "off", ALL, EVER, Why::OriginPath),
    ("log_destination", "stderr", ALL, EVER, Why::OriginPath),
    ("lc_messages", "C", ALL, EVER, Why::Refused),
    ("huge_pages", "off", ALL, EVER, Why::Resources),
    ("hot_standby", "on", ALL, EVER, Why::Access),
    ("recovery_target", "", ALL, EVER, Why::Upstream),
    ("recovery_target_lsn", "", ALL, EVER, Why::Upstream),
    ("recovery_target_name", "", ALL, EVER, Why::Upstream),
    ("recovery_target_time", "", ALL, EVER, Why::Upstream),
    ("recovery_target_xid", "", ALL, EVER, Why::Upstream),
];

/// Forced values that differ from the server's default.
const NOT_DEFAULT: &[&str] = &[
    "max_logical_replication_workers",
    "max_worker_processes",
    "listen_addresses",
    "unix_socket_permissions",
    "huge_pages",
    "cron.launch_active_jobs",
];

/// Never taken from the origin: `-D` and the files of quarantine stand for them, or they are paths that mean
/// nothing once the setting above that uses them is off.
const DROPPED: &[(&str, Why)] = &[
    ("data_directory", Why::OriginPath),
    ("config_file", Why::OriginPath),
    ("hba_file", Why::OriginPath),
    ("ident_file", Why::OriginPath),
    ("log_directory", Why::OriginPath),
    ("ssl_cert_file", Why::OriginPath),
    ("ssl_key_file", Why::OriginPath),
    ("ssl_ca_file", Why::OriginPath),
    ("ssl_crl_file", Why::OriginPath),
    ("ssl_crl_dir", Why::OriginPath),
    ("ssl_dh_params_file", Why::OriginPath),
    ("unix_socket_directories", Why::OriginPath),
];

/// Settings that reserve memory: the unit of a bare number in bytes, the default in bytes, and into how many
/// parts the machine's memory is divided for the most that one may have.
const MEMORY: &[(&str, u64, u64, u64)] = &[
    ("shared_buffers", 8192, 128 << 20, 8),
    ("wal_buffers", 8192, 0, 64),
    ("temp_buffers", 8192, 8 << 20, 64),
    ("work_mem", 1024, 4 << 20, 64),
    ("maintenance_work_mem", 1024, 64 << 20, 16),
    ("autovacuum_work_mem", 1024, 0, 16),
    ("logical_decoding_work_mem", 1024, 64 << 20, 16),
    ("min_dynamic_shared_memory", 1 << 20, 0, 64),
];

/// More sessions than this nobody needs to look at a copy.
const CONNECTIONS: i64 = 100;

/// When the machine does not say what it has.
const ASSUMED_MEMORY: u64 = 2 << 30;

impl Rules {
    /// Derives them from the files of the copy, its control file, the installation and the machine.
    ///
    /// `libraries` are those that are loaded in recovery too, `port` is only the number in the socket's name.
    pub(super) fn derive(
        instance: &Instance,
        libraries: &BTreeSet<String>,
        port: u16,
    ) -> Result<Self> {
        let files = instance.file_settings();
        let mut rules = Self::default();
        for problem in files.problems() {
            rules.changes.push(Change {
                what: "configuration files".to_owned(),
                was: Some(problem.clone()),
                now: None,
                why: Why::Unreadable,
            });
        }
        let phase = Phase::of(instance);
        rules.force_fixed(instance, &files, phase);
        rules.force(&files, "port", &port.to_string(), Why::Access);
        rules.fit_memory(&files);
        rules.fit_counts(instance, &files, phase)?;
        rules.settle_libraries(instance, &files, libraries, phase);
        let socket_dir = instance.socket_dir.display().to_string();
        rules
            .forced
            .push(("unix_socket_directories".to_owned(), socket_dir));
        for (name, why) in DROPPED {
            if let Some(was) = files.value(name) {
                rules.change(name, Some(was), None, *why);
            }
        }
        for setting in files.iter() {
            let forced = rules.forced.iter().any(|(name, _)| *name == setting.name);
            let dropped = DROPPED.iter().any(|(name, _)| *name == setting.name);
            if !forced && !dropped {
                rules
                    .kept
                    .push((setting.name.clone(), setting.value.clone()));
            }
        }
        Ok(rules)
    }

    fn change(&mut self, what: &str, was: Option<&str>, now: Option<&str>, why: Why) {
        self.changes.push(Change {
            what: what.to_owned(),
            was: was.map(|was| {
                if what == "primary_conninfo" {
                    without_password(was)
                } else {
                    was.to_owned()
                }
            }),
            now: now.map(str::to_owned),
            why,
        });
    }

    /// Forces a value and lists it if the files, or the default, say something else.
    fn force(&mut self, files: &FileSettings, name: &str, value: &str, why: Why) {
        self.forced.push((name.to_owned(), value.to_owned()));
        let was = files.value(name);
        let differs = match was {
            Some(was) => !was.eq_ignore_ascii_case(value),
            None => NOT_DEFAULT.contains(&name),
        };
        if differs {
            self.change(name, was, Some(value), why);
        }
    }

    fn force_fixed(&mut self, instance: &Instance, files: &FileSettings, phase: Phase) {
        let major = instance.major().number();
        for (name, value, since, until, why) in FORCED {
            if (*since..*until).contains(&major) {
                // A recovery that is to end does not begin without a command; this one has nothing to give.
                let alone = *name == "restore_command" && phase == Phase::Recovery;
                let value = if alone { "false" } else { value };
                self.force(files, name, value, *why);
                if alone && files.value(name).is_none() {
                    self.change(name, None, Some(value), *why);
                }
            }
        }
        if files.value("recovery_target_timeline").is_some() {
            self.force(files, "recovery_target_timeline", "latest", Why::Upstream);
        }
        // What keeps other places than the archive from being reached by its jobs.
        if files
            .iter()
            .any(|setting| setting.name.starts_with("cron."))
            || uses(files, "pg_cron")
        {
            self.force(files, "cron.launch_active_jobs", "off", Why::Workers);
        }
    }

    fn fit_memory(&mut self, files: &FileSettings) {
        let memory = memory().unwrap_or(ASSUMED_MEMORY);
        for (name, unit, default, parts) in MEMORY {
            let most = (memory / parts).max(1 << 20);
            let wanted = match files.value(name) {
                // -1 and what cannot be read: the server chooses, or says what is wrong with it.
                Some(value) => parse_bytes(value, *unit).unwrap_or(0),
                None => *default,
            };
            if wanted > most {
                let value = format!("{}kB", most / 1024);
                self.forced.push(((*name).to_owned(), value.clone()));
                self.change(name, files.value(name), Some(&value), Why::Resources);
            }
        }
    }

    /// A standby needs at least what its primary had; anything else gets less.
    fn fit_counts(
        &mut self,
        instance: &Instance,
        files: &FileSettings,
        phase: Phase,
    ) -> Result<()> {
        let number = |name: &str, default: i64| {
            files
                .value(name)
                .and_then(|value| value.trim().parse().ok())
                .unwrap_or(default)
        };
        if phase != Phase::Primary {
            let recorded = instance.control_file()?.settings;
            let required = [
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
            ];
            for (name, required, default) in required {
                let required = i64::from(required);
                if number(name, default) < required {
                    self.forced.push((name.to_owned(), required.to_string()));
                    self.change(
                        name,
                        files.value(name),
                        Some(&required.to_string()),
                        Why::RequiredByRecovery,
                    );
                }
            }
            return Ok(());
        }
        // Workers of libraries: none can be started, whatever library is loaded.
        self.force(files, "max_worker_processes", "0", Why::Workers);
        if number("max_connections", CONNECTIONS) > CONNECTIONS {
            self.force(
                files,
                "max_connections",
                &CONNECTIONS.to_string(),
                Why::Resources,
            );
            for (name, most) in [
                ("superuser_reserved_connections", 3),
                ("reserved_connections", 0),
            ] {
                if number(name, most) > most {
                    self.force(files, name, &most.to_string(), Why::Resources);
                }
            }
        }
        Ok(())
    }

    /// Outside of recovery libraries are loaded, so that what depends on them can be used, and no worker of theirs
    /// is started. A server in recovery needs as many workers as its primary had, so there the libraries go.
    fn settle_libraries(
        &mut self,
        instance: &Instance,
        files: &FileSettings,
        wanted: &BTreeSet<String>,
        phase: Phase,
    ) {
        for name in preload::SETTINGS {
            let Some(list) = files.value(name) else {
                continue;
            };
            let search_path = files.value("dynamic_library_path");
            let (mut present, missing) =
                preload::split_present(list, &instance.installation, search_path);
            let before = present.len();
            if name == preload::SHARED && phase != Phase::Primary {
                present.retain(|library| wanted.contains(library));
            }
            if present.len() < before {
                self.force(files, name, &preload::join(&present), Why::Workers);
            } else if !missing.is_empty() {
                self.force(files, name, &preload::join(&present), Why::MissingLibrary);
            }
        }
    }
}

/// What the server will do first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Take part as a primary, after a crash recovery perhaps.
    Primary,
    /// Stay in recovery (`standby.signal`).
    Standby,
    /// Recover and then be promoted (`recovery.signal`).
    Recovery,
}

impl Phase {
    fn of(instance: &Instance) -> Self {
        let has = |name| instance.data_dir.join(name).exists();
        // If both are there the server is a standby.
        if has("standby.signal") {
            Self::Standby
        } else if has("recovery.signal") {
            Self::Recovery
        } else {
            Self::Primary
        }
    }
}

fn uses(files: &FileSettings, library: &str) -> bool {
    preload::SETTINGS
        .iter()
        .any(|name| files.value(name).is_some_and(|list| list.contains(library)))
}

/// A connection string whose password is not shown, in either of its two forms.
fn without_password(conninfo: &str) -> String {
    let mut shown = conninfo.to_owned();
    // `password = secret` or `password = 'sec ret'`; also `?password=` of a URI.
    if let Some(at) = shown.find("password")
        && let Some(equals) = shown.get(at..).and_then(|rest| rest.find('='))
    {
        let start = at + equals + 1;
        let value = shown.get(start..).unwrap_or_default();
        let blank = value.len() - value.trim_start().len();
        let value = value.trim_start();
        let length = match value.strip_prefix('\'') {
            Some(quoted) => quoted.find('\'').map_or(value.len(), |end| end + 2),
            None => value.find([' ', '&']).unwrap_or(value.len()),
        };
        shown.replace_range(start + blank..start + blank + length, "…");
    }
    // `//user:secret@host`.
    if let Some((before, after)) = shown.split_once("://")
        && let Some((login, host)) = after.split_once('@')
        && let Some((user, _)) = login.split_once(':')
    {
        shown = format!("{before}://{user}:…@{host}");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_connection_strings_are_not_shown() {
        for (given, shown) in [
            ("host=a password=secret user=b", "host=a password=… user=b"),
            ("password = 'sec ret' host=a", "password = … host=a"),
            ("host=a password=secret", "host=a password=…"),
            ("postgresql://me:secret@a/b", "postgresql://me:…@a/b"),
            (
                "postgresql://a/b?password=secret&x=y",
                "postgresql://a/b?password=…&x=y",
            ),
            ("host=a passfile=/x", "host=a passfile=/x"),
        ] {
            assert_eq!(without_password(given), shown);
        }
    }
}
