//! The bodies of the fuzz targets: each takes any bytes and must neither panic nor hang.
//!
//! Public so that `fuzz/` and the property tests run the same code; not part of the crate's
//! interface. Where a decoder has a writer, the target also states that writing what was read and
//! reading it again gives the same value.

use crate::{CheckPoint, PgMajor, SegmentName, WalFileName, WalSegmentSize};

/// One fuzz target: its name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate by name.
pub const ALL: &[Target] = &[
    ("checkpoint", checkpoint),
    ("wal_file_name", wal_file_name),
    ("wal_reader", wal_reader),
    ("wal_record", wal_record),
];

/// Decodes a checkpoint of every major.
pub fn checkpoint(bytes: &[u8]) {
    for major in PgMajor::ALL {
        let _checkpoint = CheckPoint::decode(bytes, major.layout());
    }
}

/// Parses file names and segment sizes of the log.
pub fn wal_file_name(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _size: Result<WalSegmentSize, _> = text.parse();
    if let Ok(name) = text.parse::<WalFileName>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(name) = text.parse::<SegmentName>() {
        assert_eq!(name.to_string(), text);
        let _start = name.start(WalSegmentSize::DEFAULT);
        let _next = name.next(WalSegmentSize::MAX);
    }
}

/// Reads any bytes as the log of each major.
pub fn wal_reader(bytes: &[u8]) {
    crate::wal::fuzz::reader(bytes);
}

/// Reads any bytes as one record of the log, framed so that its content is looked at.
pub fn wal_record(bytes: &[u8]) {
    crate::wal::fuzz::record(bytes);
}
