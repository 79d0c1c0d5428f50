//! Who asks: keys that are given, found in files, or fetched and fetched again.
//!
//! Nothing here looks at the process's environment or a home directory: variables and paths are
//! arguments.

mod instance;
mod profile;
mod web_identity;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future;
use aws_sdk_s3::config::ProvideCredentials;

use crate::error::{Error, ErrorKind, Operation, Result};
use crate::net::{HttpClient, NetError};
use crate::secret::Secret;

/// Keys to sign with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct S3Keys {
    /// The public half.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: Secret,
    /// What makes temporary keys valid.
    pub session_token: Option<Secret>,
    /// When they end; they are fetched again before.
    pub expires: Option<SystemTime>,
}

impl S3Keys {
    /// Keys that don't end.
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<Secret>) -> Self {
        Self {
            access_key_id: access_key_id.into(),
            secret_access_key: secret_access_key.into(),
            session_token: None,
            expires: None,
        }
    }

    /// Makes them temporary.
    #[must_use]
    pub fn temporary(mut self, token: impl Into<Secret>, expires: Option<SystemTime>) -> Self {
        self.session_token = Some(token.into());
        self.expires = expires;
        self
    }
}

/// Where keys come from. Asked when they are first needed and again before they end.
#[async_trait]
pub trait CredentialsSource: fmt::Debug + Send + Sync + 'static {
    /// Fetches keys. The error's text must be free of secrets.
    async fn fetch(&self) -> Result<S3Keys>;
}

/// Who asks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum S3Credentials {
    /// Nobody: requests aren't signed.
    Anonymous,
    /// These keys.
    Static(S3Keys),
    /// A profile in files of the AWS tools, read again at every fetch.
    Profile {
        /// The files in order of precedence: usually `credentials`, then `config`.
        files: Vec<PathBuf>,
        /// The profile's name; usually `default`.
        name: String,
    },
    /// The role of the machine, from its metadata service (version 2).
    Instance {
        /// The address of the service; the usual one if absent.
        endpoint: Option<String>,
    },
    /// A role taken by a token in a file, as Kubernetes mounts it.
    WebIdentity {
        /// The role.
        role_arn: String,
        /// What the session is called in the provider's logs.
        session_name: String,
        /// The file with the token, read again at every fetch.
        token_file: PathBuf,
        /// The address of the token service; that of AWS in `region` if absent.
        endpoint: Option<String>,
        /// The region of the token service.
        region: Option<String>,
    },
    /// Whatever the caller's own source fetches.
    Source(Arc<dyn CredentialsSource>),
    /// The first of several that has keys.
    FirstOf(Vec<Self>),
}

/// A fetch that found nothing to fetch, so that the next source is asked.
#[derive(Debug)]
enum Failed {
    Nothing(String),
    Broken(Error),
}

impl S3Credentials {
    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }

    async fn fetch(&self, http: &HttpClient) -> Result<S3Keys, Failed> {
        match self {
            Self::Anonymous => Err(Failed::Nothing("no credentials".to_owned())),
            Self::Static(keys) => Ok(keys.clone()),
            Self::Profile { files, name } => match profile::load(files, name).await? {
                profile::Profile::Keys(keys) => Ok(keys),
                profile::Profile::WebIdentity(web) => Box::pin(web.fetch(http)).await,
            },
            Self::Instance { endpoint } => instance::fetch(http, endpoint.as_deref()).await,
            Self::WebIdentity {
                role_arn,
                session_name,
                token_file,
                endpoint,
                region,
            } => {
                let role = web_identity::Role {
                    role_arn,
                    session_name,
                };
                web_identity::fetch(
                    http,
                    &role,
                    token_file,
                    endpoint.as_deref(),
                    region.as_deref(),
                )
                .await
            }
            Self::Source(source) => source.fetch().await.map_err(Failed::Broken),
            Self::FirstOf(sources) => {
                let mut tried = Vec::new();
                for source in sources {
                    match Box::pin(source.fetch(http)).await {
                        Err(Failed::Nothing(why)) => tried.push(why),
                        other => return other,
                    }
                }
                Err(Failed::Nothing(tried.join("; ")))
            }
        }
    }
}

fn broken(text: impl Into<String>) -> Failed {
    Failed::Broken(Error::new(ErrorKind::Unauthenticated, Operation::Open).detail(text.into()))
}

impl From<NetError> for Failed {
    fn from(error: NetError) -> Self {
        Self::Broken(Error::new(ErrorKind::Unavailable, Operation::Open).because(error))
    }
}

/// The bridge to the SDK.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) credentials: S3Credentials,
    pub(super) http: HttpClient,
}

impl ProvideCredentials for Provider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async move {
            match self.credentials.fetch(&self.http).await {
                Ok(keys) => Ok(aws_credential_types::Credentials::new(
                    keys.access_key_id,
                    keys.secret_access_key.expose(),
                    keys.session_token.map(|token| token.expose().to_owned()),
                    keys.expires,
                    "neon-storage",
                )),
                Err(Failed::Nothing(why)) => Err(CredentialsError::not_loaded(format!(
                    "no credentials found: {why}"
                ))),
                Err(Failed::Broken(error)) => {
                    // The SDK's error carries ours, kind and text, to where it is lowered.
                    Err(CredentialsError::provider_error(error))
                }
            }
        })
    }
}
