//! Chains of snapshots in a repository, each written from what one source says and restored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use neon_pagestore::changes::{
    self, ChangeSet, Hints, LogEnd, LogSource, ScanDirectory, ScanSource, SegmentDirectory,
    SourceKind, Span, SummaryDirectory, SummarySource,
};
use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::write::{ChangedSince, Parent, SnapshotOptions, SnapshotWriter, WriteReport};
use neon_pagestore::{CommitId, Facts, Repository};
use neon_pg_layout::PgMajor;
use neon_snapshot_format::pgdata::{
    DirectoryOptions, DirectoryWriter, Flush, PgData, TablespacePlaces,
};
use neon_snapshot_format::{Sequential, SnapshotKind};
use neon_storage::Memory;
use neon_testkit::{Cluster, Scratch, StopMode, cold_copy_may_lack};

use super::chain::{Stop, length, lineage};
use super::forged::ask;
use super::state::State;
use super::work::Work;
use crate::clusters::beside;
use crate::files::reader;
use crate::support::init;

/// Stores a stopped cluster: all of it, or what the set says has changed since the parent.
pub(super) async fn store(
    repository: &Repository,
    data: PathBuf,
    stop: Stop,
    parent: Option<(Snapshot, ChangeSet)>,
) -> (CommitId, WriteReport) {
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer) = (repository.clone(), writing.writer());
    let work = move || {
        let mut sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
        let source = PgData::cold(&data).unwrap();
        let mut facts = Facts::of_control(SnapshotKind::Cold, 0, source.control());
        let end = LogEnd {
            redo: stop.control.checkpoint.redo,
            stop: stop.stop,
            history: &stop.history,
            tail: Some(stop.tail),
        };
        facts.record_log(lineage(), source.control(), &end).unwrap();
        let copied = match &parent {
            Some((snapshot, set)) => {
                sink = sink.with_parent(Parent::of(snapshot));
                sink = sink.with_changes(set).unwrap();
                let select = ChangedSince::new(set, Parent::of(snapshot)).unwrap();
                source.copy_selected(&select, &sink, 2).unwrap()
            }
            None => source.copy_parallel(&sink, 2).unwrap(),
        };
        copied
            .finish(&mut Sequential::new(&sink).unwrap(), None)
            .unwrap();
        (sink.complete().unwrap(), facts)
    };
    let (stored, facts) = tokio::task::spawn_blocking(work).await.unwrap();
    let report = stored.report;
    let commit = stored.commit(facts).unwrap();
    assert_eq!(commit.facts.bad_pages, []);
    (writing.commit(&commit).await.unwrap().id, report)
}

/// Reads a stopped cluster and compares it with the digests of a snapshot.
fn scanned(parent: &Snapshot, data: &Path) -> ChangeSet {
    let source = PgData::cold(data).unwrap();
    let mut files = ScanDirectory::new(&source).unwrap();
    let mut pages = parent.parent_pages().unwrap();
    ask(&mut ScanSource::new(8192, &mut files, &mut pages)).unwrap()
}

pub(super) async fn restored(snapshot: &Snapshot) -> State {
    let place = Scratch::new();
    let data = place.path().join("data");
    let options = DirectoryOptions {
        tablespaces: TablespacePlaces::Below(place.path().join("tablespaces")),
        flush: Flush::FileSystem,
        ..DirectoryOptions::default()
    };
    let writer = DirectoryWriter::create(&data, options).unwrap();
    let snapshot = snapshot.clone();
    let work = move || restore(&snapshot, &writer, &RestoreOptions::default()).unwrap();
    tokio::task::spawn_blocking(work).await.unwrap();
    let mut state = State::read(&data);
    state
        .0
        .retain(|path, _| path.as_str() != Some("backup_manifest"));
    state
}

async fn chains_are_what_was_there(major: PgMajor, checksums: bool, seed: u64) {
    let (length, long) = length();
    let length = if long { length } else { 2 };
    let summaries = major.layout().has_wal_summaries;
    let keep = if long { "4GB" } else { "1GB" };
    let mut cluster = Cluster::builder(major)
        .checksums(checksums)
        .setting("wal_keep_size", keep)
        .setting("max_wal_size", keep);
    if summaries {
        cluster = cluster.setting("summarize_wal", "on");
    }
    let mut cluster = cluster.start();
    let mut work = Work::prepare(&cluster, seed, long);
    cluster.stop(StopMode::Fast);

    let repository = init(&Memory::new()).await;
    let maps = reader(&repository);
    let mut before = Stop::of(&cluster);
    let (first, full) = store(&repository, cluster.data_dir(), before.clone(), None).await;
    let first = Snapshot::open(&repository, first, &maps).await.unwrap();
    let mut names = vec!["log", "scan", "nothing known"];
    if summaries {
        names.push("summaries");
    }
    let mut chains: BTreeMap<_, _> = names.iter().map(|name| (*name, first.clone())).collect();
    for number in 0..length {
        cluster.start();
        work.burst(&mut cluster);
        cluster.stop(StopMode::Fast);
        let after = Stop::of(&cluster);
        let mut now = State::read(&cluster.data_dir());
        now.0
            .retain(|path, _| !cold_copy_may_lack(path.as_str().unwrap()));
        let pg_wal = cluster.data_dir().join("pg_wal");
        for (name, last) in &mut chains {
            let parent = changes::Parent::recorded(last.id(), last.facts()).unwrap();
            let mut log = SegmentDirectory::new(&pg_wal);
            let child = after.child(&before, &mut log);
            let span = Span::between(&parent, &child).unwrap();
            let mut files = SummaryDirectory::new(pg_wal.join("summaries"));
            let set = match *name {
                "log" => ask(&mut LogSource::new(span, &mut log)).unwrap(),
                "summaries" => {
                    let kind = SourceKind::ServerSummaries;
                    ask(&mut SummarySource::new(kind, span, &mut files).with_rest(&mut log))
                        .unwrap()
                }
                "scan" => {
                    let (last, data) = (last.clone(), cluster.data_dir());
                    beside(move || scanned(&last, &data)).await
                }
                _ => ChangeSet::everything(),
            };
            let (hints, before_id) = (set.hints(), last.id());
            let known = *name != "nothing known";
            assert_eq!(set.parent(), known.then_some(before_id));
            let data = cluster.data_dir();
            let parent = Some((last.clone(), set));
            let (id, report) = store(&repository, data, after.clone(), parent).await;
            *last = Snapshot::open(&repository, id, &maps).await.unwrap();
            assert_eq!(last.facts().hints_may_be_older, hints == Hints::MayBeOlder);
            let verdict = restored(last).await.judge(&now, hints);
            let wrong = &verdict.wrong;
            let shown = &wrong[..wrong.len().min(20)];
            assert!(
                wrong.is_empty(),
                "{major}, {name}, snapshot {number}: {shown:#?}"
            );
            #[expect(clippy::print_stdout, reason = "what it cost, for those who ask")]
            {
                println!("{major}, {name}, snapshot {number}: {report:?}");
            }
            let cost = &last.facts().cost;
            assert_eq!(last.facts().parent, Some(before_id));
            if *name != "nothing known" {
                assert!(report.received < report.bytes, "{full:?} {report:?}");
                // Of what was read because it changed, nearly all did; what is read by rule is counted apart.
                let changed = cost.changed_pages * 8192;
                assert!(cost.read_changed * 10 <= changed * 13, "{name}: {cost:?}");
            }
            match *name {
                // Each page was read once, to be compared, and again only where it differed.
                "scan" => assert!(cost.read_other >= report.bytes - 8192, "{cost:?}"),
                "nothing known" => assert_eq!(cost.read_changed + cost.read_other, report.received),
                _ => assert!(cost.read_other < report.bytes, "{cost:?}"),
            }
        }
        before = after;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_chains_of_15_without_checksums_are_what_was_there() {
    chains_are_what_was_there(PgMajor::V15, false, 22).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_chains_of_18_with_checksums_are_what_was_there() {
    chains_are_what_was_there(PgMajor::V18, true, 23).await;
}
