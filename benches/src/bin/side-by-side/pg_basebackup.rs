//! PostgreSQL's own base backup, in its forms; and its incremental ones of 18, with the tool that makes them usable.

use std::path::PathBuf;

use crate::measure::Job;
use crate::server::Server;
use crate::tool::{Place, Tool, remove, shell};

/// How a base backup is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Tar,
    ClientZstd,
    ServerZstd,
    /// Plain, and the next ones incremental; combined by `pg_combinebackup` to be used.
    Incremental,
}

#[derive(Debug)]
pub(crate) struct BaseBackup<'a> {
    place: &'a Place,
    source: Server,
    form: Form,
    folder: PathBuf,
    taken: usize,
    restored: PathBuf,
}

impl<'a> BaseBackup<'a> {
    pub(crate) fn new(place: &'a Place, source: &Server, form: Form) -> Self {
        let name = format!("basebackup-{form:?}").to_lowercase();
        Self {
            place,
            source: source.clone(),
            form,
            folder: place.owned("repositories").join(&name),
            taken: 0,
            restored: place.owned("restored").join(&name),
        }
    }

    fn backup(&self, number: usize) -> PathBuf {
        self.folder.join(number.to_string())
    }

    fn take(&mut self, more: &[&str]) -> Job {
        self.taken += 1;
        let mut command = self.source.client("pg_basebackup");
        command.args(["-c", "fast", "-X", "stream", "-D"]);
        command.arg(self.backup(self.taken));
        command.args(match self.form {
            Form::Plain | Form::Incremental => vec!["-Fp"],
            Form::Tar => vec!["-Ft"],
            Form::ClientZstd => vec!["-Ft", "--compress=client-zstd:level=1"],
            Form::ServerZstd => vec!["-Ft", "--compress=server-zstd:level=1,workers=2"],
        });
        command.args(more);
        Job::of([command])
    }
}

impl Tool for BaseBackup<'_> {
    fn name(&self) -> String {
        let form = match self.form {
            Form::Plain => "plain",
            Form::Tar => "tar",
            Form::ClientZstd => "client zstd:1",
            Form::ServerZstd => "server zstd:1, 2 workers",
            Form::Incremental => "--incremental",
        };
        format!("pg_basebackup {form}")
    }

    fn repository(&self) -> PathBuf {
        self.folder.clone()
    }

    fn prepare(&mut self) {
        remove(&self.folder);
        neon_testkit::OsUser::current().create_dir(&self.folder);
        self.taken = 0;
    }

    fn first(&mut self) -> Job {
        self.take(&[])
    }

    fn next(&mut self) -> Option<Job> {
        if self.form != Form::Incremental {
            return None;
        }
        let manifest = self.backup(self.taken).join("backup_manifest");
        let option = format!("--incremental={}", manifest.display());
        Some(self.take(&[&option]))
    }

    fn restore(&mut self) -> Job {
        let backup = self.backup(self.taken);
        let command = match self.form {
            Form::Plain => shell("cp -a \"$1\" \"$2\"", &[&backup, &self.restored]),
            Form::Tar => shell(
                "mkdir -m 700 \"$2\"; tar -xf \"$1/base.tar\" -C \"$2\"; tar -xf \"$1/pg_wal.tar\" -C \"$2/pg_wal\"",
                &[&backup, &self.restored],
            ),
            Form::ClientZstd | Form::ServerZstd => shell(
                "mkdir -m 700 \"$2\"; zstd -qdc \"$1/base.tar.zst\" | tar -xf - -C \"$2\"
                if [ -e \"$1/pg_wal.tar.zst\" ]; then zstd -qdc \"$1/pg_wal.tar.zst\"; else cat \"$1/pg_wal.tar\"; fi |
                  tar -xf - -C \"$2/pg_wal\"",
                &[&backup, &self.restored],
            ),
            Form::Incremental => {
                let mut combine = self.source.installation.command("pg_combinebackup");
                combine.arg("-o").arg(&self.restored).current_dir("/");
                combine.args((1..=self.taken).map(|number| self.backup(number)));
                combine
            }
        };
        Job::of([command])
    }

    fn restored(&self) -> Server {
        Server {
            installation: self.source.installation,
            password: self.source.password.clone(),
            ..self.place.server_on(&self.restored)
        }
    }

    fn discard(&mut self) {
        remove(&self.restored);
    }
}
