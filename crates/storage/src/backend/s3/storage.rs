//! The S3 backend as a [`Storage`].

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use super::client;
use super::config::{Encryption, S3Config};
use super::parts::Sizes;
use super::probe::{self, Conditional, Found};
use super::remembered::{Belief, Need, ProbeFinding, ServerName, place_of};
use crate::body::Body;
use crate::capabilities::{Capabilities, Durability};
use crate::coalesce;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::Key;
use crate::object::{GetResult, Head, ObjectMeta};
use crate::options::{GetOptions, ListOptions, PutMode, PutOptions};
use crate::storage::Storage;

/// A bucket. Clones share their connections.
#[derive(Clone)]
pub struct S3 {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) client: aws_sdk_s3::Client,
    pub(super) config: S3Config,
    customer_key_md5: Option<String>,
    /// What conditional writes are worth, once it is known.
    belief: Mutex<Option<Belief>>,
    /// Held by who finds that out.
    asking: tokio::sync::Mutex<()>,
    /// What was remembered turned out to be wrong: it is not asked for again.
    mistaken: AtomicBool,
    server: ServerName,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3")
            .field("bucket", &self.shared.config.bucket)
            .field("endpoint", &self.shared.config.endpoint)
            .field("region", &self.shared.config.region)
            .finish_non_exhaustive()
    }
}

impl S3 {
    /// Prepares to use a bucket. Sends nothing.
    ///
    /// Whether conditional writes are enforced is found out, where it has to be, by the first put
    /// that needs it or by [`Storage::probe`].
    pub async fn open(config: S3Config) -> Result<Self> {
        let known = match config.conditional {
            Conditional::Automatic if !config.is_aws() => None,
            Conditional::Automatic | Conditional::Trusted => Some(Found::ALL),
            Conditional::Unused => Some(Found::NONE),
            Conditional::Probed => None,
        };
        Self::with(&config, known)
    }

    fn with(config: &S3Config, known: Option<Found>) -> Result<Self> {
        let customer_key_md5 = match &config.encryption {
            Some(Encryption::Customer(key)) => Some(md5_of_key(config, key.expose())?),
            _ => None,
        };
        let server = ServerName::default();
        let shared = Shared {
            client: client::build(config, server.clone())?,
            config: config.clone(),
            customer_key_md5,
            belief: Mutex::new(known.map(Belief::given)),
            asking: tokio::sync::Mutex::new(()),
            mistaken: AtomicBool::new(false),
            server,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The same bucket over the same connections, where every condition is sent as it is.
    fn unasked(&self) -> Self {
        let shared = Shared {
            client: self.shared.client.clone(),
            config: self.shared.config.clone(),
            customer_key_md5: self.shared.customer_key_md5.clone(),
            belief: Mutex::new(Some(Belief::given(Found::ALL))),
            asking: tokio::sync::Mutex::new(()),
            mistaken: AtomicBool::new(false),
            server: self.shared.server.clone(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    fn belief(&self) -> MutexGuard<'_, Option<Belief>> {
        let belief = self.shared.belief.lock();
        belief.unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, if it suffices.
    fn believed(&self, need: Need<'_>) -> Option<Found> {
        let belief = self.belief();
        let belief = belief.as_ref()?;
        let suffices = belief.suffices(need, &self.shared.server);
        suffices.then_some(belief.found)
    }

    /// What conditional writes are worth here: remembered by the program, or asked once.
    async fn found(&self, need: Need<'_>) -> Result<Found> {
        if let Some(found) = self.believed(need) {
            return Ok(found);
        }
        let _one = self.shared.asking.lock().await;
        if let Some(found) = self.believed(need) {
            return Ok(found);
        }
        let told = |error: Error| {
            error.detail(
                "while conditional writes were tried, which `conditional=trusted` leaves out",
            )
        };
        if let Some(belief) = self.recall().await
            && belief.suffices(need, &self.shared.server)
            && (!belief.found.create_only || self.proven().await.map_err(told)?)
            // The proof was answered by somebody, too.
            && belief.suffices(need, &self.shared.server)
        {
            let found = belief.found;
            *self.belief() = Some(belief);
            return Ok(found);
        }
        let found = self.race().await.map_err(told)?;
        *self.belief() = Some(Belief::raced(found));
        Ok(found)
    }

    /// What the program remembers. Nothing where it cannot be asked, and after it was wrong.
    async fn recall(&self) -> Option<Belief> {
        if self.shared.mistaken.load(Ordering::Acquire) {
            return None;
        }
        let memory = self.shared.config.probe_memory.clone()?;
        let place = place_of(&self.shared.config);
        let recalled = move || memory.recall(&place).filter(|known| known.place == place);
        let finding = tokio::task::spawn_blocking(recalled).await.ok()??;
        Some(Belief::recalled(finding))
    }

    /// Whether whoever answers now refuses to create what is there.
    async fn proven(&self) -> Result<bool> {
        let prefix = self.shared.config.probe_prefix.clone();
        let refuses = probe::refuses_a_second(self.unasked(), prefix).await?;
        if !refuses {
            tracing::warn!("what was remembered of conditional writes does not hold any more");
        }
        Ok(refuses)
    }

    /// Finds it out, and has it kept. What was found not to be enforced before, and still holds, is not.
    async fn race(&self) -> Result<Found> {
        let config = &self.shared.config;
        // Clients of their own, so that the requests race on connections of their own.
        let all = Some(Found::ALL);
        let (one, two) = (Self::with(config, all)?, Self::with(config, all)?);
        let server = one.shared.server.clone();
        let mut found = probe::race(one, two, config.probe_prefix.clone()).await?;
        tracing::debug!(
            create_only = found.create_only,
            compare_and_swap = found.compare_and_swap,
            "probed conditional writes"
        );
        if let Some(memory) = config.probe_memory.clone() {
            let place = place_of(config);
            let finding = ProbeFinding::new(&*place, found.create_only, found.compare_and_swap)
                .with_server(server.last().flatten());
            let keep = move || {
                let earlier = memory.recall(&place).filter(|known| known.place == place);
                if let Some(both) = finding.beside(earlier.as_ref()) {
                    memory.keep(&both);
                    return Some(both);
                }
                earlier
            };
            // What is not kept is asked again.
            if let Ok(Some(known)) = tokio::task::spawn_blocking(keep).await {
                found.create_only &= known.create_only;
                found.compare_and_swap &= known.compare_and_swap;
            }
        }
        Ok(found)
    }

    /// The provider said that it has no such writes. What was found out of it is wrong then, by whom ever, and whoever asks next
    /// races. Whether there was anything to be wrong: what is configured stays.
    pub(super) async fn contradicted(&self) -> bool {
        if self.belief().take_if(|belief| belief.is_ours()).is_none() {
            return false;
        }
        self.shared.mistaken.store(true, Ordering::Release);
        if let Some(memory) = self.shared.config.probe_memory.clone() {
            let place = place_of(&self.shared.config);
            let forget = move || memory.forget(&place);
            let _forgotten = tokio::task::spawn_blocking(forget).await;
        }
        true
    }

    /// The digest that an upload carries, if it does.
    pub(super) async fn content_md5(&self, bytes: &Bytes) -> Option<String> {
        use base64::Engine;
        /// Hashing so much takes long enough to hold up other tasks.
        const LONG: usize = 256 * 1024;
        if !self.shared.config.sends_md5() {
            return None;
        }
        let digest = |bytes: &Bytes| <md5::Md5 as md5::Digest>::digest(bytes);
        let digest = if bytes.len() < LONG {
            digest(bytes)
        } else {
            let bytes = bytes.clone();
            // Only a runtime that shuts down doesn't run it; then nothing is sent either.
            tokio::task::spawn_blocking(move || digest(&bytes))
                .await
                .ok()?
        };
        Some(base64::engine::general_purpose::STANDARD.encode(digest))
    }

    pub(super) fn bucket(&self) -> &str {
        &self.shared.config.bucket
    }

    /// The three headers that carry a customer's key.
    pub(super) fn customer_key(&self) -> (Option<String>, Option<String>, Option<String>) {
        match &self.shared.config.encryption {
            Some(Encryption::Customer(key)) => (
                Some("AES256".to_owned()),
                Some(key.expose().to_owned()),
                self.shared.customer_key_md5.clone(),
            ),
            _ => (None, None, None),
        }
    }

    /// Time for an upload: the SDK counts sending the body as waiting for the answer, so a large
    /// part on a slow line needs more of it. A transfer that stands still ends earlier all the same.
    pub(super) fn patience(&self, bytes: usize) -> aws_sdk_s3::config::Builder {
        const SLOWEST: u64 = 32 * 1024;
        let config = &self.shared.config;
        let sending = Duration::from_secs(bytes as u64 / SLOWEST);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(config.connect_timeout)
            .read_timeout(config.read_timeout.saturating_add(sending))
            .build();
        aws_sdk_s3::config::Builder::new().timeout_config(timeouts)
    }

    /// Runs requests that carry a customer's key where nothing traces: the SDK would show the key
    /// at its finest level.
    async fn unseen<T>(&self, requests: impl Future<Output = T> + Send) -> T {
        match &self.shared.config.encryption {
            Some(Encryption::Customer(_)) => {
                requests.with_subscriber(NoSubscriber::default()).await
            }
            _ => requests.await,
        }
    }

    /// Refuses a condition that the provider doesn't enforce: silence would be believed.
    pub(super) async fn check_condition(
        &self,
        key: &Key,
        mode: &PutMode,
        first_hand: bool,
    ) -> Result<()> {
        if *mode == PutMode::Overwrite {
            return Ok(());
        }
        let need = Need {
            mode: Some(mode),
            first_hand,
        };
        let found = self.found(need).await.map_err(|error| {
            error
                .during(Operation::Put)
                .subject(key.as_str())
                .without_effect()
        })?;
        if found.enforces(mode) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, Operation::Put)
            .subject(key.as_str())
            .detail("this provider does not enforce the condition")
            .without_effect())
    }
}

fn md5_of_key(config: &S3Config, key: &str) -> Result<String> {
    use base64::Engine;
    let engine = base64::engine::general_purpose::STANDARD;
    let invalid = |detail: &'static str| {
        Error::new(ErrorKind::Invalid, Operation::Open)
            .subject(format!("s3://{}", config.bucket))
            .detail(detail)
    };
    let bytes = engine
        .decode(key)
        .map_err(|_| invalid("the customer's key is not base64"))?;
    if bytes.len() != 32 {
        return Err(invalid("the customer's key is not 32 bytes long"));
    }
    Ok(engine.encode(<md5::Md5 as md5::Digest>::digest(&bytes)))
}

#[async_trait]
impl Storage for S3 {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities {
            max_object_size: Some(Sizes::new(&self.shared.config).maximum()),
            ..Capabilities::full(Durability::Provider)
        };
        let found = self.believed(Need::ANY);
        found.unwrap_or(Found::NONE).apply(&mut capabilities);
        capabilities
    }

    async fn probe(&self) -> Result<Capabilities> {
        self.found(Need::ANY).await.map_err(|error| {
            error
                .during(Operation::Open)
                .subject(self.location())
                .without_effect()
        })?;
        Ok(self.capabilities())
    }

    fn location(&self) -> String {
        let config = &self.shared.config;
        match &config.endpoint {
            None => format!("s3://{}", config.bucket),
            Some(endpoint) => {
                format!(
                    "s3://{}?endpoint={}",
                    config.bucket,
                    crate::locator::without_secrets(endpoint)
                )
            }
        }
    }

    async fn put(&self, key: &Key, body: Body, options: PutOptions) -> Result<ObjectMeta> {
        self.unseen(self.put_body(key, body, options)).await
    }

    async fn get(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        self.unseen(self.open_object(key, options)).await
    }

    async fn get_ranges(
        &self,
        key: &Key,
        ranges: &[Range<u64>],
        options: GetOptions,
    ) -> Result<Vec<Bytes>> {
        coalesce::by_get(self, key, ranges, options).await
    }

    async fn head(&self, key: &Key) -> Result<Head> {
        Ok(self.unseen(self.head_with_token(key)).await?.0)
    }

    fn list(&self, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.pages(options)
    }

    fn delete_many(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        self.delete_stream(keys)
    }
}
