//! What copying a data directory came to.

use std::collections::BTreeSet;

use neon_pg_layout::{ControlFile, Oid};

use crate::stream::{BadPage, End, Owner};

/// What was copied. The end is still to be sent.
#[derive(Debug)]
#[must_use = "a snapshot is complete only when `finish` has sent its end"]
pub struct Copied {
    pub(crate) end: End,
    /// Files of which something was sent.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Pages of relations read. Pages that were read again because they looked torn count once.
    pub pages: u64,
    /// Files that were gone when their turn came.
    pub vanished: u64,
    /// Files that had become shorter, whose rest was sent as zeros.
    pub shrunk: u64,
    /// Pages that looked damaged and were taken because the log holds them.
    pub settled_by_log: u64,
    pub(crate) owner: Option<Owner>,
    pub(crate) control: ControlFile,
    /// Those that were sent, in place ones among them.
    pub(crate) tablespaces: BTreeSet<Oid>,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) pages: u64,
    pub(crate) vanished: u64,
    pub(crate) shrunk: u64,
    pub(crate) settled_by_log: u64,
    pub(crate) bad_pages: Vec<BadPage>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.pages += other.pages;
        self.vanished += other.vanished;
        self.shrunk += other.shrunk;
        self.settled_by_log += other.settled_by_log;
        self.bad_pages.extend(other.bad_pages);
    }
}
