//! What decides whether a cluster runs here and sorts its text here as it did there.
//!
//! Facts are taken of a machine and its programs ([`Installation::platform_facts`](crate::Installation::platform_facts)), of a
//! data directory without a server ([`Instance::offline_facts`](crate::Instance::offline_facts)), or, with the databases, of a
//! running server ([`Instance::online_facts`](crate::Instance::online_facts)). They are plain values to be kept beside a
//! snapshot; [`compare()`] tells what is different elsewhere, and what repairs it.

mod compare;
mod offline;
mod online;

pub use compare::{Difference, DifferenceKind, Impact, compare};

/// All facts. What could not be learned is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Facts {
    /// The machine and the programs.
    pub platform: Platform,
    /// The cluster; none when only a platform was looked at.
    pub cluster: Option<Cluster>,
}

/// A machine with an installation of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Platform {
    /// The processor architecture as Rust names it: `x86_64`, `aarch64`.
    pub architecture: String,
    /// Whether the least significant byte comes first.
    pub little_endian: bool,
    /// The major version of the server.
    pub major: u32,
    /// The minor version of the server.
    pub minor: u32,
    /// The C library and its version, for example `glibc 2.36`; `musl` sorts by bytes in every version.
    pub libc: Option<String>,
    /// The major version of ICU the server is linked with; none when it was built without, or hides it.
    pub icu: Option<u32>,
    /// Extensions that can be created, with their default versions, sorted.
    pub extensions: Vec<Extension>,
    /// Libraries that can be loaded, without folder and suffix, sorted.
    pub libraries: Vec<String>,
    /// The memory of the machine or container in bytes.
    pub memory: Option<u64>,
}

/// An extension and a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Cluster {
    /// The major version its files belong to.
    pub major: u32,
    /// Bytes of a page of a relation.
    pub block_size: u32,
    /// Pages of a segment file of a relation.
    pub segment_blocks: u32,
    /// Bytes of a page of the log.
    pub wal_block_size: u32,
    /// Bytes of a segment of the log.
    pub wal_segment_size: u64,
    /// Bytes of an identifier.
    pub name_length: u32,
    /// Columns of an index.
    pub index_max_keys: u32,
    /// Bytes of a piece of a TOASTed value.
    pub toast_max_chunk_size: u32,
    /// Bytes of a piece of a large object.
    pub large_object_block_size: u32,
    /// The alignment of the widest type.
    pub max_align: u32,
    /// Whether 64-bit values are passed by value.
    pub float8_by_value: bool,
    /// Whether `char` is signed; recorded by 18 and later.
    pub char_signed: Option<bool>,
    /// Whether pages have checksums.
    pub checksums: bool,
    /// Libraries that are loaded when the server starts.
    pub preload: Vec<String>,
    /// What it asks of the machine.
    pub memory: Memory,
    /// The databases; none when no server was asked.
    pub databases: Option<Vec<Database>>,
}

/// The memory a server asks for. What no file and no server tells is the server's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Memory {
    /// `shared_buffers` in bytes.
    pub shared_buffers: u64,
    /// All shared memory in bytes, where the server tells (15 and later).
    pub shared: Option<u64>,
    /// Whether it does not start without huge pages.
    pub huge_pages_required: bool,
    /// `max_connections`
    pub max_connections: u32,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its encoding, as the server names it.
    pub encoding: String,
    /// The extensions created in it, sorted.
    pub extensions: Vec<Extension>,
    /// The collations that its indexes are sorted by, the default one first.
    pub collations: Vec<Collation>,
}

/// A collation of a database, with what is sorted by it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Collation {
    /// Its name as SQL writes it, with its schema; none for the default of the database.
    pub name: Option<String>,
    /// Who sorts.
    pub provider: Provider,
    /// The locale, in the provider's words.
    pub locale: String,
    /// The version that the catalogs say the data was sorted by.
    pub recorded: Option<String>,
    /// The version of the provider of the server that was asked.
    pub actual: Option<String>,
    /// The indexes that depend on it, as SQL writes them, with their schemas; at most
    /// [`MOST_INDEXES`](Self::MOST_INDEXES).
    pub indexes: Vec<String>,
    /// Whether there are more.
    pub more_indexes: bool,
}

impl Collation {
    /// No more indexes of one collation than this are listed.
    pub const MOST_INDEXES: usize = 1000;
}

/// Who compares strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Provider {
    /// The C library.
    #[default]
    Libc,
    /// ICU.
    Icu,
    /// PostgreSQL itself (17 and later): the same everywhere.
    Builtin,
}
