//! What a race found out about a bucket, kept by the program for the next opening.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use neon_storage::{
    Conditional, ErrorKind, Key, ObjectMeta, ProbeFinding, ProbeMemory, PutOptions, S3, S3Config,
    Storage, StorageExt,
};
use neon_testkit::s3::{Conditions, Fault, S3Server, S3ServerOptions};

use super::s3::config;

/// What a program keeps.
#[derive(Debug, Default)]
struct Kept(Mutex<BTreeMap<String, ProbeFinding>>);

impl Kept {
    fn only(&self) -> ProbeFinding {
        let kept = self.0.lock().unwrap();
        assert_eq!(kept.len(), 1, "{kept:?}");
        kept.values().next().unwrap().clone()
    }
}

impl ProbeMemory for Kept {
    fn recall(&self, place: &str) -> Option<ProbeFinding> {
        self.0.lock().unwrap().get(place).cloned()
    }

    fn keep(&self, finding: &ProbeFinding) {
        let mut kept = self.0.lock().unwrap();
        kept.insert(finding.place.clone(), finding.clone());
    }

    fn forget(&self, place: &str) {
        self.0.lock().unwrap().remove(place);
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn server() -> S3Server {
    S3Server::start(S3ServerOptions::default())
}

fn remembering(server: &S3Server, memory: &Arc<Kept>) -> S3Config {
    let mut config = config(server);
    config.conditional = Conditional::Automatic;
    config.probe_memory = Some(Arc::clone(memory) as Arc<dyn ProbeMemory>);
    config
}

/// Opens it as another process would, reads, and creates an object. How many requests that took.
async fn one_more(server: &S3Server, config: S3Config, name: &str) -> u64 {
    let before = server.requests();
    let s3 = S3::open(config).await.unwrap();
    assert!(!s3.exists(&key(name)).await.unwrap());
    s3.create(&key(name), "x").await.unwrap();
    assert!(s3.capabilities().create_only);
    server.requests() - before
}

/// Far more than a question, a proof and a put.
const RACED: u64 = 20;
/// Two creates of one key, a look at it and a deletion; a question and a put.
const KNOWN: u64 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn who_remembers_races_once_and_who_does_not_each_time() {
    let server = server();
    let memory = Arc::new(Kept::default());
    let first = one_more(&server, remembering(&server, &memory), "a").await;
    assert!(first > RACED, "{first}");
    let found = memory.only();
    assert!(found.create_only && found.compare_and_swap && found.server.is_none());
    assert!(
        found.place.contains(&server.endpoint()) && found.place.ends_with(" bucket"),
        "{found:?}"
    );
    for name in ["b", "c"] {
        let next = one_more(&server, remembering(&server, &memory), name).await;
        assert_eq!(next, KNOWN, "a question, a proof and a put");
    }
    let mut forgetful = remembering(&server, &memory);
    forgetful.probe_memory = None;
    let next = one_more(&server, forgetful, "d").await;
    assert_eq!(next, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_out_elsewhere_or_of_another_provider_is_found_out_anew() {
    let server = server();
    server.call_itself("one/1");
    let memory = Arc::new(Kept::default());
    let raced = one_more(&server, remembering(&server, &memory), "a").await;
    assert!(raced > RACED, "{raced}");
    assert_eq!(memory.only().server.as_deref(), Some("one/1"));
    assert_eq!(
        one_more(&server, remembering(&server, &memory), "b").await,
        KNOWN
    );
    // Another release, or another program behind the same address.
    server.call_itself("one/2");
    let raced = one_more(&server, remembering(&server, &memory), "c").await;
    assert!(raced > RACED, "{raced}");
    assert_eq!(memory.only().server.as_deref(), Some("one/2"));
    assert_eq!(
        one_more(&server, remembering(&server, &memory), "d").await,
        KNOWN
    );
    // Another region, and another way to address the bucket.
    let mut region = remembering(&server, &memory);
    region.region = Some("eu-west-1".to_owned());
    assert!(one_more(&server, region, "e").await > RACED);
    let mut host = remembering(&server, &memory);
    host.path_style = Some(true);
    assert_eq!(
        one_more(&server, host, "f").await,
        KNOWN,
        "what an endpoint means anyway"
    );
    // Told of another place, it is not believed.
    #[derive(Debug)]
    struct Liar(ProbeFinding);
    impl ProbeMemory for Liar {
        fn recall(&self, _: &str) -> Option<ProbeFinding> {
            Some(self.0.clone())
        }
        fn keep(&self, _: &ProbeFinding) {}
        fn forget(&self, _: &str) {}
    }
    let mut lied = remembering(&server, &memory);
    let elsewhere = ProbeFinding::new("elsewhere", true, true);
    lied.probe_memory = Some(Arc::new(Liar(elsewhere)));
    assert!(one_more(&server, lied, "g").await > RACED);
}

/// A put under the version that the object has.
async fn versioned(s3: &S3, name: &str) -> neon_storage::Result<ObjectMeta> {
    let version = s3.head(&key(name)).await?.meta.version.unwrap();
    s3.put(&key(name), "y".into(), PutOptions::if_version(version))
        .await
}

async fn create(s3: &S3, name: &str) -> neon_storage::Result<ObjectMeta> {
    s3.create(&key(name), "x").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_yes_is_remembered_of_creates_only_and_a_no_of_both() {
    let server = server();
    let memory = Arc::new(Kept::default());
    one_more(&server, remembering(&server, &memory), "a").await;
    let known = memory.only();
    let place = known.place.as_str();
    // Writes under a version are asked about by each process.
    let before = server.requests();
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    create(&s3, "b").await.unwrap();
    assert!(server.requests() - before < RACED);
    versioned(&s3, "a").await.unwrap();
    assert!(server.requests() - before > RACED);
    // Unless it remembers that they are not enforced: such are refused, and not asked about.
    memory.keep(&ProbeFinding::new(place, true, false));
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    create(&s3, "c").await.unwrap();
    let before = server.requests();
    let refused = versioned(&s3, "a").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(server.requests() - before, 1, "its version");
    // And so are creates. That is a no to whoever asks, at first hand, too.
    memory.keep(&ProbeFinding::new(place, false, false));
    let before = server.requests();
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    for options in [PutOptions::create(), PutOptions::create().at_first_hand()] {
        let refused = s3.put(&key("d"), "x".into(), options).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(!refused.outcome_unknown());
    }
    assert!(!s3.probe().await.unwrap().create_only);
    assert_eq!(server.requests(), before);
    assert!(!memory.only().create_only);
}

/// A provider that looks first and writes later loses most races, and wins some: nobody may win for the others.
#[tokio::test(flavor = "multi_thread")]
async fn one_lucky_race_does_not_outdo_what_was_lost_before() {
    let server = server();
    server.set_conditions(Conditions::Racy(Duration::from_millis(50)));
    let memory = Arc::new(Kept::default());
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    assert!(!s3.probe().await.unwrap().create_only);
    assert!(!memory.only().create_only);
    // The next ones would all be lucky.
    server.set_conditions(Conditions::Atomic);
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    let refused = create(&s3, "a").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(!memory.only().create_only);
    // Also one who began before anybody knew, and is done later.
    #[derive(Debug)]
    struct Late(AtomicBool, Arc<Kept>);
    impl ProbeMemory for Late {
        fn recall(&self, place: &str) -> Option<ProbeFinding> {
            let first = !self.0.swap(true, Ordering::SeqCst);
            (!first).then(|| self.1.recall(place))?
        }
        fn keep(&self, finding: &ProbeFinding) {
            self.1.keep(finding);
        }
        fn forget(&self, place: &str) {
            self.1.forget(place);
        }
    }
    let mut late = remembering(&server, &memory);
    late.probe_memory = Some(Arc::new(Late(AtomicBool::default(), Arc::clone(&memory))));
    let before = server.requests();
    let s3 = S3::open(late).await.unwrap();
    assert!(!s3.probe().await.unwrap().create_only);
    assert!(server.requests() - before > RACED);
    assert!(!memory.only().create_only);
    // Until it is forgotten, or does not hold any more.
    memory.forget(&memory.only().place);
    one_more(&server, remembering(&server, &memory), "b").await;
    assert!(memory.only().create_only);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_stands_beside_what_is_found() {
    let known = |creates, swaps| ProbeFinding::new("place", creates, swaps);
    let yes = known(true, true);
    assert_eq!(yes.beside(None), Some(yes.clone()));
    assert_eq!(yes.beside(Some(&yes)), Some(yes.clone()), "it is younger");
    for no in [known(false, true), known(true, false), known(false, false)] {
        assert_eq!(yes.beside(Some(&no)), None, "it is no younger by that");
        assert_eq!(no.beside(Some(&no)), Some(no.clone()), "found again");
        assert_eq!(no.beside(Some(&yes)), Some(no));
    }
    let both = known(true, false).beside(Some(&known(false, true)));
    assert_eq!(both, Some(known(false, false)));
    let elsewhere = ProbeFinding::new("elsewhere", false, false);
    assert_eq!(yes.beside(Some(&elsewhere)), Some(yes.clone()));
}

/// Behind a proxy every provider calls itself the same.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_ignores_conditions_under_an_old_name_is_found_out() {
    for name in [Some("nginx"), None] {
        let server = server();
        if let Some(name) = name {
            server.call_itself(name);
        }
        let memory = Arc::new(Kept::default());
        one_more(&server, remembering(&server, &memory), "a").await;
        assert!(memory.only().create_only);
        server.set_conditions(Conditions::Ignored);
        let before = server.objects("bucket").len();
        let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
        let refused = create(&s3, "a").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{name:?}");
        assert!(!memory.only().create_only);
        assert_eq!(s3.read(&key("a")).await.unwrap(), "x");
        assert_eq!(server.objects("bucket").len(), before, "cleaned up");
    }
}

/// One create after the other does not tell a provider that looks first and writes later.
#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_known_at_first_hand_is_raced_by_each() {
    let server = server();
    let memory = Arc::new(Kept::default());
    one_more(&server, remembering(&server, &memory), "a").await;
    server.set_conditions(Conditions::Racy(Duration::from_millis(50)));
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    create(&s3, "b").await.unwrap();
    let sure = PutOptions::create().at_first_hand();
    let refused = s3.put(&key("c"), "x".into(), sure.clone()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(!memory.only().create_only && !s3.capabilities().create_only);
    // Found out by this process it is known at first hand, and told by who configured it, too.
    server.set_conditions(Conditions::Atomic);
    let memory = Arc::new(Kept::default());
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    create(&s3, "d").await.unwrap();
    let before = server.requests();
    s3.put(&key("e"), "x".into(), sure.clone()).await.unwrap();
    let s3 = S3::open(config(&server)).await.unwrap();
    s3.put(&key("f"), "x".into(), sure).await.unwrap();
    assert_eq!(server.requests() - before, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_holds_as_long_as_it_is_said_to() {
    /// Says so of all that it remembers.
    #[derive(Debug)]
    struct Holding(Arc<Kept>, Duration);
    impl ProbeMemory for Holding {
        fn recall(&self, place: &str) -> Option<ProbeFinding> {
            Some(self.0.recall(place)?.with_holds(self.1))
        }
        fn keep(&self, finding: &ProbeFinding) {
            self.0.keep(finding);
        }
        fn forget(&self, place: &str) {
            self.0.forget(place);
        }
    }
    let server = server();
    let memory = Arc::new(Kept::default());
    one_more(&server, remembering(&server, &memory), "a").await;
    let holding = |time| {
        let mut config = remembering(&server, &memory);
        config.probe_memory = Some(Arc::new(Holding(Arc::clone(&memory), time)));
        config
    };
    let long = Duration::from_secs(3600);
    assert_eq!(one_more(&server, holding(long), "b").await, KNOWN);
    // It is over by when it is to be believed.
    assert!(one_more(&server, holding(Duration::ZERO), "c").await > RACED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_contradicts_is_asked_anew() {
    let server = server();
    let memory = Arc::new(Kept::default());
    one_more(&server, remembering(&server, &memory), "a").await;
    // Of what was remembered, it is found out before anything is written.
    server.set_conditions(Conditions::Refused);
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    assert!(!s3.probe().await.unwrap().create_only);
    assert!(!memory.only().create_only);
    // Of what this process raced for itself, by the write.
    server.set_conditions(Conditions::Atomic);
    let memory = Arc::new(Kept::default());
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    create(&s3, "b").await.unwrap();
    server.set_conditions(Conditions::Refused);
    let refused = create(&s3, "c").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(!refused.outcome_unknown());
    assert!(refused.to_string().contains("any more"), "{refused}");
    assert!(!memory.only().create_only && !s3.capabilities().create_only);
    let before = server.requests();
    let refused = create(&s3, "c").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(server.requests(), before, "it is known");
    // One answer that was not the provider's is asked about, and the write goes on.
    server.set_conditions(Conditions::Atomic);
    let memory = Arc::new(Kept::default());
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    create(&s3, "e").await.unwrap();
    server.plan(|request| {
        let once = request.is_put_object() && request.path.ends_with("/f");
        once.then(|| Fault::answer(501, "NotImplemented"))
    });
    let refused = create(&s3, "f").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "again");
    assert!(!refused.outcome_unknown());
    create(&s3, "g").await.unwrap();
    let left = Arc::new(AtomicBool::new(true));
    server.plan(move |request| {
        let once = request.is_put_object() && request.path.ends_with("/f");
        (once && left.swap(false, Ordering::SeqCst)).then(|| Fault::answer(501, "NotImplemented"))
    });
    create(&s3, "f").await.unwrap();
    // What is configured stays, whatever the provider says.
    server.plan(|_| None);
    server.set_conditions(Conditions::Refused);
    let s3 = S3::open(config(&server)).await.unwrap();
    let refused = create(&s3, "h").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(s3.capabilities().create_only);
}
