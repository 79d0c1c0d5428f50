#![doc = include_str!("../README.md")]

mod clone;
mod error;
mod extents;
mod fill;
mod ioctl;
mod method;
mod options;
mod place;
mod probe;
mod remove;
mod rung;
mod scan;
mod temporary;
mod threads;

pub use clone::{Cloned, ClonedPart, clone_tree};
pub use error::{Error, ErrorKind, Result};
pub use extents::{Extents, extents};
pub use method::{Choice, Method, NotUsed, Reason, Wanted};
pub use options::{CloneOptions, Event, Links};
pub use probe::{Probe, probe};
pub use remove::{remove_tree, sweep, sweep_removals};
pub use scan::Part;
pub use temporary::{Made, create_dir};
