//! What several tests need: parameters, captured backups, unpacking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neon_pgwire::{
    Archive, BackupEnd, BackupEvent, BaseBackupOptions, Checkpoint, Client, Config, Params,
    Replication, StreamEnd, StreamOptions, Surroundings, WalEvent,
};
use neon_testkit::{Installation, OsUser, PgMajor};

/// What the parameters mean when nothing else is known.
pub(crate) fn config(conninfo: &str) -> Config {
    let params: Params = conninfo.parse().unwrap();
    let config = Config::resolve(&params, &Surroundings::none()).unwrap();
    // A loaded machine is slow, not silent.
    let limits = neon_pgwire::Limits::default().with_connect(Duration::from_secs(60));
    config.with_limits(limits)
}

pub(crate) async fn replication(conninfo: &str) -> Client {
    Client::connect(&config(conninfo).with_replication(Replication::Physical))
        .await
        .unwrap()
}

pub(crate) fn fast() -> BaseBackupOptions {
    let mut options = BaseBackupOptions::default();
    options.checkpoint = Checkpoint::Fast;
    options.wait = false;
    options
}

/// A base backup as it came: archives and manifest in files.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) start: neon_pg_layout::Lsn,
    pub(crate) timeline: neon_pg_layout::TimelineId,
    pub(crate) end: BackupEnd,
    pub(crate) archives: Vec<(Archive, PathBuf)>,
    pub(crate) manifest: Option<PathBuf>,
    pub(crate) progress: u64,
    pub(crate) client: Client,
}

/// Takes a base backup into files of a directory.
pub(crate) async fn capture(client: Client, options: &BaseBackupOptions, into: &Path) -> Captured {
    fs::create_dir_all(into).unwrap();
    let mut backup = client.base_backup(options).await.unwrap();
    let (start, timeline) = (backup.start(), backup.timeline());
    let (mut archives, mut manifest, mut progress) = (Vec::new(), None, 0);
    let mut file: Option<fs::File> = None;
    while let Some(event) = backup.next().await.unwrap() {
        match event {
            BackupEvent::Archive(archive) => {
                let path = into.join(&archive.name);
                file = Some(fs::File::create(&path).unwrap());
                archives.push((archive, path));
            }
            BackupEvent::Manifest => {
                let path = into.join("backup_manifest");
                file = Some(fs::File::create(&path).unwrap());
                manifest = Some(path);
            }
            BackupEvent::Data(bytes) => {
                io::Write::write_all(file.as_mut().unwrap(), &bytes).unwrap();
            }
            BackupEvent::Progress(bytes) => progress = bytes,
            _ => {}
        }
    }
    let (end, client) = backup.finish().unwrap();
    Captured {
        start,
        timeline,
        end,
        archives,
        manifest,
        progress,
        client,
    }
}

/// Streams WAL from the segment of `from` until `to` into whole segments in a directory.
pub(crate) async fn capture_wal(
    client: Client,
    timeline: neon_pg_layout::TimelineId,
    from: neon_pg_layout::Lsn,
    to: neon_pg_layout::Lsn,
    segment: u64,
    into: &Path,
) -> Client {
    fs::create_dir_all(into).unwrap();
    let begin = from.start_of(segment);
    let mut stream = client
        .start_replication(StreamOptions::new(begin, timeline))
        .await
        .unwrap();
    let mut bytes = Vec::new();
    while stream.position() < to {
        if let WalEvent::Data { data, .. } = stream.next().await.unwrap().unwrap() {
            bytes.extend_from_slice(&data);
        }
    }
    let StreamEnd::Stopped(client) = stream.finish().await.unwrap() else {
        panic!("the timeline goes on");
    };
    bytes.resize(bytes.len().next_multiple_of(segment as usize), 0);
    for (index, content) in bytes.chunks(segment as usize).enumerate() {
        let name = segment_name(timeline.get(), begin.0 + index as u64 * segment, segment);
        fs::write(into.join(name), content).unwrap();
    }
    client
}

pub(crate) fn segment_name(timeline: u32, at: u64, size: u64) -> String {
    let (number, per_log) = (at / size, (1 << 32) / size);
    format!(
        "{timeline:08X}{:08X}{:08X}",
        number / per_log,
        number % per_log
    )
}

/// Unpacks a captured backup with the system's tar into a data directory that a server may use.
pub(crate) fn unpack(captured: &Captured, data: &Path) {
    fs::create_dir_all(data).unwrap();
    for (archive, path) in &captured.archives {
        let target = match archive.oid {
            None => data.to_owned(),
            Some(oid) => data.join("pg_tblspc").join(oid.to_string()),
        };
        // Tablespaces become directories within; the base archive must not bring links then.
        fs::create_dir_all(&target).unwrap();
        let decompress = match path.extension().and_then(|suffix| suffix.to_str()) {
            Some("gz") => "--use-compress-program=gzip",
            Some("lz4") => "--use-compress-program=lz4",
            Some("zst") => "--use-compress-program=zstd",
            _ => "--no-same-owner",
        };
        let status = std::process::Command::new("tar")
            .args([
                "--extract",
                "--no-same-owner",
                "--preserve-permissions",
                decompress,
                "--directory",
            ])
            .arg(&target)
            .arg("--file")
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success(), "tar cannot unpack {}", path.display());
    }
    if let Some(manifest) = &captured.manifest {
        fs::copy(manifest, data.join("backup_manifest")).unwrap();
    }
    give_to_server(data);
}

/// Makes everything below belong to the user that servers run as.
pub(crate) fn give_to_server(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    own(path);
}

fn own(path: &Path) {
    OsUser::current().own(path);
    if fs::symlink_metadata(path).unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            own(&entry.unwrap().path());
        }
    }
}

/// Runs a server of this installation on a data directory, asks it something, and stops it.
pub(crate) fn ask_restored(
    installation: &neon_testkit::Installation,
    data: &Path,
    sql: &str,
) -> String {
    let scratch = neon_testkit::Scratch::new();
    let log = scratch.path().join("log");
    let options = format!(
        "-c allow_in_place_tablespaces=on -c listen_addresses='' -c unix_socket_directories='{}' -c port=5432 -c archive_mode=off -c primary_conninfo=''",
        scratch.path().display()
    );
    let ctl = |verb: &[&str]| {
        let mut command = installation.command("pg_ctl");
        command
            .arg("-D")
            .arg(data)
            .arg("-w")
            .args(["-t", "120", "-l"])
            .arg(&log)
            .args(verb);
        command
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    let started = ctl(&["-o", &options, "start"]);
    assert!(
        started,
        "the restored server does not start:\n{}",
        fs::read_to_string(&log).unwrap_or_default()
    );
    let answer = installation
        .with_client("psql")
        .command("psql")
        .args(["-XAt", "-U", "postgres", "-h"])
        .arg(scratch.path())
        .args(["-p", "5432", "-d", "postgres", "-c", sql])
        .output()
        .unwrap();
    assert!(ctl(&["-m", "fast", "stop"]));
    assert!(
        answer.status.success(),
        "{}",
        String::from_utf8_lossy(&answer.stderr)
    );
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

/// Judges a backup by the stock `pg_verifybackup`: any up to 16 for the manifests of 13 to 16, that of
/// 18 for its own. There is none for 17, whose manifest is then read and compared with the files here.
pub(crate) fn verify(major: PgMajor, data: &Path, with_wal: bool) {
    let mut command = match major {
        PgMajor::V17 => return compare_with_manifest(data),
        PgMajor::V15 | PgMajor::V18 => Installation::of(major).command("pg_verifybackup"),
        _ => Installation::of(PgMajor::V16).command("pg_verifybackup"),
    };
    // WAL is parsed by the tool of its own major only.
    if !with_wal || major < PgMajor::V15 {
        command.arg("--no-parse-wal");
    }
    let output = command.arg(data).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn compare_with_manifest(data: &Path) {
    use sha2::Digest;
    let manifest =
        neon_pg_layout::Manifest::parse(&fs::read(data.join("backup_manifest")).unwrap()).unwrap();
    assert!(!manifest.files.is_empty());
    for file in &manifest.files {
        let path = String::from_utf8(file.path.clone()).unwrap();
        let content = fs::read(data.join(&path)).unwrap();
        assert_eq!(content.len() as u64, file.size, "{path}");
        if let Some(sum) = &file.checksum {
            let algorithm = neon_pg_layout::ChecksumAlgorithm::Sha256;
            let computed =
                neon_pg_layout::FileChecksum::new(algorithm, &sha2::Sha256::digest(&content));
            assert_eq!(&computed.unwrap(), sum, "{path}");
        }
    }
}
