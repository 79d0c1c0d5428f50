//! A new instance: `initdb` with what matters, our settings, a password, and its folder as a whole.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use neon_pg_layout::PgMajor;
use neon_pgwire::Secret;
use rustix::fs::{FlockOperation, flock};

use crate::archiving;
use crate::command::{self, Running};
use crate::durable::{self, Scrap};
use crate::error::{Error, ErrorKind, Result};
use crate::installation::Installation;
use crate::instance::{self, DATA, Instance, LOG, PASS_FILE, RUN};
use crate::os_user::OsUser;
use crate::settings::{OWN_SETTINGS_INCLUDE, OwnSettings};

/// Where sorting and case come from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Locale {
    /// By code point, with the case rules of Unicode: PostgreSQL's own from 17, the C library's `C.UTF-8`
    /// before. The order of an index is then the same on every machine, so a cluster can move.
    Stable,
    /// A locale of the C library, for example `de_DE.UTF-8`. Its order can change with the library.
    Libc(String),
    /// A language tag for ICU, for example `de-DE`; from 15. Its order can change with the library.
    Icu(String),
    /// A locale that PostgreSQL has itself, `C` or `C.UTF-8`; from 17 (`PG_UNICODE_FAST` from 18).
    Builtin(String),
}

/// What a new instance shall be like.
#[derive(Debug, Clone)]
#[must_use]
pub struct CreateOptions {
    superuser: String,
    password: Option<Secret>,
    locale: Locale,
    checksums: bool,
    wal_segment_mib: Option<u32>,
    group_access: bool,
    os_user: Option<OsUser>,
    settings: Vec<(String, String)>,
    sync: bool,
    deadline: Duration,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl CreateOptions {
    /// Superuser `postgres` with a generated password, UTF-8, page checksums, 16 MiB of WAL a segment, mode
    /// 0700; as root owned by the user `postgres`.
    pub fn new() -> Self {
        Self {
            superuser: "postgres".to_owned(),
            password: None,
            locale: Locale::Stable,
            checksums: true,
            wal_segment_mib: None,
            group_access: false,
            os_user: None,
            settings: Vec::new(),
            sync: true,
            deadline: Duration::from_secs(600),
        }
    }

    /// The name of the first role.
    pub fn with_superuser(mut self, name: impl Into<String>) -> Self {
        self.superuser = name.into();
        self
    }

    /// A password of your own instead of 32 random digits.
    pub fn with_password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(Secret::new(password.into()));
        self
    }

    /// Where sorting and case come from. The encoding is UTF-8 always.
    pub fn with_locale(mut self, locale: Locale) -> Self {
        self.locale = locale;
        self
    }

    /// Without page checksums. Then bad blocks of a disk go unnoticed.
    pub fn without_checksums(mut self) -> Self {
        self.checksums = false;
        self
    }

    /// The size of a WAL segment in MiB: a power of two from 1 to 1024.
    pub fn with_wal_segment_mib(mut self, size: u32) -> Self {
        self.wal_segment_mib = Some(size);
        self
    }

    /// Readable for the group of the owner, for example for backup programs.
    pub fn with_group_access(mut self) -> Self {
        self.group_access = true;
        self
    }

    /// The user that the files belong to and the server runs as. Only root can choose another than itself.
    pub fn with_os_user(mut self, user: OsUser) -> Self {
        self.os_user = Some(user);
        self
    }

    /// A setting for `neon.conf`.
    pub fn with_setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Returns before the files are safe from a power cut. For tests.
    pub fn without_sync(mut self) -> Self {
        self.sync = false;
        self
    }

    /// How long `initdb` may take.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }
}

impl Instance {
    /// Creates an instance in a folder of its own, which appears as a whole: `data`, `log`, `run` (for the
    /// socket) and `pgpass`, the password in the format of `.pgpass`, mode 0600. Durable when it returns.
    ///
    /// TCP and sockets ask for the password (SCRAM). The settings are in `data/neon.conf`: WAL is kept for
    /// incremental snapshots (`wal_keep_size`, from 17 `summarize_wal`), the server listens on the loopback
    /// addresses, nothing is archived unless the caller's settings say how. The port is chosen at the first start.
    ///
    /// Dropping the future ends `initdb` and removes what it wrote, before it returns.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists), [`NoOsUser`](ErrorKind::NoOsUser), [`Permissions`](ErrorKind::Permissions)
    /// (also when the server's user cannot reach the folder), [`DiskFull`](ErrorKind::DiskFull),
    /// [`Unsupported`](ErrorKind::Unsupported), [`BadSetting`](ErrorKind::BadSetting).
    pub async fn create(
        installation: &Installation,
        dir: impl AsRef<Path>,
        options: &CreateOptions,
    ) -> Result<Self> {
        let (instance, _) = Self::create_locked(installation, dir.as_ref(), options).await?;
        Ok(instance)
    }

    /// As [`create`](Self::create), with the lock that its folder was made under: as long as it is kept, everybody
    /// can see that the folder is somebody's.
    pub(crate) async fn create_locked(
        installation: &Installation,
        dir: &Path,
        options: &CreateOptions,
    ) -> Result<(Self, File)> {
        let dir = instance::absolute(dir)?;
        let user = user_for(options)?;
        let own = own_settings(installation.major(), options);
        archiving::check(|name| own.get(name), &user).await?;
        refuse_existing(&dir)?;
        let staging = stage(&dir, &user)?;
        check_reachable(staging.path(), &user).await?;

        let password = match &options.password {
            Some(password) => password.expose().to_owned(),
            None => durable::random_hex(16)?,
        };
        run_initdb(installation, options, &user, staging.path(), &password).await?;

        let data = staging.path().join(DATA);
        let socket_dir = dir.join(RUN);
        own.write(&data)?;
        append(&data.join("postgresql.conf"), OWN_SETTINGS_INCLUDE)?;
        for folder in [LOG, RUN] {
            durable::create_dir(&staging.path().join(folder), 0o700, &user)?;
        }
        let line = pass_line(&options.superuser, &password);
        durable::write_new(
            &staging.path().join(PASS_FILE),
            line.as_bytes(),
            0o600,
            &user,
        )?;
        if options.group_access {
            durable::set_dir_mode(staging.path(), 0o750)?;
        }
        durable::sync_dir(&data)?;
        durable::sync_dir(staging.path())?;
        tracing::debug!(dir = %dir.display(), socket = %socket_dir.display(), "publishing an instance");
        let lock = publish(staging, &dir, &user)?;
        Ok((Self::open(installation, &dir)?, lock))
    }
}

/// Gives a complete folder to its user and puts it in place. What is there must be an empty folder or nothing.
pub(crate) fn publish(staging: Staging, dir: &Path, user: &OsUser) -> Result<File> {
    user.own(&staging.lock)
        .map_err(|error| Error::io(staging.path(), "cannot be given to its user", error))?;
    fs::rename(staging.path(), dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists => exists(dir),
        _ => Error::io(dir, "cannot be put in place", error),
    })?;
    staging.scrap.keep();
    if let Some(parent) = dir.parent() {
        durable::sync_dir(parent)?;
    }
    Ok(staging.lock)
}

pub(crate) fn user_for(options: &CreateOptions) -> Result<OsUser> {
    let current = OsUser::current();
    let user = match &options.os_user {
        Some(user) => user.clone(),
        None if current.is_root() => OsUser::named("postgres")?,
        None => return Ok(current),
    };
    if user.is_root() {
        return Err(Error::new(
            ErrorKind::NoOsUser,
            "root",
            "PostgreSQL refuses to run as root",
        )
        .with_hint("choose another operating-system user"));
    }
    if !user.is_current() && !current.is_root() {
        return Err(Error::new(
            ErrorKind::Permissions,
            user.label(),
            "only root can create an instance for another user",
        ));
    }
    Ok(user)
}

fn exists(dir: &Path) -> Error {
    Error::path(ErrorKind::Exists, dir, "is there already and not empty")
}

pub(crate) fn refuse_existing(dir: &Path) -> Result<()> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(exists(dir)),
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            std::io::ErrorKind::NotADirectory => {
                Err(Error::path(ErrorKind::Exists, dir, "is no folder"))
            }
            _ => Err(Error::io(dir, "cannot be read", error)),
        },
    }
}

/// Folders beside the one that is to be, in which nobody works any more, go at the next creation.
const STAGING: &str = ".neon-new-";

/// A folder that becomes the instance, or goes. As long as somebody works in it, it is locked: a lock is seen
/// from other containers too, and ends with its process.
pub(crate) struct Staging {
    scrap: Scrap,
    lock: File,
}

impl Staging {
    pub(crate) fn path(&self) -> &Path {
        &self.scrap.0
    }
}

pub(crate) fn stage(dir: &Path, user: &OsUser) -> Result<Staging> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(exists(dir));
    };
    sweep(parent);
    loop {
        let mut file_name = OsString::from(format!("{STAGING}{}-", durable::random_hex(6)?));
        file_name.push(name);
        let path = parent.join(file_name);
        if let Err(error) = durable::create_dir(&path, 0o700, user) {
            let gone = std::error::Error::source(&error)
                .and_then(|source| source.downcast_ref::<std::io::Error>())
                .is_some_and(|source| source.kind() == std::io::ErrorKind::NotFound);
            match (gone, parent.exists()) {
                // Swept before it could be locked: another one.
                (true, true) => continue,
                (true, false) => {
                    let reason = "the folder to create it in is not there";
                    return Err(Error::path(ErrorKind::Io, parent, reason));
                }
                (false, _) => return Err(error),
            }
        }
        let scrap = Scrap(path);
        let lock = match File::open(&scrap.0) {
            Ok(lock) => lock,
            // Swept here.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io(&scrap.0, "cannot be opened", error)),
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && scrap.0.exists() {
            return Ok(Staging { scrap, lock });
        }
    }
}

/// Removes what killed creations left in a folder: what nobody has locked.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        // Opening what is no folder, a pipe say, could wait for ever.
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !folder || !entry.file_name().to_string_lossy().starts_with(STAGING) {
            continue;
        }
        let Ok(folder) = File::open(entry.path()) else {
            continue;
        };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            drop(Scrap(entry.path()));
        }
    }
}

/// The server's user must be able to enter every folder above its own.
pub(crate) async fn check_reachable(dir: &Path, user: &OsUser) -> Result<()> {
    if user.is_current() {
        return Ok(());
    }
    let mut shell = command::clean("/bin/sh".as_ref(), user, None);
    shell.args(["-c", r#"cd -- "$1""#, "sh"]).arg(dir);
    let finished = Running::spawn(&mut shell)?
        .wait(Duration::from_secs(60))
        .await?;
    if finished.status.success() {
        return Ok(());
    }
    let closed = dir.ancestors().skip(1).filter(|folder| {
        fs::metadata(folder).is_ok_and(|meta| {
            let mode = meta.permissions().mode();
            let bit = if meta.uid() == user.uid() {
                0o100
            } else if meta.gid() == user.gid() {
                0o010
            } else {
                0o001
            };
            mode & bit == 0
        })
    });
    // The outermost one is what has to be opened first.
    let closed = closed.last().unwrap_or(dir);
    Err(Error::path(
        ErrorKind::Permissions,
        closed,
        format!(
            "{} cannot enter it, and the server will run as that user",
            user.label()
        ),
    )
    .with_hint(format!(
        "choose a folder that {} can reach, for example /var/lib/neon, or chmod o+x {}",
        user.label(),
        closed.display()
    )))
}

async fn run_initdb(
    installation: &Installation,
    options: &CreateOptions,
    user: &OsUser,
    staging: &Path,
    password: &str,
) -> Result<()> {
    let pass_file = Scrap(staging.join("initdb-password"));
    durable::write_new(
        &pass_file.0,
        format!("{password}\n").as_bytes(),
        0o600,
        user,
    )?;
    let mut command = installation.command("initdb", user)?;
    command
        .arg("--pgdata")
        .arg(staging.join(DATA))
        .arg("--pwfile")
        .arg(&pass_file.0)
        .arg(format!("--username={}", options.superuser))
        .args(["--encoding=UTF8", "--auth=scram-sha-256"]);
    initdb_arguments(installation, options, &mut command)?;
    let finished = Running::spawn(&mut command)?.wait(options.deadline).await?;
    if finished.status.success() {
        return Ok(());
    }
    Err(why_not(finished.lines(), finished.status.to_string()))
}

/// What `initdb` said that it could not do, and what the server that it runs said. `status` if both were silent.
fn why_not(said: Vec<String>, status: String) -> Error {
    let lines: Vec<String> = said
        .into_iter()
        .filter(|line| {
            [
                "error:",
                "FATAL:",
                "PANIC:",
                "DETAIL:",
                "HINT:",
                "hint:",
                "detail:",
                "No space",
                "File size limit",
            ]
            .iter()
            .any(|word| line.contains(word))
        })
        .collect();
    let says = |text: &str| lines.iter().any(|line| line.contains(text));
    let kind = if says("No space left on device")
        // A file that was extended in part: the server names no cause then.
        || says(": wrote only ")
        || says("quota exceeded")
        || says("File too large")
        || says("File size limit exceeded")
    {
        ErrorKind::DiskFull
    } else if says("error while loading shared libraries") {
        ErrorKind::MissingLibrary
    } else if says("Permission denied") {
        ErrorKind::Permissions
    } else if says("could not map anonymous shared memory") || says("shared memory segment") {
        ErrorKind::OutOfMemory
    } else if says("is not supported") || says("was not built with") {
        ErrorKind::Unsupported
    } else if says("locale") || says("superuser name") || says("WAL segment size") {
        ErrorKind::BadSetting
    } else {
        ErrorKind::ServerEnded
    };
    let of = |word: &str| lines.iter().find_map(|line| line.split_once(word));
    let reason = ["error: ", "FATAL: ", "PANIC: ", "ERROR: "]
        .into_iter()
        .find_map(of);
    let reason = reason.map_or(status, |(_, reason)| reason.trim().to_owned());
    let error = Error::new(kind, "initdb", reason).with_log(lines);
    match kind {
        ErrorKind::DiskFull => error.with_hint("free some space there, or choose another disk"),
        _ => error,
    }
}

fn initdb_arguments(
    installation: &Installation,
    options: &CreateOptions,
    command: &mut Command,
) -> Result<()> {
    let major = installation.major();
    if options.checksums {
        command.arg("--data-checksums");
    } else if major.layout().checksums_by_default {
        command.arg("--no-data-checksums");
    }
    if major >= PgMajor::V14 {
        command.arg("--no-instructions");
    }
    if let Some(size) = options.wal_segment_mib {
        command.arg(format!("--wal-segsize={size}"));
    }
    if options.group_access {
        command.arg("--allow-group-access");
    }
    if !options.sync {
        command.arg("--no-sync");
    }
    let needs = |wanted: PgMajor, what: &str| {
        if major >= wanted {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("PostgreSQL {major}"),
            format!("{what} came with PostgreSQL {wanted}"),
        ))
    };
    match &options.locale {
        Locale::Stable if major >= PgMajor::V17 => {
            command.args([
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
            ]);
        }
        Locale::Stable => {
            command.args(["--locale=C", "--lc-ctype", unicode_ctype()]);
        }
        Locale::Libc(name) => {
            if major >= PgMajor::V15 {
                command.arg("--locale-provider=libc");
            }
            command.arg(format!("--locale={name}"));
        }
        Locale::Icu(tag) => {
            needs(PgMajor::V15, "ICU as the provider of a cluster")?;
            command
                .args(["--locale-provider=icu", "--locale=C"])
                .arg(format!("--icu-locale={tag}"));
        }
        Locale::Builtin(name) => {
            needs(PgMajor::V17, "the builtin provider")?;
            command
                .args(["--locale-provider=builtin", "--locale=C"])
                .arg(format!("--builtin-locale={name}"));
        }
    }
    Ok(())
}

/// A character type locale that knows Unicode, by the name this system has for it; `C` where it has none.
fn unicode_ctype() -> &'static str {
    let listed = Command::new("locale")
        .env_clear()
        .env("PATH", command::SYSTEM_PATH)
        .arg("-a")
        .output();
    // musl has no such program and calls every locale UTF-8.
    let Ok(listed) = listed else { return "C.UTF-8" };
    let names = String::from_utf8_lossy(&listed.stdout).to_ascii_lowercase();
    let known = |wanted: &str| names.lines().any(|name| name == wanted);
    if known("c.utf-8") || known("c.utf8") {
        "C.UTF-8"
    } else if known("en_us.utf-8") || known("en_us.utf8") {
        "en_US.UTF-8"
    } else {
        "C"
    }
}

pub(crate) fn own_settings(major: PgMajor, options: &CreateOptions) -> OwnSettings {
    let mut own = OwnSettings::new()
        .with("listen_addresses", "localhost")
        .with("password_encryption", "scram-sha-256")
        // What changed since the last snapshot is read from WAL, as long as it is there.
        .with("wal_keep_size", "512MB")
        .with("logging_collector", "on")
        .with("log_directory", format!("../{LOG}"))
        // A file for each day of the week, overwritten after one.
        .with("log_filename", "postgresql-%a.log")
        .with("log_rotation_age", "1d")
        .with("log_rotation_size", "0")
        .with("log_truncate_on_rotation", "on");
    if major.layout().has_wal_summaries {
        own.set("summarize_wal", "on");
    }
    for (name, value) in &options.settings {
        own.set(name, value);
    }
    own
}

pub(crate) fn append(path: &Path, text: &str) -> Result<()> {
    fs::OpenOptions::new()
        .append(true)
        // The folder is the server's user's already.
        .custom_flags(durable::NO_FOLLOW)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(|error| Error::io(path, "cannot be added to", error))
}

/// A line of `.pgpass`: any host, port and database of this user.
pub(crate) fn pass_line(user: &str, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    format!("*:*:*:{}:{}\n", escape(user), escape(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(said: &str) -> Error {
        why_not(
            said.lines().map(str::to_owned).collect(),
            "exit status: 1".to_owned(),
        )
    }

    #[test]
    fn what_kept_a_cluster_from_being_made_is_told_whoever_said_it() {
        let full = of("creating configuration files ... ok\n\
             running bootstrap script ... 2026-01-01 00:00:00.000 UTC [1] FATAL:  could not write to file \"pg_wal/xlogtemp.1\": No space left on device\n\
             child process exited with exit code 1\n\
             initdb: removing contents of data directory \"/data\"");
        assert_eq!(full.kind(), ErrorKind::DiskFull);
        let text = full.to_string();
        assert!(text.contains("could not write to file"), "{text}");
        assert!(
            full.hint()
                .is_some_and(|hint| hint.contains("free some space"))
        );
        let partly = of(
            "FATAL:  could not extend file \"base/1/2659\": wrote only 4096 of 8192 bytes at block 3\n\
             HINT:  Check free disk space.",
        );
        assert_eq!(partly.kind(), ErrorKind::DiskFull);
        let own = of("initdb: error: could not create directory \"/x\": Permission denied");
        assert_eq!(own.kind(), ErrorKind::Permissions);
        assert!(own.to_string().contains("could not create directory"));
        assert!(of("").to_string().contains("exit status: 1"));
    }
}
