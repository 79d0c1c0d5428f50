//! `wal_changes` on a real log: whole, with a gap, damaged, cut.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use neon_pg_layout::{Lsn, SegmentName, WalSegmentSize};
use neon_testkit::{Cluster, DataDirCopy, PgMajor, Scratch, StopMode};

use super::Outcome;

/// Runs the example; exit code, what it printed, what it complained about.
fn run(args: &[&str], path: &Path) -> (Option<i32>, String, String) {
    let args = args.iter().map(OsStr::new).chain([path.as_os_str()]);
    let Outcome {
        code,
        stdout,
        stderr,
    } = super::run(env!("CARGO_BIN_EXE_wal_changes"), args);
    (code, stdout, stderr)
}

#[test]
fn wal_changes_lists_what_a_range_changed_and_refuses_gaps_and_damage() {
    let mut cluster = Cluster::builder(PgMajor::V18)
        .wal_segment_mib(1)
        .setting("wal_keep_size", "1GB")
        .setting("autovacuum", "off")
        .start();
    let start = cluster.psql("create table gone (i int); select pg_current_wal_lsn()");
    cluster.psql(
        "create table t (i int); insert into t select generate_series(1, 20000);
         delete from t where i > 300; vacuum (truncate) t; drop table gone;
         select pg_create_restore_point('here')",
    );
    let end =
        cluster.psql("select pg_logical_emit_message(true, '', ''); select pg_current_wal_lsn()");
    let end = end.lines().last().unwrap();
    cluster.psql("insert into t select generate_series(1, 100000)");
    let relation = |name: &str| {
        cluster.psql(&format!(
            "select '1663/' || (select oid from pg_database where datname = 'postgres') || '/'
                    || pg_relation_filenode('{name}')"
        ))
    };
    let table = relation("t");
    let blocks = cluster.psql("select pg_relation_size('t') / 8192");
    cluster.stop(StopMode::Fast);
    let wal = cluster.data_dir().join("pg_wal");

    let (code, printed, complaint) = run(&["--start", &start, "--end", end], &wal);
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{printed}");
    let main = printed
        .lines()
        .find(|line| line.starts_with(&format!("{table} ")) && line.contains(" main "))
        .unwrap_or_else(|| panic!("no {table} in\n{printed}"));
    assert!(main.contains("created, truncated to 2"), "{main}");
    assert!(printed.contains("restore point \"here\""), "{printed}");
    assert!(
        printed.lines().any(|line| line.ends_with(" dropped")),
        "{printed}"
    );

    let (code, printed, _) = run(&[], &wal);
    assert_eq!(code, Some(0));
    assert!(printed.contains("shutdown checkpoint"), "{printed}");
    let main = printed
        .lines()
        .find(|line| line.starts_with(&format!("{table} ")) && line.contains(" main "))
        .unwrap();
    assert_eq!(main.split_whitespace().nth(2).unwrap(), blocks);

    let (code, _, complaint) = run(&["--end", "FF/0"], &wal);
    assert!(matches!(code, Some(3 | 5)), "{code:?} {complaint}");
    let (code, _, complaint) = run(&["--end"], &wal);
    assert_eq!(code, Some(2), "{complaint}");
    let (code, _, complaint) = run(&["--start", "x"], &wal);
    assert_eq!(code, Some(2), "{complaint}");
    let (code, _, complaint) = run(&[], &cluster.data_dir().join("base"));
    assert_eq!(code, Some(3), "{complaint}");

    let mut names: Vec<_> = fs::read_dir(&wal)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    names.sort();
    // One that is kept for later use is not the log going on.
    let size = WalSegmentSize::new(1 << 20).unwrap();
    let last: SegmentName = names
        .last()
        .unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let later = Lsn(last.start(size).unwrap().0 + size.bytes());
    let later = wal.join(SegmentName::containing(last.timeline(), later, size).to_string());
    fs::copy(&names[0], &later).unwrap();
    let (code, _, complaint) = run(&[], &wal);
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    fs::remove_file(&later).unwrap();
    let (code, _, complaint) = run(&[], &wal.join("missing"));
    assert_eq!(code, Some(3));
    let reason = format!("{}: No such file", wal.join("missing").display());
    assert!(complaint.contains(&reason), "{complaint}");

    let victim = &names[names.len() / 2];
    let name = victim.file_name().unwrap().to_str().unwrap();
    let sound = fs::read(victim).unwrap();
    fs::remove_file(victim).unwrap();
    let (code, _, complaint) = run(&[], &wal);
    assert_eq!(
        (code, complaint),
        (Some(3), format!("error: segment {name} is missing\n"))
    );
    fs::write(victim, vec![0; sound.len()]).unwrap();
    let (code, _, complaint) = run(&[], &wal);
    assert_eq!(code, Some(5));
    let following = names[names.len() / 2 + 1].file_name().unwrap();
    for part in ["hole", name, following.to_str().unwrap()] {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    let mut damaged = sound.clone();
    damaged[300_000] ^= 1;
    fs::write(victim, damaged).unwrap();
    let (code, _, complaint) = run(&[], &wal);
    assert_eq!(code, Some(5));
    assert!(
        complaint.contains("CRC") || complaint.contains("WAL"),
        "{complaint}"
    );
    fs::write(victim, &sound[..500_000]).unwrap();
    let (code, _, complaint) = run(&[], &wal);
    assert_eq!(code, Some(5));
    assert!(
        complaint.contains(name) && complaint.contains("too short"),
        "{complaint}"
    );
}

/// A server on a copy that goes on on a timeline of its own.
fn promoted(copy: DataDirCopy) -> Cluster {
    fs::write(copy.path().join("standby.signal"), "").unwrap();
    let mut cluster = Cluster::builder(PgMajor::V17)
        .setting("wal_keep_size", "1GB")
        .setting("autovacuum", "off")
        .setting("recovery_target_timeline", "current")
        .on_copy(copy);
    cluster.start();
    assert_eq!(cluster.psql("select pg_promote(true, 300)"), "t");
    cluster.psql("create table after as select generate_series(1, 30000)");
    cluster.stop(StopMode::Fast);
    cluster
}

/// Copies the files of a timeline.
fn add(from: &Path, timeline: u32, to: &Path) {
    for entry in fs::read_dir(from.join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with(&format!("{timeline:08X}")) {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

#[test]
fn of_sibling_timelines_only_the_one_asked_for_and_its_ancestors_are_followed() {
    let mut cluster = Cluster::builder(PgMajor::V17)
        .wal_segment_mib(1)
        .setting("wal_keep_size", "1GB")
        .setting("autovacuum", "off")
        .start();
    cluster.psql("create table t (i int)");
    cluster.stop(StopMode::Fast);
    let (early, late) = (cluster.copy_cold(), {
        cluster.start();
        cluster.psql("insert into t select generate_series(1, 100000)");
        cluster.stop(StopMode::Fast);
        cluster.copy_cold()
    });
    let two = promoted(early);
    let history = fs::read(two.data_dir().join("pg_wal/00000002.history")).unwrap();
    fs::write(late.path().join("pg_wal/00000002.history"), history).unwrap();
    let three = promoted(late);

    // As an archive holds them: everything beside everything.
    let scratch = Scratch::new();
    let merged = scratch.path();
    add(&cluster.data_dir(), 1, merged);
    add(&two.data_dir(), 2, merged);
    add(&three.data_dir(), 3, merged);
    for (timeline, own) in [("2", &two), ("3", &three)] {
        let (code, expected, complaint) =
            run(&["--timeline", timeline], &own.data_dir().join("pg_wal"));
        assert_eq!((code, complaint.as_str()), (Some(0), ""));
        let begins = format!("timeline {timeline} begins after 1");
        assert!(expected.contains(&begins), "{expected}");
        let (code, printed, complaint) = run(&["--timeline", timeline], merged);
        assert_eq!((code, complaint.as_str()), (Some(0), ""));
        assert_eq!(printed, expected);
    }
    let (code, newest, _) = run(&[], merged);
    assert_eq!(code, Some(0));
    assert!(newest.contains("timeline 3 begins after 1"), "{newest}");
    assert!(!newest.contains("timeline 2"), "{newest}");

    fs::remove_file(merged.join("00000003.history")).unwrap();
    let (code, printed, complaint) = run(&[], merged);
    assert_eq!((code, printed.as_str()), (Some(3), ""));
    assert!(
        complaint.contains("00000003.history is missing"),
        "{complaint}"
    );
}
