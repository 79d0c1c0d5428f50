//! Logs that end where nobody meant them to.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::wal::{EndOfWal, EndReason, Step, WalReader, end_of_log};
use neon_pg_layout::{ErrorKind, Lsn, PgMajor, SegmentName, TimelineId};
use neon_testkit::{Cluster, StopMode};

use super::judges;
use super::walk::{Seen, Stop, changes, format_of, records, segments, start_of};

fn cluster(major: PgMajor) -> Cluster {
    Cluster::builder(major)
        .wal_segment_mib(1)
        .setting("wal_keep_size", "1GB")
        .setting("max_wal_size", "1GB")
        .setting("autovacuum", "off")
        .start()
}

fn wal(cluster: &Cluster) -> PathBuf {
    cluster.data_dir().join("pg_wal")
}

/// Writes a record of several segments and crashes; returns where it begins.
fn write_long_record_and_crash(cluster: &mut Cluster) -> Lsn {
    cluster.psql("checkpoint; select pg_switch_wal(); create table t (i int)");
    cluster.psql("select pg_logical_emit_message(true, 'long', repeat('m', 3500000))");
    cluster.stop(StopMode::Immediate);
    let (seen, stop) = records(&wal(cluster), 1, None);
    assert!(
        matches!(stop, Stop::End(EndOfWal { cut: false, .. })),
        "{stop:?}"
    );
    let long = seen.iter().find(|seen| seen.total_len > 3_500_000).unwrap();
    assert_eq!(long.rmgr, "LogicalMessage");
    long.lsn
}

/// The path of the segment that holds `lsn`.
fn segment(dir: &Path, lsn: Lsn) -> PathBuf {
    let name = SegmentName::containing(TimelineId::FIRST, lsn, format_of(dir).segment_size());
    dir.join(name.to_string())
}

fn remove_segments_after(dir: &Path, lsn: Lsn) {
    let last = segment(dir, lsn);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path > last {
            fs::remove_file(path).unwrap();
        }
    }
}

/// The record at `lsn`, opened as one opens the redo position that `pg_control` names.
fn opened_at(dir: &Path, lsn: Lsn) -> Seen {
    let format = format_of(dir);
    let bytes = fs::read(segment(dir, lsn)).unwrap();
    let page = lsn.0 - lsn.0 % 8192;
    let offset = usize::try_from(page % format.segment_size().bytes()).unwrap();
    let mut reader = WalReader::at_record(format, lsn);
    match reader.read(&mut &bytes[offset..]).unwrap() {
        Step::Record(record) => Seen::of(&record),
        other => panic!("{other:?}"),
    }
}

/// Where the log in `dir` ends for one who has only its files.
fn end_from(dir: &Path, start: Lsn) -> Lsn {
    end_of_log(format_of(dir), start, &segments(dir), |name| {
        fs::File::open(dir.join(name.to_string()))
    })
    .unwrap()
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// As `026_overwrite_contrecord.pl` makes it: the segments with the rest of a record are lost.
fn a_cut_record_is_passed_over(major: PgMajor) {
    let mut cluster = cluster(major);
    let long = write_long_record_and_crash(&mut cluster);
    let dir = wal(&cluster);
    remove_segments_after(&dir, long);
    let (_, stop) = records(&dir, 1, None);
    assert_eq!(stop, Stop::NoMoreFiles(Some(long)));
    let next = segment(&dir, Lsn(long.0 + (1 << 20)));
    fs::write(&next, vec![0; 1 << 20]).unwrap();
    let (_, stop) = records(&dir, 1, None);
    let Stop::End(end) = stop else {
        panic!("{stop:?}")
    };
    assert_eq!(
        (end.lsn, end.cut, end.reason),
        (long, true, EndReason::Zeros)
    );
    fs::remove_file(&next).unwrap();

    cluster.start();
    let redo = cluster.psql("select redo_lsn from pg_control_checkpoint()");
    let redo: Lsn = redo.parse().unwrap();
    cluster.psql("create table after (i int); insert into after values (1)");
    cluster.stop(StopMode::Fast);
    let mut replaced = Vec::new();
    let stop = changes(&dir, 1, None, |_, change| {
        if let Change::CutRecordReplaced { lsn, .. } = change {
            replaced.push(lsn);
        }
    });
    assert_eq!(replaced, [long]);
    let Stop::End(end) = stop else {
        panic!("{stop:?}")
    };
    // The same when the walk begins behind the cut record's beginning.
    let (after, stop) = records(&dir, 1, Some(Lsn(long.0 + 8)));
    assert_eq!(stop, Stop::End(end));
    assert_eq!(after[0].rmgr, "XLOG");
    // The checkpoint that ended recovery stands on the same page, behind the record that says what was
    // cut, and is where the next recovery or a backup begins.
    assert_eq!((after[1].lsn, after[1].previous), (redo, after[0].lsn));
    assert_eq!(redo.0 / 8192, after[0].lsn.0 / 8192);
    for seen in &after[..2] {
        assert_eq!(&opened_at(&dir, seen.lsn), seen);
        assert_eq!(end_from(&dir, seen.lsn), end.lsn);
    }
    if cluster.installation().tool("pg_waldump").is_some() {
        let (theirs, said) = judges::pg_waldump(&cluster, 1, start_of(&dir));
        assert_eq!(records(&dir, 1, None).0, theirs);
        assert!(
            said.contains(&format!(" at {}", end.lsn)),
            "{end:?}: {said}"
        );
    }
}

/// A server that died while it wrote a page: the last record is there in part.
fn a_torn_record_ends_the_log_where_the_server_says(major: PgMajor) {
    let mut cluster = cluster(major);
    cluster.psql("checkpoint; create table t (i int)");
    cluster.psql("select pg_logical_emit_message(true, 'torn', repeat('t', 3000))");
    cluster.stop(StopMode::Immediate);
    let dir = wal(&cluster);
    let (seen, _) = records(&dir, 1, None);
    let torn = seen
        .iter()
        .rev()
        .find(|seen| seen.total_len > 3000)
        .unwrap();
    let before = seen.iter().rfind(|seen| seen.lsn < torn.lsn).unwrap();
    // Leave its first sector alone.
    let cut = (torn.lsn.0 + 1024).next_multiple_of(512);
    let rest = usize::try_from((1 << 20) - cut % (1 << 20)).unwrap();
    overwrite(&segment(&dir, Lsn(cut)), cut % (1 << 20), &vec![0; rest]);
    let (ours, stop) = records(&dir, 1, None);
    match &stop {
        Stop::Failed(error) => {
            assert_eq!(error.kind(), ErrorKind::Checksum);
            assert_eq!(error.lsn(), Some(torn.lsn));
            assert!(error.to_string().contains(&torn.lsn.to_string()), "{error}");
        }
        // It went on to the next page, which is gone.
        Stop::End(end) => assert_eq!((end.lsn, end.cut), (torn.lsn, true)),
        Stop::NoMoreFiles(_) => panic!("{stop:?}"),
    }
    assert_eq!(ours.last().unwrap().lsn, before.lsn);
    assert_eq!(end_from(&dir, ours[0].lsn), torn.lsn);
    assert_eq!(end_from(&dir, torn.lsn), torn.lsn);
    cluster.start();
    let log = cluster.log();
    assert!(
        log.contains(&format!("redo done at {}", before.lsn)),
        "{}\n{log}",
        before.lsn
    );
    cluster.psql("create table after (i int)");
    cluster.stop(StopMode::Fast);
    let (_, stop) = records(&dir, 1, None);
    assert!(
        matches!(stop, Stop::End(EndOfWal { cut: false, .. })),
        "{stop:?}"
    );
}

/// Files that held an earlier part of the log are renamed and written over from their beginning.
fn a_recycled_file_ends_the_log(major: PgMajor) {
    let mut cluster = cluster(major);
    cluster.set("wal_keep_size", "0");
    cluster.set("max_wal_size", "4MB");
    cluster.set("min_wal_size", "4MB");
    cluster.restart();
    cluster.psql("create table t (i int)");
    for _ in 0..6 {
        cluster.psql(
            "insert into t select generate_series(1, 10000); checkpoint; select pg_switch_wal()",
        );
    }
    cluster.psql("insert into t values (1)");
    cluster.stop(StopMode::Fast);
    let dir = wal(&cluster);
    let (seen, stop) = records(&dir, 1, None);
    let Stop::End(end) = stop else {
        panic!("{stop:?}")
    };
    // What is left of the page is zeros, written with the records on it.
    assert_eq!((end.cut, end.reason), (false, EndReason::Zeros));
    assert_eq!(end_from(&dir, seen[0].lsn), end.lsn);
    let page = Lsn(end.lsn.0.next_multiple_of(8192));
    let bytes = fs::read(segment(&dir, page)).unwrap();
    let mut reader = WalReader::resume(format_of(&dir), page, Some(seen.last().unwrap().lsn));
    let mut old = &bytes[usize::try_from(page.0 % (1 << 20)).unwrap()..];
    match reader.read(&mut old).unwrap() {
        Step::End(end) => assert_eq!((end.lsn, end.reason), (page, EndReason::Recycled)),
        other => panic!("{other:?}"),
    }
}

macro_rules! for_majors {
    ($body:ident: $($name:ident: $major:ident),*) => {$(
        #[test]
        fn $name() {
            $body(PgMajor::$major);
        }
    )*};
}

for_majors!(
    a_cut_record_is_passed_over:
    a_record_cut_by_a_crash_of_13_is_passed_over_as_its_server_does: V13,
    a_record_cut_by_a_crash_of_14_is_passed_over_as_its_server_does: V14,
    a_record_cut_by_a_crash_of_15_is_passed_over_as_pg_waldump_does: V15,
    a_record_cut_by_a_crash_of_16_is_passed_over_as_pg_waldump_does: V16,
    a_record_cut_by_a_crash_of_17_is_passed_over_as_its_server_does: V17,
    a_record_cut_by_a_crash_of_18_is_passed_over_as_pg_waldump_does: V18
);

for_majors!(
    a_torn_record_ends_the_log_where_the_server_says:
    a_torn_record_of_13_ends_the_log_where_its_server_says: V13,
    a_torn_record_of_18_ends_the_log_where_its_server_says: V18
);

for_majors!(
    a_recycled_file_ends_the_log:
    a_recycled_file_of_15_ends_the_log: V15
);
