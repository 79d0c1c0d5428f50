//! `pg …`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use neon_pg::{Name, PgMajor};

use super::{Consent, examples};

/// Verbs on instances.
#[derive(Debug, Subcommand)]
pub(crate) enum Pg {
    /// Makes a new cluster and starts it
    #[command(after_help = examples!(
        "pg create" => "the next free name (pgdata1, pgdata2, ...), the newest PostgreSQL, the next free port",
        "pg create shop --pg-version 16 --port 5440" => "choosing all three",
        "pg create --snapshot shop@before try" => "a second cluster as shop was then, which does nothing in its name",
        "pg create --snapshot basebackup://replication@localhost:5432/" => "a copy of a running server",
        "pg create --snapshot http://example.org/movies_db.neon movies" => "from a file that somebody shares",
        "pg create -s tank --no-start" => "its snapshots go to storage tank; not started yet",
    ))]
    Create(Create),
    /// Lists the instances
    #[command(visible_alias = "ls", after_help = examples!(
        "pg list" => "ROLE PGDATA USED STORAGE ENDPOINT, one line each",
        "pg list -o json" => "everything known of them",
    ))]
    List,
    /// Shows one instance
    #[command(after_help = examples!("pg show pgdata1" => "what it is, where, and what it uses"))]
    Show(One),
    /// Starts a server, or a replica of it
    #[command(after_help = examples!(
        "pg start pgdata1" => "on the port it had before",
        "pg start pgdata1 --port 5440" => "on another one from now on",
        "pg start --replica pgdata1" => "a new server that follows pgdata1",
    ))]
    Start(Start),
    /// Stops a server: sessions are ended, everything is written
    #[command(after_help = examples!("pg stop pgdata1" => "it stays stopped, also after a reboot"))]
    Stop(One),
    /// Stops a server if it runs, and starts it
    #[command(after_help = examples!("pg restart pgdata1" => "after a change of settings that needs it"))]
    Restart(One),
    /// Makes a cluster that somebody else created an instance of this home; its files and its server stay as they are
    #[command(after_help = examples!(
        "pg adopt /var/lib/postgresql/16/main" => "the cluster of the distribution, under the name it has there",
        "pg adopt /srv/pg/data -n shop --superuser admin" => "any other",
    ))]
    Adopt(Adopt),
    /// Rolls an instance back to a snapshot, in place; what it was before stays as PGDATA@HEAD{i}
    #[command(after_help = examples!(
        "pg checkout pgdata1@before" => "asks first",
        "pg checkout pgdata1@before --dry-run" => "what would be lost: slots, subscriptions, sessions",
        "pg checkout 'pgdata1@HEAD{0}' --yes" => "back to what was before the first checkout",
    ))]
    Checkout(Checkout),
    /// Stops a server and moves its data to the trash
    #[command(after_help = examples!(
        "pg destroy pgdata1" => "asks first; its snapshots stay",
        "pg destroy pgdata1 --yes" => "in scripts",
        "pg destroy pgdata1 --dry-run -o json" => "what would go, as data",
    ))]
    Destroy(Destroy),
    /// Lists the instances that were destroyed and can be brought back, or removes them for good
    #[command(after_help = examples!(
        "pg trash" => "what is there, and the space that it takes",
        "pg trash --empty" => "removes all of it: asks first",
        "pg trash --empty pgdata1 --yes" => "in scripts, only what had this name",
    ))]
    Trash(Trash),
    /// Runs psql on an instance
    #[command(after_help = examples!(
        "pg psql pgdata1" => "a session",
        "pg psql pgdata1 -- -c 'select version()'" => "what follows -- goes to psql",
    ))]
    Psql(Psql),
    /// Prints the URI that connects to an instance, with its password
    #[command(after_help = examples!(
        "pg url pgdata1" => "for any client",
        "pg url pgdata1 -d shop" => "for another database",
    ))]
    Url(Url),
    /// Prints the log of a server
    #[command(after_help = examples!(
        "pg logs pgdata1" => "the last hundred lines",
        "pg logs -f pgdata1" => "what is logged from now on, until Ctrl-C",
    ))]
    Logs(Logs),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// The instance
    #[arg(value_name = "PGDATA")]
    pub(crate) name: Name,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// The instance
    #[arg(value_name = "PGDATA")]
    pub(crate) name: Name,
    /// Make a replica of it and start that
    #[arg(long)]
    pub(crate) replica: bool,
    /// On this port from now on [default: the one it had]
    #[arg(long, conflicts_with = "replica", value_parser = super::port)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name [default: the next free of pgdata1, pgdata2, ...]
    #[arg(value_name = "PGDATA")]
    pub(crate) name: Option<Name>,
    /// The same
    #[arg(
        short = 'n',
        long = "name",
        value_name = "PGDATA",
        conflicts_with = "name"
    )]
    pub(crate) named: Option<Name>,
    /// Where its snapshots go [default: local]
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// The major version [default: the newest that is installed, or that of the snapshot]
    #[arg(long, value_name = "MAJOR")]
    pub(crate) pg_version: Option<PgMajor>,
    /// Make it of a snapshot: a name, an id, a .neon file, a base backup, basebackup://USER@HOST:PORT/, an address
    #[arg(long, value_name = "SNAPSHOT")]
    pub(crate) snapshot: Option<String>,
    /// Share the blocks of the files with other instances of the same snapshot; fail where the file system cannot
    #[arg(long, requires = "snapshot", conflicts_with = "clone_method")]
    pub(crate) cow: bool,
    /// How its folder comes to be, without falling back [default: the best that works]
    #[arg(long, requires = "snapshot", value_enum, value_name = "METHOD")]
    pub(crate) clone_method: Option<Method>,
    /// With the configuration of the origin as it is: its archive, its upstream, its workers
    #[arg(long, requires = "snapshot")]
    pub(crate) as_is: bool,
    /// Although something that the snapshot needs is missing here
    #[arg(long, requires = "snapshot")]
    pub(crate) force: bool,
    /// Its port [default: the first that is free]
    #[arg(long, value_parser = super::port)]
    pub(crate) port: Option<u16>,
    /// Where its data directory shall be: a path of what is not there, or empty [default: below the home]
    #[arg(long, value_name = "DIR")]
    pub(crate) pgdata: Option<PathBuf>,
    /// Only make it
    #[arg(long)]
    pub(crate) no_start: bool,
}

/// How the folder of an instance comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    Subvolume,
    Reflink,
    Copy,
}

#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// The instance
    #[arg(value_name = "PGDATA")]
    pub(crate) name: Name,
    /// Although it is on a disk that is not mounted, and lost for good
    #[arg(long)]
    pub(crate) lost: bool,
    #[command(flatten)]
    pub(crate) consent: Consent,
}

#[derive(Debug, Args)]
pub(crate) struct Trash {
    /// Only what had this name
    #[arg(value_name = "PGDATA")]
    pub(crate) name: Option<Name>,
    /// Remove it for good: no undo brings it back
    #[arg(long)]
    pub(crate) empty: bool,
    /// With --empty: do not ask
    #[arg(short, long, requires = "empty")]
    pub(crate) yes: bool,
    /// With --empty: only show what would be removed
    #[arg(long, requires = "empty")]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Adopt {
    /// Its data directory
    pub(crate) path: PathBuf,
    /// Its name here [default: the one it has with Debian, else the next free]
    #[arg(short, long, value_name = "PGDATA")]
    pub(crate) name: Option<Name>,
    /// Where its snapshots go [default: local]
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Its main configuration file, if that is where nobody would look
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// A file in the format of .pgpass with the role and the password to connect with
    #[arg(long, value_name = "FILE")]
    pub(crate) pass_file: Option<PathBuf>,
    /// The role to connect as, without a pass file [default: the server's user, or postgres]
    #[arg(long, value_name = "ROLE")]
    pub(crate) superuser: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Checkout {
    /// The snapshot; the instance is the one that its name mentions
    #[arg(value_name = "PGDATA@TAG")]
    pub(crate) snapshot: String,
    /// The instance, of a snapshot whose name mentions none or another
    #[arg(long, value_name = "PGDATA")]
    pub(crate) pg: Option<Name>,
    /// Look for the snapshot in this storage only
    #[arg(short, long)]
    pub(crate) storage: Option<Name>,
    /// Also the configuration and the certificates of the snapshot; without it those of today stay
    #[arg(long)]
    pub(crate) configuration: bool,
    /// How the pages that differ are found: by the maps of snapshots where that is proven to be right, else by reading
    /// all (auto); by reading all, which also repairs what a disk changed (content); or by maps only (map)
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) compare: Compare,
    #[command(flatten)]
    pub(crate) consent: Consent,
}

/// How a checkout finds the pages that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compare {
    Auto,
    Content,
    Map,
}

#[derive(Debug, Args)]
pub(crate) struct Psql {
    /// The instance
    #[arg(value_name = "PGDATA")]
    pub(crate) name: Name,
    /// The database
    #[arg(short, long, default_value = "postgres")]
    pub(crate) database: String,
    /// Arguments of psql
    #[arg(last = true, value_name = "ARGUMENT")]
    pub(crate) arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct Url {
    /// The instance
    #[arg(value_name = "PGDATA")]
    pub(crate) name: Name,
    /// The database
    #[arg(short, long, default_value = "postgres")]
    pub(crate) database: String,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The instance
    #[arg(value_name = "PGDATA")]
    pub(crate) name: Name,
    /// Go on with what is logged, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many of the last lines
    #[arg(short = 'n', long, default_value_t = 100, value_name = "COUNT")]
    pub(crate) lines: usize,
}
