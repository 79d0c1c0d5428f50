//! What needs no tool: `cp -a`, and `tar` through zstd, of the directory of a stopped server.

use std::path::PathBuf;

use neon_testkit::OsUser;

use crate::measure::Job;
use crate::server::Server;
use crate::tool::{Place, Tool, remove, shell};

#[derive(Debug)]
pub(crate) struct Copies<'a> {
    place: &'a Place,
    /// Into one compressed archive, instead of files.
    packed: bool,
    folder: PathBuf,
    restored: PathBuf,
}

impl<'a> Copies<'a> {
    pub(crate) fn new(place: &'a Place, packed: bool) -> Self {
        let name = if packed { "tar-zstd" } else { "cp" };
        Self {
            place,
            packed,
            folder: place.owned("repositories").join(name),
            restored: place.owned("restored").join(name),
        }
    }
}

impl Tool for Copies<'_> {
    fn name(&self) -> String {
        if self.packed {
            "tar + zstd -1 -T0"
        } else {
            "cp -a"
        }
        .to_owned()
    }

    fn cold(&self) -> bool {
        true
    }

    fn repository(&self) -> PathBuf {
        self.folder.clone()
    }

    fn prepare(&mut self) {
        remove(&self.folder);
        OsUser::current().create_dir(&self.folder);
    }

    fn first(&mut self) -> Job {
        let line = if self.packed {
            "tar -C \"$1\" -cf - . | zstd -q -1 -T0 -o \"$2/data.tar.zst\""
        } else {
            "cp -a \"$1\" \"$2/data\""
        };
        Job::of([shell(line, &[&self.place.source.data, &self.folder])])
    }

    fn next(&mut self) -> Option<Job> {
        None
    }

    fn restore(&mut self) -> Job {
        let line = if self.packed {
            "mkdir -m 700 \"$2\"; zstd -qdc \"$1/data.tar.zst\" | tar -xf - -C \"$2\""
        } else {
            "cp -a \"$1/data\" \"$2\""
        };
        Job::of([shell(line, &[&self.folder, &self.restored])])
    }

    fn restored(&self) -> Server {
        self.place.server_on(&self.restored)
    }

    fn discard(&mut self) {
        remove(&self.restored);
    }
}
