//! Things that applications and administrators do to a cluster, with invariants to check afterwards.
//!
//! Each [`Workload`] works in a schema (or databases) of its own, so several may run at once. What it
//! promises holds in *every* consistent state of the cluster: registries change in the same transaction
//! as what they describe. So [`Workload::verify`] judges restored, cloned and recovered clusters as
//! well as the one it ran on.

mod catalogs;
mod ddl;
mod indexes;
mod locks;
mod pgbench;
mod places;
mod random;
mod values;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::client::{Client, SqlError};
pub use random::Random;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Workload {
    /// `pgbench`'s TPC-B-like transactions (client of this major or of the newest). Balances agree.
    Pgbench,
    /// Create, alter, rewrite, truncate, drop: plain, unlogged, partitioned, temporary tables, sequences,
    /// index builds, VACUUM FULL, CLUSTER, REINDEX; committed and rolled back. A registry has each
    /// table's row count and sum.
    Ddl,
    /// Databases by every strategy the major has, and dropped again. Each holds what its template held.
    Databases,
    /// Wide rows in TOAST tables, inserted, updated in part and whole, deleted. Each has its digest.
    Toast,
    /// Tablespaces created, moved into (tables, indexes, a whole database), out of, dropped.
    Tablespaces,
    /// Updates, deletes and row locks that clear bits of the visibility map, between vacuums. Index-only
    /// scans agree with sequential ones; a sum stays zero.
    Visibility,
    /// Transfers by prepared transactions, some left prepared. A sum stays zero.
    Prepared,
    /// Rows locked by several transactions and subtransactions at once. A sum stays zero.
    Multixacts,
    /// Rows changed under every type of index. Each index finds what a sequential scan finds.
    Indexes,
    /// Large objects created, overwritten in part, removed. Each has its digest.
    LargeObjects,
    /// VACUUM FULL, CLUSTER and REINDEX of system catalogs, mapped and shared ones included. Not to be
    /// run beside others: it locks what every session needs, and commits what waits prepared.
    Catalogs,
}

impl Workload {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Pgbench,
        Self::Ddl,
        Self::Databases,
        Self::Toast,
        Self::Tablespaces,
        Self::Visibility,
        Self::Prepared,
        Self::Multixacts,
        Self::Indexes,
        Self::LargeObjects,
        Self::Catalogs,
    ];

    /// Creates what the work is done on; `size` is about how many hundred rows (or how many tables).
    /// The same seed and size on the same cluster do the same.
    ///
    /// # Errors
    /// What `psql` said.
    ///
    /// # Panics
    /// When a program is missing.
    pub fn prepare(self, client: &Client, seed: u64, size: u32) -> Result<Load, SqlError> {
        assert!(size > 0, "a load has a size");
        let load = Load {
            workload: self,
            client: client.clone(),
            random: Random::new(seed),
            size,
            round: 0,
        };
        match self {
            Self::Pgbench => pgbench::prepare(client, size)?,
            Self::Ddl => ddl::prepare(client)?,
            Self::Databases => places::prepare_databases(client, size)?,
            Self::Toast => values::prepare_toast(client, size)?,
            Self::Tablespaces => places::prepare_tablespaces(client, size)?,
            Self::Visibility => locks::prepare_visibility(client, size)?,
            Self::Prepared => locks::prepare_prepared(client, size)?,
            Self::Multixacts => locks::prepare_multixacts(client, size)?,
            Self::Indexes => indexes::prepare(client, size)?,
            Self::LargeObjects => values::prepare_large_objects(client)?,
            Self::Catalogs => {}
        }
        Ok(load)
    }

    /// Prepares and works for this many rounds.
    ///
    /// # Panics
    /// When a statement fails.
    pub fn run(self, client: &Client, seed: u64, size: u32, rounds: u32) {
        let mut load = self
            .prepare(client, seed, size)
            .unwrap_or_else(|error| panic!("preparing {self:?}: {error}"));
        load.rounds(rounds);
    }

    /// Checks on a running cluster, possibly another than the one it ran on, that the promise of this
    /// workload holds.
    ///
    /// # Panics
    /// When it does not, saying what is wrong.
    pub fn verify(self, client: &Client) {
        let wrong = match self {
            Self::Pgbench => pgbench::wrong(client),
            Self::Ddl => ddl::wrong(client),
            Self::Databases => places::wrong_databases(client),
            Self::Toast => values::wrong_toast(client),
            Self::Tablespaces => places::wrong_tablespaces(client),
            Self::Visibility => locks::wrong_visibility(client),
            Self::Prepared => locks::wrong_prepared(client),
            Self::Multixacts => locks::wrong_multixacts(client),
            Self::Indexes => indexes::wrong(client),
            Self::LargeObjects => values::wrong_large_objects(client),
            Self::Catalogs => catalogs::wrong(client),
        };
        match wrong {
            Ok(wrong) => assert!(
                wrong.is_empty(),
                "{self:?} does not hold: {wrong}\n{}",
                client.log_tail()
            ),
            Err(error) => panic!("checking {self:?}: {error}\n{}", client.log_tail()),
        }
    }
}

/// A workload on one cluster, ready for the next round.
#[derive(Debug)]
pub struct Load {
    workload: Workload,
    client: Client,
    random: Random,
    size: u32,
    round: u32,
}

impl Load {
    /// Does one round, a fraction of a second of work.
    ///
    /// # Errors
    /// What `psql` said, also when the server has gone away.
    ///
    /// # Panics
    /// When a program is missing.
    pub fn try_round(&mut self) -> Result<(), SqlError> {
        let Self {
            client,
            random,
            size,
            round,
            ..
        } = self;
        *round += 1;
        match self.workload {
            Workload::Pgbench => pgbench::round(client, random),
            Workload::Ddl => ddl::round(client, random, *size),
            Workload::Databases => places::round_databases(client, random, *size),
            Workload::Toast => values::round_toast(client, random, *size),
            Workload::Tablespaces => places::round_tablespaces(client, random),
            Workload::Visibility => locks::round_visibility(client, random, *size),
            Workload::Prepared => locks::round_prepared(client, random, *size),
            Workload::Multixacts => locks::round_multixacts(client, random, *size),
            Workload::Indexes => indexes::round(client, random, *size),
            Workload::LargeObjects => values::round_large_objects(client, random, *size),
            Workload::Catalogs => catalogs::round(client, random),
        }
    }

    /// Does this many rounds.
    ///
    /// # Panics
    /// When a statement fails.
    pub fn rounds(&mut self, rounds: u32) {
        for _ in 0..rounds {
            if let Err(error) = self.try_round() {
                panic!(
                    "{:?} failed in round {}: {error}\n{}",
                    self.workload,
                    self.round,
                    self.client.log_tail()
                );
            }
        }
    }

    /// Goes on in a thread until stopped.
    ///
    /// # Panics
    /// When there can be no more threads.
    #[must_use]
    pub fn in_background(mut self) -> Background {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("{:?}", self.workload))
            .spawn(move || {
                while !seen.load(Ordering::Relaxed) {
                    if let Err(error) = self.try_round() {
                        return (self, Some(error));
                    }
                }
                (self, None)
            })
            .expect("a thread");
        Background {
            stop,
            thread: Some(thread),
        }
    }
}

/// A workload that goes on in a thread. Dropping it stops it after the round under way.
#[derive(Debug)]
pub struct Background {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(Load, Option<SqlError>)>>,
}

impl Background {
    /// Stops after the round under way and returns the load, which has counted its rounds.
    ///
    /// # Panics
    /// When a statement failed.
    #[must_use]
    pub fn stop(self) -> Load {
        let (load, error) = self.end();
        if let Some(error) = error {
            panic!(
                "{:?} failed in round {}: {error}\n{}",
                load.workload,
                load.round,
                load.client.log_tail()
            );
        }
        load
    }

    /// As [`stop`](Self::stop), for a server that was stopped, killed or promoted meanwhile: a failed
    /// statement is no failure.
    #[must_use]
    pub fn stop_whatever_happened(self) -> Load {
        self.end().0
    }

    fn end(mut self) -> (Load, Option<SqlError>) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("only taken here");
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Load {
    /// How many rounds have been begun.
    #[must_use]
    pub fn rounds_done(&self) -> u32 {
        self.round
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
