//! `init`, `start`, `stop`, `export`: one cluster whose snapshots come first, in the words of the first document. Its options
//! have underscores; hyphens do as well.

use clap::Args;
use neon_pg::{Name, PgMajor};

use super::snapshot::Form;

/// What init takes.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where snapshots go, from now on: a path, s3://BUCKET/PREFIX, ssh://HOST/PATH [default: the local storage]
    #[arg(long = "storage-dest", alias = "storage_dest", value_name = "PREFIX")]
    pub(crate) storage_dest: Option<String>,
    /// Options of that storage, as of storage attach; may be repeated
    #[arg(short = 'c', long = "option", value_name = "KEY=VALUE", value_parser = super::storage::pair, requires = "storage_dest")]
    pub(crate) options: Vec<(String, String)>,
    /// Begin with what is there instead of an empty cluster: a data directory, a base backup, a .neon file, a snapshot; not remembered
    #[arg(long = "snapshot-path", alias = "snapshot_path", value_name = "PREFIX")]
    pub(crate) snapshot_path: Option<String>,
    /// What that is [default: told by its content]
    #[arg(
        long = "snapshot-format",
        alias = "snapshot_format",
        value_enum,
        requires = "snapshot_path"
    )]
    pub(crate) snapshot_format: Option<Form>,
    /// The name of the instance [default: main]
    #[arg(short, long, value_name = "PGDATA")]
    pub(crate) name: Option<Name>,
    /// The major version [default: the newest that is installed, or that of the snapshot]
    #[arg(long, value_name = "MAJOR")]
    pub(crate) pg_version: Option<PgMajor>,
    /// Its port [default: the first that is free]
    #[arg(long, value_parser = super::port)]
    pub(crate) port: Option<u16>,
}

/// What start takes.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Where snapshots go: what is missing here is restored from the newest there
    #[arg(long = "storage-dest", alias = "storage_dest", value_name = "PREFIX")]
    pub(crate) storage_dest: Option<String>,
    /// Options of that storage, as of storage attach; may be repeated
    #[arg(short = 'c', long = "option", value_name = "KEY=VALUE", value_parser = super::storage::pair, requires = "storage_dest")]
    pub(crate) options: Vec<(String, String)>,
}

/// What export takes.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Where to, this once: a path where nothing is yet; in format neon also another storage
    #[arg(long = "snapshot-path", alias = "snapshot_path", value_name = "PREFIX")]
    pub(crate) snapshot_path: String,
    /// In which form
    #[arg(
        long = "snapshot-format",
        alias = "snapshot_format",
        value_enum,
        default_value = "neon"
    )]
    pub(crate) snapshot_format: Form,
}
