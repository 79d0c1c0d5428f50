//! A directory tree by inodes, and the operations that change it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Bytes that a disk writes at once: writes are torn at multiples of this.
pub const SECTOR: u64 = 512;

/// What a name leads to; survives renames.
pub(super) type Inode = u64;

/// The directory everything is below.
pub(super) const ROOT: Inode = 0;

/// An operation as it was done. Names are resolved to inodes.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Create {
        dir: Inode,
        name: String,
        inode: Inode,
        is_dir: bool,
    },
    Write {
        inode: Inode,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    SetLen {
        inode: Inode,
        len: u64,
    },
    Rename {
        from: (Inode, String),
        to: (Inode, String),
        inode: Inode,
    },
    Link {
        dir: Inode,
        name: String,
        inode: Inode,
    },
    Unlink {
        dir: Inode,
        name: String,
    },
    SyncFile {
        inode: Inode,
    },
    SyncDir {
        dir: Inode,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Node {
    File(Arc<Vec<u8>>),
    Dir(BTreeMap<String, Inode>),
}

/// Every inode there ever was, reachable or not.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    nodes: BTreeMap<Inode, Node>,
}

impl Tree {
    /// What is below `root` now.
    pub(super) fn load(root: &Path) -> io::Result<Self> {
        let mut tree = Self {
            nodes: BTreeMap::from([(ROOT, Node::Dir(BTreeMap::new()))]),
        };
        tree.load_dir(root, ROOT)?;
        Ok(tree)
    }

    fn load_dir(&mut self, path: &Path, dir: Inode) -> io::Result<()> {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry
                .file_name()
                .into_string()
                .map_err(|_| io::Error::other("a name is not UTF-8"))?;
            let inode = self.next();
            if entry.file_type()?.is_dir() {
                self.nodes.insert(inode, Node::Dir(BTreeMap::new()));
                self.load_dir(&entry.path(), inode)?;
            } else {
                self.nodes
                    .insert(inode, Node::File(Arc::new(fs::read(entry.path())?)));
            }
            self.set_entry(dir, &name, Some(inode));
        }
        Ok(())
    }

    /// The number of the inode to be made next.
    pub(super) fn next(&self) -> Inode {
        self.nodes.keys().next_back().map_or(0, |last| last + 1)
    }

    /// Makes an inode that no name leads to.
    pub(super) fn make(&mut self, inode: Inode, is_dir: bool) {
        let node = if is_dir {
            Node::Dir(BTreeMap::new())
        } else {
            Node::File(Arc::default())
        };
        self.nodes.insert(inode, node);
    }

    pub(super) fn node(&self, inode: Inode) -> &Node {
        &self.nodes[&inode]
    }

    pub(super) fn is_dir(&self, inode: Inode) -> bool {
        matches!(self.node(inode), Node::Dir(_))
    }

    pub(super) fn entry(&self, dir: Inode, name: &str) -> Option<Inode> {
        match self.node(dir) {
            Node::Dir(entries) => entries.get(name).copied(),
            Node::File(_) => None,
        }
    }

    pub(super) fn set_entry(&mut self, dir: Inode, name: &str, to: Option<Inode>) {
        if let Some(Node::Dir(entries)) = self.nodes.get_mut(&dir) {
            match to {
                Some(inode) => entries.insert(name.to_owned(), inode),
                None => entries.remove(name),
            };
        }
    }

    /// The inode at a path, whose parts are plain names.
    pub(super) fn resolve(&self, path: &Path) -> Option<Inode> {
        path.iter()
            .try_fold(ROOT, |dir, name| self.entry(dir, name.to_str()?))
    }

    pub(super) fn set_len(&mut self, inode: Inode, len: u64) {
        if let Some(Node::File(content)) = self.nodes.get_mut(&inode) {
            Arc::make_mut(content).resize(to_usize(len), 0);
        }
    }

    /// Writes the sectors of `bytes` at `offset` that `keep` wants, and makes the file at least as long as
    /// the whole write if `full_length`, else as long as what was kept.
    pub(super) fn write(
        &mut self,
        inode: Inode,
        offset: u64,
        bytes: &[u8],
        mut keep: impl FnMut() -> bool,
        full_length: bool,
    ) {
        let Some(Node::File(content)) = self.nodes.get_mut(&inode) else {
            return;
        };
        let content = Arc::make_mut(content);
        let end = offset + bytes.len() as u64;
        let mut start = offset;
        while start < end {
            let stop = end.min((start / SECTOR + 1) * SECTOR);
            if keep() {
                if content.len() < to_usize(stop) {
                    content.resize(to_usize(stop), 0);
                }
                content[to_usize(start)..to_usize(stop)]
                    .copy_from_slice(&bytes[to_usize(start - offset)..to_usize(stop - offset)]);
            }
            start = stop;
        }
        if full_length && !bytes.is_empty() && content.len() < to_usize(end) {
            content.resize(to_usize(end), 0);
        }
    }

    /// Every reachable path with its content; directories have none. Sorted.
    pub(super) fn listing(&self) -> BTreeMap<String, Option<Arc<Vec<u8>>>> {
        let mut listing = BTreeMap::new();
        self.walk(|path, _, node| {
            let content = match node {
                Node::File(content) => Some(Arc::clone(content)),
                Node::Dir(_) => None,
            };
            listing.insert(path.to_owned(), content);
        });
        listing
    }

    /// Shows every reachable path below the root, directories before what is in them, and each
    /// directory under one path only.
    pub(super) fn walk<'a>(&'a self, mut visit: impl FnMut(&str, Inode, &'a Node)) {
        let mut seen = std::collections::BTreeSet::from([ROOT]);
        let mut left = vec![(String::new(), ROOT)];
        while let Some((path, dir)) = left.pop() {
            let Node::Dir(entries) = self.node(dir) else {
                continue;
            };
            for (name, inode) in entries {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}/{name}")
                };
                let node = self.node(*inode);
                if matches!(node, Node::Dir(_)) {
                    if !seen.insert(*inode) {
                        continue;
                    }
                    left.push((path.clone(), *inode));
                }
                visit(&path, *inode, node);
            }
        }
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("files of tests fit into memory")
}
