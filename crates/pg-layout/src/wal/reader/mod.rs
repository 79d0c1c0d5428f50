//! From bytes of the log to records.
//!
//! A state machine without I/O: it is given the log's bytes in order, in pieces of any size, and
//! finds the records in them. Rules are those of `xlogreader.c`: page headers agree with their
//! place, a record's length and previous-link are checked before its bytes are gathered, its CRC
//! before it is believed.

mod cut;
mod pages;
mod records;

use std::fmt;

use self::cut::{Cut, is_overwrite};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::timeline::TimelineId;
use crate::wal::format::WalFormat;
use crate::wal::record::{Place, Record};

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
/// caller can know whether the log *should* end here. The log of a server that was killed may end in
/// damage instead: its last page can have been written while a record was being copied into it. Its
/// recovery ends at the record the error names.
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

impl fmt::Debug for WalReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalReader")
            .field("format", &self.format)
            .field("position", &self.position())
            .field("pending", &self.pending())
            .field("state", &self.state)
            .field("previous", &self.previous)
            .field("outcome", &self.outcome)
            .finish_non_exhaustive()
    }
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

    /// Where reading goes on when nobody looks at the bytes before that: of a segment that was ended early, what follows the
    /// record which says so.
    #[must_use]
    pub const fn unread_until(&self) -> Option<Lsn> {
        match self.state {
            State::Skip(until) if self.at < until => Some(Lsn(until)),
            _ => None,
        }
    }

    /// Goes on as if the bytes that [nobody looks at](Self::unread_until) had been fed, so that they need not be had.
    pub fn pass_unread(&mut self) {
        if let Some(until) = self.unread_until() {
            self.at = until.0;
            self.state = self.state_between_records();
        }
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
    /// All carry the position of the record or page in [`Error::lsn`](crate::Error::lsn), and all are final.
    /// [`Checksum`](crate::ErrorKind::Checksum): the record's CRC is wrong.
    /// [`Inconsistent`](crate::ErrorKind::Inconsistent): a page or record does not agree with its place,
    /// with the one before it, or with the cluster.
    /// [`Malformed`](crate::ErrorKind::Malformed): the bytes break the format's rules.
    /// [`Unsupported`](crate::ErrorKind::Unsupported): a resource manager that this major does not have.
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
            if place.lsn.0 < self.from {
                self.pass_over(bytes, place)?;
                continue;
            }
            let bytes = bytes.unwrap_or(&self.gathered);
            return match Record::decode(bytes, place, self.format.record()) {
                Ok(record) => {
                    if is_overwrite(record.header())
                        && let Err(error) = self.cut.check(&record)
                    {
                        self.outcome = Some(Err(error.clone()));
                        return Err(error);
                    }
                    Ok(Step::Record(record))
                }
                Err(error) => {
                    self.outcome = Some(Err(error.clone()));
                    Err(error)
                }
            };
        }
    }

    /// Checks a record that begins before the reader was to begin.
    #[cold]
    fn pass_over(&mut self, bytes: Option<&[u8]>, place: Place) -> Result<()> {
        let bytes = bytes.unwrap_or(&self.gathered);
        let checked = Record::decode(bytes, place, self.format.record()).and_then(|record| {
            if is_overwrite(record.header()) {
                self.cut.check(&record)?;
            }
            Ok(())
        });
        if let Err(error) = &checked {
            self.outcome = Some(Err(error.clone()));
        }
        checked
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

    fn end<'i>(&self, place: Lsn, reason: EndReason) -> Found<'i> {
        Found::End(EndOfWal {
            lsn: self.gathering.map_or(place, Lsn),
            reason,
            cut: self.gathering.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::WalSegmentSize;
    use crate::version::PgMajor;

    #[test]
    fn memory_follows_the_bytes_that_arrive_not_the_length_a_record_claims() {
        let format = WalFormat::new(PgMajor::V18, WalSegmentSize::DEFAULT);
        let mut reader = WalReader::resume(format, Lsn(0x100_0028), None);
        assert!(matches!(
            reader.read(&mut [].as_slice()),
            Ok(Step::NeedMore)
        ));
        assert_eq!(reader.pending(), None);
        let mut claim = [0; 24];
        claim[..4].copy_from_slice(&(1020_u32 << 20).to_le_bytes());
        claim[17] = 21;
        for mut piece in claim.chunks(5) {
            assert!(matches!(reader.read(&mut piece), Ok(Step::NeedMore)));
            assert_eq!(reader.pending(), Some(Lsn(0x100_0028)));
        }
        let rest = vec![1; 7000];
        assert!(matches!(
            reader.read(&mut rest.as_slice()),
            Ok(Step::NeedMore)
        ));
        assert!(reader.gathered.capacity() < 32 << 10);
    }

    #[test]
    fn an_outcome_is_final() {
        let format = WalFormat::new(PgMajor::V18, WalSegmentSize::DEFAULT);
        let mut reader = WalReader::first_after(format, Lsn(0x100_0000));
        let mut zeros: &[u8] = &[0; 8192];
        let Ok(Step::End(end)) = reader.read(&mut zeros) else {
            panic!("zeros are the end");
        };
        assert_eq!((end.lsn, end.cut), (Lsn(0x100_0000), false));
        let mut more: &[u8] = &[1; 100];
        assert!(matches!(reader.read(&mut more), Ok(Step::End(again)) if again == end));
        assert_eq!(more.len(), 100);
    }
}
