#![doc = include_str!("../README.md")]

pub mod basebackup;
mod compression;
mod detect;
mod error;
mod extents;
#[doc(hidden)]
pub mod fuzz_targets;
mod kind;
mod manifest;
pub mod pack;
mod path;
pub mod pgdata;
mod start_up;
mod stream;
mod threads;

pub use compression::Compression;
pub use detect::{Detected, START, detect, detect_start};
pub use error::{Error, ErrorKind, Result};
pub use kind::SnapshotKind;
pub use path::SnapshotPath;
pub use start_up::StartUpRank;
pub use stream::{
    BadPage, CHUNK_SIZE, Change, Chunk, ChunkData, End, Entry, EntryKind, ExtentSink, Owner,
    ParallelSink, Sequential, Sink, Skipped, Source, Wanted,
};
