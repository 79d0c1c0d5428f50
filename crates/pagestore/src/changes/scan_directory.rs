//! The files of a data directory, as a scan wants them.

use neon_snapshot_format::pgdata::{DataFiles, PgData};

use crate::changes::scan::{ScanFile, ScanFiles};
use crate::error::{Error, Result};

/// Every file that a copy of a data directory would hold, in the order of paths; `global/pg_control` excepted, which
/// is copied whole whatever changed.
#[derive(Debug)]
pub struct ScanDirectory<'a> {
    files: DataFiles<'a>,
}

impl<'a> ScanDirectory<'a> {
    /// Lists the directory.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) when it cannot be listed.
    pub fn new(source: &'a PgData) -> Result<Self> {
        let files = source
            .files()
            .map_err(|error| Error::format("data directory", error))?;
        Ok(Self { files })
    }
}

impl ScanFiles for ScanDirectory<'_> {
    fn next(&mut self) -> Result<Option<ScanFile<'_>>> {
        let next = self
            .files
            .next_file()
            .map_err(|error| Error::format("data directory", error))?;
        Ok(next.map(|file| ScanFile {
            path: file.entry.path,
            content: Box::new(file.file),
        }))
    }
}
