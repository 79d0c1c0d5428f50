//! The keys of an encrypted repository: several envelopes at once, added, removed, renewed.
//!
//! An envelope that cannot be read, or that nobody made who has the keys, never stands in the way of a good one. None is
//! deleted that may hold an epoch which the deleting side does not hold itself.

use std::time::SystemTime;

use futures_util::TryStreamExt;
use neon_storage::{Key, ListOptions, Storage, StorageExt};

use crate::bridge::blocking;
use crate::crypt::envelope::{Envelope, Keyring};
use crate::crypt::key_source::MOST_WORK_AT_ONCE;
use crate::crypt::{KeyKind, KeySource};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{RepositoryId, WriterId, from_hex, random};
use crate::keys::{self, KEYS};
use crate::object::{Object, ObjectKind};
use crate::repository::{Repository, create, create_alone, read_small};

/// The identity of a key envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 16]);

/// A key that opens a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyInfo {
    /// Which.
    pub id: KeyId,
    /// What sort of key it is, if that can be told.
    pub kind: Option<KeyKind>,
    /// When it was added, by the storage's clock.
    pub added: SystemTime,
    /// Why it opens nothing, or not everything.
    pub problem: Option<String>,
}

struct Stored {
    id: KeyId,
    key: Key,
    added: SystemTime,
    /// The body, or why it cannot be read.
    body: Result<Vec<u8>>,
}

impl Stored {
    /// The envelope, if it is one.
    fn envelope(&self) -> Option<Envelope<'_>> {
        Envelope::parse(self.body.as_ref().ok()?).ok()
    }

    /// The envelope, if somebody made it who has these keys.
    fn vouched(&self, keyring: &Keyring, repository: RepositoryId) -> Option<Envelope<'_>> {
        self.envelope()
            .filter(|envelope| keyring.vouches(envelope, repository))
    }
}

/// What is stored about keys.
struct Survey {
    stored: Vec<Stored>,
    /// Epochs that were begun, and when.
    begun: Vec<(u32, SystemTime)>,
    /// Removals that are under way, or were interrupted: of which key, and where it is noted.
    removals: Vec<(KeyId, Key)>,
}

impl Survey {
    async fn of(storage: &dyn Storage) -> Result<Self> {
        let listing = storage.list(ListOptions::prefix(KEYS));
        let objects: Vec<_> = listing
            .try_collect()
            .await
            .map_err(|error| Error::storage(KEYS, error))?;
        let (mut stored, mut begun, mut removals) = (Vec::new(), Vec::new(), Vec::new());
        for object in objects {
            let name = object.key.as_str().strip_prefix(KEYS).unwrap_or_default();
            if let Some(epoch) = name.strip_prefix("epoch-").and_then(from_hex::<4>) {
                begun.push((u32::from_be_bytes(epoch), object.modified));
            }
            if let Some((of, _)) = name
                .strip_prefix("removing-")
                .and_then(|rest| rest.split_once('-'))
                && let Some(id) = from_hex(of)
            {
                removals.push((KeyId(id), object.key));
                continue;
            }
            let Some(id) = from_hex(name) else {
                continue;
            };
            let most = ObjectKind::Key.most();
            let body = match read_small(storage, &object.key, most).await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => Err(error),
                Ok(bytes) => Object::decode(&object.key, ObjectKind::Key, &bytes, None)
                    .map(|object| object.body),
            };
            stored.push(Stored {
                id: KeyId(id),
                body,
                key: object.key,
                added: object.modified,
            });
        }
        Ok(Self {
            stored,
            begun,
            removals,
        })
    }

    /// It, unless the storage failed to give an envelope, of another key than this: who decides which keys stay has to know
    /// all of them.
    fn answered(self, but: Option<KeyId>) -> Result<Self> {
        let unanswered = |stored: &Stored| {
            // Also what did not come back as it was stored: read again, it may be a good one.
            let failed = |error: &Error| {
                error.kind() == ErrorKind::Storage
                    || std::error::Error::source(error)
                        .is_some_and(|cause| cause.is::<neon_storage::Error>())
            };
            Some(stored.id) != but && stored.body.as_ref().is_err_and(failed)
        };
        let (failed, stored): (Vec<_>, Vec<_>) = self.stored.into_iter().partition(unanswered);
        match failed.into_iter().find_map(|stored| stored.body.err()) {
            Some(error) => Err(error),
            None => Ok(Self { stored, ..self }),
        }
    }

    /// All epochs in the envelopes that these keys open; and the first reason why one could not be tried.
    async fn open(
        &self,
        repository: RepositoryId,
        sources: Vec<KeySource>,
    ) -> Result<(Option<Keyring>, Option<Error>)> {
        let mut bodies: Vec<(u64, Vec<u8>)> = self
            .stored
            .iter()
            .filter_map(|stored| {
                let cost = stored.envelope()?.cost.work();
                Some((cost, stored.body.as_ref().ok()?.clone()))
            })
            .collect();
        // What is cheap goes first: a forged one that asks for much keeps nobody from opening a good one.
        bodies.sort_by_key(|(work, _)| *work);
        // Meant to take a while.
        let opened = blocking("keys", move || {
            let (mut keyring, mut problem) = (None::<Keyring>, None);
            for source in &sources {
                let tried = match source.kind {
                    KeyKind::Passphrase => affordable(bodies.iter().map(|(work, _)| *work)),
                    KeyKind::KeyFile => bodies.len(),
                };
                if tried < bodies.len() {
                    let reason = "asks, with the others, for a cost that is not allowed";
                    problem.get_or_insert_with(|| {
                        Error::new(ErrorKind::Limit, "key envelope", reason)
                    });
                }
                for (_, body) in bodies.iter().take(tried) {
                    match Keyring::open(body, repository, source) {
                        Ok(Some(opened)) => match &mut keyring {
                            Some(keyring) => keyring.merge(&opened),
                            None => keyring = Some(opened),
                        },
                        Ok(None) => {}
                        Err(error) => drop(problem.get_or_insert(error)),
                    }
                }
            }
            Ok((keyring, problem))
        });
        opened.await
    }

    /// Whether somebody who has the keys stored those of a newer epoch.
    fn is_renewed_since(&self, keyring: &Keyring, repository: RepositoryId) -> bool {
        let mut vouched = self.vouched(keyring, repository);
        vouched.any(|(_, envelope)| envelope.newest > keyring.newest())
    }

    fn vouched<'a>(
        &'a self,
        keyring: &'a Keyring,
        repository: RepositoryId,
    ) -> impl Iterator<Item = (&'a Stored, Envelope<'a>)> {
        self.stored
            .iter()
            .filter_map(move |stored| Some((stored, stored.vouched(keyring, repository)?)))
    }

    fn newest_begun(&self) -> u32 {
        self.begun
            .iter()
            .map(|(epoch, _)| *epoch)
            .max()
            .unwrap_or(0)
    }
}

/// How many of these pieces of work, the smallest first, are done for one key at most.
fn affordable(works: impl Iterator<Item = u64>) -> usize {
    let mut sum = 0_u64;
    works
        .take_while(|work| {
            sum = sum.saturating_add(*work);
            sum <= MOST_WORK_AT_ONCE
        })
        .count()
}

/// Stores an envelope.
pub(crate) async fn enclose(
    storage: &dyn Storage,
    repository: RepositoryId,
    keyring: &Keyring,
    source: KeySource,
) -> Result<KeyId> {
    let keyring = keyring.clone();
    // Meant to take a while.
    let body = blocking("keys", move || keyring.enclose(repository, &source)).await?;
    let id = KeyId(random()?);
    let key = keys::envelope(id.0)?;
    let object = Object::new(ObjectKind::Key, WriterId::random()?, body);
    create(storage, &key, object.encode(&key, None)?).await?;
    Ok(id)
}

/// Opens the keys of a repository: all epochs in all envelopes that this key opens. A key that was left out when keys were
/// renewed opens nothing, even where its envelope is still there.
///
/// An epoch that was begun and whose keys nobody stored keeps nobody out: whoever began it was interrupted, or is about
/// to store them.
pub(crate) async fn unlock(
    storage: &dyn Storage,
    repository: RepositoryId,
    source: Option<KeySource>,
) -> Result<Keyring> {
    let locked = |reason| {
        Error::new(
            ErrorKind::Locked,
            format!("repository at {}", storage.location()),
            reason,
        )
    };
    let source =
        source.ok_or_else(|| locked("is encrypted; a passphrase or a key file is needed"))?;
    let survey = Survey::of(storage).await?;
    let (opened, problem) = survey.open(repository, vec![source]).await?;
    if let Some(keyring) = opened {
        return match survey.is_renewed_since(&keyring, repository) {
            false => Ok(keyring),
            true => Err(locked(
                "its keys were renewed, and this key opens only what was written before",
            )),
        };
    }
    let readable = survey.stored.iter().any(|stored| stored.body.is_ok());
    let mut unread = survey
        .stored
        .into_iter()
        .filter_map(|stored| stored.body.err());
    match (problem, unread.next()) {
        (_, Some(error)) if !readable || error.kind() == ErrorKind::Storage => Err(error),
        (Some(error), _) | (None, Some(error)) => Err(locked(
            "is encrypted, and this key does not open it; not every key could be tried",
        )
        .caused_by(error)),
        (None, None) => Err(locked("is encrypted, and this key does not open it")),
    }
}

/// A text of an error with its causes.
fn told(error: &Error) -> String {
    let mut text = error.reason().to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

impl Repository {
    fn keyring(&self) -> Result<&Keyring> {
        self.shared.keyring.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("repository {}", self.id()),
                "is not encrypted; it has no keys",
            )
        })
    }

    /// What is stored about keys now, and all epochs that this handle holds or that it and these keys open.
    async fn keys_now(&self, sources: &[KeySource]) -> Result<(Survey, Keyring)> {
        let mut keyring = self.keyring()?.clone();
        self.require_writable()?;
        let survey = Survey::of(&*self.shared.storage).await?.answered(None)?;
        let sources = sources.iter().chain(&self.shared.options.key).cloned();
        if let (Some(opened), _) = survey.open(self.id(), sources.collect()).await? {
            keyring.merge(&opened);
        }
        if survey.is_renewed_since(&keyring, self.id()) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                format!("repository {}", self.id()),
                "its keys were renewed since it was opened; open it with one of the new ones",
            ));
        }
        Ok((survey, keyring))
    }

    /// An error while somebody begins an epoch. One that was begun longer than the grace ago, and whose keys nobody
    /// stored, was given up.
    async fn refuse_begun(&self, survey: &Survey, held: u32) -> Result<()> {
        let unheld = survey.begun.iter().filter(|(epoch, _)| *epoch > held);
        let Some(last) = unheld.map(|(_, begun)| *begun).max() else {
            return Ok(());
        };
        let now = self.storage_time().await?;
        match now.duration_since(last) {
            Ok(age) if age > self.shared.options.grace => Ok(()),
            _ => Err(self.others_renew()),
        }
    }

    fn others_renew(&self) -> Error {
        Error::new(
            ErrorKind::Busy,
            format!("repository {}", self.id()),
            "somebody else is renewing its keys",
        )
    }

    /// The keys that open this repository, and what cannot be read among them.
    ///
    /// # Errors
    /// [`Storage`](ErrorKind::Storage).
    pub async fn keys(&self) -> Result<Vec<KeyInfo>> {
        let survey = Survey::of(&*self.shared.storage).await?;
        let describe = |stored: &Stored| {
            let parsed = match &stored.body {
                Ok(body) => Envelope::parse(body).map_err(|error| told(&error)),
                Err(error) => Err(told(error)),
            };
            let (kind, problem) = match (parsed, &self.shared.keyring) {
                (Err(problem), _) => (None, Some(problem)),
                (Ok(envelope), Some(keyring)) if !keyring.vouches(&envelope, self.id()) => {
                    let problem = "was not made by anybody who has the keys";
                    (Some(envelope.kind), Some(problem.to_owned()))
                }
                (Ok(envelope), Some(keyring)) if envelope.newest < keyring.newest() => {
                    let problem = "was left out when the keys were renewed";
                    (Some(envelope.kind), Some(problem.to_owned()))
                }
                (Ok(envelope), _) => (Some(envelope.kind), None),
            };
            KeyInfo {
                id: stored.id,
                kind,
                added: stored.added,
                problem,
            }
        };
        Ok(survey.stored.iter().map(describe).collect())
    }

    /// What is wrong with an envelope beyond its own bytes.
    pub(crate) fn check_voucher(&self, body: &[u8]) -> Result<()> {
        let envelope = Envelope::parse(body)?;
        match &self.shared.keyring {
            Some(keyring) if !keyring.vouches(&envelope, self.id()) => Err(Error::damaged(
                "key envelope",
                "was not made by anybody who has the keys",
            )),
            _ => Ok(()),
        }
    }

    /// Adds a key that opens this repository.
    ///
    /// Dropped: it is added or not.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) when the repository is not encrypted; [`Inconsistent`](ErrorKind::Inconsistent)
    /// when its keys were renewed and the key that it was opened with is not among the new ones;
    /// [`Busy`](ErrorKind::Busy) while somebody renews them; [`Storage`](ErrorKind::Storage), also when it fails to give the
    /// envelope of another key.
    pub async fn add_key(&self, source: KeySource) -> Result<KeyId> {
        let storage = &*self.shared.storage;
        let (survey, keyring) = self.keys_now(&[]).await?;
        self.refuse_begun(&survey, keyring.newest()).await?;
        let begun = survey.newest_begun();
        let id = enclose(storage, self.id(), &keyring, source).await?;
        // Keys renewed meanwhile would leave this one without the newest.
        if Survey::of(storage).await?.newest_begun() > begun {
            let key = keys::envelope(id.0)?;
            let deleted = storage.delete(&key).await;
            deleted.map_err(|error| Error::storage(key.as_str(), error))?;
            return Err(self.others_renew());
        }
        Ok(id)
    }

    /// Removes a key, also one that cannot be read. Who had it may have noted what it opens: to shut them out of what is
    /// written from now on, [`rekey`](Self::rekey).
    ///
    /// Dropped: it is removed or not. As long as it is not, it counts as a key that may go any time, so that no other can
    /// be removed which would be the last: repeat the removal, or add a key.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) for the last key that is sound and opens the
    /// newest epoch; [`Busy`](ErrorKind::Busy) when all others that do so are being removed.
    pub async fn remove_key(&self, id: KeyId) -> Result<()> {
        self.keyring()?;
        self.require_writable()?;
        let storage = &*self.shared.storage;
        // First the note, then the look: of two who remove at the same time, at least one sees the other.
        let note = keys::removal(id.0, random()?)?;
        create(storage, &note, Vec::new()).await?;
        let removed = self.remove_noted(id).await;
        if !removed
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Storage)
        {
            // What was sent and not answered may still be done: then the note stays.
            let deleted = storage.delete(&note).await;
            deleted.map_err(|error| Error::storage(note.as_str(), error))?;
        }
        removed
    }

    async fn remove_noted(&self, id: KeyId) -> Result<()> {
        let keyring = self.keyring()?;
        let storage = &*self.shared.storage;
        let survey = Survey::of(storage).await?.answered(Some(id))?;
        let key = keys::envelope(id.0)?;
        let there: Vec<KeyId> = survey.stored.iter().map(|stored| stored.id).collect();
        if !there.contains(&id) {
            return Err(Error::new(
                ErrorKind::NotFound,
                key.as_str(),
                "there is no such key",
            ));
        }
        let newest = survey
            .vouched(keyring, self.id())
            .map(|(_, envelope)| envelope.newest)
            .fold(keyring.newest(), u32::max);
        let others: Vec<KeyId> = survey
            .vouched(keyring, self.id())
            .filter(|(stored, envelope)| stored.id != id && envelope.newest == newest)
            .map(|(stored, _)| stored.id)
            .collect();
        let going: Vec<KeyId> = survey.removals.iter().map(|(going, _)| *going).collect();
        if others.iter().all(|other| going.contains(other)) {
            let (kind, reason) = match others.is_empty() {
                true => (
                    ErrorKind::Invalid,
                    "is the last key; nobody could open the repository",
                ),
                false => (
                    ErrorKind::Busy,
                    "would be the last key: all others are being removed, or their removal was interrupted",
                ),
            };
            return Err(Error::new(kind, key.as_str(), reason));
        }
        let deleted = storage.delete(&key).await;
        deleted.map_err(|error| Error::storage(key.as_str(), error))?;
        // Notes of who did not come to the end about keys that are gone: no key is stored twice under one id.
        for (_, note) in survey.removals.iter().filter(|(id, _)| !there.contains(id)) {
            let deleted = storage.delete(note).await;
            deleted.map_err(|error| Error::storage(note.as_str(), error))?;
        }
        Ok(())
    }

    /// Begins a new epoch: what is written from now on is sealed with a new key, which only these keys open. All other
    /// keys are removed, but for those that cannot be read. What was written before stays sealed as it is, and these
    /// keys open it too. Writers at work go on with the old epoch; the handle that is returned writes in the new one.
    ///
    /// Dropped: old and new keys may both be there.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) without a key, or when the repository is not encrypted;
    /// [`Busy`](ErrorKind::Busy) when somebody else begins an epoch: until the grace has passed, if they were interrupted;
    /// [`Inconsistent`](ErrorKind::Inconsistent) when the keys were renewed since this handle was opened, and neither what
    /// it was opened with nor these keys open the new ones. Nothing was removed then;
    /// [`Unsupported`](ErrorKind::Unsupported) where the storage lets two create the same object: both would begin the epoch;
    /// [`Storage`](ErrorKind::Storage), also when it fails to give the envelope of another key, which might stay otherwise.
    pub async fn rekey(&self, sources: Vec<KeySource>) -> Result<Self> {
        let Some(first) = sources.first().cloned() else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "keys",
                "at least one is needed",
            ));
        };
        for source in &sources {
            source.cost.allow()?;
        }
        let storage = &*self.shared.storage;
        let (before, held) = self.keys_now(&sources).await?;
        self.refuse_begun(&before, held.newest()).await?;
        let epoch = held
            .newest()
            .max(before.newest_begun())
            .checked_add(1)
            .ok_or_else(|| Error::new(ErrorKind::Limit, "keys", "were renewed too often"))?;
        // Only one begins an epoch.
        match create_alone(storage, &keys::epoch(epoch)?).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Exists => {
                return Err(self.others_renew().caused_by(error));
            }
            Err(error) => return Err(error),
        }
        let renewed = held.renewed(epoch)?;
        for source in sources {
            enclose(storage, self.id(), &renewed, source).await?;
        }
        // Who took so long that others gave them up leaves what is there.
        if Survey::of(storage).await?.newest_begun() > epoch {
            return Err(self.others_renew());
        }
        for (stored, envelope) in before.vouched(&renewed, self.id()) {
            if renewed.covers(&envelope) {
                let deleted = storage.delete(&stored.key).await;
                deleted.map_err(|error| Error::storage(stored.key.as_str(), error))?;
            }
        }
        let mut options = self.shared.options.clone();
        options.key = Some(first);
        Self::open(std::sync::Arc::clone(&self.shared.storage), options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forged_envelopes_do_not_add_up_to_any_cost() {
        assert_eq!(affordable([192 << 10; 40].into_iter()), 40);
        assert_eq!(affordable([8 << 20; 40].into_iter()), 2);
        assert_eq!(affordable([192 << 10, 64 << 20].into_iter()), 1);
    }
}
