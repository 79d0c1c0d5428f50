//! The configuration of a copy: what it got from its origin, without what would make it act in the origin's name or
//! space.
//!
//! What it is changed to is what a start in quarantine changes ([`neon_pgctl`] says what that is), written down for good where
//! the copy would otherwise do harm later: archiving, upstreams, synchronous standbys, subscriptions, paths of the origin,
//! sizes this machine does not have. What only makes such a start private (no TCP, few connections, no workers) is not. Until
//! that is written, inside of a folder that nobody sees yet, only the private server of its recovery runs on it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use neon_pagestore::Facts;
use neon_pg_layout::RelationMap;
use neon_pgctl::{
    Change, Instance, OWN_SETTINGS_FILE, OWN_SETTINGS_INCLUDE, OsUser, OwnSettings,
    QuarantineOptions, StartOptions, StopMode, Why,
};

use crate::error::{Error, Result};
use crate::events::Event;
use crate::home::random_id;
use crate::neon::Neon;
use crate::record;

/// Where an instance logs whose data directory is in its folder.
const LOG_BESIDE: &str = "../log";
const MAIN: &str = "postgresql.conf";
const AUTO: &str = "postgresql.auto.conf";
const HBA: &str = "pg_hba.conf";
const IDENT: &str = "pg_ident.conf";

/// The catalogue of roles and their passwords.
const PG_AUTHID: u32 = 1260;

/// What becomes of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Set(String),
    Left,
}

/// Writes the configuration of a copy that was recovered. What only a server can tell was [asked](ask) of that of the recovery;
/// else the copy is started once in quarantine. Each change is told.
///
/// Dropped: the server ends; the copy is not finished and belongs to be removed.
pub(super) async fn isolate(
    neon: &Neon,
    instance: &Instance,
    folder: &Path,
    facts: &Facts,
    found: Option<Found>,
    user: Option<&OsUser>,
) -> Result<()> {
    let subject = "the copy";
    let server = |error| Error::server(subject, error);
    let (changes, found) = match found {
        Some(found) => {
            let changes = instance.quarantine_changes(&QuarantineOptions::new()).await;
            (changes.map_err(server)?, found)
        }
        None => {
            let options = StartOptions::new()
                .in_quarantine(QuarantineOptions::new())
                .with_setting("default_transaction_read_only", "off");
            let scoped = instance.start_scoped(&options).await.map_err(server)?;
            let changes = scoped.started().changes.clone();
            let found = ask(neon, scoped.instance(), facts, folder, user).await;
            tokio::task::spawn_blocking(move || scoped.stop(StopMode::Fast))
                .await
                .map_err(|error| {
                    Error::new(crate::ErrorKind::Failed, subject, "broke off").caused_by(error)
                })?;
            (changes, found?)
        }
    };
    let fates = fates(&changes, found.subscriptions);
    for change in &changes {
        match fates.get(change.what.as_str()) {
            Some(Fate::Set(now)) if change.was.as_deref() == Some(now) => {}
            Some(_) if speaks(change) => neon.tell(Event::Note(change.to_string())),
            None if change.why == Why::OutsideClone || change.why == Why::Unreadable => {
                neon.tell(Event::Note(change.to_string()));
            }
            _ => {}
        }
    }
    write(instance, &fates, found.md5, user)
}

/// Gives the superuser of an instance the password of its pass file again, after its data became those of another time or
/// another instance. A role that was not there then gives way to the one that the cluster was made with. Of a server that
/// runs for us alone, and lets us in without a password.
///
/// Returns what the pass file has to say then, if something else: [to be written](put_login) once it is certain that the
/// instance stays what it is.
pub(super) async fn give_password(
    neon: &Neon,
    instance: &Instance,
    facts: &Facts,
) -> Result<Option<String>> {
    let Some(pass_file) = instance.pass_file() else {
        return Ok(None);
    };
    let line = fs::read_to_string(pass_file)
        .map_err(|error| Error::io(pass_file, "cannot be read", error))?;
    let mut fields = line.trim_end().splitn(5, ':').skip(3);
    let (Some(known), Some(password)) = (fields.next(), fields.next()) else {
        return Ok(None);
    };
    let first = facts.needs.install_user.as_deref();
    let names = std::iter::once(known).chain(first.filter(|first| *first != known));
    match give(instance, names, password).await {
        Ok(name) => {
            let login = format!("*:*:*:{name}:{password}\n");
            Ok(Some(login).filter(|login| *login != line))
        }
        Err(why) => {
            neon.tell(Event::Warning(format!(
                "{}: its superuser could not be given the password that is known here ({why}); log in as one of its roles, \
                 with the password it had",
                instance.data_dir().display()
            )));
            Ok(None)
        }
    }
}

/// Makes the pass file of an instance say what [`give_password`] returned.
pub(super) fn put_login(
    instance: &Instance,
    login: Option<String>,
    user: Option<&OsUser>,
) -> Result<()> {
    match (instance.pass_file(), login) {
        (Some(pass_file), Some(login)) => record::put(pass_file, login.as_bytes(), 0o600, user),
        _ => Ok(()),
    }
}

/// As [`give_password`], and writes the pass file, of a server that runs for a moment, and nobody but us gets in.
///
/// Dropped: the server ends.
pub(super) async fn keep_password(
    neon: &Neon,
    instance: &Instance,
    facts: &Facts,
    user: Option<&OsUser>,
) -> Result<()> {
    let data = instance.data_dir();
    let server = |error| Error::server(data.display().to_string(), error);
    let Some(pass_file) = instance.pass_file() else {
        return Ok(());
    };
    let hba = pass_file.with_file_name("pg_hba-once.conf");
    record::put(&hba, b"local all all trust\n", 0o600, user)?;
    let options = StartOptions::new()
        .as_is()
        .with_setting("hba_file", hba.display().to_string())
        .with_setting("listen_addresses", "")
        .with_setting("archive_mode", "off")
        .with_setting("max_logical_replication_workers", "0")
        .with_setting("synchronous_standby_names", "")
        .with_setting("default_transaction_read_only", "off");
    let started = instance.start_scoped(&options).await;
    let given = async {
        let scoped = started.map_err(server)?;
        let given = give_password(neon, instance, facts).await;
        let stopped = tokio::task::spawn_blocking(move || scoped.stop(StopMode::Fast)).await;
        drop(stopped);
        given
    }
    .await;
    record::remove(&hba)?;
    put_login(instance, given?, user)
}

/// Gives the first of these roles that is there a password. Returns which; or why not, if none takes it.
async fn give<'a>(
    instance: &Instance,
    names: impl Iterator<Item = &'a str>,
    password: &str,
) -> std::result::Result<&'a str, String> {
    let mut why = None;
    for name in names {
        let instance = instance.clone().without_pass_file().with_superuser(name);
        let given = async {
            let mut client = instance
                .connect_bare("template1")
                .await
                .map_err(with_cause)?;
            let given = client.simple_query(&new_password(name, password)).await;
            client.close().await;
            given.map(drop).map_err(with_cause)
        };
        match given.await {
            Ok(()) => return Ok(name),
            Err(error) => {
                why.get_or_insert(error);
            }
        }
    }
    Err(why.unwrap_or_default())
}

fn with_cause(error: impl std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What the roles of a stopped cluster are, to be compared; none if that cannot be told.
pub(super) fn roles(instance: &Instance) -> Option<Vec<u8>> {
    let global = instance.data_dir().join("global");
    let map = fs::read(global.join("pg_filenode.map")).ok()?;
    let map = RelationMap::decode(&map, instance.major().layout()).ok()?;
    fs::read(global.join(map.number_of(PG_AUTHID)?.to_string())).ok()
}

/// Gives a role a password that no log and no statistics see: what is sent only proves it.
fn new_password(name: &str, password: &str) -> String {
    let name = neon_pgwire::quote_identifier(name).unwrap_or_default();
    let password = neon_pgwire::scram_sha_256_verifier(password);
    let password = neon_pgwire::quote_literal(&password).unwrap_or_default();
    format!(
        "set log_statement = 'none'; set log_min_duration_statement = -1; \
         set log_min_error_statement = 'panic'; set password_encryption = 'scram-sha-256'; \
         alter role {name} login password {password} valid until 'infinity'"
    )
}

/// Gives a copy that is to act as its origin did no more than what two servers on one machine cannot share.
pub(super) fn as_it_is(instance: &Instance, user: Option<&OsUser>) -> Result<()> {
    let data = instance.data_dir();
    let failed = |error| Error::server(data.display().to_string(), error);
    let mut own = OwnSettings::read(data).map_err(failed)?.unwrap_or_default();
    for name in ["port", "unix_socket_directories"] {
        own.remove(name);
    }
    // Of one whose data directory was at a place that somebody chose.
    if own.get("log_directory").is_some() {
        own.set("log_directory", LOG_BESIDE);
    }
    own.write(data).map_err(failed)?;
    include(instance, user)
}

/// What only a server could tell.
pub(super) struct Found {
    subscriptions: bool,
    /// Whether a role has a password of the old kind.
    md5: bool,
}

/// Gives the superuser of a copy a password of its own, and asks what decides over its configuration. Of a server that runs
/// for us alone, and lets us in without a password.
pub(super) async fn ask(
    neon: &Neon,
    server: &Instance,
    facts: &Facts,
    folder: &Path,
    user: Option<&OsUser>,
) -> Result<Found> {
    let mut names: Vec<&str> = facts.needs.install_user.as_deref().into_iter().collect();
    names.push("postgres");
    names.extend(user.and_then(OsUser::name));
    let password = format!("{}{}", random_id()?, random_id()?);
    let mut trouble = None;
    for name in names {
        for database in ["postgres", "template1"] {
            let instance = server.clone().without_pass_file().with_superuser(name);
            let mut client = match instance.connect_bare(database).await {
                Ok(client) => client,
                Err(error) => {
                    trouble.get_or_insert(error);
                    continue;
                }
            };
            let script = new_password(name, &password);
            let asked = async {
                let is = client
                    .simple_query(
                        "select rolsuper from pg_catalog.pg_roles where rolname = current_user",
                    )
                    .await?;
                if is.first().and_then(|set| set.value(0, 0)) != Some("t") {
                    return Ok(None);
                }
                client.simple_query(&script).await?;
                let told = client
                    .simple_query(
                        "select exists (select from pg_catalog.pg_subscription where subenabled), \
                         exists (select from pg_catalog.pg_authid where rolpassword like 'md5%')",
                    )
                    .await?;
                let says = |column| told.first().and_then(|set| set.value(0, column)) == Some("t");
                Ok::<_, neon_pgwire::Error>(Some(Found {
                    subscriptions: says(0),
                    md5: says(1),
                }))
            }
            .await;
            client.close().await;
            match asked {
                Ok(Some(found)) => {
                    let login = pass_line(name, &password);
                    record::put(&folder.join("pgpass"), login.as_bytes(), 0o600, user)?;
                    return Ok(found);
                }
                Ok(None) => {}
                Err(error) => {
                    return Err(Error::new(
                        crate::ErrorKind::Failed,
                        "the copy",
                        "cannot be given a password",
                    )
                    .caused_by(error));
                }
            }
        }
    }
    let why = trouble.map_or_else(String::new, |error| format!(" ({error})"));
    neon.tell(Event::Warning(format!(
        "its superuser is not known{why}; log in as one of its roles, with the password it had"
    )));
    Ok(Found {
        subscriptions: true,
        md5: true,
    })
}

fn pass_line(user: &str, password: &str) -> String {
    let user = user.replace('\\', "\\\\").replace(':', "\\:");
    format!("*:*:*:{user}:{password}\n")
}

/// What each change of the quarantined start means for good; those that are not listed stay as they were.
fn fates(changes: &[Change], subscriptions: bool) -> BTreeMap<&str, Fate> {
    let mut fates = BTreeMap::new();
    for change in changes {
        let was = change.was.as_deref();
        let fate = match change.what.as_str() {
            // These are given anew to every copy.
            "port"
            | "unix_socket_directories"
            | "unix_socket_permissions"
            | "unix_socket_group"
            | "logging_collector"
            | "log_directory"
            | "stats_temp_directory"
            | "huge_pages" => Some(Fate::Left),
            "listen_addresses" => Some(Fate::Set("localhost".to_owned())),
            "log_destination" => was
                .is_some_and(|was| was.contains("log") && !was.contains("stderr"))
                .then_some(Fate::Left),
            // Only for a server that nobody uses.
            "hot_standby"
            | "max_worker_processes"
            | "max_connections"
            | "superuser_reserved_connections"
            | "reserved_connections" => None,
            "lc_messages" => was
                .is_some_and(|was| !was.starts_with("C.") && was != "POSIX")
                .then(|| Fate::Set("C".to_owned())),
            "max_logical_replication_workers" => subscriptions.then(|| Fate::Set("0".to_owned())),
            _ if matches!(change.why, Why::OutsideClone | Why::Unreadable) => None,
            _ => Some(match &change.now {
                Some(now) => Fate::Set(now.clone()),
                None => Fate::Left,
            }),
        };
        if let Some(fate) = fate {
            fates.insert(change.what.as_str(), fate);
        }
    }
    fates
}

/// Whether a change of what is given anew to every copy is worth a word: only where somebody had chosen otherwise.
fn speaks(change: &Change) -> bool {
    let was = change.was.as_deref();
    match change.what.as_str() {
        "port"
        | "unix_socket_directories"
        | "unix_socket_permissions"
        | "logging_collector"
        | "log_directory"
        | "stats_temp_directory" => false,
        "huge_pages" => was == Some("on"),
        "listen_addresses" => was.is_some_and(|was| was != "localhost"),
        _ => true,
    }
}

fn write(
    instance: &Instance,
    fates: &BTreeMap<&str, Fate>,
    md5: bool,
    user: Option<&OsUser>,
) -> Result<()> {
    let data = instance.data_dir();
    let failed = |error| Error::server(data.display().to_string(), error);
    let before = instance.file_settings();
    let defaults = OwnSettings::defaults(instance.major());
    let mut own = OwnSettings::read(data)
        .map_err(failed)?
        .unwrap_or_else(|| defaults.clone());
    for (name, value) in defaults.iter().filter(|(name, _)| name.starts_with("log")) {
        own.set(name, value);
    }
    own.set("listen_addresses", "localhost");
    own.remove("port");
    own.remove("unix_socket_directories");
    for (name, fate) in fates {
        match fate {
            Fate::Left if defaults.get(name).is_some() => {}
            Fate::Left => {
                own.remove(name);
            }
            Fate::Set(value) => own.set(name, value),
        }
    }
    own.write(data).map_err(failed)?;
    include(instance, user)?;
    let after = instance.file_settings();
    let left = |name: &str| {
        fates.get(name) == Some(&Fate::Left) && own.get(name).is_none()
            || ["port", "unix_socket_directories"].contains(&name)
    };
    let shadowed = instance.shadowed_settings().map_err(failed)?;
    let stays = shadowed.is_empty()
        && after.problems().is_empty()
        && !after.iter().any(|setting| left(&setting.name));
    if !stays {
        // Its own lines would win over ours, or name what is not here: what they come to is written anew.
        let ours = data.join(OWN_SETTINGS_FILE);
        let mut text = String::from(
            "# What the files of the origin came to, without what a copy must not have. They are beside this one,\n\
             # with .origin behind their names.\n",
        );
        for setting in before.iter() {
            if setting.file != ours && own.get(&setting.name).is_none() && !left(&setting.name) {
                let value = setting.value.replace('\'', "''").replace('\\', "\\\\");
                text.push_str(&format!("{} = '{value}'\n", setting.name));
            }
        }
        text.push_str(OWN_SETTINGS_INCLUDE);
        set_aside(data, MAIN, user)?;
        set_aside(data, AUTO, user)?;
        record::put(&data.join(MAIN), text.as_bytes(), 0o600, user)?;
        record::put(&data.join(AUTO), b"", 0o600, user)?;
    }
    access(data, md5, user)
}

fn access(data: &Path, md5: bool, user: Option<&OsUser>) -> Result<()> {
    // This method takes passwords of both kinds.
    let method = if md5 { "md5" } else { "scram-sha-256" };
    let mut text = String::from("# Written for a copy: from this machine, with a password.\n");
    for database in ["all", "replication"] {
        for from in ["local", "host"] {
            let addresses: &[&str] = match from {
                "local" => &[""],
                _ => &[" 127.0.0.1/32", " ::1/128"],
            };
            for address in addresses {
                text.push_str(&format!("{from} {database} all{address} {method}\n"));
            }
        }
    }
    set_aside(data, HBA, user)?;
    record::put(&data.join(HBA), text.as_bytes(), 0o600, user)?;
    if fs::symlink_metadata(data.join(IDENT)).is_err() {
        record::put(&data.join(IDENT), b"", 0o600, user)?;
    }
    Ok(())
}

/// Keeps what the origin had under another name.
fn set_aside(data: &Path, name: &str, user: Option<&OsUser>) -> Result<()> {
    let path = data.join(name);
    match fs::read(&path) {
        Ok(content) => record::put(&data.join(format!("{name}.origin")), &content, 0o600, user),
        // A file of the origin may be a link to somewhere that is not here.
        Err(_) => Ok(()),
    }
}

/// Makes the configuration read our settings, last.
pub(super) fn include(instance: &Instance, user: Option<&OsUser>) -> Result<()> {
    let data = instance.data_dir();
    let ours = data.join(OWN_SETTINGS_FILE);
    let read = instance.file_settings();
    let missing = fs::symlink_metadata(data.join(IDENT)).is_err();
    if missing {
        record::put(&data.join(IDENT), b"", 0o600, user)?;
    }
    if read.iter().any(|setting| setting.file == ours) {
        return Ok(());
    }
    // In whatever encoding it is.
    let main = data.join(MAIN);
    let mut text = match fs::read(&main) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io(&main, "cannot be read", error)),
    };
    text.extend_from_slice(OWN_SETTINGS_INCLUDE.as_bytes());
    record::put(&main, &text, 0o600, user)
}
