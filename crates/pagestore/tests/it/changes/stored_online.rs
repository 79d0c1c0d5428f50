//! Chains of snapshots of a running server in a repository, each written from what one source says and restored.
//!
//! Within one backup everything is copied as well as what each source names. Restored, and recovered to the end of that backup,
//! the two must be the same: everything that replay makes exact.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use neon_pagestore::changes::{
    self, ChangeSet, Child, ClusterFacts, LogEnd, LogSource, ScanDirectory, ScanSource,
    SegmentDirectory, SourceKind, Span, SummaryDirectory, SummarySource, read_tail,
};
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{ChangedSince, Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{Facts, Repository};
use neon_pg_layout::{Lsn, PgMajor, TimelineId};
use neon_snapshot_format::pgdata::{
    Bracket, DirectoryOptions, DirectoryWriter, Flush, Ownership, PgData, Stop, StopWal,
};
use neon_snapshot_format::{Sequential, SnapshotKind};
use neon_storage::Memory;
use neon_testkit::workload::Load;
use neon_testkit::{Backup, Cluster, OsUser, Scratch};

use super::chain::{length, lineage};
use super::forged::ask;
use super::online::{LOADS, differences, recover, root};
use super::state::State;
use crate::clusters::beside;
use crate::files::reader;
use crate::support::init;

/// The copy that no source had a say in.
const WHOLE: &str = "whole";

fn set_of(name: &str, last: &Snapshot, source: &PgData, redo: Lsn, pg_wal: &Path) -> ChangeSet {
    let parent = changes::Parent::recorded(last.id(), last.facts()).unwrap();
    let mut log = SegmentDirectory::new(pg_wal);
    let size = source.control().build.wal_segment_size;
    let child = Child {
        lineage: lineage(),
        base: None,
        cluster: ClusterFacts::of(source.control()),
        history: root(),
        redo,
        clean_stop: false,
        tail: read_tail(size, &root(), parent.stop, &mut log).ok(),
    };
    let span = Span::between(&parent, &child).unwrap();
    match name {
        "log" => ask(&mut LogSource::new(span, &mut log)).unwrap(),
        "summaries" => {
            let mut files = SummaryDirectory::new(pg_wal.join("summaries"));
            let kind = SourceKind::ServerSummaries;
            ask(&mut SummarySource::new(kind, span, &mut files).with_rest(&mut log)).unwrap()
        }
        "scan" => {
            let mut files = ScanDirectory::new(source).unwrap();
            let mut pages = last.parent_pages().unwrap();
            ask(&mut ScanSource::new(8192, &mut files, &mut pages)).unwrap()
        }
        name => panic!("no source is called {name}"),
    }
}

/// Takes a snapshot for each name in one backup: with a parent of what its source names, without one of everything.
async fn take(
    repository: &Repository,
    cluster: &Arc<Cluster>,
    parents: BTreeMap<&'static str, Option<Snapshot>>,
) -> BTreeMap<&'static str, Snapshot> {
    let mut writings = BTreeMap::new();
    for name in parents.keys() {
        writings.insert(*name, repository.begin_writing().await.unwrap());
    }
    let writers: BTreeMap<_, _> = writings
        .iter()
        .map(|(name, writing)| (*name, writing.writer()))
        .collect();
    let (to, cluster) = (repository.clone(), Arc::clone(cluster));
    let work = move || {
        let backup = Backup::begin(&cluster);
        let position = Backup::positions(&cluster);
        let bracket = Bracket::new(backup.start, move || Ok(position()));
        let (data, redo) = (cluster.data_dir(), backup.start);
        let pg_wal = data.join("pg_wal");
        let mut copies = Vec::new();
        for (name, last) in &parents {
            let source = PgData::online(&data, bracket.clone()).unwrap();
            let options = SnapshotOptions::default();
            let mut sink = SnapshotWriter::new(&to, writers[name], options).unwrap();
            let copied = match last {
                Some(last) => {
                    let set = set_of(name, last, &source, redo, &pg_wal);
                    assert_eq!(set.parent(), Some(last.id()));
                    sink = sink.with_parent(Parent::of(last));
                    sink = sink.with_changes(&set).unwrap();
                    let select = ChangedSince::new(&set, Parent::of(last)).unwrap();
                    source.copy_selected(&select, &sink, 2).unwrap()
                }
                None => source.copy_parallel(&sink, 2).unwrap(),
            };
            copies.push((*name, source, sink, copied));
        }
        let stopped = backup.stop();
        let stop = Stop {
            label: &stopped.label,
            tablespace_map: &stopped.map,
            position: stopped.position,
            timeline: TimelineId::FIRST,
            wal: StopWal::Directory(&pg_wal),
        };
        let mut stored = Vec::new();
        for (name, source, sink, copied) in copies {
            let mut rest = Sequential::new(&sink).unwrap();
            copied.finish(&mut rest, Some(stop)).unwrap();
            drop(rest);
            let size = source.control().build.wal_segment_size;
            let mut log = SegmentDirectory::new(&pg_wal);
            let history = root();
            let end = LogEnd {
                redo,
                stop: stopped.position,
                history: &history,
                tail: Some(read_tail(size, &history, stopped.position, &mut log).unwrap()),
            };
            let mut facts = Facts::of_control(SnapshotKind::Online, 0, source.control());
            facts.log.start = Some(redo);
            facts.record_log(lineage(), source.control(), &end).unwrap();
            stored.push((name, sink.complete().unwrap(), facts));
        }
        stored
    };
    let maps = reader(repository);
    let mut taken = BTreeMap::new();
    for (name, stored, facts) in beside(work).await {
        let commit = stored.commit(facts).unwrap();
        assert_eq!(commit.facts.bad_pages, []);
        let writing = writings.remove(name).unwrap();
        let id = writing.commit(&commit).await.unwrap().id;
        let snapshot = Snapshot::open(repository, id, &maps).await.unwrap();
        taken.insert(name, snapshot);
    }
    taken
}

/// Restores a snapshot and recovers it to the end of its backup.
async fn recovered(snapshot: &Snapshot, major: PgMajor) -> State {
    let place = Scratch::new();
    let data = place.path().join("data");
    let options = DirectoryOptions {
        ownership: Ownership::Recorded,
        flush: Flush::FileSystem,
        ..DirectoryOptions::default()
    };
    let (snapshot, stop) = (snapshot.clone(), snapshot.facts().log.stop.unwrap());
    let work = move || {
        let writer = DirectoryWriter::create(&data, options).unwrap();
        let options = neon_pagestore::restore::RestoreOptions::default();
        let restored = neon_pagestore::restore::restore(&snapshot, &writer, &options).unwrap();
        assert_eq!(restored.bad_pages, []);
        drop(writer);
        let signal = data.join("recovery.signal");
        fs::write(&signal, b"").unwrap();
        OsUser::current().own(&signal);
        let state = recover(&data, place.path(), major, stop);
        drop(place);
        state
    };
    beside(work).await
}

async fn stored_online_chains_are_exact(major: PgMajor, checksums: bool, seed: u64) {
    let (length, long) = length();
    let length = if long { length } else { 1 };
    let mut cluster = Cluster::builder(major)
        .checksums(checksums)
        .setting("wal_level", "replica")
        .setting("wal_keep_size", "2GB")
        .setting("max_wal_size", "2GB");
    let summaries = major.layout().has_wal_summaries;
    if summaries {
        cluster = cluster.setting("summarize_wal", "on");
    }
    let cluster = Arc::new(cluster.start());
    let mut loads: Vec<Load> = LOADS
        .iter()
        .map(|load| load.prepare(&cluster, seed, 2).unwrap())
        .collect();
    // Work goes on while files are copied, and not while something is recovered, which wants the machine for itself.
    let repository = init(&Memory::new()).await;
    let running: Vec<_> = loads.into_iter().map(Load::in_background).collect();
    let first = take(&repository, &cluster, BTreeMap::from([(WHOLE, None)])).await;
    loads = running.into_iter().map(|load| load.stop()).collect();
    // By default the source that a snapshot of this major would use.
    let names = match (long, summaries) {
        (true, true) => vec!["log", "scan", "summaries"],
        (true, false) => vec!["log", "scan"],
        (false, true) => vec!["summaries"],
        (false, false) => vec!["log"],
    };
    let mut last: BTreeMap<&str, Snapshot> = names
        .iter()
        .map(|name| (*name, first[WHOLE].clone()))
        .collect();
    for number in 0..length {
        let mut parents: BTreeMap<_, _> = last
            .iter()
            .map(|(name, last)| (*name, Some(last.clone())))
            .collect();
        parents.insert(WHOLE, None);
        for load in &mut loads {
            load.rounds(1);
        }
        let running: Vec<_> = loads.into_iter().map(Load::in_background).collect();
        let mut taken = take(&repository, &cluster, parents).await;
        loads = running.into_iter().map(|load| load.stop()).collect();
        let whole = taken.remove(WHOLE).unwrap();
        let full = recovered(&whole, major).await;
        for (name, snapshot) in &taken {
            assert_eq!(snapshot.facts().parent, Some(last[name].id()), "{name}");
            let made = recovered(snapshot, major).await;
            let wrong = differences(&made, &full, major);
            let shown = &wrong[..wrong.len().min(20)];
            assert!(
                wrong.is_empty(),
                "{major}, {name}, snapshot {number}: {shown:#?}"
            );
            let (changed, all) = (snapshot.facts().cost.read_changed, whole.facts().cost.bytes);
            assert!(changed < all, "{major}, {name}: {changed} of {all} bytes");
        }
        last = taken;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_online_chains_of_16_with_checksums_are_exact() {
    stored_online_chains_are_exact(PgMajor::V16, true, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_online_chains_of_17_without_checksums_are_exact() {
    stored_online_chains_are_exact(PgMajor::V17, false, 6).await;
}
