//! Pages that are bad when they are read first: what the second look finds, what the log excuses, and what remains.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use neon_pg_layout::Lsn;
use neon_snapshot_format::pgdata::{Bracket, Copied, PgData, Select};
use neon_snapshot_format::{Entry, ErrorKind, Result, Sequential, Wanted};
use neon_testkit::{Cluster, PgMajor, StopMode};

use crate::pgdata_selected::Recorder;

const PAGE: usize = 8192;
/// Of one chunk that is read at once: changed during the backup, and half written.
const EXCUSED: usize = 0;
/// Bad when it is read first; whole a moment later.
const BETTER: usize = 3;
/// Bad for ever, and older than the backup.
const DAMAGED: usize = 5;
const PAGES: usize = 10;

/// Pages of one relation, and nothing of the rest.
struct Only(String);

impl Select for Only {
    fn wanted(&self, entry: &Entry) -> Result<Wanted> {
        Ok(match entry.path.as_str() == Some(&self.0) {
            true => Wanted::Ranges([0..2 * PAGE as u64, 2 * PAGE as u64..entry.size()].into()),
            false => Wanted::Nothing,
        })
    }
}

type Way = fn(&PgData, &Recorder, &str) -> Result<Copied>;

const WAYS: [(&str, Way); 3] = [
    ("in order", |source, sink, _| {
        source.copy(&mut Sequential::new(sink)?)
    }),
    ("in parallel", |source, sink, _| {
        source.copy_parallel(sink, 2)
    }),
    ("in part", |source, sink, path| {
        source.copy_selected(&Only(path.to_owned()), sink, 2)
    }),
];

/// A table whose first page was changed since the position, all of it on disk.
struct Scene {
    cluster: Cluster,
    path: String,
    start: Lsn,
    file: Arc<File>,
    sound: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::builder(PgMajor::V17)
            .checksums(true)
            .setting("autovacuum", "off")
            .start();
        cluster.psql(
            "create table t as select i, repeat('x', 500) from generate_series(1, 150) i;
             vacuum t; checkpoint",
        );
        let path = cluster.psql("select pg_relation_filepath('t')");
        let start = cluster.psql("select pg_current_wal_insert_lsn()");
        cluster.psql("update t set i = 0 where ctid = '(0,1)'; checkpoint");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(cluster.data_dir().join(&path))
            .unwrap();
        let mut sound = vec![0; PAGES * PAGE];
        file.read_exact_at(&mut sound, 0).unwrap();
        Self {
            path,
            start: start.parse().unwrap(),
            file: Arc::new(file),
            sound,
            cluster,
        }
    }

    fn damage(&self, page: usize) {
        let at = page * PAGE + 7000;
        self.file.write_all_at(b"torn", at as u64).unwrap();
    }

    /// A source that asks the server where it is, and whose page to be mended is whole from then on: it is asked about the
    /// first page, which lies in the same chunk and comes before.
    fn source(&self) -> (PgData, Arc<AtomicUsize>) {
        let now: Lsn = self
            .cluster
            .psql("select pg_current_wal_insert_lsn()")
            .parse()
            .unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (file, count) = (Arc::clone(&self.file), Arc::clone(&asked));
        let whole = self.sound[BETTER * PAGE..][..PAGE].to_vec();
        let bracket = Bracket::new(self.start, move || {
            count.fetch_add(1, Ordering::Relaxed);
            file.write_all_at(&whole, (BETTER * PAGE) as u64)?;
            Ok(now)
        });
        let source = PgData::online(&self.cluster.data_dir(), bracket);
        (source.unwrap(), asked)
    }

    /// What came of the relation.
    fn came(&self, sink: &Recorder) -> Vec<u8> {
        let parts = sink.parts.lock().unwrap();
        let mut came = vec![0; PAGES * PAGE];
        for part in parts.iter() {
            if part.entry.path.as_str() != Some(&self.path) {
                continue;
            }
            for (at, byte) in (part.range.start as usize..).zip(&part.bytes) {
                if let Some(slot) = came.get_mut(at) {
                    *slot = *byte;
                }
            }
        }
        came
    }
}

#[test]
fn a_page_that_is_whole_at_the_second_look_is_taken_as_it_is_then() {
    let mut scene = Scene::new();
    for (name, way) in WAYS {
        scene.damage(EXCUSED);
        scene.damage(BETTER);
        let (source, asked) = scene.source();
        let sink = Recorder::default();
        let copied = way(&source, &sink, &scene.path).unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1, "{name}: of one page only");
        assert_eq!(copied.settled_by_log, 1, "{name}");
        assert_eq!(copied.end().bad_pages, [], "{name}");
        let came = scene.came(&sink);
        for page in 0..PAGES {
            let equal = came[page * PAGE..][..PAGE] == scene.sound[page * PAGE..][..PAGE];
            assert_eq!(equal, page != EXCUSED, "{name}: page {page}");
        }
    }
    scene.file.write_all_at(&scene.sound, 0).unwrap();
    scene.cluster.stop(StopMode::Fast);
}

#[test]
fn a_page_that_stays_bad_and_that_no_log_holds_is_refused_or_recorded() {
    let mut scene = Scene::new();
    for (name, way) in WAYS {
        for page in [EXCUSED, BETTER, DAMAGED] {
            scene.damage(page);
        }
        let error = way(&scene.source().0, &Recorder::default(), &scene.path).err();
        let error = error.unwrap_or_else(|| panic!("{name}: was taken"));
        assert_eq!(error.kind(), ErrorKind::Damaged, "{name}");
        let named = format!("{}, page {DAMAGED}", scene.path);
        assert_eq!(error.subject(), named, "{name}");

        scene.damage(BETTER);
        let sink = Recorder::default();
        let source = scene.source().0.allow_bad_pages(true);
        let copied = way(&source, &sink, &scene.path).unwrap();
        let bad: Vec<_> = copied
            .end()
            .bad_pages
            .iter()
            .map(|bad| (bad.path.to_string(), bad.block, bad.reason.clone()))
            .collect();
        assert_eq!(bad.len(), 1, "{name}: {bad:?}");
        let (path, block, reason) = &bad[0];
        assert_eq!((path, *block), (&scene.path, DAMAGED as u64), "{name}");
        assert!(reason.starts_with("checksum "), "{name}: {reason}");
        assert_eq!(copied.settled_by_log, 1, "{name}");
        // It is there as it was read.
        let came = scene.came(&sink);
        assert_eq!(&came[DAMAGED * PAGE + 7000..][..4], b"torn", "{name}");
    }
    scene.file.write_all_at(&scene.sound, 0).unwrap();
    scene.cluster.stop(StopMode::Fast);
}
