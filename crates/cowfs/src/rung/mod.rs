//! The rungs of the ladder. Each makes one part of a clone under a temporary name; what is common to all, such as
//! links, owners of folders, flushing and the final name, is not theirs.

mod copy;
mod reflink;
mod subvolume;

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;

use crate::error::Result;
use crate::method::Method;
use crate::options::{CloneOptions, Watch};
use crate::scan::Tree;

/// One part to be made.
pub(crate) struct Job<'a> {
    pub(crate) tree: &'a Tree,
    /// Where, and under which name.
    pub(crate) parent: &'a OwnedFd,
    pub(crate) name: &'a OsStr,
    /// Whether it stands by itself and not inside another part.
    pub(crate) own: bool,
    pub(crate) options: &'a CloneOptions,
    pub(crate) watch: &'a Watch<'a>,
}

/// What was made.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) fd: OwnedFd,
    /// Its own list, where it is not that of the source.
    pub(crate) listed: Option<Tree>,
    pub(crate) shared: u64,
}

/// One way to clone a part.
pub(crate) trait Rung: fmt::Debug + Sync {
    /// Makes the part.
    ///
    /// # Errors
    /// `Unsupported` when another rung may still do. What stands under the name is the caller's to remove.
    fn make(&self, job: &Job<'_>) -> Result<Filled>;
}

pub(crate) fn of(method: Method) -> &'static dyn Rung {
    match method {
        Method::Subvolume => &subvolume::Subvolume,
        Method::Reflink => &reflink::Reflink,
        Method::Copy => &copy::Copy,
    }
}
