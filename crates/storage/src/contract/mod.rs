//! The contract of [`Storage`] as code (feature `testing`), for this crate's backends and layers
//! and for those of third parties.
//!
//! [`run`] takes every case through a storage and returns what held. Cases whose subject the
//! storage doesn't claim in its [`Capabilities`] instead check that it refuses. Each case works
//! below a random prefix of its own and deletes it afterwards.

#[macro_use]
mod check;
mod concurrent;
mod keys;
mod listing;
mod put;
mod read;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::body::Body;
use crate::capabilities::Capabilities;
use crate::ext::StorageExt;
use crate::key::Key;
use crate::object::ObjectMeta;
use crate::options::PutOptions;
use crate::storage::Storage;

pub use check::Failure;

/// Longer than this a case is hanging.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// The storage under test, and the one that prepares what it reads: the same one, unless the
/// storage under test can't write.
#[derive(Debug, Clone)]
pub struct Subject {
    reader: Arc<dyn Storage>,
    writer: Arc<dyn Storage>,
    prefix: String,
}

impl Subject {
    fn capabilities(&self) -> Capabilities {
        self.reader.capabilities()
    }

    /// Puts through the storage under test: a create where those are enforced.
    async fn put(&self, key: &Key, body: impl Into<Body>) -> crate::Result<ObjectMeta> {
        put_new(&*self.reader, key, body.into()).await
    }

    /// Puts through the storage that prepares.
    async fn prepare(&self, key: &Key, body: impl Into<Body>) -> crate::Result<ObjectMeta> {
        put_new(&*self.writer, key, body.into()).await
    }

    fn key(&self, rest: &str) -> Result<Key, Failure> {
        Ok(Key::new(format!("{}{rest}", self.prefix))?)
    }
}

async fn put_new(storage: &dyn Storage, key: &Key, body: Body) -> crate::Result<ObjectMeta> {
    let options = match storage.capabilities().create_only {
        true => PutOptions::create(),
        false => PutOptions::overwrite(),
    };
    storage.put(key, body, options).await
}

/// One promise.
#[derive(Clone, Copy)]
pub struct Case {
    /// What must hold.
    pub name: &'static str,
    needs: fn(&Capabilities) -> bool,
    run: fn(Subject) -> BoxFuture<'static, Result<(), Failure>>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// What became of a case.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// It held.
    Held,
    /// The storage doesn't claim what the case is about.
    NotClaimed,
    /// It did not hold.
    Broken(Failure),
}

/// Every case with its outcome.
#[derive(Debug)]
pub struct Report {
    /// In the order they ran.
    pub cases: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// The cases that did not hold.
    pub fn broken(&self) -> impl Iterator<Item = (&'static str, &Failure)> {
        self.cases
            .iter()
            .filter_map(|(name, outcome)| match outcome {
                Outcome::Broken(failure) => Some((*name, failure)),
                _ => None,
            })
    }

    /// How many cases held.
    pub fn held(&self) -> usize {
        self.cases
            .iter()
            .filter(|(_, outcome)| matches!(outcome, Outcome::Held))
            .count()
    }

    /// An error that lists every broken case, if there is one.
    pub fn into_result(self) -> Result<(), Failure> {
        let broken: Vec<String> = self
            .broken()
            .map(|(name, failure)| format!("{name}: {failure}"))
            .collect();
        if broken.is_empty() {
            Ok(())
        } else {
            Err(Failure::new(broken.join("\n")))
        }
    }
}

/// Every case.
pub fn cases() -> Vec<Case> {
    [
        put::CASES,
        read::CASES,
        listing::CASES,
        keys::CASES,
        concurrent::CASES,
    ]
    .concat()
}

/// Takes a storage through every case.
pub async fn run(storage: Arc<dyn Storage>) -> Report {
    run_read_only(Arc::clone(&storage), storage).await
}

/// Takes a storage that can't write through every case, with another that writes to the same
/// place.
pub async fn run_read_only(reader: Arc<dyn Storage>, writer: Arc<dyn Storage>) -> Report {
    let mut report = Report { cases: Vec::new() };
    for case in cases() {
        let outcome = run_case(case, &reader, &writer).await;
        report.cases.push((case.name, outcome));
    }
    report
}

/// Takes a storage through one case.
pub async fn run_case(case: Case, reader: &Arc<dyn Storage>, writer: &Arc<dyn Storage>) -> Outcome {
    for storage in [writer, reader] {
        match storage.probe().await {
            Ok(found) if found == storage.capabilities() => {}
            Ok(_) => {
                return Outcome::Broken(Failure::new("a probe is not remembered"));
            }
            Err(error) => return Outcome::Broken(Failure::from(error)),
        }
    }
    if !(case.needs)(&reader.capabilities()) {
        return Outcome::NotClaimed;
    }
    let prefix = format!("contract-{:016x}/", fastrand::u64(..));
    let subject = Subject {
        reader: Arc::clone(reader),
        writer: Arc::clone(writer),
        prefix: prefix.clone(),
    };
    let outcome = match tokio::time::timeout(TIME_LIMIT, (case.run)(subject)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(format!("no end after {TIME_LIMIT:?}"))),
    };
    let cleaned = if writer.capabilities().list && writer.capabilities().delete {
        writer.delete_prefix(&prefix).await.map(drop)
    } else {
        Ok(())
    };
    match (outcome, cleaned) {
        (Err(failure), _) => Outcome::Broken(failure),
        (Ok(()), Err(error)) => Outcome::Broken(Failure::from(error)),
        (Ok(()), Ok(())) => Outcome::Held,
    }
}

fn always(_: &Capabilities) -> bool {
    true
}

fn writes(capabilities: &Capabilities) -> bool {
    capabilities.write
}
