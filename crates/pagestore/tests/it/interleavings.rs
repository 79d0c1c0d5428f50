//! Writers, collections, destroyers and sleep in every order: what was reported as done is there and whole, and
//! whatever can be seen is whole.

mod again;
mod keys;
mod thinning;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use neon_pagestore::{Commit, CommitId, ErrorKind, Repository};
use neon_snapshot_format::pack::PackId;
use neon_storage::{Key, StorageExt};

use crate::clocked::Clocked;
use crate::files::{several, try_make};
use crate::gated::{Gate, Gated, Trace, run};
use crate::support::{GRACE, empty_commit, init, open, options, read, try_write, write};

/// What an actor says at its end.
type Outcome = (&'static str, neon_pagestore::Result<Option<CommitId>>);
type Acting = BoxFuture<'static, Outcome>;

async fn reopen(storage: Gated) -> neon_pagestore::Result<Repository> {
    Repository::open(Arc::new(storage), options()).await
}

/// Writes a snapshot on a parent.
fn writer(storage: Gated, parent: Option<CommitId>, name: &'static str) -> Acting {
    async move {
        let work = async {
            let repository = reopen(storage).await?;
            let committed = try_write(&repository, parent, &[("new", 77)], &[name]).await?;
            Ok(Some(committed.id))
        };
        ("writer", work.await)
    }
    .boxed()
}

/// As [`writer`], with the writer that programs use.
fn maker(storage: Gated, parent: Option<CommitId>, name: &'static str) -> Acting {
    async move {
        let work = async {
            let repository = reopen(storage).await?;
            let made = try_make(&repository, parent, &several(2), &[name]).await?;
            Ok(Some(made.id))
        };
        ("writer", work.await)
    }
    .boxed()
}

/// Collects so many times.
fn collector(storage: Gated, times: usize) -> Acting {
    async move {
        let work = async {
            let repository = reopen(storage).await?;
            for _ in 0..times {
                repository.collect().await?;
            }
            Ok(None)
        };
        ("collector", work.await)
    }
    .boxed()
}

/// Lets time pass.
fn clock(gate: &Arc<Gate>, actor: usize, storage: &Clocked, times: usize) -> Acting {
    let (gate, storage) = (Arc::clone(gate), storage.clone());
    async move {
        for _ in 0..times {
            gate.pass(actor, "time passes".to_owned()).await;
            storage.advance(GRACE * 2 / 3);
        }
        ("clock", Ok(None))
    }
    .boxed()
}

fn destroyer(storage: Gated, id: CommitId) -> Acting {
    async move {
        let work = async { reopen(storage).await?.destroy(id).await.map(|()| None) };
        ("destroyer", work.await)
    }
    .boxed()
}

/// Brings a destroyed snapshot back.
fn undoer(storage: Gated, id: CommitId) -> Acting {
    async move {
        let work = async {
            reopen(storage).await?.undo_destroy(id).await?;
            Ok(Some(id))
        };
        ("undoer", work.await)
    }
    .boxed()
}

/// Pins a snapshot; reads it if it got the pin.
fn pinner(storage: Gated, id: CommitId) -> Acting {
    async move {
        let work = async {
            let repository = reopen(storage).await?;
            repository.pin(id, "test").await?;
            Ok(None)
        };
        ("pinner", work.await)
    }
    .boxed()
}

/// Stores a snapshot that relies on packs which are there already, as a push does.
fn pusher(storage: Gated, commit: Commit, packs: Vec<PackId>) -> Acting {
    async move {
        let work = async {
            let repository = reopen(storage).await?;
            let writing = repository.begin_writing().await?;
            for tries in 0..3 {
                if writing.bring(&packs).await?.there.len() == packs.len() {
                    break;
                }
                if tries == 2 {
                    writing.abandon().await;
                    return Ok(None);
                }
            }
            Ok(Some(writing.commit(&commit).await?.id))
        };
        ("pusher", work.await)
    }
    .boxed()
}

/// A repository to begin with, and who acts on it.
struct Scene {
    storage: Clocked,
    gate: Arc<Gate>,
    actors: Vec<Acting>,
    /// Snapshots that nobody destroys.
    kept: Vec<CommitId>,
}

async fn keys(storage: &Clocked) -> Vec<Key> {
    let objects = storage.list_all("").await.unwrap();
    objects.into_iter().map(|object| object.key).collect()
}

/// What must hold at the end, and still when all garbage is gone.
async fn check(scene: (Clocked, Vec<CommitId>), outcomes: Vec<Outcome>, trace: &Trace) {
    let (storage, mut kept) = scene;
    let destroyed = outcomes.iter().any(|(actor, _)| *actor == "destroyer");
    for (actor, outcome) in outcomes {
        match outcome {
            // Who destroys it may come later.
            Ok(Some(id)) if !destroyed || !matches!(actor, "undoer" | "copier") => kept.push(id),
            Ok(_) => {}
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound),
                "{actor}: {error:?}\n{:#?}",
                trace.calls
            ),
        }
    }
    let repository = open(&storage).await;
    let mut left = Vec::new();
    for round in 0..6 {
        for id in &kept {
            repository
                .resolve(&id.to_string())
                .await
                .unwrap_or_else(|error| panic!("round {round}: {error:?}\n{:#?}", trace.calls));
        }
        for id in repository.snapshot_ids().await.unwrap() {
            read(&repository, id)
                .await
                .unwrap_or_else(|error| panic!("round {round}: {error:?}\n{:#?}", trace.calls));
        }
        for pin in repository.pins().await.unwrap() {
            read(&repository, pin.commit)
                .await
                .unwrap_or_else(|error| panic!("round {round}: {error:?}\n{:#?}", trace.calls));
        }
        if let Err(error) = repository.collect().await {
            panic!("round {round}: {error:?}\n{:#?}", trace.calls);
        }
        storage.advance(GRACE * 2);
        // What one leaves as it was more than a grace before, when everything was there already, all later ones do.
        let now = keys(&storage).await;
        if std::mem::replace(&mut left, now.clone()) == now {
            return;
        }
    }
}

/// Tries schedules. Which, and how many, is decided by `NEON_SCHEDULES`: all with at most `bound` preemptions for
/// `all`; else so many of two sorts: at every step the first of a random order goes, and at `bound` random steps it
/// becomes the last (Burckhardt and others, 2010, find each error of few orderings so); and any at every step.
#[expect(clippy::print_stdout, reason = "how much was tried is the result")]
async fn explore<F: AsyncFn() -> Scene>(name: &str, scene: F, bound: usize) {
    let limit = match std::env::var("NEON_SCHEDULES") {
        Ok(all) if all == "all" => return explore_all(name, scene, bound).await,
        Ok(count) => count.parse().expect("a number or `all`"),
        Err(_) => 60,
    };
    let mut longest = 40;
    for seed in 0..limit {
        let made = scene().await;
        let mut dice = Dice(seed + 1);
        let mut order: Vec<usize> = (0..made.actors.len()).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, dice.below(at + 1));
        }
        let changes: Vec<usize> = (0..bound).map(|_| dice.below(longest)).collect();
        let (outcomes, trace) = run(&made.gate, made.actors, |step, last, ready| {
            if let (true, Some(last)) = (changes.contains(&step), last) {
                order.retain(|actor| *actor != last);
                order.push(last);
            }
            *order.iter().find(|actor| ready.contains(actor)).unwrap()
        })
        .await;
        longest = longest.max(trace.choices.len());
        check((made.storage, made.kept), outcomes, &trace).await;
    }
    for seed in 0..limit {
        let made = scene().await;
        let mut dice = Dice(seed + 1);
        let any = |_, _, ready: &[usize]| ready[dice.below(ready.len())];
        let (outcomes, trace) = run(&made.gate, made.actors, any).await;
        check((made.storage, made.kept), outcomes, &trace).await;
    }
    println!("{name}: {limit} schedules of each sort");
}

/// Tries all schedules with at most `bound` preemptions.
#[expect(clippy::print_stdout, reason = "how much was tried is the result")]
async fn explore_all<F: AsyncFn() -> Scene>(name: &str, scene: F, bound: usize) {
    let mut todo: Vec<Vec<usize>> = vec![Vec::new()];
    let mut runs = 0_u64;
    while let Some(prefix) = todo.pop() {
        let made = scene().await;
        let (outcomes, trace) = run(&made.gate, made.actors, |step, last, ready| {
            let wanted = prefix.get(step).copied().or(last);
            wanted
                .filter(|actor| ready.contains(actor))
                .unwrap_or(ready[0])
        })
        .await;
        runs += 1;
        // Every other choice after the prefix is a schedule of its own.
        for step in prefix.len()..trace.choices.len() {
            let (ready, taken) = &trace.choices[step];
            for other in ready.iter().filter(|actor| *actor != taken) {
                let mut choices: Vec<_> = trace.choices[..step].to_vec();
                choices.push((ready.clone(), *other));
                if Trace::preemptions(&choices) <= bound {
                    todo.push(choices.iter().map(|(_, actor)| *actor).collect());
                }
            }
        }
        check((made.storage, made.kept), outcomes, &trace).await;
    }
    println!("{name}: all {runs} schedules with at most {bound} preemptions");
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

/// The packs of a snapshot's map and pages: all there are.
async fn all_packs(storage: &Clocked) -> Vec<PackId> {
    let objects = storage.list_all("packs/").await.unwrap();
    let ids = objects
        .iter()
        .map(|object| object.key.segments().last().unwrap().to_owned());
    ids.map(|id| {
        let bytes: Vec<u8> = (0..16)
            .map(|n| u8::from_str_radix(&id[2 * n..2 * n + 2], 16).unwrap())
            .collect();
        PackId(bytes.try_into().unwrap())
    })
    .collect()
}

/// What is destroyed is announced, and the next collection deletes it.
async fn announce(storage: &Clocked, repository: &Repository, announced: bool) {
    if announced {
        repository.collect().await.unwrap();
        storage.advance(GRACE * 2);
    }
}

#[tokio::test]
async fn a_writer_a_destroyer_and_a_collector() {
    let scene = async || {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let parent = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
        let gate = Gate::new(4);
        let actors = vec![
            writer(gate.storage(&storage, 0), Some(parent), "pg@2"),
            destroyer(gate.storage(&storage, 1), parent),
            collector(gate.storage(&storage, 2), 3),
            clock(&gate, 3, &storage, 5),
        ];
        Scene {
            storage,
            gate,
            actors,
            kept: Vec::new(),
        }
    };
    explore("writer", scene, 2).await;
}

#[tokio::test]
async fn the_writer_itself_a_destroyer_and_a_collector() {
    let scene = async || {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let parent = try_make(&repository, None, &several(1), &["pg@1"]).await;
        let parent = parent.unwrap().id;
        let gate = Gate::new(4);
        let actors = vec![
            maker(gate.storage(&storage, 0), Some(parent), "pg@2"),
            destroyer(gate.storage(&storage, 1), parent),
            collector(gate.storage(&storage, 2), 3),
            clock(&gate, 3, &storage, 5),
        ];
        Scene {
            storage,
            gate,
            actors,
            kept: Vec::new(),
        }
    };
    explore("the writer itself", scene, 2).await;
}

#[tokio::test]
async fn undoing_pinning_and_a_collector_about_a_destroyed_snapshot() {
    for announced in [true, false] {
        let scene = async || {
            let storage = Clocked::new();
            let repository = init(&storage).await;
            let id = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
            repository.destroy(id).await.unwrap();
            announce(&storage, &repository, announced).await;
            let gate = Gate::new(4);
            let actors = vec![
                undoer(gate.storage(&storage, 0), id),
                pinner(gate.storage(&storage, 1), id),
                collector(gate.storage(&storage, 2), if announced { 1 } else { 3 }),
                clock(&gate, 3, &storage, if announced { 1 } else { 4 }),
            ];
            Scene {
                storage,
                gate,
                actors,
                kept: Vec::new(),
            }
        };
        explore("undo", scene, 2).await;
    }
}

#[tokio::test]
async fn two_collectors_over_sparse_packs_and_a_writer() {
    let scene = async || {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let files = [("a", 1), ("b", 2), ("c", 3), ("d", 4)];
        let first = write(&repository, None, &files, &["pg@1"]).await;
        let second = write(
            &repository,
            Some(first),
            &files.map(|(name, n)| (name, n * 10))[..3],
            &["pg@2"],
        )
        .await;
        repository.destroy(first).await.unwrap();
        let gate = Gate::new(4);
        let actors = vec![
            collector(gate.storage(&storage, 0), 3),
            collector(gate.storage(&storage, 1), 3),
            writer(gate.storage(&storage, 2), Some(second), "pg@3"),
            clock(&gate, 3, &storage, 6),
        ];
        Scene {
            storage,
            gate,
            actors,
            kept: vec![second],
        }
    };
    explore("repack", scene, 2).await;
}

#[tokio::test]
async fn a_push_that_relies_on_packs_of_a_destroyed_snapshot() {
    for announced in [true, false] {
        let scene = async || {
            let storage = Clocked::new();
            let repository = init(&storage).await;
            let id = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
            let (_, mut commit) = repository.read_commit(id).await.unwrap();
            commit.facts = empty_commit(&["pg@2"]).facts;
            let packs = all_packs(&storage).await;
            repository.destroy(id).await.unwrap();
            announce(&storage, &repository, announced).await;
            let gate = Gate::new(3);
            let actors = vec![
                pusher(gate.storage(&storage, 0), commit, packs),
                collector(gate.storage(&storage, 1), if announced { 1 } else { 3 }),
                clock(&gate, 2, &storage, if announced { 1 } else { 5 }),
            ];
            Scene {
                storage,
                gate,
                actors,
                kept: Vec::new(),
            }
        };
        explore("push", scene, 2).await;
    }
}

#[tokio::test]
async fn a_push_that_tries_again_beside_two_collectors() {
    let scene = async || {
        let storage = Clocked::new();
        let repository = init(&storage).await;
        let id = write(&repository, None, &[("a", 1)], &["pg@1"]).await;
        let (_, mut commit) = repository.read_commit(id).await.unwrap();
        commit.facts = empty_commit(&["pg@2"]).facts;
        let packs = all_packs(&storage).await;
        repository.destroy(id).await.unwrap();
        announce(&storage, &repository, true).await;
        let gate = Gate::new(3);
        let actors = vec![
            pusher(gate.storage(&storage, 0), commit, packs),
            collector(gate.storage(&storage, 1), 1),
            collector(gate.storage(&storage, 2), 1),
        ];
        Scene {
            storage,
            gate,
            actors,
            kept: Vec::new(),
        }
    };
    explore("push again", scene, 4).await;
}
