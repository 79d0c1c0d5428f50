//! Promises about several clients at once.

use futures_util::{StreamExt, TryStreamExt, future, stream};

use super::check::Failure;
use super::{Case, Subject, writes};
use crate::error::{ErrorKind, Result};
use crate::ext::StorageExt;

pub(super) const CASES: &[Case] = &[
    case!(of_many_creates_one_wins, |c| c.create_only),
    case!(no_increment_is_lost_to_a_race, |c| c.compare_and_swap),
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
        let mut winners = Vec::new();
        for (client, created) in future::join_all(creates).await {
            match created {
                Ok(_) => winners.push(client),
                Err(error) if error.kind() == ErrorKind::Exists => {}
                Err(error) => return Err(Failure::from(error)),
            }
        }
        let [winner] = winners[..] else {
            return Err(Failure::new(format!(
                "{} of 8 creates succeeded",
                winners.len()
            )));
        };
        ensure!(
            s.reader.read(&key).await? == vec![winner; 1000],
            "not the winner's content"
        );
    }
    Ok(())
}

async fn no_increment_is_lost_to_a_race(s: Subject) -> Result<(), Failure> {
    let key = s.key("counter")?;
    s.put(&key, "0").await?;
    let increments = (0..6).map(|_| {
        let (storage, key) = (&s.reader, &key);
        async move {
            for _ in 0..4 {
                loop {
                    let got = storage.get(key, crate::GetOptions::new()).await?;
                    let Some(version) = got.meta.version.clone() else {
                        return Err(Failure::new("no version"));
                    };
                    let content = match got.bytes().await {
                        Ok(content) => content.to_vec(),
                        // It changed while it was read, and the reader was told.
                        Err(error) if error.is_retryable() => continue,
                        Err(error) => return Err(Failure::from(error)),
                    };
                    let count: u64 = String::from_utf8(content)?.parse()?;
                    let next = count.saturating_add(1).to_string().into_bytes();
                    match storage.replace(key, &version, next).await {
                        Ok(_) => break,
                        Err(error) if error.kind() == ErrorKind::Precondition => {}
                        Err(error) => return Err(Failure::from(error)),
                    }
                }
            }
            Ok(())
        }
    });
    future::try_join_all(increments).await?;
    ensure_eq!(
        s.reader.read(&key).await?,
        "24",
        "increments that took effect"
    );
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
