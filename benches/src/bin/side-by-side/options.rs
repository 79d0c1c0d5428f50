//! What the program takes.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::data::Data;

/// Compares `neon` with its peers: whole processes on one machine in one run, in turn.
#[derive(Debug, Clone, Parser)]
pub(crate) struct Options {
    /// One small data set, few rounds: under five minutes; what is done if nothing is said
    #[arg(long, conflicts_with = "full")]
    pub(crate) quick: bool,
    /// pgbench at scale 100 and 700 and the mixed schema with 20,000 small tables, more rounds
    #[arg(long)]
    pub(crate) full: bool,
    /// The data sets, instead of those of --quick and --full
    #[arg(long, value_enum)]
    pub(crate) data: Vec<Kind>,
    /// pgbench's scale, or hundreds of megabytes of documents, instead of those of --quick and --full
    #[arg(long)]
    pub(crate) scale: Vec<u64>,
    /// How many small tables the mixed schema has
    #[arg(long)]
    pub(crate) tables: Option<u64>,
    /// Rounds of everything but the series of ten next snapshots
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Only these stages; may be repeated
    #[arg(long, value_enum)]
    pub(crate) only: Vec<Stage>,
    /// Only changes of so many percent of the pages before next snapshots, of 0, 0.1, 1 and 10; may be repeated
    #[arg(long, value_name = "PERCENT")]
    pub(crate) change: Vec<f64>,
    /// Go without a peer that is not here: pgbackrest, restic, zstd, pg_combinebackup, pg_rewind; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) without: Vec<String>,
    /// Below which folder to work
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    pub(crate) directory: PathBuf,
    /// The command to compare [default: the one built beside this program]
    #[arg(long, value_name = "FILE")]
    pub(crate) neon: Option<PathBuf>,
    /// Empty the machine's caches before each run, instead of measuring warm
    #[arg(long)]
    pub(crate) cold: bool,
    /// Write all that was measured to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw the ratios into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// The namespaces are made, and this is the folder
    #[arg(long, hide = true)]
    pub(crate) inside: Option<PathBuf>,
}

/// Kinds of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Pgbench,
    Mixed,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// The first snapshot, and restoring it into an empty directory
    First,
    /// Restoring alone, by those that keep more than one: of data for which copies of everybody have no room
    Restore,
    /// Next snapshots after changes
    Next,
    /// Next snapshots of PostgreSQL 18 beside its own incremental backups
    Incremental,
    /// Back to a snapshot after changes
    Rollback,
    /// From a snapshot to the first query on another instance, on each rung
    Clone,
    /// Listing what there is
    List,
    /// Requests to a bucket, of a server beside it: what they cost in time depends on the network, their number does not
    Requests,
}

impl Options {
    pub(crate) fn wants(&self, stage: Stage) -> bool {
        match stage {
            // The stage of first snapshots has it.
            Stage::Restore if self.only.is_empty() => false,
            _ => self.only.is_empty() || self.only.contains(&stage),
        }
    }

    /// Whether a change of such a share is asked for.
    pub(crate) fn changes(&self, share: f64) -> bool {
        let asked = |percent: &f64| (percent / 100.0 - share).abs() < 1e-9;
        self.change.is_empty() || self.change.iter().any(asked)
    }

    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.full { 5 } else { 2 })
    }

    pub(crate) fn data(&self) -> Vec<Data> {
        let tables = self.tables.unwrap_or(if self.full { 20_000 } else { 500 });
        let kinds = match (self.data.is_empty(), self.full) {
            (false, _) => self.data.clone(),
            (true, true) => vec![Kind::Pgbench, Kind::Mixed],
            (true, false) => vec![Kind::Pgbench],
        };
        let mut all = Vec::new();
        for kind in kinds {
            let scales = match (kind, self.full) {
                _ if !self.scale.is_empty() => self.scale.clone(),
                (Kind::Pgbench, true) => vec![100, 700],
                (Kind::Pgbench, false) => vec![10],
                (Kind::Mixed, true) => vec![10],
                (Kind::Mixed, false) => vec![1],
            };
            all.extend(scales.into_iter().map(|scale| match kind {
                Kind::Pgbench => Data::Pgbench { scale },
                Kind::Mixed => Data::Mixed { scale, tables },
            }));
        }
        all
    }
}
