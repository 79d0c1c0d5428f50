//! A snapshot of a btrfs subvolume, from which what is not wanted is then taken away.

use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::ioctl;
use crate::place;
use crate::probe::answer;
use crate::remove::remove_at;
use crate::rung::{Filled, Job, Rung};
use crate::scan::Tree;
use crate::temporary::{open_and_lock, split};

#[derive(Debug)]
pub(crate) struct Subvolume;

impl Rung for Subvolume {
    fn make(&self, job: &Job<'_>) -> Result<Filled> {
        let tree = job.tree;
        job.watch.check()?;
        ioctl::snapshot(&tree.fd, job.parent, job.name)
            .map_err(|error| Error::new(ErrorKind::Unsupported, &tree.path, answer(error)))?;
        let failed = |error| Error::io(&tree.path, "its snapshot cannot be opened", error);
        let fd = open_and_lock(job.parent, job.name).map_err(failed)?;
        // The snapshot is what counts: it is of one moment, the list of the source was made before.
        // As long as the name is temporary, nobody else gets in.
        if rustix::process::geteuid().is_root() {
            let (user, group) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
            rustix::fs::fchown(&fd, Some(user), Some(group)).map_err(failed)?;
        }
        rustix::fs::fchmod(&fd, rustix::fs::Mode::RWXU).map_err(failed)?;
        let own = place::below(&fd, Path::new("")).map_err(failed)?;
        let mut listed = Tree::list(tree.part, own, &tree.path, job.options, job.watch)?;
        if let (Some(top), Some(source)) = (listed.folders.first_mut(), tree.folders.first()) {
            top.facts = source.facts;
        }
        for path in &listed.left_out {
            job.watch.check()?;
            let (parent, name) = split(path)?;
            let parent = if parent == Path::new(".") {
                PathBuf::new()
            } else {
                parent
            };
            let directory = place::below(&fd, &parent).map_err(failed)?;
            remove_at(&directory, &name, &tree.path.join(&parent))?;
        }
        let (files, bytes) = (listed.files.len() as u64, listed.bytes);
        job.watch.count(files, bytes);
        Ok(Filled {
            fd,
            shared: bytes,
            listed: Some(listed),
        })
    }
}
