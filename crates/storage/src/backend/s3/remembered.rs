//! What a race found out, kept by the program for the next time it opens the same bucket.
//!
//! A race is a hundred requests, and each process that writes would run its own. Whether a provider enforces conditions does not
//! change from one command to the next; so a program that lives on may keep the answer. What is remembered is believed only to
//! let writes through: before one is refused, the provider is asked. And only of the place that was asked, and as long as the
//! provider calls itself what it did then.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;

use super::config::S3Config;
use super::probe::Found;
use crate::locator::without_secrets;
use crate::options::PutMode;

/// What two clients that raced for the same keys found out about conditional writes. Nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProbeFinding {
    /// Of which place: endpoint, region, how the bucket is addressed, bucket.
    pub place: String,
    /// Of concurrent creates of one key exactly one won, always.
    pub create_only: bool,
    /// The same of writes under a version.
    pub compare_and_swap: bool,
    /// What the provider called itself: the header `Server` of its answers.
    pub server: Option<String>,
}

impl ProbeFinding {
    /// Of a provider that does not say what it is.
    pub fn new(place: impl Into<String>, create_only: bool, compare_and_swap: bool) -> Self {
        Self {
            place: place.into(),
            create_only,
            compare_and_swap,
            server: None,
        }
    }

    /// The same of a provider that calls itself so.
    #[must_use]
    pub fn with_server(mut self, server: Option<String>) -> Self {
        self.server = server;
        self
    }
}

/// Where a program keeps [findings](ProbeFinding). A contract with *implementors*; its methods may block for as long as a small
/// file takes, and are called on threads that may.
///
/// How long a finding holds, the program says by no longer giving it; a week is plenty.
pub trait ProbeMemory: fmt::Debug + Send + Sync + 'static {
    /// What was found out about a place; nothing to have it found out anew.
    fn recall(&self, place: &str) -> Option<ProbeFinding>;
    /// Keeps what was found out just now, in place of what was known. Who cannot keep it is asked again the next time.
    fn keep(&self, finding: &ProbeFinding);
    /// Forgets what was known of a place: it turned out to be wrong.
    fn forget(&self, place: &str);
}

/// What is held to be so.
#[derive(Debug, Clone)]
pub(super) struct Belief {
    pub(super) found: Found,
    /// By memory, of a provider that called itself so; else by this process.
    pub(super) of_server: Option<Option<String>>,
}

impl Belief {
    pub(super) fn raced(found: Found) -> Self {
        Self {
            found,
            of_server: None,
        }
    }

    /// Nothing where it says less than that creates are enforced: then the provider is asked in any case.
    pub(super) fn of(finding: ProbeFinding, place: &str) -> Option<Self> {
        (finding.place == place && finding.create_only).then_some(Self {
            found: Found {
                create_only: finding.create_only,
                compare_and_swap: finding.compare_and_swap,
            },
            of_server: Some(finding.server),
        })
    }

    /// Whether it is enough to let a write through, or, without one, to say what the storage can do.
    pub(super) fn suffices(&self, mode: Option<&PutMode>, seen: &ServerName) -> bool {
        let Some(server) = &self.of_server else {
            return true;
        };
        let same = seen.last().is_none_or(|seen| seen == *server);
        same && mode.is_none_or(|mode| self.found.enforces(mode))
    }
}

/// The place that a finding is true of.
pub(super) fn place_of(config: &S3Config) -> String {
    let endpoint = config.endpoint.as_deref().map(without_secrets);
    let by_path = config.path_style.unwrap_or(config.endpoint.is_some());
    format!(
        "{} {} {} {}",
        endpoint.as_deref().unwrap_or("-"),
        config.region.as_deref().unwrap_or("-"),
        if by_path { "path" } else { "host" },
        config.bucket
    )
}

/// What the provider called itself in its last answer.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerName(Arc<Mutex<Option<Option<String>>>>);

impl ServerName {
    /// Nothing before the first answer; nothing within where it did not say.
    pub(super) fn last(&self) -> Option<Option<String>> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }
}

impl Intercept for ServerName {
    fn name(&self) -> &'static str {
        "server name"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let answer = context.response();
        // What fails on its way may be answered by somebody in between.
        if answer.status().as_u16() < 500 {
            let name = answer.headers().get("server").map(str::to_owned);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
        }
        Ok(())
    }
}
