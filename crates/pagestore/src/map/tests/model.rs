//! Snapshots as plain maps from paths to pages, and how they change.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use neon_snapshot_format::pack::{FRAME_SIZE, PackId};
use neon_snapshot_format::{Owner, SnapshotPath};
use proptest::prelude::*;

use crate::crypt::DataKey;
use crate::map::{
    At, Attributes, Extent, FileKind, FileState, FrameRef, Group, KEEP_ALL, PackRef, PageDigest,
};

/// A page: nothing when it is zero.
pub(super) type Page = Option<(FrameRef, u32, PageDigest)>;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct File {
    pub(super) attributes: Attributes,
    pub(super) pages: Vec<Page>,
}

pub(super) type Model = BTreeMap<SnapshotPath, File>;

/// A change of a cluster. Files and pages are chosen by remainders.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Create {
        file: u16,
        pages: u16,
        zeros: bool,
    },
    Rewrite {
        file: u16,
        pages: u16,
    },
    Remove {
        file: u16,
    },
    RemoveBelow {
        file: u16,
    },
    Truncate {
        file: u16,
        to: u16,
    },
    Extend {
        file: u16,
        by: u16,
        zeros: bool,
    },
    Write {
        file: u16,
        pages: Vec<u16>,
        touch: bool,
    },
    WriteRange {
        file: u16,
        from: u16,
        count: u16,
    },
    Zero {
        file: u16,
        from: u16,
        count: u16,
    },
    Chmod {
        file: u16,
    },
    Mkdir {
        file: u16,
    },
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    let (any, flag) = (any::<u16>, any::<bool>);
    prop_oneof![
        4 => (any(), 0..300u16, flag())
            .prop_map(|(file, pages, zeros)| Change::Create { file, pages, zeros }),
        1 => (any(), 0..300u16).prop_map(|(file, pages)| Change::Rewrite { file, pages }),
        1 => any().prop_map(|file| Change::Remove { file }),
        1 => any().prop_map(|file| Change::RemoveBelow { file }),
        2 => (any(), any()).prop_map(|(file, to)| Change::Truncate { file, to }),
        2 => (any(), 1..200u16, flag())
            .prop_map(|(file, by, zeros)| Change::Extend { file, by, zeros }),
        6 => (any(), prop::collection::vec(any(), 1..30), flag())
            .prop_map(|(file, pages, touch)| Change::Write { file, pages, touch }),
        2 => (any(), any(), 1..100u16)
            .prop_map(|(file, from, count)| Change::WriteRange { file, from, count }),
        1 => (any(), any(), 1..100u16)
            .prop_map(|(file, from, count)| Change::Zero { file, from, count }),
        1 => any().prop_map(|file| Change::Chmod { file }),
        1 => any().prop_map(|file| Change::Mkdir { file }),
    ]
}

/// Paths that files may have: in nested directories, and with names that sort around the slash.
pub(super) fn paths() -> Vec<SnapshotPath> {
    let mut names = Vec::new();
    for directory in [
        "base/1",
        "base/1-",
        "base/10",
        "global",
        "pg_tblspc/16400/PG_15/5",
    ] {
        names.push(directory.to_owned());
        for name in ["1255", "1255.1", "1255_fsm", "2", "PG_VERSION", "x/y"] {
            names.push(format!("{directory}/{name}"));
        }
    }
    names.push("pg_tblspc/16400".to_owned());
    names.push("base".to_owned());
    names.push(String::new());
    names.push("zero".to_owned());
    let path = |name: String| SnapshotPath::new(name).unwrap();
    names.into_iter().map(path).collect()
}

/// What one file went through within one snapshot.
#[derive(Debug, Default)]
struct Touched {
    keep: Option<u32>,
    pages: BTreeSet<u32>,
    attributes: bool,
}

/// Makes snapshots one after the other.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) page_size: u32,
    pub(super) model: Model,
    paths: Vec<SnapshotPath>,
    frames: u64,
    packs: u8,
    digests: u64,
    time: i64,
}

impl Cluster {
    pub(super) fn new(page_size: u32) -> Self {
        Self {
            page_size,
            model: Model::new(),
            paths: paths(),
            frames: 0,
            packs: 0,
            digests: 0,
            time: 1_600_000_000,
        }
    }

    fn path(&self, number: u16) -> SnapshotPath {
        self.paths[usize::from(number) % self.paths.len()].clone()
    }

    /// A file that exists, if any does.
    fn existing(&self, number: u16) -> Option<SnapshotPath> {
        let files = self
            .model
            .iter()
            .filter(|(_, file)| matches!(file.attributes.kind, FileKind::File { .. }));
        let files: Vec<_> = files.map(|(path, _)| path.clone()).collect();
        files.get(usize::from(number) % files.len().max(1)).cloned()
    }

    /// Applies changes; returns what a snapshot would write.
    pub(super) fn snapshot(&mut self, changes: &[Change]) -> (Vec<Group>, Vec<Vec<PageDigest>>) {
        let before = self.model.clone();
        let mut touched: BTreeMap<SnapshotPath, Touched> = BTreeMap::new();
        for change in changes {
            self.apply(change, &mut touched);
        }
        self.packs += 1;
        self.frames = 0;
        let (mut groups, mut digests) = (Vec::new(), Vec::new());
        for (path, touched) in touched {
            let existed = before.contains_key(&path);
            let Some(file) = self.model.get(&path).cloned() else {
                if existed {
                    groups.push(Group {
                        path,
                        state: FileState::Removed,
                        extents: Vec::new(),
                    });
                    digests.push(Vec::new());
                }
                continue;
            };
            let keep = if existed {
                touched.keep.unwrap_or(KEEP_ALL)
            } else {
                0
            };
            let state = if touched.attributes || keep != KEEP_ALL {
                FileState::Present {
                    attributes: file.attributes.clone(),
                    limit: keep,
                }
            } else {
                FileState::Same
            };
            let page = |page: &u32| (*page as usize) < file.pages.len();
            let numbers: Vec<u32> = if existed && keep > 0 {
                touched.pages.iter().copied().filter(page).collect()
            } else {
                (0..file.pages.len() as u32).collect()
            };
            let (extents, of_file) = self.store(&path, &numbers);
            groups.push(Group {
                path,
                state,
                extents,
            });
            digests.push(of_file);
        }
        (groups, digests)
    }

    /// Puts pages into new frames.
    fn store(&mut self, path: &SnapshotPath, numbers: &[u32]) -> (Vec<Extent>, Vec<PageDigest>) {
        let per_frame = (FRAME_SIZE as u32 / self.page_size).min(1 + (self.digests % 16) as u32);
        let (mut extents, mut digests) = (Vec::new(), Vec::new());
        let mut used = per_frame;
        for number in numbers {
            let page = &mut self.model.get_mut(path).unwrap().pages[*number as usize];
            if page.is_none() {
                extents.push(Extent {
                    page: *number,
                    count: 1,
                    at: At::Zeros,
                });
                continue;
            }
            if used == per_frame {
                used = 0;
                self.frames += 1;
            }
            let frame = FrameRef {
                pack: PackRef {
                    id: PackId([self.packs; 16]),
                    key: DataKey([!self.packs; 32]),
                },
                frame: self.frames,
                offset: 64 + self.frames * 5000,
                stored_length: 5000 - (self.frames % 3 == 0) as u32,
                plain_length: self.page_size * per_frame,
                codec: 2,
                sealed: false,
                digest: [self.frames as u8; 16],
            };
            let offset = used * self.page_size;
            // Now and then a page is written as it was.
            let digest = match page {
                Some((.., digest)) if *digest != [0; 16] && self.digests % 5 == 0 => *digest,
                _ => u128::from(self.digests + 1).to_le_bytes(),
            };
            self.digests += 1;
            *page = Some((frame, offset, digest));
            used += 1;
            extents.push(Extent {
                page: *number,
                count: 1,
                at: At::Frame { frame, offset },
            });
            digests.push(digest);
        }
        (extents, digests)
    }

    fn attributes(&mut self, kind: FileKind) -> Attributes {
        self.time += 7;
        Attributes {
            kind,
            mode: 0o600 + (self.time % 3) as u32,
            owner: (self.time % 4 != 0).then_some(Owner {
                uid: 26,
                gid: self.time as u32 % 2,
            }),
            modified: if self.time % 11 == 0 {
                -self.time
            } else {
                self.time
            },
        }
    }

    fn apply(&mut self, change: &Change, touched: &mut BTreeMap<SnapshotPath, Touched>) {
        // A page that is to be stored; it gets its place in the end.
        let fresh: Page = Some((
            FrameRef {
                pack: PackRef {
                    id: PackId([0xFF; 16]),
                    key: DataKey([0; 32]),
                },
                frame: 0,
                offset: 0,
                stored_length: 0,
                plain_length: 0,
                codec: 0,
                sealed: false,
                digest: [0; 16],
            },
            0,
            [0; 16],
        ));
        match change {
            Change::Create { file, pages, zeros } => {
                let path = self.path(*file);
                if self.model.contains_key(&path) {
                    return;
                }
                let size = u64::from(*pages) * u64::from(self.page_size);
                // The last page is short now and then.
                let size = size - (size > 0 && file % 2 == 0) as u64;
                let attributes = self.attributes(FileKind::File { size });
                let page = if *zeros { None } else { fresh };
                let pages = vec![page; usize::from(*pages)];
                touched.entry(path.clone()).or_default().keep = Some(0);
                self.model.insert(path, File { attributes, pages });
            }
            Change::Rewrite { file, pages } => {
                let Some(path) = self.existing(*file) else {
                    return;
                };
                let size = u64::from(*pages) * u64::from(self.page_size);
                let attributes = self.attributes(FileKind::File { size });
                let pages = vec![fresh; usize::from(*pages)];
                touched.entry(path.clone()).or_default().keep = Some(0);
                self.model.insert(path, File { attributes, pages });
            }
            Change::Remove { file } => {
                let Some(path) = self.existing(*file) else {
                    return;
                };
                self.remove(&path, touched);
            }
            Change::RemoveBelow { file } => {
                let prefix = self.path(*file);
                let paths: Vec<_> = self.model.keys().cloned().collect();
                for path in paths {
                    if path.as_bytes().starts_with(prefix.as_bytes()) && !prefix.is_root() {
                        self.remove(&path, touched);
                    }
                }
            }
            Change::Truncate { file, to } => {
                self.edit(*file, touched, |pages, entry| {
                    let to = usize::from(*to) % (pages.len() + 1);
                    pages.truncate(to);
                    entry.keep = Some(entry.keep.unwrap_or(KEEP_ALL).min(to as u32));
                    entry.attributes = true;
                });
            }
            Change::Extend { file, by, zeros } => {
                self.edit(*file, touched, |pages, entry| {
                    let page = if *zeros { None } else { fresh };
                    let first = pages.len() as u32;
                    entry.pages.extend(first..first + u32::from(*by));
                    pages.extend(vec![page; usize::from(*by)]);
                    entry.attributes = true;
                });
            }
            Change::Write {
                file,
                pages: numbers,
                touch,
            } => {
                self.edit(*file, touched, |pages, entry| {
                    for number in numbers.iter().take(pages.len()) {
                        let number = usize::from(*number) % pages.len();
                        write(pages, entry, number..number + 1, fresh);
                    }
                    entry.attributes |= *touch;
                });
            }
            Change::WriteRange { file, from, count } => {
                self.edit(*file, touched, |pages, entry| {
                    let from = usize::from(*from) % (pages.len() + 1);
                    let end = (from + usize::from(*count)).min(pages.len());
                    write(pages, entry, from..end, fresh);
                });
            }
            Change::Zero { file, from, count } => {
                self.edit(*file, touched, |pages, entry| {
                    let from = usize::from(*from) % (pages.len() + 1);
                    let end = (from + usize::from(*count)).min(pages.len());
                    write(pages, entry, from..end, None);
                });
            }
            Change::Chmod { file } => {
                let paths: Vec<_> = self.model.keys().cloned().collect();
                let Some(path) = paths.get(usize::from(*file) % paths.len().max(1)) else {
                    return;
                };
                touched.entry(path.clone()).or_default().attributes = true;
                self.model.get_mut(path).unwrap().attributes.mode ^= 0o040;
            }
            Change::Mkdir { file } => {
                let path = self.path(*file);
                let kind = match path.as_bytes() {
                    b"pg_tblspc/16400" => FileKind::Tablespace {
                        oid: 16400,
                        location: (file % 2 == 0).then(|| b"/srv/x".to_vec()),
                    },
                    _ => FileKind::Directory,
                };
                let attributes = self.attributes(kind);
                let entry = touched.entry(path.clone()).or_default();
                entry.keep = Some(0);
                self.model.insert(
                    path,
                    File {
                        attributes,
                        pages: Vec::new(),
                    },
                );
            }
        }
    }

    fn remove(&mut self, path: &SnapshotPath, touched: &mut BTreeMap<SnapshotPath, Touched>) {
        touched.entry(path.clone()).or_default().keep = Some(0);
        self.model.remove(path);
    }

    fn edit(
        &mut self,
        file: u16,
        touched: &mut BTreeMap<SnapshotPath, Touched>,
        edit: impl FnOnce(&mut Vec<Page>, &mut Touched),
    ) {
        let Some(path) = self.existing(file) else {
            return;
        };
        let entry = touched.entry(path.clone()).or_default();
        let page_size = u64::from(self.page_size);
        let file = self.model.get_mut(&path).unwrap();
        let before = file.pages.len();
        edit(&mut file.pages, entry);
        if file.pages.len() != before {
            let size = file.pages.len() as u64 * page_size;
            file.attributes.kind = FileKind::File { size };
        }
        if entry.attributes {
            self.time += 1;
            file.attributes.modified = self.time;
        }
    }
}

fn write(pages: &mut [Page], entry: &mut Touched, range: Range<usize>, page: Page) {
    for number in range {
        // The digest stays to be found by who writes the same again.
        pages[number] = match (&pages[number], page) {
            (Some((.., digest)), Some((frame, offset, _))) => Some((frame, offset, *digest)),
            _ => page,
        };
        entry.pages.insert(number as u32);
    }
}
