//! Which files of a snapshot are looked at, with the digests of their pages or without.

use std::collections::VecDeque;

use neon_snapshot_format::SnapshotPath;

use crate::bridge::Bridge;
use crate::error::{Error, ErrorKind, Result};
use crate::map::{FileKind, MappedFile, View, Walk};
use crate::read::MapReader;

/// Passing over the digests of so many bytes of pages costs no more than looking for a place behind them.
const NEAR: u64 = 64 << 20;

/// Files of a snapshot, in the order of their paths.
#[derive(Debug)]
pub(super) enum Files {
    /// All of them.
    Walked(Walk),
    /// Some, with digests; those of the others are not read where they are many.
    Picked {
        view: View,
        picked: Picked,
        walk: Option<Walk>,
    },
}

/// Files that were chosen.
#[derive(Debug, Default)]
pub(super) struct Picked {
    /// Each with the bytes of files between it and the one before.
    paths: VecDeque<(SnapshotPath, u64)>,
    passed: u64,
}

impl Picked {
    /// The next file, which is not chosen.
    pub(super) fn pass(&mut self, file: &MappedFile) {
        if let FileKind::File { size } = file.attributes.kind {
            self.passed = self.passed.saturating_add(size);
        }
    }

    /// The next file, which is.
    pub(super) fn pick(&mut self, file: &MappedFile) {
        let passed = std::mem::take(&mut self.passed);
        self.paths.push_back((file.path.clone(), passed));
    }

    pub(super) fn into_files(self, view: &View) -> Files {
        Files::Picked {
            view: view.clone(),
            picked: self,
            walk: None,
        }
    }
}

impl Files {
    /// All, with the digests of their pages.
    pub(super) fn all(view: &View) -> Self {
        Self::Walked(Walk::new(view, true))
    }

    /// All, without digests.
    pub(super) fn named(view: &View) -> Self {
        Self::Walked(Walk::new(view, false))
    }

    /// The next file; nothing after the last.
    pub(super) fn next(&mut self, maps: &MapReader, bridge: &Bridge) -> Result<Option<MappedFile>> {
        let (view, picked, walk) = match self {
            Self::Walked(walk) => return maps.wait(bridge, walk),
            Self::Picked { view, picked, walk } => (view, picked, walk),
        };
        let Some((path, passed)) = picked.paths.pop_front() else {
            return Ok(None);
        };
        if passed > NEAR {
            *walk = None;
        }
        let walk = walk.get_or_insert_with(|| Walk::new(view, true).from(&path));
        while let Some(file) = maps.wait(bridge, walk)? {
            if file.path == path {
                return Ok(Some(file));
            }
            if file.path > path {
                break;
            }
        }
        Err(Error::new(
            ErrorKind::Inconsistent,
            path.to_string(),
            "was in the snapshot and is not any more",
        ))
    }
}
