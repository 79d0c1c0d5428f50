//! Sources of changes, and the choice of one.

use std::fmt;
use std::ops::ControlFlow;

use neon_pg_layout::Lsn;
use serde::{Deserialize, Serialize};

use crate::changes::reason::CannotSay;
use crate::changes::set::ChangeSet;
use crate::error::Result;

/// Where knowledge of changes comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SourceKind {
    /// Summaries kept beside archived log.
    ArchiveSummaries,
    /// The server's own summaries (17 and later).
    ServerSummaries,
    /// The log, decoded.
    Log,
    /// The extents that a page overlay wrote.
    Overlay,
    /// Every page, compared with the parent's digests.
    Scan,
}

impl SourceKind {
    /// The word used in records and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ArchiveSummaries => "archive-summaries",
            Self::ServerSummaries => "server-summaries",
            Self::Log => "log",
            Self::Overlay => "overlay",
            Self::Scan => "scan",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a source answers.
#[derive(Debug)]
pub enum Answer {
    /// All that changed since the parent.
    Exact(ChangeSet),
    /// It does not know.
    CannotSay(CannotSay),
}

/// Something that may know what changed since one parent.
pub trait ChangeSource: Send {
    /// What kind of source it is.
    fn kind(&self) -> SourceKind;

    /// What changed.
    ///
    /// # Errors
    /// [`Cancelled`](crate::ErrorKind::Cancelled) when the caller stopped it; calling again goes on where it
    /// stopped. Others only where no other source would do better. That it cannot be read is an answer.
    fn changes(&mut self) -> Result<Answer>;
}

/// How far a source has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// In the log.
    Log {
        /// The next position.
        at: Lsn,
        /// The last that is wanted.
        end: Lsn,
    },
    /// In files of the cluster.
    Pages {
        /// How many were read.
        read: u64,
    },
}

/// Whom to tell; may stop the work.
pub(crate) type Watch<'a> = Box<dyn FnMut(Progress) -> ControlFlow<()> + Send + 'a>;

/// A source of which it is known already that it cannot answer, so that the record says so.
#[derive(Debug)]
pub struct NotUsable {
    kind: SourceKind,
    reason: CannotSay,
}

impl NotUsable {
    /// A source of this kind that answers with this reason.
    #[must_use]
    pub fn new(kind: SourceKind, reason: impl Into<CannotSay>) -> Self {
        Self {
            kind,
            reason: reason.into(),
        }
    }
}

impl ChangeSource for NotUsable {
    fn kind(&self) -> SourceKind {
        self.kind
    }

    fn changes(&mut self) -> Result<Answer> {
        Ok(Answer::CannotSay(self.reason.clone()))
    }
}

/// A source that was asked, or would have been better, and why it was not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// The source.
    pub source: SourceKind,
    /// A stable word for the reason.
    pub code: String,
    /// The reason in words.
    pub reason: String,
}

/// What a commit says about where its changes came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// The source that was used; none for a first snapshot, which holds everything.
    pub used: Option<SourceKind>,
    /// Those before it, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
}

/// What [`choose`] found.
#[derive(Debug)]
pub struct Chosen {
    /// What changed: everything, where no source could say.
    pub set: ChangeSet,
    /// How it is known.
    pub record: ChangeRecord,
}

/// Asks the sources in this order and takes the first exact answer. When there is none, everything is to
/// be read.
///
/// # Errors
/// What a source returns.
pub fn choose(sources: &mut [&mut dyn ChangeSource]) -> Result<Chosen> {
    let mut passed_over = Vec::new();
    for source in sources {
        match source.changes()? {
            Answer::Exact(set) => {
                let used = Some(source.kind());
                return Ok(Chosen {
                    set,
                    record: ChangeRecord { used, passed_over },
                });
            }
            Answer::CannotSay(reason) => passed_over.push(PassedOver {
                source: source.kind(),
                code: reason.code().to_owned(),
                reason: reason.to_string(),
            }),
        }
    }
    Ok(Chosen {
        set: ChangeSet::everything(),
        record: ChangeRecord {
            used: None,
            passed_over,
        },
    })
}
