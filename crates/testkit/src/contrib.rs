//! What PostgreSQL's own modules and programs say of a cluster: `amcheck`, `pg_visibility`, `pg_checksums`.
//!
//! The packages of 13, 14, 15 and 17 hold the modules, those of 16 and 18 do not. `pg_amcheck` is there for 14 and later, and
//! asks older servers than its own as well. `pg_checksums` reads the files of every major whose control file has the same
//! version: that of 15 judges 13 and 14 too, 17 has none.

use crate::PgMajor;
use std::fs;
use std::os::unix::fs::symlink;

use neon_pg_layout::tablespace_version_directory;

use crate::client::Client;
use crate::cluster::Cluster;
use crate::installation::Installation;

/// What was asked of the modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModuleReport {
    /// Whether `amcheck` looked at every index, and from 14 on at every table.
    pub amcheck: bool,
    /// Pages that the visibility maps of all databases call all-visible, each of which `pg_visibility` has compared with its
    /// rows; none without that module.
    pub visible: Option<u64>,
    /// And those that they call frozen.
    pub frozen: Option<u64>,
}

impl Client {
    fn databases(&self) -> Vec<String> {
        let names =
            self.psql("select datname from pg_database where datallowconn and datconnlimit <> -2");
        names.lines().map(str::to_owned).collect()
    }

    fn has_module(&self, name: &str) -> bool {
        let there = format!("select count(*) from pg_available_extensions where name = '{name}'");
        self.psql(&there) == "1"
    }

    /// Has the modules that this installation holds judge every relation of every database that is not temporary.
    /// Transactions that wait prepared hold locks; there may be none.
    ///
    /// # Panics
    /// When one of them finds something.
    pub fn check_with_modules(&self) -> ModuleReport {
        let mut report = ModuleReport::default();
        if self.has_module("amcheck") {
            report.amcheck = true;
            if self.major() == PgMajor::V13 {
                // It has no function for tables, and pg_amcheck wants one.
                for database in self.databases() {
                    self.psql_in(
                        &database,
                        "create extension if not exists amcheck;
                         select bt_index_check(c.oid, true) from pg_class c
                           join pg_index i on i.indexrelid = c.oid join pg_am a on a.oid = c.relam
                         where a.amname = 'btree' and c.relkind = 'i' and c.relpersistence <> 't'
                           and i.indisvalid and i.indisready",
                    );
                }
            } else {
                let arguments = ["--all", "--install-missing", "--heapallindexed"];
                self.run_tool("pg_amcheck", arguments);
            }
        }
        if self.has_module("pg_visibility") {
            let (mut visible, mut frozen) = (0, 0);
            for database in self.databases() {
                self.psql_in(&database, "create extension if not exists pg_visibility");
                let maps = "from pg_class c, lateral";
                let all = "where c.relkind in ('r', 'm', 't') and c.relpersistence <> 't'";
                for check in ["pg_check_visible", "pg_check_frozen"] {
                    let sql = format!("select c.oid::regclass, t {maps} {check}(c.oid) t {all}");
                    let wrong = self.psql_in(&database, &sql);
                    assert!(wrong.is_empty(), "{check} in {database}: {wrong}");
                }
                let sql = format!(
                    "select coalesce(sum(s.all_visible), 0), coalesce(sum(s.all_frozen), 0) \
                     {maps} pg_visibility_map_summary(c.oid) s {all}"
                );
                let counted = self.psql_in(&database, &sql);
                let (first, second) = counted.split_once('|').expect("two columns");
                let number = |text: &str| text.parse::<u64>().expect("a number");
                visible += number(first);
                frozen += number(second);
            }
            (report.visible, report.frozen) = (Some(visible), Some(frozen));
        }
        report
    }
}

impl Cluster {
    /// Has `pg_checksums` read every page of the stopped cluster, its own or that of another major that reads its files.
    /// Returns whether there was one.
    ///
    /// # Panics
    /// When it finds something.
    pub fn check_checksums(&self) -> bool {
        let version = self.major().layout().control_version;
        let fitting = |one: &&Installation| {
            one.major().layout().control_version == version && one.tool("pg_checksums").is_some()
        };
        let own = self.installation().tool("pg_checksums");
        let Some(installation) = (match own {
            Some(_) => Some(self.installation()),
            None => Installation::all().iter().find(fitting),
        }) else {
            return false;
        };
        // In tablespaces it looks for the folder of its own major, and nowhere else.
        let folder = |major: PgMajor| tablespace_version_directory(major.layout());
        let (theirs, ours) = (folder(installation.major()), folder(self.major()));
        let mut lent = Vec::new();
        if theirs != ours {
            for space in fs::read_dir(self.data_dir().join("pg_tblspc")).unwrap() {
                let link = space.unwrap().path().join(&theirs);
                symlink(&ours, &link).unwrap();
                lent.push(link);
            }
        }
        let mut command = installation.command("pg_checksums");
        command.arg("--check").arg("-D").arg(self.data_dir());
        let output = command.output().expect("it is installed");
        for link in lent {
            fs::remove_file(link).unwrap();
        }
        assert!(
            output.status.success(),
            "pg_checksums of {}: {}{}",
            installation.version(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        true
    }
}
