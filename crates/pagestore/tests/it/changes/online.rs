//! Chains of snapshots of a running server.
//!
//! The files are read between the start and the stop of a backup while work goes on. What a change set
//! names is taken from there, everything else from the state before. That state and all that was read are
//! recovered to the same position, the end of the backup, and must be the same then.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use neon_pagestore::changes::{
    Child, ClusterFacts, LogSource, LogTail, LogWalk, Parent, SegmentDirectory, SourceKind, Span,
    SummaryDirectory, SummarySource, read_tail,
};
use neon_pagestore::{CommitId, LineageId};
use neon_pg_layout::{
    BackupLabel, ClusterState, ControlFile, DataFile, Fork, Lsn, PgMajor, SegmentName,
    TimelineHistory, TimelineId,
};
use neon_testkit::mask::without_hints;
use neon_testkit::workload::{Load, Workload};
use neon_testkit::{Cluster, Installation, OsUser, Scratch, StopMode};
use rustix::process::{Pid, Signal, kill_process};

use super::forged::ask;
use super::state::{PAGE, State};

pub(super) const LOADS: [Workload; 6] = [
    Workload::Ddl,
    Workload::Toast,
    Workload::Visibility,
    Workload::Multixacts,
    Workload::Indexes,
    Workload::Databases,
];

/// What was read of a running server, and what it takes to recover from it.
struct Shot {
    files: State,
    directories: Vec<PathBuf>,
    /// None for a standby that was stopped.
    label: Option<Vec<u8>>,
    wal: Vec<(SegmentName, Vec<u8>)>,
    control: ControlFile,
    redo: Lsn,
    stop: Lsn,
    tail: LogTail,
}

fn control(cluster: &Cluster) -> ControlFile {
    // The server writes it in place.
    let read =
        || ControlFile::decode(&fs::read(cluster.data_dir().join("global/pg_control")).unwrap());
    (0..100)
        .find_map(|_| read().ok())
        .expect("it is whole most of the time")
}

pub(super) fn root() -> TimelineHistory {
    TimelineHistory::root(TimelineId::FIRST)
}

impl Shot {
    fn take(cluster: &Cluster) -> Self {
        let newer = cluster.major() >= PgMajor::V15;
        let (start, stop) = if newer {
            ("pg_backup_start('online', true)", "pg_backup_stop(false)")
        } else {
            (
                "pg_start_backup('online', true, false)",
                "pg_stop_backup(false, false)",
            )
        };
        let mut session = cluster.session("postgres");
        session.run(&format!("select {start}"));
        let files = State::read(&cluster.data_dir());
        let directories = directories(&cluster.data_dir());
        let control = control(cluster);
        let answer = session.run(&format!(
            "select lsn, labelfile from {stop} as s(lsn, labelfile, spcmapfile)"
        ));
        let (lsn, label) = answer.split_once('|').unwrap();
        let label = format!("{}\n", label.trim_end()).into_bytes();
        let stop: Lsn = lsn.parse().unwrap();
        let redo = BackupLabel::parse(&label).unwrap().start;
        let place = (redo, stop);
        Self::of(
            files,
            directories,
            Some(label),
            control,
            place,
            &cluster.data_dir(),
        )
    }

    /// What a stopped standby left, whose log is that of its primary.
    fn of_standby(standby: &Cluster, primary: &Cluster) -> Self {
        let data = standby.data_dir();
        let control = control(standby);
        assert_eq!(control.state, ClusterState::ShutDownInRecovery);
        let place = (control.checkpoint.redo, control.min_recovery_point);
        let (files, directories) = (State::read(&data), directories(&data));
        Self::of(
            files,
            directories,
            None,
            control,
            place,
            &primary.data_dir(),
        )
    }

    fn of(
        files: State,
        directories: Vec<PathBuf>,
        label: Option<Vec<u8>>,
        control: ControlFile,
        (redo, stop): (Lsn, Lsn),
        log_of: &Path,
    ) -> Self {
        let size = control.build.wal_segment_size;
        let pg_wal = log_of.join("pg_wal");
        // Recovery stops before the record behind the end.
        let wal = (size.number_of(redo)..=size.number_of(stop))
            .map(|number| {
                let name = SegmentName::new(TimelineId::FIRST, number, size).unwrap();
                (name, fs::read(pg_wal.join(name.to_string())).unwrap())
            })
            .collect();
        let tail = read_tail(size, &root(), stop, &mut SegmentDirectory::new(pg_wal)).unwrap();
        Self {
            files,
            directories,
            label,
            wal,
            control,
            redo,
            stop,
            tail,
        }
    }

    fn parent(&self) -> Parent {
        Parent {
            id: CommitId::of(b"parent"),
            lineage: LineageId([7; 16]),
            cluster: ClusterFacts::of(&self.control),
            history: root(),
            redo: self.redo,
            stop: self.stop,
            tail: Some(self.tail),
        }
    }

    fn child_of(&self, parent: &Self, log: &mut SegmentDirectory) -> Child {
        let size = self.control.build.wal_segment_size;
        Child {
            lineage: LineageId([7; 16]),
            base: None,
            cluster: ClusterFacts::of(&self.control),
            history: root(),
            redo: self.redo,
            clean_stop: false,
            tail: read_tail(size, &root(), parent.stop, log).ok(),
        }
    }

    /// Writes these files as a restore would, recovers to the end of the backup, and reads the result.
    fn recovered(&self, files: &State, major: PgMajor) -> State {
        let scratch = Scratch::new();
        let user = OsUser::current();
        let data = scratch.path().join("data");
        user.create_dir(&data);
        for directory in &self.directories {
            user.create_dir(&data.join(directory));
        }
        let put = |path: &Path, content: &[u8]| {
            let path = data.join(path);
            user.create_dir(path.parent().unwrap());
            fs::write(&path, content).unwrap();
            user.own(&path);
        };
        for (path, content) in &files.0 {
            let path = path.as_str().unwrap();
            if !path.starts_with("postmaster.") && path != "standby.signal" {
                put(Path::new(path), content);
            }
        }
        if let Some(label) = &self.label {
            put(Path::new("backup_label"), label);
        }
        put(Path::new("recovery.signal"), b"");
        for (name, content) in &self.wal {
            put(&Path::new("pg_wal").join(name.to_string()), content);
        }
        recover(&data, scratch.path(), major, self.stop)
    }
}

/// Recovers a directory to the end of the backup that it is of, which is there, and reads it. Socket and log are in `place`.
///
/// The server is promoted and stopped: one that ends in recovery flushes nothing unless a checkpoint was replayed, and what is
/// on disk then is a matter of chance.
pub(super) fn recover(data: &Path, place: &Path, major: PgMajor, stop: Lsn) -> State {
    let log = fs::File::create(place.join("log")).unwrap();
    let mut server = Installation::of(major)
        .command("postgres")
        .arg("-D")
        .arg(data)
        .args([
            "-c",
            "recovery_target=immediate",
            "-c",
            "recovery_target_action=promote",
        ])
        .args([
            "-c",
            "restore_command=false",
            "-c",
            "hot_standby=off",
            "-c",
            "autovacuum=off",
            "-c",
            "fsync=off",
            "-c",
            "listen_addresses=",
        ])
        .arg("-c")
        .arg(format!("unix_socket_directories={}", place.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(240);
    let said = || fs::read_to_string(place.join("log")).unwrap();
    let mut asked = false;
    while server.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "recovery does not end");
        std::thread::sleep(Duration::from_millis(20));
        if !asked && said().contains("ready to accept connections") {
            asked = true;
            kill_process(Pid::from_child(&server), Signal::INT).unwrap();
        }
    }
    let said = said();
    let control = ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap();
    assert_eq!(control.state, ClusterState::ShutDown, "{said}");
    assert!(
        control.checkpoint.timeline > TimelineId::FIRST,
        "not promoted: {said}"
    );
    assert!(control.checkpoint.redo >= stop, "{said}");
    State::read(data)
}

fn directories(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        // A database may be dropped meanwhile.
        for entry in fs::read_dir(data.join(&folder)).into_iter().flatten() {
            let path = folder.join(entry.unwrap().file_name());
            if data.join(&path).is_dir() {
                found.push(path.clone());
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Compares two states that were recovered to one position: everything replay makes exact.
pub(super) fn differences(made: &State, full: &State, major: PgMajor) -> Vec<String> {
    let mut wrong = Vec::new();
    let paths = made.0.keys().chain(full.0.keys());
    let unlogged = full.unlogged(major);
    for path in paths.collect::<std::collections::BTreeSet<_>>() {
        let (made, full) = (made.0.get(path), full.0.get(path));
        let kind = DataFile::of(path.as_str().unwrap(), major.layout());
        let relation = match kind {
            DataFile::Relation(relation) if relation.backend.is_some() => continue,
            DataFile::Relation(relation) if relation.fork == Fork::FreeSpaceMap => continue,
            DataFile::Relation(relation) => Some(relation),
            DataFile::Slru { area, .. } if area.outlives_a_start() => None,
            DataFile::RelationMap { .. }
            | DataFile::DatabaseVersion { .. }
            | DataFile::TwoPhase { .. } => None,
            _ => continue,
        };
        if unlogged.contains(path) {
            continue;
        }
        let (Some(made), Some(full)) = (made, full) else {
            // An extension without content may be in one only.
            let there = made.or(full).unwrap();
            if !(relation.is_some() && there.iter().all(|byte| *byte == 0)) {
                wrong.push(format!("{path} is in one only"));
            }
            continue;
        };
        let shorter = made.len().min(full.len());
        if made[shorter..]
            .iter()
            .chain(&full[shorter..])
            .any(|byte| *byte != 0)
        {
            wrong.push(format!(
                "{path} has {} and {} bytes",
                made.len(),
                full.len()
            ));
        }
        for (number, (made, full)) in made[..shorter]
            .chunks(PAGE)
            .zip(full[..shorter].chunks(PAGE))
            .enumerate()
        {
            let same = made == full
                || match relation {
                    Some(relation) if made.len() == PAGE => {
                        if relation.fork == Fork::VisibilityMap {
                            made[24..] == full[24..]
                        } else {
                            without_hints(made) == without_hints(full)
                        }
                    }
                    _ => false,
                };
            if !same {
                let at: Vec<_> = (0..made.len())
                    .filter(|at| made[*at] != full[*at])
                    .take(12)
                    .collect();
                wrong.push(format!("{path} page {number} at {at:?}"));
            }
        }
    }
    wrong
}

fn online_snapshots_are_exact(major: PgMajor, checksums: bool, seed: u64) {
    let mut cluster = Cluster::builder(major)
        .checksums(checksums)
        .setting("wal_level", "replica")
        .setting("wal_keep_size", "2GB")
        .setting("max_wal_size", "2GB");
    let summaries = major.layout().has_wal_summaries;
    if summaries {
        cluster = cluster.setting("summarize_wal", "on");
    }
    let cluster = cluster.start();
    let mut loads: Vec<Load> = LOADS
        .iter()
        .map(|load| load.prepare(&cluster, seed, 2).unwrap())
        .collect();
    for load in &mut loads {
        load.rounds(1);
    }
    let mut running: Vec<_> = loads.into_iter().map(Load::in_background).collect();
    let mut before = Shot::take(&cluster);
    let mut state = before.files.clone();
    let pg_wal = cluster.data_dir().join("pg_wal");
    let mut log = SegmentDirectory::new(&pg_wal);
    // A walk that follows the server, as a resident process would.
    let mut walk = LogWalk::new(&ClusterFacts::of(&before.control), &root(), before.redo).unwrap();
    let snapshots = 2;
    for number in 0..snapshots {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(100));
            // Behind the flushed end there is nothing to be relied on, only to be told.
            let flushed: Lsn = cluster
                .psql("select pg_current_wal_flush_lsn()")
                .parse()
                .unwrap();
            drop(walk.advance(flushed, &mut log, &mut |_| ControlFlow::Continue(())));
        }
        let now = Shot::take(&cluster);
        let child = now.child_of(&before, &mut log);
        let span = Span::between(&before.parent(), &child).unwrap();
        let set = ask(&mut LogSource::new(span.clone(), &mut log)).unwrap();
        let (next, read) = state.advanced(&now.files, &set, major);
        assert!(read.pages > 0);
        // The walk that followed the server has read most of it already.
        let mut rest = SegmentDirectory::new(&pg_wal);
        let mut followed = LogSource::new(span.clone(), &mut rest)
            .going_on(walk)
            .unwrap();
        assert_eq!(ask(&mut followed).unwrap().blocks(), set.blocks());
        drop(followed);
        walk = LogWalk::new(&ClusterFacts::of(&now.control), &root(), now.redo).unwrap();
        assert!(
            !differences(&state, &now.files, major).is_empty(),
            "nothing happened"
        );
        // Only so that the recoveries have the machine for themselves.
        let rest: Vec<Load> = running.into_iter().map(|load| load.stop()).collect();
        let full = now.recovered(&now.files, major);
        let made = now.recovered(&next, major);
        let wrong = differences(&made, &full, major);
        assert!(
            wrong.is_empty(),
            "{major}, snapshot {number}: {:#?}",
            &wrong[..wrong.len().min(20)]
        );
        if summaries {
            let mut files = SummaryDirectory::new(pg_wal.join("summaries"));
            let kind = SourceKind::ServerSummaries;
            let set =
                ask(&mut SummarySource::new(kind, span, &mut files).with_rest(&mut log)).unwrap();
            let made = now.recovered(&state.advanced(&now.files, &set, major).0, major);
            let wrong = differences(&made, &full, major);
            assert!(
                wrong.is_empty(),
                "{major}, summaries: {:#?}",
                &wrong[..wrong.len().min(20)]
            );
        }
        (before, state) = (now, next);
        running = rest.into_iter().map(Load::in_background).collect();
    }
    for load in running {
        drop(load.stop());
    }
}

#[test]
fn online_snapshots_of_13_with_checksums_are_exact() {
    online_snapshots_are_exact(PgMajor::V13, true, 1);
}

#[test]
fn online_snapshots_of_18_without_checksums_are_exact() {
    online_snapshots_are_exact(PgMajor::V18, false, 3);
}

#[test]
fn snapshots_of_a_stopped_standby_are_exact() {
    let major = PgMajor::V15;
    let builder = || {
        Cluster::builder(major)
            .checksums(false)
            .setting("wal_level", "replica")
            .setting("wal_keep_size", "2GB")
            .setting("max_wal_size", "2GB")
    };
    let mut primary = builder().start();
    let mut loads: Vec<Load> = LOADS
        .iter()
        .map(|load| load.prepare(&primary, 4, 2).unwrap())
        .collect();
    primary.stop(StopMode::Fast);
    let copy = primary.copy_cold();
    primary.start();
    let pg_wal = primary.data_dir().join("pg_wal");
    let mut standby = builder()
        .setting("restore_command", format!("cp {}/%f %p", pg_wal.display()))
        .setting("wal_retrieve_retry_interval", "100ms")
        .on_copy(copy);
    let signal = standby.data_dir().join("standby.signal");
    fs::write(&signal, "").unwrap();
    OsUser::current().own(&signal);
    let mut log = SegmentDirectory::new(&pg_wal);
    let mut last: Option<(Shot, State)> = None;
    for number in 0..3 {
        for load in &mut loads {
            load.rounds(1);
        }
        // Restartpoints happen where the primary had checkpoints; what follows is replayed again.
        primary.psql("checkpoint");
        for load in &mut loads {
            load.rounds(1);
        }
        let reached: Lsn = primary.psql("select pg_switch_wal()").parse().unwrap();
        standby.start();
        let deadline = Instant::now() + Duration::from_secs(240);
        let replayed = || -> Lsn {
            standby
                .psql("select pg_last_wal_replay_lsn()")
                .parse()
                .unwrap()
        };
        while replayed() < reached {
            assert!(Instant::now() < deadline, "the standby does not follow");
            std::thread::sleep(Duration::from_millis(50));
        }
        standby.stop(StopMode::Fast);
        // Transactional, so that it is written before this returns.
        primary.psql("select pg_logical_emit_message(true, 'after', 'the end')");
        let now = Shot::of_standby(&standby, &primary);
        assert!(now.redo < now.stop, "there is something to replay");
        let state = match &last {
            None => now.files.clone(),
            Some((before, state)) => {
                let child = now.child_of(before, &mut log);
                let span = Span::between(&before.parent(), &child).unwrap();
                assert!(span.start() < span.end());
                let set = ask(&mut LogSource::new(span, &mut log)).unwrap();
                let (next, read) = state.advanced(&now.files, &set, major);
                assert!(read.pages > 0);
                let full = now.recovered(&now.files, major);
                let made = now.recovered(&next, major);
                let wrong = differences(&made, &full, major);
                let shown = &wrong[..wrong.len().min(20)];
                assert!(wrong.is_empty(), "snapshot {number}: {shown:#?}");
                next
            }
        };
        last = Some((now, state));
    }
}
