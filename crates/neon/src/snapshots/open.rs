//! Opening a snapshot to be read: a temporary server on a restored copy, on a private socket, gone afterwards.
//!
//! The copy is `pg/.open-<id>` of the home, a place that the server's user can reach. Who made it holds a lock as long as
//! it is used; what a killed process left is removed by the next opening.

use std::fs;
use std::path::{Path, PathBuf};

use neon_pagestore::read::Snapshot;
use neon_pgctl::{
    Instance, OsUser, QuarantineOptions, ScopedServer, StartOptions, StopMode, StopOptions,
};
use neon_pgwire::Client;

use crate::error::{Error, Result};
use crate::events::Event;
use crate::home::random_id;
use crate::instances::{Fill, NOBODY, has_room};
use crate::neon::Neon;
use crate::record::{self, Lock};
use crate::snapshots::{Found, Snapshots};

/// What the folders of opened snapshots are called.
const OPEN: &str = ".open-";

/// A snapshot with a server on it. It ends, and its files go, with this value; also when the process is killed the
/// server ends, and the files go at the next opening in the same home.
#[derive(Debug)]
pub struct OpenSnapshot {
    // In this order: the server ends, the files go, the lock is let go.
    server: Option<ScopedServer>,
    instance: Instance,
    _files: Files,
}

impl OpenSnapshot {
    /// The copy: its data directory, and how to connect.
    #[must_use]
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The folder of its socket and the port in the socket's name.
    #[must_use]
    pub fn socket(&self) -> (&Path, u16) {
        let port = self
            .server
            .as_ref()
            .map_or(0, |server| server.started().port);
        (self.instance.socket_dir(), port)
    }

    /// Connects to a database as its superuser. Every transaction is read-only unless it says otherwise.
    ///
    /// # Errors
    /// When the server does not let us in.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let client = self.instance.connect(database).await;
        client.map_err(|error| Error::server("the opened snapshot", error))
    }

    /// Ends the server and removes the files. Waits for both.
    pub async fn close(mut self) {
        let server = self.server.take();
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(server) = server {
                server.stop(StopMode::Immediate);
            }
            drop(self);
        });
        drop(closed.await);
    }
}

/// The files of a copy, and the lock that says that somebody uses them.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    places: [PathBuf; 2],
    _lock: Lock,
}

impl Drop for Files {
    fn drop(&mut self) {
        // A thread that still writes is not waited for here: it may need this very thread to go on. The next opening
        // removes what it leaves.
        let Some(writing) = Lock::free(&self.places[1]) else {
            return;
        };
        if record::remove_tree(&self.folder).is_ok() {
            for place in &self.places {
                drop(fs::remove_file(place));
            }
        }
        drop(writing);
    }
}

/// A copy of a snapshot, cleanly stopped, without a server.
pub(crate) struct Materialized {
    pub(crate) instance: Instance,
    pub(crate) files: Files,
}

impl Snapshots<'_> {
    /// Opens a snapshot to be read, with a server of its own in quarantine.
    ///
    /// Dropped: nothing is left.
    ///
    /// # Errors
    /// [`Environment`](crate::ErrorKind::Environment) without PostgreSQL of its major, or without room;
    /// [`Damaged`](crate::ErrorKind::Damaged); why the server does not start.
    pub async fn open(&self, from: &Found) -> Result<OpenSnapshot> {
        let Materialized { instance, files } = materialize(self.0, from).await?;
        let options = StartOptions::new()
            .in_quarantine(QuarantineOptions::new())
            .with_setting("default_transaction_read_only", "on")
            .with_setting("autovacuum", "off");
        let server = instance.start_scoped(&options).await;
        let server = server.map_err(|error| Error::server(from.subject(), error))?;
        Ok(OpenSnapshot {
            server: Some(server),
            instance,
            _files: files,
        })
    }
}

/// Restores a snapshot into a temporary folder and recovers it to its own end. It is not made durable.
///
/// Dropped: nothing is left, or what the next call removes.
pub(crate) async fn materialize(neon: &Neon, from: &Found) -> Result<Materialized> {
    neon.home().is_mounted()?;
    let snapshot = from.open().await?;
    let installation = neon.pg().can_run(from, &snapshot, None, true).await?;
    let user = neon.os_user()?;
    let parent = neon.home().path().join("pg");
    sweep(neon, &parent).await;
    has_room(&parent, snapshot.facts())?;
    let id = random_id()?;
    let folder = parent.join(format!("{OPEN}{id}"));
    let places = places(neon, &id)?;
    let lock = Lock::take(&places[0], "the opened snapshot", neon.options().patience).await?;
    let files = Files {
        folder,
        places,
        _lock: lock,
    };
    let subject = from.subject();
    neon.tell(Event::Step(format!("Opening {subject}.")));
    let job = Fill {
        neon,
        snapshot: &snapshot,
        subject,
        installation: &installation,
        user: user.as_ref(),
        folder: &files.folder,
        lock: files.places[1].clone(),
    };
    job.write().await?;
    job.recover(neon.pg().used_timelines(snapshot.facts())?, false, NOBODY)
        .await?;
    login(&files.folder, &snapshot, user.as_ref())?;
    Ok(Materialized {
        instance: job.instance()?,
        files,
    })
}

/// Says as whom to connect; quarantine asks for no password.
fn login(folder: &Path, snapshot: &Snapshot, user: Option<&OsUser>) -> Result<()> {
    let Some(name) = &snapshot.facts().needs.install_user else {
        return Ok(());
    };
    let name = name.replace('\\', "\\\\").replace(':', "\\:");
    let line = format!("*:*:*:{name}:none\n");
    record::put(&folder.join("pgpass"), line.as_bytes(), 0o600, user)
}

fn places(neon: &Neon, id: &str) -> Result<[PathBuf; 2]> {
    let folder = neon.home().path().join("state/open");
    record::folder(&folder, 0o700)?;
    Ok([
        folder.join(format!("{id}.lock")),
        folder.join(format!("{id}.writing")),
    ])
}

/// Removes what killed processes left. What cannot be removed is tried again at the next opening.
pub(crate) async fn sweep(neon: &Neon, parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_prefix(OPEN)) else {
            continue;
        };
        let Ok(places) = places(neon, id) else { return };
        let none = std::time::Duration::ZERO;
        // Somebody uses it.
        let Ok(lock) = Lock::take(&places[0], "the opened snapshot", none).await else {
            continue;
        };
        let files = Files {
            folder: entry.path(),
            places,
            _lock: lock,
        };
        if let Ok(installations) = neon.installations().await {
            end(&installations, &files.folder).await;
        }
        drop(files);
    }
    // What a removal that was killed left.
    let folder = parent.to_owned();
    drop(tokio::task::spawn_blocking(move || neon_cowfs::sweep(&folder)).await);
}

/// Ends a server whose process is gone together with its guardian.
pub(crate) async fn end(installations: &neon_pgctl::Discovered, folder: &Path) {
    let version = fs::read_to_string(folder.join("data/PG_VERSION")).unwrap_or_default();
    let Ok(major) = version.trim().parse() else {
        return;
    };
    if let Ok(installation) = installations.of(major)
        && let Ok(instance) = Instance::open(installation, folder)
    {
        let options = StopOptions::new(StopMode::Immediate).with_escalation();
        drop(instance.stop(&options).await);
    }
}
