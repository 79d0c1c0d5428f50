//! How far a log reaches: the bound on what a crash can have left in the pages of relations.

use std::io::{self, ErrorKind, Read};

use crate::control::ControlFile;
use crate::lsn::Lsn;
use crate::segment::SegmentName;
use crate::wal::format::WalFormat;
use crate::wal::reader::{Step, WalReader};

const PIECE: usize = 1 << 18;

impl WalFormat {
    /// The log of the cluster with this control file, of any timeline.
    ///
    /// # Errors
    /// As [`with_page_size`](Self::with_page_size).
    pub fn of_control(control: &ControlFile) -> crate::error::Result<Self> {
        Ok(Self::new(control.major, control.build.wal_segment_size)
            .with_page_size(control.build.wal_block_size)?
            .with_block_size(control.build.block_size)
            .of_system(control.system_identifier))
    }
}

/// The end of the last whole record of the log from `start` on, which is where a record begins; `start`
/// itself when none can be read.
///
/// `segments` are the files there are, and `open` gives the bytes of one. Of those for one part of the
/// log the one of the newest timeline is read. Damage ends the log as it ends a server's recovery.
///
/// # Errors
/// What `open` and reading return.
pub fn end_of_log<R: Read>(
    format: WalFormat,
    start: Lsn,
    segments: &[SegmentName],
    mut open: impl FnMut(SegmentName) -> io::Result<R>,
) -> io::Result<Lsn> {
    let size = format.segment_size();
    let mut reader = WalReader::at_record(format, start);
    let mut end = start;
    let mut buffer = vec![0; PIECE];
    loop {
        let position = reader.position();
        let number = position.0 / size.bytes();
        let newest = segments
            .iter()
            .filter(|name| {
                name.start(size)
                    .is_ok_and(|lsn| lsn.0 / size.bytes() == number)
            })
            .max_by_key(|name| name.timeline());
        let Some(name) = newest else {
            return Ok(end);
        };
        let mut file = open(*name)?;
        io::copy(
            &mut (&mut file).take(position.offset_in(size.bytes())),
            &mut io::sink(),
        )?;
        loop {
            let count = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut input = buffer.get(..count).unwrap_or_default();
            loop {
                match reader.read(&mut input) {
                    Ok(Step::Record(record)) => end = record.end(),
                    Ok(Step::NeedMore) => break,
                    Ok(Step::End(_)) | Err(_) => return Ok(end),
                }
            }
        }
        // A file shorter than a segment.
        if reader.position().0 / size.bytes() == number {
            return Ok(end);
        }
    }
}
