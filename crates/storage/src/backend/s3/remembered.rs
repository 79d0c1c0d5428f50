//! What a race found out, kept by the program for the next time it opens the same bucket.
//!
//! A race is a hundred requests, and each process that writes would run its own. Whether a provider enforces conditions does not
//! change from one command to the next; so a program that lives on may keep the answer.
//!
//! - That creates are *not* enforced is believed as it is, and stays for as long as it holds: a provider that looks first and
//!   writes later loses most races and wins some, and the first it wins must not be the last.
//! - That they *are* is believed of the place that was asked, as long as the provider calls itself what it did then, and after
//!   a second create of one key was refused just now: behind a proxy another provider calls itself the same.
//! - Of writes under a version, and of what must be known [at first hand](crate::PutOptions::first_hand), only a no is.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    /// For how much longer it holds, when it is recalled; as long as the opening lives without.
    pub holds: Option<Duration>,
}

impl ProbeFinding {
    /// Of a provider that does not say what it is.
    pub fn new(place: impl Into<String>, create_only: bool, compare_and_swap: bool) -> Self {
        Self {
            place: place.into(),
            create_only,
            compare_and_swap,
            server: None,
            holds: None,
        }
    }

    /// The same of a provider that calls itself so.
    #[must_use]
    pub fn with_server(mut self, server: Option<String>) -> Self {
        self.server = server;
        self
    }

    /// The same, which holds for so much longer.
    #[must_use]
    pub fn with_holds(mut self, holds: Duration) -> Self {
        self.holds = Some(holds);
        self
    }

    /// What is to be kept where this was found out just now and `earlier` still holds: what either found not to be enforced is
    /// not. Nothing where that is what was known already; it grows no younger by it.
    #[must_use]
    pub fn beside(&self, earlier: Option<&Self>) -> Option<Self> {
        let Some(earlier) = earlier.filter(|earlier| earlier.place == self.place) else {
            return Some(self.clone());
        };
        let both = Self {
            create_only: self.create_only && earlier.create_only,
            compare_and_swap: self.compare_and_swap && earlier.compare_and_swap,
            ..self.clone()
        };
        let inherited =
            (both.create_only, both.compare_and_swap) != (self.create_only, self.compare_and_swap);
        let known = (both.create_only, both.compare_and_swap)
            == (earlier.create_only, earlier.compare_and_swap);
        (!inherited || !known).then_some(both)
    }
}

/// Where a program keeps [findings](ProbeFinding). A contract with *implementors*; its methods may block for as long as a small
/// file takes, and are called on threads that may.
///
/// How long a finding holds, the program says by no longer giving it, and by [`holds`](ProbeFinding::holds) to who opened a
/// bucket and keeps it open; a week is plenty.
pub trait ProbeMemory: fmt::Debug + Send + Sync + 'static {
    /// What was found out about a place; nothing to have it found out anew.
    fn recall(&self, place: &str) -> Option<ProbeFinding>;
    /// Keeps what was found out, in place of what was known. That was recalled just before, and a no of it is in the finding;
    /// who shares it with other processes puts it [beside](ProbeFinding::beside) what they kept meanwhile. Who cannot keep it is
    /// asked again the next time.
    fn keep(&self, finding: &ProbeFinding);
    /// Forgets what was known of a place: it turned out to be wrong.
    fn forget(&self, place: &str);
}

/// What a write needs to know, or who asks what the storage can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need<'a> {
    /// Nothing to ask what the storage can do.
    pub(super) mode: Option<&'a PutMode>,
    pub(super) first_hand: bool,
}

impl Need<'_> {
    pub(super) const ANY: Self = Self {
        mode: None,
        first_hand: false,
    };
}

/// What is held to be so.
#[derive(Debug, Clone)]
pub(super) struct Belief {
    pub(super) found: Found,
    source: Source,
}

/// How that is known.
#[derive(Debug, Clone)]
enum Source {
    /// Configured.
    Given,
    /// Found out by this process.
    Raced,
    /// From memory.
    Recalled {
        server: Option<String>,
        until: Option<Instant>,
    },
}

impl Belief {
    pub(super) fn given(found: Found) -> Self {
        let source = Source::Given;
        Self { found, source }
    }

    pub(super) fn raced(found: Found) -> Self {
        let source = Source::Raced;
        Self { found, source }
    }

    pub(super) fn recalled(finding: ProbeFinding) -> Self {
        let now = Instant::now();
        Self {
            found: Found {
                create_only: finding.create_only,
                compare_and_swap: finding.compare_and_swap,
            },
            source: Source::Recalled {
                server: finding.server,
                until: finding.holds.and_then(|holds| now.checked_add(holds)),
            },
        }
    }

    /// Whether the provider may contradict it: nobody told us so.
    pub(super) fn is_ours(&self) -> bool {
        !matches!(self.source, Source::Given)
    }

    /// Whether it is enough for what is needed.
    pub(super) fn suffices(&self, need: Need<'_>, seen: &ServerName) -> bool {
        let Source::Recalled { server, until } = &self.source else {
            return true;
        };
        if until.is_some_and(|until| until <= Instant::now()) {
            return false;
        }
        let enforced = match need.mode {
            Some(mode) => self.found.enforces(mode),
            None => self.found.create_only,
        };
        if !enforced {
            return true;
        }
        let creates = !matches!(need.mode, Some(PutMode::IfVersion(_)));
        creates && !need.first_hand && seen.last().is_none_or(|seen| seen == *server)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Version;

    #[test]
    fn what_is_recalled_suffices_for_less_than_what_was_raced_and_for_a_time() {
        let seen = ServerName::default();
        let swap = PutMode::IfVersion(Version::new("v"));
        let need = |mode, first_hand| Need { mode, first_hand };
        let create = need(Some(&PutMode::Create), false);
        let sure = need(Some(&PutMode::Create), true);
        let swap = need(Some(&swap), false);
        let finding = |creates, swaps| ProbeFinding::new("place", creates, swaps);
        for belief in [Belief::given(Found::ALL), Belief::raced(Found::NONE)] {
            for need in [create, sure, swap, Need::ANY] {
                assert!(belief.suffices(need, &seen), "{belief:?} {need:?}");
            }
        }
        for (finding, enough) in [
            (finding(true, true), [true, false, false, true]),
            (finding(true, false), [true, false, true, true]),
            (finding(false, true), [true, true, false, true]),
        ] {
            let long = Duration::from_secs(3600);
            let over = Belief::recalled(finding.clone().with_holds(Duration::ZERO));
            let holds = Belief::recalled(finding.clone().with_holds(long));
            let always = Belief::recalled(finding);
            for (need, enough) in [create, sure, swap, Need::ANY].into_iter().zip(enough) {
                assert_eq!(always.suffices(need, &seen), enough, "{always:?} {need:?}");
                assert_eq!(holds.suffices(need, &seen), enough);
                assert!(!over.suffices(need, &seen));
            }
        }
    }
}
