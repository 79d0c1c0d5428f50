//! Files of real clusters of every major, judged by the server and its tools.

mod control;
mod labels;
mod manifests;
mod pages;
mod paths;
mod pid;
mod summaries;
mod timelines;

use std::path::{Path, PathBuf};
use std::process::Command;

use neon_testkit::{Cluster, ClusterBuilder, OsUser, PgMajor};

/// Makes one test per major of functions that take one.
macro_rules! for_every_major {
    ($($check:ident),* $(,)?) => {$(
        mod $check {
            use neon_testkit::PgMajor;
            #[test]
            fn of_13() { super::$check(PgMajor::V13); }
            #[test]
            fn of_14() { super::$check(PgMajor::V14); }
            #[test]
            fn of_15() { super::$check(PgMajor::V15); }
            #[test]
            fn of_16() { super::$check(PgMajor::V16); }
            #[test]
            fn of_17() { super::$check(PgMajor::V17); }
            #[test]
            fn of_18() { super::$check(PgMajor::V18); }
        }
    )*};
}
pub(crate) use for_every_major;

/// Makes one test per major whose client programs are installed.
macro_rules! for_majors_with_tools {
    ($($check:ident),* $(,)?) => {$(
        mod $check {
            use neon_testkit::PgMajor;
            #[test]
            fn of_15() { super::$check(PgMajor::V15); }
            #[test]
            fn of_16() { super::$check(PgMajor::V16); }
            #[test]
            fn of_18() { super::$check(PgMajor::V18); }
        }
    )*};
}
pub(crate) use for_majors_with_tools;

/// A cluster with one of everything that has a file of its own kind.
pub(crate) fn furnished(builder: ClusterBuilder) -> Cluster {
    let cluster = builder.setting("max_prepared_transactions", 2).start();
    let tablespace = cluster.tablespace_dir("fast disk");
    cluster.psql(&format!(
        "create tablespace fast location '{}'",
        tablespace.display()
    ));
    cluster.psql(
        "create table big (id int primary key, body text);
         insert into big select i, repeat('x', i % 500) from generate_series(1, 4000) i;
         delete from big where id % 7 = 0;
         vacuum big;
         create table elsewhere (id int) tablespace fast;
         insert into elsewhere select generate_series(1, 1000);
         create unlogged table fleeting (id int primary key);
         insert into fleeting values (1);
         create sequence counter;
         create table toasted (body text);
         insert into toasted select string_agg(md5(i::text), '') from generate_series(1, 3000) i;
         create index on big using hash (id);
         create index on big using gin (to_tsvector('simple', body));
         create index on big using brin (id);
         create table prepared (id int);
         begin; insert into prepared values (1); prepare transaction 'two';
         create database other;
         vacuum full pg_class;
         checkpoint;",
    );
    // A new connection writes the relation cache that the rewrite of pg_class made stale.
    cluster.psql("select count(*) from big");
    cluster
}

/// Makes a stopped cluster come up as a standby that reads only its own log.
pub(crate) fn make_standby(cluster: &Cluster) {
    let signal = cluster.data_dir().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    OsUser::current().own(&signal);
}

/// Every regular file below a directory, as relative paths; links are followed.
pub(crate) fn files_below(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if std::fs::metadata(root.join(&path)).unwrap().is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Runs a command; returns whether it succeeded and everything it printed.
pub(crate) fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// A command for a program of exactly this major.
pub(crate) fn own_tool(major: PgMajor, name: &str) -> Command {
    let mut command = neon_testkit::Installation::of(major).command(name);
    command.current_dir("/");
    command
}
