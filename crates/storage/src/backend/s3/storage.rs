//! The S3 backend as a [`Storage`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
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
    found: Found,
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
    /// Opens a bucket. Sends nothing, unless conditional writes are to be probed, as they are by
    /// default at an endpoint other than AWS itself.
    ///
    /// Dropped: a probe may leave a few tiny objects below `neon-probe-`.
    pub async fn open(config: S3Config) -> Result<Self> {
        let conditional = match config.conditional {
            Conditional::Automatic if config.endpoint.is_some() => Conditional::Probed,
            Conditional::Automatic => Conditional::Trusted,
            chosen => chosen,
        };
        let found = match conditional {
            Conditional::Automatic | Conditional::Trusted => Found {
                create_only: true,
                compare_and_swap: true,
            },
            Conditional::Unused => Found {
                create_only: false,
                compare_and_swap: false,
            },
            Conditional::Probed => {
                let all = Found {
                    create_only: true,
                    compare_and_swap: true,
                };
                // Clients of their own, so that the requests race on connections of their own.
                let (one, two) = (Self::with(&config, all)?, Self::with(&config, all)?);
                let found = match probe::race(&one, &two).await {
                    Ok(found) => found,
                    // Who may only read needs no conditional writes.
                    Err(error) if error.kind() == ErrorKind::Denied => Found {
                        create_only: false,
                        compare_and_swap: false,
                    },
                    Err(error) => {
                        return Err(error.during(Operation::Open).subject(one.location()));
                    }
                };
                tracing::debug!(
                    create_only = found.create_only,
                    compare_and_swap = found.compare_and_swap,
                    "probed conditional writes"
                );
                found
            }
        };
        Self::with(&config, found)
    }

    fn with(config: &S3Config, found: Found) -> Result<Self> {
        let customer_key_md5 = match &config.encryption {
            Some(Encryption::Customer(key)) => Some(md5_of_key(config, key.expose())?),
            _ => None,
        };
        let shared = Shared {
            client: client::build(config)?,
            config: config.clone(),
            customer_key_md5,
            found,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
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
    pub(super) fn check_condition(&self, key: &Key, mode: &PutMode) -> Result<()> {
        let enforced = match mode {
            PutMode::Create => self.shared.found.create_only,
            PutMode::IfVersion(_) => self.shared.found.compare_and_swap,
            PutMode::Overwrite => true,
        };
        if enforced {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, Operation::Put)
            .subject(key.as_str())
            .detail("this provider does not enforce the condition"))
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
        self.shared.found.apply(&mut capabilities);
        capabilities
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
