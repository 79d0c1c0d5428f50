//! Records: in one piece, or gathered from several pages or pieces of input.

use super::cut::is_overwrite;
use super::{EndReason, Found, Previous, State, WalReader};
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::timeline::TimelineId;
use crate::wal::record::{Place, RecordHeader, crc_of};
use crate::wal::rmgr::ResourceManager;

const XLOG_SWITCH: u8 = 0x40;
/// Records begin at multiples of this many bytes.
pub(super) const ALIGNMENT: u64 = 8;
/// What a buffer may keep allocated between two records that had to be gathered.
const KEPT_CAPACITY: usize = 1 << 20;

impl WalReader {
    /// The length that the record being gathered says it has.
    pub(super) fn announced_len(&self) -> Option<u32> {
        self.gathered
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes))
    }

    #[inline]
    pub(super) fn start_record<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Found<'i>>> {
        let left = self.page_left();
        if left == 0 {
            self.state = State::Page;
            return Ok(None);
        }
        if input.is_empty() {
            return Ok(Some(Found::NeedMore));
        }
        let lsn = Lsn(self.at);
        if !lsn.0.is_multiple_of(ALIGNMENT) {
            return Err(record_error(
                lsn,
                ErrorKind::Inconsistent,
                format!("records begin at multiples of {ALIGNMENT}"),
            ));
        }
        if let Some(head) = input.first_chunk::<{ RecordHeader::SIZE }>()
            && left >= RecordHeader::SIZE as u64
        {
            let header = RecordHeader::decode(head);
            if header.total_len == 0 && head.iter().all(|&byte| byte == 0) {
                return Ok(Some(self.end(lsn, EndReason::Zeros)));
            }
            self.check_header(&header, lsn)?;
            let total = u64::from(header.total_len);
            if total <= left && total <= input.len() as u64 {
                let bytes = self.take(input, total);
                let place = self.finish(&header, bytes, lsn, self.timeline)?;
                // Most often the padding is there too.
                let padding = place.end.0 - self.at;
                if padding < ALIGNMENT && padding <= input.len() as u64 {
                    self.take(input, padding);
                    self.state = self.state_between_records();
                }
                return Ok(Some(Found::Record(Some(bytes), place)));
            }
        }
        self.gathered.clear();
        self.gathered.shrink_to(KEPT_CAPACITY);
        self.gathering = Some(lsn.0);
        self.gathering_timeline = self.timeline;
        self.state = State::Gather;
        Ok(None)
    }

    pub(super) fn gather<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Found<'i>>> {
        let lsn = Lsn(self.gathering.unwrap_or(self.at));
        loop {
            let have = self.gathered.len() as u64;
            let header = self
                .gathered
                .first_chunk::<{ RecordHeader::SIZE }>()
                .map(RecordHeader::decode);
            let goal = match &header {
                Some(header) => u64::from(header.total_len),
                None => RecordHeader::SIZE as u64,
            };
            if let Some(header) = header
                && have >= goal
            {
                self.gathering = None;
                let gathered = std::mem::take(&mut self.gathered);
                let place = self.finish(&header, &gathered, lsn, self.gathering_timeline);
                self.gathered = gathered;
                return place.map(|place| Some(Found::Record(None, place)));
            }
            let left = self.page_left();
            if left == 0 {
                if have < RecordHeader::SIZE as u64 {
                    if self.gathered.iter().all(|&byte| byte == 0) {
                        self.gathering = None;
                        return Ok(Some(self.end(lsn, EndReason::Zeros)));
                    }
                    self.check_len(self.announced_len().unwrap_or(0), lsn)?;
                }
                self.state = State::Page;
                return Ok(None);
            }
            let piece = self.take(input, left.min(goal - have));
            if piece.is_empty() {
                return Ok(Some(Found::NeedMore));
            }
            self.gathered.extend_from_slice(piece);
            if have < RecordHeader::SIZE as u64
                && let Some(head) = self.gathered.first_chunk::<{ RecordHeader::SIZE }>()
            {
                let header = RecordHeader::decode(head);
                if header.total_len == 0 && head.iter().all(|&byte| byte == 0) {
                    self.gathering = None;
                    return Ok(Some(self.end(lsn, EndReason::Zeros)));
                }
                self.check_header(&header, lsn)?;
            }
        }
    }

    /// Checks a whole record's CRC and says where the next one begins.
    #[inline]
    pub(super) fn finish(
        &mut self,
        header: &RecordHeader,
        bytes: &[u8],
        lsn: Lsn,
        timeline: TimelineId,
    ) -> Result<Place> {
        let computed = crc_of(bytes).unwrap_or(!header.crc);
        if computed != header.crc {
            return Err(record_error(
                lsn,
                ErrorKind::Checksum,
                format!("CRC {:08X} is stored, {computed:08X} computed", header.crc),
            ));
        }
        if self.cut.expected && !is_overwrite(header) {
            return Err(record_error(
                lsn,
                ErrorKind::Inconsistent,
                "the page overwrites a cut record, but its first record does not say so".into(),
            ));
        }
        let unit = if header.rmgr == ResourceManager::XLOG && header.code() == XLOG_SWITCH {
            self.format.segment_size().bytes()
        } else {
            ALIGNMENT
        };
        let Some(end) = Lsn(self.at).align_up(unit) else {
            return Err(record_error(
                lsn,
                ErrorKind::OutOfRange,
                "it reaches past the end of the log".into(),
            ));
        };
        self.previous = Previous::At(lsn);
        self.state = if end.0 == self.at {
            self.state_between_records()
        } else {
            State::Skip(end.0)
        };
        Ok(Place { lsn, end, timeline })
    }

    #[inline]
    pub(super) fn check_len(&self, len: u32, lsn: Lsn) -> Result<()> {
        let max = self.format.layout().wal_record_max;
        if (len as usize) < RecordHeader::SIZE || len > max {
            return Err(record_error(
                lsn,
                ErrorKind::Malformed,
                format!("length {len} is not between 24 and {max}"),
            ));
        }
        Ok(())
    }

    /// Checks what can be checked before the record's bytes are there.
    #[inline]
    pub(super) fn check_header(&self, header: &RecordHeader, lsn: Lsn) -> Result<()> {
        self.check_len(header.total_len, lsn)?;
        if !header.rmgr.exists_in(self.format.layout()) {
            return Err(record_error(
                lsn,
                ErrorKind::Unsupported,
                format!("resource manager {} is unknown", header.rmgr.0),
            ));
        }
        let linked = match self.previous {
            Previous::At(previous) => header.previous == previous,
            Previous::Search | Previous::Unknown => header.previous < lsn,
        };
        if !linked {
            let expected = match self.previous {
                Previous::At(previous) => format!("{previous}"),
                _ => "an earlier one".into(),
            };
            return Err(record_error(
                lsn,
                ErrorKind::Inconsistent,
                format!(
                    "it says that the record before it is at {}, not {expected}",
                    header.previous
                ),
            ));
        }
        Ok(())
    }
}

#[cold]
fn record_error(lsn: Lsn, kind: ErrorKind, reason: String) -> Error {
    Error::new(kind, "WAL record", reason).at_lsn(lsn)
}
