//! Runs several actors on one storage, one storage call at a time, in an order that the test chooses.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use neon_storage::{
    Body, Capabilities, GetOptions, GetResult, Head, Key, ListOptions, ObjectMeta, PutOptions,
    Result, Storage,
};
use tokio::sync::{Notify, oneshot};

use crate::clocked::Clocked;

/// Where actors wait for their turn.
#[derive(Debug)]
pub(crate) struct Gate {
    actors: Mutex<Vec<Actor>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Actor {
    waiting: Vec<(String, oneshot::Sender<()>)>,
    done: bool,
}

/// A storage whose calls wait at the gate.
#[derive(Debug, Clone)]
pub(crate) struct Gated {
    inner: Clocked,
    gate: Arc<Gate>,
    actor: usize,
}

impl Gate {
    pub(crate) fn new(actors: usize) -> Arc<Self> {
        Arc::new(Self {
            actors: Mutex::new((0..actors).map(|_| Actor::default()).collect()),
            changed: Notify::new(),
        })
    }

    pub(crate) fn storage(self: &Arc<Self>, inner: &Clocked, actor: usize) -> Gated {
        Gated {
            inner: inner.clone(),
            gate: Arc::clone(self),
            actor,
        }
    }

    pub(crate) async fn pass(&self, actor: usize, what: String) {
        let (sender, receiver) = oneshot::channel();
        self.actors.lock().unwrap()[actor]
            .waiting
            .push((what, sender));
        self.changed.notify_one();
        // After the end of a run nobody opens the gate any more; what still comes passes.
        drop(receiver.await);
    }

    fn done(&self, actor: usize) {
        self.actors.lock().unwrap()[actor].done = true;
        self.changed.notify_one();
    }

    /// Waits until every actor is at the gate or done; returns those at the gate.
    async fn settled(&self) -> Vec<usize> {
        loop {
            let changed = self.changed.notified();
            {
                let actors = self.actors.lock().unwrap();
                if actors
                    .iter()
                    .all(|actor| actor.done || !actor.waiting.is_empty())
                {
                    let waiting = actors.iter().enumerate();
                    return waiting
                        .filter(|(_, actor)| !actor.done)
                        .map(|(n, _)| n)
                        .collect();
                }
            }
            if tokio::time::timeout(Duration::from_secs(60), changed)
                .await
                .is_err()
            {
                panic!("actors hang: {:?}", self.actors.lock().unwrap());
            }
        }
    }

    /// What an actor waits to do.
    pub(crate) fn next(&self, actor: usize) -> String {
        let actors = self.actors.lock().unwrap();
        let waiting = actors[actor].waiting.iter();
        waiting
            .map(|(what, _)| what.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Lets an actor pass, and tells what it does.
    fn open(&self, actor: usize) -> String {
        let waiting = std::mem::take(&mut self.actors.lock().unwrap()[actor].waiting);
        let mut what = Vec::new();
        for (text, sender) in waiting {
            what.push(text);
            sender.send(()).ok();
        }
        what.join(", ")
    }
}

/// A schedule as it was run: who could go, and who went.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) choices: Vec<(Vec<usize>, usize)>,
    pub(crate) calls: Vec<String>,
}

impl Trace {
    /// Changes of the actor while the last one could have gone on.
    pub(crate) fn preemptions(choices: &[(Vec<usize>, usize)]) -> usize {
        choices
            .windows(2)
            .filter(|pair| pair[0].1 != pair[1].1 && pair[1].0.contains(&pair[0].1))
            .count()
    }
}

/// Runs actors to their ends. `choose` gets who went last and who can go.
pub(crate) async fn run<T: Send + 'static>(
    gate: &Arc<Gate>,
    actors: Vec<BoxFuture<'static, T>>,
    mut choose: impl FnMut(usize, Option<usize>, &[usize]) -> usize,
) -> (Vec<T>, Trace) {
    let tasks: Vec<_> = actors
        .into_iter()
        .enumerate()
        .map(|(number, actor)| {
            let gate = Arc::clone(gate);
            tokio::spawn(async move {
                let outcome = std::panic::AssertUnwindSafe(actor).catch_unwind().await;
                gate.done(number);
                outcome
            })
        })
        .collect();
    let mut trace = Trace::default();
    let mut last = None;
    loop {
        let ready = gate.settled().await;
        if ready.is_empty() {
            break;
        }
        let next = choose(trace.choices.len(), last, &ready);
        trace.calls.push(format!("{next}: {}", gate.open(next)));
        trace.choices.push((ready, next));
        last = Some(next);
    }
    let mut outcomes = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            Ok(outcome) => outcomes.push(outcome),
            Err(_) => panic!("an actor panicked after {:#?}", trace.calls),
        }
    }
    (outcomes, trace)
}

/// Runs actors as a script says: each entry lets an actor go on until its next call begins so, or to its end if nothing
/// is said. Who is not at the end after the script goes there, the first one first.
pub(crate) async fn follow<T: Send + 'static>(
    gate: &Arc<Gate>,
    actors: Vec<BoxFuture<'static, T>>,
    script: &[(usize, &str)],
) -> (Vec<T>, Trace) {
    let mut script = script.iter().copied().peekable();
    run(gate, actors, |_, _, ready| {
        while let Some((actor, until)) = script.peek() {
            if !ready.contains(actor) {
                assert!(until.is_empty(), "{actor} never came to {until}");
            } else if until.is_empty() || !gate.next(*actor).starts_with(until) {
                return *actor;
            }
            script.next();
        }
        ready[0]
    })
    .await
}

/// Lets one actor make so many calls and kills it before the next one; false when it came to its end before.
pub(crate) async fn run_some<T: Send + 'static>(
    gate: &Arc<Gate>,
    mut actors: Vec<BoxFuture<'static, T>>,
    calls: usize,
) -> bool {
    let actor = tokio::spawn(actors.remove(0));
    for _ in 0..calls {
        while gate.next(0).is_empty() {
            if actor.is_finished() {
                return false;
            }
            tokio::task::yield_now().await;
        }
        gate.open(0);
    }
    while gate.next(0).is_empty() && !actor.is_finished() {
        tokio::task::yield_now().await;
    }
    let killed = !actor.is_finished();
    actor.abort();
    drop(actor.await);
    killed
}

impl Gated {
    fn pass(&self, what: &str, key: &str) -> BoxFuture<'static, ()> {
        let (gate, actor) = (Arc::clone(&self.gate), self.actor);
        let what = format!("{what} {key}");
        async move { gate.pass(actor, what).await }.boxed()
    }
}

impl Storage for Gated {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn probe<'a, 'c>(&'a self) -> BoxFuture<'c, Result<Capabilities>>
    where
        'a: 'c,
    {
        self.inner.probe()
    }

    fn location(&self) -> String {
        self.inner.location()
    }

    fn put<'a, 'b, 'c>(
        &'a self,
        key: &'b Key,
        body: Body,
        options: PutOptions,
    ) -> BoxFuture<'c, Result<ObjectMeta>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            self.pass("put", key.as_str()).await;
            self.inner.put(key, body, options).await
        })
    }

    fn get<'a, 'b, 'c>(
        &'a self,
        key: &'b Key,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            self.pass("get", key.as_str()).await;
            self.inner.get(key, options).await
        })
    }

    fn get_ranges<'a, 'b, 'd, 'c>(
        &'a self,
        key: &'b Key,
        ranges: &'d [Range<u64>],
        options: GetOptions,
    ) -> BoxFuture<'c, Result<Vec<Bytes>>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        Box::pin(async move {
            self.pass("get", key.as_str()).await;
            self.inner.get_ranges(key, ranges, options).await
        })
    }

    fn head<'a, 'b, 'c>(&'a self, key: &'b Key) -> BoxFuture<'c, Result<Head>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            self.pass("head", key.as_str()).await;
            self.inner.head(key).await
        })
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        let pass = self.pass("list", &options.prefix);
        let inner = self.inner.clone();
        stream::once(pass)
            .flat_map(move |()| inner.list(options.clone()))
            .boxed()
    }

    /// One key after the other, each waiting.
    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let this = self.clone();
        keys.then(move |key| {
            let this = this.clone();
            async move {
                let key = key?;
                this.pass("delete", key.as_str()).await;
                let one = stream::iter([Ok(key)]).boxed();
                this.inner.delete_many(one).next().await.unwrap()
            }
        })
        .boxed()
    }
}
