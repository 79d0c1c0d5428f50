//! From bytes of the log to records.
//!
//! A state machine without I/O: it is given the log's bytes in order, in pieces of any size, and
//! finds the records in them. Rules are those of `xlogreader.c`: page headers agree with their
//! place, a record's length and previous-link are checked before its bytes are gathered, its CRC
//! before it is believed.

use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::timeline::TimelineId;
use crate::wal::format::WalFormat;
use crate::wal::page::{PageFlags, PageHeader};
use crate::wal::record::{Place, Record, RecordHeader, crc_of};
use crate::wal::rmgr::ResourceManager;

/// Records begin at multiples of this many bytes.
const ALIGNMENT: u64 = 8;
/// What a buffer may keep allocated between two records that had to be gathered.
const KEPT_CAPACITY: usize = 1 << 20;

const XLOG_SWITCH: u8 = 0x40;
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

/// What [`WalReader::read`] came to.
#[derive(Debug)]
pub enum Step<'a> {
    /// The next record.
    Record(Record<'a>),
    /// The input is used up; more is wanted from [`WalReader::position`] on.
    NeedMore,
    /// The log has not been written beyond here. Reading on gives the same answer.
    End(EndOfWal),
}

/// Where a log ends that simply was not written any further.
///
/// Different from damage, which is an error: a bad checksum, a link to the wrong record. Only the
/// caller can know whether the log *should* end here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndOfWal {
    /// Where the next record would begin: the end of the last whole record.
    pub lsn: Lsn,
    /// What is there instead.
    pub reason: EndReason,
    /// Whether a record begins at `lsn` whose rest was never written. A server that recovers from
    /// this log overwrites it.
    pub cut: bool,
}

/// What stands behind the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndReason {
    /// Zeros: space set aside for the log.
    Zeros,
    /// A page of an earlier part of the log: the file had another name before.
    Recycled,
}

/// Finds the records in the bytes of a log.
///
/// Bytes are fed from [`position`](Self::position) on, in order. A record that lies within one page
/// and one piece of input is borrowed from it; others are gathered in a buffer that grows as their
/// bytes arrive, never because a length field says so.
///
/// A reader follows one line of history. Where a timeline branches off, feed the segments of the
/// old timeline before the one that holds the branching point, then those of the new timeline: they
/// begin with a copy of what came before. After an error or the end, a new reader must be made.
///
/// ```
/// use neon_pg_layout::wal::{Step, WalFormat, WalReader};
/// use neon_pg_layout::{Lsn, PgMajor, WalSegmentSize};
/// let format = WalFormat::new(PgMajor::V17, WalSegmentSize::DEFAULT);
/// let mut reader = WalReader::first_after(format, Lsn(0x100_0000));
/// let mut input: &[u8] = &[]; // the bytes of segment 000000010000000000000001
/// while let Step::Record(record) = reader.read(&mut input)? {
///     println!("{} {}", record.lsn(), record.header().rmgr);
/// }
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Debug)]
pub struct WalReader {
    format: WalFormat,
    /// The position of the next byte of input.
    at: u64,
    /// Records before this are read but not returned.
    from: u64,
    state: State,
    /// Where the page begins of which a header was read last; none yet after `resume`.
    page: Option<u64>,
    timeline: TimelineId,
    /// A page header that arrived in pieces.
    header: Vec<u8>,
    /// The record that is being gathered, or the last one that was.
    gathered: Vec<u8>,
    /// Where the record in `gathered` begins, when it is not complete.
    gathering: Option<u64>,
    gathering_timeline: TimelineId,
    previous: Previous,
    cut: Cut,
    outcome: Option<Result<EndOfWal>>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// At the start of a page.
    Page,
    /// Passing over bytes until this position.
    Skip(u64),
    /// Where a record begins, or the page ends.
    Start,
    /// Gathering a record that began before.
    Gather,
}

/// What is known of the record before the next.
#[derive(Debug, Clone, Copy)]
enum Previous {
    /// Nothing: the reader began here, on a page whose records it was to find.
    Search,
    /// Nothing: the reader began here.
    Unknown,
    /// It begins here.
    At(Lsn),
}

enum Found<'i> {
    NeedMore,
    End(EndOfWal),
    /// A record with its place; in `gathered` when not in the input.
    Record(Option<&'i [u8]>, Place),
}

impl WalReader {
    /// Starts at the record that begins at `lsn`, or right after the header of the page at `lsn`.
    ///
    /// Wants input from the start of that page.
    #[must_use]
    pub fn at_record(format: WalFormat, lsn: Lsn) -> Self {
        Self::new(format, lsn, Previous::Unknown)
    }

    /// Starts at the first record that begins at or after `lsn`, which may be any position.
    ///
    /// Wants input from the start of the page that holds `lsn`. Records on that page before `lsn`
    /// are checked as well.
    #[must_use]
    pub fn first_after(format: WalFormat, lsn: Lsn) -> Self {
        Self::new(format, lsn, Previous::Search)
    }

    /// Goes on at `lsn`, the [end](Record::end) of a record read before that began at `previous`.
    ///
    /// Wants input from exactly `lsn`, so it can read a stream whose beginning is gone; what the
    /// header of that page would say (its timeline) stays unknown until the next page.
    #[must_use]
    pub fn resume(format: WalFormat, lsn: Lsn, previous: Option<Lsn>) -> Self {
        let mut reader = Self::new(format, lsn, Previous::Unknown);
        if let Some(previous) = previous {
            reader.previous = Previous::At(previous);
        }
        if lsn.offset_in(reader.page_size()) != 0 {
            reader.at = lsn.0;
            reader.state = State::Start;
        }
        reader
    }

    fn new(format: WalFormat, lsn: Lsn, previous: Previous) -> Self {
        let timeline = format.timeline().unwrap_or(TimelineId::FIRST);
        Self {
            at: lsn.start_of(format.page_size().into()).0,
            from: lsn.0,
            state: State::Page,
            page: None,
            timeline,
            header: Vec::new(),
            gathered: Vec::new(),
            gathering: None,
            gathering_timeline: timeline,
            previous,
            cut: Cut::default(),
            outcome: None,
            format,
        }
    }

    /// The position of the next byte of input that is wanted.
    #[must_use]
    pub const fn position(&self) -> Lsn {
        Lsn(self.at)
    }

    /// Where the record begins of which a part was read and the rest is wanted.
    #[must_use]
    pub fn pending(&self) -> Option<Lsn> {
        self.gathering.map(Lsn)
    }

    /// The timeline of the last page header; meaningless before the first.
    #[must_use]
    pub const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// What the log must agree with.
    #[must_use]
    pub const fn format(&self) -> &WalFormat {
        &self.format
    }

    /// Reads up to the next record, moving `input` forward over what was used.
    ///
    /// Call it again with the rest of the input until it answers [`Step::NeedMore`].
    ///
    /// # Errors
    /// All carry the position of the record or page in [`Error::lsn`], and all are final.
    /// [`Checksum`](ErrorKind::Checksum): the record's CRC is wrong.
    /// [`Inconsistent`](ErrorKind::Inconsistent): a page or record does not agree with its place,
    /// with the one before it, or with the cluster.
    /// [`Malformed`](ErrorKind::Malformed): the bytes break the format's rules.
    /// [`Unsupported`](ErrorKind::Unsupported): a resource manager that this major does not have.
    pub fn read<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Result<Step<'s>> {
        if let Some(outcome) = &self.outcome {
            return outcome.clone().map(Step::End);
        }
        loop {
            let (bytes, place) = match self.advance(input) {
                Ok(Found::Record(bytes, place)) => (bytes, place),
                Ok(Found::NeedMore) => return Ok(Step::NeedMore),
                Ok(Found::End(end)) => {
                    self.outcome = Some(Ok(end));
                    return Ok(Step::End(end));
                }
                Err(error) => {
                    self.outcome = Some(Err(error.clone()));
                    return Err(error);
                }
            };
            let format = self.format.record();
            if place.lsn.0 < self.from {
                let checked = Record::decode(bytes.unwrap_or(&self.gathered), place, format)
                    .and_then(|record| self.cut.check(&record));
                if let Err(error) = checked {
                    self.outcome = Some(Err(error.clone()));
                    return Err(error);
                }
                continue;
            }
            let decoded = Record::decode(bytes.unwrap_or(&self.gathered), place, format)
                .and_then(|record| self.cut.check(&record).map(|()| record));
            return match decoded {
                Ok(record) => Ok(Step::Record(record)),
                Err(error) => {
                    self.outcome = Some(Err(error.clone()));
                    Err(error)
                }
            };
        }
    }

    fn page_size(&self) -> u64 {
        self.format.page_size().into()
    }

    /// How many bytes of the current page are left; none at the start of a page.
    fn page_left(&self) -> u64 {
        match Lsn(self.at).offset_in(self.page_size()) {
            0 => 0,
            offset => self.page_size().saturating_sub(offset),
        }
    }

    /// As much of the input as is there, up to `limit` bytes.
    fn take<'i>(&mut self, input: &mut &'i [u8], limit: u64) -> &'i [u8] {
        let count = usize::try_from(limit).map_or(input.len(), |limit| limit.min(input.len()));
        let (taken, rest) = input.split_at(count);
        *input = rest;
        self.at = self.at.saturating_add(count as u64);
        taken
    }

    fn advance<'i>(&mut self, input: &mut &'i [u8]) -> Result<Found<'i>> {
        loop {
            match self.state {
                State::Page => {
                    if let Some(found) = self.enter_page(input)? {
                        return Ok(found);
                    }
                }
                State::Skip(until) => {
                    self.take(input, until.saturating_sub(self.at));
                    if self.at < until {
                        return Ok(Found::NeedMore);
                    }
                    self.state = self.state_between_records();
                }
                State::Start => {
                    if let Some(found) = self.start_record(input)? {
                        return Ok(found);
                    }
                }
                State::Gather => {
                    if let Some(found) = self.gather(input)? {
                        return Ok(found);
                    }
                }
            }
        }
    }

    fn state_between_records(&self) -> State {
        if Lsn(self.at).offset_in(self.page_size()) == 0 {
            State::Page
        } else {
            State::Start
        }
    }

    /// Reads a page header and decides what the page begins with.
    fn enter_page<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Found<'i>>> {
        let start = self.at - self.header.len() as u64;
        let place = Lsn(start);
        while self.header.len() < PageHeader::SHORT
            || (self.header.len() < PageHeader::LONG
                && self.header.get(2).is_some_and(|flags| flags & 2 != 0))
        {
            let goal = if self.header.len() < PageHeader::SHORT {
                PageHeader::SHORT
            } else {
                PageHeader::LONG
            };
            let piece = self.take(input, (goal - self.header.len()) as u64);
            if piece.is_empty() {
                return Ok(Some(Found::NeedMore));
            }
            self.header.extend_from_slice(piece);
        }
        if self.header.iter().all(|&byte| byte == 0) {
            return Ok(Some(self.end(place, EndReason::Zeros)));
        }
        let header = PageHeader::decode(&self.header).map_err(|error| error.at_lsn(place))?;
        header.check(place, &self.format)?;
        if header.address != place {
            // A file that was renamed holds pages of an earlier part of the log.
            if header.address < place && header.address.offset_in(self.page_size()) == 0 {
                return Ok(Some(self.end(place, EndReason::Recycled)));
            }
            return Err(page_error(
                place,
                ErrorKind::Inconsistent,
                format!("its header says that it is the page at {}", header.address),
            ));
        }
        if self.page.is_some() && header.timeline < self.timeline {
            return Err(page_error(
                place,
                ErrorKind::Inconsistent,
                format!("timeline {} after {}", header.timeline, self.timeline),
            ));
        }
        self.header.clear();
        if let Some(long) = header.long {
            self.format.adopt(long.system_identifier);
        }
        let first = self.page.is_none();
        self.page = Some(start);
        self.timeline = header.timeline;
        self.begin_page(&header, place, first).map(|()| None)
    }

    fn begin_page(&mut self, header: &PageHeader, place: Lsn, first: bool) -> Result<()> {
        let continues = header.flags.has(PageFlags::CONTINUES);
        if let Some(began) = self.gathering {
            if header.flags.has(PageFlags::OVERWRITES) {
                self.gathering = None;
                self.gathered.clear();
                self.cut = Cut {
                    dropped: Some(Lsn(began)),
                    expected: true,
                };
                self.state = State::Start;
                return Ok(());
            }
            return self.continue_record(header, place, Lsn(began));
        }
        if header.flags.has(PageFlags::OVERWRITES) {
            // Only where the lost record began before the reader did.
            if !first && !matches!(self.previous, Previous::Search) {
                return Err(page_error(
                    place,
                    ErrorKind::Inconsistent,
                    "it overwrites the rest of a record, but none is cut here".into(),
                ));
            }
            self.cut.expected = true;
        }
        self.state = match self.previous {
            Previous::Search if continues => {
                let rest = Lsn(u64::from(header.remaining)).align_up(ALIGNMENT);
                let room = self.page_left();
                match rest {
                    Some(Lsn(rest)) if rest < room => State::Skip(self.at + rest),
                    _ => State::Skip(self.at.saturating_add(room)),
                }
            }
            Previous::Unknown if first && self.from > self.at => State::Skip(self.from),
            _ if continues => {
                return Err(page_error(
                    place,
                    ErrorKind::Inconsistent,
                    "it begins with the rest of a record, but none is cut here".into(),
                ));
            }
            _ => State::Start,
        };
        Ok(())
    }

    /// Checks that the page goes on with the record that is being gathered.
    fn continue_record(&mut self, header: &PageHeader, place: Lsn, began: Lsn) -> Result<()> {
        if !header.flags.has(PageFlags::CONTINUES) {
            return Err(page_error(
                place,
                ErrorKind::Inconsistent,
                format!("it does not go on with the record at {began}"),
            ));
        }
        let have = self.gathered.len() as u64;
        let total = self.announced_len().map_or(0, u64::from);
        if header.remaining == 0 || total != u64::from(header.remaining) + have {
            return Err(page_error(
                place,
                ErrorKind::Inconsistent,
                format!(
                    "{} bytes of the record at {began} left, but {} were expected",
                    header.remaining,
                    total.saturating_sub(have)
                ),
            ));
        }
        self.state = State::Gather;
        Ok(())
    }

    /// The length that the record being gathered says it has.
    fn announced_len(&self) -> Option<u32> {
        self.gathered
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes))
    }

    #[inline]
    fn start_record<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Found<'i>>> {
        let left = self.page_left();
        if left == 0 {
            self.state = State::Page;
            return Ok(None);
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
                return self
                    .finish(&header, bytes, lsn, self.timeline)
                    .map(|place| Some(Found::Record(Some(bytes), place)));
            }
        }
        self.gathered.clear();
        self.gathered.shrink_to(KEPT_CAPACITY);
        self.gathering = Some(lsn.0);
        self.gathering_timeline = self.timeline;
        self.state = State::Gather;
        Ok(None)
    }

    fn gather<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Found<'i>>> {
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
    fn finish(
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
    fn check_len(&self, len: u32, lsn: Lsn) -> Result<()> {
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
    fn check_header(&self, header: &RecordHeader, lsn: Lsn) -> Result<()> {
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

    fn end<'i>(&self, place: Lsn, reason: EndReason) -> Found<'i> {
        Found::End(EndOfWal {
            lsn: self.gathering.map_or(place, Lsn),
            reason,
            cut: self.gathering.is_some(),
        })
    }
}

fn is_overwrite(header: &RecordHeader) -> bool {
    header.rmgr == ResourceManager::XLOG && header.code() == XLOG_OVERWRITE_CONTRECORD
}

/// What is known of a record that a crash cut off.
#[derive(Debug, Default)]
struct Cut {
    /// A record whose rest was lost, until the record that says so is met.
    dropped: Option<Lsn>,
    /// The next record must be the one that says what was overwritten.
    expected: bool,
}

impl Cut {
    /// A record that says which cut record it replaces must name the one that was dropped.
    #[inline]
    fn check(&mut self, record: &Record<'_>) -> Result<()> {
        if !is_overwrite(record.header()) {
            return Ok(());
        }
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

#[cold]
fn page_error(place: Lsn, kind: ErrorKind, reason: String) -> Error {
    Error::new(kind, "WAL page", reason).at_lsn(place)
}

#[cold]
fn record_error(lsn: Lsn, kind: ErrorKind, reason: String) -> Error {
    Error::new(kind, "WAL record", reason).at_lsn(lsn)
}
