//! What the stock programs say of a cluster that was made from a copy.

use std::fs;

use neon_pg_layout::{ControlFile, PgMajor};

use crate::cluster::{Cluster, StopMode};
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

    /// Looks at every page and index of the running cluster. Indexes and tables: `pg_amcheck` where it is here (15), its
    /// extension by itself elsewhere (13, 14, 17), and else the server reads every row. Visibility maps: `pg_check_visible`
    /// and `pg_check_frozen` where their extension is here (13, 14, 15, 17). What waits prepared is rolled back: it holds
    /// locks, and up to 16 `pg_check_visible` takes for wrong what is newer, also in other databases.
    ///
    /// # Panics
    /// When anything is wrong with any of them.
    pub fn check_running(&self) {
        let waiting =
            "select database || '|' || format('rollback prepared %L', gid) from pg_prepared_xacts";
        for line in self.psql(waiting).lines() {
            let (database, rollback) = line.split_once('|').unwrap();
            self.psql_in(database, rollback);
        }
        let with_tool = self.has("amcheck") && self.installation().tool("pg_amcheck").is_some();
        if with_tool {
            let arguments = ["--all", "--install-missing", "--heapallindexed"];
            self.run_tool("pg_amcheck", arguments);
        }
        let databases =
            self.psql("select datname from pg_database where datallowconn and datconnlimit <> -2");
        for database in databases.lines() {
            if !with_tool {
                self.check_rows(database);
            }
            if self.has("pg_visibility") {
                self.check_visibility(database);
            }
        }
    }

    fn has(&self, extension: &str) -> bool {
        let question =
            format!("select count(*) from pg_available_extensions where name = '{extension}'");
        self.psql(&question) == "1"
    }

    fn check_rows(&self, database: &str) {
        // Temporary tables of sessions that are gone are in the catalogue, and their files in no copy.
        let tables = "select format('%I.%I', nspname, relname) from pg_class c \
                      join pg_namespace n on n.oid = relnamespace where relkind in ('r', 'm') \
                      and relpersistence <> 't'";
        for table in self.psql_in(database, tables).lines() {
            let read = format!("select count(*) from {table} t where t::text <> ''");
            self.psql_in(database, &read);
        }
        if !self.has("amcheck") {
            return;
        }
        self.psql_in(database, "create extension if not exists amcheck");
        self.psql_in(
            database,
            "select bt_index_check(c.oid, true) from pg_index i join pg_class c on c.oid = indexrelid \
             join pg_am a on a.oid = relam where amname = 'btree' and relkind = 'i' and indisready and indisvalid \
             and relpersistence <> 't'",
        );
    }

    fn check_visibility(&self, database: &str) {
        self.psql_in(database, "create extension if not exists pg_visibility");
        for check in ["pg_check_visible", "pg_check_frozen"] {
            let wrong = format!(
                "select c.oid::regclass, t from pg_class c, {check}(c.oid) t \
                 where relkind in ('r', 'm', 't') and relpersistence = 'p'"
            );
            assert_eq!(self.psql_in(database, &wrong), "", "{check} in {database}");
        }
    }

    /// Stops the cluster and has `pg_checksums` judge it, where it has checksums and its major that program.
    pub fn check_stopped(&mut self) {
        self.stop(StopMode::Fast);
        let data = self.data_dir();
        let control = fs::read(data.join("global/pg_control")).unwrap();
        let control = ControlFile::decode(&control).unwrap();
        if control.data_checksums && self.installation().tool("pg_checksums").is_some() {
            self.run_tool("pg_checksums", ["--check", "-D", data.to_str().unwrap()]);
        }
    }
}
