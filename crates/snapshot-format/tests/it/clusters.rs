//! Sources, targets and judges that several tests share.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use neon_pg_layout::{ChecksumAlgorithm, Lsn, Manifest, TimelineId};
use neon_snapshot_format::Result;
use neon_snapshot_format::pgdata::{
    Bracket, DirectoryOptions, DirectoryWriter, Flush, Ownership, PgData, Stop, StopWal,
    TablespacePlaces,
};
use neon_snapshot_format::{End, ParallelSink, Sequential, Sink};
use neon_testkit::{Cluster, Installation, PgMajor, Session};

/// A running cluster with what makes copying hard: large and empty relations, unlogged ones, a second
/// database, tablespaces outside and in place, a large object, a prepared transaction.
pub(crate) fn varied(major: PgMajor, checksums: bool) -> Cluster {
    varied_with(major, checksums, true)
}

/// As `varied`; `in_place` false without the tablespace in place: `pg_basebackup -Ft` of servers up to 15
/// loses what lies in such.
pub(crate) fn varied_with(major: PgMajor, checksums: bool, in_place: bool) -> Cluster {
    let cluster = Cluster::builder(major)
        .checksums(checksums)
        .setting("wal_keep_size", "512MB")
        .setting("max_prepared_transactions", 4)
        .start();
    let place = cluster.tablespace_dir("outside");
    cluster.psql(&format!(
        "create tablespace outside location '{}'",
        place.display()
    ));
    if in_place {
        cluster.psql("set allow_in_place_tablespaces = on; create tablespace inside location ''");
    }
    let inside = if in_place { "inside" } else { "pg_default" };
    cluster.psql(&format!(
        "create table kept (id int primary key, body text);
         insert into kept select i, repeat(md5(i::text), 20) from generate_series(1, 26000) i;
         create unlogged table scratch as select generate_series(1, 1000) as i;
         create table empty (i int);
         create table far (i int) tablespace outside;
         insert into far select generate_series(1, 5000);
         create table near (i int) tablespace {inside};
         insert into near select generate_series(1, 700);
         select lo_from_bytea(0, decode(repeat('ab', 10000), 'hex'));
         create database other;
         begin; insert into near values (0); prepare transaction 'open'"
    ));
    cluster.psql_in(
        "other",
        "create table t as select generate_series(1, 10) i; vacuum t",
    );
    cluster
}

/// What `varied` holds, as one line.
pub(crate) fn contents(cluster: &Cluster) -> String {
    cluster.psql(
        "select (select count(*) || ' ' || sum(hashtext(body)::bigint) from kept),
                (select sum(i) from far), (select sum(i) from near), (select count(*) from empty),
                (select count(*) from pg_largeobject), (select count(*) from pg_prepared_xacts)",
    )
}

/// Options that keep owners and put tablespaces below this cluster's folder; with one flush, which many
/// tests beside each other can afford.
pub(crate) fn options(target: &Cluster) -> DirectoryOptions {
    DirectoryOptions {
        ownership: Ownership::Recorded,
        tablespaces: TablespacePlaces::Below(target.scratch_dir().join("restored-tablespaces")),
        flush: Flush::FileSystem,
        ..DirectoryOptions::default()
    }
}

/// A stopped cluster of this major whose data directory is missing, to be written.
pub(crate) fn target(major: PgMajor) -> Cluster {
    let cluster = Cluster::builder(major).init();
    fs::remove_dir_all(cluster.data_dir()).unwrap();
    // Tablespaces go below a folder that the server's user can enter.
    let place = cluster.scratch_dir().join("restored-tablespaces");
    neon_testkit::OsUser::current().create_dir(&place);
    cluster
}

/// Starts what was written to the target, with a socket of its own.
pub(crate) fn start(target: &mut Cluster) {
    target.set("wal_keep_size", "0");
    target.set("max_prepared_transactions", 4);
    // Recovery refuses directories in pg_tblspc otherwise.
    target.set("allow_in_place_tablespaces", "on");
    target.start();
}

/// A backup that is open on a running cluster.
pub(crate) struct Backup {
    session: Session,
    modern: bool,
    pub(crate) start: Lsn,
}

impl Backup {
    pub(crate) fn begin(cluster: &Cluster) -> Self {
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

    pub(crate) fn bracket(&self, cluster: &Cluster) -> Bracket {
        let session = std::sync::Mutex::new(cluster.session("postgres"));
        let question = "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
                        else pg_current_wal_insert_lsn() end";
        Bracket::new(self.start, move || {
            Ok(session.lock().unwrap().run(question).parse()?)
        })
    }

    pub(crate) fn stop(mut self) -> Stopped {
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
        Stopped {
            position: columns[0].parse().unwrap(),
            label: unhex(columns[1]),
            map: unhex(columns[2]),
        }
    }
}

pub(crate) struct Stopped {
    pub(crate) position: Lsn,
    pub(crate) label: Vec<u8>,
    pub(crate) map: Vec<u8>,
}

impl Stopped {
    pub(crate) fn stop<'a>(&'a self, wal: &'a Path) -> Stop<'a> {
        Stop {
            label: &self.label,
            tablespace_map: &self.map,
            position: self.position,
            timeline: TimelineId::FIRST,
            wal: StopWal::Directory(wal),
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

/// Takes an online copy into a sink.
pub(crate) fn copy_online(cluster: &Cluster, sink: &mut dyn Sink) -> Result<End> {
    let backup = Backup::begin(cluster);
    let source = PgData::online(&cluster.data_dir(), backup.bracket(cluster))?;
    let copied = source.copy(sink)?;
    let stopped = backup.stop();
    copied.finish(sink, Some(stopped.stop(&cluster.data_dir().join("pg_wal"))))
}

/// As `copy_online`, with threads.
pub(crate) fn copy_online_parallel(
    cluster: &Cluster,
    sink: &dyn ParallelSink,
    threads: usize,
) -> Result<End> {
    let backup = Backup::begin(cluster);
    let source = PgData::online(&cluster.data_dir(), backup.bracket(cluster))?;
    let copied = source.copy_parallel(sink, threads)?;
    let stopped = backup.stop();
    let wal = cluster.data_dir().join("pg_wal");
    copied.finish(&mut Sequential::new(sink)?, Some(stopped.stop(&wal)))
}

/// Writes a source's snapshot into the target's data directory.
pub(crate) fn unpack(source: &mut dyn neon_snapshot_format::Source, target: &Cluster) {
    let writer = DirectoryWriter::create(&target.data_dir(), options(target)).unwrap();
    source.send(&mut Sequential::new(&writer).unwrap()).unwrap();
}

/// Every file and directory with mode and content, by path relative to the data directory; links of
/// tablespaces and of the log are followed.
pub(crate) fn tree(data: &Path) -> BTreeMap<String, (u32, Option<Vec<u8>>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(data.join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let full = data.join(&path);
            let facts = fs::metadata(&full).unwrap();
            let name = path.to_str().unwrap().to_owned();
            let mode = facts.permissions().mode() & 0o7777;
            if facts.is_dir() {
                found.insert(name, (mode, None));
                folders.push(path);
            } else if facts.is_file() {
                found.insert(name, (mode, Some(fs::read(full).unwrap())));
            }
        }
    }
    found
}

/// Judges the unpacked backup by `pg_verifybackup`. 13 and 14 are judged by the one of 15 without their
/// log. 17, which is here without programs, by reading the manifest back and summing each file: its manifest
/// is of a version that 16 does not know, its control file of one that 18 does not know.
pub(crate) fn verify(data: &Path, major: PgMajor) {
    let judge = match major {
        PgMajor::V13 | PgMajor::V14 => Some((PgMajor::V15, true)),
        PgMajor::V17 => None,
        own => Some((own, false)),
    };
    let Some((judge, no_wal)) = judge else {
        return verify_by_reading(data);
    };
    let mut command = Installation::of(judge).command("pg_verifybackup");
    if no_wal {
        command.arg("-n");
    }
    let output = command.arg(data).current_dir("/").output().unwrap();
    assert!(
        output.status.success(),
        "pg_verifybackup of {judge}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn verify_by_reading(data: &Path) {
    let manifest = Manifest::parse(&fs::read(data.join("backup_manifest")).unwrap()).unwrap();
    let listed: BTreeMap<String, _> = manifest
        .files
        .into_iter()
        .map(|file| (String::from_utf8(file.path.clone()).unwrap(), file))
        .collect();
    let mut count = 0;
    for (path, (_, content)) in tree(data) {
        let Some(content) = content else { continue };
        if path == "backup_manifest" || path.starts_with("pg_wal/") {
            continue;
        }
        count += 1;
        let file = &listed[&path];
        assert_eq!(file.size, content.len() as u64, "{path}");
        let checksum = file.checksum.as_ref().unwrap();
        assert_eq!(checksum.algorithm(), ChecksumAlgorithm::Crc32c);
        assert_eq!(
            checksum.bytes(),
            crc32c::crc32c(&content).to_le_bytes(),
            "{path}"
        );
    }
    assert_eq!(count, listed.len());
}

/// Looks at every page and index of a running cluster: `pg_amcheck` where its extension is here (15), else
/// the server reads every row of every table.
pub(crate) fn check_running(cluster: &Cluster) {
    let contrib = "select count(*) from pg_available_extensions where name = 'amcheck'";
    if cluster.psql(contrib) == "1" && cluster.installation().tool("pg_amcheck").is_some() {
        cluster.run_tool(
            "pg_amcheck",
            ["--all", "--install-missing", "--heapallindexed"],
        );
        return;
    }
    for database in cluster
        .psql("select datname from pg_database where datallowconn")
        .lines()
    {
        // Temporary tables of sessions that are gone are in the catalogue, and their files in no copy.
        let tables = "select format('%I.%I', nspname, relname) from pg_class c \
                      join pg_namespace n on n.oid = relnamespace where relkind in ('r', 'm') \
                      and relpersistence <> 't'";
        for table in cluster.psql_in(database, tables).lines() {
            cluster.psql_in(
                database,
                &format!("select count(*) from {table} t where t::text <> ''"),
            );
        }
    }
}

/// Stops the cluster and judges its checksums by `pg_checksums` where the major has it, and by our own
/// reader, which the server's checks have judged.
pub(crate) fn check_stopped(cluster: &mut Cluster) {
    cluster.stop(neon_testkit::StopMode::Fast);
    let summed = PgData::cold(&cluster.data_dir())
        .unwrap()
        .control()
        .data_checksums;
    if summed && cluster.installation().tool("pg_checksums").is_some() {
        let data = cluster.data_dir();
        cluster.run_tool("pg_checksums", ["--check", "-D", data.to_str().unwrap()]);
    }
}
