//! Listing a tree in the byte order of keys, in bounded memory however large a directory is.
//!
//! A directory comes unordered. Each pass over it keeps the smallest names after the last one
//! given out, so a directory of a million names is read some sixteen times and never held whole.
//! A directory sorts as its name with a slash, which is where its keys belong: `a-b`, `a/c`, `a0`.

use std::collections::{BinaryHeap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::beneath::{self, kind};
use super::version;
use crate::error::{Operation, Result, from_io};
use crate::key::{Key, RESERVED};
use crate::object::ObjectMeta;
use crate::options::ListOptions;

/// Names held per directory on the path.
const BATCH: usize = 64 * 1024;

/// A depth-first walk, resumable between chunks.
#[derive(Debug)]
pub(super) struct Walk {
    root: PathBuf,
    options: ListOptions,
    stack: Vec<Directory>,
}

#[derive(Debug)]
struct Directory {
    /// What its keys begin with: empty or ending in a slash.
    prefix: String,
    /// The next names; directories end in a slash.
    names: VecDeque<String>,
    /// Where the next pass begins, if one is needed.
    resume: Option<String>,
    /// Open once it was read.
    handle: Option<File>,
}

impl Walk {
    pub(super) fn new(root: PathBuf, options: ListOptions) -> Self {
        let top = Directory {
            prefix: String::new(),
            names: VecDeque::new(),
            resume: Some(String::new()),
            handle: None,
        };
        Self {
            root,
            options,
            stack: vec![top],
        }
    }

    /// Up to `count` objects; none at the end.
    pub(super) fn next_chunk(&mut self, count: usize) -> Result<Vec<ObjectMeta>> {
        let mut found = Vec::new();
        while found.len() < count {
            let Some(top) = self.stack.last_mut() else {
                break;
            };
            let Some(name) = top.names.pop_front() else {
                match top.resume.take() {
                    None => {
                        self.stack.pop();
                    }
                    Some(after) => {
                        let subject = top.prefix.clone();
                        scan(&self.root, top, &after, &self.options)
                            .map_err(|error| from_io(Operation::List, &subject, error))?;
                    }
                }
                continue;
            };
            let path = format!("{}{name}", top.prefix);
            if path.ends_with('/') {
                self.stack.push(Directory {
                    prefix: path,
                    names: VecDeque::new(),
                    resume: Some(String::new()),
                    handle: None,
                });
                continue;
            }
            // Names that are no keys were put there by somebody else.
            let (Ok(key), Some(handle)) = (Key::new(path), &top.handle) else {
                continue;
            };
            match beneath::stat(handle, Path::new(&name)) {
                Ok(stat) if kind(&stat) == FileType::RegularFile => {
                    found.push(version::object(key, &stat));
                }
                // It is no longer what it was when its name was read.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(from_io(Operation::List, key.as_str(), error)),
            }
        }
        Ok(found)
    }
}

/// One pass: the smallest [`BATCH`] names after `after` that the listing may want.
fn scan(
    root: &Path,
    directory: &mut Directory,
    after: &str,
    options: &ListOptions,
) -> io::Result<()> {
    let below = Path::new(directory.prefix.trim_end_matches('/'));
    let opened = beneath::root(root).and_then(|root| beneath::directory(&root, below));
    let handle = match opened {
        Ok(handle) => handle,
        Err(error) if beneath::nothing_there(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut smallest = Smallest::new(BATCH);
    for entry in rustix::fs::Dir::read_from(&handle)? {
        let entry = entry?;
        let Ok(mut name) = String::from_utf8(entry.file_name().to_bytes().to_vec()) else {
            continue;
        };
        if name == RESERVED || name == "." || name == ".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Not every file system tells with the name.
            FileType::Unknown => match beneath::stat(&handle, Path::new(&name)) {
                Ok(stat) => kind(&stat),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            },
            known => known,
        };
        match kind {
            FileType::Directory => name.push('/'),
            FileType::RegularFile => {}
            _ => continue,
        }
        if name.as_str() > after && wanted(&directory.prefix, &name, options) {
            smallest.offer(name);
        }
    }
    let (names, more) = smallest.into_sorted();
    directory.resume = if more { names.back().cloned() } else { None };
    directory.names = names;
    directory.handle = Some(handle);
    Ok(())
}

/// Whether an entry is or may hold a key of the listing.
pub(crate) fn wanted(parent: &str, name: &str, options: &ListOptions) -> bool {
    let path = format!("{parent}{name}");
    if !path.ends_with('/') {
        return options.admits(&path);
    }
    let prefix = path.starts_with(&options.prefix) || options.prefix.starts_with(&path);
    // Every key below `path` begins with it, so it is after the offset unless the offset is after
    // `path` without beginning with it.
    let after = options
        .after
        .as_deref()
        .is_none_or(|after| after < path.as_str() || after.starts_with(&path));
    prefix && after
}

/// Keeps the smallest of many names.
pub(crate) struct Smallest<T> {
    limit: usize,
    names: BinaryHeap<T>,
    dropped: bool,
}

impl<T: Ord> Smallest<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            names: BinaryHeap::new(),
            dropped: false,
        }
    }

    pub(crate) fn offer(&mut self, name: T) {
        if self.names.len() < self.limit {
            self.names.push(name);
        } else {
            self.dropped = true;
            if let Some(mut largest) = self.names.peek_mut()
                && name < *largest
            {
                *largest = name;
            }
        }
    }

    /// The names in order, and whether there were more.
    pub(crate) fn into_sorted(self) -> (VecDeque<T>, bool) {
        (self.names.into_sorted_vec().into(), self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn passes_of_any_size_give_every_name_once_in_order(
            names in proptest::collection::btree_set("[a-c]{1,4}", 0..60),
            limit in 1usize..10,
        ) {
            let mut listed: Vec<String> = Vec::new();
            loop {
                let mut smallest = Smallest::new(limit);
                let last = listed.last().cloned().unwrap_or_default();
                names.iter().rev().filter(|n| **n > last).for_each(|n| smallest.offer(n.clone()));
                let (batch, more) = smallest.into_sorted();
                listed.extend(batch);
                if !more { break }
            }
            prop_assert_eq!(listed, names.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn no_directory_that_holds_a_wanted_key_is_skipped(
            key in "[ab]{1,2}(/[ab]{1,2}){1,3}",
            prefix in "[ab]{0,2}(/[ab]{0,2}){0,2}",
            after in proptest::option::of("[ab]{0,2}(/[ab]{0,2}){0,2}"),
        ) {
            let options = ListOptions { prefix, after };
            if options.admits(&key) {
                for (at, _) in key.match_indices('/') {
                    prop_assert!(wanted("", &key[..=at], &options));
                }
            }
        }
    }
}
