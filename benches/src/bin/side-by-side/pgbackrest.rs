//! pgbackrest, with bundling and block incremental, as many processes as there are cores, and the archive that it insists on.
//!
//! The source's `archive_command` pushes only while a backup of pgbackrest runs, and to that one's repository: so nobody
//! pays for anybody else's archive, and pgbackrest's backup has the log that it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use neon_testkit::OsUser;
use neon_testkit::s3::S3Server;

use crate::machine::cores;
use crate::measure::Job;
use crate::server::Server;
use crate::tool::{Place, Tool, program, quietly, remove};

#[derive(Debug)]
pub(crate) struct Pgbackrest<'a> {
    place: &'a Place,
    path: PathBuf,
    codec: &'static str,
    folder: PathBuf,
    restored: PathBuf,
    /// Where its repository is, in lines of its configuration, if that is not a folder.
    bucket: Option<String>,
}

/// The script that is the source's `archive_command`, in whose name pgbackrest looks for its own; written before the server starts.
pub(crate) fn archive_script(folder: &Path, pgbackrest: Option<&Path>) -> PathBuf {
    let script = folder.join("archive-by-pgbackrest.sh");
    let target = target(folder);
    let (target, pgbackrest) = (
        target.display(),
        pgbackrest.unwrap_or_else(|| Path::new("false")).display(),
    );
    let text = format!(
        "#!/bin/sh\n[ -e {target} ] || exit 0\nexec {pgbackrest} --config={target} --stanza=main archive-push \"$1\"\n"
    );
    fs::write(&script, text).unwrap();
    script
}

/// A link to the configuration that is pushed to, while there is one.
fn target(folder: &Path) -> PathBuf {
    folder.join("archive.conf")
}

impl<'a> Pgbackrest<'a> {
    pub(crate) fn new(place: &'a Place, path: &Path, codec: &'static str) -> Self {
        let name = format!("pgbackrest-{codec}");
        Self {
            place,
            path: path.to_owned(),
            codec,
            folder: place.owned("repositories").join(&name),
            restored: place.owned("restored").join(&name),
            bucket: None,
        }
    }

    /// With its repository in a bucket of this server, which must speak TLS.
    pub(crate) fn in_bucket(
        place: &'a Place,
        path: &Path,
        codec: &'static str,
        server: &S3Server,
        bucket: &str,
    ) -> Self {
        let name = format!("pgbackrest-{codec}-bucket");
        let endpoint = server.endpoint();
        let (host, port) = endpoint
            .strip_prefix("https://")
            .and_then(|address| address.split_once(':'))
            .expect("a server that speaks TLS on a port");
        let keys = server.options();
        Self {
            folder: place.owned("repositories").join(&name),
            restored: place.owned("restored").join(&name),
            bucket: Some(format!(
                "repo1-type=s3\nrepo1-path=/counted\nrepo1-s3-bucket={bucket}\nrepo1-s3-endpoint={host}\n\
                repo1-storage-port={port}\nrepo1-storage-verify-tls=n\nrepo1-s3-uri-style=path\n\
                repo1-s3-region=us-east-1\nrepo1-s3-key={}\nrepo1-s3-key-secret={}\n",
                keys.access_key, keys.secret_key
            )),
            ..Self::new(place, path, codec)
        }
    }

    /// Makes the repository.
    pub(crate) fn make(&self) -> Command {
        self.on_source(&["stanza-create"])
    }

    fn configuration(&self) -> PathBuf {
        self.folder.with_extension("conf")
    }

    fn bare(&self) -> Command {
        let mut command = program(&self.path);
        command
            .env("PGPASSWORD", &self.place.source.password)
            .arg(format!("--config={}", self.configuration().display()))
            .arg("--stanza=main");
        command
    }

    /// The program with its configuration. `data` is what it reads, or writes to.
    pub(crate) fn command(&self, data: &Path, arguments: &[&str]) -> Command {
        let mut command = self.bare();
        command
            .arg(format!("--pg1-path={}", data.display()))
            .args(arguments);
        command
    }

    fn on_source(&self, arguments: &[&str]) -> Command {
        self.command(&self.place.source.data, arguments)
    }

    /// To the end of the backup and no further.
    pub(crate) fn restore_to(&self, data: &Path, more: &[&str]) -> Command {
        let mut command = self.command(data, &["--type=immediate", "--target-action=promote"]);
        command.args(more).arg("restore");
        command
    }
}

impl Tool for Pgbackrest<'_> {
    fn name(&self) -> String {
        format!("pgbackrest {}:1", self.codec)
    }

    fn peer_of(&self) -> &'static str {
        if self.codec == "lz4" {
            crate::ours::LZ4
        } else {
            crate::ours::ZSTD
        }
    }

    fn repository(&self) -> PathBuf {
        self.folder.clone()
    }

    fn prepare(&mut self) {
        remove(&self.folder);
        OsUser::current().create_dir(&self.folder);
        let (source, codec) = (&self.place.source, self.codec);
        let logs = self.place.owned("logs/pgbackrest");
        let socket = source.socket.display();
        let repository = match &self.bucket {
            Some(lines) => lines.clone(),
            None => format!("repo1-path={}\n", self.folder.display()),
        };
        let text = format!(
            "[global]\n{repository}repo1-bundle=y\nrepo1-block=y\nrepo1-retention-full=9\n\
            compress-type={codec}\ncompress-level=1\nprocess-max={}\nstart-fast=y\narchive-timeout=600\n\
            log-level-console=warn\nlog-level-file=off\nlock-path={}\nlog-path={}\nspool-path={}\n\
            [main]\npg1-path={}\npg1-socket-path={socket}\npg1-port={}\npg1-user=postgres\n",
            cores(),
            logs.display(),
            logs.display(),
            logs.display(),
            source.data.display(),
            source.port,
        );
        fs::write(self.configuration(), text).unwrap();
        if self.bucket.is_none() {
            quietly(self.make());
        }
    }

    fn before(&mut self) {
        let target = target(&self.place.folder);
        std::os::unix::fs::symlink(self.configuration(), target).unwrap();
    }

    fn after(&mut self) {
        fs::remove_file(target(&self.place.folder)).unwrap();
    }

    fn first(&mut self) -> Job {
        Job::of([self.on_source(&["--type=full", "backup"])])
    }

    fn next(&mut self) -> Option<Job> {
        Some(Job::of([self.on_source(&["--type=incr", "backup"])]))
    }

    fn restore(&mut self) -> Job {
        OsUser::current().create_dir(&self.restored);
        Job::of([self.restore_to(&self.restored, &[])])
    }

    fn restored(&self) -> Server {
        self.place.server_on(&self.restored)
    }

    fn discard(&mut self) {
        remove(&self.restored);
    }

    fn list(&self) -> Option<Job> {
        let mut command = self.bare();
        command.arg("info");
        Some(Job::of([command]))
    }
}
