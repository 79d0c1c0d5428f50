//! What changed in a cluster since an earlier snapshot of it.
//!
//! A [`ChangeSource`] answers with an exact [`ChangeSet`], or says why it cannot. There are three:
//! [`LogSource`] reads the log itself, [`SummarySource`] the summaries that 17 and later keep of it,
//! [`ScanSource`] every page. The first two stand on a [`Span`], which only a valid parent has.
//! [`choose`] takes the first that can answer and remembers why the better ones could not.
//!
//! Exact means: a page that the set does not name is what it was in the parent, but for the differences
//! listed in `docs/change-sources.md`, none of which a server relies on. The set may name more.

pub(crate) mod fuzz;
mod hint_logging;
mod invalid;
mod log_files;
mod logged;
mod reason;
mod recorded;
mod scan;
mod scan_directory;
mod set;
mod source;
mod summary;
mod tail;
mod unlogged;
mod validity;
mod wal;

pub use hint_logging::{HintLogging, NamedPages, NotLogged};
pub use invalid::Invalid;
pub use log_files::{LogFiles, SegmentDirectory, read_tail};
pub use reason::CannotSay;
pub use recorded::LogEnd;
pub use scan::{FileScan, ParentFile, ParentPage, ParentPages, ScanFile, ScanFiles, ScanSource};
pub use scan_directory::ScanDirectory;
pub use set::{ChangeSet, FileChange, FileFacts, Hints, WholeReason};
pub use source::{
    Answer, ChangeRecord, ChangeSource, Chosen, NotUsable, PassedOver, Progress, SourceKind, choose,
};
pub use summary::{Summaries, Summary, SummaryDirectory, SummaryRow, SummarySource};
pub use tail::LogTail;
pub use unlogged::UnloggedRelations;
pub use validity::{Child, ClusterFacts, Parent, Span};
pub use wal::{LogSource, LogWalk};
