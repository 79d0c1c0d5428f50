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

    /// Looks at every page and index of the running cluster: `pg_amcheck` where its extension is here (15), else the
    /// server reads every row of every table.
    pub fn check_running(&self) {
        let contrib = "select count(*) from pg_available_extensions where name = 'amcheck'";
        if self.psql(contrib) == "1" && self.installation().tool("pg_amcheck").is_some() {
            let arguments = ["--all", "--install-missing", "--heapallindexed"];
            self.run_tool("pg_amcheck", arguments);
            return;
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
