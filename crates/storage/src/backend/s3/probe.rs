//! Does this provider enforce conditions? Asked by racing two clients, not by its documentation.
//!
//! Providers differ: some enforce conditions, some ignore the headers and report success, some
//! check first and write later. Only the first kind may be relied on, and one client alone can't
//! tell it from the third.

use futures_util::{StreamExt, TryStreamExt, future, stream};

use super::storage::S3;
use crate::capabilities::Capabilities;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::ext::StorageExt;
use crate::key::Key;
use crate::object::{ObjectMeta, Version};
use crate::options::PutMode;
use crate::storage::Storage;

/// Whether conditional writes are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Conditional {
    /// As [`Trusted`](Self::Trusted) on AWS itself, as [`Probed`](Self::Probed) at any other
    /// endpoint: some providers ignore conditions and report success.
    #[default]
    Automatic,
    /// The provider is known to enforce them.
    Trusted,
    /// Two clients race before the first put under a condition, or when [`Storage::probe`] asks;
    /// what isn't enforced is refused. A program that [remembers](super::ProbeMemory) what they found out spares the next
    /// race.
    ///
    /// [`Storage::probe`]: crate::Storage::probe
    Probed,
    /// Never: conditional puts are refused.
    Unused,
}

/// How often the clients race for each kind of condition.
const ROUNDS: u32 = 8;

/// What a race found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) create_only: bool,
    pub(super) compare_and_swap: bool,
}

impl Found {
    pub(super) const ALL: Self = Self {
        create_only: true,
        compare_and_swap: true,
    };
    pub(super) const NONE: Self = Self {
        create_only: false,
        compare_and_swap: false,
    };
}

/// Races two clients with connections of their own below a random key under `prefix`, and cleans up.
///
/// In a task of its own, which goes on to its end when the caller goes away; and because it is a
/// put within a put, for which one stack may be too small.
pub(super) async fn race(one: S3, two: S3, prefix: String) -> Result<Found> {
    let subject = one.location();
    to_its_end(subject, async move { contend(&one, &two, &prefix).await }).await
}

/// Whether a second create of a key, one after the other, is refused: what a provider that ignores conditions does not do. As
/// [`race`] does it: below a random key, cleaned up, to its end.
pub(super) async fn refuses_a_second(s3: S3, prefix: String) -> Result<bool> {
    let subject = s3.location();
    let asked = async move {
        let key = probe_key(&below(&prefix), 0)?;
        let second = async {
            if let Err(first) = s3.create(&key, "1").await {
                // A new key that exists, or no conditions at all.
                refused(Err(first))?;
                return Ok(false);
            }
            refused(s3.create(&key, "2").await)
        }
        .await;
        let cleaned = s3.delete(&key).await;
        let refuses = second?;
        cleaned?;
        Ok(refuses)
    };
    to_its_end(subject, asked).await
}

async fn to_its_end<T: Send + 'static>(
    subject: String,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.map_err(|error| {
        Error::new(ErrorKind::Unavailable, Operation::Open)
            .subject(subject)
            .detail("the runtime is shutting down")
            .because(error)
    })?
}

/// A new place for tries.
fn below(prefix: &str) -> String {
    let above = match prefix.trim_matches('/') {
        "" => String::new(),
        prefix => format!("{prefix}/"),
    };
    format!("{above}neon-probe-{:016x}", fastrand::u64(..))
}

async fn contend(one: &S3, two: &S3, prefix: &str) -> Result<Found> {
    let mut found = Found::ALL;
    let prefix = below(prefix);
    let keys: Vec<Key> = (0..2 * ROUNDS)
        .map(|round| probe_key(&prefix, round))
        .collect::<Result<_>>()?;
    let raced = async {
        for round in 0..ROUNDS {
            let key = probe_key(&prefix, round)?;
            let (a, b) = future::join(one.create(&key, "1"), two.create(&key, "2")).await;
            let again = one.create(&key, "3").await;
            found.create_only &= one_won(one, &key, a, b).await? && refused(again)?;
            if !found.create_only {
                break;
            }
        }
        for round in 0..ROUNDS {
            let key = probe_key(&prefix, round.saturating_add(ROUNDS))?;
            let old = one.overwrite(&key, "0").await?;
            let Some(version) = old.version else {
                found.compare_and_swap = false;
                break;
            };
            let swaps = future::join(
                one.replace(&key, &version, "1"),
                two.replace(&key, &version, "2"),
            );
            let (a, b) = swaps.await;
            let never = Version::new("\"00000000000000000000000000000000\"");
            let stale = one.replace(&key, &never, "3").await;
            found.compare_and_swap &= one_won(one, &key, a, b).await? && refused(stale)?;
            if !found.compare_and_swap {
                break;
            }
        }
        Ok(())
    }
    .await;
    // Each one is named: who may write below a prefix may not always list it.
    let cleaned = one
        .delete_many(stream::iter(keys.into_iter().map(Ok)).boxed())
        .try_for_each(|_| future::ready(Ok(())))
        .await;
    raced.and(cleaned)?;
    Ok(found)
}

fn probe_key(prefix: &str, round: u32) -> Result<Key> {
    Key::new(format!("{prefix}/{round}"))
        .map_err(|error| Error::new(ErrorKind::Invalid, Operation::Open).because(error))
}

/// Whether exactly one succeeded, the other was refused, and the winner's content is there.
async fn one_won(s3: &S3, key: &Key, a: Result<ObjectMeta>, b: Result<ObjectMeta>) -> Result<bool> {
    let (winner, loser): (&[u8], _) = match (a, b) {
        (Ok(_), Err(loser)) => (b"1", loser),
        (Err(loser), Ok(_)) => (b"2", loser),
        (Ok(_), Ok(_)) => return Ok(false),
        (Err(one), Err(two)) => {
            // Nobody won; unless they failed for another reason, that is the answer.
            let (_one, _two) = (refused(Err(one))?, refused(Err(two))?);
            return Ok(false);
        }
    };
    Ok(refused(Err(loser))? && s3.read(key).await? == winner)
}

/// Whether a write was refused by its condition. A failure of another kind is one.
fn refused(result: Result<ObjectMeta>) -> Result<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(error) => match error.kind() {
            ErrorKind::Exists | ErrorKind::Precondition => Ok(true),
            ErrorKind::Unsupported => Ok(false),
            _ => Err(error),
        },
    }
}

impl Found {
    pub(super) fn enforces(self, mode: &PutMode) -> bool {
        match mode {
            PutMode::Overwrite => true,
            PutMode::Create => self.create_only,
            PutMode::IfVersion(_) => self.compare_and_swap,
        }
    }

    pub(super) fn apply(self, capabilities: &mut Capabilities) {
        capabilities.create_only &= self.create_only;
        capabilities.compare_and_swap &= self.compare_and_swap;
        capabilities.recognises_own_put &= self.create_only;
    }
}
