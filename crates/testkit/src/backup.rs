//! A backup that a test holds open on a running cluster: what `pg_basebackup` does around its copy.

use std::sync::Mutex;

use neon_pg_layout::{Lsn, PgMajor};

use crate::client::Session;
use crate::cluster::Cluster;

/// Between the start and the stop of a backup, in one session.
#[derive(Debug)]
pub struct Backup {
    session: Session,
    modern: bool,
    /// Where the log begins that makes the copy whole.
    pub start: Lsn,
}

/// What the server says at the end of a backup.
#[derive(Debug)]
pub struct StoppedBackup {
    /// Where the log ends that makes the copy whole.
    pub position: Lsn,
    /// Content of `backup_label`.
    pub label: Vec<u8>,
    /// Content of `tablespace_map`.
    pub map: Vec<u8>,
}

impl Backup {
    /// Begins one, with a fast checkpoint.
    pub fn begin(cluster: &Cluster) -> Self {
        let modern = cluster.major() >= PgMajor::V15;
        let mut session = cluster.session("postgres");
        let start = session.run(if modern {
            "select pg_backup_start('test', true)"
        } else {
            "select pg_start_backup('test', true, false)"
        });
        Self {
            session,
            modern,
            start: start.parse().unwrap(),
        }
    }

    /// Asks, in a session of its own, how far the log is that pages may be from.
    pub fn positions(cluster: &Cluster) -> impl Fn() -> Lsn + Send + Sync + use<> {
        let session = Mutex::new(cluster.session("postgres"));
        let question = "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
                        else pg_current_wal_insert_lsn() end";
        move || session.lock().unwrap().run(question).parse().unwrap()
    }

    /// Ends it.
    pub fn stop(mut self) -> StoppedBackup {
        let call = if self.modern {
            "pg_backup_stop(false)"
        } else {
            "pg_stop_backup(false, false)"
        };
        let row = self.session.run(&format!(
            "select lsn, encode(convert_to(labelfile, 'UTF8'), 'hex'), \
             encode(convert_to(spcmapfile, 'UTF8'), 'hex') from {call}"
        ));
        let columns: Vec<&str> = row.split('|').collect();
        StoppedBackup {
            position: columns[0].parse().unwrap(),
            label: unhex(columns[1]),
            map: unhex(columns[2]),
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}
