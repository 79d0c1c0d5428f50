//! Whether a snapshot is whole: its digests, and a server that starts on a copy of it and reads everything.
//!
//! The copy lies in a folder of the home that nobody else looks at, is recovered to the snapshot's own end, and started
//! in quarantine: no network, no archive, no workers. It is removed afterwards. What a killed command left is removed by
//! the next.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use neon_pagestore::CommitId;
use neon_pagestore::read::Snapshot;
use neon_pgctl::{
    Installation, Instance, OsUser, PgMajor, QuarantineOptions, StartOptions, StopMode,
};
use neon_pgwire::{Client, quote_identifier};
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::record;
use crate::snapshots::open::{Materialized, materialize};
use crate::snapshots::{Found, Snapshots};
use crate::upkeep::{CheckedStorage, Finding};

const AMCHECK: &str = "pg_amcheck";

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum VerifyDepth {
    /// Every stored byte that it needs, by digest, and every page by its checksum.
    Digests,
    /// Also a server on a copy: `pg_amcheck` where it is installed, else every row of every table.
    #[default]
    Server,
}

/// What verifying a snapshot came to.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// The snapshot.
    pub id: CommitId,
    /// What was asked for.
    pub snapshot: String,
    /// What reading all its bytes found.
    pub digests: CheckedStorage,
    /// What a server found; absent when it was not asked for, or the bytes were not sound.
    pub server: Option<VerifiedServer>,
    /// How long it took, in seconds.
    pub elapsed: f64,
}

/// What a server that was started on a copy found, and what it looked at.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct VerifiedServer {
    /// Its major version.
    pub major: String,
    /// Whether `pg_amcheck` looked at heaps and indexes.
    pub amcheck: bool,
    /// Databases that were looked at.
    pub databases: Vec<String>,
    /// Tables of which every row was read, TOAST included; 0 with `pg_amcheck`.
    pub tables: u64,
    /// Rows that were read.
    pub rows: u64,
    /// What was not looked at, and why.
    pub left_out: Vec<String>,
    /// Tables that could not be read, and why, where that says nothing of what is stored: nobody knows of them.
    pub unread: Vec<String>,
    /// What is wrong; empty when all is well.
    pub findings: Vec<Finding>,
}

/// Errors of a read that speak of what is stored: wrong data, a file that is missing or too short, a catalogue that does
/// not fit. A file outside of the cluster, as of an extension that is not installed, is none of it.
fn speaks_of_what_is_stored(error: &neon_pgwire::Error) -> bool {
    let outside = error.server().is_some_and(|said| {
        let message = said.message();
        message.starts_with("could not access file")
            || message.starts_with("could not load library")
    });
    match error.sqlstate() {
        Some("58P01") => !outside,
        Some("58030" | "XX000" | "XX001" | "XX002") => true,
        _ => false,
    }
}

impl Verified {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let server = self.server.as_ref();
        self.digests.is_sound() && server.is_none_or(|server| server.findings.is_empty())
    }

    /// An error that names what is wrong, if anything is.
    ///
    /// # Errors
    /// [`Damaged`](ErrorKind::Damaged) with the first finding.
    pub fn require_sound(&self) -> Result<()> {
        self.digests.require_sound()?;
        let first = self
            .server
            .iter()
            .flat_map(|server| &server.findings)
            .next();
        match first {
            None => Ok(()),
            Some(first) => Err(Error::new(
                ErrorKind::Damaged,
                format!("snapshot {}", self.snapshot),
                format!("is damaged: {}: {}", first.object, first.problem),
            )),
        }
    }
}

impl Snapshots<'_> {
    /// Checks the metadata of one snapshot: its commit, its map, and that every frame it needs is there.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); what the storage answers. What is wrong is in the result.
    pub async fn check(&self, found: &Found) -> Result<CheckedStorage> {
        self.check_found(found, false).await
    }

    async fn check_found(&self, found: &Found, with_data: bool) -> Result<CheckedStorage> {
        let subject = found.subject();
        let repository = &found.repository.repository;
        let checked = self
            .stopping(repository.check_snapshot(found.id, with_data))
            .await?
            .map_err(|error| Error::repository(&*subject, error))?;
        Ok(CheckedStorage::of(subject, with_data, checked))
    }

    /// Verifies a snapshot. What is wrong with it is in the result, see [`Verified::require_sound`].
    ///
    /// Dropped or stopped: the server ends; the folder of the copy goes with the next call at the latest.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Environment`](ErrorKind::Environment) without PostgreSQL of its major, or
    /// without room for the copy; [`Failed`](ErrorKind::Failed) when no server starts on it; what the storage answers.
    pub async fn verify(&self, found: &Found, depth: VerifyDepth) -> Result<Verified> {
        let begun = Instant::now();
        let subject = found.subject();
        self.0
            .tell(Event::Step(format!("Reading all of {subject}.")));
        let digests = self.check_found(found, true).await?;
        let server = match depth {
            VerifyDepth::Server if digests.is_sound() => Some(self.started(found, &subject).await?),
            _ => None,
        };
        Ok(Verified {
            id: found.id,
            snapshot: found.asked.clone(),
            digests,
            server,
            elapsed: begun.elapsed().as_secs_f64(),
        })
    }

    async fn started(&self, found: &Found, subject: &str) -> Result<VerifiedServer> {
        let neon = self.0;
        let snapshot = found.open().await?;
        let installation = neon.pg().can_run(found, &snapshot, None, true).await?;
        let user = neon.os_user()?;
        let Materialized { instance, files } = materialize(neon, found).await?;
        let folder = instance.data_dir().parent().map(Path::to_owned);
        let options = StartOptions::new()
            .in_quarantine(QuarantineOptions::new())
            .with_setting("default_transaction_read_only", "off");
        let server = instance.start_scoped(&options).await;
        let server = server.map_err(|error| Error::server(subject, error))?;
        let looker = Looker {
            snapshots: *self,
            subject,
            instance: server.instance(),
            installation: &installation,
            user: user.as_ref(),
            folder: &folder.unwrap_or_default(),
        };
        let looked = self.stopping(looker.look(&snapshot)).await;
        // The server first, then the files.
        let ended = tokio::task::spawn_blocking(move || {
            server.stop(StopMode::Immediate);
            drop(files);
        });
        ended.await.map_err(|error| {
            Error::new(ErrorKind::Failed, subject, "broke off").caused_by(error)
        })?;
        looked?
    }
}

struct Looker<'a> {
    snapshots: Snapshots<'a>,
    subject: &'a str,
    instance: &'a Instance,
    installation: &'a Installation,
    user: Option<&'a OsUser>,
    folder: &'a Path,
}

impl Looker<'_> {
    fn server(&self, error: neon_pgctl::Error) -> Error {
        Error::server(self.subject, error)
    }

    fn wire(&self, error: neon_pgwire::Error) -> Error {
        Error::new(
            ErrorKind::Failed,
            self.subject,
            "its server could not be asked",
        )
        .caused_by(error)
    }

    async fn look(&self, snapshot: &Snapshot) -> Result<VerifiedServer> {
        let (mut client, instance, superuser) = self.log_in(snapshot).await?;
        let mut looked = VerifiedServer {
            major: self.instance.major().to_string(),
            ..VerifiedServer::default()
        };
        let databases = column(
            &mut client,
            "select datname from pg_catalog.pg_database where datallowconn and datconnlimit <> -2 order by 1",
        );
        looked.databases = databases.await.map_err(|error| self.wire(error))?;
        let closed = column(
            &mut client,
            "select datname from pg_catalog.pg_database where not datallowconn or datconnlimit = -2 order by 1",
        );
        for name in closed.await.map_err(|error| self.wire(error))? {
            looked
                .left_out
                .push(format!("database {name}: takes no connections"));
        }
        let contrib = column(
            &mut client,
            "select name from pg_catalog.pg_available_extensions where name = 'amcheck'",
        );
        let contrib = contrib.await.map_err(|error| self.wire(error))?;
        client.close().await;
        let has = !contrib.is_empty() && self.installation.tool(AMCHECK).is_ok();
        if has && self.instance.major() >= PgMajor::V14 {
            self.amcheck(&superuser, &mut looked).await?;
            return Ok(looked);
        }
        looked
            .left_out
            .push("indexes: pg_amcheck is not installed for this major".to_owned());
        for database in looked.databases.clone() {
            let mut client = instance
                .connect(&database)
                .await
                .map_err(|error| self.server(error))?;
            let read = self.rows(&mut client, &database, &mut looked).await;
            client.close().await;
            read?;
        }
        Ok(looked)
    }

    /// In quarantine the socket asks for no password; the file says who to be.
    async fn log_in(&self, snapshot: &Snapshot) -> Result<(Client, Instance, String)> {
        let install = snapshot.facts().needs.install_user.as_deref();
        let mut names: Vec<&str> = install.into_iter().collect();
        names.push("postgres");
        names.extend(self.user.and_then(OsUser::name));
        let pass_file = self.folder.join("pgpass");
        let mut trouble = None;
        for name in names {
            let quoted = name.replace('\\', "\\\\").replace(':', "\\:");
            let line = format!("*:*:*:{quoted}:none\n");
            record::put(&pass_file, line.as_bytes(), 0o600, self.user)?;
            let instance = self.instance.clone().with_pass_file(&pass_file);
            for database in ["postgres", "template1"] {
                match instance.connect(database).await {
                    Ok(client) => return Ok((client, instance, name.to_owned())),
                    Err(error) => {
                        trouble.get_or_insert(error);
                    }
                }
            }
        }
        Err(match trouble {
            Some(error) => self.server(error),
            None => Error::new(ErrorKind::Failed, self.subject, "has no superuser"),
        })
    }

    async fn amcheck(&self, superuser: &str, looked: &mut VerifiedServer) -> Result<()> {
        self.snapshots.0.tell(Event::Step(format!(
            "Checking heaps and indexes of {}.",
            self.subject
        )));
        let user = self.user.cloned().unwrap_or_else(OsUser::current);
        let mut command = self
            .installation
            .command(AMCHECK, &user)
            .map_err(|error| self.server(error))?;
        command
            .args([
                "--all",
                "--install-missing",
                "--heapallindexed",
                "--no-password",
            ])
            .arg("--host")
            .arg(self.instance.socket_dir())
            .args(["--username", superuser])
            .stdin(Stdio::null());
        let port = port_of(self.instance)
            .await
            .map_err(|error| self.server(error))?;
        command.args(["--port", &port.to_string()]);
        let subject = self.subject.to_owned();
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Failed, subject.clone(), "broke off").caused_by(error)
            })?
            .map_err(|error| {
                Error::new(ErrorKind::Environment, AMCHECK, "cannot be run").caused_by(error)
            })?;
        looked.amcheck = true;
        if output.status.success() {
            return Ok(());
        }
        // 2: it ran, and found something.
        let said = match output.status.code() {
            Some(2) => String::from_utf8_lossy(&output.stdout).into_owned(),
            _ => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(Error::new(
                    ErrorKind::Failed,
                    subject,
                    format!("pg_amcheck could not look at it: {}", said.trim()),
                ));
            }
        };
        if said.trim().is_empty() {
            let errors = String::from_utf8_lossy(&output.stderr);
            looked.findings.push(Finding {
                object: "pg_amcheck".to_owned(),
                problem: errors.trim().to_owned(),
                snapshots: Vec::new(),
            });
        }
        let mut lines = said.lines();
        while let Some(line) = lines.next() {
            let problem = lines.next().unwrap_or_default();
            looked.findings.push(Finding {
                object: line.trim_end_matches(':').to_owned(),
                problem: problem.trim().to_owned(),
                snapshots: Vec::new(),
            });
        }
        Ok(())
    }

    /// Reads every row, every column of it as text, which needs its TOAST values.
    async fn rows(
        &self,
        client: &mut Client,
        database: &str,
        looked: &mut VerifiedServer,
    ) -> Result<()> {
        let tables = client
            .simple_query(
                "select n.nspname, c.relname, c.relkind from pg_catalog.pg_class c \
                 join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                 where c.relkind in ('r', 'm', 'S', 'f') and c.relpersistence <> 't' and c.relispopulated order by 1, 2",
            )
            .await
            .map_err(|error| self.wire(error))?;
        let rows = tables.iter().flat_map(neon_pgwire::ResultSet::rows);
        let mut wanted = Vec::new();
        for row in rows {
            let (Some(schema), Some(table), kind) = (row.get(0), row.get(1), row.get(2)) else {
                continue;
            };
            let quoted = quote_identifier(schema)
                .and_then(|schema| Ok(format!("{schema}.{}", quote_identifier(table)?)));
            let quoted = quoted.map_err(|error| self.wire(error))?;
            if kind == Some("f") {
                looked
                    .left_out
                    .push(format!("{database}: foreign table {quoted}"));
                continue;
            }
            wanted.push(quoted);
        }
        for table in wanted {
            self.snapshots.0.go_on()?;
            let sql = format!("select count(*), count(t::text) from only {table} t");
            match client.simple_query(&sql).await {
                Ok(sets) => {
                    let rows = sets.first().and_then(|set| set.value(0, 0)?.parse().ok());
                    looked.rows = looked.rows.saturating_add(rows.unwrap_or(0));
                    looked.tables = looked.tables.saturating_add(1);
                }
                Err(error) if speaks_of_what_is_stored(&error) => {
                    looked.findings.push(Finding {
                        object: format!("table {table} in database {database}"),
                        problem: error
                            .server()
                            .map_or_else(|| error.to_string(), |said| said.message().to_owned()),
                        snapshots: Vec::new(),
                    });
                }
                Err(error) if error.server().is_some() => {
                    let said = error.server().map(|said| said.message().to_owned());
                    looked.unread.push(format!(
                        "{database}: table {table}: {}",
                        said.unwrap_or_default()
                    ));
                }
                Err(error) => return Err(self.wire(error)),
            }
        }
        Ok(())
    }
}

async fn port_of(instance: &Instance) -> neon_pgctl::Result<u16> {
    Ok(instance.status().await?.port.unwrap_or(5432))
}

async fn column(client: &mut Client, sql: &str) -> neon_pgwire::Result<Vec<String>> {
    let sets = client.simple_query(sql).await?;
    let rows = sets.iter().flat_map(neon_pgwire::ResultSet::rows);
    Ok(rows
        .filter_map(|row| row.get(0).map(str::to_owned))
        .collect())
}
