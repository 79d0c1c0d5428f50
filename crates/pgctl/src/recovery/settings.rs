//! The settings of a server that only recovers: all on its command line, stronger than any file. Of the
//! files only `postgresql.auto.conf` is read, which cannot be helped; none is changed.

use std::collections::BTreeMap;
use std::path::Path;

use neon_pg_layout::{ControlFile, PgMajor};

use crate::error::{Error, ErrorKind, Result};

/// What differs from run to run.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) socket_dir: &'a Path,
    pub(crate) hba_file: &'a Path,
    pub(crate) ident_file: &'a Path,
    pub(crate) pid_file: &'a Path,
    /// What every line of the log begins with.
    pub(crate) line_mark: &'a str,
    pub(crate) shared_buffers_kib: u64,
    pub(crate) preload: &'a str,
    /// How many replication slots the data directory has.
    pub(crate) slots: usize,
    pub(crate) durable: bool,
    pub(crate) learnt: &'a Learnt,
}

/// What earlier attempts of the same run have shown.
#[derive(Debug, Default)]
pub(crate) struct Learnt {
    /// Settings that replay found to be raised since the control file was written.
    pub(crate) raised: BTreeMap<String, i32>,
    /// Whether the server was built where a file system cannot be flushed as a whole.
    pub(crate) no_syncfs: bool,
}

/// How a server makes durable what it finds before it replays. File by file, its default, takes a flush for each of
/// thousands, which is seconds, and whoever has put a data directory there has flushed it a moment ago. Known where
/// the system has `syncfs`.
pub(crate) const SYNC_METHOD: &str = "recovery_init_sync_method";

/// How much WAL the server decodes ahead of what it replays; said to the server too.
pub(crate) const DECODE_AHEAD: u64 = 512 << 10;

type Setting = (&'static str, String);

/// Everything but the target.
pub(crate) fn settings(control: &ControlFile, around: &Surroundings<'_>) -> Result<Vec<Setting>> {
    let mut settings: Vec<Setting> = Vec::new();
    let mut set = |name, value: &str| settings.push((name, value.to_owned()));

    // Nobody is reached, and nobody reaches it but who is let into its folder at the end; nothing of the origin is written to.
    for name in [
        "listen_addresses",
        "primary_conninfo",
        "primary_slot_name",
        "synchronous_standby_names",
        "archive_cleanup_command",
        "recovery_end_command",
        "unix_socket_group",
        // For whoever is let in at the end.
        "session_preload_libraries",
        "local_preload_libraries",
    ] {
        set(name, "");
    }
    for name in [
        "archive_mode",
        "ssl",
        "bonjour",
        "autovacuum",
        "logging_collector",
        "restart_after_crash",
        "default_transaction_read_only",
    ] {
        set(name, "off");
    }
    // `autovacuum` off does not keep it from what is old. Files may have stepped aside, and nobody waits for it.
    for name in [
        "autovacuum_freeze_max_age",
        "autovacuum_multixact_freeze_max_age",
    ] {
        set(name, "2000000000");
    }
    set("max_logical_replication_workers", "0");
    set("unix_socket_permissions", "0700");
    set("port", "5432");
    // No session while it replays, so nothing is refused, or waited for, on account of one: neither smaller settings
    // than the primary's nor a setting the primary raises while we replay. But 13 stops at WAL of
    // wal_level=minimal only on account of sessions, else it warns and goes on with what may be missing.
    set(
        "hot_standby",
        if control.major == PgMajor::V13 {
            "on"
        } else {
            "off"
        },
    );

    // The log is our only witness.
    set("log_destination", "stderr");
    set("log_min_messages", "warning");
    set("log_error_verbosity", "default");
    set("lc_messages", "C");
    set("timezone", "UTC");
    set("log_timezone", "UTC");

    // Interrupted or promoted, what is on disk must be what the server believes.
    set("fsync", if around.durable { "on" } else { "off" });
    set("full_page_writes", "on");
    set("recovery_min_apply_delay", "0");
    set("wal_retrieve_retry_interval", "100ms");
    set("huge_pages", "off");
    // What changed since the base is read from the WAL of its recovery: the next snapshot is cheap as long as it is there.
    set("wal_keep_size", "512MB");

    let path = |path: &Path| match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::path(
            ErrorKind::Invalid,
            path,
            "is not UTF-8, so no setting can hold it",
        )),
    };
    // A configuration that names another data directory would win over `-D`.
    settings.push(("data_directory", path(around.data_dir)?));
    settings.push(("hba_file", path(around.hba_file)?));
    settings.push(("ident_file", path(around.ident_file)?));
    settings.push(("external_pid_file", path(around.pid_file)?));
    settings.push((
        "unix_socket_directories",
        format!("\"{}\"", path(around.socket_dir)?.replace('"', "\"\"")),
    ));
    settings.push(("log_line_prefix", format!("{}%m [%p] ", around.line_mark)));
    settings.push((
        "shared_buffers",
        format!("{}kB", around.shared_buffers_kib.max(128)),
    ));
    settings.push(("shared_preload_libraries", around.preload.to_owned()));
    // With fewer than there are it does not start.
    settings.push(("max_replication_slots", (around.slots + 10).to_string()));
    settings.extend(recorded(control, &around.learnt.raised));
    let refused = |name| name == SYNC_METHOD && around.learnt.no_syncfs;
    settings.extend(
        by_major(control.major)
            .into_iter()
            .filter(|(name, _)| !refused(*name)),
    );
    Ok(settings)
}

/// What a standby must not lower, and what its end would otherwise log as a change.
fn recorded(control: &ControlFile, raised: &BTreeMap<String, i32>) -> [Setting; 8] {
    let at = &control.settings;
    let word = |on| if on { "on" } else { "off" }.to_owned();
    let least = |name, recorded: i32| {
        (
            name,
            raised
                .get(name)
                .map_or(recorded, |raised| recorded.max(*raised))
                .to_string(),
        )
    };
    [
        least("max_connections", at.max_connections),
        least("max_worker_processes", at.max_worker_processes),
        least("max_wal_senders", at.max_wal_senders),
        least("max_prepared_transactions", at.max_prepared_transactions),
        least("max_locks_per_transaction", at.max_locks_per_transaction),
        ("wal_level", at.wal_level.name().to_owned()),
        ("wal_log_hints", word(at.wal_log_hints)),
        ("track_commit_timestamp", word(at.track_commit_timestamp)),
    ]
}

/// Settings that not every major knows: an unknown one is fatal.
fn by_major(major: PgMajor) -> Vec<Setting> {
    let known = [
        // A folder elsewhere that Debian configures.
        (
            PgMajor::V13,
            PgMajor::V14,
            "stats_temp_directory",
            "pg_stat_tmp".to_owned(),
        ),
        (
            PgMajor::V13,
            PgMajor::V15,
            "promote_trigger_file",
            String::new(),
        ),
        #[cfg(target_os = "linux")]
        (PgMajor::V14, PgMajor::V18, SYNC_METHOD, "syncfs".to_owned()),
        (PgMajor::V15, PgMajor::V18, "archive_library", String::new()),
        (
            PgMajor::V15,
            PgMajor::V18,
            "log_startup_progress_interval",
            "1s".to_owned(),
        ),
        (
            PgMajor::V15,
            PgMajor::V18,
            "wal_decode_buffer_size",
            format!("{}kB", DECODE_AHEAD >> 10),
        ),
        (
            PgMajor::V17,
            PgMajor::V18,
            "summarize_wal",
            "off".to_owned(),
        ),
        (
            PgMajor::V17,
            PgMajor::V18,
            "sync_replication_slots",
            "off".to_owned(),
        ),
        (
            PgMajor::V17,
            PgMajor::V18,
            "event_triggers",
            "off".to_owned(),
        ),
    ];
    known
        .into_iter()
        .filter(|(first, last, ..)| (*first..=*last).contains(&major))
        .map(|(_, _, name, value)| (name, value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_given_to_the_majors_that_know_it() {
        let names = |major| {
            by_major(major)
                .into_iter()
                .map(|(name, _)| name)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(PgMajor::V13),
            ["stats_temp_directory", "promote_trigger_file"]
        );
        assert_eq!(
            names(PgMajor::V14).contains(&SYNC_METHOD),
            cfg!(target_os = "linux")
        );
        assert!(names(PgMajor::V16).contains(&"archive_library"));
        assert!(!names(PgMajor::V16).contains(&"promote_trigger_file"));
        assert!(names(PgMajor::V18).contains(&"summarize_wal"));
    }
}
