//! Files that share their blocks with the originals (`FICLONE`).

use rustix::fs::ioctl_ficlone;
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::fill::fill;
use crate::probe::answer;
use crate::rung::{Filled, Job, Rung};
use crate::temporary;

#[derive(Debug)]
pub(crate) struct Reflink;

impl Rung for Reflink {
    fn make(&self, job: &Job<'_>) -> Result<Filled> {
        let failed = |error| Error::io(&job.tree.path, "its clone cannot be made", error);
        let (fd, _) = temporary::make(job.parent, job.name, job.own).map_err(failed)?;
        let threads = job.options.thread_count();
        fill(job.tree, &fd, threads, job.watch, &|from, to, path| {
            ioctl_ficlone(to, from).map_err(|error| match error {
                Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS => {
                    Error::io(path, "cannot be reflinked", error)
                }
                other => Error::new(ErrorKind::Unsupported, path, answer(other)),
            })
        })?;
        Ok(Filled {
            fd,
            listed: None,
            shared: job.tree.bytes,
        })
    }
}
