//! What a race found out about a bucket, kept by the program for the next opening.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use neon_storage::{
    Conditional, ErrorKind, Key, ProbeFinding, ProbeMemory, PutMode, PutOptions, S3, S3Config,
    Storage, StorageExt,
};
use neon_testkit::s3::{Conditions, S3Server, S3ServerOptions};

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

/// Far more than a question and a put.
const RACED: u64 = 20;

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
        assert_eq!(next, 2, "a question and a put");
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
        2
    );
    // Another release, or another program behind the same address.
    server.call_itself("one/2");
    let raced = one_more(&server, remembering(&server, &memory), "c").await;
    assert!(raced > RACED, "{raced}");
    assert_eq!(memory.only().server.as_deref(), Some("one/2"));
    assert_eq!(
        one_more(&server, remembering(&server, &memory), "d").await,
        2
    );
    // Another region, and another way to address the bucket.
    let mut region = remembering(&server, &memory);
    region.region = Some("eu-west-1".to_owned());
    assert!(one_more(&server, region, "e").await > RACED);
    let mut host = remembering(&server, &memory);
    host.path_style = Some(true);
    assert_eq!(
        one_more(&server, host, "f").await,
        2,
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

#[tokio::test(flavor = "multi_thread")]
async fn memory_lets_writes_through_and_refuses_none() {
    let server = server();
    let memory = Arc::new(Kept::default());
    one_more(&server, remembering(&server, &memory), "a").await;
    let known = memory.only();
    let versioned = |s3: &S3| {
        let s3 = s3.clone();
        async move {
            let version = s3.head(&key("a")).await.unwrap().meta.version.unwrap();
            let mut options = PutOptions::default();
            options.mode = PutMode::IfVersion(version);
            s3.put(&key("a"), "y".into(), options).await
        }
    };
    // It remembers that one kind was not enforced: a write of that kind has the provider asked again.
    memory.keep(&ProbeFinding::new(known.place.as_str(), true, false));
    let before = server.requests();
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    s3.create(&key("b"), "x").await.unwrap();
    assert_eq!(server.requests() - before, 1);
    assert!(!s3.capabilities().compare_and_swap);
    versioned(&s3).await.unwrap();
    assert!(server.requests() - before > RACED);
    assert!(s3.capabilities().compare_and_swap && memory.only().compare_and_swap);
    // And so it does where neither was.
    memory.keep(&ProbeFinding::new(known.place.as_str(), false, false));
    assert!(one_more(&server, remembering(&server, &memory), "c").await > RACED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_contradicts_is_asked_anew() {
    let server = server();
    let memory = Arc::new(Kept::default());
    one_more(&server, remembering(&server, &memory), "a").await;
    server.set_conditions(Conditions::Refused);
    let s3 = S3::open(remembering(&server, &memory)).await.unwrap();
    let refused = s3.create(&key("b"), "x").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(memory.0.lock().unwrap().is_empty());
    assert!(!s3.capabilities().create_only);
    // Racing finds it out, and it is refused without a put.
    let refused = s3.create(&key("b"), "x").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(!memory.only().create_only);
    // It has them again: nobody is told otherwise because of what was.
    server.set_conditions(Conditions::Atomic);
    assert!(one_more(&server, remembering(&server, &memory), "b").await > RACED);
}
