//! Where a page begins: what its header must agree with, and what follows it.

use super::cut::Cut;
use super::records::ALIGNMENT;
use super::{EndReason, Found, Previous, State, WalReader};
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::wal::page::{PageFlags, WalPageHeader};

impl WalReader {
    /// Reads a page header and decides what the page begins with.
    pub(super) fn enter_page<'i>(&mut self, input: &mut &'i [u8]) -> Result<Option<Found<'i>>> {
        let start = self.at - self.header.len() as u64;
        let place = Lsn(start);
        while self.header.len() < WalPageHeader::SHORT
            || (self.header.len() < WalPageHeader::LONG
                && self.header.get(2).is_some_and(|flags| flags & 2 != 0))
        {
            let goal = if self.header.len() < WalPageHeader::SHORT {
                WalPageHeader::SHORT
            } else {
                WalPageHeader::LONG
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
        let header = WalPageHeader::decode(&self.header).map_err(|error| error.at_lsn(place))?;
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

    fn begin_page(&mut self, header: &WalPageHeader, place: Lsn, first: bool) -> Result<()> {
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
            // A reader that passes over the page's first record never meets the one that says so.
            self.cut.expected =
                !(matches!(self.previous, Previous::Unknown) && first && self.from > self.at);
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
    fn continue_record(&mut self, header: &WalPageHeader, place: Lsn, began: Lsn) -> Result<()> {
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
}

#[cold]
fn page_error(place: Lsn, kind: ErrorKind, reason: String) -> Error {
    Error::new(kind, "WAL page", reason).at_lsn(place)
}
