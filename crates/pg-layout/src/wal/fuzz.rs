//! The bodies of the fuzz targets of the log; see [`crate::fuzz_targets`].

use crate::lsn::Lsn;
use crate::segment::WalSegmentSize;
use crate::version::PgMajor;
use crate::wal::{Record, RecordHeader, Step, WalFormat, WalPageHeader, WalReader};

/// Reads any bytes as the log of every major, in pieces whose size the first byte says.
pub(crate) fn reader(bytes: &[u8]) {
    let Some((&piece, log)) = bytes.split_first() else {
        return;
    };
    let piece = usize::from(piece) * 7 + 1;
    for major in PgMajor::ALL {
        read(WalFormat::new(major, WalSegmentSize::MIN), log, piece);
    }
    if let Ok(format) = WalFormat::of_segment(log) {
        read(format, log, piece);
    }
}

/// Reads the bytes as a record whose framing is in order: so its items and data are looked at.
///
/// Three bytes choose major, resource manager and info; the rest follows the record's header.
pub(crate) fn record(bytes: &[u8]) {
    let [major, rmgr, info, body @ ..] = bytes else {
        return;
    };
    let majors = PgMajor::ALL.len();
    let Some(&major) = PgMajor::ALL.get(usize::from(*major) % majors) else {
        return;
    };
    let format = WalFormat::new(major, WalSegmentSize::MIN);
    let lsn = Lsn(WalSegmentSize::MIN.bytes() + WalPageHeader::SHORT as u64);
    let total = u32::try_from(RecordHeader::SIZE + body.len()).unwrap_or(u32::MAX);
    let mut record = Vec::with_capacity(RecordHeader::SIZE + body.len());
    record.extend_from_slice(&total.to_le_bytes());
    record.extend_from_slice(&700_u32.to_le_bytes());
    record.extend_from_slice(&8_u64.to_le_bytes());
    record.extend_from_slice(&[*info, *rmgr, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
    record.extend_from_slice(&crc.to_le_bytes());
    record.extend_from_slice(body);
    // Only as much as fits into the page; the rest would need a page header in between.
    read_with(WalReader::resume(format, lsn, None), &record, usize::MAX);
}

fn read(format: WalFormat, log: &[u8], piece: usize) {
    read_with(
        WalReader::first_after(format, Lsn(WalSegmentSize::MIN.bytes())),
        log,
        piece,
    );
}

fn read_with(mut reader: WalReader, log: &[u8], piece: usize) {
    for mut input in log.chunks(piece) {
        let before = reader.position();
        let fed = input.len() as u64;
        loop {
            match reader.read(&mut input) {
                Ok(Step::Record(record)) => inspect(&record),
                Ok(Step::NeedMore) => break,
                Ok(Step::End(_)) | Err(_) => return,
            }
        }
        assert!(input.is_empty(), "it wants more before it has taken all");
        assert_eq!(reader.position().bytes_since(before), Some(fed));
    }
}

/// Looks at everything there is in a record.
fn inspect(record: &Record<'_>) {
    let mut payload = record.main_data().len();
    let mut blocks = 0;
    for block in record.blocks() {
        blocks += 1;
        payload += block.data.len();
        if let Some(image) = block.image {
            payload += image.bytes.len();
            let hole_end = usize::from(image.hole_offset) + usize::from(image.hole_len);
            assert!(hole_end <= record.block_size().bytes());
        }
    }
    assert_eq!(blocks, record.block_count());
    assert!(payload + RecordHeader::SIZE <= record.header().total_len as usize);
    assert!(record.end() > record.lsn());
    let _changes = record.changes(|_| {});
}
