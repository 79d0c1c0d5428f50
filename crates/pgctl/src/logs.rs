//! Where a server logs, and the end of it.

use std::path::PathBuf;

use crate::diagnosis::{self, LogMark};
use crate::instance::Instance;

/// The files that the log of an instance is in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogFiles {
    /// What the server writes before its collector takes over, all of it when it has none. Grows by a few
    /// lines each start and is never rotated.
    pub start: PathBuf,
    /// What the collector writes to now, or wrote to last; it changes on rotation. None when the server
    /// has no collector.
    pub collected: Option<PathBuf>,
}

/// A place in the logs of an instance, from which on they can be read.
#[derive(Debug)]
pub struct LogCursor(LogMark);

impl LogCursor {
    /// The lines that were logged since the cursor was made, at most the last 256 KiB of them.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.since()
    }
}

impl Instance {
    /// The files of the log.
    #[must_use]
    pub fn log_files(&self) -> LogFiles {
        LogFiles {
            start: self.start_log(),
            collected: diagnosis::collector_file(&self.data_dir).filter(|path| path.exists()),
        }
    }

    /// The last `count` lines of the log. Empty when there is none that we may read.
    #[must_use]
    pub fn log_tail(&self, count: usize) -> Vec<String> {
        let mut lines = LogMark::beginning(self).since();
        let skip = lines.len().saturating_sub(count);
        lines.split_off(skip)
    }

    /// Marks where the log ends now.
    #[must_use]
    pub fn log_cursor(&self) -> LogCursor {
        LogCursor(LogMark::set(self))
    }
}
