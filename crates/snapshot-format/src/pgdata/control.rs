//! Reading the control file beside a server that may be writing it.

use std::fs::File;
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use neon_pg_layout::{ControlFile, ErrorKind as LayoutErrorKind};
use rustix::fs::{AtFlags, statat};

use crate::error::{Error, ErrorKind, Result};
use crate::path::SnapshotPath;
use crate::pgdata::place::{Root, Roots};
use crate::pgdata::plan::CONTROL;

pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == IoErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads the control file whole. The server writes it in place, so a wrong checksum is looked at again for
/// a second before it is believed.
pub(crate) fn read_control(root: &Root) -> Result<(Vec<u8>, ControlFile)> {
    let path = SnapshotPath::new(CONTROL)?;
    let roots = Roots::new(Root::open(&root.path)?);
    let mut attempts = 0;
    loop {
        let Some((file, _)) = roots.open_file(&path)? else {
            return Err(Error::new(
                ErrorKind::NotFound,
                root.path.display().to_string(),
                "has no global/pg_control: not a data directory, or one whose copying was not finished",
            ));
        };
        let mut bytes = vec![0; ControlFile::FILE_SIZE + 1];
        let read = read_up_to(&file, &mut bytes, 0)
            .map_err(|error| Error::io(CONTROL, "cannot be read", error))?;
        bytes.truncate(read);
        attempts += 1;
        match ControlFile::decode(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(error) => {
                let torn = matches!(
                    error.kind(),
                    LayoutErrorKind::Checksum | LayoutErrorKind::Truncated
                );
                if !torn || attempts >= 100 {
                    return Err(Error::layout(CONTROL, error));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

pub(crate) fn has_file(root: &Root, name: &str) -> bool {
    statat(root.fd(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
