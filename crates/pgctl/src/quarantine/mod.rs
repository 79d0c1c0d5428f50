//! Starting a copy of a cluster so that it cannot act in the name or the space of its origin.
//!
//! A clone has its origin's configuration: it would archive into the same place, connect to the same
//! primary and publishers, listen on the same port, write to the same absolute paths, and ask for memory
//! that another machine has. Quarantine starts it with a configuration file of its own, made of the
//! origin's settings without all that, and with command-line settings where a file of the data directory
//! (`postgresql.auto.conf`) would win. No file of the user's is changed, so a later start as it is finds
//! everything as it was.

pub(crate) mod links;
pub(crate) mod machine;
mod preload;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use neon_pg_layout::PostmasterPid;

use crate::command::Running;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::{Instance, ensure_socket_dir};
use crate::pid_file::PidFile;
use crate::process;
use crate::settings::syntax::quote;
use crate::stale;

pub(crate) use rules::Rules;

/// What quarantine may know about a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct QuarantineOptions {
    tablespaces: BTreeMap<u32, PathBuf>,
    libraries: BTreeSet<String>,
}

impl QuarantineOptions {
    /// Every tablespace lies below the copy already.
    pub fn new() -> Self {
        Self::default()
    }

    /// The place that a tablespace was copied to, below the [root](Instance::with_root) of the copy: its link is
    /// turned there before the start.
    pub fn with_tablespace(mut self, oid: u32, place: impl Into<PathBuf>) -> Self {
        self.tablespaces.insert(oid, place.into());
        self
    }

    /// A library of `shared_preload_libraries` that a copy in recovery loads too. None is loaded otherwise: what
    /// they start in the background could act before anybody looks at the copy. One that defines WAL records of
    /// its own (15 and later) is needed to replay them, and named by the error
    /// [`MissingLibrary`](ErrorKind::MissingLibrary).
    pub fn with_preload_library(mut self, name: impl Into<String>) -> Self {
        self.libraries.insert(name.into());
        self
    }
}

/// Why quarantine changed a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// It would write to the origin's archive, or remove from it.
    Archive,
    /// It would connect to the origin's primary or publishers.
    Upstream,
    /// It would make commits wait for standbys of the origin.
    SynchronousStandbys,
    /// It would let background workers act.
    Workers,
    /// It would let others in than its maker.
    Access,
    /// It names a file or a folder of the origin.
    OriginPath,
    /// It leads out of the copy.
    OutsideClone,
    /// It asks for more than this machine has.
    Resources,
    /// It names a library that is not installed.
    MissingLibrary,
    /// A standby needs at least this, says the control file.
    RequiredByRecovery,
    /// This build or machine refuses it.
    Refused,
    /// A configuration file could not be read.
    Unreadable,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Archive => "would act on the origin's archive",
            Self::Upstream => "would connect to the origin's upstream",
            Self::SynchronousStandbys => "would wait for the origin's standbys",
            Self::Workers => "would let background workers act",
            Self::Access => "would let others in",
            Self::OriginPath => "names a path of the origin",
            Self::OutsideClone => "leads out of the copy",
            Self::Resources => "asks for more than this machine has",
            Self::MissingLibrary => "names a library that is not installed",
            Self::RequiredByRecovery => "is less than recovery requires",
            Self::Refused => "is refused by this build or machine",
            Self::Unreadable => "could not be read",
        })
    }
}

/// One thing that is different in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The name of a setting, or a path in the data directory.
    pub what: String,
    /// What the copy's files say; none when they say nothing and the default would have done it.
    pub was: Option<String>,
    /// What it is now; none when it is left out.
    pub now: Option<String>,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.what)?;
        match &self.was {
            Some(was) => write!(f, "{was:?}")?,
            None => f.write_str("default")?,
        }
        match &self.now {
            Some(now) => write!(f, " -> {now:?}")?,
            None => f.write_str(" -> left out")?,
        }
        write!(f, " ({})", self.why)
    }
}

/// Files of a quarantined start: configuration, access, user names.
const KINDS: [&str; 3] = ["conf", "hba", "ident"];

/// A file of a quarantined start, in the private folder of the socket, which several instances may share.
fn file(instance: &Instance, kind: &str) -> PathBuf {
    let name = format!("quarantine-{}.{kind}", instance.tag());
    instance.socket_dir.join(name)
}

/// Only the server's user and root can enter the folder of the socket, and nothing listens elsewhere.
const HBA_TEXT: &str = "\
# A quarantined server listens on a socket in a folder that only its user can enter.
local all all trust
local replication all trust
";

/// The first port to look at for the name of the socket; nothing listens on TCP.
pub(crate) const FIRST_PORT: u16 = 5432;

/// The first port from this one on whose socket no living process has in the folder.
pub(crate) fn free_port(instance: &Instance, first: u16) -> Option<u16> {
    (first..=u16::MAX).find(|port| {
        let lock = instance.socket_dir.join(format!(".s.PGSQL.{port}.lock"));
        let taken = fs::read(lock)
            .ok()
            .and_then(|bytes| PostmasterPid::parse(&bytes).ok())
            .and_then(PidFile::new)
            .is_some_and(|lock| process::number_is_taken(lock.pid));
        !taken
    })
}

/// How to start a server in quarantine.
#[derive(Debug)]
pub(crate) struct Quarantined {
    pub(crate) arguments: Vec<OsString>,
    pub(crate) changes: Vec<Change>,
}

/// More than this many settings that the build refuses means that something else is wrong.
const MOST_REFUSED: usize = 50;

/// Writes the files of a quarantined start.
///
/// # Errors
/// [`OutsideClone`](ErrorKind::OutsideClone), [`BadSetting`](ErrorKind::BadSetting) for a setting in
/// `postgresql.auto.conf` that this build refuses: that file is read whatever we do.
pub(crate) async fn prepare(
    instance: &Instance,
    options: &QuarantineOptions,
    port: u16,
) -> Result<Quarantined> {
    let mut changes = links::settle(instance, &options.tablespaces)?;
    ensure_socket_dir(&instance.socket_dir, &instance.user)?;
    let rules = Rules::derive(instance, &options.libraries, port)?;
    changes.extend(rules.changes.iter().cloned());
    let mut kept = rules.kept.clone();
    let user = &instance.user;
    durable::replace(&file(instance, "hba"), HBA_TEXT.as_bytes(), 0o600, user)?;
    durable::replace(&file(instance, "ident"), b"", 0o600, user)?;

    let mut arguments: Vec<OsString> = Vec::new();
    for (name, kind) in ["config_file", "hba_file", "ident_file"].iter().zip(KINDS) {
        let mut setting = OsString::from(format!("{name}="));
        setting.push(file(instance, kind));
        arguments.extend(["-c".into(), setting]);
    }
    for (name, value) in &rules.forced {
        arguments.extend(["-c".into(), format!("{name}={value}").into()]);
    }
    loop {
        let mut text = String::from("# The origin's settings that a quarantined server keeps.\n");
        for (name, value) in &kept {
            text.push_str(&format!("{name} = {}\n", quote(value)));
        }
        durable::replace(&file(instance, "conf"), text.as_bytes(), 0o600, user)?;
        let refusal = match try_configuration(instance, &arguments).await? {
            None => return Ok(Quarantined { arguments, changes }),
            Some(lines) => lines,
        };
        // Each message names a setting; those that are ours to leave out are left out.
        let before = kept.len();
        kept.retain(|(name, value)| {
            let named = refusal
                .iter()
                .any(|line| line.to_ascii_lowercase().contains(&format!("\"{name}\"")));
            if named {
                changes.push(Change {
                    what: name.clone(),
                    was: Some(value.clone()),
                    now: None,
                    why: Why::Refused,
                });
            }
            !named
        });
        if kept.len() == before || changes.len() > MOST_REFUSED + rules.changes.len() {
            return Err(Error::path(
                ErrorKind::BadSetting,
                &instance.data_dir,
                "a setting is refused also in quarantine",
            )
            .with_hint("take it out of postgresql.auto.conf")
            .with_log(refusal));
        }
    }
}

impl Instance {
    /// What a start in quarantine would change, as [`Started::changes`](crate::Started::changes) of one has it, without the
    /// start: links of tablespaces are turned as by one, and the server program reads the configuration. The server must
    /// not run.
    ///
    /// Dropping the future ends that program.
    ///
    /// # Errors
    /// As [`start`](Self::start) with what can be known before.
    pub async fn quarantine_changes(&self, options: &QuarantineOptions) -> Result<Vec<Change>> {
        self.check_startable()?;
        let _claim = stale::claim(self, stale::SURVIVORS_MAY_TAKE).await?;
        let _files = Files(self);
        let port = free_port(self, FIRST_PORT).unwrap_or(FIRST_PORT);
        Ok(prepare(self, options, port).await?.changes)
    }
}

/// Lets the server program read the configuration as a start would. The lines say what it refuses.
async fn try_configuration(
    instance: &Instance,
    arguments: &[OsString],
) -> Result<Option<Vec<String>>> {
    let mut command = instance.installation.command("postgres", &instance.user)?;
    command.arg("-D").arg(&instance.data_dir).args(arguments);
    command.args(["-C", "server_version"]);
    let finished = Running::spawn(&mut command)?
        .wait(Duration::from_secs(60))
        .await?;
    Ok((!finished.status.success()).then(|| finished.lines()))
}

/// The files of a start that is not done yet: they go with it if it fails or is given up.
pub(crate) struct Files<'a>(pub(crate) &'a Instance);

impl Files<'_> {
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        clear(self.0);
    }
}

/// Removes the files of a quarantined start, if there are any.
pub(crate) fn clear(instance: &Instance) {
    for kind in KINDS {
        drop(fs::remove_file(file(instance, kind)));
    }
}
