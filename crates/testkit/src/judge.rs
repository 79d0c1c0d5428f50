//! What the stock programs say of a cluster that was made from a copy.

use std::fs;

use neon_pg_layout::{ControlFile, PgMajor};

use crate::cluster::{Cluster, StopMode};
use crate::contrib::ModuleReport;
use crate::os_user::OsUser;

impl Cluster {
    /// A stopped cluster of this major whose data directory is missing, to be written.
    pub fn without_data(major: PgMajor) -> Self {
        let cluster = Self::builder(major).init();
        fs::remove_dir_all(cluster.data_dir()).unwrap();
        // Tablespaces go below a folder that the server's user can enter.
        OsUser::current().create_dir(&cluster.restored_tablespaces());
        cluster
    }

    /// Where the tablespaces of what is written to [`without_data`](Self::without_data) may go.
    pub fn restored_tablespaces(&self) -> std::path::PathBuf {
        self.scratch_dir().join("restored-tablespaces")
    }

    /// Looks at the relations of the running cluster: with the [modules](crate::Client::check_with_modules) that its
    /// installation holds; where these do not look at tables (13, 16, 18) the server reads every row of each.
    pub fn check_running(&self) -> ModuleReport {
        // What waits prepared holds locks, and up to 16 pg_check_visible takes for wrong what is newer, also in other databases.
        let waiting =
            "select database || '|' || format('rollback prepared %L', gid) from pg_prepared_xacts";
        for line in self.psql(waiting).lines() {
            let (database, rollback) = line.split_once('|').unwrap();
            self.psql_in(database, rollback);
        }
        let report = self.check_with_modules();
        if report.amcheck && self.major() != PgMajor::V13 {
            return report;
        }
        let databases =
            self.psql("select datname from pg_database where datallowconn and datconnlimit <> -2");
        for database in databases.lines() {
            // Temporary tables of sessions that are gone are in the catalogue, and their files in no copy.
            let tables = "select format('%I.%I', nspname, relname) from pg_class c \
                          join pg_namespace n on n.oid = relnamespace where relkind in ('r', 'm') \
                          and relpersistence <> 't'";
            for table in self.psql_in(database, tables).lines() {
                let read = format!("select count(*) from {table} t where t::text <> ''");
                self.psql_in(database, &read);
            }
        }
        report
    }

    /// Stops the cluster and has [`pg_checksums`](Self::check_checksums) judge it, if it has checksums.
    pub fn check_stopped(&mut self) {
        self.stop(StopMode::Fast);
        let control = fs::read(self.data_dir().join("global/pg_control")).unwrap();
        let control = ControlFile::decode(&control).unwrap();
        if control.data_checksums {
            let judged = self.check_checksums();
            assert!(judged || self.major() == PgMajor::V17, "somebody reads it");
        }
    }
}
