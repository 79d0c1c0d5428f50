//! What a file-based engine finds on disk after a power cut.
//!
//! An engine's file layer is pointed at [`Files`]. [`RealFiles`] is the file system itself.
//! [`Recorder`] is too, and keeps a log of every change. [`Log::images`] goes through every point at
//! which the power could have been cut, and for each through several states that the disk could then be
//! in. [`CrashImage::materialise`] makes one of them a directory on which the engine is opened again.
//!
//! # Rules
//!
//! What POSIX promises and common file systems keep, and no more:
//!
//! 1. Written bytes and lengths of a file are durable after [`OpenFile::sync`] of that file, through
//!    whichever handle or name. Until then each write and each change of length is, by itself, on disk
//!    or not: a later one may be there and an earlier one not. A hole that is left reads as zeros.
//! 2. A write that is not synced may be torn at multiples of 512 bytes of the file: any of its sectors
//!    are there, the others hold what they held before. The file may have its new length or not.
//! 3. Names are durable after [`Files::sync_dir`] of the directory that holds them. Syncing a file
//!    makes none of its names durable. Until then each creation, link, removal and rename is, by itself,
//!    on disk or not.
//! 4. A rename within a directory is atomic: both names have changed or neither. Between directories the
//!    new name is there or not by the sync of the directory it is in; the old name may stay until the
//!    other directory is synced too, but is never gone before the new one is there. (For a directory
//!    that moves, both at once.)
//! 5. What is in a directory that has no durable name yet is lost with it.
//! 6. A synced sector never changes again by itself. Disks that lie about syncing are not modelled.

mod failing;
mod files;
mod images;
mod recorder;
mod tree;

pub use failing::{Failing, Faults};
pub use files::{Files, OpenFile, RealFiles};
pub use images::{CrashImage, Images};
pub use recorder::{Log, Recorder};
pub use tree::SECTOR;
