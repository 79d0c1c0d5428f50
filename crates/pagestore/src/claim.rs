//! Claims: which snapshot has a name.
//!
//! A claim is an object that only one can create, under the keyed hash of the name and a generation. The holder of
//! a name is the newest generation whose snapshot is alive; when none is, the name is free for the next generation.
//! The newest generation is never deleted, so that generations are never used twice.

use std::collections::HashSet;
use std::fmt;

use futures_util::TryStreamExt;
use neon_storage::{Key, ListOptions};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{CommitId, WriterId};
use crate::keys::{self, NameHash};
use crate::name::{SnapshotName, Tag};
use crate::object::ObjectKind;
use crate::repository::Repository;

/// How often the race for a name is run again before it counts as busy.
const ROUNDS: usize = 32;
/// How many generations in a row are asked for that are not there, where nothing can be listed.
const MOST_ASKED: u32 = 8;
/// Generations that are asked for of one name.
const MOST_GENERATIONS: u32 = 1 << 16;

/// What a claim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClaimBody {
    pub(crate) name: SnapshotName,
    pub(crate) commit: CommitId,
}

/// What came of asking for a name.
#[derive(Debug)]
pub enum NameOutcome {
    /// The snapshot has it.
    Given,
    /// Another snapshot had it first. The new one is there all the same, under its id.
    Taken {
        /// Which.
        by: CommitId,
    },
    /// The snapshot is there; whether it has the name is settled by the next who looks, because of this.
    Unsettled(Error),
}

impl fmt::Display for NameOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => f.write_str("given"),
            Self::Taken { by } => write!(f, "taken by snapshot {by}"),
            Self::Unsettled(error) => write!(f, "not settled: {error}"),
        }
    }
}

/// All that is stored about one name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    /// By generation.
    pub(crate) generations: Vec<(u32, CommitId)>,
    /// Snapshots that wanted it and were told that it is taken.
    pub(crate) declined: HashSet<CommitId>,
}

impl Repository {
    pub(crate) fn name_hash(&self, name: &SnapshotName) -> NameHash {
        let hash = blake3::keyed_hash(&self.shared.name_key, name.to_string().as_bytes());
        NameHash(*hash.as_bytes())
    }

    /// Reads all that is stored about a name.
    pub(crate) async fn claims(&self, name: &SnapshotName) -> Result<Claims> {
        let hash = self.name_hash(name);
        if !self.lists() {
            return self.claims_unlisted(name, hash).await;
        }
        let prefix = keys::claims_of(hash);
        let listing = self.shared.storage.list(ListOptions::prefix(&prefix));
        let objects: Vec<_> = listing
            .try_collect()
            .await
            .map_err(|error| Error::storage(format!("name {name}"), error))?;
        let mut claims = Claims::default();
        for object in objects {
            let rest = object
                .key
                .as_str()
                .strip_prefix(&prefix)
                .unwrap_or_default();
            if let Some(id) = rest.strip_prefix("declined-") {
                claims.declined.insert(id.parse()?);
                continue;
            }
            let generation = u32::from_str_radix(rest, 16)
                .map_err(|_| Error::malformed(object.key.as_str(), "is not where claims are"))?;
            match self
                .get_json::<ClaimBody>(&object.key, ObjectKind::Claim)
                .await
            {
                Ok((_, body)) if body.name == *name => {
                    claims.generations.push((generation, body.commit));
                }
                Ok(_) => {
                    return Err(Error::damaged(object.key.as_str(), "claims another name"));
                }
                // An old generation that a collection took away.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(claims)
    }

    /// As [`claims`](Self::claims), where nothing can be listed: generations are asked for one by one. A name that was given
    /// anew more often than [`MOST_ASKED`] times since its earlier generations were collected is not found so.
    async fn claims_unlisted(&self, name: &SnapshotName, hash: keys::NameHash) -> Result<Claims> {
        let mut claims = Claims::default();
        let (mut generation, mut missed) = (0_u32, 0_u32);
        while missed < MOST_ASKED {
            let key = keys::claim(hash, generation)?;
            match self.get_json::<ClaimBody>(&key, ObjectKind::Claim).await {
                Ok((_, body)) if body.name == *name => {
                    claims.generations.push((generation, body.commit));
                    missed = 0;
                }
                Ok(_) => return Err(Error::damaged(key.as_str(), "claims another name")),
                Err(error) if error.kind() == ErrorKind::NotFound => missed += 1,
                Err(error) => return Err(error),
            }
            generation = generation.saturating_add(1);
            // Nobody gives a name so often: it is a server that has an answer to everything.
            if generation > MOST_GENERATIONS {
                return Err(Error::damaged(key.as_str(), "is one of too many"));
            }
        }
        Ok(claims)
    }

    /// The snapshot that has a name.
    pub(crate) async fn holder(&self, claims: &Claims) -> Result<Option<CommitId>> {
        for (_, id) in claims.generations.iter().rev() {
            if self.standing(*id).await?.is_some() {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// Asks for a name for a commit that is stored.
    pub(crate) async fn claim(
        &self,
        writer: WriterId,
        name: &SnapshotName,
        commit: CommitId,
    ) -> NameOutcome {
        match self.try_claim(writer, name, commit).await {
            Ok(outcome) => outcome,
            Err(error) => NameOutcome::Unsettled(error),
        }
    }

    async fn try_claim(
        &self,
        writer: WriterId,
        name: &SnapshotName,
        commit: CommitId,
    ) -> Result<NameOutcome> {
        let hash = self.name_hash(name);
        for _ in 0..ROUNDS {
            let claims = self.claims(name).await?;
            let once = matches!(
                name,
                SnapshotName::Tagged {
                    tag: Tag::Head(_),
                    ..
                }
            );
            let holder = match (self.holder(&claims).await?, once) {
                // The numbers of HEAD{i} are never used again, whatever became of the snapshot.
                (None, true) => claims.generations.last().map(|(_, id)| *id),
                (holder, _) => holder,
            };
            let newest = claims.generations.last().map(|(_, id)| *id);
            match holder {
                Some(holder) if holder == commit && newest == Some(commit) => {
                    return Ok(NameOutcome::Given);
                }
                // A generation that is not the newest is taken away by who collects the snapshot as it was before it
                // was brought again.
                Some(holder) if holder == commit => {}
                Some(by) => {
                    self.decline(writer, name, commit).await?;
                    return Ok(NameOutcome::Taken { by });
                }
                None => {}
            }
            let next = match claims.generations.last() {
                Some((newest, _)) => newest.checked_add(1).ok_or_else(|| {
                    Error::new(
                        ErrorKind::Limit,
                        format!("name {name}"),
                        "was given too often",
                    )
                })?,
                None => 0,
            };
            let body = ClaimBody {
                name: name.clone(),
                commit,
            };
            let key = keys::claim(hash, next)?;
            match self.put_json(&key, ObjectKind::Claim, writer, &body).await {
                // Looked at again: where a create does not mind what is there, the last one holds.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("name {name}"),
            "is given and taken away all the time",
        ))
    }

    /// Notes that a snapshot does not get the name, also when the name becomes free.
    async fn decline(&self, writer: WriterId, name: &SnapshotName, commit: CommitId) -> Result<()> {
        let body = ClaimBody {
            name: name.clone(),
            commit,
        };
        let key = keys::declined(self.name_hash(name), commit)?;
        match self
            .put_json(&key, ObjectKind::Declined, writer, &body)
            .await
        {
            Err(error) if error.kind() == ErrorKind::Exists => Ok(()),
            put => put.map(drop),
        }
    }

    /// Where it is said what became of the names of a commit that is going. The newest generation of a name stays, so
    /// that generations are never used twice.
    pub(crate) async fn claims_to_forget(
        &self,
        commit: CommitId,
        names: &[SnapshotName],
    ) -> Result<Vec<Key>> {
        let mut gone = Vec::new();
        for name in names {
            let hash = self.name_hash(name);
            let claims = self.claims(name).await?;
            let newest = claims.generations.last().map(|(generation, _)| *generation);
            for (generation, holder) in &claims.generations {
                if *holder == commit && Some(*generation) != newest {
                    gone.push(keys::claim(hash, *generation)?);
                }
            }
            if claims.declined.contains(&commit) {
                gone.push(keys::declined(hash, commit)?);
            }
        }
        Ok(gone)
    }
}
