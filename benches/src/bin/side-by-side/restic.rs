//! restic over the directory of a stopped server.

use std::path::{Path, PathBuf};
use std::process::Command;

use neon_testkit::OsUser;

use crate::measure::Job;
use crate::server::Server;
use crate::tool::{Place, Tool, program, quietly, remove};

#[derive(Debug)]
pub(crate) struct Restic<'a> {
    place: &'a Place,
    path: PathBuf,
    folder: PathBuf,
    restored: PathBuf,
}

impl<'a> Restic<'a> {
    pub(crate) fn new(place: &'a Place, path: &Path) -> Self {
        Self {
            place,
            path: path.to_owned(),
            folder: place.owned("repositories").join("restic"),
            restored: place.owned("restored").join("restic"),
        }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(&self.path);
        command
            .env("RESTIC_PASSWORD", "side by side")
            .env("RESTIC_CACHE_DIR", self.place.owned("restic-cache"))
            .arg("--quiet")
            .arg("--repo")
            .arg(&self.folder)
            .args(arguments);
        command
    }

    fn backup(&self) -> Job {
        let mut command = self.command(&["backup", "--compression", "auto"]);
        command.arg(&self.place.source.data);
        Job::of([command])
    }

    /// The last snapshot into a directory; what is right in it already stays.
    pub(crate) fn restore_to(&self, target: &Path) -> Command {
        let latest = format!("latest:{}", self.place.source.data.display());
        let mut command = self.command(&["restore", &latest, "--delete", "--target"]);
        command.arg(target);
        command
    }
}

impl Tool for Restic<'_> {
    fn name(&self) -> String {
        "restic".to_owned()
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
        quietly(self.command(&["init"]));
    }

    fn first(&mut self) -> Job {
        self.backup()
    }

    fn next(&mut self) -> Option<Job> {
        Some(self.backup())
    }

    fn restore(&mut self) -> Job {
        OsUser::current().create_dir(&self.restored);
        Job::of([self.restore_to(&self.restored)])
    }

    fn restored(&self) -> Server {
        self.place.server_on(&self.restored)
    }

    fn discard(&mut self) {
        remove(&self.restored);
    }

    fn list(&self) -> Option<Job> {
        Some(Job::of([self.command(&["snapshots"])]))
    }
}
