//! Leases: what tells a collection that a writer is alive, what it builds on and what it brings.
//!
//! A heartbeat is a new object that repeats all that was said before; age is judged by when the storage says each
//! was stored, so no clock of ours matters. A lease is put before what it protects is looked at.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, TryStreamExt, stream};
use neon_snapshot_format::pack::PackId;
use neon_storage::{Key, ListOptions};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::doomed::pack_ids;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitId, WriterId};
use crate::keys::{self, LEASES};
use crate::object::ObjectKind;
use crate::repository::Repository;

/// What one heartbeat says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(crate) struct LeaseBody {
    /// Snapshots that it builds on.
    pub(crate) parents: Vec<CommitId>,
    /// Packs that it relies on, or stores, without having made them.
    #[serde(with = "pack_ids")]
    pub(crate) bringing: Vec<PackId>,
}

/// A writer as its lease shows it.
#[derive(Debug, Clone)]
pub(crate) struct LeaseState {
    pub(crate) writer: WriterId,
    /// Every object of it.
    pub(crate) keys: Vec<Key>,
    /// When the newest was stored.
    pub(crate) beat: SystemTime,
    pub(crate) body: LeaseBody,
}

impl LeaseState {
    /// Whether the writer was silent for longer than this, at this time of the storage.
    pub(crate) fn lapsed(&self, grace: Duration, now: SystemTime) -> bool {
        now.duration_since(self.beat).is_ok_and(|age| age > grace)
    }
}

/// A lease that we hold. Heartbeats come from a task that ends with it.
///
/// Dropped without [`release`](Self::release): it lapses after the grace.
#[derive(Debug)]
pub(crate) struct Lease {
    inner: Arc<Inner>,
    heart: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    repository: Repository,
    writer: WriterId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    parents: BTreeSet<CommitId>,
    bringing: BTreeSet<[u8; 16]>,
    next: u32,
    /// When the storage stored the last heartbeat.
    beat: Option<SystemTime>,
    /// Two heartbeats were further apart than half the grace.
    lapsed: bool,
}

impl Repository {
    /// Begins a lease of a new writer.
    pub(crate) async fn lease(&self, parents: &[CommitId]) -> Result<Lease> {
        let inner = Arc::new(Inner {
            repository: self.clone(),
            writer: WriterId::random()?,
            state: Mutex::new(State {
                parents: parents.iter().copied().collect(),
                bringing: BTreeSet::new(),
                next: 0,
                beat: None,
                lapsed: false,
            }),
        });
        inner.beat(&mut *inner.state.lock().await).await?;
        let beating = Arc::clone(&inner);
        let pause = (self.shared.options.grace / 6).max(Duration::from_millis(10));
        let heart = tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let mut state = beating.state.lock().await;
                // A heartbeat that fails is made up for by the next, or shows as a gap.
                if beating.beat(&mut state).await.is_err() {
                    continue;
                }
            }
        });
        Ok(Lease { inner, heart })
    }

    /// The writers that have a lease, lapsed or not.
    pub(crate) async fn writers_with_leases(&self) -> Result<HashSet<WriterId>> {
        let listing = self.shared.storage.list(ListOptions::prefix(LEASES));
        listing
            .map_err(|error| Error::storage(LEASES, error))
            .try_filter_map(|object| async move { Ok(writer_of(&object.key)) })
            .try_collect()
            .await
    }

    /// Reads all leases.
    pub(crate) async fn leases(&self) -> Result<Vec<LeaseState>> {
        let mut listing = self.shared.storage.list(ListOptions::prefix(LEASES));
        let mut found = BTreeMap::<WriterId, Vec<(Key, SystemTime)>>::new();
        while let Some(object) = listing
            .try_next()
            .await
            .map_err(|error| Error::storage(LEASES, error))?
        {
            if let Some(writer) = writer_of(&object.key) {
                let beats = found.entry(writer).or_default();
                beats.push((object.key, object.modified));
            }
        }
        let leases: Vec<_> = stream::iter(found)
            .map(|(writer, beats)| self.read_lease(writer, beats))
            .buffered(16)
            .try_collect()
            .await?;
        Ok(leases.into_iter().flatten().collect())
    }

    /// Reads what the newest heartbeat says; nothing when the lease was released meanwhile.
    async fn read_lease(
        &self,
        writer: WriterId,
        beats: Vec<(Key, SystemTime)>,
    ) -> Result<Option<LeaseState>> {
        // Heartbeats are numbered in hexadecimal digits of one width: the last key is the newest.
        let Some((key, beat)) = beats.last().cloned() else {
            return Ok(None);
        };
        match self.get_json(&key, ObjectKind::Lease).await {
            Ok((_, body)) => Ok(Some(LeaseState {
                writer,
                keys: beats.into_iter().map(|(key, _)| key).collect(),
                beat,
                body,
            })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whose heartbeat lies there. What is there under another name is not ours, and hurts nobody; a check names it.
fn writer_of(key: &Key) -> Option<WriterId> {
    let (writer, beat) = key.as_str().strip_prefix(LEASES)?.split_once('/')?;
    let numbered = beat.len() == 8 && u32::from_str_radix(beat, 16).is_ok();
    numbered.then(|| writer.parse().ok())?
}

impl Inner {
    async fn beat(&self, state: &mut State) -> Result<()> {
        let body = LeaseBody {
            parents: state.parents.iter().copied().collect(),
            bringing: state.bringing.iter().copied().map(PackId).collect(),
        };
        let key = keys::lease(self.writer, state.next)?;
        // Whether or not the answer arrives, this number is used up.
        state.next = state.next.saturating_add(1);
        let meta = self
            .repository
            .put_json(&key, ObjectKind::Lease, self.writer, &body)
            .await?;
        let half = self.repository.shared.options.grace / 2;
        if let Some(last) = state.beat
            && meta
                .modified
                .duration_since(last)
                .is_ok_and(|gap| gap >= half)
        {
            state.lapsed = true;
        }
        state.beat = Some(meta.modified);
        Ok(())
    }
}

impl Lease {
    pub(crate) fn writer(&self) -> WriterId {
        self.inner.writer
    }

    /// Says that this writer builds on one more snapshot. Stored when this returns.
    pub(crate) async fn add_parent(&self, id: CommitId) -> Result<()> {
        let mut state = self.inner.state.lock().await;
        if state.parents.insert(id) {
            self.inner.beat(&mut state).await?;
        }
        Ok(())
    }

    /// Says that this writer brings more packs. Stored when this returns.
    pub(crate) async fn add_packs(&self, packs: &[PackId]) -> Result<()> {
        let mut state = self.inner.state.lock().await;
        let before = state.bringing.len();
        state.bringing.extend(packs.iter().map(|pack| pack.0));
        if state.bringing.len() > before {
            self.inner.beat(&mut state).await?;
        }
        Ok(())
    }

    /// A heartbeat now; returns the storage's time.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) when this writer was silent for half the grace at any time: a collection may have
    /// taken it for gone.
    pub(crate) async fn prove(&self) -> Result<SystemTime> {
        let mut state = self.inner.state.lock().await;
        self.inner.beat(&mut state).await?;
        if state.lapsed {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("writer {}", self.inner.writer),
                "was asleep for too long; what it wrote may be gone, begin anew",
            ));
        }
        Ok(state.beat.unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// Ends it. What cannot be deleted lapses.
    pub(crate) async fn release(self) {
        self.heart.abort();
        let state = self.inner.state.lock().await;
        let writer = self.inner.writer;
        let keys = (0..state.next).filter_map(|number| keys::lease(writer, number).ok());
        self.inner
            .repository
            .shared
            .storage
            .delete_many(stream::iter(keys.map(Ok).collect::<Vec<_>>()).boxed())
            .for_each(|_| async {})
            .await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.heart.abort();
    }
}
