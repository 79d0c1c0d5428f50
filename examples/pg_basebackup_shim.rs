//! Our client behind the options of `pg_basebackup`, as far as PostgreSQL's own tests use them: what
//! `scripts/tap` puts first in PATH. Not a replacement; what it does not know it refuses.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use neon_examples::fetch::{Failure, Plan, Range, Wal, fetch, receive_wal};
use neon_examples::unpack::{Mapping, Modes, Written, create_empty};
use neon_examples::{program, surroundings};
use neon_pgwire::{
    BackupEnd, BackupEvent, BackupTarget, BaseBackupOptions, Checkpoint, Client, Config,
    ManifestChecksum, ManifestOption, NoticeHandler, Params, Replication, SlotName,
};
use tokio::sync::watch;

#[derive(Debug, Default)]
struct Options {
    params: Params,
    target: Option<PathBuf>,
    tar: bool,
    format_given: bool,
    wal: Option<String>,
    slot: Option<String>,
    create_slot: bool,
    without_slot: bool,
    backup: BaseBackupOptions,
    mappings: Vec<Mapping>,
    wal_directory: Option<PathBuf>,
    recovery_conf: bool,
    no_clean: bool,
    no_sync: bool,
    incremental: Option<PathBuf>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(code) => code,
        Err(error) => program::failed(error.as_ref()),
    }
}

fn words() -> Result<Vec<String>, Failure> {
    let words = std::env::args_os().skip(1).map(|word| {
        let word = word.into_string();
        word.map_err(|word| format!("{} is not UTF-8", word.display()).into())
    });
    words.collect()
}

async fn run() -> Result<ExitCode, Failure> {
    let Some(options) = parse(words()?.into_iter())? else {
        return Ok(ExitCode::SUCCESS);
    };
    if options.backup.target != BackupTarget::Client {
        return elsewhere(options).await;
    }
    let target = options
        .target
        .clone()
        .ok_or("no target directory specified")?;
    let existed = target.exists();
    let wal_directory = options
        .wal_directory
        .clone()
        .map(|path| (path.exists(), path));
    let no_clean = options.no_clean;
    let result = take(options, &target).await;
    if result.is_err() && !no_clean {
        // What is no backup is not left lying around, as the original does it.
        for (existed, path) in [(existed, target)].into_iter().chain(wal_directory) {
            clean(&path, existed);
        }
    }
    succeeded(result?)
}

fn succeeded(end: BackupEnd) -> Result<ExitCode, Failure> {
    match end.suspect {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => {
            program::complain(format_args!(
                "pg_basebackup: error: checksum error occurred: {error}"
            ));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A backup that the server keeps, or nobody.
async fn elsewhere(mut options: Options) -> Result<ExitCode, Failure> {
    if options.target.is_some() {
        return Err("cannot specify both output directory and backup target".into());
    }
    if options.format_given {
        return Err("cannot specify both format and backup target".into());
    }
    match options.wal.as_deref() {
        Some("none") => {}
        Some("fetch") => options.backup.wal = true,
        _ => return Err("WAL cannot be streamed when a backup target is specified".into()),
    }
    options.backup.wait = !options.backup.wal;
    options.backup.tablespace_map = true;
    let client = Client::connect(&config(&options)?).await?;
    let mut backup = client.base_backup(&options.backup).await?;
    while backup.next().await?.is_some() {}
    let (end, client) = backup.finish()?;
    client.close().await;
    succeeded(end)
}

/// What the server warns of is passed on.
fn config(options: &Options) -> Result<Config, Failure> {
    let config = Config::resolve(&options.params, &surroundings::of_this_process())?;
    let warn = NoticeHandler::new(|notice| {
        if notice.severity() != "NOTICE" {
            program::complain(format_args!("{}:  {}", notice.severity(), notice.message()));
        }
    });
    Ok(config
        .with_replication(Replication::Physical)
        .with_notices(warn))
}

fn clean(path: &Path, existed: bool) {
    if !existed {
        drop(fs::remove_dir_all(path));
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            drop(fs::remove_dir_all(path));
        } else {
            drop(fs::remove_file(path));
        }
    }
}

async fn take(mut options: Options, target: &Path) -> Result<BackupEnd, Failure> {
    let wal = options.wal.clone().unwrap_or_else(|| "stream".to_owned());
    options.backup.wal = wal == "fetch";
    options.backup.wait = wal == "none";
    options.backup.tablespace_map = options.tar;
    let config = config(&options)?;
    let slot: Option<SlotName> = match &options.slot {
        Some(name) => Some(name.parse()?),
        None => None,
    };
    if options.create_slot {
        let slot = slot
            .as_ref()
            .ok_or("--create-slot needs a slot to be specified using --slot")?;
        if options.without_slot {
            return Err("--create-slot and --no-slot are incompatible options".into());
        }
        let mut client = Client::connect(&config).await?;
        client.create_physical_slot(slot, false, true).await?;
        client.close().await;
    }
    if wal != "stream" && slot.is_some() {
        return Err("replication slots can only be used with WAL streaming".into());
    }
    let end = if options.tar {
        archives(&config, &options, target, (wal == "stream").then_some(slot)).await?
    } else {
        let plan = Plan {
            target: target.to_owned(),
            options: options.backup.clone(),
            wal: match wal.as_str() {
                "stream" => Wal::Stream(slot.clone()),
                "fetch" => Wal::Fetch,
                _ => Wal::None,
            },
            mappings: options.mappings.clone(),
            wal_directory: options.wal_directory.clone(),
            sync: !options.no_sync,
            earlier_manifest: options.incremental.clone(),
        };
        fetch(&config, plan).await?
    };
    if options.recovery_conf {
        write_recovery_conf(&options, target)?;
    }
    Ok(end)
}

/// Archives as they are, in files, and the WAL that was streamed beside them in one more.
async fn archives(
    config: &Config,
    options: &Options,
    target: &Path,
    streamed: Option<Option<SlotName>>,
) -> Result<BackupEnd, Failure> {
    let mut client = Client::connect(config).await?;
    let modes = Modes::of(&client.show("data_directory_mode").await?);
    create_empty(target, modes, &mut Written::default())?;
    let segment = client.wal_segment_size().await?;
    let system = client.identify_system().await?.system_identifier;
    let mut backup = client.base_backup(&options.backup).await?;
    let (stop_known, stop) = watch::channel(None);
    let wal = target.join("pg_wal.tmp");
    let streaming = match streamed {
        Some(slot) => {
            modes.create_dir(&wal)?;
            modes.create_dir(&wal.join("archive_status"))?;
            let range = Range {
                from: backup.start().start_of(segment),
                timeline: backup.timeline(),
                segment,
                system,
                slot,
                modes,
                sync: !options.no_sync,
            };
            let (config, wal) = (config.clone(), wal.clone());
            Some(tokio::spawn(async move {
                receive_wal(&config, range, &wal, stop).await
            }))
        }
        None => None,
    };
    let mut file = None;
    while let Some(event) = backup.next().await? {
        match event {
            BackupEvent::Archive(archive) => {
                file = Some(modes.create_file(&target.join(archive.name))?);
            }
            BackupEvent::Manifest => {
                file = Some(modes.create_file(&target.join("backup_manifest"))?);
            }
            BackupEvent::Data(bytes) => {
                if let Some(file) = &mut file {
                    file.write_all(&bytes)?;
                }
            }
            _ => {}
        }
    }
    let (end, client) = backup.finish()?;
    client.close().await;
    if let Some(streaming) = streaming {
        stop_known.send(Some(end.stop))?;
        let files = streaming.await??;
        let names = files.iter().filter_map(|file| file.strip_prefix(&wal).ok());
        let mut tar = std::process::Command::new("tar");
        tar.args(["--format=ustar", "-cf"])
            .arg(target.join("pg_wal.tar"));
        if !tar.arg("-C").arg(&wal).args(names).status()?.success() {
            return Err("tar failed".into());
        }
        fs::remove_dir_all(&wal)?;
    }
    Ok(end)
}

/// What a standby needs to follow the server.
fn write_recovery_conf(options: &Options, target: &Path) -> io::Result<()> {
    let mut conninfo = String::new();
    let environment = surroundings::of_this_process().environment;
    let named = |name: &'static str, variable: &str| {
        let value = environment.get(variable).map(String::as_str)?;
        options.params.get(name).is_none().then_some((name, value))
    };
    // Where the environment leads to is written down as well: the standby may have another one.
    let surrounding = [("host", "PGHOST"), ("port", "PGPORT"), ("user", "PGUSER")];
    let surrounding = surrounding
        .iter()
        .filter_map(|(name, variable)| named(name, variable));
    for (name, value) in options.params.iter().chain(surrounding) {
        if !matches!(name, "dbname" | "replication" | "fallback_application_name") {
            // Quoted where it must be, as libpq does it.
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
            if !value.is_empty() && value.bytes().all(plain) {
                conninfo.push_str(&format!("{name}={value} "));
            } else {
                let value = value.replace('\\', "\\\\").replace('\'', "\\'");
                conninfo.push_str(&format!("{name}='{value}' "));
            }
        }
    }
    let quoted = conninfo.trim_end().replace('\'', "''");
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(target.join("postgresql.auto.conf"))?;
    writeln!(file, "primary_conninfo = '{quoted}'")?;
    if let Some(slot) = &options.slot {
        writeln!(file, "primary_slot_name = '{slot}'")?;
    }
    File::create(target.join("standby.signal")).map(drop)
}

/// `-x value`, `-xvalue`, `--name value`, `--name=value`. Nothing for `--version`.
fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Options>, Failure> {
    let mut options = Options::default();
    options.backup.label = "pg_basebackup base backup".to_owned();
    options.backup.progress = true;
    options
        .params
        .set("fallback_application_name", "pg_basebackup")?;
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let (name, inline) = match argument.strip_prefix("--") {
            Some(long) => match long.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (long.to_owned(), None),
            },
            None => match argument
                .strip_prefix('-')
                .and_then(|short| short.split_at_checked(1))
            {
                Some((name, "")) => (name.to_owned(), None),
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => {
                    return Err(format!(
                        "too many command-line arguments (first is \"{argument}\")"
                    )
                    .into());
                }
            },
        };
        let mut value = || {
            inline
                .clone()
                .or_else(|| arguments.next())
                .ok_or_else(|| format!("option {name} requires an argument"))
        };
        match name.as_str() {
            "version" | "V" => {
                writeln!(program::stdout(), "pg_basebackup (PostgreSQL) 15 stand-in")?;
                return Ok(None);
            }
            "help" | "?" => {
                writeln!(
                    program::stdout(),
                    "pg_basebackup takes a base backup of a running PostgreSQL server.\n\nUsage:\n  pg_basebackup [OPTION]..."
                )?;
                return Ok(None);
            }
            "D" | "pgdata" => options.target = Some(value()?.into()),
            "F" | "format" => {
                options.format_given = true;
                options.tar = match value()?.as_str() {
                    "p" | "plain" => false,
                    "t" | "tar" => true,
                    other => {
                        return Err(format!(
                            "invalid output format \"{other}\", must be \"plain\" or \"tar\""
                        )
                        .into());
                    }
                };
            }
            "t" | "target" => options.backup.target = backup_target(&value()?),
            "X" | "wal-method" => {
                options.wal = Some(match value()?.as_str() {
                    "n" | "none" => "none".to_owned(),
                    "f" | "fetch" => "fetch".to_owned(),
                    "s" | "stream" => "stream".to_owned(),
                    other => return Err(format!("invalid wal-method option \"{other}\"").into()),
                });
            }
            "c" | "checkpoint" => match value()?.as_str() {
                "fast" => options.backup.checkpoint = Checkpoint::Fast,
                "spread" => options.backup.checkpoint = Checkpoint::Spread,
                other => return Err(format!("invalid checkpoint argument \"{other}\"").into()),
            },
            "d" | "dbname" => {
                let given: Params = value()?.parse()?;
                for (name, value) in given.iter() {
                    options.params.set(name, value)?;
                }
            }
            "h" | "host" => drop(options.params.set("host", value()?)?),
            "p" | "port" => drop(options.params.set("port", value()?)?),
            "U" | "username" => drop(options.params.set("user", value()?)?),
            "l" | "label" => options.backup.label = value()?,
            "S" | "slot" => options.slot = Some(value()?),
            "C" | "create-slot" => options.create_slot = true,
            "no-slot" => options.without_slot = true,
            "T" | "tablespace-mapping" => options.mappings.push(mapping(&value()?)?),
            "waldir" => {
                let path = PathBuf::from(value()?);
                if !path.is_absolute() {
                    return Err("WAL directory location must be an absolute path".into());
                }
                options.wal_directory = Some(path);
            }
            "R" | "write-recovery-conf" => options.recovery_conf = true,
            "n" | "no-clean" => options.no_clean = true,
            "N" | "no-sync" => options.no_sync = true,
            "k" | "no-verify-checksums" => options.backup.verify_checksums = false,
            "no-manifest" => options.backup.manifest = ManifestOption::No,
            "manifest-force-encode" => options.backup.manifest = ManifestOption::ForceEncode,
            "manifest-checksums" => options.backup.manifest_checksums = Some(checksums(&value()?)?),
            "no-estimate-size" => options.backup.progress = false,
            "r" | "max-rate" => options.backup.max_rate = Some(rate(&value()?)?),
            "i" | "incremental" => {
                options.backup.incremental = true;
                options.incremental = Some(value()?.into());
            }
            "s" | "status-interval" => drop(value()?),
            "P" | "progress" | "v" | "verbose" | "w" | "no-password" => {}
            _ => return Err(format!("unrecognized option '{argument}'").into()),
        }
    }
    Ok(Some(options))
}

fn backup_target(text: &str) -> BackupTarget {
    let (name, detail) = match text.split_once(':') {
        Some((name, detail)) => (name, Some(detail)),
        None => (text, None),
    };
    match (name, detail) {
        ("client", None) => BackupTarget::Client,
        ("blackhole", None) => BackupTarget::Blackhole,
        ("server", Some(path)) => BackupTarget::Server(path.to_owned()),
        (name, detail) => BackupTarget::Other(name.to_owned(), detail.map(str::to_owned)),
    }
}

fn mapping(text: &str) -> Result<Mapping, Failure> {
    // A backslash protects an equals sign in a name.
    let (mut parts, mut escaped) = (vec![String::new()], false);
    for c in text.chars() {
        match c {
            '\\' if !escaped => escaped = true,
            '=' if !escaped => parts.push(String::new()),
            c => {
                if escaped && c != '=' {
                    parts.last_mut().ok_or("empty")?.push('\\');
                }
                parts.last_mut().ok_or("empty")?.push(c);
                escaped = false;
            }
        }
    }
    match parts.as_slice() {
        [from, to] if from.starts_with('/') && to.starts_with('/') => {
            let plain = |path: &str| PathBuf::from(path.trim_end_matches('/'));
            Ok(Mapping {
                from: plain(from),
                to: plain(to),
            })
        }
        _ => Err(format!(
            "invalid tablespace mapping format \"{text}\", must be \"OLDDIR=NEWDIR\""
        )
        .into()),
    }
}

fn checksums(text: &str) -> Result<ManifestChecksum, Failure> {
    Ok(match text.to_ascii_uppercase().as_str() {
        "NONE" => ManifestChecksum::None,
        "CRC32C" => ManifestChecksum::Crc32c,
        "SHA224" => ManifestChecksum::Sha224,
        "SHA256" => ManifestChecksum::Sha256,
        "SHA384" => ManifestChecksum::Sha384,
        "SHA512" => ManifestChecksum::Sha512,
        _ => return Err(format!("unrecognized checksum algorithm: \"{text}\"").into()),
    })
}

fn rate(text: &str) -> Result<u32, Failure> {
    let (digits, factor) = match text.strip_suffix('M') {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix('k').unwrap_or(text), 1),
    };
    let rate = digits
        .parse::<u32>()
        .ok()
        .and_then(|rate| rate.checked_mul(factor));
    rate.ok_or_else(|| format!("transfer rate \"{text}\" is not a valid value").into())
}
