//! What is refused, reported, or left behind.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};

use neon_pg_layout::Lsn;
use neon_snapshot_format::pgdata::{
    Bracket, DirectoryOptions, DirectoryWriter, PgData, TablespacePlaces,
};
use neon_snapshot_format::{
    Chunk, ChunkData, End, Entry, EntryKind, Error, ErrorKind, ParallelSink, Result, Sequential,
    Sink, SnapshotPath, Source, Wanted,
};
use neon_testkit::{Cluster, PgMajor, StopMode};

/// Takes everything and keeps nothing.
pub(crate) struct Nothing;

impl Sink for Nothing {
    fn entry(&mut self, _: &Entry) -> Result<()> {
        Ok(())
    }
    fn chunk(&mut self, _: &Chunk<'_>) -> Result<()> {
        Ok(())
    }
    fn end(&mut self, _: &End) -> Result<()> {
        Ok(())
    }
}

/// Fails at the n-th call.
struct Failing<'a>(Sequential<'a>, usize);

impl Failing<'_> {
    fn step(&mut self) -> Result<()> {
        match self.1.checked_sub(1) {
            Some(left) => self.1 = left,
            None => return Err(Error::new(ErrorKind::Io, "test", "the disk is full")),
        }
        Ok(())
    }
}

impl Sink for Failing<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.step()?;
        self.0.entry(entry)
    }
    fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
        self.step()?;
        self.0.chunk(chunk)
    }
    fn end(&mut self, end: &End) -> Result<()> {
        self.step()?;
        self.0.end(end)
    }
}

fn small(major: PgMajor) -> Cluster {
    let mut cluster = Cluster::builder(major).checksums(true).start();
    cluster.psql(
        "create table t as select i, repeat('x', 500) from generate_series(1, 2000) i; checkpoint",
    );
    cluster.stop(StopMode::Fast);
    cluster
}

#[test]
fn after_a_crash_only_pages_within_its_log_are_excused() {
    let mut cluster = small(PgMajor::V15);
    cluster.start();
    cluster.psql("create table later as select generate_series(1, 5000) i");
    let path = cluster.psql("select pg_relation_filepath('t')");
    cluster.kill9();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(cluster.data_dir().join(&path))
        .unwrap();
    let open = || PgData::crashed(&cluster.data_dir()).unwrap();
    let redo = open().control().checkpoint.redo.0;
    // Of a position only the low half: the log of a small cluster is short.
    let low = |lsn: u64| u32::try_from(lsn).unwrap().to_le_bytes();
    file.write_all_at(&low(redo + 8), 8192 + 4).unwrap();
    open().send(&mut Nothing).unwrap();
    for damage in [
        vec![0xFF; 8192],
        low(redo + (1 << 30)).to_vec(),
        low(redo - 8).to_vec(),
    ] {
        let at = if damage.len() == 4 { 4 } else { 0 };
        let sound = fs::read(cluster.data_dir().join(&path)).unwrap();
        file.write_all_at(&damage, 5 * 8192 + at).unwrap();
        let error = open().send(&mut Nothing).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert_eq!(error.subject(), format!("{path}, page 5"));
        file.write_all_at(&sound[5 * 8192..6 * 8192], 5 * 8192)
            .unwrap();
    }
    open().send(&mut Nothing).unwrap();
}

#[test]
fn a_damaged_page_is_named_and_copied_only_when_allowed() {
    let cluster = small(PgMajor::V15);
    let path = {
        let mut cluster = Cluster::builder(PgMajor::V15).on_copy(cluster.copy_cold());
        cluster.start();
        cluster.psql("select pg_relation_filepath('t')")
    };
    let file = fs::OpenOptions::new()
        .write(true)
        .open(cluster.data_dir().join(&path))
        .unwrap();
    file.write_all_at(b"damage", 5 * 8192 + 5000).unwrap();
    let error = PgData::cold(&cluster.data_dir())
        .unwrap()
        .send(&mut Nothing)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert_eq!(error.subject(), format!("{path}, page 5"));

    let source = PgData::cold(&cluster.data_dir())
        .unwrap()
        .allow_bad_pages(true);
    let end = source
        .copy(&mut Nothing)
        .unwrap()
        .finish(&mut Nothing, None)
        .unwrap();
    assert_eq!(end.bad_pages.len(), 1);
    assert_eq!(
        (end.bad_pages[0].path.to_string(), end.bad_pages[0].block),
        (path.clone(), 5)
    );

    // A crash leaves pages torn that its log holds; so does a running server.
    let control = PgData::cold(&cluster.data_dir()).unwrap().control().clone();
    let mut crashed = Cluster::builder(PgMajor::V15).on_copy(cluster.copy_cold());
    // The damaged page itself would stop a query, so only others are touched.
    crashed.start();
    crashed.psql("create table u as select generate_series(1, 2000) i");
    let other = crashed.psql("select pg_relation_filepath('u')");
    crashed.psql("checkpoint");
    let running = |start: Lsn, end: Lsn| {
        let bracket = Bracket::new(start, move || Ok(end));
        PgData::online(&crashed.data_dir(), bracket)
            .unwrap()
            .allow_bad_pages(true)
    };
    let torn = fs::OpenOptions::new()
        .write(true)
        .open(crashed.data_dir().join(&other))
        .unwrap();
    torn.write_all_at(b"torn", 3 * 8192 + 7000).unwrap();
    let bad = |source: PgData| {
        let copied = source.copy(&mut Nothing).unwrap();
        let paths: Vec<_> = copied
            .end()
            .bad_pages
            .iter()
            .map(|bad| bad.path.to_string())
            .collect();
        (paths, copied.settled_by_log)
    };
    let both = |mut paths: Vec<String>| {
        paths.sort();
        paths
    };
    let (before, after) = (control.checkpoint.redo, Lsn(u64::MAX));
    assert_eq!(
        bad(running(before, after)),
        (vec![path.clone()], 1),
        "in the log of the backup"
    );
    assert_eq!(
        bad(running(before, before)),
        (both(vec![path.clone(), other.clone()]), 0),
        "beyond what the server has written"
    );
    assert_eq!(
        bad(running(after, after)),
        (both(vec![path, other]), 0),
        "from before the backup"
    );
}

#[test]
fn files_may_vanish_grow_and_shrink_under_a_running_server_only() {
    let mut cluster = small(PgMajor::V17);
    cluster.start();
    let data = cluster.data_dir();
    for name in ["vanishing", "growing", "shrinking"] {
        fs::write(data.join(name), vec![7; 300_000]).unwrap();
    }
    /// Meddles with files between the list and their reading.
    struct Meddler<'a>(&'a std::path::Path, Vec<(String, u64, u64)>, bool);
    impl Sink for Meddler<'_> {
        fn entry(&mut self, entry: &Entry) -> Result<()> {
            if !self.2 {
                self.2 = true;
                fs::remove_file(self.0.join("vanishing")).unwrap();
            }
            if entry.path.as_bytes() == b"growing" {
                fs::write(self.0.join("growing"), vec![8; 500_000]).unwrap();
            }
            if entry.path.as_bytes() == b"shrinking" {
                fs::OpenOptions::new()
                    .write(true)
                    .open(self.0.join("shrinking"))
                    .unwrap()
                    .set_len(140_000)
                    .unwrap();
            }
            self.1.push((entry.path.to_string(), entry.size(), 0));
            Ok(())
        }
        fn chunk(&mut self, chunk: &Chunk<'_>) -> Result<()> {
            self.1.last_mut().unwrap().2 += chunk.len();
            Ok(())
        }
        fn end(&mut self, _: &End) -> Result<()> {
            Ok(())
        }
    }
    let mut meddler = Meddler(&data, Vec::new(), false);
    let bracket = Bracket::new(Lsn(0), || Ok(Lsn::MAX));
    let copied = PgData::online(&data, bracket)
        .unwrap()
        .copy(&mut meddler)
        .unwrap();
    assert_eq!((copied.vanished, copied.shrunk), (1, 1));
    for (path, size, sent) in &meddler.1 {
        assert_eq!(size, sent, "{path}");
    }
    let size = |name: &str| {
        meddler
            .1
            .iter()
            .find(|(path, ..)| path == name)
            .map(|found| found.1)
    };
    assert_eq!(
        (size("vanishing"), size("growing"), size("shrinking")),
        (None, Some(300_000), Some(300_000))
    );
    assert_eq!(meddler.1.last().unwrap().0, "global/pg_control");

    cluster.stop(StopMode::Fast);
    fs::write(data.join("vanishing"), "").unwrap();
    fs::write(data.join("shrinking"), vec![7; 300_000]).unwrap();
    let mut meddler = Meddler(&data, Vec::new(), false);
    let error = PgData::cold(&data).unwrap().copy(&mut meddler).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error}");
}

#[test]
fn special_files_and_links_are_reported_and_never_followed() {
    let cluster = small(PgMajor::V18);
    let data = cluster.data_dir();
    let secret = cluster.scratch_dir().join("secret");
    fs::write(&secret, "outside").unwrap();
    symlink(&secret, data.join("link")).unwrap();
    symlink("/", data.join("base/99")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(data.join("fifo"))
        .status()
        .unwrap();
    assert!(fifo.success());
    let copy = || {
        let source = PgData::cold(&data).unwrap();
        source.copy(&mut Nothing)?.finish(&mut Nothing, None)
    };
    // Where relations are, what is not followed would be missing.
    let error = copy().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("base/99"), "{error}");
    fs::remove_file(data.join("base/99")).unwrap();
    let end = copy().unwrap();
    let skipped: Vec<_> = end
        .skipped
        .iter()
        .map(|s| format!("{}: {}", s.path, s.reason))
        .collect();
    assert_eq!(
        skipped,
        ["fifo: a FIFO", "link: a symbolic link", "socket: a socket"]
    );
}

#[test]
fn a_running_cluster_is_not_cold_and_a_stopped_one_not_online() {
    let mut cluster = small(PgMajor::V14);
    let bracket = || Bracket::new(Lsn(0), || Ok(Lsn::MAX));
    for refused in [
        PgData::online(&cluster.data_dir(), bracket()),
        PgData::standby(&cluster.data_dir(), bracket()),
        PgData::crashed(&cluster.data_dir()),
        PgData::recovery(&cluster.data_dir()),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Inconsistent);
    }
    let copied = PgData::cold(&cluster.data_dir())
        .unwrap()
        .copy(&mut Nothing)
        .unwrap();
    cluster.start();
    let refused = PgData::cold(&cluster.data_dir()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Inconsistent);
    drop(copied);
    let source = PgData::online(&cluster.data_dir(), bracket()).unwrap();
    let error = source
        .copy(&mut Nothing)
        .unwrap()
        .finish(&mut Nothing, None)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Inconsistent, "no label");
    let nowhere = PgData::cold(&cluster.scratch_dir().join("s")).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
}

#[test]
fn a_write_that_fails_anywhere_leaves_nothing_that_starts() {
    let cluster = small(PgMajor::V16);
    let scratch = tempfile::tempdir().unwrap();
    let mut source = PgData::cold(&cluster.data_dir()).unwrap();
    for (index, steps) in [0, 1, 40, 1200, 100_000].into_iter().enumerate() {
        let target = scratch.path().join(index.to_string());
        let writer = DirectoryWriter::create(&target, DirectoryOptions::default()).unwrap();
        let outcome = source.send(&mut Failing(Sequential::new(&writer).unwrap(), steps));
        let finished = target.join("global/pg_control").exists();
        assert_eq!(outcome.is_ok(), finished, "after {steps} steps");
        assert_eq!(finished, steps == 100_000);
        // Nobody writes into the remainder, or over a cluster.
        let again = DirectoryWriter::create(&target, DirectoryOptions::default());
        assert_eq!(
            again.err().map(|error| error.kind()),
            (steps > 1).then_some(ErrorKind::Exists)
        );
    }
}

fn file(path: &str, size: u64) -> Entry {
    Entry {
        path: SnapshotPath::new(path).unwrap(),
        kind: EntryKind::File { size },
        mode: 0o600,
        owner: None,
        modified: 1_700_000_000,
    }
}

#[test]
fn a_control_file_that_is_just_being_written_is_read_again() {
    let cluster = small(PgMajor::V13);
    let path = cluster.data_dir().join("global/pg_control");
    let whole = fs::read(&path).unwrap();
    let torn = |bytes: &[u8]| {
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(bytes, 0)
            .unwrap();
    };
    torn(b"torn");
    assert_ne!(fs::read(&path).unwrap(), whole);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            torn(&whole);
        });
        PgData::cold(&cluster.data_dir()).unwrap();
    });
    torn(b"torn");
    let error = PgData::cold(&cluster.data_dir()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

#[test]
fn nothing_is_written_outside_the_target() {
    let scratch = tempfile::tempdir().unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = scratch.path().join("target");
    let writer = DirectoryWriter::create(&target, DirectoryOptions::default()).unwrap();
    // Somebody puts a link in the way while we write.
    symlink(&outside, target.join("base")).unwrap();
    let mut sink = Sequential::new(&writer).unwrap();
    let error = sink.entry(&file("base/5/1259", 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsafe, "{error}");
    symlink(outside.join("x"), target.join("PG_VERSION")).unwrap();
    assert_eq!(
        sink.entry(&file("PG_VERSION", 1)).unwrap_err().kind(),
        ErrorKind::Exists
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn streams_that_do_not_add_up_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut next = 0;
    let mut writer = || {
        next += 1;
        DirectoryWriter::create(
            &scratch.path().join(next.to_string()),
            DirectoryOptions::default(),
        )
        .unwrap()
    };
    let bytes = |offset, bytes: &'static [u8]| Chunk {
        offset,
        data: ChunkData::Bytes(bytes),
    };
    let kind = |outcome: Result<()>| outcome.unwrap_err().kind();

    let one = writer();
    let mut sink = Sequential::new(&one).unwrap();
    sink.entry(&file("a", 4)).unwrap();
    assert_eq!(
        kind(sink.chunk(&bytes(0, b"12345"))),
        ErrorKind::Inconsistent,
        "more than the size"
    );
    let one = writer();
    let mut sink = Sequential::new(&one).unwrap();
    sink.entry(&file("a", 4)).unwrap();
    sink.chunk(&bytes(0, b"12")).unwrap();
    assert_eq!(
        kind(sink.entry(&file("b", 0))),
        ErrorKind::Inconsistent,
        "less than the size"
    );
    let one = writer();
    let mut sink = Sequential::new(&one).unwrap();
    sink.entry(&file("a", 0)).unwrap();
    assert_eq!(kind(sink.entry(&file("a", 0))), ErrorKind::Exists, "twice");
    let one = writer();
    let mut sink = Sequential::new(&one).unwrap();
    sink.entry(&file("a", 0)).unwrap();
    assert_eq!(
        kind(sink.end(&End::default())),
        ErrorKind::Malformed,
        "no control file"
    );
    let link = Entry {
        kind: EntryKind::Tablespace {
            oid: 16400,
            location: Some(b"/etc".to_vec()),
        },
        ..file("pg_tblspc/16400", 0)
    };
    assert_eq!(
        kind(writer().entry(&link)),
        ErrorKind::Unsupported,
        "no place was given"
    );
    let how = DirectoryOptions {
        tablespaces: TablespacePlaces::Original,
        ..DirectoryOptions::default()
    };
    let original = DirectoryWriter::create(&scratch.path().join("original"), how).unwrap();
    assert_eq!(
        kind(original.entry(&link)),
        ErrorKind::Exists,
        "/etc is not empty"
    );
}

#[test]
fn a_directory_is_not_changed_through_links_or_second_names_and_stays_refused() {
    use neon_snapshot_format::pgdata::ExistingDirectory;

    let cluster = Cluster::builder(PgMajor::V16).init();
    let data = cluster.data_dir();
    let outside = cluster.scratch_dir().join("outside");
    fs::write(&outside, vec![7; 16384]).unwrap();
    fs::hard_link(&outside, data.join("base/1/linked")).unwrap();
    symlink(&outside, data.join("base/1/symlinked")).unwrap();
    let directory = ExistingDirectory::open(&data, PgMajor::V16).unwrap();
    let found = |path: &str| {
        let mut entries = directory.entries().iter();
        entries
            .find(|entry| entry.path.as_bytes() == path.as_bytes())
            .map(|entry| entry.kind.clone())
    };
    assert_eq!(
        found("base/1/linked"),
        Some(EntryKind::File { size: 16384 })
    );
    assert_eq!(found("base/1/symlinked"), Some(EntryKind::File { size: 0 }));
    let writer = directory.change(DirectoryOptions::default()).unwrap();
    assert!(!data.join("global/pg_control").exists());
    for name in ["base/1/linked", "base/1/symlinked"] {
        let entry = Entry {
            path: SnapshotPath::new(name).unwrap(),
            kind: EntryKind::File { size: 16384 },
            mode: 0o600,
            owner: None,
            modified: 0,
        };
        let part = Wanted::Ranges(std::iter::once(0..8192).collect());
        assert!(writer.file(&entry, &part).is_err(), "{name}");
        // As a whole it is made anew, and the other name keeps what it had.
        writer.file(&entry, &Wanted::Whole).unwrap();
        let mut worker = writer.worker().unwrap();
        worker.begin(&entry, 0..16384).unwrap();
        worker
            .chunk(&Chunk {
                offset: 0,
                data: ChunkData::Zeros(16384),
            })
            .unwrap();
        worker.commit().unwrap();
        worker.finish().unwrap();
        assert_eq!(fs::read(data.join(name)).unwrap(), vec![0; 16384]);
        assert_eq!(fs::read(&outside).unwrap(), vec![7; 16384]);
    }
    drop(writer);
    assert!(PgData::cold(&data).is_err());
    // While a server may run on it, nobody begins.
    fs::write(data.join("postmaster.pid"), "1\n").unwrap();
    assert!(ExistingDirectory::open(&data, PgMajor::V16).is_err());
}
