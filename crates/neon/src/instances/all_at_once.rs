//! One flush for a whole new directory, in place of one for each file.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Makes what is written below a new folder durable at once, where the system can, and not file by file as a server does,
/// which waits a hundred times. Nobody sees the folder before; one that a power cut left is removed.
pub(super) struct AllAtOnce {
    path: PathBuf,
    /// Opened before anything is written: what fails from then on is reported through it.
    folder: fs::File,
}

impl AllAtOnce {
    pub(super) fn of(path: &Path, wanted: bool) -> Result<Option<Self>> {
        if !wanted {
            return Ok(None);
        }
        let folder =
            fs::File::open(path).map_err(|error| Error::io(path, "cannot be opened", error))?;
        Ok(is_told_of_lost_writes(&folder).then(|| Self {
            path: path.to_owned(),
            folder,
        }))
    }

    pub(super) async fn flush(self) -> Result<()> {
        let Self { path, folder } = self;
        let flushed = tokio::task::spawn_blocking(move || {
            #[cfg(target_os = "linux")]
            rustix::fs::syncfs(&folder)?;
            folder.sync_all()
        });
        let flushed = flushed.await.map_err(std::io::Error::other);
        flushed
            .and_then(|flushed| flushed)
            .map_err(|error| Error::io(&path, "cannot be flushed", error))
    }
}

/// Whether flushing a whole file system says what could not be written: in Linux from 5.8 on, and not where the file system is
/// a program (FUSE), which need not be asked. Without an answer it does not.
#[cfg(target_os = "linux")]
fn is_told_of_lost_writes(folder: &fs::File) -> bool {
    const FUSE: u32 = 0x6573_5546;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let program = rustix::fs::fstatfs(folder)
        .ok()
        .is_none_or(|of| u32::try_from(of.f_type) == Ok(FUSE));
    !program && release_of(&release).is_some_and(|release| release >= (5, 8))
}

#[cfg(not(target_os = "linux"))]
fn is_told_of_lost_writes(_: &fs::File) -> bool {
    false
}

/// Major and minor of a kernel's release, as `6.1.0-18-amd64`.
#[cfg(target_os = "linux")]
fn release_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::release_of;

    #[test]
    fn the_release_of_a_kernel_is_read() {
        assert_eq!(release_of("6.1.0-18-amd64\n"), Some((6, 1)));
        assert_eq!(release_of("5.10-rc1"), Some((5, 10)));
        assert_eq!(release_of("4.19.0+"), Some((4, 19)));
        assert_eq!(release_of(""), None);
    }
}
