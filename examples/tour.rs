//! What the crates do together: a database is written to, kept as one file in a blob storage, damaged, and
//! brought back.
//!
//! ```text
//! tour [BIN_DIR]
//! ```
//!
//! Takes the newest PostgreSQL that is installed, or the one in `BIN_DIR`. Everything happens below a folder
//! of its own in the temporary directory, which is gone afterwards (interrupted, its files stay, its servers do
//! not); no other cluster is touched.
//!
//! Exit codes: 0 done; 1 failed; 2 usage.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use neon_pg_layout::PageHeader;
use neon_pgctl::{
    BackupBracket, BracketOptions, CreateOptions, Discovery, Installation, Instance,
    QuarantineOptions, StartOptions, StopOptions, blocking,
};
use neon_pgwire::Client;
use neon_snapshot_format::pack::{NeonFile, NeonWriter, PackId, PackOptions};
use neon_snapshot_format::pgdata::{
    Bracket, DirectoryOptions, DirectoryWriter, Ownership, PgData, Stop, StopWal, TablespacePlaces,
};
use neon_snapshot_format::{Sequential, SnapshotPath, Source};
use neon_storage::{Body, GetOptions, Key, Native, NativeOptions, Storage, StorageExt};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

const ACCOUNTS: u32 = 200_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (bin_dir, None) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        drop(writeln!(io::stderr(), "usage: tour [BIN_DIR]"));
        return ExitCode::from(2);
    };
    match run(bin_dir).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let mut err = io::stderr().lock();
            drop(writeln!(err, "error: {failure}"));
            let mut cause = failure.source();
            while let Some(inner) = cause {
                drop(writeln!(err, "caused by: {inner}"));
                cause = inner.source();
            }
            if let Some(hint) = failure
                .downcast_ref::<neon_pgctl::Error>()
                .and_then(neon_pgctl::Error::hint)
            {
                drop(writeln!(err, "hint: {hint}"));
            }
            ExitCode::FAILURE
        }
    }
}

/// Tells what was done, with the time since the last line.
struct Story(Instant);

impl Story {
    fn tell(&mut self, what: &str) -> Result<()> {
        let took = self.0.elapsed();
        self.0 = Instant::now();
        Ok(writeln!(
            io::stdout(),
            "{:>7.2} s  {what}",
            took.as_secs_f64()
        )?)
    }
}

async fn run(bin_dir: Option<PathBuf>) -> Result<()> {
    let installation = match bin_dir {
        Some(bin_dir) => Installation::at(bin_dir)?,
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let found = Discovery::new().with_path(path).run();
            found.newest()?.clone()
        }
    };
    let folder = std::env::temp_dir().join(format!("neon-tour-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    // The server's user must pass through; everything below is closed to others.
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o711))?;
    let outcome = tour(&installation, &folder).await;
    // Servers first: a folder must not go away below them.
    for name in ["app", "again"] {
        if let Ok(instance) = instance_in(&installation, &folder.join(name)) {
            drop(instance.stop(&StopOptions::default()).await);
        }
    }
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn instance_in(installation: &Installation, dir: &Path) -> Result<Instance> {
    let (data, log, run) = (dir.join("data"), dir.join("log"), dir.join("run"));
    Ok(Instance::at(installation, data, log, run)?)
}

async fn tour(installation: &Installation, folder: &Path) -> Result<()> {
    let mut story = Story(Instant::now());
    let app = Instance::create(installation, folder.join("app"), &CreateOptions::new()).await?;
    // Scoped: the servers end with this program, however it ends.
    let server = app.start_scoped(&StartOptions::new()).await?;
    story.tell(&format!(
        "PostgreSQL {} created and started on port {}",
        installation.version(),
        server.started().port
    ))?;

    let mut client = app.connect("postgres").await?;
    client
        .simple_query(&format!(
            "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, note text NOT NULL);
             INSERT INTO account SELECT i, 100, md5(i::text) FROM generate_series(1, {ACCOUNTS}) i"
        ))
        .await?;
    let relation = ask(&mut client, "SELECT pg_relation_filepath('account')").await?;
    story.tell(&format!("{ACCOUNTS} accounts written to {relation}"))?;

    let file = folder.join("monday.neon");
    let transfers = snapshot_under_load(&app, &file).await?;
    story.tell(&format!(
        "snapshot taken while {transfers} transfers were committed: {} MB as one file of {} MB",
        mb(size_below(app.data_dir())?),
        mb(file.metadata()?.len())
    ))?;

    let neon = NeonFile::open(File::open(&file)?, None)?;
    let page = neon.read(&SnapshotPath::new(relation.as_str())?, 8192 * 100, 8192)?;
    let lsn = PageHeader::decode(&page)?.lsn;
    story.tell(&format!(
        "block 100 of the table read out of that file, changed last at {lsn}"
    ))?;
    drop(neon);

    let storage = Native::open(folder.join("storage"), NativeOptions::default())?;
    let key = Key::new("snapshots/monday.neon")?;
    let stored = storage.create(&key, body_of(&file)?).await?;
    std::fs::remove_file(&file)?;
    story.tell(&format!("{} MB put into a storage", mb(stored.size)))?;

    client
        .simple_query("UPDATE account SET balance = 0; DROP TABLE account")
        .await?;
    story.tell("the table dropped, as happens on Mondays")?;

    fetch(&storage, &key, &file).await?;
    let again = folder.join("again");
    std::fs::create_dir(&again)?;
    let data = again.join("data");
    restore(&file, &data)?;
    if running_as_root()? {
        // As its data directory, so that it can keep its log and socket there.
        let owner = data.metadata()?;
        std::os::unix::fs::chown(&again, Some(owner.uid()), Some(owner.gid()))?;
    }
    story.tell("the file fetched and written as a new data directory")?;

    let copy = instance_in(installation, &again)?;
    let again = copy
        .start_scoped(&StartOptions::new().in_quarantine(QuarantineOptions::new()))
        .await?;
    let mut client = copy.connect("postgres").await?;
    let sum = ask(
        &mut client,
        "SELECT count(*) || ' accounts, sum ' || sum(balance) FROM account",
    );
    let sum = sum.await?;
    story.tell(&format!(
        "the copy recovered and started apart from the first ({} settings neutralised): {sum}",
        again.started().changes.len()
    ))?;
    let expected = format!("{ACCOUNTS} accounts, sum {}", ACCOUNTS * 100);
    if sum != expected {
        return Err(format!("the copy is not what was there: {sum}, not {expected}").into());
    }
    Ok(())
}

async fn ask(client: &mut Client, sql: &str) -> Result<String> {
    let results = client.simple_query(sql).await?;
    let value = results.first().and_then(|result| result.value(0, 0));
    Ok(value.ok_or("no answer")?.to_owned())
}

/// Copies the running server into one file while money moves between its accounts.
async fn snapshot_under_load(app: &Instance, file: &Path) -> Result<u32> {
    let done = AtomicBool::new(false);
    let load = async {
        let mut client = app.connect("postgres").await?;
        let mut transfers = 0;
        while !done.load(Ordering::Relaxed) {
            let (from, to) = (
                transfers * 7919 % ACCOUNTS + 1,
                transfers * 104_729 % ACCOUNTS + 1,
            );
            let sql = format!(
                "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {from};
                 UPDATE account SET balance = balance + 1 WHERE id = {to}; COMMIT"
            );
            client.simple_query(&sql).await?;
            transfers += 1;
        }
        Ok::<u32, Failure>(transfers)
    };
    let copy = async {
        let outcome = snapshot(app, file).await;
        done.store(true, Ordering::Relaxed);
        outcome
    };
    let (transfers, copied) = tokio::join!(load, copy);
    copied?;
    transfers
}

async fn snapshot(app: &Instance, file: &Path) -> Result<()> {
    let session = app.connect("postgres").await?;
    let mut bracket = BackupBracket::start(session, &BracketOptions::new("monday")).await?;
    let asked = app.clone();
    let bounds = Bracket::new(bracket.started().start, move || {
        let position = blocking::wait(async {
            let mut client = asked.connect("postgres").await?;
            ask(&mut client, "SELECT pg_current_wal_insert_lsn()").await
        })??;
        Ok(position.parse()?)
    });
    let data = app.data_dir().to_owned();
    let mut id = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut id)?;
    let mut writer = NeonWriter::new(File::create_new(file)?, PackOptions::new(PackId(id)))?;
    let copying = tokio::task::spawn_blocking(move || {
        let copied = PgData::online(&data, bounds)?.copy(&mut writer)?;
        Ok::<_, neon_snapshot_format::Error>((copied, writer))
    });
    let (copied, mut writer) = bracket.during(copying).await???;
    // The log of the copy is held until it is in the file as well.
    let (backup, hold) = bracket.stop_with().await?;
    let wal = app.data_dir().join("pg_wal");
    let stop = Stop {
        label: &backup.label_file,
        tablespace_map: &backup.tablespace_map_file,
        position: backup.stop,
        timeline: backup.start.timeline,
        wal: StopWal::Directory(&wal),
    };
    copied.finish(&mut writer, Some(stop))?;
    hold.release().await;
    let file = writer.into_inner().ok_or("the snapshot was not finished")?;
    Ok(file.sync_all()?)
}

/// A file in pieces, none of them longer than a mebibyte.
fn body_of(path: &Path) -> Result<Body> {
    let file = File::open(path)?;
    let pieces = stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let mut piece = vec![0; 1 << 20];
        match file.read(&mut piece) {
            Ok(0) => None,
            Ok(count) => {
                piece.truncate(count);
                Some((Ok(Bytes::from(piece)), Some(file)))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(Body::stream(pieces))
}

async fn fetch(storage: &Native, key: &Key, to: &Path) -> Result<()> {
    let mut got = storage.get(key, GetOptions::new()).await?;
    let mut file = File::create_new(to)?;
    while let Some(chunk) = got.body.next().await {
        file.write_all(&chunk?)?;
    }
    Ok(())
}

fn restore(file: &Path, data: &Path) -> Result<()> {
    let mut neon = NeonFile::open(File::open(file)?, None)?;
    let options = DirectoryOptions {
        ownership: if running_as_root()? {
            Ownership::Recorded
        } else {
            Ownership::Process
        },
        tablespaces: TablespacePlaces::Refuse,
        ..DirectoryOptions::default()
    };
    let writer = DirectoryWriter::create(data, options)?;
    neon.send(&mut Sequential::new(&writer)?)?;
    Ok(())
}

fn running_as_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}

fn size_below(dir: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // Files come and go below a running server.
        let Ok(meta) = entry.metadata() else { continue };
        size += if meta.is_dir() {
            size_below(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(size)
}

fn mb(bytes: u64) -> u64 {
    bytes / 1_000_000
}
