//! What `pg_control` says about how the cluster stands.

use std::fs;
use std::path::Path;

use neon_pg_layout::ControlFile;

use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;

/// A running server rewrites the file in place, so a reader can see half of a write: this often it looks
/// again before it believes in damage.
const READS: u32 = 10;

impl Instance {
    /// The control file of the data directory, as it is now.
    ///
    /// # Errors
    /// [`Corrupt`](ErrorKind::Corrupt) when it is damaged or missing, [`WrongMajor`](ErrorKind::WrongMajor) when
    /// it is another major's than the data directory says, and what the operating system refuses.
    pub fn control_file(&self) -> Result<ControlFile> {
        let control = read(&self.data_dir)?;
        if control.major != self.major() {
            return Err(Error::path(
                ErrorKind::WrongMajor,
                &self.data_dir.join(CONTROL_FILE),
                format!(
                    "was written by PostgreSQL {}, not {}",
                    control.major,
                    self.major()
                ),
            ));
        }
        Ok(control)
    }
}

/// Its place in a data directory.
const CONTROL_FILE: &str = "global/pg_control";

pub(crate) fn read(data_dir: &Path) -> Result<ControlFile> {
    let path = data_dir.join(CONTROL_FILE);
    let mut reads = 0;
    loop {
        reads += 1;
        let bytes = fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let reason = "is missing: the data directory is not complete";
                Error::path(ErrorKind::Corrupt, &path, reason)
            }
            _ => Error::io(&path, "cannot be read", error),
        })?;
        match ControlFile::decode(&bytes) {
            Ok(control) => return Ok(control),
            Err(error) if reads == READS => {
                let reason = "cannot be understood";
                return Err(Error::path(ErrorKind::Corrupt, &path, reason).with_source(error));
            }
            Err(_) => std::thread::yield_now(),
        }
    }
}
