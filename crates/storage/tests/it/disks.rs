//! Disks for tests: one that records every step, one that fails a step, and what a loss of power
//! may leave of a recording.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use neon_storage::{Disk, Place, RealDisk};

/// One change of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    MakeDir(PathBuf),
    SyncDir(PathBuf),
}

impl Step {
    pub fn is_sync(&self) -> bool {
        matches!(self, Self::SyncFile(_) | Self::SyncDir(_))
    }
}

/// Does every step on the real disk, records it, and fails the one it is told to.
#[derive(Debug, Clone)]
pub struct Recorder {
    steps: Arc<Mutex<Vec<Step>>>,
    count: Arc<AtomicU64>,
    failed: Arc<Mutex<Option<Step>>>,
    fail: u64,
    /// While set, no directory can be opened: too many open files.
    pub exhausted: Arc<AtomicBool>,
}

impl Recorder {
    pub fn new() -> Self {
        Self::failing(u64::MAX)
    }

    pub fn failing(step: u64) -> Self {
        Self {
            steps: Arc::default(),
            count: Arc::default(),
            failed: Arc::default(),
            fail: step,
            exhausted: Arc::default(),
        }
    }

    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    /// The step that was made to fail, once it was reached.
    pub fn failed(&self) -> Option<Step> {
        self.failed.lock().unwrap().clone()
    }

    pub fn len(&self) -> usize {
        self.steps.lock().unwrap().len()
    }

    fn step<T>(&self, step: Step, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.count.fetch_add(1, Ordering::SeqCst) == self.fail {
            *self.failed.lock().unwrap() = Some(step);
            return Err(io::Error::from_raw_os_error(5));
        }
        let done = work()?;
        self.steps.lock().unwrap().push(step);
        Ok(done)
    }
}

impl Disk for Recorder {
    fn create(&self, place: Place<'_>, mode: u32) -> io::Result<File> {
        self.step(Step::Create(place.path().into()), || {
            RealDisk.create(place, mode)
        })
    }
    fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step(Step::Write(path.into(), bytes.into()), || {
            RealDisk.write(file, path, bytes)
        })
    }
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        self.step(Step::SyncFile(path.into()), || {
            RealDisk.sync_file(file, path)
        })
    }
    fn link(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        self.step(Step::Link(from.path().into(), to.path().into()), || {
            RealDisk.link(from, to)
        })
    }
    fn rename(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        self.step(Step::Rename(from.path().into(), to.path().into()), || {
            RealDisk.rename(from, to)
        })
    }
    fn unlink(&self, place: Place<'_>) -> io::Result<()> {
        self.step(Step::Unlink(place.path().into()), || RealDisk.unlink(place))
    }
    fn make_dir(&self, place: Place<'_>, mode: u32) -> io::Result<()> {
        self.step(Step::MakeDir(place.path().into()), || {
            RealDisk.make_dir(place, mode)
        })
    }
    fn open_dir(&self, root: &Path, below: &Path) -> io::Result<File> {
        if self.exhausted.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(24));
        }
        RealDisk.open_dir(root, below)
    }
    fn sync_dir(&self, directory: &File, path: &Path) -> io::Result<()> {
        self.step(Step::SyncDir(path.into()), || {
            RealDisk.sync_dir(directory, path)
        })
    }
}

/// Fails to sync the content of one byte, and syncs the directory `slow` when it is told to.
#[derive(Debug)]
pub struct Halting {
    pub reached: std::sync::mpsc::Sender<()>,
    pub go: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Disk for Halting {
    fn create(&self, place: Place<'_>, mode: u32) -> io::Result<File> {
        RealDisk.create(place, mode)
    }
    fn write(&self, file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        RealDisk.write(file, path, bytes)
    }
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        if file.metadata()?.len() == 1 {
            return Err(io::Error::from_raw_os_error(5));
        }
        RealDisk.sync_file(file, path)
    }
    fn link(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        RealDisk.link(from, to)
    }
    fn rename(&self, from: Place<'_>, to: Place<'_>) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn unlink(&self, place: Place<'_>) -> io::Result<()> {
        RealDisk.unlink(place)
    }
    fn make_dir(&self, place: Place<'_>, mode: u32) -> io::Result<()> {
        RealDisk.make_dir(place, mode)
    }
    fn open_dir(&self, root: &Path, below: &Path) -> io::Result<File> {
        RealDisk.open_dir(root, below)
    }
    fn sync_dir(&self, directory: &File, path: &Path) -> io::Result<()> {
        if path.ends_with("slow") {
            self.reached.send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap();
        }
        RealDisk.sync_dir(directory, path)
    }
}

/// What happens to everything that was not synced when the power goes.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// All of it is lost.
    Lost,
    /// All of it is kept.
    Kept,
    /// Names are kept, the bytes below them not: what a file system without order does.
    NamesWithoutBytes,
    /// Each change and each file by chance.
    Chance(u64),
}

#[derive(Debug, Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

/// A change of names, atomic by itself.
#[derive(Debug, Clone)]
struct Change {
    dir: PathBuf,
    remove: Option<PathBuf>,
    add: Option<(PathBuf, Entry)>,
}

#[derive(Debug, Clone, Copy)]
enum Entry {
    File(usize),
    Dir,
}

/// Writes to `image` what may be on the disk below `root` when the power goes after these steps.
pub fn power_loss(steps: &[Step], root: &Path, fate: Fate, image: &Path) {
    write_image(&remains(steps, fate), root, image);
}

/// What is on a disk, in the order of paths: the bytes of files, nothing for directories.
pub type Remains = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// What may be on the disk when the power goes after these steps.
pub fn remains(steps: &[Step], fate: Fate) -> Remains {
    let mut inodes: Vec<Inode> = Vec::new();
    let mut now: HashMap<PathBuf, usize> = HashMap::new();
    let mut durable: BTreeMap<PathBuf, Entry> = BTreeMap::new();
    let mut pending: Vec<Change> = Vec::new();
    let parent = |path: &Path| path.parent().unwrap().to_owned();
    let apply = |durable: &mut BTreeMap<PathBuf, Entry>, change: Change| {
        if let Some(path) = change.remove {
            durable.remove(&path);
        }
        if let Some((path, entry)) = change.add {
            durable.insert(path, entry);
        }
    };
    for step in steps {
        match step {
            Step::Create(path) => {
                inodes.push(Inode::default());
                now.insert(path.clone(), inodes.len() - 1);
                let add = Some((path.clone(), Entry::File(inodes.len() - 1)));
                pending.push(Change {
                    dir: parent(path),
                    remove: None,
                    add,
                });
            }
            Step::Write(path, bytes) => inodes[now[path]].bytes.extend_from_slice(bytes),
            Step::SyncFile(path) => {
                let inode = &mut inodes[now[path]];
                inode.synced = inode.bytes.clone();
            }
            Step::Link(from, to) => {
                let inode = now[from];
                now.insert(to.clone(), inode);
                let add = Some((to.clone(), Entry::File(inode)));
                pending.push(Change {
                    dir: parent(to),
                    remove: None,
                    add,
                });
            }
            Step::Rename(from, to) => {
                let inode = now.remove(from).unwrap();
                now.insert(to.clone(), inode);
                let add = Some((to.clone(), Entry::File(inode)));
                pending.push(Change {
                    dir: parent(to),
                    remove: Some(from.clone()),
                    add,
                });
            }
            Step::Unlink(path) => {
                now.remove(path);
                pending.push(Change {
                    dir: parent(path),
                    remove: Some(path.clone()),
                    add: None,
                });
            }
            Step::MakeDir(path) => {
                let add = Some((path.clone(), Entry::Dir));
                pending.push(Change {
                    dir: parent(path),
                    remove: None,
                    add,
                });
            }
            Step::SyncDir(dir) => {
                let (synced, rest) = pending.into_iter().partition(|change| change.dir == *dir);
                pending = rest;
                let synced: Vec<Change> = synced;
                synced
                    .into_iter()
                    .for_each(|change| apply(&mut durable, change));
            }
        }
    }
    let mut chance = match fate {
        Fate::Chance(seed) => fastrand::Rng::with_seed(seed),
        _ => fastrand::Rng::with_seed(0),
    };
    for change in pending {
        let kept = match fate {
            Fate::Lost => false,
            Fate::Kept | Fate::NamesWithoutBytes => true,
            Fate::Chance(_) => chance.bool(),
        };
        if kept {
            apply(&mut durable, change);
        }
    }
    let contents: Vec<Vec<u8>> = inodes
        .into_iter()
        .map(|inode| match fate {
            Fate::Kept => inode.bytes,
            Fate::Lost | Fate::NamesWithoutBytes => inode.synced,
            Fate::Chance(_) if inode.synced.len() == inode.bytes.len() => inode.synced,
            Fate::Chance(_) => match chance.u8(0..3) {
                0 => inode.synced,
                1 => vec![0; inode.bytes.len()],
                _ => inode.bytes[..chance.usize(0..=inode.bytes.len())].to_vec(),
            },
        })
        .collect();
    let content = |entry| match entry {
        Entry::Dir => None,
        Entry::File(inode) => Some(contents[inode].clone()),
    };
    durable
        .into_iter()
        .map(|(path, entry)| (path, content(entry)))
        .collect()
}

/// Makes files and directories below `image` of those below `root`.
pub fn write_image(remains: &Remains, root: &Path, image: &Path) {
    for (path, content) in remains {
        let to = image.join(path.strip_prefix(root).unwrap_or(path));
        // A directory that was lost takes everything below it along.
        match content {
            None => {
                let _below_nothing = std::fs::create_dir(to);
            }
            Some(content) => {
                let _below_nothing = std::fs::write(to, content);
            }
        }
    }
}
