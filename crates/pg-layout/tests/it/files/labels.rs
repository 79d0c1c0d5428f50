//! `backup_label`, `tablespace_map` and backup history files that real servers made.

use neon_pg_layout::{
    BackupHistory, BackupLabel, BackupMethod, BackupSource, PgMajor, TablespaceMap, WalSegmentSize,
};
use neon_testkit::{Cluster, StopMode};

use super::{for_every_major, for_majors_with_tools, make_standby, own_tool, run};

for_every_major!(
    labels_maps_and_history_files_are_rewritten_byte_for_byte,
    a_label_from_a_standby_says_so,
);

for_majors_with_tools!(a_label_of_pg_rewind_is_rewritten_byte_for_byte);

/// Brackets nothing; returns what the server gives for the copy, and where it says it stopped.
fn bracket(cluster: &Cluster, name: &str) -> (Vec<u8>, Vec<u8>, String) {
    let old = cluster.major() < PgMajor::V15;
    let mut session = cluster.session("postgres");
    let name = name.replace('\'', "''");
    let start = if old {
        format!("select pg_start_backup('{name}', true, false)")
    } else {
        format!("select pg_backup_start('{name}', true)")
    };
    session.run(&start);
    let stop = if old {
        "pg_stop_backup(false, false)"
    } else {
        "pg_backup_stop(false)"
    };
    let row = session.run(&format!(
        "select lsn, encode(convert_to(labelfile, 'UTF8'), 'hex'), \
         encode(convert_to(spcmapfile, 'UTF8'), 'hex') from {stop}"
    ));
    let fields: Vec<&str> = row.split('|').collect();
    let bytes = |hex: &str| -> Vec<u8> {
        let digits: Vec<char> = hex.chars().collect();
        let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
        pairs
            .map(|pair| u8::from_str_radix(&pair, 16).unwrap())
            .collect()
    };
    (bytes(fields[1]), bytes(fields[2]), fields[0].to_owned())
}

fn labels_maps_and_history_files_are_rewritten_byte_for_byte(major: PgMajor) {
    let cluster = Cluster::builder(major)
        .setting("archive_mode", "on")
        .setting("archive_command", "false")
        .start();
    let mut expected = Vec::new();
    for name in ["plain", "with space"] {
        let directory = cluster.tablespace_dir(name);
        cluster.psql(&format!(
            "create tablespace \"{name}\" location '{}'",
            directory.display()
        ));
        let oid = cluster.psql(&format!(
            "select oid from pg_tablespace where spcname = '{name}'"
        ));
        expected.push((
            oid.parse::<u32>().unwrap(),
            directory.to_str().unwrap().as_bytes().to_vec(),
        ));
    }
    for name in [
        "nightly",
        "",
        "caf\u{e9}",
        "two\nlines",
        "trap\nSTART TIMELINE: 9",
    ] {
        let (label, map, stop) = bracket(&cluster, name);
        let read = BackupLabel::parse(&label).unwrap();
        assert_eq!(read.to_bytes(), label);
        assert_eq!(
            (read.label.as_deref(), &read.method),
            (Some(name.as_bytes()), &BackupMethod::Streamed)
        );
        assert_eq!(read.from.word(), major.layout().backup_from_primary);
        assert_eq!(read.start_timeline.unwrap().get(), 1);
        let read_map = TablespaceMap::parse(&map).unwrap();
        assert_eq!(read_map.to_bytes(), map);
        let mut entries = read_map.entries;
        entries.sort();
        assert_eq!(entries, expected);
        let file = read.history_file_name(WalSegmentSize::DEFAULT).to_string();
        let history = std::fs::read(cluster.data_dir().join("pg_wal").join(file)).unwrap();
        let read_history = BackupHistory::parse(&history).unwrap();
        assert_eq!(read_history.to_bytes(), history);
        assert_eq!(read_history.label, read);
        assert_eq!(read_history.stop.to_string(), stop);
    }
}

fn a_label_from_a_standby_says_so(major: PgMajor) {
    let mut cluster = Cluster::builder(major).start();
    cluster.psql("create table t (i int)");
    cluster.stop(StopMode::Fast);
    make_standby(&cluster);
    cluster.start();
    let (label, map, _) = bracket(&cluster, "standby");
    let read = BackupLabel::parse(&label).unwrap();
    assert_eq!((read.from, read.to_bytes()), (BackupSource::Standby, label));
    assert_eq!(TablespaceMap::parse(&map).unwrap().entries, []);
}

fn a_label_of_pg_rewind_is_rewritten_byte_for_byte(major: PgMajor) {
    let mut old = Cluster::builder(major)
        .checksums(true)
        .setting("wal_keep_size", "1GB")
        .start();
    old.psql("create table t (i int)");
    old.stop(StopMode::Fast);
    let mut new = Cluster::builder(major).on_copy(old.copy_cold());
    make_standby(&new);
    new.start();
    new.psql("select pg_promote(true, 300)");
    new.psql("insert into t values (2); checkpoint");
    new.stop(StopMode::Fast);
    old.start();
    old.psql("insert into t values (1)");
    old.stop(StopMode::Fast);
    let (done, said) = run(own_tool(major, "pg_rewind")
        .arg("--target-pgdata")
        .arg(old.data_dir())
        .arg("--source-pgdata")
        .arg(new.data_dir()));
    assert!(done, "{said}");
    let label = std::fs::read(old.data_dir().join("backup_label")).unwrap();
    let read = BackupLabel::parse(&label).unwrap();
    assert_eq!(read.to_bytes(), label);
    assert_eq!(read.method, BackupMethod::Other("pg_rewind".to_owned()));
    assert_eq!((read.label, read.start_timeline), (None, None));
}
