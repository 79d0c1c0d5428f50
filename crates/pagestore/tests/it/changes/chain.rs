//! Chains of cold snapshots, each made from the one before and what one source says.
//!
//! A cluster works, is stopped, and every source is asked what changed since it was stopped before. The
//! pages it names are read, all others are those of the state made so at the stop before: errors add up.
//! Then that state must be what is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use neon_pagestore::changes::{
    Answer, ChangeSet, ChangeSource, Child, ClusterFacts, LogSource, LogTail, Parent, ScanSource,
    SegmentDirectory, SourceKind, Span, Summaries, Summary, SummaryDirectory, SummaryRow,
    SummarySource, read_tail,
};
use neon_pagestore::{CommitId, LineageId};
use neon_pg_layout::wal::{WalFormat, end_of_log};
use neon_pg_layout::{
    ControlFile, Fork, Lsn, PgMajor, RelFileLocator, SegmentName, TimelineHistory, TimelineId,
    WalSummaryName,
};
use neon_testkit::{Cluster, StopMode};

use super::state::{Digests, Files, Read, State};
use super::work::Work;

/// How many snapshots follow the first: few, unless the long form is asked for.
pub(crate) fn length() -> (u32, bool) {
    match std::env::var("NEON_CHANGES_CHAIN") {
        Ok(length) => (length.parse().unwrap(), true),
        Err(_) => (3, false),
    }
}

pub(crate) fn lineage() -> LineageId {
    LineageId([7; 16])
}

/// A stopped cluster, as a snapshot records it.
#[derive(Clone)]
pub(crate) struct Stop {
    pub(crate) control: ControlFile,
    pub(crate) history: TimelineHistory,
    pub(crate) stop: Lsn,
    pub(crate) tail: LogTail,
}

impl Stop {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let data = cluster.data_dir();
        let control =
            ControlFile::decode(&fs::read(data.join("global/pg_control")).unwrap()).unwrap();
        assert!(control.state.is_clean());
        let pg_wal = data.join("pg_wal");
        let segments: Vec<SegmentName> = fs::read_dir(&pg_wal)
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(|name: &SegmentName| name.timeline() <= control.checkpoint.timeline)
            .collect();
        let stop = end_of_log(
            WalFormat::of_control(&control).unwrap(),
            control.checkpoint.redo,
            &segments,
            |name| File::open(pg_wal.join(name.to_string())),
        )
        .unwrap();
        let timeline = control.checkpoint.timeline;
        let mut history = TimelineHistory::root(timeline);
        if timeline != TimelineId::FIRST {
            let content = fs::read(pg_wal.join(history.file_name().to_string())).unwrap();
            history = TimelineHistory::parse(timeline, &content).unwrap();
        }
        let size = control.build.wal_segment_size;
        let tail = read_tail(size, &history, stop, &mut SegmentDirectory::new(pg_wal)).unwrap();
        Self {
            control,
            history,
            stop,
            tail,
        }
    }

    pub(crate) fn parent(&self) -> Parent {
        Parent {
            id: CommitId::of(b"parent"),
            lineage: lineage(),
            cluster: ClusterFacts::of(&self.control),
            history: self.history.clone(),
            redo: self.control.checkpoint.redo,
            stop: self.stop,
            tail: Some(self.tail),
        }
    }

    /// This stop as the child of an earlier one, whose log is looked up in `log`.
    pub(crate) fn child(&self, parent: &Self, log: &mut SegmentDirectory) -> Child {
        let size = self.control.build.wal_segment_size;
        Child {
            lineage: lineage(),
            base: None,
            cluster: ClusterFacts::of(&self.control),
            history: self.history.clone(),
            redo: self.control.checkpoint.redo,
            clean_stop: true,
            tail: read_tail(size, &self.history, parent.stop, log).ok(),
        }
    }
}

fn exact(source: &mut dyn ChangeSource) -> ChangeSet {
    match source.changes().unwrap() {
        Answer::Exact(set) => set,
        Answer::CannotSay(reason) => panic!("{}: {reason}", source.kind()),
    }
}

/// The rows of `pg_wal_summary_contents`, fetched while the server ran.
#[derive(Default)]
pub(crate) struct Rows(BTreeMap<WalSummaryName, Vec<SummaryRow>>);

impl Rows {
    /// Waits until everything up to now has a summary, and fetches what is new.
    pub(crate) fn fetch(&mut self, cluster: &Cluster) {
        cluster.psql("checkpoint");
        let redo: Lsn = cluster
            .psql("select redo_lsn from pg_control_checkpoint()")
            .parse()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(240);
        let available =
            || cluster.psql("select tli, start_lsn, end_lsn from pg_available_wal_summaries()");
        loop {
            let names: Vec<_> = available()
                .lines()
                .map(|line| {
                    let columns: Vec<&str> = line.split('|').collect();
                    WalSummaryName {
                        timeline: TimelineId::new(columns[0].parse().unwrap()).unwrap(),
                        start: columns[1].parse().unwrap(),
                        end: columns[2].parse().unwrap(),
                    }
                })
                .collect();
            if names.iter().any(|name| name.end >= redo) {
                for name in names {
                    self.0
                        .entry(name)
                        .or_insert_with(|| contents(cluster, name));
                }
                return;
            }
            assert!(Instant::now() < deadline, "no summary up to {redo}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn contents(cluster: &Cluster, name: WalSummaryName) -> Vec<SummaryRow> {
    let rows = cluster.psql(&format!(
        "select reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block
           from pg_wal_summary_contents({}, '{}', '{}')",
        name.timeline, name.start, name.end
    ));
    let row = |line: &str| {
        let columns: Vec<&str> = line.split('|').collect();
        let number = |column: usize| columns[column].parse::<u32>().unwrap();
        SummaryRow {
            relation: RelFileLocator {
                tablespace: number(0),
                database: number(1),
                number: number(2),
            },
            fork: Fork::from_number(number(3)).unwrap(),
            block: number(4),
            is_limit: columns[5] == "t",
        }
    };
    rows.lines().map(row).collect()
}

impl Summaries for Rows {
    fn names(&mut self) -> io::Result<Vec<WalSummaryName>> {
        Ok(self.0.keys().copied().collect())
    }

    fn open(&mut self, name: WalSummaryName) -> io::Result<Option<Summary<'_>>> {
        Ok(self
            .0
            .get(&name)
            .map(|rows| Summary::Rows(Box::new(rows.iter().map(|row| Ok(*row))))))
    }
}

/// The files of those summaries of which there are rows.
struct SameFiles<'a>(SummaryDirectory, &'a Rows);

impl Summaries for SameFiles<'_> {
    fn names(&mut self) -> io::Result<Vec<WalSummaryName>> {
        Ok(self.1.0.keys().copied().collect())
    }

    fn open(&mut self, name: WalSummaryName) -> io::Result<Option<Summary<'_>>> {
        self.0.open(name)
    }
}

/// The states that the sources lead to, by source.
struct Chain {
    major: PgMajor,
    states: BTreeMap<&'static str, State>,
    /// What was seen of what may differ.
    hints: u64,
    caches: BTreeMap<&'static str, u64>,
    read: Vec<(&'static str, Read)>,
}

impl Chain {
    fn step(&mut self, name: &'static str, set: &ChangeSet, now: &State, at: &str) {
        let (next, read) = self.states[name].advanced(now, set, self.major);
        let verdict = next.judge(now, set.hints());
        let wrong = &verdict.wrong;
        assert!(
            wrong.is_empty(),
            "{name}, {at}: {} pages are not what they are: {:#?}",
            wrong.len(),
            &wrong[..wrong.len().min(20)]
        );
        self.hints += verdict.hints;
        *self.caches.entry(name).or_default() += verdict.caches;
        self.read.push((name, read));
        self.states.insert(name, next);
    }
}

fn every_source_is_exact(major: PgMajor, checksums: bool, seed: u64) {
    let (length, long) = length();
    let summaries = major.layout().has_wal_summaries;
    let keep = if long { "4GB" } else { "1GB" };
    let mut cluster = Cluster::builder(major)
        .checksums(checksums)
        .wal_segment_mib(if seed.is_multiple_of(2) { 1 } else { 16 })
        .setting("wal_level", "replica")
        .setting("wal_keep_size", keep)
        .setting("max_wal_size", keep);
    if summaries {
        cluster = cluster.setting("summarize_wal", "on");
    }
    let mut cluster = cluster.start();
    let mut work = Work::prepare(&cluster, seed, long);
    let mut rows = Rows::default();
    if summaries {
        rows.fetch(&cluster);
    }
    cluster.stop(StopMode::Fast);

    let mut before = Stop::of(&cluster);
    let first = State::read(&cluster.data_dir());
    let mut names = vec!["log", "scan"];
    if summaries {
        names.extend(["summary files", "summary rows"]);
    }
    let mut chain = Chain {
        major,
        states: names.iter().map(|name| (*name, first.clone())).collect(),
        hints: 0,
        caches: BTreeMap::new(),
        read: Vec::new(),
    };
    for number in 0..length {
        cluster.start();
        work.burst(&mut cluster);
        if summaries {
            rows.fetch(&cluster);
        }
        cluster.stop(StopMode::Fast);

        let at = format!("{major}, checksums {checksums}, snapshot {number}");
        let after = Stop::of(&cluster);
        let now = State::read(&cluster.data_dir());
        let pg_wal = cluster.data_dir().join("pg_wal");
        let mut log = SegmentDirectory::new(&pg_wal);
        let child = after.child(&before, &mut log);
        let span =
            Span::between(&before.parent(), &child).unwrap_or_else(|why| panic!("{at}: {why}"));

        let set = exact(&mut LogSource::new(span.clone(), &mut log));
        chain.step("log", &set, &now, &at);
        if number == 0 {
            a_page_left_out_is_noticed(&chain, &first, &now);
        }
        let parent = chain.states["scan"].clone();
        let set = exact(&mut ScanSource::new(
            8192,
            &mut Files(now.0.iter()),
            &mut Digests(&parent),
        ));
        chain.step("scan", &set, &now, &at);
        assert_eq!(
            chain.read.last().unwrap().1.whole.len(),
            1,
            "only what is new is read in whole"
        );
        if summaries {
            let kind = SourceKind::ServerSummaries;
            let mut files = SummaryDirectory::new(pg_wal.join("summaries"));
            let set =
                exact(&mut SummarySource::new(kind, span.clone(), &mut files).with_rest(&mut log));
            chain.step("summary files", &set, &now, &at);
            let mut same = SameFiles(files, &rows);
            let of_files =
                exact(&mut SummarySource::new(kind, span.clone(), &mut same).with_rest(&mut log));
            let of_rows = exact(&mut SummarySource::new(kind, span, &mut rows).with_rest(&mut log));
            assert_eq!(of_files.blocks(), of_rows.blocks(), "{at}");
            chain.step("summary rows", &of_rows, &now, &at);
        }
        before = after;
    }
    let told: Vec<String> = chain
        .read
        .iter()
        .map(|(name, read)| format!("{name}: {read:?}"))
        .collect();
    let told = told.join("\n");
    #[expect(clippy::print_stdout, reason = "what was read, for those who ask")]
    {
        println!(
            "{major}, checksums {checksums}: {} hints, caches: {:?}\n{told}",
            chain.hints, chain.caches
        );
    }
    assert_eq!(chain.hints > 0, !checksums, "{told}");
}

/// The proof is worth something: a single page that a set does not name shows.
fn a_page_left_out_is_noticed(chain: &Chain, first: &State, now: &State) {
    let mut made = chain.states["log"].clone();
    let (path, _) = now
        .0
        .iter()
        .find(|(path, content)| {
            let old = first.0.get(*path);
            path.as_bytes().starts_with(b"base/")
                && old.is_some_and(|old| old.len() == content.len() && old != *content)
        })
        .unwrap();
    made.0.insert(path.clone(), Arc::clone(&first.0[path]));
    let verdict = made.judge(now, neon_pagestore::changes::Hints::Exact);
    assert!(!verdict.wrong.is_empty() || verdict.caches > 0);
}

macro_rules! cases {
    ($($name:ident $major:ident $checksums:literal $seed:literal,)*) => {$(
        #[test]
        fn $name() {
            every_source_is_exact(PgMajor::$major, $checksums, $seed);
        }
    )*};
}

cases!(
    every_source_is_exact_on_13_with_checksums V13 true 1,
    every_source_is_exact_on_13_without_checksums V13 false 2,
    every_source_is_exact_on_14_with_checksums V14 true 3,
    every_source_is_exact_on_14_without_checksums V14 false 4,
    every_source_is_exact_on_15_with_checksums V15 true 5,
    every_source_is_exact_on_15_without_checksums V15 false 6,
    every_source_is_exact_on_16_with_checksums V16 true 7,
    every_source_is_exact_on_16_without_checksums V16 false 8,
    every_source_is_exact_on_17_with_checksums V17 true 9,
    every_source_is_exact_on_17_without_checksums V17 false 10,
    every_source_is_exact_on_18_with_checksums V18 true 11,
    every_source_is_exact_on_18_without_checksums V18 false 12,
);
