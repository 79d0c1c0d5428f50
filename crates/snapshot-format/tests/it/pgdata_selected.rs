//! Reading what is wanted of a data directory, as a snapshot does that shares pages with a parent.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

use neon_pg_layout::Lsn;
use neon_snapshot_format::pgdata::{Bracket, Copied, DirectoryWriter, PgData, Select};
use neon_snapshot_format::{
    Change, Chunk, ChunkData, End, Entry, ErrorKind, ExtentSink, ParallelSink, Result, Sequential,
    Sink, Wanted,
};
use neon_testkit::{Backup, Cluster, PgMajor, StopMode};

use crate::clusters::{bracket, check_stopped, options, start, stop, verify};
use crate::pgdata_online::{Load, assert_balanced};

const PAGE: u64 = 8192;

/// Keeps everything that comes.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) directories: Mutex<Vec<Entry>>,
    pub(crate) announced: Mutex<Vec<(Entry, Wanted)>>,
    pub(crate) parts: Mutex<Vec<Part>>,
    pub(crate) changes: Mutex<Vec<(String, Change)>>,
}

pub(crate) struct Part {
    pub(crate) entry: Entry,
    pub(crate) range: Range<u64>,
    pub(crate) bytes: Vec<u8>,
}

struct RecordingWorker<'a>(&'a Recorder, Option<Part>);

impl ParallelSink for Recorder {
    fn entry(&self, entry: &Entry) -> Result<()> {
        assert!(
            self.announced.lock().unwrap().is_empty(),
            "directories first"
        );
        self.directories.lock().unwrap().push(entry.clone());
        Ok(())
    }
    fn file(&self, entry: &Entry, wanted: &Wanted) -> Result<()> {
        let mut announced = self.announced.lock().unwrap();
        assert!(announced.iter().all(|(known, _)| known.path != entry.path));
        announced.push((entry.clone(), wanted.clone()));
        Ok(())
    }
    fn changed(&self, entry: &Entry, change: Change) -> Result<()> {
        let mut changes = self.changes.lock().unwrap();
        changes.push((entry.path.to_string(), change));
        Ok(())
    }
    fn worker(&self) -> Result<Box<dyn ExtentSink + '_>> {
        Ok(Box::new(RecordingWorker(self, None)))
    }
    fn end(&self, _: &End) -> Result<()> {
        Ok(())
    }
}

impl ExtentSink for RecordingWorker<'_> {
    fn begin(&mut self, entry: &Entry, range: Range<u64>) -> Result<()> {
        let announced = self.0.announced.lock().unwrap();
        assert!(announced.iter().any(|(known, _)| known == entry));
        let part = Part {
            entry: entry.clone(),
            range,
            bytes: Vec::new(),
        };
        assert!(self.1.replace(part).is_none());
        Ok(())
    }
    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        let part = self.1.as_mut().unwrap();
        assert_eq!(chunk.offset, part.range.start + part.bytes.len() as u64);
        match chunk.data {
            ChunkData::Bytes(bytes) => part.bytes.extend_from_slice(bytes),
            ChunkData::Zeros(count) => part
                .bytes
                .resize(part.bytes.len() + usize::try_from(count).unwrap(), 0),
        }
        Ok(())
    }
    fn commit(&mut self) -> Result<()> {
        let part = self.1.take().unwrap();
        assert_eq!(part.bytes.len() as u64, part.range.end - part.range.start);
        self.0.parts.lock().unwrap().push(part);
        Ok(())
    }
    fn finish(&mut self) -> Result<()> {
        assert!(self.1.is_none());
        Ok(())
    }
}

impl Recorder {
    fn paths(&self) -> Vec<String> {
        let announced = self.announced.lock().unwrap();
        announced.iter().map(|(e, _)| e.path.to_string()).collect()
    }

    /// The parts that came of a file, neighbours joined.
    fn came(&self, path: &str) -> Vec<Range<u64>> {
        let parts = self.parts.lock().unwrap();
        let mut ranges: Vec<_> = parts
            .iter()
            .filter(|part| part.entry.path.to_string() == path)
            .map(|part| part.range.clone())
            .collect();
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|after, before| {
            let joins = before.end == after.start && !after.is_empty();
            if joins {
                before.end = after.end;
            }
            joins
        });
        ranges
    }

    fn changes(&self) -> Vec<(String, Change)> {
        let mut changes = self.changes.lock().unwrap().clone();
        changes.sort_by(|a, b| a.0.cmp(&b.0));
        changes
    }

    /// The files, made of what came over what was there before.
    pub(crate) fn over(&self, base: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for (entry, _) in self.announced.lock().unwrap().iter() {
            let path = entry.path.to_string();
            let mut content = base.get(&path).cloned().unwrap_or_default();
            content.resize(usize::try_from(entry.size()).unwrap(), 0);
            files.insert(path, content);
        }
        for part in self.parts.lock().unwrap().iter() {
            let content = files.get_mut(&part.entry.path.to_string()).unwrap();
            let start = usize::try_from(part.range.start).unwrap();
            content[start..start + part.bytes.len()].copy_from_slice(&part.bytes);
        }
        for (path, change) in self.changes.lock().unwrap().iter() {
            if *change == Change::Gone {
                files.remove(path);
            }
        }
        files
    }
}

/// A selection by a function.
struct By<F>(F);

impl<F: Fn(&str, &Entry) -> Wanted + Sync> Select for By<F> {
    fn wanted(&self, entry: &Entry) -> Result<Wanted> {
        Ok((self.0)(&entry.path.to_string(), entry))
    }
}

fn stopped(major: PgMajor) -> (Cluster, String) {
    let mut cluster = Cluster::builder(major).checksums(true).start();
    cluster.psql(
        "create table t as select i, repeat('x', 500) from generate_series(1, 2000) i; checkpoint",
    );
    let path = cluster.psql("select pg_relation_filepath('t')");
    cluster.stop(StopMode::Fast);
    (cluster, path)
}

#[test]
fn exactly_what_is_wanted_is_read_and_every_file_is_announced() {
    let (cluster, table) = stopped(PgMajor::V16);
    let data = cluster.data_dir();
    let source = PgData::cold(&data).unwrap();
    let everything = Recorder::default();
    drop(source.copy_parallel(&everything, 2).unwrap());

    // A page that is not wanted may be damaged, a file that is not may be unreadable.
    let open = |path: &str| {
        fs::OpenOptions::new()
            .write(true)
            .open(data.join(path))
            .unwrap()
    };
    open(&table)
        .write_all_at(b"damage", 5 * PAGE + 5000)
        .unwrap();
    let size = fs::metadata(data.join(&table)).unwrap().len();
    let ranges = vec![
        PAGE..3 * PAGE,
        7 * PAGE..8 * PAGE,
        15 * PAGE..40 * PAGE,
        size - PAGE..size,
    ];
    let hide = Once::new();
    let select = By(|path: &str, _: &Entry| {
        hide.call_once(|| fs::remove_file(data.join("PG_VERSION")).unwrap());
        match path {
            "global/pg_filenode.map" => Wanted::Whole,
            _ if path == table => Wanted::Ranges(ranges.clone()),
            "base/1/PG_VERSION" => Wanted::Ranges(Vec::new()),
            _ => Wanted::Nothing,
        }
    });
    let recorder = Recorder::default();
    let copied = source.copy_selected(&select, &recorder, 2).unwrap();
    assert_eq!(recorder.paths(), everything.paths());
    assert_eq!(recorder.paths().last().unwrap(), "global/pg_control");
    assert_eq!(recorder.came(&table), ranges);
    let map = fs::read(data.join("global/pg_filenode.map")).unwrap();
    assert_eq!(
        (copied.files, copied.bytes, copied.pages),
        (2, 29 * PAGE + map.len() as u64, 29)
    );
    for part in recorder.parts.lock().unwrap().iter() {
        let live = fs::read(data.join(part.entry.path.to_string())).unwrap();
        let start = usize::try_from(part.range.start).unwrap();
        assert!(
            live[start..].starts_with(&part.bytes),
            "{}",
            part.entry.path
        );
    }
    assert_eq!(recorder.parts.lock().unwrap().len(), 4 + 1 + 1);

    // The damaged page, once wanted, is judged as in a full copy.
    let wanted = By(|path: &str, _: &Entry| match path {
        _ if path == table => Wanted::Ranges(vec![5 * PAGE..6 * PAGE]),
        _ => Wanted::Nothing,
    });
    let error = source
        .copy_selected(&wanted, &Recorder::default(), 1)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert_eq!(error.subject(), format!("{table}, page 5"));

    // What a selection may not want, and a sink that needs whole files.
    let beyond = By(|_: &str, entry: &Entry| Wanted::Ranges(vec![0..entry.size() + PAGE]));
    let error = source.copy_selected(&beyond, &Recorder::default(), 1);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Inconsistent);
    let scratch = tempfile::tempdir().unwrap();
    let writer = DirectoryWriter::create(&scratch.path().join("x"), options(&cluster)).unwrap();
    let error = source.copy_selected(&select, &writer, 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn a_sink_learns_what_became_of_files_that_vanish_grow_and_shrink() {
    let (mut cluster, _) = stopped(PgMajor::V17);
    cluster.start();
    let data = cluster.data_dir();
    let names = ["vanishing", "growing", "shrinking", "untouched", "unseen"];
    let write = || {
        for name in names {
            fs::write(data.join(name), vec![7; 300 * 8192]).unwrap();
        }
        fs::write(data.join("large"), vec![7; 24 << 20]).unwrap();
        fs::write(data.join("base/5/99999"), vec![0; 8192]).unwrap();
        drop(fs::remove_file(data.join("base/5/99999_init")));
    };
    // Files change when everything was listed, and before anything is read.
    let meddle = |data: &Path| {
        for name in ["vanishing", "unseen", "large"] {
            fs::remove_file(data.join(name)).unwrap();
        }
        let open = |name: &str| {
            fs::OpenOptions::new()
                .write(true)
                .open(data.join(name))
                .unwrap()
        };
        open("growing").set_len(400 * PAGE).unwrap();
        open("shrinking").set_len(140 * PAGE + 100).unwrap();
        fs::write(data.join("base/5/99999_init"), "").unwrap();
    };
    let large = 24 << 20;
    let scattered = || vec![0..PAGE, 100 * PAGE..200 * PAGE, 250 * PAGE..300 * PAGE];
    let run = |cluster: &Cluster, source: PgData| {
        write();
        let once = Once::new();
        let select = By(|path: &str, _: &Entry| {
            once.call_once(|| meddle(&cluster.data_dir()));
            match path {
                "vanishing" | "growing" | "shrinking" | "untouched" => Wanted::Ranges(scattered()),
                "unseen" => Wanted::Nothing,
                "large" | "base/5/99999" => Wanted::Whole,
                _ => Wanted::Nothing,
            }
        });
        let recorder = Recorder::default();
        let copied = source
            .extent_size(8 << 20)
            .copy_selected(&select, &recorder, 2);
        (copied, recorder)
    };
    let bracket = Bracket::new(Lsn(0), || Ok(Lsn::MAX));
    let source = PgData::online(&data, bracket).unwrap();
    let (copied, recorder) = run(&cluster, source);
    let copied: Copied = copied.unwrap();
    let named = |name: &str, change| (name.to_owned(), change);
    assert_eq!(
        recorder.changes(),
        [
            named("base/5/99999", Change::Gone),
            named("growing", Change::Resized { size: 400 * PAGE }),
            named("large", Change::Removed),
            named("large", Change::Removed),
            named("large", Change::Removed),
            named(
                "shrinking",
                Change::Resized {
                    size: 140 * PAGE + 100
                }
            ),
            named("vanishing", Change::Gone),
        ]
    );
    assert_eq!((copied.vanished, copied.shrunk), (4, 1));
    for name in ["growing", "shrinking", "untouched"] {
        assert_eq!(recorder.came(name), scattered(), "{name}");
    }
    assert_eq!(recorder.came("large"), vec![0..large]);
    assert_eq!(recorder.came("vanishing"), []);
    assert!(recorder.paths().contains(&"unseen".to_owned()));
    let files = recorder.over(&BTreeMap::new());
    assert!(!files.contains_key("vanishing"));
    let shrunk = &files["shrinking"];
    let end = 140 * 8192 + 100;
    assert_eq!(shrunk.len(), 300 * 8192);
    assert!(shrunk[100 * 8192..end].iter().all(|byte| *byte == 7));
    assert!(shrunk[end..].iter().all(|byte| *byte == 0));

    cluster.stop(StopMode::Fast);
    let (copied, _) = run(&cluster, PgData::cold(&data).unwrap());
    assert_eq!(copied.unwrap_err().kind(), ErrorKind::Inconsistent);
}

/// Wants the pages that differ from an earlier copy, by comparing them.
struct Differing<'a> {
    base: &'a BTreeMap<String, Vec<u8>>,
    data: PathBuf,
}

impl Select for Differing<'_> {
    fn wanted(&self, entry: &Entry) -> Result<Wanted> {
        let path = entry.path.to_string();
        let Some(base) = self.base.get(&path) else {
            return Ok(Wanted::Whole);
        };
        let live = fs::read(self.data.join(&path)).unwrap_or_default();
        let size = usize::try_from(entry.size()).unwrap();
        let page = 8192;
        let differ = (0..size).step_by(page).filter(|start| {
            let range = *start..(start + page).min(size);
            let before = base.get(range.clone());
            before.is_none() || before != live.get(range)
        });
        let ranges = differ.map(|start| start as u64..(start + page).min(size) as u64);
        Ok(Wanted::Ranges(ranges.collect()))
    }
}

#[test]
fn changed_pages_over_an_earlier_copy_make_a_cluster_that_starts_under_load_too() {
    let major = PgMajor::V18;
    let cluster = crate::clusters::varied_with(major, true, false);
    let load = Load::on(&cluster);
    let take = |select: Option<&dyn Select>| {
        let backup = Backup::begin(&cluster);
        let source = PgData::online(&cluster.data_dir(), bracket(&backup, &cluster)).unwrap();
        let recorder = Recorder::default();
        let copied = match select {
            Some(select) => source.copy_selected(select, &recorder, 2),
            None => source.copy_parallel(&recorder, 2),
        };
        (copied.unwrap(), recorder, backup.stop())
    };
    let (full, recorder, _) = take(None);
    let base = recorder.over(&BTreeMap::new());
    cluster.psql(
        "create table more as select generate_series(1, 20000) i; delete from kept where id % 7 = 0;
         vacuum kept; truncate far; drop table empty; create table empty (i int)",
    );
    let data = cluster.data_dir();
    let select = Differing { base: &base, data };
    let (changed, recorder, stopped) = take(Some(&select));
    let kept = "select count(*), sum(id) from kept";
    let (expected, more) = (cluster.psql(kept), "select sum(i) from more");
    drop(load);
    assert!(changed.end().bad_pages.is_empty());
    let (read, all) = (changed.bytes, full.bytes);
    assert!(read < all - (16 << 20), "{read} bytes of {all}");
    for (entry, wanted) in recorder.announced.lock().unwrap().iter() {
        let path = entry.path.to_string();
        let gone = recorder.changes().contains(&(path.clone(), Change::Gone));
        let joined = recorder.came(&path);
        match wanted {
            _ if gone => assert_eq!(joined, [], "{path}"),
            Wanted::Whole => assert_eq!(joined, [0..entry.size()], "{path}"),
            Wanted::Nothing => assert_eq!(joined, [], "{path}"),
            Wanted::Ranges(ranges) => {
                let bytes = |ranges: &[Range<u64>]| -> u64 {
                    ranges.iter().map(|range| range.end - range.start).sum()
                };
                assert_eq!(bytes(&joined), bytes(ranges), "{path}");
                assert!(ranges.iter().all(|range| {
                    joined
                        .iter()
                        .any(|j| j.start <= range.start && range.end <= j.end)
                }));
            }
        }
    }

    let mut copy = Cluster::without_data(major);
    let writer = DirectoryWriter::create(&copy.data_dir(), options(&copy)).unwrap();
    let mut sink = Sequential::new(&writer).unwrap();
    let files = recorder.over(&base);
    for entry in recorder.directories.lock().unwrap().iter() {
        sink.entry(entry).unwrap();
    }
    for (entry, _) in recorder.announced.lock().unwrap().iter() {
        let Some(content) = files.get(&entry.path.to_string()) else {
            continue;
        };
        sink.entry(entry).unwrap();
        for (index, bytes) in content.chunks(128 << 10).enumerate() {
            let offset = (index as u64) << 17;
            let data = ChunkData::Bytes(bytes);
            sink.chunk(&Chunk { offset, data }).unwrap();
        }
    }
    let wal = cluster.data_dir().join("pg_wal");
    drop(
        changed
            .finish(&mut sink, Some(stop(&stopped, &wal)))
            .unwrap(),
    );
    verify(&copy.data_dir(), major);
    start(&mut copy);
    assert_balanced(&copy);
    assert_eq!(copy.psql(kept), expected);
    assert_eq!(copy.psql(more), "200010000");
    assert_eq!(copy.psql("select count(*) from far"), "0");
    copy.check_running();
    check_stopped(&mut copy);
}
