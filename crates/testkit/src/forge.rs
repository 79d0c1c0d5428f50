//! A log made to order: any records, framed as a server would.

use neon_pg_layout::{Lsn, PgMajor};

/// Bytes of a page of the log.
pub const PAGE: u64 = 8192;
/// Bytes of a segment.
pub const SEGMENT: u64 = 1 << 20;
/// Where the log begins.
pub const START: Lsn = Lsn(SEGMENT);

/// A log of one timeline that grows record by record.
#[derive(Debug, Clone)]
pub struct Forge {
    major: PgMajor,
    /// The timeline that page headers name, at first 1.
    pub timeline: u32,
    /// The log from [`START`] on.
    pub bytes: Vec<u8>,
    /// Where the last record begins.
    pub previous: Lsn,
}

/// The part of a record behind its header: main data only.
#[must_use]
pub fn main_data(data: &[u8]) -> Vec<u8> {
    let mut body = vec![254];
    body.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
    body.extend_from_slice(data);
    body
}

impl Forge {
    /// An empty one.
    #[must_use]
    pub fn new(major: PgMajor) -> Self {
        Self {
            major,
            timeline: 1,
            bytes: Vec::new(),
            previous: Lsn(0),
        }
    }

    /// Where it ends.
    #[must_use]
    pub fn position(&self) -> Lsn {
        Lsn(START.0 + self.bytes.len() as u64)
    }

    /// A page header where one is due.
    pub fn page(&mut self, flags: u16, remaining: usize) {
        let at = self.position();
        let long = at.0.is_multiple_of(SEGMENT);
        let flags = flags | if long { 2 } else { 0 };
        let magic = self.major.layout().wal_page_magic;
        self.bytes.extend_from_slice(&magic.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&self.timeline.to_le_bytes());
        self.bytes.extend_from_slice(&at.0.to_le_bytes());
        self.bytes
            .extend_from_slice(&u32::try_from(remaining).unwrap().to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&77_u64.to_le_bytes());
            self.bytes
                .extend_from_slice(&u32::try_from(SEGMENT).unwrap().to_le_bytes());
            self.bytes
                .extend_from_slice(&u32::try_from(PAGE).unwrap().to_le_bytes());
        }
    }

    /// A record with this content behind its header; returns where it begins.
    pub fn record(&mut self, rmgr: u8, info: u8, body: &[u8]) -> Lsn {
        let at = self.position().0.next_multiple_of(8) - START.0;
        self.bytes.resize(usize::try_from(at).unwrap(), 0);
        if self.position().0.is_multiple_of(PAGE) {
            self.page(0, 0);
        }
        let lsn = self.position();
        let mut record = Vec::new();
        let total = u32::try_from(24 + body.len()).unwrap();
        record.extend_from_slice(&total.to_le_bytes());
        record.extend_from_slice(&9_u32.to_le_bytes());
        record.extend_from_slice(&self.previous.0.to_le_bytes());
        record.extend_from_slice(&[info, rmgr, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend_from_slice(&crc.to_le_bytes());
        record.extend_from_slice(body);
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            if self.position().0.is_multiple_of(PAGE) {
                self.page(1, rest.len());
            }
            let room = PAGE - self.position().0 % PAGE;
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(room).unwrap()));
            self.bytes.extend_from_slice(now);
            rest = later;
        }
        self.previous = lsn;
        lsn
    }
}
