//! `storage …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use neon_pg::{Name, StorageType};

use super::{Consent, examples};

/// Verbs on storages.
#[derive(Debug, Subcommand)]
pub(crate) enum Storage {
    /// Attaches a storage: looks whether it can be reached, and remembers it
    #[command(after_help = examples!(
        "storage attach -n tank /mnt/tank" => "a folder",
        "storage attach -t native -n local.compr -c compression=zstd:9 --path /mnt/tank" => "the same with options, in the words of git remotes",
        "storage attach -t s3 -n s3tank -c encryption=on s3://bucket/prefix" => "credentials from AWS_*, the passphrase from NEON_PASSPHRASE",
        "storage attach -n web https://example.org/snapshots" => "to read from only",
        "storage attach -n far ssh://me@host/srv/snapshots" => "over ssh",
        "storage attach -n far --offline ssh://me@host/srv/snapshots" => "the same while that machine cannot be reached",
    ))]
    Attach(Attach),
    /// Lists the attached storages
    #[command(visible_alias = "ls", after_help = examples!(
        "storage list" => "NAME USED TYPE OPTIONS PATH, one line each",
    ))]
    List(List),
    /// Shows one storage
    #[command(after_help = examples!("storage show local" => "where it is, who uses it, what a collection would free"))]
    Show(One),
    /// Looks whether everything in a storage is there and whole
    #[command(after_help = examples!(
        "storage check tank" => "all that is small: commits, lists, maps, names, packs",
        "storage check tank --data" => "also every byte of every page",
    ))]
    Check(Check),
    /// Collects what no snapshot of a storage needs any more: a first run announces it, one after the grace deletes it
    #[command(after_help = examples!(
        "storage gc tank --dry-run" => "what would be freed",
        "storage gc tank --yes" => "announces what goes, and deletes what was announced a grace ago",
    ))]
    Gc(Gc),
    /// Takes what is at a storage's place now for its repository, or makes an empty one there
    #[command(long_about = "Takes what is at a storage's place now for its repository, or makes an empty one there.\n\nA storage keeps to the repository that was first seen in it, so that a disk that is not mounted, or another disk at its place, is told and not written to. Where that repository is lost for good, or was replaced, this says so.", after_help = examples!(
        "storage init tank" => "after the disk of tank was replaced",
        "storage init tank --yes" => "in scripts",
    ))]
    Init(Detach),
    /// Forgets a storage; what is in it stays
    #[command(after_help = examples!(
        "storage detach tank" => "asks first",
        "storage detach tank --yes" => "in scripts",
    ))]
    Detach(Detach),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// The storage
    #[arg(value_name = "STORAGE")]
    pub(crate) name: Name,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Count anew what each holds
    #[arg(long)]
    pub(crate) refresh: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The storage
    #[arg(value_name = "STORAGE")]
    pub(crate) name: Name,
    /// Read all data too
    #[arg(long)]
    pub(crate) data: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// The storage
    #[arg(value_name = "STORAGE")]
    pub(crate) name: Name,
    #[command(flatten)]
    pub(crate) consent: Consent,
}

/// Kinds of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A folder
    Native,
    /// S3 or one of its relatives
    S3,
    /// Behind HTTP, to be read only
    Http,
    /// On another machine, over SSH
    Ssh,
}

impl Kind {
    pub(crate) const fn storage_type(self) -> StorageType {
        match self {
            Self::Native => StorageType::Native,
            Self::S3 => StorageType::S3,
            Self::Http => StorageType::Http,
            Self::Ssh => StorageType::Ssh,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Where it is: a path, s3://BUCKET/PREFIX, https://HOST/PATH, ssh://USER@HOST/PATH
    #[arg(required_unless_present_any = ["path", "url"])]
    pub(crate) locator: Option<String>,
    /// Its name
    #[arg(short, long)]
    pub(crate) name: Name,
    /// Its type, if you want to be sure
    #[arg(short = 't', long = "type", value_enum)]
    pub(crate) kind: Option<Kind>,
    /// Where it is, as a path
    #[arg(long, conflicts_with_all = ["locator", "url"])]
    pub(crate) path: Option<PathBuf>,
    /// Where it is, as a URL
    #[arg(long, conflicts_with = "locator")]
    pub(crate) url: Option<String>,
    /// compression=zstd:1..22|lz4|none, encryption=on, key-file=PATH, grace=TIME; of s3 also endpoint=URL, region=NAME,
    /// path-style=on, profile=NAME; may be repeated
    #[arg(short = 'c', long = "option", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) options: Vec<(String, String)>,
    /// Do not ask whether it is there and lets us in: for one that cannot be reached now
    #[arg(long)]
    pub(crate) offline: bool,
}

/// `KEY=VALUE`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The storage
    #[arg(value_name = "STORAGE")]
    pub(crate) name: Name,
    #[command(flatten)]
    pub(crate) consent: Consent,
}
