//! Every layer keeps the contract; each does what it says.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use neon_storage::{
    Body, ErrorKind, Event, EventOutcome, Fault, Faulty, GetOptions, GetRange, Key, Limit,
    ListOptions, Memory, Meter, Operation, Prefix, PutOptions, RateLimit, ReadOnly, RetryLayer,
    RetryPolicy, Storage, StorageExt, contract,
};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn memory() -> Arc<dyn Storage> {
    Arc::new(Memory::new())
}

fn quick() -> RetryPolicy {
    let mut policy = RetryPolicy::default();
    policy.first_pause = Duration::from_millis(1);
    policy.longest_pause = Duration::from_millis(4);
    policy
}

async fn keeps_the_contract(storage: Arc<dyn Storage>) {
    let report = contract::run(storage).await;
    assert!(report.held() > 30, "{report:#?}");
    report.into_result().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_keeps_the_contract() {
    keeps_the_contract(Arc::new(Prefix::new(memory(), key("some/where")))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_keeps_the_contract() {
    keeps_the_contract(Arc::new(RetryLayer::new(memory(), quick()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_keeps_the_contract() {
    keeps_the_contract(Arc::new(Limit::new(memory(), 2))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_keeps_the_contract() {
    let fast = Some(1 << 32);
    keeps_the_contract(Arc::new(RateLimit::new(memory(), fast, fast))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_keeps_the_contract() {
    keeps_the_contract(Arc::new(Meter::new(memory(), |_| {}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_storage_keeps_the_contract() {
    keeps_the_contract(Arc::new(Faulty::slow(memory(), Duration::from_millis(1)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_view_keeps_the_contract() {
    let memory = memory();
    let view = Arc::new(ReadOnly::new(Arc::clone(&memory)));
    let report = contract::run_read_only(view, memory).await;
    assert!(report.held() > 10, "{report:#?}");
    report.into_result().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_layers_together_over_failing_calls_keep_the_contract() {
    // Every third call fails, every seventh loses its answer, every fifth read breaks.
    let faulty = Faulty::planned(memory(), |call, operation, _| match operation {
        _ if call % 3 == 1 => Some(Fault::Fail(ErrorKind::Unavailable)),
        Operation::Put if call % 7 == 2 => Some(Fault::LoseAnswer(ErrorKind::Unavailable)),
        Operation::Get if call % 5 == 2 => Some(Fault::Break(ErrorKind::Unavailable)),
        Operation::Get if call % 11 == 3 => Some(Fault::Truncate),
        Operation::List if call % 2 == 0 => Some(Fault::Break(ErrorKind::Unavailable)),
        _ => None,
    });
    let passing = Passing {
        inner: Arc::new(faulty),
        remembers: true,
    };
    let retry = RetryLayer::new(Arc::new(passing), quick());
    let limit = Limit::new(Arc::new(retry), 3);
    let rate = RateLimit::new(Arc::new(limit), Some(1 << 32), Some(1 << 32));
    let prefix = Prefix::new(Arc::new(Meter::new(Arc::new(rate), |_| {})), key("p"));
    let cases = contract::cases();
    let subject: Arc<dyn Storage> = Arc::new(prefix);
    for case in cases {
        // Bodies that come once can't be sent again, and the plan hits some of them.
        if case.name.contains("stream") || case.name.contains("body") || case.name.contains("put") {
            continue;
        }
        if let contract::Outcome::Broken(failure) =
            contract::run_case(case, &subject, &subject).await
        {
            panic!("{}: {failure}", case.name);
        }
    }
}

/// Passes everything on, except which put it is if it shan't be remembered: shows that a third
/// party's layer needs nothing but the trait.
#[derive(Debug)]
struct Passing {
    inner: Arc<dyn Storage>,
    remembers: bool,
}

#[async_trait::async_trait]
impl Storage for Passing {
    fn capabilities(&self) -> neon_storage::Capabilities {
        let mut capabilities = self.inner.capabilities();
        capabilities.recognises_own_put &= self.remembers;
        capabilities
    }
    async fn probe(&self) -> neon_storage::Result<neon_storage::Capabilities> {
        self.inner.probe().await?;
        Ok(self.capabilities())
    }
    fn location(&self) -> String {
        self.inner.location()
    }
    async fn put(
        &self,
        key: &Key,
        body: Body,
        mut options: PutOptions,
    ) -> neon_storage::Result<neon_storage::ObjectMeta> {
        options.token = options.token.filter(|_| self.remembers);
        self.inner.put(key, body, options).await
    }
    async fn get(
        &self,
        key: &Key,
        options: GetOptions,
    ) -> neon_storage::Result<neon_storage::GetResult> {
        self.inner.get(key, options).await
    }
    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[std::ops::Range<u64>],
        options: GetOptions,
    ) -> neon_storage::Result<Vec<Bytes>> {
        self.inner.get_ranges(key, ranges, options).await
    }
    async fn head(&self, key: &Key) -> neon_storage::Result<neon_storage::Head> {
        self.inner.head(key).await
    }
    fn list(
        &self,
        options: ListOptions,
    ) -> stream::BoxStream<'static, neon_storage::Result<neon_storage::ObjectMeta>> {
        self.inner.list(options)
    }
    fn delete_many(
        &self,
        keys: stream::BoxStream<'static, neon_storage::Result<Key>>,
    ) -> stream::BoxStream<'static, neon_storage::Result<Key>> {
        self.inner.delete_many(keys)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_hides_its_neighbours_and_itself() {
    let outer = memory();
    outer.create(&key("p/inside"), "1").await.unwrap();
    outer.create(&key("px/beside"), "2").await.unwrap();
    outer.create(&key("p"), "3").await.unwrap();
    let inner = Prefix::new(Arc::clone(&outer), key("p"));
    let names: Vec<String> = inner
        .list_all("")
        .await
        .unwrap()
        .iter()
        .map(|object| object.key.to_string())
        .collect();
    assert_eq!(names, ["inside"]);
    let error = inner.read(&key("missing")).await.unwrap_err();
    assert_eq!(error.key(), Some("missing"));
    assert_eq!(inner.delete_prefix("").await.unwrap(), 1);
    assert_eq!(outer.list_all("").await.unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_retry_pauses_and_then_succeeds() {
    for operation in [
        Operation::Put,
        Operation::Get,
        Operation::Head,
        Operation::Delete,
    ] {
        let memory = memory();
        if operation != Operation::Put {
            memory.create(&key("k"), "x").await.unwrap();
        }
        let faulty = Faulty::planned(memory, |call, _, _| {
            (call < 3).then_some(Fault::Fail(ErrorKind::Unavailable))
        });
        let retry = RetryLayer::new(Arc::new(faulty.clone()), RetryPolicy::default());
        match operation {
            Operation::Put => drop(retry.create(&key("k"), "x").await.unwrap()),
            Operation::Get => drop(retry.read(&key("k")).await.unwrap()),
            Operation::Head => drop(retry.head(&key("k")).await.unwrap()),
            _ => retry.delete(&key("k")).await.unwrap(),
        }
        assert_eq!(faulty.calls(), 4, "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_does_not_repeat_what_cannot_help() {
    for kind in [
        ErrorKind::Denied,
        ErrorKind::Unauthenticated,
        ErrorKind::Unsupported,
    ] {
        let faulty = Faulty::planned(memory(), move |_, _, _| Some(Fault::Fail(kind)));
        let retry = RetryLayer::new(Arc::new(faulty.clone()), RetryPolicy::default());
        assert_eq!(retry.create(&key("k"), "x").await.unwrap_err().kind(), kind);
        assert_eq!(faulty.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_ends_at_its_deadline_also_when_a_call_hangs() {
    for fault in [Fault::Fail(ErrorKind::Unavailable), Fault::Hang] {
        let faulty = Faulty::planned(memory(), move |_, _, _| Some(fault));
        let mut policy = RetryPolicy::default();
        policy.deadline = Duration::from_secs(30);
        let retry = RetryLayer::new(Arc::new(faulty), policy);
        let began = tokio::time::Instant::now();
        let keys = stream::iter([Ok(key("a")), Ok(key("b"))]).boxed();
        let error = retry.create(&key("k"), "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(
            began.elapsed() <= Duration::from_secs(31),
            "{:?}",
            began.elapsed()
        );
        assert!(retry.read(&key("k")).await.is_err());
        assert!(retry.list_all("").await.is_err());
        let deletes: Vec<_> = retry.delete_many(keys).collect().await;
        assert_eq!(deletes.len(), 2);
        assert!(deletes.iter().all(Result::is_err));
        assert!(
            began.elapsed() <= Duration::from_secs(124),
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_retried_create_that_meets_its_own_object_is_a_success() {
    let memory = memory();
    let faulty = Faulty::nth(
        Arc::clone(&memory),
        0,
        Fault::LoseAnswer(ErrorKind::Unavailable),
    );
    let retry = RetryLayer::new(Arc::new(faulty), RetryPolicy::default());
    retry.create(&key("k"), "mine").await.unwrap();
    assert_eq!(
        retry.create(&key("k"), "mine").await.unwrap_err().kind(),
        ErrorKind::Exists
    );
    assert_eq!(memory.read(&key("k")).await.unwrap(), "mine");
}

#[tokio::test(start_paused = true)]
async fn a_broken_read_goes_on_where_it_broke_off() {
    let memory = memory();
    let content: Bytes = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    memory.create(&key("k"), content.clone()).await.unwrap();
    let faulty = Faulty::planned(memory.clone(), |call, _, _| match call {
        0 | 2 => Some(Fault::Break(ErrorKind::Unavailable)),
        1 => Some(Fault::Fail(ErrorKind::Unavailable)),
        3 => Some(Fault::Truncate),
        _ => None,
    });
    let retry = RetryLayer::new(Arc::new(faulty.clone()), RetryPolicy::default());
    assert!(retry.read(&key("k")).await.unwrap() == content);
    assert_eq!(faulty.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_broken_read_of_a_replaced_object_is_an_error() {
    let memory = memory();
    memory.create(&key("k"), vec![1u8; 1000]).await.unwrap();
    let faulty = Faulty::nth(memory.clone(), 0, Fault::Break(ErrorKind::Unavailable));
    let retry = RetryLayer::new(Arc::new(faulty), RetryPolicy::default());
    let got = retry.get(&key("k"), GetOptions::new()).await.unwrap();
    memory.overwrite(&key("k"), vec![2u8; 1000]).await.unwrap();
    assert_eq!(
        got.bytes().await.unwrap_err().kind(),
        ErrorKind::Precondition
    );
}

#[tokio::test]
async fn a_limit_lets_only_so_many_in() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let memory = memory();
    memory.create(&key("k"), "x").await.unwrap();
    let slow = Faulty::slow(memory, Duration::from_millis(5));
    let limit = Limit::new(Arc::new(slow), 3);
    future::join_all((0..20).map(|_| async {
        // A body that is held counts as a request in flight.
        let got = limit.get(&key("k"), GetOptions::new()).await.unwrap();
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(2)).await;
        now.fetch_sub(1, Ordering::SeqCst);
        drop(got);
    }))
    .await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_kept_within_five_percent_whatever_the_chunks() {
    const RATE: u64 = 1 << 20;
    const SECONDS: u64 = 60;
    for chunk in [1000usize, 64 * 1024, 10 * 1024 * 1024] {
        let limited = RateLimit::new(memory(), Some(RATE), Some(2 * RATE));
        let total = usize::try_from(RATE * SECONDS).unwrap();
        let mut left = total;
        let body = Body::stream(stream::iter(std::iter::from_fn(move || {
            let size = chunk.min(left);
            left -= size;
            (size > 0).then(|| Ok(Bytes::from(vec![0u8; size])))
        })));
        let began = tokio::time::Instant::now();
        limited.create(&key("k"), body).await.unwrap();
        let up = began.elapsed().as_secs_f64() / f64::from(u32::try_from(SECONDS).unwrap());
        assert!(
            (0.95..1.05).contains(&up),
            "chunks of {chunk}: put took {up} of its time"
        );
        let began = tokio::time::Instant::now();
        let (half, name) = (u64::try_from(total).unwrap() / 2, key("k"));
        // Two readers share the limit.
        let (one, two) = tokio::join!(
            limited.read_range(&name, 0..half),
            limited.read_range(&name, half..2 * half)
        );
        assert_eq!(one.unwrap().len() + two.unwrap().len(), total);
        let down = began.elapsed().as_secs_f64() / f64::from(u32::try_from(SECONDS / 2).unwrap());
        assert!(
            (0.95..1.05).contains(&down),
            "chunks of {chunk}: get took {down} of its time"
        );
    }
}

#[tokio::test]
async fn a_rate_limited_body_can_still_be_sent_again() {
    let faulty = Faulty::nth(memory(), 0, Fault::Fail(ErrorKind::Unavailable));
    let retry = RetryLayer::new(Arc::new(faulty), quick());
    let limited = RateLimit::new(Arc::new(retry), Some(1 << 30), None);
    limited.create(&key("k"), "again").await.unwrap();
    assert_eq!(limited.read(&key("k")).await.unwrap(), "again");
}

#[tokio::test]
async fn a_meter_reports_every_operation_once() {
    let events = Arc::new(Mutex::new(Vec::<Event>::new()));
    let sink = Arc::clone(&events);
    let memory = memory();
    let metered = Meter::new(memory, move |event| sink.lock().unwrap().push(*event));
    let take = || std::mem::take(&mut *events.lock().unwrap());
    metered.create(&key("k"), vec![0u8; 1000]).await.unwrap();
    let body = Body::stream(stream::iter([Ok(Bytes::from_static(b"12345"))]));
    metered.create(&key("s"), body).await.unwrap();
    let done = take();
    assert_eq!(
        done.iter().map(|event| event.sent).collect::<Vec<_>>(),
        [1000, 5]
    );
    assert!(done.iter().all(|event| event.outcome == EventOutcome::Done));
    let range = GetOptions::new().range(GetRange::Bounded(0..10));
    let got = metered.get(&key("k"), range).await.unwrap();
    assert_eq!(take(), [], "a read ends with its body");
    got.bytes().await.unwrap();
    let done = take();
    assert_eq!((done.len(), done[0].received), (1, 10));
    drop(metered.get(&key("k"), GetOptions::new()).await.unwrap());
    assert_eq!(take()[0].outcome, EventOutcome::Dropped);
    metered.read(&key("none")).await.unwrap_err();
    assert_eq!(take()[0].outcome, EventOutcome::Failed(ErrorKind::NotFound));
    assert_eq!(metered.list_all("").await.unwrap().len(), 2);
    assert_eq!(take()[0].objects, 2);
    assert_eq!(metered.delete_prefix("").await.unwrap(), 2);
    assert_eq!(take().iter().map(|event| event.objects).sum::<u64>(), 4);
}

#[tokio::test]
async fn the_nth_call_fails_and_no_other() {
    let counted = Arc::new(AtomicU64::new(0));
    for n in 0..4u64 {
        let faulty = Faulty::nth(memory(), n, Fault::Fail(ErrorKind::Unavailable));
        let mut outcomes = Vec::new();
        for call in 0..4 {
            outcomes.push(faulty.create(&key(&format!("k{call}")), "x").await.is_err());
        }
        counted.fetch_add(1, Ordering::SeqCst);
        assert_eq!(
            outcomes.iter().position(|failed| *failed),
            usize::try_from(n).ok()
        );
        assert_eq!(outcomes.iter().filter(|failed| **failed).count(), 1);
    }
    assert_eq!(counted.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn lies_are_noticed_where_they_can_be() {
    let memory = memory();
    memory.create(&key("a"), vec![1u8; 1000]).await.unwrap();
    memory.create(&key("b"), "x").await.unwrap();
    let truncated = Faulty::nth(Arc::clone(&memory), 0, Fault::Truncate);
    let error = truncated.read(&key("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let stale = Faulty::nth(Arc::clone(&memory), 0, Fault::Stale);
    assert_eq!(stale.list_all("").await.unwrap().len(), 1);
    assert_eq!(stale.list_all("").await.unwrap().len(), 2);
    let lost = Faulty::nth(
        Arc::clone(&memory),
        0,
        Fault::LoseAnswer(ErrorKind::Unavailable),
    );
    assert!(lost.create(&key("c"), "there").await.is_err());
    assert_eq!(memory.read(&key("c")).await.unwrap(), "there");
    let hanging = Faulty::hanging(Arc::clone(&memory), Operation::Get);
    let hung = tokio::time::timeout(Duration::from_secs(3600), hanging.read(&key("a"))).await;
    assert!(hung.is_err());
    let deletes = Faulty::nth(memory, 0, Fault::LoseAnswer(ErrorKind::Unavailable));
    deletes.delete(&key("a")).await.unwrap_err();
    assert!(!deletes.exists(&key("a")).await.unwrap());
}

#[tokio::test]
async fn a_read_only_view_still_lists() {
    let memory = memory();
    memory.create(&key("a"), "x").await.unwrap();
    let view = ReadOnly::new(memory);
    let listed: Vec<_> = view.list(ListOptions::all()).try_collect().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(!view.capabilities().write);
}

#[tokio::test(start_paused = true)]
async fn a_swap_whose_answer_was_lost_is_never_told_as_refused() {
    for somebody_else_writes in [false, true] {
        let memory = memory();
        let first = memory.create(&key("k"), "old").await.unwrap();
        let version = first.version.unwrap();
        let writer = Arc::clone(&memory);
        // The first attempt takes effect and its answer is lost; before the second one another
        // writer may have replaced what it wrote.
        let faulty = Faulty::planned(Arc::clone(&memory), move |call, _, _| match call {
            0 => Some(Fault::LoseAnswer(ErrorKind::Unavailable)),
            1 if somebody_else_writes => {
                future::FutureExt::now_or_never(writer.overwrite(&key("k"), "theirs"))
                    .unwrap()
                    .unwrap();
                None
            }
            _ => None,
        });
        let retry = RetryLayer::new(Arc::new(faulty), RetryPolicy::default());
        let swapped = retry.replace(&key("k"), &version, "mine").await;
        if somebody_else_writes {
            let error = swapped.unwrap_err();
            assert!(error.outcome_unknown(), "{error:?}");
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(!error.is_retryable(), "under that version it can't succeed");
            assert_eq!(error.key(), Some("k"));
        } else {
            swapped.unwrap();
            assert_eq!(memory.read(&key("k")).await.unwrap(), "mine");
        }
        let stale = retry.replace(&key("k"), &version, "late").await;
        let error = stale.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        assert!(!error.outcome_unknown(), "nothing was lost: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_was_lost_is_refused_only_for_anothers_object() {
    // What is there is somebody else's: that is final, though ours may have been there before.
    let memory = memory();
    let faulty = Faulty::nth(memory.clone(), 0, Fault::Fail(ErrorKind::Unavailable));
    let retry = RetryLayer::new(Arc::new(faulty), RetryPolicy::default());
    memory.create(&key("k"), "theirs").await.unwrap();
    let error = retry.create(&key("k"), "mine").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.outcome_unknown(), "{error:?}");
    let error = retry.create(&key("k"), "mine").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(!error.outcome_unknown(), "{error:?}");
    // Where that can't be told, what is there may be ours.
    let forgetful = Passing {
        inner: memory.clone(),
        remembers: false,
    };
    let lost = Fault::LoseAnswer(ErrorKind::Unavailable);
    let faulty = Faulty::nth(Arc::new(forgetful), 0, lost);
    let retry = RetryLayer::new(Arc::new(faulty), RetryPolicy::default());
    let error = retry.create(&key("other"), "mine").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.outcome_unknown(), "{error:?}");
}

/// Takes the chunks of a body at a pace of its own and says nothing of it.
#[derive(Debug)]
struct Slow {
    inner: Arc<dyn Storage>,
    pause: Duration,
    breaks: AtomicU64,
}

#[async_trait::async_trait]
impl Storage for Slow {
    fn capabilities(&self) -> neon_storage::Capabilities {
        self.inner.capabilities()
    }
    async fn probe(&self) -> neon_storage::Result<neon_storage::Capabilities> {
        self.inner.probe().await
    }
    fn location(&self) -> String {
        self.inner.location()
    }
    async fn put(
        &self,
        key: &Key,
        body: Body,
        options: PutOptions,
    ) -> neon_storage::Result<neon_storage::ObjectMeta> {
        let mut chunks = body.into_stream();
        let mut all = Vec::new();
        while let Some(chunk) = chunks.next().await {
            all.extend_from_slice(&chunk.unwrap());
            tokio::time::sleep(self.pause).await;
            if all.len() > 50 && self.breaks.load(Ordering::SeqCst) > 0 {
                self.breaks.fetch_sub(1, Ordering::SeqCst);
                return Err(neon_storage::Error::new(
                    ErrorKind::Unavailable,
                    Operation::Put,
                ));
            }
        }
        self.inner.put(key, all.into(), options).await
    }
    async fn get(
        &self,
        key: &Key,
        options: GetOptions,
    ) -> neon_storage::Result<neon_storage::GetResult> {
        self.inner.get(key, options).await
    }
    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[std::ops::Range<u64>],
        options: GetOptions,
    ) -> neon_storage::Result<Vec<Bytes>> {
        self.inner.get_ranges(key, ranges, options).await
    }
    async fn head(&self, key: &Key) -> neon_storage::Result<neon_storage::Head> {
        self.inner.head(key).await
    }
    fn list(
        &self,
        options: ListOptions,
    ) -> stream::BoxStream<'static, neon_storage::Result<neon_storage::ObjectMeta>> {
        self.inner.list(options)
    }
    fn delete_many(
        &self,
        keys: stream::BoxStream<'static, neon_storage::Result<Key>>,
    ) -> stream::BoxStream<'static, neon_storage::Result<Key>> {
        // Keeps silent about every second key, and fails as a whole.
        let answered = self.inner.delete_many(keys.step_by_two());
        let whole = neon_storage::Error::new(ErrorKind::Denied, Operation::Delete);
        answered.chain(stream::iter([Err(whole)])).boxed()
    }
}

trait StepByTwo {
    fn step_by_two(self) -> Self;
}

impl StepByTwo for stream::BoxStream<'static, neon_storage::Result<Key>> {
    fn step_by_two(self) -> Self {
        self.enumerate()
            .filter(|(index, _)| future::ready(index % 2 == 0))
            .map(|(_, key)| key)
            .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_put_that_moves_is_not_cut_by_the_deadline() {
    for (length, breaks) in [(None, 0u64), (Some(100), 0), (None, 2)] {
        let slow = Slow {
            inner: memory(),
            pause: Duration::from_secs(50),
            breaks: AtomicU64::new(breaks),
        };
        let retry = RetryLayer::new(Arc::new(slow), RetryPolicy::default());
        let mut body = Body::replayable(|| {
            stream::iter((0..100u8).map(|byte| Ok(Bytes::from(vec![byte])))).boxed()
        });
        if let Some(length) = length {
            body = body.with_length(length);
        }
        // More than an hour under a deadline of three minutes.
        let put = retry.create(&key("k"), body).await;
        assert_eq!(put.unwrap().size, 100, "{length:?} {breaks}");
    }
    // Without a move it ends as ever, however often it is tried.
    let stuck = Slow {
        inner: memory(),
        pause: Duration::from_secs(1 << 20),
        breaks: AtomicU64::new(0),
    };
    let retry = RetryLayer::new(Arc::new(stuck), RetryPolicy::default());
    let body = Body::replayable(|| stream::iter([Ok(Bytes::from_static(b"x"))]).boxed());
    let began = tokio::time::Instant::now();
    let error = retry.create(&key("k"), body).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        began.elapsed() <= Duration::from_secs(400),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_slow_to_produce_is_waited_for() {
    let retry = RetryLayer::new(memory(), RetryPolicy::default());
    let body = Body::replayable(|| {
        stream::iter(0..3u8)
            .then(|byte| async move {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok(Bytes::from(vec![byte]))
            })
            .boxed()
    });
    assert_eq!(retry.create(&key("k"), body).await.unwrap().size, 3);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_as_a_whole_answers_for_every_key() {
    let slow = Slow {
        inner: memory(),
        pause: Duration::ZERO,
        breaks: AtomicU64::new(0),
    };
    let retry = RetryLayer::new(Arc::new(slow), RetryPolicy::default());
    let keys: Vec<Key> = (0..10).map(|number| key(&format!("k{number}"))).collect();
    let asked = stream::iter(keys.clone().into_iter().map(Ok)).boxed();
    let answers: Vec<_> = retry.delete_many(asked).collect().await;
    let mut named: Vec<String> = answers
        .iter()
        .map(|answer| match answer {
            Ok(key) => key.to_string(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Denied);
                error.key().unwrap().to_owned()
            }
        })
        .collect();
    named.sort();
    let all: Vec<String> = keys.iter().map(Key::to_string).collect();
    assert_eq!(named, all);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 5);
}
