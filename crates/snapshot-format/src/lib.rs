#![doc = include_str!("../README.md")]

mod error;
mod kind;
mod manifest;
mod path;
pub mod pgdata;
mod start_up;
mod stream;

pub use error::{Error, ErrorKind, Result};
pub use kind::SnapshotKind;
pub use path::SnapshotPath;
pub use start_up::StartUpRank;
pub use stream::{
    BadPage, CHUNK_SIZE, Chunk, ChunkData, End, Entry, EntryKind, ExtentSink, Owner, ParallelSink,
    Sequential, Sink, Skipped, Source,
};
