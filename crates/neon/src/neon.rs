//! The handle on a home.

use std::ffi::OsString;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use neon_pgctl::{Discovered, Discovery, Installation, InstallationCache, OsUser, PgMajor, Source};
use neon_pgwire::Surroundings;
use neon_storage::{Context, Registry, Secret};

use crate::error::{Error, ErrorKind, Result};
use crate::events::{Event, EventSink};
use crate::home::Home;
use crate::instances::Instances;
use crate::snapshots::Snapshots;
use crate::storages::Storages;

/// Asks a person for a password: gets whose it is (`user@host:port`), gives nothing if nobody knows. May block.
#[derive(Clone)]
pub struct AskPassword(Arc<Ask>);

type Ask = dyn Fn(&str) -> Option<Secret> + Send + Sync;

impl AskPassword {
    /// Asks by calling this.
    pub fn new(ask: impl Fn(&str) -> Option<Secret> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    pub(crate) async fn ask(&self, whose: &str) -> Option<Secret> {
        let (ask, whose) = (Arc::clone(&self.0), whose.to_owned());
        tokio::task::spawn_blocking(move || ask(&whose))
            .await
            .ok()?
    }
}

impl fmt::Debug for AskPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AskPassword")
    }
}

type AtStep = dyn Fn(&str) + Send + Sync;

/// What a [`Neon`] takes from its surroundings. Nothing is read from the environment.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// The search path for programs of PostgreSQL.
    pub path: OsString,
    /// Folders with programs of PostgreSQL, before all others.
    pub pg_bin: Vec<PathBuf>,
    /// As root: the user that servers run as.
    pub os_user: String,
    /// Ports that new instances get.
    pub ports: RangeInclusive<u16>,
    /// How long to wait for another command that is at the same thing.
    pub patience: Duration,
    /// Schemes of storages.
    pub registry: Registry,
    /// Variables and credentials for storages.
    pub context: Context,
    /// What opens encrypted repositories, and what new ones are encrypted with where the storage asks for it.
    pub passphrase: Option<Secret>,
    /// What connections to servers of others fall back to: variables, password files, certificates.
    pub connections: Surroundings,
    /// Asked when such a server wants a password and none is known.
    pub ask_password: Option<AskPassword>,
    /// Threads that read, compress and write.
    pub threads: usize,
    /// Who is told what goes on.
    pub events: EventSink,
    /// Set by somebody else to stop what is under way: it ends with [`Cancelled`](ErrorKind::Cancelled) and takes back
    /// what it began, or leaves it to the next verb.
    pub cancel: Arc<AtomicBool>,
    /// The clock on the wall.
    pub clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// How long a copy that is done waits for what the databases say of themselves: meanwhile the server keeps its log.
    #[doc(hidden)]
    pub answers_within: Duration,
    /// Called at every step of what is written in a journal, for tests that end the process there.
    #[doc(hidden)]
    pub at_step: Option<Arc<AtStep>>,
}

impl Options {
    /// No search path, the usual folders, user `postgres`, ports from PostgreSQL's own upwards, ten seconds of patience, the system's
    /// clock, two threads, no passphrase, nobody told.
    #[must_use]
    pub fn new() -> Self {
        Self {
            path: OsString::new(),
            pg_bin: Vec::new(),
            os_user: "postgres".to_owned(),
            ports: 5432..=6431,
            patience: Duration::from_secs(10),
            registry: Registry::default(),
            context: Context::default(),
            passphrase: None,
            connections: Surroundings::none(),
            ask_password: None,
            threads: 2,
            events: EventSink::default(),
            cancel: Arc::default(),
            clock: Arc::new(SystemTime::now),
            answers_within: Duration::from_secs(30),
            at_step: None,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("path", &self.path)
            .field("pg_bin", &self.pg_bin)
            .field("os_user", &self.os_user)
            .field("ports", &self.ports)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// A home, and everything that can be done with it. Cheap to clone; several processes may use one home.
#[derive(Debug, Clone)]
pub struct Neon(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    home: Home,
    options: Options,
    /// What was found out about installed programs.
    installed: Arc<InstallationCache>,
    /// It was told that what storages can do cannot be written down.
    #[cfg(feature = "s3")]
    warned_of_memory: std::sync::atomic::AtomicBool,
}

impl Neon {
    /// Opens the home in this folder, made if it is not there.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a folder that is no home and not empty, or of a newer version;
    /// [`Environment`](ErrorKind::Environment) without the rights.
    pub fn open(home: impl AsRef<Path>, options: Options) -> Result<Self> {
        let neon = Self(Arc::new(Inner {
            home: Home::open(home.as_ref())?,
            options,
            installed: Arc::default(),
            #[cfg(feature = "s3")]
            warned_of_memory: std::sync::atomic::AtomicBool::default(),
        }));
        neon.storages().ensure_local()?;
        Ok(neon)
    }

    /// As [`open`](Self::open), to look at what is there: in a folder where no home is yet nothing is made, and nothing listed, and
    /// that is told. A home that is there is still written to: its sign, the storage `local`, caches.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_to_read(home: impl AsRef<Path>, options: Options) -> Result<Self> {
        let home = Home::open_to_read(home.as_ref())?;
        if home.is_made() {
            return Self::open(home.path(), options);
        }
        options.events.tell(Event::Note(format!(
            "There is no home in {}.",
            home.path().display()
        )));
        Ok(Self(Arc::new(Inner {
            home,
            options,
            installed: Arc::default(),
            #[cfg(feature = "s3")]
            warned_of_memory: std::sync::atomic::AtomicBool::default(),
        })))
    }

    /// The home.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.0.home
    }

    /// Instances.
    #[must_use]
    pub fn pg(&self) -> Instances<'_> {
        Instances(self)
    }

    /// Storages.
    #[must_use]
    pub fn storages(&self) -> Storages<'_> {
        Storages(self)
    }

    /// Snapshots.
    #[must_use]
    pub fn snapshots(&self) -> Snapshots<'_> {
        Snapshots(self)
    }

    pub(crate) fn tell(&self, event: Event) {
        self.0.options.events.tell(event);
    }

    /// Warns that what storages can do cannot be written down: once, however many there are.
    #[cfg(feature = "s3")]
    pub(crate) fn warn_of_memory(&self, text: impl FnOnce() -> String) {
        let warned = &self.0.warned_of_memory;
        if !warned.swap(true, std::sync::atomic::Ordering::Relaxed) {
            self.tell(Event::Warning(text()));
        }
    }

    /// Says that a step of a journal is done.
    pub(crate) fn step(&self, name: &str) {
        if let Some(at_step) = &self.0.options.at_step {
            at_step(name);
        }
    }

    /// An error when somebody asked to stop.
    pub(crate) fn go_on(&self) -> Result<()> {
        if self.0.options.cancel.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "this command",
                "was stopped",
            ));
        }
        Ok(())
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn now(&self) -> SystemTime {
        (self.0.options.clock)()
    }

    /// What has been found out about installed programs.
    pub(crate) fn installed(&self) -> &InstallationCache {
        &self.0.installed
    }

    /// The installations of PostgreSQL on this machine. Runs the programs that were not run yet.
    pub(crate) async fn installations(&self) -> Result<Discovered> {
        let path = self.options().path.clone();
        self.discover(Discovery::new().with_path(path)).await
    }

    /// Those in the folders that were named, and whatever else this looks at.
    async fn discover(&self, discovery: Discovery) -> Result<Discovered> {
        let options = self.options();
        let mut discovery = discovery.with_cache(Arc::clone(&self.0.installed));
        for folder in &options.pg_bin {
            discovery = discovery.with_dir(folder);
        }
        tokio::task::spawn_blocking(move || discovery.run())
            .await
            .map_err(|error| {
                Error::new(ErrorKind::Failed, "PostgreSQL", "could not be looked for")
                    .caused_by(error)
            })
    }

    /// The installation of this major; or the newest in the folders that were named, or the newest there is.
    pub(crate) async fn installation(&self, major: Option<PgMajor>) -> Result<Installation> {
        // One in a folder that was named wins over all others, which then need not be asked what they are.
        if let Some(major) = major
            && !self.options().pg_bin.is_empty()
        {
            let named = self.discover(Discovery::new().without_distributions());
            let named = named.await?;
            if let Ok(chosen) = named.of(major) {
                self.named_folders_hold(&named)?;
                return Ok(chosen.clone());
            }
        }
        let found = self.installations().await?;
        self.named_folders_hold(&found)?;
        let chosen = match major {
            Some(major) => found.of(major),
            None => {
                let given = found
                    .sources()
                    .filter(|(_, source)| *source == Source::Given)
                    .map(|(installation, _)| installation.major())
                    .max();
                match given {
                    Some(major) => found.of(major),
                    None => found.newest(),
                }
            }
        };
        chosen
            .cloned()
            .map_err(|error| Error::server("PostgreSQL", error))
    }

    /// Folders that somebody named have programs: what they meant is not passed over for what else is there.
    fn named_folders_hold(&self, found: &Discovered) -> Result<()> {
        let folders = &self.options().pg_bin;
        let given = |source| source == Source::Given;
        let any = found.sources().any(|(_, source)| given(source));
        for error in found.unusable() {
            if any {
                self.tell(Event::Warning(error.to_string()));
            }
        }
        let (Some(folder), false) = (folders.first(), any) else {
            return Ok(());
        };
        let subject = folder.display().to_string();
        let error = Error::new(
            ErrorKind::Environment,
            subject,
            "has no PostgreSQL that can be used",
        );
        Err(error.hinted("name the folder of initdb and postgres in --pg-bin or NEON_PG_BIN"))
    }

    /// Who owns new instances, where that is not who we are.
    pub(crate) fn os_user(&self) -> Result<Option<OsUser>> {
        if !OsUser::current().is_root() {
            return Ok(None);
        }
        OsUser::named(&self.options().os_user)
            .map(Some)
            .map_err(|error| Error::server(format!("user {}", self.options().os_user), error))
    }
}
