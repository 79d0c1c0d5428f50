//! Files copied byte by byte; holes stay holes.
//!
//! The bytes go through memory: asked to copy a range, the kernel shares blocks where it can, and whoever asks for a
//! copy wants a clone that shares nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::fill::{changed, fill};
use crate::rung::{Filled, Job, Rung};
use crate::temporary;

const CHUNK: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Copy;

impl Rung for Copy {
    fn make(&self, job: &Job<'_>) -> Result<Filled> {
        let failed = |error| Error::io(&job.tree.path, "its clone cannot be made", error);
        let (fd, _) = temporary::make(job.parent, job.name, job.own).map_err(failed)?;
        let threads = job.options.thread_count();
        fill(job.tree, &fd, threads, job.watch, &|from, to, path| {
            let io = |error: std::io::Error| Error::io(path, "cannot be copied", error);
            let size = from.metadata().map_err(io)?.len();
            to.set_len(size).map_err(io)?;
            let mut buffer = vec![0; usize::try_from(size).unwrap_or(CHUNK).min(CHUNK)];
            let mut at = 0;
            while let Some((start, end)) =
                data_from(from, at, size).map_err(|error| io(error.into()))?
            {
                at = start;
                while at < end {
                    job.watch.check()?;
                    let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                    let Some(chunk) = buffer.get_mut(..wanted) else {
                        return Err(changed(path));
                    };
                    let read = from.read_at(chunk, at).map_err(io)?;
                    if read == 0 {
                        return Err(changed(path));
                    }
                    to.write_all_at(chunk.get(..read).unwrap_or_default(), at)
                        .map_err(io)?;
                    at += read as u64;
                }
            }
            Ok(())
        })?;
        Ok(Filled {
            fd,
            listed: None,
            shared: 0,
        })
    }
}

/// The next range that is no hole; all that is left where the file system does not tell.
fn data_from(file: &File, at: u64, size: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(error) => return Err(error),
    };
    if start >= size {
        return Ok(None);
    }
    let end = seek(file, SeekFrom::Hole(start))?.min(size);
    Ok(Some((start, end)))
}
