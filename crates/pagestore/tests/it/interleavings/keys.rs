//! Two who remove keys at the same time leave one.

use neon_pagestore::crypt::{KeyId, KeySource};

use super::*;
use crate::gated::follow;

fn phrase(text: &str) -> KeySource {
    KeySource::passphrase(text).with_cost(64, 1)
}

fn remover(storage: Gated, key: KeyId) -> Acting {
    async move {
        let work = async {
            let options = options().key(phrase("one"));
            let repository = Repository::open(Arc::new(storage), options).await?;
            repository.remove_key(key).await.map(|()| None)
        };
        ("remover", work.await)
    }
    .boxed()
}

/// A repository with two keys, and who removes one each.
async fn scene() -> (Clocked, Arc<Gate>, Vec<Acting>) {
    let storage = Clocked::new();
    let options = options().key(phrase("one"));
    let repository = Repository::init(Arc::new(storage.clone()), options)
        .await
        .unwrap();
    repository.add_key(phrase("two")).await.unwrap();
    let gate = Gate::new(2);
    let keys = repository.keys().await.unwrap();
    let actors = (0..2)
        .map(|actor| remover(gate.storage(&storage, actor), keys[actor].id))
        .collect();
    (storage, gate, actors)
}

async fn somebody_gets_in(storage: &Clocked, outcomes: &[Outcome], trace: &Trace) {
    let mut opened = None;
    for text in ["one", "two"] {
        let options = options().key(phrase(text));
        if let Ok(repository) = Repository::open(Arc::new(storage.clone()), options).await {
            opened = Some(repository);
        }
    }
    let opened = opened.unwrap_or_else(|| panic!("no key is left: {:#?}", trace.calls));
    let removed = outcomes.iter().filter(|outcome| outcome.1.is_ok()).count();
    assert_eq!(opened.keys().await.unwrap().len(), 2 - removed);
    for (_, outcome) in outcomes {
        if let Err(error) = outcome {
            let told = [ErrorKind::Busy, ErrorKind::Invalid, ErrorKind::Locked];
            assert!(told.contains(&error.kind()), "{error:?}");
        }
    }
    assert!(opened.check(true).await.unwrap().is_sound());
    // Nothing remains in the way.
    opened.add_key(phrase("three")).await.unwrap();
    let keys = opened.keys().await.unwrap();
    for key in &keys[1..] {
        opened.remove_key(key.id).await.unwrap();
    }
    assert_eq!(opened.keys().await.unwrap().len(), 1);
}

#[tokio::test]
async fn two_who_remove_the_last_two_keys_leave_one() {
    let (storage, gate, actors) = scene().await;
    let script = [(0, "delete keys/"), (1, "delete keys/"), (0, ""), (1, "")];
    let (outcomes, trace) = follow(&gate, actors, &script).await;
    somebody_gets_in(&storage, &outcomes, &trace).await;
    for seed in 0..60 {
        let (storage, gate, actors) = scene().await;
        let mut dice = Dice(seed);
        let any = |_, _, ready: &[usize]| ready[dice.below(ready.len())];
        let (outcomes, trace) = run(&gate, actors, any).await;
        somebody_gets_in(&storage, &outcomes, &trace).await;
    }
}
