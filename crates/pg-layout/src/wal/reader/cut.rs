//! Records that a crash cut off.
//!
//! A server that finds its last record cut puts another in place of the missing rest: the page is
//! flagged, and its first record (`XLOG_OVERWRITE_CONTRECORD`) names the record that is given up.

use crate::error::{ErrorKind, Result};
use crate::lsn::Lsn;
use crate::wal::record::{Record, RecordHeader};
use crate::wal::rmgr::ResourceManager;

const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

pub(super) fn is_overwrite(header: &RecordHeader) -> bool {
    header.rmgr == ResourceManager::XLOG && header.code() == XLOG_OVERWRITE_CONTRECORD
}
/// What is known of a record that a crash cut off.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// A record whose rest was lost, until the record that says so is met.
    pub(super) dropped: Option<Lsn>,
    /// The next record must be the one that says what was overwritten.
    pub(super) expected: bool,
}

impl Cut {
    /// A record that says which cut record it replaces must name the one that was dropped.
    #[inline]
    pub(super) fn check(&mut self, record: &Record<'_>) -> Result<()> {
        let named = record
            .main_data()
            .first_chunk()
            .map(|bytes| Lsn(u64::from_le_bytes(*bytes)));
        let agrees = match (named, self.dropped) {
            (Some(named), Some(dropped)) => named == dropped,
            // The cut record began before the reader did.
            (Some(_), None) => self.expected,
            (None, _) => false,
        };
        if !agrees {
            return Err(record.error(
                ErrorKind::Inconsistent,
                format!(
                    "it replaces the cut record at {}, but the one dropped was at {}",
                    named.unwrap_or_default(),
                    self.dropped.unwrap_or_default()
                ),
            ));
        }
        *self = Self::default();
        Ok(())
    }
}
