//! Promises about several clients at once.

use futures_util::{StreamExt, TryStreamExt, future, stream};

use super::check::Failure;
use super::{Case, Subject, writes};
use crate::error::{ErrorKind, Result};
use crate::ext::StorageExt;

pub(super) const CASES: &[Case] = &[
    case!(of_many_creates_one_wins, |c| c.create_only),
    case!(no_swap_is_lost_to_a_race_or_told_wrongly, |c| c
        .compare_and_swap),
    case!(many_objects_are_put_at_once, writes),
    case!(readers_of_an_overwritten_object_see_one_whole, writes),
];

async fn of_many_creates_one_wins(s: Subject) -> Result<(), Failure> {
    for round in 0..5 {
        let key = s.key(&format!("race-{round}/deep/claim"))?;
        let creates = (0..8u8).map(|client| {
            let (storage, key) = (&s.reader, &key);
            async move { (client, storage.create(key, vec![client; 1000]).await) }
        });
        let (mut winners, mut unknown) = (Vec::new(), Vec::new());
        for (client, created) in future::join_all(creates).await {
            match created {
                Ok(_) => winners.push(client),
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) if error.outcome_unknown() => unknown.push(client),
                Err(error) => return Err(Failure::from(error)),
            }
        }
        ensure!(
            winners.len() == 1 || winners.is_empty() && !unknown.is_empty(),
            "{} of 8 creates succeeded, {} may have",
            winners.len(),
            unknown.len()
        );
        let content = s.reader.read(&key).await?;
        let candidates = if winners.is_empty() { unknown } else { winners };
        ensure!(
            candidates
                .iter()
                .any(|client| content == vec![*client; 1000]),
            "not the winner's content"
        );
    }
    Ok(())
}

/// What became of one swap in a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Swap {
    Done,
    Refused,
    Unknown,
}

/// Every swap adds a name of its own, so the object tells afterwards which of them took effect,
/// whatever their callers were told.
async fn no_swap_is_lost_to_a_race_or_told_wrongly(s: Subject) -> Result<(), Failure> {
    let key = s.key("journal")?;
    s.put(&key, "").await?;
    let clients = (0..6).map(|client| {
        let (storage, key) = (&s.reader, &key);
        async move {
            let (mut swaps, mut ended) = (Vec::new(), 0);
            while ended < 4 {
                let got = storage.get(key, crate::GetOptions::new()).await?;
                let Some(version) = got.meta.version.clone() else {
                    return Err(Failure::new("no version"));
                };
                let content = match got.bytes().await {
                    Ok(content) => content,
                    // It changed while it was read, and the reader was told.
                    Err(error) if error.is_retryable() => continue,
                    Err(error) => return Err(Failure::from(error)),
                };
                let name = format!("{client}.{}", swaps.len());
                let next = [&content[..], name.as_bytes(), b"\n"].concat();
                let swap = match storage.replace(key, &version, next).await {
                    Ok(_) => Swap::Done,
                    Err(error) if error.kind() == ErrorKind::Precondition => Swap::Refused,
                    Err(error) if error.outcome_unknown() => Swap::Unknown,
                    Err(error) => return Err(Failure::from(error)),
                };
                ended += u32::from(swap != Swap::Refused);
                swaps.push((name, swap));
            }
            Ok(swaps)
        }
    });
    let told = future::try_join_all(clients).await?.concat();
    let journal = String::from_utf8(s.reader.read(&key).await?.to_vec())?;
    for (name, swap) in &told {
        let times = journal.lines().filter(|line| line == name).count();
        let truthful = match swap {
            Swap::Done => times == 1,
            Swap::Refused => times == 0,
            Swap::Unknown => times <= 1,
        };
        ensure!(
            truthful,
            "{name} was told {swap:?} and is there {times} times"
        );
    }
    Ok(())
}

async fn many_objects_are_put_at_once(s: Subject) -> Result<(), Failure> {
    stream::iter(0..40u8)
        .map(|number| {
            let s = s.clone();
            async move {
                let key = s.key(&format!("parallel/{}/{number}", number % 4))?;
                s.put(&key, vec![number; 10_000]).await?;
                Ok::<_, Failure>(())
            }
        })
        .buffer_unordered(10)
        .try_collect::<()>()
        .await?;
    for number in 0..40u8 {
        let key = s.key(&format!("parallel/{}/{number}", number % 4))?;
        ensure!(
            s.reader.read(&key).await? == vec![number; 10_000],
            "content of {key}"
        );
    }
    Ok(())
}

async fn readers_of_an_overwritten_object_see_one_whole(s: Subject) -> Result<(), Failure> {
    let key = s.key("flapping")?;
    s.reader.overwrite(&key, vec![0u8; 200_000]).await?;
    let writes = async {
        for round in 1..20u8 {
            s.reader
                .overwrite(&key, vec![round; 200_000 + usize::from(round)])
                .await?;
        }
        Ok::<_, Failure>(())
    };
    let reads = async {
        for _ in 0..20 {
            let content = match s.reader.read(&key).await {
                Ok(content) => content,
                // The object changed while it was read, and the reader was told.
                Err(error) if error.is_retryable() => continue,
                Err(error) => return Err(Failure::from(error)),
            };
            let first = content.first().copied().unwrap_or_default();
            ensure!(content.iter().all(|byte| *byte == first), "a mixture");
            ensure_eq!(content.len(), 200_000 + usize::from(first), "length");
        }
        Ok(())
    };
    future::try_join(writes, reads).await?;
    Ok(())
}
