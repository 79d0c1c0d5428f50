//! The control file, judged by `pg_controldata` where it exists and by the server's SQL functions.

use neon_pg_layout::{ClusterState, ControlFile, ErrorKind, Lsn, WalFileName, WalLevel};
use neon_testkit::{Cluster, PgMajor, StopMode};

use super::{for_every_major, for_majors_with_tools, make_standby, own_tool, run};

fn read(cluster: &Cluster) -> ControlFile {
    let path = cluster.data_dir().join("global/pg_control");
    // A running server may write it while we read.
    for _ in 0..100 {
        match ControlFile::decode(&std::fs::read(&path).unwrap()) {
            Ok(control) => return control,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Checksum, "{error}"),
        }
    }
    panic!("the control file never has its checksum")
}

fn join(fields: &[String]) -> String {
    fields.join("|")
}

macro_rules! row {
    ($($field:expr),* $(,)?) => { join(&[$($field.to_string()),*]) };
}

fn letter(value: bool) -> &'static str {
    if value { "t" } else { "f" }
}

fn long_xid(xid: u64) -> String {
    format!("{}:{}", xid >> 32, xid & 0xFFFF_FFFF)
}

for_every_major!(
    the_control_file_agrees_with_the_servers_sql_functions,
    the_state_follows_the_life_of_a_cluster,
    any_changed_byte_of_the_control_file_is_noticed,
);

for_majors_with_tools!(the_control_file_agrees_with_pg_controldata);

fn the_control_file_agrees_with_the_servers_sql_functions(major: PgMajor) {
    let cluster = Cluster::builder(major)
        .wal_segment_mib(if major == PgMajor::V13 { 1 } else { 64 })
        .checksums(major != PgMajor::V15)
        .setting("track_commit_timestamp", "on")
        .setting("wal_log_hints", "on")
        .setting("wal_level", "logical")
        .start();
    cluster.psql("create table t (i int); insert into t values (1); checkpoint");
    let control = read(&cluster);
    assert_eq!(control.major, major);
    let sql = |query: &str| cluster.psql(query);
    assert_eq!(
        row!(
            major.layout().control_version,
            major.layout().catalog_version,
            control.system_identifier,
            control.time
        ),
        sql(
            "select pg_control_version, catalog_version_no, system_identifier, \
             extract(epoch from pg_control_last_modified)::bigint from pg_control_system()"
        )
    );
    let checkpoint = &control.checkpoint;
    let size = control.build.wal_segment_size;
    let segment =
        neon_pg_layout::SegmentName::containing(checkpoint.timeline, checkpoint.redo, size);
    assert_eq!(
        row!(
            control.checkpoint_location,
            checkpoint.redo,
            WalFileName::Segment(segment),
            checkpoint.timeline,
            checkpoint.previous_timeline,
            letter(checkpoint.full_page_writes),
            long_xid(checkpoint.next_xid),
            checkpoint.next_oid,
            checkpoint.next_multi,
            checkpoint.next_multi_offset,
            checkpoint.oldest_xid,
            checkpoint.oldest_xid_database,
            checkpoint.oldest_active_xid,
            checkpoint.oldest_multi,
            checkpoint.oldest_multi_database,
            checkpoint.oldest_commit_timestamp_xid,
            checkpoint.newest_commit_timestamp_xid,
            checkpoint.time
        ),
        sql(
            "select checkpoint_lsn, redo_lsn, redo_wal_file, timeline_id, prev_timeline_id, \
             full_page_writes, next_xid, next_oid, next_multixact_id, next_multi_offset, oldest_xid, \
             oldest_xid_dbid, oldest_active_xid, oldest_multi_xid, oldest_multi_dbid, \
             oldest_commit_ts_xid, newest_commit_ts_xid, \
             extract(epoch from checkpoint_time)::bigint from pg_control_checkpoint()"
        )
    );
    assert_ne!(checkpoint.newest_commit_timestamp_xid, 0);
    let recorded = major
        .layout()
        .checkpoint_has_wal_level
        .then_some(WalLevel::Logical);
    assert_eq!(checkpoint.wal_level, recorded);
    let build = &control.build;
    let mut init = vec![row!(
        build.max_align,
        build.block_size.bytes(),
        build.segment_blocks,
        build.wal_block_size,
        size.bytes(),
        build.name_length,
        build.index_max_keys,
        build.toast_max_chunk_size,
        build.large_object_block_size,
        letter(build.float8_by_value),
        u8::from(control.data_checksums)
    )];
    init.extend(
        build
            .default_char_signed
            .map(|signed| letter(signed).to_owned()),
    );
    assert_eq!(join(&init), sql("select * from pg_control_init()"));
    assert_eq!(
        row!(
            control.min_recovery_point,
            control
                .min_recovery_timeline
                .map_or(0, neon_pg_layout::TimelineId::get),
            control.backup_start,
            control.backup_end,
            letter(control.backup_end_required)
        ),
        sql("select * from pg_control_recovery()")
    );
    let settings = &control.settings;
    for (name, value) in [
        ("wal_level", settings.wal_level.to_string()),
        ("max_connections", settings.max_connections.to_string()),
        (
            "max_worker_processes",
            settings.max_worker_processes.to_string(),
        ),
        ("max_wal_senders", settings.max_wal_senders.to_string()),
        (
            "max_prepared_transactions",
            settings.max_prepared_transactions.to_string(),
        ),
        (
            "max_locks_per_transaction",
            settings.max_locks_per_transaction.to_string(),
        ),
        ("wal_segment_size", size.to_string()),
    ] {
        assert_eq!(value, sql(&format!("show {name}")), "{name}");
    }
    assert!(settings.wal_log_hints && settings.track_commit_timestamp);
}

fn the_state_follows_the_life_of_a_cluster(major: PgMajor) {
    let mut cluster = Cluster::builder(major).init();
    assert_eq!(read(&cluster).state, ClusterState::ShutDown);
    cluster.start();
    assert_eq!(read(&cluster).state, ClusterState::InProduction);
    cluster.kill9();
    let crashed = read(&cluster).state;
    assert_eq!(crashed, ClusterState::InProduction);
    assert!(!crashed.is_clean());
    cluster.start();
    cluster.stop(StopMode::Fast);
    let stopped = read(&cluster);
    assert!(stopped.state.is_clean());
    assert_eq!(stopped.min_recovery_point, Lsn::INVALID);
    make_standby(&cluster);
    cluster.start();
    let standby = read(&cluster);
    assert_eq!(standby.state, ClusterState::InArchiveRecovery);
    assert_eq!(
        standby.min_recovery_timeline,
        Some(standby.checkpoint.timeline)
    );
    cluster.stop(StopMode::Fast);
    assert_eq!(read(&cluster).state, ClusterState::ShutDownInRecovery);
}

fn any_changed_byte_of_the_control_file_is_noticed(major: PgMajor) {
    let cluster = Cluster::builder(major).init();
    let file = std::fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
    let sealed = major.layout().control_crc_offset + 4;
    for offset in 0..sealed {
        let mut changed = file.clone();
        changed[offset] ^= 0x10;
        let kind = ControlFile::decode(&changed).unwrap_err().kind();
        let expected = match offset {
            8..16 => ErrorKind::Unsupported,
            _ => ErrorKind::Checksum,
        };
        assert_eq!(kind, expected, "offset {offset}");
    }
    let mut foreign = file.clone();
    foreign[8..12].reverse();
    foreign[12..16].reverse();
    let error = ControlFile::decode(&foreign).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.reason().contains("byte order"), "{error}");
    let kind = |file: &[u8]| ControlFile::decode(file).unwrap_err().kind();
    assert_eq!(kind(&file[..296]), ErrorKind::Truncated);
    assert_eq!(kind(&[&file[..], &[0]].concat()), ErrorKind::Malformed);
    assert_eq!(kind(&[0; 8192]), ErrorKind::Malformed);
    // The nonce must not reach a log by way of a debug print.
    let control = ControlFile::decode(&file).unwrap();
    let shown = format!("{control:?}");
    assert!(shown.contains("AuthenticationNonce(..)"), "{shown}");
}

fn the_control_file_agrees_with_pg_controldata(major: PgMajor) {
    let mut cluster = Cluster::builder(major)
        .setting("max_prepared_transactions", 7)
        .start();
    cluster.psql("create table t (i int); checkpoint");
    compare_with_pg_controldata(&cluster);
    cluster.stop(StopMode::Fast);
    compare_with_pg_controldata(&cluster);
    make_standby(&cluster);
    cluster.start();
    compare_with_pg_controldata(&cluster);
    cluster.stop(StopMode::Fast);
    compare_with_pg_controldata(&cluster);
}

fn compare_with_pg_controldata(cluster: &Cluster) {
    // The server may write the file between the two readings.
    let mut difference = String::new();
    for _ in 0..50 {
        let before = read(cluster);
        let (success, printed) =
            run(own_tool(cluster.major(), "pg_controldata").arg(cluster.data_dir()));
        assert!(success, "{printed}");
        let expected = expected_lines(&before);
        let lines: Vec<(String, String)> = printed
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let missing = expected.iter().find(|line| !lines.contains(line));
        match missing {
            None => return,
            Some(line) => difference = format!("{line:?} is not in\n{printed}"),
        }
    }
    panic!("{difference}");
}

fn expected_lines(control: &ControlFile) -> Vec<(String, String)> {
    let on = |value| if value { "on" } else { "off" }.to_owned();
    let checkpoint = &control.checkpoint;
    let (settings, build) = (&control.settings, &control.build);
    let segment = neon_pg_layout::SegmentName::containing(
        checkpoint.timeline,
        checkpoint.redo,
        build.wal_segment_size,
    );
    let nonce: String = control
        .nonce
        .0
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let yes = if control.backup_end_required {
        "yes"
    } else {
        "no"
    };
    let timeline = control
        .min_recovery_timeline
        .map_or(0, neon_pg_layout::TimelineId::get);
    let mut lines = vec![
        (
            "pg_control version number",
            control.major.layout().control_version.to_string(),
        ),
        (
            "Catalog version number",
            control.major.layout().catalog_version.to_string(),
        ),
        (
            "Database system identifier",
            control.system_identifier.to_string(),
        ),
        ("Database cluster state", control.state.to_string()),
        (
            "Latest checkpoint location",
            control.checkpoint_location.to_string(),
        ),
        (
            "Latest checkpoint's REDO location",
            checkpoint.redo.to_string(),
        ),
        ("Latest checkpoint's REDO WAL file", segment.to_string()),
        (
            "Latest checkpoint's TimeLineID",
            checkpoint.timeline.to_string(),
        ),
        (
            "Latest checkpoint's PrevTimeLineID",
            checkpoint.previous_timeline.to_string(),
        ),
        (
            "Latest checkpoint's full_page_writes",
            on(checkpoint.full_page_writes),
        ),
        ("Latest checkpoint's NextXID", long_xid(checkpoint.next_xid)),
        (
            "Latest checkpoint's NextOID",
            checkpoint.next_oid.to_string(),
        ),
        (
            "Latest checkpoint's NextMultiXactId",
            checkpoint.next_multi.to_string(),
        ),
        (
            "Latest checkpoint's NextMultiOffset",
            checkpoint.next_multi_offset.to_string(),
        ),
        (
            "Latest checkpoint's oldestXID",
            checkpoint.oldest_xid.to_string(),
        ),
        (
            "Latest checkpoint's oldestXID's DB",
            checkpoint.oldest_xid_database.to_string(),
        ),
        (
            "Latest checkpoint's oldestActiveXID",
            checkpoint.oldest_active_xid.to_string(),
        ),
        (
            "Latest checkpoint's oldestMultiXid",
            checkpoint.oldest_multi.to_string(),
        ),
        (
            "Latest checkpoint's oldestMulti's DB",
            checkpoint.oldest_multi_database.to_string(),
        ),
        (
            "Fake LSN counter for unlogged rels",
            control.unlogged_lsn.to_string(),
        ),
        (
            "Minimum recovery ending location",
            control.min_recovery_point.to_string(),
        ),
        ("Min recovery ending loc's timeline", timeline.to_string()),
        ("Backup start location", control.backup_start.to_string()),
        ("Backup end location", control.backup_end.to_string()),
        ("End-of-backup record required", yes.to_owned()),
        ("wal_level setting", settings.wal_level.to_string()),
        ("wal_log_hints setting", on(settings.wal_log_hints)),
        (
            "max_connections setting",
            settings.max_connections.to_string(),
        ),
        (
            "max_worker_processes setting",
            settings.max_worker_processes.to_string(),
        ),
        (
            "max_wal_senders setting",
            settings.max_wal_senders.to_string(),
        ),
        (
            "max_prepared_xacts setting",
            settings.max_prepared_transactions.to_string(),
        ),
        (
            "max_locks_per_xact setting",
            settings.max_locks_per_transaction.to_string(),
        ),
        (
            "track_commit_timestamp setting",
            on(settings.track_commit_timestamp),
        ),
        ("Maximum data alignment", build.max_align.to_string()),
        ("Database block size", build.block_size.bytes().to_string()),
        (
            "Blocks per segment of large relation",
            build.segment_blocks.to_string(),
        ),
        ("WAL block size", build.wal_block_size.to_string()),
        (
            "Bytes per WAL segment",
            build.wal_segment_size.bytes().to_string(),
        ),
        (
            "Maximum length of identifiers",
            build.name_length.to_string(),
        ),
        (
            "Maximum columns in an index",
            build.index_max_keys.to_string(),
        ),
        (
            "Maximum size of a TOAST chunk",
            build.toast_max_chunk_size.to_string(),
        ),
        (
            "Size of a large-object chunk",
            build.large_object_block_size.to_string(),
        ),
        (
            "Data page checksum version",
            u8::from(control.data_checksums).to_string(),
        ),
        ("Mock authentication nonce", nonce),
    ];
    if let Some(signed) = build.default_char_signed {
        let word = if signed { "signed" } else { "unsigned" };
        lines.push(("Default char data signedness", word.to_owned()));
    }
    lines
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}
