//! Crash images: what they may hold, and that they find engines that sync too little.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use neon_testkit::Scratch;
use neon_testkit::crash::{CrashImage, Failing, Faults, Files, RealFiles, Recorder, SECTOR};
use proptest::prelude::*;

type Listing = BTreeMap<String, Option<Arc<Vec<u8>>>>;

fn read(files: &dyn Files, path: &str) -> io::Result<Vec<u8>> {
    let file = files.open(Path::new(path))?;
    let mut content = vec![0; usize::try_from(file.len()?).unwrap()];
    assert_eq!(file.read_at(&mut content, 0)?, content.len());
    Ok(content)
}

/// What is really below a directory.
fn listing(root: &Path) -> Listing {
    let mut found = Listing::new();
    let mut left = vec![String::new()];
    while let Some(folder) = left.pop() {
        for name in RealFiles::new(root).list(Path::new(&folder)).unwrap() {
            let path = if folder.is_empty() {
                name
            } else {
                format!("{folder}/{name}")
            };
            if root.join(&path).is_dir() {
                found.insert(path.clone(), None);
                left.push(path);
            } else {
                let content = std::fs::read(root.join(&path)).unwrap();
                found.insert(path, Some(Arc::new(content)));
            }
        }
    }
    found
}

/// What a program does, by small numbers that are made valid when they are not.
#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Write {
        file: u8,
        offset: u16,
        len: u16,
        byte: u8,
    },
    SetLen {
        file: u8,
        len: u16,
    },
    Rename(u8, u8),
    Link(u8, u8),
    Unlink(u8),
    SyncFile(u8),
    SyncDir(u8),
}

const NAMES: [&str; 6] = ["a", "b", "c", "d/a", "d/b", "e/a"];
const DIRS: [&str; 3] = ["", "d", "e"];

fn name(number: u8) -> &'static Path {
    Path::new(NAMES[usize::from(number) % NAMES.len()])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<u8>().prop_map(Step::Create),
        5 => (any::<u8>(), 0..3000_u16, 0..2000_u16, 1..=255_u8)
            .prop_map(|(file, offset, len, byte)| Step::Write { file, offset, len, byte }),
        1 => (any::<u8>(), 0..3000_u16).prop_map(|(file, len)| Step::SetLen { file, len }),
        2 => (any::<u8>(), any::<u8>()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => any::<u8>().prop_map(Step::Unlink),
        3 => any::<u8>().prop_map(Step::SyncFile),
        3 => any::<u8>().prop_map(Step::SyncDir),
    ]
}

fn perform(files: &dyn Files, step: &Step) -> io::Result<()> {
    match step {
        Step::Create(at) => files.create_new(name(*at)).map(drop),
        Step::Write {
            file,
            offset,
            len,
            byte,
        } => files
            .open(name(*file))?
            .write_all_at(&vec![*byte; usize::from(*len)], u64::from(*offset)),
        Step::SetLen { file, len } => files.open(name(*file))?.set_len(u64::from(*len)),
        Step::Rename(from, to) => files.rename(name(*from), name(*to)),
        Step::Link(from, to) => files.link(name(*from), name(*to)),
        Step::Unlink(at) => files.unlink(name(*at)),
        Step::SyncFile(at) => files.open(name(*at))?.sync(),
        Step::SyncDir(at) => files.sync_dir(Path::new(DIRS[usize::from(*at) % DIRS.len()])),
    }
}

/// The rules in their simplest form: by file, by name, what is durable and what else it may be.
#[derive(Debug, Clone, Default)]
struct Model {
    /// Numbers of files by name, now.
    live: BTreeMap<String, usize>,
    /// What a name may lead to: the durable answer first, then the others.
    names: BTreeMap<String, Vec<Option<usize>>>,
    files: Vec<ModelFile>,
}

#[derive(Debug, Clone, Default)]
struct ModelFile {
    durable: Vec<u8>,
    /// Bytes that each position may hold besides the durable one (zero always, once beyond the end).
    maybe: Vec<BTreeSet<u8>>,
    now: Vec<u8>,
    lengths: BTreeSet<usize>,
}

impl ModelFile {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        self.maybe
            .resize(self.maybe.len().max(end), BTreeSet::new());
        for (at, byte) in (offset..).zip(bytes) {
            self.maybe[at].insert(*byte);
        }
        let sector = usize::try_from(SECTOR).unwrap();
        self.lengths
            .extend((offset..end).filter(|at| at % sector == 0));
        self.lengths.insert(end);
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.now);
        self.maybe.clear();
        self.lengths.clear();
    }

    fn allows(&self, content: &[u8]) -> bool {
        let length = content.len() == self.durable.len() || self.lengths.contains(&content.len());
        length
            && content.iter().enumerate().all(|(at, byte)| {
                let durable = self.durable.get(at).copied().unwrap_or(0);
                let cut = !self.lengths.is_empty() && *byte == 0;
                *byte == durable
                    || cut
                    || self.maybe.get(at).is_some_and(|maybe| maybe.contains(byte))
            })
    }
}

fn dir_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Model {
    fn may_lead(&mut self, name: &Path, to: Option<usize>) {
        let name = name.to_str().unwrap();
        self.names
            .entry(name.to_owned())
            .or_insert_with(|| vec![None])
            .push(to);
        match to {
            Some(file) => self.live.insert(name.to_owned(), file),
            None => self.live.remove(name),
        };
    }

    fn file(&self, at: u8) -> Option<usize> {
        self.live.get(name(at).to_str().unwrap()).copied()
    }

    fn perform(&mut self, step: &Step) {
        match step {
            Step::Create(at) => {
                self.files.push(ModelFile::default());
                self.may_lead(name(*at), Some(self.files.len() - 1));
            }
            Step::Write {
                file,
                offset,
                len,
                byte,
            } => {
                let file = self.file(*file).unwrap();
                self.files[file].write(usize::from(*offset), &vec![*byte; usize::from(*len)]);
            }
            Step::SetLen { file, len } => {
                let file = self.file(*file).unwrap();
                self.files[file].now.resize(usize::from(*len), 0);
                self.files[file].lengths.insert(usize::from(*len));
            }
            Step::Rename(from, to) => {
                let file = self.file(*from);
                if file != self.file(*to) {
                    self.may_lead(name(*to), file);
                    self.may_lead(name(*from), None);
                }
            }
            Step::Link(from, to) => {
                let file = self.file(*from);
                self.may_lead(name(*to), file);
            }
            Step::Unlink(at) => self.may_lead(name(*at), None),
            Step::SyncFile(at) => {
                let file = self.file(*at).unwrap();
                self.files[file].sync();
            }
            Step::SyncDir(at) => {
                let dir = DIRS[usize::from(*at) % DIRS.len()];
                let live = self.live.clone();
                for (name, may) in &mut self.names {
                    if dir_of(name) == dir {
                        *may = vec![live.get(name).copied()];
                    }
                }
            }
        }
    }

    /// Whether the rules allow this state; the reason when not.
    fn allows(&self, image: &CrashImage) -> Result<(), String> {
        let found = image.listing();
        for dir in &DIRS[1..] {
            if !found.contains_key(*dir) {
                return Err(format!("the directory {dir} is gone"));
            }
        }
        for name in NAMES {
            let content = found.get(name).cloned().flatten();
            let nothing = vec![None];
            let may = self.names.get(name).unwrap_or(&nothing);
            let allowed = may.iter().any(|file| match (file, &content) {
                (None, None) => true,
                (Some(file), Some(content)) => self.files[*file].allows(content),
                _ => false,
            });
            if !allowed {
                return Err(format!(
                    "{name} holds {:?} bytes",
                    content.map(|content| content.len())
                ));
            }
        }
        Ok(())
    }
}

fn start(scratch: &Scratch) -> Recorder {
    let root = scratch.path().join("live");
    for dir in ["", "d", "e"] {
        std::fs::create_dir(root.join(dir)).unwrap();
    }
    Recorder::new(root).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_image_is_one_that_the_rules_allow(steps in proptest::collection::vec(step(), 1..40), seed in any::<u64>()) {
        let scratch = Scratch::new();
        let recorder = start(&scratch);
        // A model for each point: after every operation that was recorded.
        let mut models = vec![Model::default()];
        for step in &steps {
            let before = recorder.position();
            let done = perform(&recorder, step);
            let mut model = models.last().unwrap().clone();
            if recorder.position() > before {
                prop_assert!(done.is_ok(), "{step:?}: {done:?}");
                model.perform(step);
                models.push(model);
            }
        }
        let log = recorder.log();
        prop_assert_eq!(models.len(), log.len() + 1);
        let mut points = BTreeSet::new();
        for image in log.images(seed, 6) {
            points.insert(image.operations());
            if let Err(reason) = models[image.operations()].allows(&image) {
                prop_assert!(false, "{reason}: {}\n{:?}", image.describe(), steps);
            }
        }
        prop_assert_eq!(points.len(), log.len() + 1);
        // The first image of each point is what the file system really has.
        let last = log.images(seed, 0).find(|image| image.operations() == log.len()).unwrap();
        prop_assert_eq!(last.listing(), listing(&scratch.path().join("live")));
    }

    #[test]
    fn what_was_synced_is_in_every_image(steps in proptest::collection::vec(step(), 1..30), seed in any::<u64>()) {
        let scratch = Scratch::new();
        let recorder = start(&scratch);
        for step in &steps {
            drop(perform(&recorder, step));
        }
        for name in NAMES {
            if let Ok(file) = recorder.open(Path::new(name)) {
                file.sync().unwrap();
            }
        }
        for dir in DIRS {
            recorder.sync_dir(Path::new(dir)).unwrap();
        }
        let log = recorder.log();
        let real = listing(&scratch.path().join("live"));
        let images: Vec<CrashImage> = log.images(seed, 5).filter(|image| image.operations() == log.len()).collect();
        prop_assert_eq!(images.len(), 1);
        prop_assert_eq!(images[0].listing(), real.clone());
        let to = scratch.path().join("image");
        images[0].materialise(&to).unwrap();
        prop_assert_eq!(listing(&to), real);
    }
}

/// Which sync an engine forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgets {
    Nothing,
    File,
    Directory,
    Temporary,
}

/// Replaces `value` as one does: a new file, synced, renamed over the old one, the directory synced.
fn replace(files: &dyn Files, value: &[u8], forgets: Forgets) -> io::Result<()> {
    let (to, temporary) = (Path::new("value"), Path::new("value.tmp"));
    if forgets == Forgets::Temporary {
        // In place: a torn write is a mixture.
        let file = files.open(to)?;
        file.write_all_at(value, 0)?;
        return file.sync();
    }
    drop(files.unlink(temporary));
    let file = files.create_new(temporary)?;
    file.write_all_at(value, 0)?;
    if forgets != Forgets::File {
        file.sync()?;
    }
    files.rename(temporary, to)?;
    if forgets != Forgets::Directory {
        files.sync_dir(Path::new(""))?;
    }
    Ok(())
}

/// Whether every image holds a value that was current when the power was cut, or the one being written.
fn survives(forgets: Forgets) -> Result<(), String> {
    let scratch = Scratch::new();
    let root = scratch.path().join("engine");
    std::fs::create_dir(&root).unwrap();
    let values: Vec<Vec<u8>> = (0..4_u8).map(|number| vec![number + 1; 2000]).collect();
    std::fs::write(root.join("value"), &values[0]).unwrap();
    let recorder = Recorder::new(root).unwrap();
    // Where each value was acknowledged.
    let mut acknowledged = vec![0];
    for value in &values[1..] {
        replace(&recorder, value, forgets).unwrap();
        acknowledged.push(recorder.position());
    }
    for (number, image) in recorder.log().images(1, 10).enumerate() {
        let directory = scratch.path().join(format!("image-{number}"));
        image.materialise(&directory).unwrap();
        let value = read(&RealFiles::new(&directory), "value")
            .map_err(|error| format!("{}: {error}", image.describe()))?;
        let current = acknowledged
            .iter()
            .filter(|position| **position <= image.operations())
            .count()
            - 1;
        let allowed = values
            .iter()
            .skip(current)
            .take(2)
            .any(|allowed| *allowed == value);
        if !allowed {
            return Err(image.describe().to_owned());
        }
    }
    Ok(())
}

#[test]
fn an_engine_that_syncs_what_it_must_survives_every_power_cut() {
    survives(Forgets::Nothing).unwrap();
}

#[test]
fn an_engine_that_forgets_to_sync_the_file_is_found_out() {
    assert!(survives(Forgets::File).is_err());
}

#[test]
fn an_engine_that_forgets_to_sync_the_directory_is_found_out() {
    assert!(survives(Forgets::Directory).is_err());
}

#[test]
fn an_engine_that_writes_in_place_is_found_out() {
    assert!(survives(Forgets::Temporary).is_err());
}

#[test]
fn a_torn_write_is_torn_at_sectors() {
    let scratch = Scratch::new();
    let recorder = start(&scratch);
    let file = recorder.create_new(Path::new("a")).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.sync().unwrap();
    recorder.sync_dir(Path::new("")).unwrap();
    let synced = recorder.position();
    file.write_all_at(&[2; 3000], 300).unwrap();
    let mut states = BTreeSet::new();
    for image in recorder
        .log()
        .images(3, 600)
        .filter(|image| image.operations() > synced)
    {
        let content = image.listing()["a"].clone().unwrap();
        assert_eq!(content.len(), 4096);
        for (sector, bytes) in content.chunks(512).enumerate() {
            let (from, to) = (
                300_usize.clamp(sector * 512, sector * 512 + 512),
                3300_usize.clamp(sector * 512, sector * 512 + 512),
            );
            let written = &bytes[from - sector * 512..to - sector * 512];
            assert!(
                written.windows(2).all(|pair| pair[0] == pair[1]),
                "a sector is torn"
            );
            assert_eq!(
                bytes.iter().filter(|byte| **byte == 2).count() % written.len().max(1),
                0
            );
        }
        states.insert(content);
    }
    // Seven sectors are touched: both ends, all, none, and many of the mixtures.
    assert!(states.len() > 60, "{}", states.len());
}

#[test]
fn a_rename_between_directories_never_loses_the_file() {
    let scratch = Scratch::new();
    let recorder = start(&scratch);
    let file = recorder.create_new(Path::new("d/a")).unwrap();
    file.write_all_at(b"content", 0).unwrap();
    file.sync().unwrap();
    recorder.sync_dir(Path::new("d")).unwrap();
    let synced = recorder.position();
    recorder.rename(Path::new("d/a"), Path::new("e/a")).unwrap();
    recorder.sync_dir(Path::new("e")).unwrap();
    let renamed = recorder.position();
    let mut both = false;
    for image in recorder
        .log()
        .images(5, 20)
        .filter(|image| image.operations() >= synced)
    {
        let found = image.listing();
        let (old, new) = (found.contains_key("d/a"), found.contains_key("e/a"));
        assert!(old || new, "{}", image.describe());
        assert!(new || image.operations() < renamed);
        both |= old && new;
    }
    assert!(both);
}

#[test]
fn what_lies_in_a_directory_without_a_durable_name_is_lost_with_it() {
    let scratch = Scratch::new();
    let recorder = start(&scratch);
    recorder.create_dir(Path::new("new")).unwrap();
    let file = recorder.create_new(Path::new("new/a")).unwrap();
    file.sync().unwrap();
    recorder.sync_dir(Path::new("new")).unwrap();
    let before = recorder.position();
    recorder.sync_dir(Path::new("")).unwrap();
    let log = recorder.log();
    let lost = |at: usize| {
        log.images(1, 3)
            .any(|image| image.operations() == at && !image.listing().contains_key("new/a"))
    };
    assert!(lost(before));
    assert!(!lost(before + 1));
}

#[test]
fn recording_is_what_the_file_system_does_errors_included() {
    let scratch = Scratch::new();
    let recorder = start(&scratch);
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(
        kind(recorder.open(Path::new("a")).map(drop)),
        io::ErrorKind::NotFound
    );
    recorder.create_new(Path::new("a")).unwrap();
    assert_eq!(
        kind(recorder.create_new(Path::new("a")).map(drop)),
        io::ErrorKind::AlreadyExists
    );
    recorder.link(Path::new("a"), Path::new("b")).unwrap();
    assert_eq!(
        kind(recorder.link(Path::new("a"), Path::new("b"))),
        io::ErrorKind::AlreadyExists
    );
    recorder
        .open(Path::new("b"))
        .unwrap()
        .write_all_at(b"both", 0)
        .unwrap();
    assert_eq!(read(&recorder, "a").unwrap(), b"both");
    recorder.rename(Path::new("a"), Path::new("b")).unwrap();
    assert_eq!(recorder.list(Path::new("")).unwrap(), ["a", "b", "d", "e"]);
    recorder.create_new(Path::new("d/a")).unwrap();
    assert_eq!(
        kind(recorder.remove_dir(Path::new("d"))),
        io::ErrorKind::DirectoryNotEmpty
    );
    recorder.unlink(Path::new("d/a")).unwrap();
    recorder.remove_dir(Path::new("d")).unwrap();
    assert_eq!(
        kind(recorder.sync_dir(Path::new("d"))),
        io::ErrorKind::NotFound
    );
    // Failed calls are no operations.
    assert_eq!(recorder.position(), recorder.log().len());
    assert_eq!(recorder.log().len(), 6);
}

#[test]
fn each_planned_fault_is_met_and_an_engine_that_replaces_files_keeps_one_state() {
    for from_then_on in [false, true] {
        let mut got_through = false;
        for fail_at in 1..20 {
            let scratch = Scratch::new();
            let real = RealFiles::without_sync(scratch.path());
            std::fs::write(scratch.path().join("value"), b"before").unwrap();
            let faults = Faults {
                fail_at,
                from_then_on,
                kind: io::ErrorKind::StorageFull,
            };
            let failing = Failing::new(real.clone(), faults);
            let outcome = replace(&failing, b"after it", Forgets::Nothing);
            let state = read(&real, "value").unwrap();
            match outcome {
                Ok(()) => assert_eq!(state, b"after it"),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
                    assert!(state == b"before" || state == b"after it", "{state:?}");
                }
            }
            if failing.changes() < fail_at {
                got_through = true;
                break;
            }
        }
        assert!(got_through, "more changes than expected");
    }
}

#[test]
fn a_write_that_fails_has_written_its_first_half() {
    let scratch = Scratch::new();
    let real = RealFiles::without_sync(scratch.path());
    let faults = Faults {
        fail_at: 2,
        from_then_on: false,
        kind: io::ErrorKind::Other,
    };
    let failing = Failing::new(real.clone(), faults);
    let file = failing.create_new(Path::new("f")).unwrap();
    assert!(file.write_all_at(b"12345678", 0).is_err());
    assert_eq!(read(&real, "f").unwrap(), b"1234");
    file.write_all_at(b"12345678", 0).unwrap();
    assert_eq!(read(&real, "f").unwrap(), b"12345678");
}
