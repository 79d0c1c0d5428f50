//! Snapshots of a running server, page checksums on: a full one, and the next ones after a thousandth of all pages was
//! changed at random, with the change source that is found: summaries of 18, the log of 16.
//!
//! `cargo bench -p neon-benches --bench online_snapshot [-- MEGABYTES ROUNDS]`. Each is taken in two ways: by the libraries
//! (`neon_pgctl`, `neon_snapshot_format`, `neon_pagestore`), step by step, and whole, by `neon_pg`, which asks the server and
//! its programs for much that it records besides. Printed are medians in seconds (least to most), and how often the next one
//! fits into the full one, without what the server does: the checkpoint that a bracket begins with, and by the libraries also
//! its stop, which is mostly filling a segment of the log with zeros. Repositories are directories, and everything is as durable
//! as it is for a user. On a machine that others use, our own processor time is the figure to compare.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench stops at the first failure and prints what it measured"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use neon_pagestore::changes::{
    ChangeSource, Child, ClusterFacts, LogEnd, LogSource, Parent as Known, SegmentDirectory,
    SourceKind, Span, SummaryDirectory, SummarySource, choose, read_tail,
};
use neon_pagestore::read::{MapReader, Snapshot};
use neon_pagestore::write::{ChangedSince, Parent, SnapshotOptions, SnapshotWriter};
use neon_pagestore::{CommitId, Facts, LineageId, LogPlace, LogRange, OpenOptions, Repository};
use neon_pg::{CreatePg, CreateSnapshot, Neon, Options, ParentChoice, PgMajor, TakenSnapshot};
use neon_pg_layout::{Lsn, TimelineHistory};
use neon_pgctl::{BackupBracket, BracketOptions, Instance};
use neon_snapshot_format::pgdata::{Bracket, PgData, Stop, StopWal};
use neon_snapshot_format::{Sequential, SnapshotKind};
use neon_storage::{Native, NativeOptions};
use neon_testkit::{Installation, Scratch};

const TABLES: u64 = 4;

struct Home {
    neon: Neon,
    scratch: Scratch,
}

impl Home {
    async fn new(major: PgMajor, megabytes: u64) -> Self {
        let scratch = Scratch::new();
        let mut options = Options::new();
        options.pg_bin = vec![Installation::of(major).bin_dir().to_owned()];
        options.ports = 31_000..=31_999;
        let neon = Neon::open(scratch.path().join("home"), options).unwrap();
        let mut create = CreatePg::default();
        create.major = Some(major);
        create.name = Some("p".parse().unwrap());
        neon.pg().create(&create).await.unwrap();
        let home = Self { neon, scratch };
        home.sql("alter system set max_wal_size = '8GB'").await;
        home.sql("select pg_reload_conf()").await;
        assert_eq!(home.sql("show data_checksums").await, "on");
        for table in 0..TABLES {
            let rows = megabytes * 1024 / TABLES * 6;
            home.sql(&format!(
                "create table t{table} with (fillfactor = 90) as
                 select i, repeat(md5(i::text), 4) as text from generate_series(1, {rows}) as i"
            ))
            .await;
        }
        // Hints and visibility maps are written once and for all.
        home.sql("vacuum").await;
        home
    }

    async fn instance(&self) -> Instance {
        let name = "p".parse().unwrap();
        self.neon.pg().instance(&name).await.unwrap()
    }

    async fn sql(&self, query: &str) -> String {
        let instance = self.instance().await;
        let mut client = instance.connect("postgres").await.unwrap();
        let results = client.simple_query(query).await.unwrap();
        let first = results.first().and_then(|rows| rows.value(0, 0));
        let first = first.unwrap_or_default().to_owned();
        client.close().await;
        first
    }

    /// One row on a thousandth of the pages of each table, chosen at random, stays on its page and is another.
    async fn change(&self) {
        for table in 0..TABLES {
            self.sql(&format!(
                "do $$
                 declare pages int := pg_relation_size('t{table}') / 8192; page int; row tid;
                 begin
                   for n in 1..greatest(pages / 1000, 1) loop
                     page := floor(random() * (pages - 1));
                     select ctid into row from t{table}
                      where ctid >= format('(%s,0)', page)::tid and ctid < format('(%s,0)', page + 1)::tid limit 1;
                     update t{table} set i = -i where ctid = row;
                   end loop;
                 end $$"
            ))
            .await;
        }
    }

    /// Whole, as the command takes it.
    async fn take(&self, name: &str, parent: ParentChoice, times: &mut Times) {
        let mut wanted = CreateSnapshot::new(name.parse().unwrap());
        wanted.parent = parent.clone();
        let processor = processor_time();
        let taken = self.neon.snapshots().create(&wanted).await.unwrap();
        let processor = processor_time() - processor;
        let TakenSnapshot {
            checkpoint,
            elapsed,
            source,
            ..
        } = taken;
        assert_eq!(source.is_none(), parent == ParentChoice::None);
        assert_ne!(source.as_deref(), Some("scan"));
        times.add("checkpoint", checkpoint);
        times.add(OURS, elapsed - checkpoint);
        times.add(PROCESSOR, processor.as_secs_f64());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        end_server(&self.scratch.path().join("home/pg/p/data"));
    }
}

fn end_server(data: &Path) {
    let pid = std::fs::read_to_string(data.join("postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.parse::<i32>().ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        while rustix::process::test_kill_process(pid).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What is neither the checkpoint nor the stop of a bracket.
const OURS: &str = "ours";
const PROCESSOR: &str = "our processor time";

/// What each step took, in all rounds.
#[derive(Default)]
struct Times(Vec<(&'static str, Vec<f64>)>);

impl Times {
    fn add(&mut self, step: &'static str, seconds: f64) {
        let known = self.0.iter_mut().find(|(known, _)| *known == step);
        match known {
            Some((_, times)) => {
                times.push(seconds);
                times.sort_by(f64::total_cmp);
            }
            None => self.0.push((step, vec![seconds])),
        }
    }

    fn median(&self, step: &str) -> f64 {
        let times = self.0.iter().find(|(known, _)| *known == step);
        times.map_or(0.0, |(_, times)| times[times.len() / 2])
    }

    fn shown(&self) -> String {
        let shown = self.0.iter().map(|(step, times)| {
            format!(
                "{step} {:.3} ({:.3} to {:.3})",
                times[times.len() / 2],
                times[0],
                times[times.len() - 1]
            )
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    fn compare(title: &str, full: &Self, next: &Self) {
        println!("{title}: full: {}", full.shown());
        println!("{title}: next: {}", next.shown());
        let ratio = |step| full.median(step) / next.median(step);
        println!(
            "{title}: a full one takes {:.0} times as long as the next, and {:.0} times its processor time",
            ratio(OURS),
            ratio(PROCESSOR)
        );
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap(),
        time.tv_nsec.try_into().unwrap(),
    )
}

/// Snapshots by the libraries: of one instance, into one repository.
struct Steps {
    repository: Repository,
    maps: MapReader,
    instance: Instance,
    lineage: LineageId,
}

impl Steps {
    async fn new(home: &Home) -> Self {
        let place = home.scratch.path().join("repository");
        std::fs::create_dir(&place).unwrap();
        let storage = Native::open(place, NativeOptions::default()).unwrap();
        let repository = Repository::init(Arc::new(storage), OpenOptions::new()).await;
        let repository = repository.unwrap();
        Self {
            maps: MapReader::new(repository.frames(), 64 << 20),
            repository,
            instance: home.instance().await,
            lineage: LineageId::random().unwrap(),
        }
    }

    async fn take(&self, parent: Option<CommitId>, times: &mut Times) -> CommitId {
        let processor = processor_time();
        let mut since = Instant::now();
        let mut step = || {
            std::mem::replace(&mut since, Instant::now())
                .elapsed()
                .as_secs_f64()
        };
        let mut ours = 0.0;
        let writing = self.repository.begin_writing().await.unwrap();
        let parent = match parent {
            None => None,
            Some(id) => {
                let commit = writing.protect(id).await.unwrap();
                Some(Snapshot::of(id, commit, &self.maps).unwrap())
            }
        };
        let client = self.instance.connect("postgres").await.unwrap();
        let begin = step();
        let options = BracketOptions::new("bench");
        let mut bracket = BackupBracket::start(client, &options).await.unwrap();
        times.add("checkpoint", step());
        let start = bracket.started().clone();

        let (to, writer, lineage) = (self.repository.clone(), writing.writer(), self.lineage);
        let data = self.instance.data_dir().to_owned();
        let history = TimelineHistory::root(start.timeline);
        let of_child = history.clone();
        let copying = tokio::task::spawn_blocking(move || {
            let source = PgData::online(&data, Bracket::new(start.start, || Ok(Lsn::MAX))).unwrap();
            let facts = Facts::of_control(SnapshotKind::Online, 0, source.control());
            let mut sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
            let copied = match &parent {
                None => source.copy_parallel(&sink, 2).unwrap(),
                Some(parent) => {
                    let pg_wal = data.join("pg_wal");
                    let mut log = SegmentDirectory::new(&pg_wal);
                    let known = Known::recorded(parent.id(), parent.facts()).unwrap();
                    let size = source.control().build.wal_segment_size;
                    let child = Child {
                        lineage,
                        base: None,
                        cluster: ClusterFacts::of(source.control()),
                        redo: start.start,
                        clean_stop: false,
                        tail: read_tail(size, &of_child, known.stop, &mut log).ok(),
                        history: of_child,
                    };
                    let span = Span::between(&known, &child).unwrap();
                    let mut rest = log.clone();
                    let mut summaries = SummaryDirectory::new(pg_wal.join("summaries"));
                    let kind = SourceKind::ServerSummaries;
                    let mut first =
                        SummarySource::new(kind, span.clone(), &mut summaries).with_rest(&mut rest);
                    let mut second = LogSource::new(span, &mut log);
                    let mut sources: Vec<&mut dyn ChangeSource> = vec![&mut second];
                    if source.control().major.layout().has_wal_summaries {
                        sources.insert(0, &mut first);
                    }
                    let chosen = choose(&mut sources).unwrap();
                    assert!(chosen.record.used.is_some(), "{:?}", chosen.record);
                    sink = sink.with_parent(Parent::of(parent));
                    sink = sink.with_changes(&chosen.set).unwrap();
                    let select = ChangedSince::new(&chosen.set, Parent::of(parent)).unwrap();
                    source.copy_selected(&select, &sink, 2).unwrap()
                }
            };
            (source, sink, copied, facts)
        });
        let (source, sink, copied, mut facts) = bracket.during(copying).await.unwrap().unwrap();
        let copy = step();
        let (backup, hold) = bracket.stop_with().await.unwrap();
        times.add("stop", step());

        let pg_wal = self.instance.data_dir().join("pg_wal");
        let finishing = tokio::task::spawn_blocking(move || {
            let mut log = SegmentDirectory::new(&pg_wal);
            let control = source.control();
            let size = control.build.wal_segment_size;
            let end = LogEnd {
                redo: backup.start.start,
                stop: backup.stop,
                tail: read_tail(size, &history, backup.stop, &mut log).ok(),
                history: &history,
            };
            facts.log.start = Some(backup.start.start);
            facts.record_log(lineage, control, &end).unwrap();
            let stop = Stop {
                label: &backup.label_file,
                tablespace_map: &backup.tablespace_map_file,
                position: backup.stop,
                timeline: history.timeline(),
                wal: StopWal::Directory(&pg_wal),
            };
            let mut rest = Sequential::new(&sink).unwrap();
            let end = copied.finish(&mut rest, Some(stop)).unwrap();
            drop(rest);
            let ranges = end.wal.iter().map(|range| LogRange {
                timeline: range.timeline,
                start: range.start,
                end: range.end,
                place: LogPlace::Snapshot,
            });
            facts.log.ranges = ranges.collect();
            sink.complete().unwrap().commit(facts).unwrap()
        });
        let commit = finishing.await.unwrap();
        hold.release().await;
        let finish = step();
        let id = writing.commit(&commit).await.unwrap().id;
        let commit = step();
        for (name, took) in [
            ("begin", begin),
            ("copy", copy),
            ("log and map", finish),
            ("commit", commit),
        ] {
            ours += took;
            times.add(name, took);
        }
        times.add(OURS, ours);
        times.add(PROCESSOR, (processor_time() - processor).as_secs_f64());
        id
    }
}

fn main() {
    let mut words = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok());
    let (megabytes, rounds) = (words.next().unwrap_or(640), words.next().unwrap_or(5));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for major in [PgMajor::V18, PgMajor::V16] {
        runtime.block_on(async {
            let home = Home::new(major, megabytes).await;
            let size = "select (sum(pg_database_size(oid)) / 1048576)::int from pg_database";
            println!("{major}: a cluster of {} MiB", home.sql(size).await);
            let steps = Steps::new(&home).await;
            let mut times: [Times; 4] = Default::default();
            for round in 0..=rounds {
                let [full, next, whole_full, whole_next] = &mut times;
                let id = steps.take(None, full).await;
                home.change().await;
                steps.take(Some(id), next).await;
                let name = format!("p@full{round}");
                home.take(&name, ParentChoice::None, whole_full).await;
                home.change().await;
                let name = format!("p@next{round}");
                home.take(&name, ParentChoice::Best, whole_next).await;
                if round == 0 {
                    // The first ones warm what there is to warm.
                    times = Default::default();
                }
            }
            let [full, next, whole_full, whole_next] = &times;
            Times::compare(&format!("{major} by the libraries"), full, next);
            Times::compare(&format!("{major} whole"), whole_full, whole_next);
        });
    }
}
