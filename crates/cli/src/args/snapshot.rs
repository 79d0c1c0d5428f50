//! `snapshot …`

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use neon_pg::{Name, SnapshotName};

use super::{Consent, examples};

/// Verbs on snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Takes a snapshot of an instance, whatever its server does, and without keeping it from its work
    #[command(after_help = examples!(
        "snapshot create pgdata1@before" => "kept where pgdata1 keeps its snapshots",
        "snapshot create pgdata1@nightly -s tank" => "kept in storage tank",
    ))]
    Create(Create),
    /// Lists the snapshots
    #[command(visible_alias = "ls", after_help = examples!(
        "snapshot list" => "ID SIZE PARENT of all; CURRENT is the live state",
        "snapshot list -s tank --long" => "of one storage, with what each cost and would free",
    ))]
    List(List),
    /// Shows one snapshot: what it holds, what it cost and why, what it alone keeps
    #[command(after_help = examples!(
        "snapshot show pgdata1@before" => "by name",
        "snapshot show 5f0c3a9e" => "by eight or more digits of its id",
    ))]
    Show(Show),
    /// Makes a snapshot of what is outside: a running server, a data directory, a base backup, a .neon file
    #[command(after_help = examples!(
        "snapshot import --from basebackup://replication@localhost:5432/ oldpg" => "from a running server, by its replication protocol",
        "snapshot import --from /var/backups/base oldpg" => "a base backup, plain or tar, as pg_basebackup wrote it",
        "snapshot import --from https://example.org/movies.neon" => "a file that somebody shares",
    ))]
    Import(Import),
    /// Writes a snapshot to a path
    #[command(after_help = examples!(
        "snapshot export pgdata1@before --to /tmp/before.neon --format neon" => "one file, to be shared",
        "snapshot export pgdata1@before --to /tmp/before --format pgdata" => "a data directory that a server starts on",
        "snapshot export pgdata1@before --to /tmp/before --format basebackup --compress zstd" => "as pg_basebackup -Ft writes it",
    ))]
    Export(Export),
    /// Copies a snapshot to another storage; what is there already is not sent again
    #[command(after_help = examples!(
        "snapshot push --to tank pgdata1@before" => "to an attached storage",
        "snapshot push --to ssh://me@host/srv/snapshots pgdata1@before" => "to an address",
    ))]
    Push(Push),
    /// Copies a snapshot from another storage, a file or a server into a storage of this home
    #[command(after_help = examples!(
        "snapshot pull --from tank pgdata1@before" => "from an attached storage into local",
        "snapshot pull --from https://example.org/movies.neon movies" => "from a file, under this name",
    ))]
    Pull(Pull),
    /// Shows what differs between two snapshots, or a snapshot and the live state: pages and bytes by relation
    #[command(after_help = examples!(
        "snapshot diff pgdata1@before pgdata1@after" => "the relations that changed, the largest change first",
        "snapshot diff pgdata1@before pgdata1@CURRENT" => "what was changed since",
    ))]
    Diff(Diff),
    /// Offers a snapshot to a stock pg_basebackup, and prints the command that takes it
    #[command(after_help = examples!(
        "snapshot serve pgdata1@before" => "on loopback, for one backup",
        "snapshot serve pgdata1@before --listen 0.0.0.0:5500 --backups 3" => "to others, without encryption",
    ))]
    Serve(Serve),
    /// Proves that a snapshot can be used: every byte by its digest, then a server on a copy reads everything
    #[command(after_help = examples!(
        "snapshot verify pgdata1@before" => "pg_amcheck where it is installed, else every row of every table",
        "snapshot verify pgdata1@before --digests" => "without a server",
    ))]
    Verify(Verify),
    /// Looks whether everything that a snapshot needs is there, without reading its data
    #[command(after_help = examples!(
        "snapshot check pgdata1@before" => "its commit, its map, its packs",
    ))]
    Check(Show),
    /// Destroys a snapshot; what it alone keeps goes with the next collection of its storage
    #[command(after_help = examples!(
        "snapshot destroy pgdata1@before" => "asks first",
        "snapshot destroy pgdata1@before --dry-run" => "what would become free, and who builds on it",
    ))]
    Destroy(Destroy),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name: PGDATA@TAG, or a bare name with --pg
    #[arg(value_name = "PGDATA@TAG", value_parser = name)]
    pub(crate) name: SnapshotName,
    /// The instance, if the name mentions none
    #[arg(long, value_name = "PGDATA")]
    pub(crate) pg: Option<Name>,
    /// Where it is kept [default: where the instance keeps its snapshots]
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Share no pages with an earlier snapshot
    #[arg(long)]
    pub(crate) no_parent: bool,
    /// Record damaged pages instead of refusing them
    #[arg(long)]
    pub(crate) allow_bad_pages: bool,
    /// Spread the server's checkpoint over minutes instead of writing it at once
    #[arg(long)]
    pub(crate) spread_checkpoint: bool,
}

/// A name that may be given.
fn name(text: &str) -> Result<SnapshotName, String> {
    SnapshotName::to_give(text).map_err(|error| error.to_string())
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those in this storage
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Also kind, age, what each added and what destroying it would free
    #[arg(short, long)]
    pub(crate) long: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Its name, its id, or eight or more digits of that
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) name: String,
    /// Look in this storage only
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Its name [default: that of the file or folder, else import1, import2, ...]
    #[arg(value_parser = name)]
    pub(crate) name: Option<SnapshotName>,
    /// From where: basebackup://USER@HOST:PORT/, a path, the address of a .neon file
    #[arg(long, value_name = "SOURCE")]
    pub(crate) from: String,
    /// Into which storage [default: local]
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Share no pages with a snapshot of the same cluster that is there
    #[arg(long)]
    pub(crate) no_parent: bool,
    /// Record damaged pages instead of refusing them
    #[arg(long)]
    pub(crate) allow_bad_pages: bool,
}

/// Forms of a snapshot outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A data directory
    Pgdata,
    /// What pg_basebackup -Ft writes
    Basebackup,
    /// One file
    Neon,
}

/// How archives of a base backup are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    None,
    Gzip,
    Lz4,
    Zstd,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) name: String,
    /// Where to: a path where nothing is yet
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// In which form [default: neon for a path that ends in .neon, else pgdata]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Form>,
    /// Of the archives of a base backup
    #[arg(long, value_enum, default_value = "none")]
    pub(crate) compress: Compress,
    /// Of a data directory: where its tablespaces go [default: PATH.tablespaces]
    #[arg(long, value_name = "DIR")]
    pub(crate) tablespaces: Option<PathBuf>,
    /// Look for the snapshot in this storage only
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
}

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) name: String,
    /// Where to: an attached storage, or an address
    #[arg(long, value_name = "STORAGE|ADDRESS")]
    pub(crate) to: String,
    /// Look for the snapshot in this storage only
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The snapshot; of a file or a server, its name here
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) name: String,
    /// From where: an attached storage, an address, a path, basebackup://...
    #[arg(long, value_name = "STORAGE|ADDRESS|PATH")]
    pub(crate) from: String,
    /// Into which storage [default: local]
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Of a file or a server: share no pages with a snapshot of the same cluster that is there
    #[arg(long)]
    pub(crate) no_parent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) name: String,
    /// Look for it in this storage only
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Where to listen [default: loopback, a free port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// How many backups may be taken before the offer ends
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub(crate) backups: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) name: String,
    /// Look for it in this storage only
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Only read all bytes; start no server
    #[arg(long)]
    pub(crate) digests: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The earlier one
    pub(crate) before: String,
    /// The later one; PGDATA@CURRENT is the live state
    pub(crate) after: String,
    /// Look for both in this storage only
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Also files that belong to no relation
    #[arg(long)]
    pub(crate) files: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) name: String,
    /// Look for it in this storage only
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    #[command(flatten)]
    pub(crate) consent: Consent,
}
